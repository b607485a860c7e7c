"""Strip plots as SVG text: every case a point, named on hover, one lane per group and run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import numpy as np
import pandas as pd

from droseg.metrics import OVERLAP_METRICS, higher_is_better, is_false_positive, is_missed
from droseg.metrics.groups import ALL, case_values
from droseg.report.console import format_value, metric_label
from droseg.report.subgroups import iterate_groups

# Okabe and Ito's palette: told apart with any color vision; the runs differ in shape too.
RUN_COLOR = "#0072B2"
BASELINE_COLOR = "#B85C00"
_WIDTH, _LEFT, _RIGHT, _FAILED = 520, 12, 12, 60
_LANE, _TITLE, _GAP, _FOOT = 26, 20, 12, 34
_MANY = 400  # above, the lane of all cases shows its box only: each case is a point in its group's lane


@dataclass(frozen=True)
class _Scale:
    low: float
    high: float
    step: float
    right: float

    def x(self, value: float) -> float:
        return _LEFT + (value - self.low) / (self.high - self.low) * (self.right - _LEFT)


def strip_plot(
    cases: pd.DataFrame, baseline: pd.DataFrame | None, axes: Sequence[str], metric: str, names: tuple[str, str]
) -> str:
    """Return one SVG: per group a lane with the cases of the run, and below it one with those of the baseline.

    A point is the mean over the structures of a case that have a value. A case with a missed or false-positive
    structure is a cross: at its penalized value for scores, in a field of its own for distances, whose penalty (the
    image diagonal) would squeeze the rest.

    Args:
        cases: cases table of the run.
        baseline: that of the baseline, or None; its cases are grouped as the run's.
        axes: group axes.
        metric: column to plot.
        names: of the run and of the baseline.
    """
    points = [_case_points(cases, axes, metric)]
    if baseline is not None:
        own = cases.drop_duplicates("case_id")[["case_id", *axes]]
        points.append(_case_points(baseline.drop(columns=[a for a in axes if a in baseline]).merge(own), axes, metric))
    field = not higher_is_better(metric) and any(p["failed"].any() for p in points)
    scale = _scale(points, metric, _WIDTH - _RIGHT - (_FAILED if field else 0))
    y, body = 4.0, []
    groups = [list(iterate_groups(p, axes)) for p in points]
    for axis, group, members in groups[0]:
        y += _TITLE
        body.append(_lane_title(axis, group, members, metric, y - 6))
        for run, table in enumerate(points):
            rows = table if axis == ALL else table[table[axis].astype(str) == group]
            body.append(_lane(rows, scale, metric, y, run, names[run], box_only=axis == ALL and len(rows) > _MANY))
            y += _LANE
        y += _GAP
    height = y + _FOOT
    label = escape(f"{metric_label(metric)} of every case by group")
    return (
        f'<svg class="plot" viewBox="0 0 {_WIDTH} {height:g}" role="img" aria-label="{label}">'
        f"{_axis(scale, metric, y, field)}{''.join(body)}</svg>"
    )


def _case_points(cases: pd.DataFrame, axes: Sequence[str], metric: str) -> pd.DataFrame:
    """Return one row per case: value to draw, penalized value, whether it failed, and what to say on hover."""
    failed = is_missed(cases) | is_false_positive(cases)
    shown = cases.assign(_value=cases[metric].astype(float), _failed=failed)
    grouped = shown.groupby("case_id", sort=False)
    table = pd.DataFrame(
        {
            "value": grouped["_value"].mean(),
            "penalized": case_values(cases, metric),
            "failed": grouped["_failed"].any(),
            "missed": _names(cases[is_missed(cases)]),
            "false_positive": _names(cases[is_false_positive(cases)]),
        },
        index=pd.Index(cases["case_id"].unique(), name="case_id"),
    ).fillna({"missed": "", "false_positive": ""})
    table = table.join(cases.drop_duplicates("case_id").set_index("case_id")[list(axes)])
    if higher_is_better(metric):
        table["value"] = table["penalized"]
    return table.reset_index()


def _names(rows: pd.DataFrame) -> pd.Series:
    return rows.groupby("case_id")["structure"].agg(", ".join)


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


def _lane_title(axis: str, group: str, members: pd.DataFrame, metric: str, y: float) -> str:
    name = "All cases" if axis == ALL else f"{axis}: {group}"
    mean = members["penalized"].mean()
    return (
        f'<text class="lane" x="{_LEFT}" y="{y:.1f}"><tspan>{escape(name)}</tspan>'
        f'<tspan class="quiet" dx="8">n = {len(members)}, mean {format_value(mean, metric)}</tspan></text>'
    )


def _lane(
    rows: pd.DataFrame, scale: _Scale, metric: str, top: float, run: int, name: str, *, box_only: bool = False
) -> str:
    """Return box, mean and points of one run in one group; the box holds the drawn values' quartiles."""
    y = top + _LANE / 2
    values = rows["value"].dropna().to_numpy(dtype=float)
    parts = []
    if len(values) >= 4:
        low, q1, median, q3, high = (scale.x(v) for v in np.percentile(values, (5, 25, 50, 75, 95)))
        parts.append(f'<path class="whisker" d="M{low:.1f} {y:.1f}H{q1:.1f}M{q3:.1f} {y:.1f}H{high:.1f}"/>')
        parts.append(
            f'<rect class="box" x="{q1:.1f}" y="{y - 9:.1f}" width="{max(q3 - q1, 1):.1f}" height="18" rx="2"/>'
        )
        parts.append(f'<path class="median" d="M{median:.1f} {y - 9:.1f}v18"/>')
    if not box_only:
        parts += [_point(row, i, scale, metric, y, run, name) for i, row in enumerate(_records(rows))]
    return f'<g class="run{run}">{"".join(parts)}</g>'


def _records(rows: pd.DataFrame) -> list[dict[str, Any]]:
    return rows.to_dict("records")  # type: ignore[return-value]


def _point(row: dict[str, Any], index: int, scale: _Scale, metric: str, y: float, run: int, name: str) -> str:
    if not np.isfinite(row["penalized"]):
        return ""
    y += ((index * 0.618034) % 1 - 0.5) * (_LANE - 10)  # golden-ratio steps: spread without two the same
    value = format_value(row["penalized"], metric)
    title = f"{row['case_id']} ({name}): {value}"
    title += f"; missed {row['missed']}" if row["missed"] else ""
    title += f"; false positive {row['false_positive']}" if row["false_positive"] else ""
    hover = f"<title>{escape(title)}</title>"
    if row["failed"]:
        in_field = not higher_is_better(metric)
        x = (scale.right + 37 + ((index * 0.754878) % 1 - 0.5) * 36) if in_field else scale.x(row["value"])
        return f'<path class="failed" d="M{x - 3.5:.1f} {y - 3.5:.1f}l7 7m0-7l-7 7">{hover}</path>'
    if run:
        return f'<path d="M{scale.x(row["value"]):.1f} {y - 3.8:.1f}l3.8 3.8-3.8 3.8-3.8-3.8z">{hover}</path>'
    return f'<circle cx="{scale.x(row["value"]):.1f}" cy="{y:.1f}" r="3.2">{hover}</circle>'
