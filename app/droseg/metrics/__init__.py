"""Per case and structure: Dice, Hausdorff, HD95, ASSD, NSD and volumes in one pass; then values per subgroup."""

from droseg.metrics.case import case_metrics
from droseg.metrics.groups import (
    COLUMNS,
    DISTANCE_METRICS,
    METRICS,
    OVERLAP_METRICS,
    group_values,
    higher_is_better,
    is_false_positive,
    is_missed,
    largest_value,
    penalized,
    share_diagonals,
    worst_group,
)
from droseg.metrics.surface import SurfaceDistances, surface_distances

__all__ = [
    "COLUMNS",
    "DISTANCE_METRICS",
    "METRICS",
    "OVERLAP_METRICS",
    "SurfaceDistances",
    "case_metrics",
    "group_values",
    "higher_is_better",
    "is_false_positive",
    "is_missed",
    "largest_value",
    "penalized",
    "share_diagonals",
    "surface_distances",
    "worst_group",
]
