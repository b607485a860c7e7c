"""From case tables to evidence: subgroups with intervals, comparison of runs, and a page that people like to read."""

from droseg.report.compare import Comparison, compare_runs
from droseg.report.read import read_cases
from droseg.report.score import Scores, score_cases, score_section
from droseg.report.subgroups import subgroup_table
from droseg.report.write import Report, write_report

__all__ = [
    "Comparison",
    "Report",
    "Scores",
    "compare_runs",
    "read_cases",
    "score_cases",
    "score_section",
    "subgroup_table",
    "write_report",
]
