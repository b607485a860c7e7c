"""The sections of report.html between the verdict and the method."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

import numpy as np
import pandas as pd

from droseg.metrics import higher_is_better
from droseg.metrics.groups import ALL, case_values
from droseg.report.console import SIZE_LEGEND, format_value, metric_label
from droseg.report.evidence import Evidence, subgroups_file, worst_row
from droseg.report.failures import FAILED, any_failure, failures, failures_text
from droseg.report.plots import case_points, legend_mark, strip_plot
from droseg.report.tables import (
    axis_table,
    failures_table,
    full_table,
    gap_sentences,
    html_table,
    main_metrics,
    structure_table,
)
from droseg.report.verdict import group_name

_MOST_NAMES = 200  # cases in the table below the plots
_MOST_MARKS = 10_000  # named marks of all plots together, about 120 bytes each


def summary(runs: Sequence[Evidence]) -> str:
    """Return the runs side by side on the main metric, the reference first."""
    metric = runs[0].main_metric
    header = ["run", f"mean {metric_label(metric)}", "worst group", "", "worst 10&nbsp;%", "worst case"]
    header += [" / ".join(failures(runs[0].cases)), *(["overall"] if runs[0].reference is not None else [])]
    sides = [*([runs[0].reference] if runs[0].reference is not None else []), *runs]
    rows = []
    for side in sides:
        overall, groups = side.groups(metric, ALL), side.ranked(metric)
        worst = worst_row(groups, metric) if groups else None
        cells = [escape(side.name), format_value(overall[0]["mean"], metric) if overall else "–"]
        cells += [format_value(worst["mean"], metric), group_name(worst)] if worst else ["–", ""]
        cells += [format_value(overall[0][c], metric) if overall else "–" for c in ("cvar10", "worst")]
        cells.append(failures_text(side.cases))
        if runs[0].reference is not None:
            changes = side.changes(metric, ALL)
            cells.append(f'<span class="{changes[0]["verdict"]}">{changes[0]["verdict"]}</span>' if changes else "")
        rows.append(("", cells))
    return html_table(header, rows) + _structures_note(sides)


def _structures_note(sides: Sequence[Evidence]) -> str:
    """Return over which structures each mean is, where that is not the same for all."""
    names = {side.name: list(side.cases["structure"].unique()) for side in sides}
    if len({frozenset(structures) for structures in names.values()}) == 1:
        return ""
    common = set.intersection(*(set(structures) for structures in names.values()))
    parts = []
    for name, structures in names.items():
        own = [structure for structure in structures if structure not in common]
        parts.append(
            f"{name}: {', '.join(s for s in structures if s in common)}" + (f" and {', '.join(own)}" if own else "")
        )
    text = (
        f"The means of these rows are over different structures. {'; '.join(parts)}. Comparisons are over those that "
        "both have."
    )
    return f"<p class='note'>{escape(text)}</p>"


def where(runs: Sequence[Evidence]) -> str:
    """Return per run and axis the groups, the gap, and the structures."""
    if not runs[0].axes:
        return "<p>No group axis was given. Name the columns to group by: <code>--group-by COLUMN</code>.</p>"
    settings = runs[0].settings
    parts = [
        "<p class='note'>Failures count here: a missed or false-positive structure has Dice 0, and the image diagonal "
        "as distance. Means over structures; the worst group of an axis is marked. "
        f"{SIZE_LEGEND} Gray: fewer than {settings.min_n} patients, not ranked.</p>"
    ]
    for run in runs:
        parts += [f"<h3 class='run'>{escape(run.name)}</h3>"] if len(runs) > 1 else []
        parts += [_axis(run, axis) for axis in run.axes]
    return "".join(parts)


def _axis(run: Evidence, axis: str) -> str:
    parts = [f"<h3>By {escape(axis)}</h3>{axis_table(run, axis)}{gap_sentences(run, axis)}"]
    if sum(row["n_patients"] >= run.settings.min_n for row in run.groups(run.main_metric, axis)) < 2:
        parts.append(
            f"<p class='note'>Fewer than two groups have {run.settings.min_n} patients, so no gap is given.</p>"
        )
    without = run.cases.loc[run.cases[axis].isna(), "case_id"].nunique()
    if without:
        parts.append(f"<p class='note'>{without} cases have no value of {escape(axis)} and are left out here.</p>")
    parts.append(f"<p class='note'>Mean {metric_label(run.main_metric)} per structure; the darker, the worse.</p>")
    return "".join([*parts, structure_table(run, axis)])


def plots(runs: Sequence[Evidence]) -> str:
    """Return per axis one strip plot per metric; Dice and HD95 first, the others folded."""
    reference = runs[0].reference
    sides = [*runs, *([reference] if reference is not None else [])]
    axes, metrics = runs[0].axes, list(runs[0].metrics)
    first = main_metrics(runs[0])
    points = {m: [case_points(side.cases, axes, m) for side in sides] for m in metrics}
    named = _named(runs)
    names = [side.name for side in sides]

    def figures(axis: str, shown: Sequence[str]) -> str:
        drawn = "".join(
            f"<figure><h4>{escape(metric_label(m))}</h4>{strip_plot(points[m], names, axis, m, named)}</figure>"
            for m in shown
        )
        return f'<div class="plots">{drawn}</div>'

    parts = []
    for axis in [ALL, *axes]:
        parts.append(f"<h3>{'All cases' if axis == ALL else 'By ' + escape(axis)}</h3>{figures(axis, first)}")
        others = [m for m in metrics if m not in first]
        if others:
            labels = escape(", ".join(map(metric_label, others)))
            parts.append(f"<details><summary>{labels}</summary>{figures(axis, others)}</details>")
    return _plot_legend(names, named) + "".join(parts) + _as_table(sides)


def _as_table(sides: Sequence[Evidence]) -> str:
    """Return the cases of the plots by name, folded: a phone has no hover."""
    parts = []
    for side in sides:
        values = pd.DataFrame({m: case_values(side.cases, m) for m in side.metrics})
        values = values.sort_values(side.main_metric, ascending=higher_is_better(side.main_metric), kind="stable")
        groups = side.cases.drop_duplicates("case_id").set_index("case_id")[list(side.axes)].reindex(values.index)
        rows = [
            ("", [escape(str(case)), *("–" if pd.isna(g) else escape(str(g)) for g in own), *cells])
            for (case, row), own in zip(values.head(_MOST_NAMES).iterrows(), groups.to_numpy(), strict=False)
            for cells in [[format_value(float(row[m]), m) for m in side.metrics]]
        ]
        count = f"the worst {_MOST_NAMES} of {len(values)}" if len(values) > _MOST_NAMES else f"{len(values)}"
        header = ["case", *map(escape, side.axes), *(escape(metric_label(m)) for m in side.metrics)]
        parts.append(
            f'<details class="file"><summary data-file=": in report.html and the CSV it was made from">'
            f"Cases of {escape(side.name)} by name ({count}), the worst first</summary>"
            f"<p class='note'>Means over structures, failures counted.</p>{html_table(header, rows)}</details>"
        )
    return "".join(parts)


def _named(runs: Sequence[Evidence]) -> int | None:
    """Return how many cases of a lane may have a name so that the page stays small; None if all may."""
    axes, metrics = runs[0].axes, runs[0].metrics
    sides = [*runs, *([runs[0].reference] if runs[0].reference is not None else [])]
    cases = sum(side.cases["case_id"].nunique() for side in sides)
    if cases * (1 + len(axes)) * len(metrics) <= _MOST_MARKS:
        return None
    lanes = 1 + sum(runs[0].cases[axis].nunique() for axis in axes)
    return max(3, _MOST_MARKS // (lanes * len(metrics) * len(sides)))


def _plot_legend(names: Sequence[str], named: int | None) -> str:
    legend = [f"<span>{legend_mark(i)}{escape(name)}</span>" for i, name in enumerate(names)]
    legend.append(
        '<span><svg viewBox="0 0 14 14" class="run0"><path class="failed" d="M3 3l8 8m0-8l-8 8"/></svg>'
        "a structure missed, false positive or failed</span>"
        "<span>box: quartiles and median, failures counted; line: 5th to 95th percentile</span>"
    )
    note = "Each mark is one case, the mean over its structures; hover for its name."
    if named is not None:
        note = (
            f"Each mark is one case, the mean over its structures. The worst {named} of a group have a name on hover; "
            "the others are dots, there are too many of them."
        )
    return f"<p class='note'>{note} {SIZE_LEGEND}</p><div class=\"legend\">{''.join(legend)}</div>"


def failures_section(runs: Sequence[Evidence]) -> str:
    """Return every missed and false-positive structure, per run."""
    parts = []
    for run in runs:
        parts += [f"<h3 class='run'>{escape(run.name)}</h3>"] if len(runs) > 1 else []
        if any_failure(run.cases).any():
            note = "Missed: the reference has the structure, the prediction does not. False positive: the reverse."
            if FAILED in failures(run.cases):
                note = (
                    "Failed: Dice or NSD is 0 and no distance is given, so one of the two masks is empty. Without "
                    "volumes the table does not say which: missed or false positive."
                )
            parts.append(f"<p class='note'>{note}</p>{failures_table(run)}")
        else:
            parts.append(
                "<p>None: every structure of the references was found at least in part, and no other was predicted.</p>"
            )
    return "".join(parts)


def hidden_section(rows: Sequence[Mapping[str, object]]) -> str:
    """Return the subgroups that no one named and a search found: one row each, its keys are the columns."""
    if not rows:
        return "<p>Searched for, and none found.</p>"
    note = (
        "<p class='note'>Each half of the patients was searched for rules, and the other half tested them; the "
        "p-values are corrected for all rules tested. Only a confirmed rule is a finding; the means are of the half "
        "that the search did not see.</p>"
    )
    cells = [("", [escape(_shown(value)) for value in row.values()]) for row in rows]
    return note + html_table([escape(str(key)) for key in rows[0]], cells, "text")


def _shown(value: object) -> str:
    if isinstance(value, (bool, np.bool_)):
        return "yes" if value else "no"
    return f"{value:.3g}" if isinstance(value, (float, np.floating)) else str(value)


def tables_section(runs: Sequence[Evidence]) -> str:
    """Return all tables, folded."""
    parts = []
    reference = runs[0].reference
    for side in [*runs, *([reference] if reference is not None else [])]:
        of = f" of {escape(side.name)}" if len(runs) > 1 or reference is not None else ""
        parts += [
            _folded(
                f"Subgroups{of}",
                "Undefined values are left out of the statistics and counted.",
                side.subgroups,
                subgroups_file(side, runs[0]),
            ),
            _folded(
                f"Subgroups{of} with failures counted",
                "What the verdict uses.",
                side.penalized,
                "subgroups_penalized.csv",
            ),
            _folded(f"Gaps{of}", "Between the best and the worst ranked group.", side.gaps, "gaps.csv"),
        ]
    for run in runs:
        if run.comparison is not None:
            title = f"{escape(run.name)} against {escape(run.baseline_name)}"
            note = "Paired differences, failures counted."
            parts.append(_folded(title, note, run.comparison.table, "comparison.csv"))
    return "".join(parts)


def _folded(title: str, note: str, table: pd.DataFrame, file: str) -> str:
    """Return a table that opens on screen; on paper, where it is only named, the file that holds it."""
    if table.empty:
        return ""
    return (
        f'<details class="file"><summary data-file=": {len(table)} rows, in {escape(file)}">{title}</summary>'
        f"<p class='note'>{note}</p>{full_table(table)}</details>"
    )
