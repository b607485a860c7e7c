"""The section of report.html on what changed against the reference."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from droseg.metrics.groups import ALL
from droseg.report.console import SIZE_LEGEND, format_value, metric_label
from droseg.report.evidence import Evidence, Row
from droseg.report.subgroups import MEAN
from droseg.report.tables import breakable, change_cell, comparison_table, html_table, main_metrics, trainings_table


def comparison_section(runs: Sequence[Evidence]) -> str:
    """Return the rule, and per run and metric the paired differences to the reference."""
    first = runs[0].comparison
    if first is None:
        return ""
    limits = [f"{metric_label(m)} {format_value(v, m)}" for m, v in first.min_effect.items()]
    parts = [
        f"<p class='note'>Paired by case, run minus {escape(runs[0].baseline_name)}, failures counted. {first.rule()} "
        f"Minimum effects: {escape(', '.join(limits))}. The intervals are those of each row alone. {SIZE_LEGEND}</p>"
    ]
    for run in runs:
        parts += [f"<h3 class='run'>{escape(run.name)}</h3>"] if len(runs) > 1 else []
        shown = main_metrics(run)
        others = [m for m in run.metrics if m not in shown]
        for m in shown:
            parts += [f"<h3>{escape(metric_label(m))}</h3>{comparison_table(run, m)}", structure_changes(run, m)]
        if others:
            tables = "".join(f"<h3>{escape(metric_label(m))}</h3>{comparison_table(run, m)}" for m in others)
            parts.append(
                f"<details><summary>{escape(', '.join(map(metric_label, others)))}</summary>{tables}</details>"
            )
        parts.append(_unpaired(run))
    reference = runs[0].reference
    parts += [_spread(side) for side in [*runs, *([reference] if reference is not None else [])]]
    return "".join(parts)


def _unpaired(run: Evidence) -> str:
    sentences = [] if run.comparison is None else run.comparison.unpaired(run.name, run.baseline_name)
    return "".join(f"<p>{escape(sentence[0].upper() + sentence[1:])}.</p>" for sentence in sentences)


def _spread(side: Evidence) -> str:
    if side.trainings == 1:
        return f"<p class='note'>{escape(side.name)} is one training: how far another seed would lie is unknown.</p>"
    metric = side.main_metric
    return (
        f"<details><summary>{side.trainings} trainings of {escape(side.name)}: how far they lie apart</summary>"
        f"<p class='note'>Mean {metric_label(metric)} of each group in each training, failures counted.</p>"
        f"{trainings_table(side, metric)}</details>"
    )


def structure_changes(run: Evidence, metric: str) -> str:
    """Return structures x groups with the word and the difference of each: which structure a mean hides."""
    if run.comparison is None:
        return ""
    table = run.comparison.table
    rows: list[Row] = table[(table["metric"] == metric) & (table["structure"] != MEAN)].to_dict("records")  # type: ignore[assignment]
    cells = {(row["structure"], row["axis"], row["group"]): row for row in rows}
    groups = list(dict.fromkeys((row["axis"], row["group"]) for row in rows))
    header = ["structure", *("all cases" if axis == ALL else breakable(f"{axis} = {group}") for axis, group in groups)]
    body = [
        ("", [breakable(str(structure)), *(change_cell(cells.get((structure, *group)), metric) for group in groups)])
        for structure in dict.fromkeys(row["structure"] for row in rows)
    ]
    label = escape(metric_label(metric))
    return f"<p class='note'>{label} of each structure, by the same rule.</p>{html_table(header, body)}" if body else ""
