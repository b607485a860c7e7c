"""The paragraph at the top of a report, made from its numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import numpy as np
import pandas as pd

from droseg.metrics import higher_is_better, is_false_positive, is_missed
from droseg.metrics.groups import ALL, case_values
from droseg.report.compare import Comparison
from droseg.report.console import format_value, interval_text, metric_label
from droseg.report.subgroups import MEAN, MIN_PATIENTS

Row = dict[str, Any]


@dataclass(frozen=True)
class Evidence:
    """All that a report is made from.

    Attributes:
        name: what to call the run.
        cases: its cases table.
        axes: group axes.
        metrics: in order; the first that is `dice`, else the first, decides the verdict.
        subgroups: `subgroup_table`, undefined values left out and counted.
        penalized: the same with failures counted.
        baseline_name: what to call the baseline.
        baseline: its cases table, if there is one.
        comparison: against it.
    """

    name: str
    cases: pd.DataFrame
    axes: Sequence[str]
    metrics: Sequence[str]
    subgroups: pd.DataFrame
    penalized: pd.DataFrame
    baseline_name: str = "baseline"
    baseline: pd.DataFrame | None = None
    comparison: Comparison | None = None

    @property
    def main_metric(self) -> str:
        """The metric that the verdict speaks of."""
        return "dice" if "dice" in self.metrics else self.metrics[0]

    def groups(self, metric: str, axis: str | None = None) -> list[Row]:
        """Return the penalized rows of structure=mean, those of one axis or of all named groups."""
        return _mean_rows(self.penalized, metric, axis)

    def changes(self, metric: str, axis: str | None = None) -> list[Row]:
        """Return the comparison's rows of structure=mean; empty without a baseline."""
        return [] if self.comparison is None else _mean_rows(self.comparison.table, metric, axis)


def _mean_rows(table: pd.DataFrame, metric: str, axis: str | None) -> list[Row]:
    rows = table[(table["metric"] == metric) & (table["structure"] == MEAN)]
    rows = rows[rows["axis"] != ALL] if axis is None else rows[rows["axis"] == axis]
    return rows[rows["mean"].notna()].to_dict("records")  # type: ignore[return-value]


def worst_row(rows: Sequence[Row], metric: str) -> Row:
    """Return the row with the worst mean."""
    return (min if higher_is_better(metric) else max)(rows, key=lambda row: row["mean"])


def best_row(rows: Sequence[Row], metric: str) -> Row:
    """Return the row with the best mean."""
    return (max if higher_is_better(metric) else min)(rows, key=lambda row: row["mean"])


def group_name(row: Row) -> str:
    """Return "anatomy = spina_bifida", escaped and kept on one line."""
    name = "all cases" if row["axis"] == ALL else f"{row['axis']} = {row['group']}"
    return f'<span class="group">{escape(name)}</span>'


def verdict_paragraphs(evidence: Evidence) -> list[str]:
    """Return the verdict as HTML paragraphs."""
    paragraphs = [" ".join([_overall(evidence), _worst_group(evidence), _failures(evidence)]).strip()]
    if evidence.comparison is not None:
        paragraphs.append(_against_baseline(evidence))
    return paragraphs


def _overall(evidence: Evidence) -> str:
    metric = evidence.main_metric
    rows = evidence.groups(metric, ALL)
    if not rows:
        return f"No case has a defined {metric_label(metric)}."
    value = format_value(rows[0]["mean"], metric)
    return f"{escape(evidence.name)} has a mean {metric_label(metric)} of <b>{value}</b> over {rows[0]['n']} cases."


def _worst_group(evidence: Evidence) -> str:
    metric = evidence.main_metric
    rows = evidence.groups(metric)
    if not rows:
        return "No group axis was given, so nothing can be said about subgroups (--group-by COLUMN)."
    worst = worst_row(rows, metric)
    peers = [row for row in rows if row["axis"] == worst["axis"]]
    best = best_row(peers, metric)
    gap = abs(best["mean"] - worst["mean"])
    side = "below" if higher_is_better(metric) else "above"
    interval = _interval(worst, metric)
    text = (
        f"It is worst on {group_name(worst)} (n = {worst['n']}): mean {metric_label(metric)} "
        f"<b>{format_value(worst['mean'], metric)}</b>{interval}"
    )
    if len(peers) > 1:
        text += f", {format_value(gap, metric)} {side} {group_name(best)}"
    tail = "p10" if higher_is_better(metric) else "p90"
    text += f"; its {tail[1:]}th percentile is {format_value(worst[tail], metric)}"
    case = _worst_case(evidence, worst, metric)
    text += f", its worst case {escape(case)} has {format_value(worst['worst'], metric)}."
    if not np.isfinite(worst["ci_low"]):
        text += f" Fewer than {MIN_PATIENTS} patients: an observation, not an estimate."
    return text + _by_distance(evidence, worst)


