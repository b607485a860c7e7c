"""The paragraph at the top of a report, made from its numbers."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

import numpy as np

from droseg.metrics import higher_is_better
from droseg.metrics.groups import ALL, case_values
from droseg.metrics.names import tail_percentile
from droseg.report.console import format_value, interval_text, metric_label
from droseg.report.evidence import Evidence, Row, best_row, worst_row
from droseg.report.failures import FAILED, failures
from droseg.report.record import different_tolerances
from droseg.report.subgroups import MIN_PATIENTS

_NAMED = 3  # groups that the verdict lists before it counts them


def group_name(row: Row) -> str:
    """Return "anatomy = spina_bifida", escaped and kept on one line."""
    name = "all cases" if row["axis"] == ALL else f"{row['axis']} = {row['group']}"
    return f'<span class="group">{escape(name)}</span>'


def verdict_paragraph(evidence: Evidence) -> str:
    """Return the verdict on one run as HTML."""
    sentences = [_overall(evidence), _worst_group(evidence), _not_ranked(evidence), _failures(evidence)]
    sentences += [_not_scored(evidence), _against_baseline(evidence), _tolerances(evidence)]
    return " ".join(filter(None, sentences))


def _overall(evidence: Evidence) -> str:
    metric = evidence.main_metric
    rows = evidence.groups(metric, ALL)
    if not rows:
        return f"No case has a defined {metric_label(metric)}."
    row, label, tail = rows[0], metric_label(metric), tail_of(metric)
    return (
        f"{escape(evidence.name)} has a mean {label} of <b>{format_value(row['mean'], metric)}</b> over "
        f"{_count(row['n'], 'case')}{_interval(row, metric)}, but {format_value(row['cvar10'], metric)} on the worst "
        f"tenth of them{_interval(row, metric, 'cvar10_ci')}; the {tail[1:]}th percentile is "
        f"{format_value(row[tail], metric)}{_interval(row, metric, 'tail_ci')}."
    )


def tail_of(metric: str) -> str:
    """Return the column of the bad tail: p10 of a score, p90 of a distance."""
    return f"p{tail_percentile(metric)}"


def _worst_group(evidence: Evidence) -> str:
    metric = evidence.main_metric
    rows = evidence.ranked(metric)
    if not rows:
        return "No group axis was given, so nothing can be said about subgroups (--group-by COLUMN)."
    worst = worst_row(rows, metric)
    peers = [row for row in rows if row["axis"] == worst["axis"]]
    best = best_row(peers, metric)
    side = "below" if higher_is_better(metric) else "above"
    text = (
        f"It is worst on {group_name(worst)} (n = {worst['n']}): mean {metric_label(metric)} "
        f"<b>{format_value(worst['mean'], metric)}</b>{_interval(worst, metric)}"
    )
    if len(peers) > 1:
        text += f", {format_value(abs(best['mean'] - worst['mean']), metric)} {side} {group_name(best)}"
    case = _worst_case(evidence, worst, metric)
    tail = tail_of(metric)
    text += f"; its {tail[1:]}th percentile is {format_value(worst[tail], metric)}{_interval(worst, metric, 'tail_ci')}"
    text += f", its worst case {escape(case)} has {format_value(worst['worst'], metric)}."
    if worst["size"] == "too few":
        text += f" Fewer than {MIN_PATIENTS} patients: an observation, not an estimate."
    return text + _by_distance(evidence, worst)


def _by_distance(evidence: Evidence, worst: Row) -> str:
    """Add the worst group by HD95 if that is another one."""
    metric = "hd95_mm"
    if metric not in evidence.metrics or metric == evidence.main_metric or not evidence.ranked(metric):
        return ""
    other = worst_row(evidence.ranked(metric), metric)
    value = f"{format_value(other['mean'], metric)} mm"
    if (other["axis"], other["group"]) == (worst["axis"], worst["group"]):
        return f" By HD95 it is the worst group too (mean {value})."
    return f" By HD95 the worst group is {group_name(other)} (mean {value}, n = {other['n']})."


def _not_ranked(evidence: Evidence) -> str:
    """Name a group that is too small to be ranked and yet has the worst mean."""
    metric = evidence.main_metric
    rows, ranked = evidence.groups(metric), evidence.ranked(metric)
    if not rows or len(ranked) == len(rows):
        return ""
    worst, worst_ranked = worst_row(rows, metric), worst_row(ranked, metric)
    if worst["mean"] == worst_ranked["mean"]:
        return ""
    return (
        f"Not ranked, with fewer than {evidence.settings.min_n} patients, but worse: {group_name(worst)} "
        f"(n = {worst['n']}, mean {format_value(worst['mean'], metric)})."
    )


def _worst_case(evidence: Evidence, row: Row, metric: str) -> str:
    cases = evidence.cases if row["axis"] == ALL else evidence.cases[evidence.cases[row["axis"]] == row["group"]]
    values = case_values(cases, metric)
    return str(values.idxmin() if higher_is_better(metric) else values.idxmax())


def _failures(evidence: Evidence) -> str:
    parts = []
    for what, flags in failures(evidence.cases).items():
        if flags.any():
            rows = evidence.cases[flags]
            names = rows["structure"].value_counts()
            most = ("most often " if len(names) > 1 else "") + escape(str(names.index[0]))
            verb = "was" if len(rows) == 1 else "were"
            cases = _count(rows["case_id"].nunique(), "case")
            parts.append(
                f"{_count(len(rows), 'structure')} {'' if what == FAILED else verb + ' '}{what} in {cases} ({most})"
            )
    if not parts:
        if FAILED in failures(evidence.cases):
            return "No structure failed entirely, as far as the table shows (it has no volumes)."
        return "No structure was missed entirely, and none was predicted that is not there."
    return f"{' and '.join(parts)}; each counts as a failure: Dice 0, distance = {_penalty(evidence)}."


def _not_scored(evidence: Evidence) -> str:
    """Name the cases that no number is about; those of the reference too."""
    sides = [evidence, *([evidence.reference] if evidence.reference is not None else [])]
    sentences = [s for side in sides if side.record is not None for s in side.record.sentences(side.name)]
    for side in sides:
        if side.partly:
            verb = "is" if len(side.partly) == 1 else "are"
            sentences.append(f"{_count(len(side.partly), 'case')} {verb} not in all trainings of {side.name}.")
    return escape(" ".join(sentences))


def _tolerances(evidence: Evidence) -> str:
    """Warn of surface Dice that was measured with another tolerance than that of the reference."""
    run, reference = evidence.record, None if evidence.reference is None else evidence.reference.record
    structures = evidence.cases["structure"].unique()
    different = different_tolerances(run, reference, structures) if "nsd" in evidence.metrics else []
    if not different or run is None or reference is None:
        return ""
    return escape(
        f"NSD cannot be compared for {', '.join(different)}: its tolerance is {run.tolerance_text()} in "
        f"{evidence.name}, {reference.tolerance_text()} in {evidence.baseline_name}."
    )


def _penalty(evidence: Evidence) -> str:
    return "the image diagonal" if "diagonal_mm" in evidence.cases.columns else "the largest distance in the table"


def _against_baseline(evidence: Evidence) -> str:
    if evidence.reference is None or evidence.comparison is None:
        return ""
    metric = evidence.main_metric
    overall, groups = evidence.changes(metric, ALL), evidence.changes(metric)
    if not overall:
        return f"No case has a defined {metric_label(metric)} in both runs, so they cannot be compared."
    text = f"Against {escape(evidence.baseline_name)} ({_count(overall[0]['n'], 'pair')} of cases, "
    text += f"{trainings_text(evidence)}): overall <b>{_word(overall[0])}</b>, {_change(overall[0], metric)}"
    text += f" {metric_label(metric)}{_because(overall[0])}"
    for word in ("helped", "hurt", "inconclusive"):
        rows = [row for row in groups if row["verdict"] == word]
        if rows:
            text += f"; <b>{_word(rows[0])}</b> on {_listed(rows, len(groups), metric)}"
    return " ".join(filter(None, [f"{text}.", _worst_moved(evidence), _not_compared(evidence)]))


def _not_compared(evidence: Evidence) -> str:
    """Say what only one of the two runs has; without it the two means speak of different things."""
    comparison = evidence.comparison
    if comparison is None:
        return ""
    parts = []
    for alone, name in ((comparison.run_alone, evidence.name), (comparison.baseline_alone, evidence.baseline_name)):
        found = [_count(len(alone.cases), "case")] if alone.cases else []
        if alone.structures:
            found.append(f"structure {', '.join(alone.structures)}")
        found += [_count(len(alone.rows), "row") + " of shared cases"] if alone.rows else []
        if found:
            parts.append(f"{' and '.join(found)} only in {name}")
    if not parts:
        return ""
    text = f"Not compared: {'; '.join(parts)}."
    if comparison.run_alone.structures or comparison.baseline_alone.structures:
        text += f" The comparison is over {', '.join(comparison.structures)}."
    return escape(text)


def trainings_text(evidence: Evidence) -> str:
    """Return "one training each, so luck of training is part of it" or how many trainings were averaged."""
    counts = (evidence.trainings, evidence.reference.trainings if evidence.reference is not None else 1)
    if counts == (1, 1):
        return "one training each, so the luck of training is part of it"
    return " against ".join(_count(n, "training") for n in counts)


def _listed(rows: Sequence[Row], total: int, metric: str) -> str:
    if len(rows) > _NAMED and rows[0]["verdict"] == "inconclusive":
        return f"{'all' if len(rows) == total else 'the other'} {len(rows)} groups"
    return ", ".join(f"{group_name(row)} ({_change(row, metric)}{_because(row)})" for row in rows)


def _worst_moved(evidence: Evidence) -> str:
    """Say what happened to the worst group's value, whichever group that is in each run."""
    metric = evidence.main_metric
    ranked = {(row["axis"], row["group"]) for row in evidence.ranked(metric)}
    groups = [row for row in evidence.changes(metric) if (row["axis"], row["group"]) in ranked]
    if not groups:
        return ""
    before = (min if higher_is_better(metric) else max)(groups, key=lambda row: row["baseline_mean"])
    after = worst_row(groups, metric)
    same = group_name(before) == group_name(after)
    end = "" if same else f" (now {group_name(after)})"
    values = f"{format_value(before['baseline_mean'], metric)} to {format_value(after['mean'], metric)}"
    return f"The mean of the worst group, {group_name(before)}, went from {values}{end}."


def _change(row: Row, metric: str) -> str:
    difference, interval = interval_text(row, metric).split(" ", 1)
    return f"{difference} <small>{interval}</small>"


def _because(row: Row) -> str:
    return f" <small>({row['reason']})</small>" if row["reason"] else ""


def _word(row: Row) -> str:
    return f'<span class="{row["verdict"]}">{row["verdict"]}</span>'


def _interval(row: Row, metric: str, of: str = "ci") -> str:
    low, high = row[f"{of}_low"], row[f"{of}_high"]
    if not np.isfinite(low):
        return ""
    return f" (95 % interval {format_value(low, metric)} to {format_value(high, metric)})"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" + ("" if number == 1 else "s")
