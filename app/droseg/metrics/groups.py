"""From a cases table (case_metrics.csv in memory) to one value per subgroup, in which failures count as failures.

A cases table has one row per case and structure: `case_id, patient_id, structure`, metrics, `volume_ref_ml,
volume_pred_ml`, one column per group axis, and `diagonal_mm`, the diagonal of the case's image.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from droseg.metrics.names import (
    DISTANCE_METRICS,
    OVERLAP_METRICS,
    has_direction,
    hausdorff_percentile,
    higher_is_better,
    tail_percentile,
)

ALL = "all"


def is_missed(cases: pd.DataFrame) -> pd.Series:
    """Return per row whether the reference has the structure and the prediction does not."""
    if {"volume_ref_ml", "volume_pred_ml"} <= set(cases.columns):
        return (cases["volume_ref_ml"] > 0) & (cases["volume_pred_ml"] == 0)
    return _zero_overlap_without_distance(cases)


def is_false_positive(cases: pd.DataFrame) -> pd.Series:
    """Return per row whether the prediction has the structure and the reference does not (unknown volumes: False)."""
    if {"volume_ref_ml", "volume_pred_ml"} <= set(cases.columns):
        return (cases["volume_ref_ml"] == 0) & (cases["volume_pred_ml"] > 0)
    return pd.Series(False, index=cases.index)


def _zero_overlap_without_distance(cases: pd.DataFrame) -> pd.Series:
    """A table without volumes: dice or nsd 0 and no distance at all is the trace that one empty mask leaves."""
    overlaps = [m for m in OVERLAP_METRICS if m in cases.columns]
    distances = [c for c in cases.columns if c in DISTANCE_METRICS or _is_distance(str(c))]
    if not overlaps or not distances:
        return pd.Series(False, index=cases.index)
    measured = pd.DataFrame(np.isfinite(cases[distances]), index=cases.index).any(axis=1)
    return (cases[overlaps] == 0).any(axis=1) & ~measured


def _is_distance(column: str) -> bool:
    return hausdorff_percentile(column) is not None or column.endswith("_lower")


def largest_value(cases: pd.DataFrame, metric: str) -> float:
    """Return the largest finite value of a metric; NaN without any."""
    values = cases[metric].astype(float)
    return float(values[np.isfinite(values)].max())


def share_diagonals(first: pd.DataFrame, second: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return both tables with one `diagonal_mm` per case, so that a failure costs the same in both.

    A case that only one table gives a diagonal takes it in both; where they differ, the larger one. Tables without the
    column stay without it.
    """
    known = [t[["case_id", "diagonal_mm"]] for t in (first, second) if "diagonal_mm" in t.columns]
    if not known:
        return first, second
    of_case = pd.concat(known).astype({"diagonal_mm": float}).groupby("case_id")["diagonal_mm"].max()
    shared_first, shared_second = (t.assign(diagonal_mm=t["case_id"].map(of_case)) for t in (first, second))
    return shared_first, shared_second


def penalized(cases: pd.DataFrame, metric: str, largest_mm: float | None = None) -> pd.Series:
    """Return the metric per row with failures counted: what verdicts, worst groups and checkpoint rules use.

    Missed structures and false positives get 0 for dice and nsd, and the image diagonal (`diagonal_mm`) as distance.
    Both masks empty stays NaN: the structure is not in scope. Without `diagonal_mm` (tables of other software) the
    largest finite distance of this metric in the table stands for it, which is milder. Errors (`..._error`) can be
    measured against an empty mask and keep their value; where one is undefined, the largest stands for it. Columns
    without a better and a worse (`has_direction`) are left as they are.

    Args:
        cases: a cases table.
        metric: one of its columns.
        largest_mm: what stands for an unknown diagonal. Give one value to tables that are compared (`largest_value` of
            them all): each one's own would make the same failure cost more in one of them.

    Raises:
        KeyError: if the table has no such metric.
    """
    if metric not in cases.columns:
        raise KeyError(f"no column {metric}; the table has {list(cases.columns)}.")
    values = cases[metric].astype(float).where(np.isfinite(cases[metric].astype(float)))
    if not has_direction(metric):
        return values
    failed = is_missed(cases) | is_false_positive(cases)
    if higher_is_better(metric):
        return values.mask(failed, 0.0)
    largest = float(values.max()) if largest_mm is None else largest_mm
    if not metric.endswith("_mm"):
        return values.mask(failed & values.isna(), largest)
    penalty = pd.Series(largest, index=cases.index)
    if "diagonal_mm" in cases.columns:
        penalty = cases["diagonal_mm"].astype(float).fillna(largest)
    return values.mask(failed, penalty)


def case_values(cases: pd.DataFrame, metric: str) -> pd.Series:
    """Return per `case_id` the mean over its structures in scope of the penalized metric."""
    return penalized(cases, metric).groupby(cases["case_id"], sort=False).mean()


def bad_tail(values: NDArray[np.float64], metric: str) -> float:
    """Return the 10th percentile of scores, the 90th of distances and errors (linear interpolation); NaN of none."""
    return float(np.percentile(values, tail_percentile(metric))) if len(values) else float("nan")


def group_values(cases: pd.DataFrame, axes: Sequence[str], metric: str) -> pd.DataFrame:
    """Return `axis, group, n, value, tail` of the cases' means over structures (penalized).

    `value` is their mean over the group's cases, `tail` their `bad_tail`. The first row is axis=all, group=all; then
    the axes in the given order, groups sorted. `n` counts the cases with a value. A case without a group on an axis is
    left out on that axis.
    """
    per_case = case_values(cases, metric).dropna()
    groups = {(ALL, ALL): per_case}
    first = cases.drop_duplicates("case_id").set_index("case_id")
    for axis in axes:
        for group, values in per_case.groupby(first[axis].reindex(per_case.index), sort=True):
            groups[axis, str(group)] = values
    rows = [
        {
            "axis": axis,
            "group": group,
            "n": len(values),
            "value": float(values.mean()),
            "tail": bad_tail(values.to_numpy(), metric),
        }
        for (axis, group), values in groups.items()
    ]
    return pd.DataFrame(rows, columns=["axis", "group", "n", "value", "tail"])


def worst_group(
    cases: pd.DataFrame, axes: Sequence[str], metric: str, by: Literal["value", "tail"] = "value"
) -> tuple[str, str, float]:
    """Return axis, group and value (or tail) of the worst of `group_values`; ("all", "all", value) without groups."""
    table = group_values(cases, axes, metric)
    groups = table.iloc[1:].dropna(subset=[by])
    if groups.empty:
        return ALL, ALL, float(table[by].iloc[0])
    worst = groups.iloc[int(groups[by].argmin() if higher_is_better(metric) else groups[by].argmax())]
    return str(worst["axis"]), str(worst["group"]), float(worst[by])
