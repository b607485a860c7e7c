"""Strip plots as SVG text: every case a mark, named on hover, one lane per group and run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import numpy as np
import pandas as pd

from droseg.metrics import OVERLAP_METRICS, higher_is_better
from droseg.metrics.groups import ALL, case_values
from droseg.report.console import format_value, metric_label, size_sign
from droseg.report.failures import any_failure, failures_by_case
from droseg.report.subgroups import iterate_groups, size_mark

_WIDTH, _LEFT, _RIGHT, _FAILED = 520, 12, 12, 60
_FIELD = 37  # from the end of the scale to the middle of the field of failures
_LANE, _TITLE, _GAP, _FOOT = 26, 20, 12, 34
# Around the point: circle, diamond, triangle up, square, triangle down, hexagon. Colors in style.py, same order.
_SHAPES = (
    "",
    "M{x:.1f} {y:.1f}m0-3.8l3.8 3.8-3.8 3.8-3.8-3.8z",
    "M{x:.1f} {y:.1f}m0-3.8l3.7 6.4h-7.4z",
    "M{x:.1f} {y:.1f}m-2.9-2.9h5.8v5.8h-5.8z",
    "M{x:.1f} {y:.1f}m0 3.8l3.7-6.4h-7.4z",
    "M{x:.1f} {y:.1f}m-1.8-3.1h3.6l1.8 3.1-1.8 3.1h-3.6l-1.8-3.1z",
)
MOST_RUNS = len(_SHAPES)
"""More runs than these cannot be told apart."""


@dataclass(frozen=True)
class _Scale:
    low: float
    high: float
    step: float
    right: float

    def x(self, value: Any) -> Any:
        return _LEFT + (value - self.low) / (self.high - self.low) * (self.right - _LEFT)


def case_points(cases: pd.DataFrame, axes: Sequence[str], metric: str) -> pd.DataFrame:
    """Return one row per case: value to draw, penalized value, whether it failed, and what to say on hover."""
    shown = cases.assign(_value=cases[metric].astype(float), _failed=any_failure(cases))
    grouped = shown.groupby("case_id", sort=False)
    table = pd.DataFrame(
        {
            "value": grouped["_value"].mean(),
            "penalized": case_values(cases, metric),
            "failed": grouped["_failed"].any(),
            "why": failures_by_case(cases),
        },
        index=pd.Index(cases["case_id"].unique(), name="case_id"),
    ).fillna({"why": ""})
    table = table.join(cases.drop_duplicates("case_id").set_index("case_id")[["patient_id", *axes]])
    if higher_is_better(metric):
        table["value"] = table["penalized"]
    return table.reset_index()


def strip_plot(points: Sequence[pd.DataFrame], names: Sequence[str], axis: str, metric: str, named: int | None) -> str:
    """Return one SVG: per group of the axis a lane for each run, all on one scale whatever the axis.

    A mark is the mean over the structures of a case that have a value. A case with a missed or false-positive structure
    is a cross: at its penalized value for scores, in a field of its own for distances, whose penalty (the image
    diagonal) would squeeze the rest. Boxes are quartiles of penalized values: one that lies beyond the scale ends in
    that field.

    Args:
        points: `case_points` of each run.
        names: of the runs.
        axis: group axis, or `ALL` for one lane of all cases.
        metric: what the points show.
        named: in a lane of more cases, as many of the worst are named marks and the others dots; None: all are named.
    """
    field = not higher_is_better(metric) and any(p["failed"].any() for p in points)
    scale = _scale(points, metric, _WIDTH - _RIGHT - (_FAILED if field else 0))
    y, body = 4.0, []
    groups: dict[str, None] = {}
    for table in points:
        found = [g for a, g, _ in iterate_groups(table, [] if axis == ALL else [axis]) if a == axis]
        groups |= dict.fromkeys(found)
    for group in sorted(groups):
        y += _TITLE
        lanes = [p if axis == ALL else p[p[axis].astype(str) == group] for p in points]
        body.append(_lane_title(axis, group, lanes, metric, y - 6))
        for run, rows in enumerate(lanes):
            body.append(_lane(rows, scale, metric, y, run, names[run], named))
            y += _LANE
        y += _GAP
    label = escape(f"{metric_label(metric)} of every case" + ("" if axis == ALL else f" by {axis}"))
    return (
        f'<svg class="plot" viewBox="0 0 {_WIDTH} {y + _FOOT:g}" role="img" aria-label="{label}">'
        f"{_axis(scale, metric, y, field)}{''.join(body)}</svg>"
    )


def legend_mark(run: int) -> str:
    """Return the mark of a run for a legend, as SVG."""
    return f'<svg viewBox="0 0 14 14" class="run{run}">{_mark(run, 7, 7, "")}</svg>'


def _scale(points: Sequence[pd.DataFrame], metric: str, right: float) -> _Scale:
    values = np.concatenate([p["value"].dropna().to_numpy(dtype=float) for p in points])
    if not values.size:
        return _Scale(0.0, 1.0, 0.2, right)
    if metric in OVERLAP_METRICS:
        step = 0.1 if values.min() >= 0.5 else 0.2
        return _Scale(min(0.8, step * float(np.floor(values.min() / step + 1e-9))), 1.0, step, right)
    low, high = (0.0 if values.min() >= 0 else float(values.min())), float(values.max())
    step = _step(high - low)
    return _Scale(float(np.floor(low / step) * step), float(np.ceil(high / step) * step) or 1.0, step, right)


def _step(span: float) -> float:
    """Return a distance between ticks of 1, 2 or 5 times a power of ten, about five of them."""
    if span <= 0:
        return 1.0
    power = 10.0 ** np.floor(np.log10(span / 5))
    return float(power * next(f for f in (1, 2, 5, 10) if span / 5 <= f * power))


def _axis(scale: _Scale, metric: str, bottom: float, field: bool) -> str:
    ticks = np.arange(scale.low, scale.high + scale.step / 2, scale.step)
    lines = "".join(f"M{scale.x(t):.1f} 4V{bottom:.1f}" for t in ticks)
    texts = "".join(
        f'<text x="{scale.x(tick):.1f}" y="{bottom + 14:.1f}" text-anchor="middle">{tick:.6g}</text>' for tick in ticks
    )
    middle = (scale.x(scale.low) + scale.right) / 2
    label = escape(metric_label(metric)) + (", better →" if higher_is_better(metric) else ", ← better")
    name = f'<text x="{middle:.1f}" y="{bottom + 29:.1f}" text-anchor="middle">{label}</text>'
    if field:
        x = scale.right + 12
        name += f'<rect class="field" x="{x:.1f}" y="4" width="{_WIDTH - x - 2:.1f}" height="{bottom - 4:.1f}"/>'
        name += f'<text x="{_WIDTH - 2}" y="{bottom + 14:.1f}" text-anchor="end">failed</text>'
    return f'<path class="grid" d="{lines}"/><g class="ticks">{texts}{name}</g>'


def _lane_title(axis: str, group: str, lanes: Sequence[pd.DataFrame], metric: str, y: float) -> str:
    """Return name and size of a group, and its mean if there is one run only."""
    name = "All cases" if axis == ALL else group
    members = max(lanes, key=len)
    patients = members.loc[members["penalized"].notna(), "patient_id"].nunique()
    text = f"n = {len(members)}{size_sign(size_mark(patients))}"
    if len(lanes) == 1:
        text += f", mean {format_value(members['penalized'].mean(), metric)}"
    return (
        f'<text class="lane" x="{_LEFT}" y="{y:.1f}"><tspan>{escape(name)}</tspan>'
        f'<tspan class="quiet" dx="8">{text}</tspan></text>'
    )


def _lane(rows: pd.DataFrame, scale: _Scale, metric: str, top: float, run: int, name: str, named: int | None) -> str:
    """Return box and marks of one run in one group; the box holds the quartiles of the penalized values."""
    y = top + _LANE / 2
    values = rows["penalized"].dropna().to_numpy(dtype=float)
    parts = []
    if len(values) >= 4:
        low, q1, median, q3, high = (_box_x(v, scale) for v in np.percentile(values, (5, 25, 50, 75, 95)))
        parts.append(f'<path class="whisker" d="M{low:.1f} {y:.1f}H{q1:.1f}M{q3:.1f} {y:.1f}H{high:.1f}"/>')
        parts.append(
            f'<rect class="box" x="{q1:.1f}" y="{y - 9:.1f}" width="{max(q3 - q1, 1):.1f}" height="18" rx="2"/>'
        )
        parts.append(f'<path class="median" d="M{median:.1f} {y - 9:.1f}v18"/>')
    shown = rows[np.isfinite(rows["penalized"])]
    if named is not None and len(shown) > named:
        worst = shown["penalized"].rank(method="first", ascending=higher_is_better(metric)) <= named
        parts.append(_dots(shown[~worst], scale, metric, y))
        shown = shown[worst]
    parts += [_point(row, i, scale, metric, y, run, name) for i, row in enumerate(_records(shown))]
    return f'<g class="run{run}">{"".join(parts)}</g>'


def _box_x(value: float, scale: _Scale) -> float:
    """Return where a quantile lies; in the field of failures if a failure put it beyond the scale."""
    return float(scale.x(value)) if value <= scale.high else scale.right + _FIELD


def _records(rows: pd.DataFrame) -> list[dict[str, Any]]:
    return rows.to_dict("records")  # type: ignore[return-value]


def _dots(rows: pd.DataFrame, scale: _Scale, metric: str, y: float) -> str:
    """Return all values as one path; two on the same pixel are drawn once."""
    index = np.arange(len(rows))
    x = scale.x(rows["value"].to_numpy(dtype=float))
    if not higher_is_better(metric):
        x = np.where(rows["failed"], _failed_x(index, scale), x)
    places = np.unique(np.rint(np.column_stack([x, y + _jitter(index)])).astype(int), axis=0)
    return f'<path class="dots" d="{"".join(f"M{a} {b}h0" for a, b in places.tolist())}"/>'


def _failed_x(index: Any, scale: _Scale) -> Any:
    """Return where failed cases lie if their penalty would squeeze the scale: in a field of their own."""
    return scale.right + _FIELD + ((index * 0.754878) % 1 - 0.5) * 36


def _jitter(index: Any) -> Any:
    return ((index * 0.618034) % 1 - 0.5) * (_LANE - 10)  # golden-ratio steps: spread without two the same


def _point(row: dict[str, Any], index: int, scale: _Scale, metric: str, y: float, run: int, name: str) -> str:
    in_field = row["failed"] and not higher_is_better(metric)
    x, y = _failed_x(index, scale) if in_field else scale.x(row["value"]), y + _jitter(index)
    value = format_value(row["penalized"], metric)
    title = f"{row['case_id']} ({name}): {value}"
    title += f"; {row['why']}" if row["why"] else ""
    hover = f"<title>{escape(title)}</title>"
    if row["failed"]:
        return f'<path class="failed" d="M{x - 3.5:.1f} {y - 3.5:.1f}l7 7m0-7l-7 7">{hover}</path>'
    return _mark(run, x, y, hover)


def _mark(run: int, x: float, y: float, hover: str) -> str:
    shape = _SHAPES[run % MOST_RUNS]
    if not shape:
        return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.2">{hover}</circle>'
    return f'<path class="mark" d="{shape.format(x=x, y=y)}">{hover}</path>'
