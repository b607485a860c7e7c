"""The hardest training cases of a run, ranked, and which of their labels look wrong."""

from droseg.hardest.flag import LabelCheck, check_label, usual
from droseg.hardest.measure import Measurement, measure_run
from droseg.hardest.sheet import hardest_table
from droseg.hardest.source import TrainedRun, read_run
from droseg.hardest.write import Sheet, write_sheet

__all__ = [
    "LabelCheck",
    "Measurement",
    "Sheet",
    "TrainedRun",
    "check_label",
    "hardest_table",
    "measure_run",
    "read_run",
    "usual",
    "write_sheet",
]
