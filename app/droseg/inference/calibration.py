"""Thresholds of the quality flags from labelled cases, and how often a flag is right: `quality.json` of a bundle."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from droseg import __version__
from droseg.inference.quality import FLAGS, QUALITY_FILE, THRESHOLDS
from droseg.inference.ranges import read_document

NATURAL: Final = "natural"
OUT_OF_DOMAIN: Final = "out_of_domain"
ANY: Final = "any"
GOOD_FLAGGED: Final = 0.10
"""The operating point of a flag: the best F1 among thresholds that flag at most this share of the good cases."""
FALLBACK_QUANTILE: Final = 0.95
LEAST_THRESHOLD: Final[Mapping[str, float]] = {
    "volume_low": 1.0,  # a volume inside the training range is never called unusual
    "volume_high": 1.0,
    "many_pieces": 0.0,
    "high_entropy": 0.0,
    "views_disagree": 0.0,
}
"""The flags whose thresholds are calibrated, and their lower bounds; the others compare with the training range."""
FOLDS: Final = 10


@dataclass(frozen=True)
class ScoredCase:
    """One segmented image with a known truth.

    Attributes:
        patient_id: cases of one patient never choose the thresholds that they are judged by.
        kind: "natural", or what was done to the image.
        dice: mean over the structures, a missed or invented one counting 0.
        scores: flag name -> the largest score of its findings; no entry where it was not measured.
        refused: whether it would have been `out_of_domain`.
    """

    patient_id: str
    kind: str
    dice: float
    scores: dict[str, float]
    refused: bool = False


@dataclass(frozen=True)
class Threshold:
    """A score above which a flag is raised (None: never), and how it was chosen."""

    value: float | None
    rule: str


def choose_threshold(
    scores: NDArray[np.float64], failed: NDArray[np.bool_], default: float | None, least: float = 0.0
) -> Threshold:
    """Return the threshold with the best F1 among those that flag at most `GOOD_FLAGGED` of the good cases.

    Args:
        scores: per case, the larger the more unusual; NaN where not measured.
        failed: whether the case's Dice is under the limit.
        default: what stays if the score does not tell failed from good cases at all.
        least: lower bound.
    """
    measured = np.isfinite(scores)
    scores, failed = scores[measured], failed[measured]
    if scores.size == 0:
        return Threshold(default, "not measured; as before")
    if not failed.any():
        value = max(least, float(np.quantile(scores, FALLBACK_QUANTILE)))
        return Threshold(value, f"no case failed: {FALLBACK_QUANTILE:.0%} of the cases lie below; it says only unusual")
    values = np.unique(scores)
    candidates = [t for t in (values[:-1] + values[1:]) / 2 if t > least] + [least]
    best_f1, best = 0.0, None
    for threshold in sorted(candidates, reverse=True):  # of two alike, the one that flags less
        flagged = scores > threshold
        good = ~failed
        if flagged[good].sum() > GOOD_FLAGGED * good.sum():
            continue
        hits = int((flagged & failed).sum())
        f1 = 2 * hits / int(flagged.sum() + failed.sum())
        if f1 > best_f1:
            best_f1, best = f1, float(threshold)
    if best is None:
        return Threshold(
            default, f"no threshold that flags at most {GOOD_FLAGGED:.0%} of the good cases finds a failure"
        )
    return Threshold(best, f"best F1 ({best_f1:.2f}) that flags at most {GOOD_FLAGGED:.0%} of the good cases")


def choose_thresholds(cases: Sequence[ScoredCase], dice_below: float) -> dict[str, Threshold]:
    """Return the threshold of each flag; those that compare with the training range stay."""
    failed = np.array([case.dice < dice_below for case in cases])
    chosen = {}
    for name in FLAGS:
        if name in LEAST_THRESHOLD:
            scores = np.array([case.scores.get(name, np.nan) for case in cases])
            chosen[name] = choose_threshold(scores, failed, THRESHOLDS[name], LEAST_THRESHOLD[name])
        else:
            chosen[name] = Threshold(THRESHOLDS[name], "training range")
    return chosen


def raised_flags(case: ScoredCase, thresholds: Mapping[str, Threshold]) -> set[str]:
    """Return the flags that a case gets, `out_of_domain` among them; `any` if it gets one at all."""
    raised = {OUT_OF_DOMAIN} if case.refused else set()
    for name, score in case.scores.items():
        value = thresholds[name].value
        if value is not None and score > value:
            raised.add(name)
    return raised | {ANY} if raised else raised


def held_out_flags(cases: Sequence[ScoredCase], dice_below: float) -> list[set[str]]:
    """Return the flags of each case by the thresholds that the cases of other patients give.

    With a single patient there are no others: then by all cases.
    """
    patients = sorted({case.patient_id for case in cases})
    fold = {patient: index % min(FOLDS, len(patients)) for index, patient in enumerate(patients)}
    thresholds = {}
    for number in set(fold.values()):
        others = [case for case in cases if fold[case.patient_id] != number]
        thresholds[number] = choose_thresholds(others or cases, dice_below)
    return [raised_flags(case, thresholds[fold[case.patient_id]]) for case in cases]


def calibrate(cases: Sequence[ScoredCase], dice_below: float) -> dict[str, Any]:
    """Return thresholds chosen on all cases, and counts of right and wrong flags on held-out ones, as JSON takes them.

    Args:
        cases: natural and degraded ones.
        dice_below: a case whose Dice is below has failed.

    Raises:
        ValueError: if there is no case.
    """
    if not cases:
        raise ValueError("no labelled case was segmented, so nothing can be calibrated.")
    chosen = choose_thresholds(cases, dice_below)
    raised = held_out_flags(cases, dice_below)
    failed = np.array([case.dice < dice_below for case in cases])
    natural = np.array([case.kind == NATURAL for case in cases])
    groups = {NATURAL: natural, "degraded": ~natural, "all": np.ones(len(cases), dtype=bool)}
    measured = {name for case in cases for name in case.scores}
    names = [name for name in FLAGS if name in measured]
    kinds = sorted({case.kind for case in cases} - {NATURAL})
    return {
        "droseg": __version__,
        "date": datetime.now(UTC).date().isoformat(),
        "dice_below": dice_below,
        "patients": len({case.patient_id for case in cases}),
        "cases": {
            name: {"n": int(group.sum()), "failures": int(failed[group].sum())} for name, group in groups.items()
        },
        "degradations": {
            kind: {
                "n": sum(case.kind == kind for case in cases),
                "failures": sum(case.kind == kind and case.dice < dice_below for case in cases),
            }
            for kind in kinds
        },
        "thresholds": {name: threshold.value for name, threshold in chosen.items()},
        "rules": {name: threshold.rule for name, threshold in chosen.items()},
        "flags": {
            name: {
                group_name: flag_counts(np.array([name in flags for flags in raised])[group], failed[group])
                for group_name, group in groups.items()
            }
            for name in [*names, OUT_OF_DOMAIN, ANY]
        },
    }


def flag_counts(flagged: NDArray[np.bool_], failed: NDArray[np.bool_]) -> dict[str, Any]:
    """Return how many cases were flagged, failed, and both; precision and recall with Wilson's 95 % interval.

    `precision` and `recall` are [value, low, high], or null where nothing was flagged or nothing failed.
    """
    hits = int((flagged & failed).sum())
    counts = {"n": len(flagged), "flagged": int(flagged.sum()), "failures": int(failed.sum()), "hits": hits}
    return {
        **counts,
        "precision": _share(hits, counts["flagged"]),
        "recall": _share(hits, counts["failures"]),
    }


def _share(count: int, of: int) -> list[float] | None:
    from scipy.stats import binomtest  # slow to import

    if of == 0:
        return None
    interval = binomtest(count, of).proportion_ci(confidence_level=0.95, method="wilson")
    return [round(float(value), 4) for value in (count / of, interval.low, interval.high)]


def quality_table(folder: Path) -> str:
    """Return what the calibration of a bundle found, in Markdown; a sentence if there was none.

    Raises:
        BundleError: if its quality.json cannot be read.
    """
    document = read_document(folder / QUALITY_FILE)
    if not document:
        return "The quality flags are not calibrated: `droseg calibrate BUNDLE --datalist D`."
    cases, below = document["cases"], document["dice_below"]
    lines = [
        f"A case fails if its Dice (mean over the structures, a missed one 0) is under {below:g}: "
        f"{_of(cases[NATURAL])} natural and {_of(cases['degraded'])} degraded images of {document['patients']} "
        "patients. Thresholds are chosen on all of them; the counts are of held-out patients. "
        "Precision: flagged images that failed; recall: failed images that were flagged; Wilson 95 % intervals.",
        "",
        "| flag | raised above | natural: precision | natural: recall | degraded: precision | degraded: recall |",
        "|---|---|---|---|---|---|",
    ]
    for name, groups in document["flags"].items():
        cells = [_cell(groups[group], what) for group in (NATURAL, "degraded") for what in ("precision", "recall")]
        lines.append(f"| {name} | {_threshold(document, name)} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _of(counts: Mapping[str, int]) -> str:
    return f"{counts['failures']} of {counts['n']}"


def _threshold(document: Mapping[str, Any], name: str) -> str:
    if name not in document["thresholds"]:
        return ""
    value = document["thresholds"][name]
    return "never" if value is None else f"{value:.3g}"


def _cell(counts: Mapping[str, Any], what: str) -> str:
    share = counts[what]
    total = counts["flagged" if what == "precision" else "failures"]
    if share is None:
        return "none flagged" if what == "precision" else "none failed"
    return f"{counts['hits']}/{total} = {share[0]:.2f} ({share[1]:.2f} to {share[2]:.2f})"
