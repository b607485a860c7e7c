"""The page "Custom Scalars" of TensorBoard: which of a run's values share a chart."""

from __future__ import annotations

import re
from collections.abc import Iterable

from droseg.handlers.case_metrics import WORST
from droseg.metrics.groups import ALL
from droseg.metrics.names import metric_label, tail_name, tail_percentile

Layout = dict[str, dict[str, list[object]]]
"""Category -> title of a chart -> ["Multiline", [regular expression of names]], as `add_custom_scalars` takes it."""

PREFIX = "val_"
_STRUCTURE = "structure"
_KIND = "(validation, failures counted)"
_SAMPLER = {
    "Effective sample size / N": r"sampler/ess_fraction",
    "Largest q: probability of one case": r"sampler/max_probability",
    "Loss history: mean, robust risk, CVaR": r"history/(mean_loss|robust_risk|cvar_[^/]*)",
    "Lag of the losses in steps: mean, largest": r"sampler/(lag|max_lag)",
    "Beta": r"sampler/beta",
    "Weight of each group (adversary)": r"sampler/adversary/.*",
    "Share of the draws of each group": r"sampler/share/.*",
    "Clipped importance weights, fraction": r"sampler/clipped_weights",
    "Cases not drawn yet": r"history/unvisited",
    "Change by a refresh of the history": r"history/refresh_change",
}


def scalar_layout(names: Iterable[str]) -> Layout:
    """Return a category for each group axis, one for the structures and one for the sampler; only charts with values.

    A chart of an axis has a line for each of its groups, for all cases and for the worst group of any axis: one chart
    with the means and one with the bad tails of each metric. Without axes there is a category of all cases. The axes
    are read off names such as `val_dice/anatomy=rare`, up to the first "=". Runs with the same axes have the same
    charts, whatever their groups, so that TensorBoard shows them together.

    Args:
        names: of the values that the run logs.
    """
    names = list(dict.fromkeys(names))
    metrics, axes = _metrics_and_axes(names)
    layout: Layout = {}
    if metrics and not set(axes) - {_STRUCTURE}:
        layout[f"All cases {_KIND}"] = _metric_charts(metrics, ALL)
    for axis in axes:
        of_axis = rf"{re.escape(axis)}=.*"
        lines = of_axis if axis == _STRUCTURE else rf"({ALL}|{WORST}|{of_axis})"
        title = "Structures" if axis == _STRUCTURE else f"Groups of {axis}"
        layout[f"{title} {_KIND}"] = _metric_charts(metrics, lines)
    sampler = {title: _chart(pattern) for title, pattern in _SAMPLER.items() if _matches(pattern, names)}
    return layout | ({"Sampler": sampler} if sampler else {})


def _metrics_and_axes(names: Iterable[str]) -> tuple[list[str], list[str]]:
    """Return the metrics, bad tails among them, and the axes; those that are there, structures last."""
    metrics: dict[str, None] = {}
    axes: dict[str, None] = {}
    for name in names:
        metric, slash, group = name.removeprefix(PREFIX).partition("/")
        if name.startswith(PREFIX) and slash:
            metrics[metric] = None
            axis, equals, _ = group.partition("=")
            if equals:
                axes[axis] = None
    return list(metrics), sorted(axes, key=lambda axis: axis == _STRUCTURE)


def _metric_charts(metrics: list[str], lines: str) -> dict[str, list[object]]:
    charts = {}
    tails = {tail_name(metric): metric for metric in metrics}
    for metric in metrics:
        if metric in tails:
            title = f"{metric_label(tails[metric])}, {tail_percentile(tails[metric])}th percentile"
        else:
            title = f"{metric_label(metric)}, mean"
        charts[title] = _chart(rf"{PREFIX}{re.escape(metric)}/{lines}")
    return charts


def _chart(pattern: str) -> list[object]:
    # TensorBoard matches from the start of a name only (re.match), so the end is said.
    return ["Multiline", [rf"(?s:{pattern})\Z"]]


def _matches(pattern: str, names: Iterable[str]) -> bool:
    return any(re.fullmatch(pattern, name, re.DOTALL) for name in names)
