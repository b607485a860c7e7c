"""The tables of a report as HTML."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

import numpy as np
import pandas as pd

from droseg.metrics import higher_is_better
from droseg.metrics.groups import ALL
from droseg.report.compare import default_min_effect
from droseg.report.console import format_value, interval_text, metric_label, size_sign
from droseg.report.evidence import Evidence, Row, worst_row
from droseg.report.failures import failures
from droseg.report.subgroups import MEAN, size_mark
from droseg.report.verdict import tail_of

MOST_ROWS = 1500
"""Rows of a full table on the page; a longer one would make it too large to mail."""


def html_table(header: Iterable[str], rows: Iterable[tuple[str, Sequence[str]]], css: str = "") -> str:
    """Return a table that scrolls sideways on narrow screens; cells are HTML, each row a class and its cells."""
    head = "".join(f"<th>{cell}</th>" for cell in header)
    body = "".join(
        f'<tr class="{name}">' + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>" for name, cells in rows
    )
    return f'<div class="scroll"><table class="{css}"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def breakable(text: str) -> str:
    """Return the text, escaped, that a narrow column may break after an underscore rather than anywhere."""
    return escape(text).replace("_", "_<wbr>")


def axis_table(evidence: Evidence, axis: str) -> str:
    """Return one row per group: how many, what failed, and mean, bad tail and worst case of Dice and HD95 (penalized).

    The worst ranked group is marked; groups of fewer than `min_n` patients are gray and not ranked.
    """
    metrics = main_metrics(evidence)
    main = evidence.main_metric
    failed = _failures_by_group(evidence, axis)
    header = [breakable(axis), "cases", *([" / ".join(failed)] if failed else [])]
    for metric in metrics:
        header += [f"{metric_label(metric)}, mean", tail_of(metric), "worst 10&nbsp;%", "worst"]
    changes = {row["group"]: row for row in evidence.changes(main, axis)}
    beside = []  # of the main metric; at the right end a narrow screen would cut it first
    if evidence.comparison is not None:
        beside.append(f"{metric_label(main)} against {breakable(evidence.baseline_name)}")
    if evidence.trainings > 1:
        beside.append(f"± of {evidence.trainings} trainings")
    header[2:2] = [", ".join(beside)] if beside else []
    by_metric = {m: {row["group"]: row for row in evidence.groups(m, axis)} for m in metrics}
    ranked = evidence.ranked(metrics[0], axis)
    names = {row["group"] for row in ranked}
    worst = worst_row(ranked, metrics[0])["group"] if len(ranked) > 1 else None
    rows = []
    for group in dict.fromkeys(group for table in by_metric.values() for group in table):
        first = _first(by_metric, group)
        cells = [breakable(group), f"{first['n']}{size_sign(first['size'])}"]
        cells += [" / ".join(str(counts.get(group) or 0) for counts in failed.values())] if failed else []
        for metric in metrics:
            cells += _value_cells(by_metric[metric].get(group), metric)
        beside = [change_cell(changes.get(group), main, first["n"])] if evidence.comparison is not None else []
        if evidence.trainings > 1:
            beside.append(f"<small>± {format_value(_spread(evidence, axis, group, main), main)}</small>")
        cells[2:2] = [" ".join(beside)] if beside else []
        rows.append(("worst" if group == worst else "" if group in names else "unranked", cells))
    return html_table(header, rows)


def main_metrics(evidence: Evidence) -> list[str]:
    """Return the metrics that are shown first: Dice and HD95 if there."""
    return [m for m in ("dice", "hd95_mm") if m in evidence.metrics] or list(evidence.metrics[:2])


def gap_sentences(evidence: Evidence, axis: str) -> str:
    """Return the gap between worst and best group of an axis, and the equity-scaled score, in words."""
    sentences = []
    for metric in main_metrics(evidence):
        gap = evidence.gap(metric, axis)
        if gap is None or not np.isfinite(gap["gap"]):
            continue
        bounds = ""
        if np.isfinite(gap["gap_ci_low"]):
            low, high = (format_value(gap[key], metric) for key in ("gap_ci_low", "gap_ci_high"))
            bounds = f" <small>[{low}, {high}]</small>"
        worse = f"<b>{format_value(gap['gap'], metric)}</b>{bounds}"
        text = f"{metric_label(metric)}: {escape(gap['worst_group'])} is {worse} worse than {escape(gap['best_group'])}"
        p = format_p(gap["p_groups"])
        text += f" <small>(any difference of groups: p {p if p.startswith('&lt;') else '= ' + p})</small>"
        if np.isfinite(gap["equity_scaled"]):
            text += (
                f"; equity-scaled {metric_label(metric)} {format_value(gap['equity_scaled'], metric)} "
                f"(mean {format_value(gap['overall'], metric)})"
            )
        sentences.append(f"{text}.")
    return f"<p>{' '.join(sentences)}</p>" if sentences else ""


def structure_table(evidence: Evidence, axis: str) -> str:
    """Return structures x groups with the penalized mean of the main metric, the darker the worse."""
    metric = evidence.main_metric
    table = evidence.penalized[(evidence.penalized["metric"] == metric) & evidence.penalized["axis"].isin([ALL, axis])]
    wide = table.pivot(index="structure", columns=["axis", "group"], values="mean")
    wide = wide.reindex(index=list(dict.fromkeys(table["structure"])))
    values = wide.to_numpy(dtype=float)
    defined = values[np.isfinite(values)]
    best, worst = (defined.max(), defined.min()) if defined.size else (1.0, 1.0)
    if not higher_is_better(metric):
        best, worst = worst, best
    groups = [str(group) for group in wide.columns.get_level_values("group")]
    header = ["structure", *map(breakable, groups)]
    rows = []
    for structure, row in zip(wide.index, values, strict=True):
        name = "mean over structures" if structure == MEAN else breakable(str(structure))
        rows.append(("", [name, *(_heat(v, metric, best, worst) for v in row)]))
    # Background colors belong to the cell, so these cells are built here.
    cells = html_table(header, rows, "heat")
    return cells.replace("<td>\0", "<td ").replace("\1", ">")


def comparison_table(evidence: Evidence, metric: str) -> str:
    """Return one row per group: mean, tail and worst case of both runs, the paired difference and its test."""
    tail = tail_of(metric)
    header = ["group", "pairs", escape(evidence.baseline_name), escape(evidence.name), "difference [95&nbsp;%]"]
    header += ["p (Holm)", "", f"{tail}: before → after", "worst: before → after"]
    rows = []
    for row in [*evidence.changes(metric, ALL), *evidence.changes(metric)]:
        name = "all cases" if row["axis"] == ALL else f"{row['axis']} = {row['group']}"
        values = {key: format_value(row[key], metric) for key in row if isinstance(row[key], float)}
        cells = [breakable(name), f"{row['n']}{size_sign(size_mark(row['n_patients']))}"]
        cells += [values["baseline_mean"], values["mean"], interval_text(row, metric), format_p(row["p_holm"])]
        cells.append(_word_cell(row))
        cells += [f"{values['baseline_' + key]} → {values[key]}" for key in ("tail", "worst")]
        rows.append(("all" if row["axis"] == ALL else "", cells))
    return html_table(header, rows)


def trainings_table(evidence: Evidence, metric: str) -> str:
    """Return one row per group: how far the means of the trainings lie apart."""
    spread = evidence.spread[(evidence.spread["metric"] == metric) & (evidence.spread["structure"] == MEAN)]
    rows = []
    for row in spread.to_dict("records"):
        name = "all cases" if row["axis"] == ALL else f"{row['axis']} = {row['group']}"
        values = [format_value(float(row[c]), metric) for c in ("std_between", "lowest", "highest")]
        rows.append(("all" if row["axis"] == ALL else "", [escape(name), str(row["trainings"]), *values]))
    return html_table(["group", "trainings", "standard deviation", "lowest mean", "highest mean"], rows)


def failures_table(evidence: Evidence) -> str:
    """Return every missed and every false-positive structure of the run, and whether the baseline did the same."""
    header = ["case", "structure", "what", "reference (ml)", "prediction (ml)", *map(escape, evidence.axes)]
    assumed = set() if evidence.record is None else set(evidence.record.assumed)
    before: dict[str, set[tuple[str, str]]] = {}
    if evidence.baseline is not None:
        header.append("in the baseline")
        before = {what: _keys(evidence.baseline[flags]) for what, flags in failures(evidence.baseline).items()}
        known = _keys(evidence.baseline)
    rows = []
    for what, flags in failures(evidence.cases).items():
        for row in evidence.cases[flags].to_dict("records"):
            volumes = [f"{row[c]:.2f}" if c in row else "–" for c in ("volume_ref_ml", "volume_pred_ml")]
            shown = f"{what} (no prediction)" if row["case_id"] in assumed else what
            cells = [escape(str(row["case_id"])), escape(str(row["structure"])), shown, *volumes]
            cells += [escape(str(row[axis])) for axis in evidence.axes]
            if evidence.baseline is not None:
                key = (row["case_id"], row["structure"])
                cells.append("also" if key in before.get(what, ()) else "no" if key in known else "no such case")
            rows.append(("", cells))
    return html_table(header, rows, "text")


def full_table(table: pd.DataFrame) -> str:
    """Return all columns of a subgroup, gap or comparison table; the bad tail of each metric is bold."""
    numbers = {"n", "n_undefined", "n_missed", "n_patients", "n_groups", "n_too_small", "rank_direction", "trainings"}
    bad = {"p5", "p10"}, {"p90", "p95"}
    rows = []
    for row in table.head(MOST_ROWS).to_dict("records"):
        emphasized = {*bad[0 if higher_is_better(row["metric"]) else 1], "worst", "tail", "cvar10"}
        cells = []
        for column, value in row.items():
            if column in numbers:
                cells.append("–" if pd.isna(value) else str(int(value)))
            elif isinstance(value, float):
                shown = format_p(value) if column in ("p", "p_holm", "p_groups") else format_value(value, row["metric"])
                cells.append(f"<b>{shown}</b>" if column in emphasized else shown)
            else:
                cells.append(escape(str(value)))
        rows.append(("", cells))
    note = ""
    if len(table) > MOST_ROWS:
        note = f"<p class='note'>The first {MOST_ROWS} of {len(table)} rows; all of them are in the CSV.</p>"
    return note + html_table(map(str, table.columns), rows)


def format_p(value: float) -> str:
    """Return a p value with two digits; a dash if undefined."""
    return "–" if not np.isfinite(value) else "&lt;0.001" if value < 0.001 else f"{value:.2g}"


def _failures_by_group(evidence: Evidence, axis: str) -> dict[str, dict[str, int]]:
    """Return what -> group -> count of the kinds of failure that happened at all."""
    groups = evidence.cases[axis].astype(str)
    happened = {w: flags.groupby(groups).sum() for w, flags in failures(evidence.cases).items() if flags.any()}
    return {what: {str(group): int(count) for group, count in sums.items()} for what, sums in happened.items()}


def _first(by_metric: dict[str, dict[str, Row]], group: str) -> Row:
    return next(table[group] for table in by_metric.values() if group in table)


def _value_cells(row: Row | None, metric: str) -> list[str]:
    if row is None:
        return ["–"] * 4
    mean, tail, cvar, worst = (format_value(row[c], metric) for c in ("mean", tail_of(metric), "cvar10", "worst"))
    return [
        mean + _bounds(row, metric, "ci"),
        f"<b>{tail}</b>{_bounds(row, metric, 'tail_ci')}",
        f"<b>{cvar}</b>{_bounds(row, metric, 'cvar10_ci')}",
        worst,
    ]


def _bounds(row: Row, metric: str, of: str) -> str:
    """Return an interval for the line below its number: beside it, eleven columns would not fit on a screen."""
    low, high = row[f"{of}_low"], row[f"{of}_high"]
    return f"<br><small>{format_value(low, metric)} – {format_value(high, metric)}</small>" if np.isfinite(low) else ""


def _spread(evidence: Evidence, axis: str, group: str, metric: str) -> float:
    keys = evidence.spread[["axis", "group", "structure", "metric"]] == [axis, group, MEAN, metric]
    rows = evidence.spread[keys.all(axis=1)]
    return float(rows["std_between"].iloc[0]) if len(rows) else float("nan")


def change_cell(row: Row | None, metric: str, cases: int | None = None) -> str:
    """Return the word of a comparison and the difference; a dash without one.

    Args:
        row: of the comparison.
        metric: of the difference.
        cases: of the group in one run; if both runs have fewer, their number stands beside the difference.
    """
    if row is None:
        return "–"
    difference = format_value(row["difference"], metric, sign=True)
    pairs = f" ({row['n']} pairs)" if cases is not None and row["n"] != cases else ""
    return f'<span class="{row["verdict"]}">{row["verdict"]}</span><br><small>{difference}{pairs}</small>'


def _word_cell(row: Row) -> str:
    reason = f"<br><small>{row['reason']}</small>" if row["reason"] else ""
    return f'<span class="{row["verdict"]}">{row["verdict"]}</span>{reason}'


def _heat(value: float, metric: str, best: float, worst: float) -> str:
    """Return a cell whose attributes are set off by control characters that `structure_table` turns into HTML."""
    if not np.isfinite(value):
        return "–"
    # Ten minimum effects at least from white to dark: noise is not to look like failure.
    share = abs(value - best) / max(abs(worst - best), 10 * default_min_effect(metric))
    return f'\0style="background: rgba(163, 50, 75, {0.42 * share:.2f})"\1{format_value(value, metric)}'


def _keys(rows: pd.DataFrame) -> set[tuple[str, str]]:
    return set(zip(rows["case_id"], rows["structure"], strict=True))
