"""Per case and structure, in one pass: Dice, distances, volumes, components, topology; then values per subgroup.

Every definition and convention: docs/metrics.md.
"""

from droseg.metrics.case import case_metrics, tolerances_mm
from droseg.metrics.groups import (
    bad_tail,
    group_values,
    is_false_positive,
    is_missed,
    largest_value,
    penalized,
    share_diagonals,
    worst_group,
)
from droseg.metrics.names import (
    COLUMNS,
    CONVENTIONS,
    DISTANCE_METRICS,
    EVALUATION_METRICS,
    EXTRA_METRICS,
    METRICS,
    OVERLAP_METRICS,
    has_direction,
    hausdorff_percentile,
    higher_is_better,
    is_metric,
    is_own_column,
)
from droseg.metrics.record import evaluation_record, write_record
from droseg.metrics.surface import SurfaceDistances, surface_distances
from droseg.metrics.topology import betti_numbers, count_components

__all__ = [
    "COLUMNS",
    "CONVENTIONS",
    "DISTANCE_METRICS",
    "EVALUATION_METRICS",
    "EXTRA_METRICS",
    "METRICS",
    "OVERLAP_METRICS",
    "SurfaceDistances",
    "bad_tail",
    "betti_numbers",
    "case_metrics",
    "count_components",
    "evaluation_record",
    "group_values",
    "has_direction",
    "hausdorff_percentile",
    "higher_is_better",
    "is_false_positive",
    "is_metric",
    "is_missed",
    "is_own_column",
    "largest_value",
    "penalized",
    "share_diagonals",
    "surface_distances",
    "tolerances_mm",
    "worst_group",
    "write_record",
]
