"""The tables of a report as HTML."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

import numpy as np
import pandas as pd

from droseg.metrics import higher_is_better, is_false_positive, is_missed
from droseg.metrics.groups import ALL
from droseg.report.console import format_value, interval_text, metric_label
from droseg.report.subgroups import MEAN
from droseg.report.verdict import Evidence, Row, worst_row


def html_table(header: Iterable[str], rows: Iterable[tuple[str, Sequence[str]]], css: str = "") -> str:
    """Return a table that scrolls sideways on narrow screens; cells are HTML, each row a class and its cells."""
    head = "".join(f"<th>{cell}</th>" for cell in header)
    body = "".join(
        f'<tr class="{name}">' + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>" for name, cells in rows
    )
    return f'<div class="scroll"><table class="{css}"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def axis_table(evidence: Evidence, axis: str) -> str:
    """Return one row per group: how many, what failed, and mean, tail and worst case of Dice and HD95 (penalized)."""
    metrics = [m for m in ("dice", "hd95_mm") if m in evidence.metrics] or list(evidence.metrics[:2])
    missed, false_positive = _failures_by_group(evidence, axis)
    header = [escape(axis), "cases", "missed", "false positive"]
    for metric in metrics:
        tail = "p10" if higher_is_better(metric) else "p90"
        header += [f"{metric_label(metric)}, mean [95&nbsp;%]", tail, "worst"]
    changes = {row["group"]: row for row in evidence.changes(evidence.main_metric, axis)}
    if evidence.comparison is not None:
        header += [f"{metric_label(evidence.main_metric)} against baseline"]
    by_metric = {m: {row["group"]: row for row in evidence.groups(m, axis)} for m in metrics}
    rows = []
    worst = worst_row(list(by_metric[metrics[0]].values()), metrics[0])["group"] if by_metric[metrics[0]] else None
    groups = list(dict.fromkeys(group for table in by_metric.values() for group in table))
    for group in groups:
        cells = [
            escape(group),
            str(_first(by_metric, group)["n"]),
            _or_dash(missed, group),
            _or_dash(false_positive, group),
        ]
        for metric in metrics:
            cells += _value_cells(by_metric[metric].get(group), metric)
        if evidence.comparison is not None:
            cells.append(_change_cell(changes.get(group), evidence.main_metric))
        rows.append(("worst" if group == worst and len(groups) > 1 else "", cells))
    return html_table(header, rows)


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
    header = ["structure", *map(escape, groups)]
    rows = []
    for structure, row in zip(wide.index, values, strict=True):
        name = "mean over structures" if structure == MEAN else escape(str(structure))
        rows.append(("", [name, *(_heat(v, metric, best, worst) for v in row)]))
    # Background colors belong to the cell, so these cells are built here.
    cells = html_table(header, rows, "heat")
    return cells.replace("<td>\0", "<td ").replace("\1", ">")


def comparison_table(evidence: Evidence, metric: str) -> str:
    """Return one row per group: mean, tail and worst case of both runs, and the paired difference."""
    tail = "p10" if higher_is_better(metric) else "p90"
    header = [
        "group",
        "pairs",
        "baseline",
        "run",
        "difference [95&nbsp;%]",
        "",
        f"{tail}: baseline → run",
        "worst: baseline → run",
    ]
    rows = []
    for row in [*evidence.changes(metric, ALL), *evidence.changes(metric)]:
        name = "all cases" if row["axis"] == ALL else f"{row['axis']} = {row['group']}"
        values = {key: format_value(row[key], metric) for key in row if isinstance(row[key], float)}
        cells = [escape(name), str(row["n"]), values["baseline_mean"], values["mean"], interval_text(row, metric)]
        cells += [f'<span class="{row["verdict"]}">{row["verdict"]}</span>']
        cells += [f"{values['baseline_' + key]} → {values[key]}" for key in ("tail", "worst")]
        rows.append(("all" if row["axis"] == ALL else "", cells))
    return html_table(header, rows)


def failures_table(evidence: Evidence) -> str:
    """Return every missed and every false-positive structure of the run, and whether the baseline did the same."""
    header = ["case", "structure", "what", "reference (ml)", "prediction (ml)", *map(escape, evidence.axes)]
    tables = [("missed", is_missed(evidence.cases)), ("false positive", is_false_positive(evidence.cases))]
    before: dict[str, set[tuple[str, str]]] = {}
    if evidence.baseline is not None:
        header.append("in the baseline")
        for what, flags in (
            ("missed", is_missed(evidence.baseline)),
            ("false positive", is_false_positive(evidence.baseline)),
        ):
            before[what] = _keys(evidence.baseline[flags])
        known = _keys(evidence.baseline)
    rows = []
    for what, flags in tables:
        for row in evidence.cases[flags].to_dict("records"):
            volumes = [f"{row[c]:.2f}" if c in row else "–" for c in ("volume_ref_ml", "volume_pred_ml")]
            cells = [escape(str(row["case_id"])), escape(str(row["structure"])), what, *volumes]
            cells += [escape(str(row[axis])) for axis in evidence.axes]
            if evidence.baseline is not None:
                key = (row["case_id"], row["structure"])
                cells.append("also" if key in before[what] else "no" if key in known else "no such case")
            rows.append(("", cells))
    return html_table(header, rows, "text")


def full_table(table: pd.DataFrame) -> str:
    """Return all columns of a subgroup or comparison table."""
    numbers = {"n", "n_undefined", "n_missed"}
    rows = []
    for row in table.to_dict("records"):
        cells = []
        for column, value in row.items():
            if column in numbers:
                cells.append(str(int(value)))
            elif isinstance(value, float):
                cells.append(format_value(value, row["metric"]))
            else:
                cells.append(escape(str(value)))
        rows.append(("", cells))
    return html_table(map(str, table.columns), rows)


def _failures_by_group(evidence: Evidence, axis: str) -> tuple[dict[str, int], dict[str, int]]:
    groups = evidence.cases[axis].astype(str)
    return tuple(  # type: ignore[return-value]
        flags(evidence.cases).groupby(groups).sum().astype(int).to_dict() for flags in (is_missed, is_false_positive)
    )


def _first(by_metric: dict[str, dict[str, Row]], group: str) -> Row:
    return next(table[group] for table in by_metric.values() if group in table)


def _or_dash(counts: dict[str, int], group: str) -> str:
    return str(counts.get(group) or "–")


def _value_cells(row: Row | None, metric: str) -> list[str]:
    if row is None:
        return ["–"] * 3
    interval = ""
    if np.isfinite(row["ci_low"]):
        interval = f" <small>[{format_value(row['ci_low'], metric)}, {format_value(row['ci_high'], metric)}]</small>"
    tail = "p10" if higher_is_better(metric) else "p90"
    return [format_value(row["mean"], metric) + interval, *(format_value(row[c], metric) for c in (tail, "worst"))]


def _change_cell(row: Row | None, metric: str) -> str:
    if row is None:
        return "–"
    difference = format_value(row["difference"], metric, sign=True)
    return f'<span class="{row["verdict"]}">{row["verdict"]}</span> <small>{difference}</small>'


def _heat(value: float, metric: str, best: float, worst: float) -> str:
    """Return a cell whose attributes are set off by control characters that `structure_table` turns into HTML."""
    if not np.isfinite(value):
        return "–"
    share = 0.0 if best == worst else abs(value - best) / abs(worst - best)
    return f'\0style="background: rgba(163, 50, 75, {0.42 * share:.2f})"\1{format_value(value, metric)}'


def _keys(rows: pd.DataFrame) -> set[tuple[str, str]]:
    return set(zip(rows["case_id"], rows["structure"], strict=True))