def _by_distance(evidence: Evidence, worst: Row) -> str:
    """Add the worst group by HD95 if that is another one."""
    metric = "hd95_mm"
    if metric not in evidence.metrics or metric == evidence.main_metric or not evidence.groups(metric):
        return ""
    other = worst_row(evidence.groups(metric), metric)
    value = f"{format_value(other['mean'], metric)} mm"
    if (other["axis"], other["group"]) == (worst["axis"], worst["group"]):
        return f" By HD95 it is the worst group too (mean {value})."
    return f" By HD95 the worst group is {group_name(other)} (mean {value}, n = {other['n']})."


def _worst_case(evidence: Evidence, row: Row, metric: str) -> str:
    cases = evidence.cases if row["axis"] == ALL else evidence.cases[evidence.cases[row["axis"]] == row["group"]]
    values = case_values(cases, metric)
    return str(values.idxmin() if higher_is_better(metric) else values.idxmax())


def _failures(evidence: Evidence) -> str:
    parts = []
    for what, flags in (("missed", is_missed(evidence.cases)), ("false positive", is_false_positive(evidence.cases))):
        if flags.any():
            rows = evidence.cases[flags]
            names = rows["structure"].value_counts()
            most = ("most often " if len(names) > 1 else "") + escape(str(names.index[0]))
            verb = "was" if len(rows) == 1 else "were"
            cases = _count(rows["case_id"].nunique(), "case")
            parts.append(f"{_count(len(rows), 'structure')} {verb} {what} in {cases} ({most})")
    if not parts:
        return "No structure was missed entirely, and none was predicted that is not there."
    return f"{' and '.join(parts)}; each counts as a failure: Dice 0, distance = {_penalty(evidence)}."


def _penalty(evidence: Evidence) -> str:
    return "the image diagonal" if "diagonal_mm" in evidence.cases.columns else "the largest distance in the table"


def _against_baseline(evidence: Evidence) -> str:
    metric = evidence.main_metric
    overall, groups = evidence.changes(metric, ALL), evidence.changes(metric)
    if not overall:
        return f"No case has a defined {metric_label(metric)} in both runs, so they cannot be compared."
    baseline = escape(evidence.baseline_name)
    text = f"Against {baseline}, paired over {_count(overall[0]['n'], 'case')}: "
    text += f"overall <b>{_word(overall[0])}</b> ({_change(overall[0], metric)} {metric_label(metric)})"
    for word in ("helped", "hurt", "inconclusive"):
        rows = [row for row in groups if row["verdict"] == word]
        if rows:
            shown = ", ".join(f"{group_name(row)} ({_change(row, metric)})" for row in rows)
            text += f"; <b>{_word(rows[0])}</b> on {shown}"
    return f"{text}. {_worst_moved(evidence, groups)}".strip()


def _worst_moved(evidence: Evidence, groups: Sequence[Row]) -> str:
    """Say what happened to the worst group's value, whichever group that is in each run."""
    if not groups:
        return ""
    metric = evidence.main_metric
    before = (min if higher_is_better(metric) else max)(groups, key=lambda row: row["baseline_mean"])
    after = worst_row(groups, metric)
    same = group_name(before) == group_name(after)
    end = "" if same else f" (now {group_name(after)})"
    values = f"{format_value(before['baseline_mean'], metric)} to {format_value(after['mean'], metric)}"
    return f"The mean of the worst group, {group_name(before)}, went from {values}{end}."


def _change(row: Row, metric: str) -> str:
    difference, interval = interval_text(row, metric).split(" ", 1)
    return f"{difference} <small>{interval}</small>"


def _word(row: Row) -> str:
    return f'<span class="{row["verdict"]}">{row["verdict"]}</span>'


def _interval(row: Row, metric: str) -> str:
    if not np.isfinite(row["ci_low"]):
        return ""
    return f" (95 % interval {format_value(row['ci_low'], metric)} to {format_value(row['ci_high'], metric)})"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" + ("" if number == 1 else "s")
