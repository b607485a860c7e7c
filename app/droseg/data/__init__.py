"""The data room: datalists, their checks and splits, and the generated phantom cohort."""

from droseg.data.check import Problem, check_datalist, problem_table
from droseg.data.datalist import Case, Datalist, read_datalist, write_datalist
from droseg.data.groups import empty_cells, group_counts, group_table
from droseg.data.seeded import LagBoundedDataLoader, SeededDataset
from droseg.data.split import split_datalist

__all__ = [
    "Case",
    "Datalist",
    "LagBoundedDataLoader",
    "Problem",
    "SeededDataset",
    "check_datalist",
    "empty_cells",
    "group_counts",
    "group_table",
    "problem_table",
    "read_datalist",
    "split_datalist",
    "write_datalist",
]
