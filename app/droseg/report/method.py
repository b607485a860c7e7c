"""How the numbers of a report were computed: in words on the page, as fields in report.json."""

from __future__ import annotations

import platform
import subprocess
from collections.abc import Sequence
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from droseg import __version__
from droseg.metrics import higher_is_better
from droseg.metrics.names import CONVENTIONS
from droseg.report.console import SIZE_LEGEND, format_value, metric_label
from droseg.report.evidence import Evidence


def method_facts(runs: Sequence[Evidence], notes: Sequence[str] = ()) -> list[tuple[str, str]]:
    """Return what a reader must know to judge or repeat the numbers, as (name, sentence) pairs."""
    first = runs[0]
    facts = [*_values(runs), *_statistics(first)]
    if first.comparison is not None:
        limits = [f"{metric_label(m)} {format_value(v, m)}" for m, v in first.comparison.min_effect.items()]
        facts += [
            ("Comparison", f"Paired by case, run minus {first.baseline_name}, failures counted, groups of the run."),
            ("The words", f"{first.comparison.rule()} Minimum effects: {', '.join(limits)}."),
        ]
    facts += _scoring(runs)
    facts.append(("Trainings", _trainings(runs)))
    facts += [(f"Note {i}", note) for i, note in enumerate(notes, start=1)]
    facts.append(("Versions", ", ".join(f"{name} {number}" for name, number in versions().items())))
    return facts


def _values(runs: Sequence[Evidence]) -> list[tuple[str, str]]:
    return [
        (
            "Metrics",
            "In mm of each case's own grid. HD: larger of the two directed maxima between surface voxels; HD95: of the "
            "two directed 95th percentiles; ASSD: mean over the surface voxels of both; NSD: share of them within the "
            f"tolerance. {CONVENTIONS} Where the table comes from other software, its definitions hold. "
            f"{_directions(runs[0])}",
        ),
        (
            "Empty masks",
            "Reference and prediction both empty: undefined, out of scope. Only one empty: Dice and NSD are 0, "
            "distances undefined.",
        ),
        (
            "Failures counted",
            "In the verdict, rankings, gaps, the worst cases and all comparisons, a missed or false-positive structure "
            f"has Dice and NSD 0, and as distance {_penalty(runs)}. subgroups.csv leaves undefined values out of its "
            "statistics and counts them (n_undefined, n_missed).",
        ),
        ("Mean over structures", "Per case first, then over cases."),
    ]


def _scoring(runs: Sequence[Evidence]) -> list[tuple[str, str]]:
    """Return with which tolerances and versions the tables were made, as far as a record beside them says so."""
    facts = []
    for side in [*runs, *([runs[0].reference] if runs[0].reference is not None else [])]:
        if side.record is None:
            facts.append((f"Scoring of {side.name}", "No evaluation.json lies beside its table: tolerance unknown."))
            continue
        text = f"NSD tolerance {side.record.tolerance_text()}. " if side.record.tolerances_mm else ""
        text += f"Scored with {' or '.join(side.record.software)}. " if side.record.software else ""
        facts.append((f"Scoring of {side.name}", text + " ".join(side.record.sentences(side.name))))
    return facts


def _statistics(run: Evidence) -> list[tuple[str, str]]:
    settings = run.settings
    return [
        (
            "Intervals",
            "95 % percentile bootstrap of the mean, of the bad tail (p10 of scores, p90 of others) and of "
            f"the worst 10 %: {settings.num_bootstrap} samples of patients with all their scans, seed {settings.seed}. "
            "No sample holds a case worse than the worst one seen, so intervals of a tail are too narrow on that side. "
            f"{SIZE_LEGEND}",
        ),
        (
            "Small groups",
            f"All are shown. Those of fewer than {settings.min_n} patients are not ranked: they are no worst group and "
            "enter no gap.",
        ),
        (
            "Worst 10 %",
            "Conditional value at risk (Rockafellar and Uryasev 2000): the mean of the worst tenth of the cases, the "
            "last of them in part; below ten cases the worst one.",
        ),
        (
            "Gap, equity-scaled score",
            "Gap: between the means of the best and the worst ranked group of an axis; its interval is that of these "
            "two groups, which were picked by their results; p is that of Kruskal and Wallis's test of whether the "
            "ranked groups differ at all, over patients (one with scans in two groups counts in both), not corrected. "
            "Equity-scaled: mean / (1 + sum over groups of |mean - group mean|), FairSeg (Tian et al. 2024, "
            "arXiv:2311.02189); it falls with the number of groups, so compare it on one axis only.",
        ),
    ]


def versions() -> dict[str, str]:
    """Return the versions of what the numbers depend on, and the commit if droseg runs from a checkout."""
    found = {"droseg": __version__}
    if commit():
        found["commit"] = commit()
    found["Python"] = platform.python_version()
    for package in ("numpy", "scipy", "pandas", "nibabel"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


@cache
def commit() -> str:
    """Return the commit of the checkout that droseg is imported from, with "+" if files were changed; "" elsewhere."""
    here = Path(__file__)

    def git(*arguments: str) -> str:
        call = ["git", "-C", str(here.parent), *arguments]
        return subprocess.run(call, capture_output=True, text=True, check=True, timeout=10).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", here.name)  # installed into an unrelated repository, the file is not in it
        return git("rev-parse", "--short=12", "HEAD") + ("+" if git("status", "--porcelain", "-uno") else "")
    except (OSError, subprocess.SubprocessError):
        return ""


def _directions(evidence: Evidence) -> str:
    sides = {True: [], False: []}  # type: dict[bool, list[str]]
    for metric in evidence.metrics:
        sides[higher_is_better(metric)].append(metric)
    words = ((True, "Higher is better"), (False, "Lower is better"))
    return " ".join(f"{word}: {', '.join(sides[side])}." for side, word in words if sides[side])


def _penalty(runs: Sequence[Evidence]) -> str:
    if "diagonal_mm" in runs[0].cases.columns:
        return "the diagonal of the image"
    text = "the largest finite distance of that metric in the table, which has no column diagonal_mm"
    if runs[0].reference is not None:
        text += " (in the comparison: in all tables, so that a failure costs the same in all of them)"
    return text


def _trainings(runs: Sequence[Evidence]) -> str:
    sides = [*runs, *([runs[0].reference] if runs[0].reference is not None else [])]
    single = [side.name for side in sides if side.trainings == 1]
    several = [f"{side.name} ({side.trainings})" for side in sides if side.trainings > 1]
    text = ""
    if several:
        text += f"Averaged per case and structure before anything else: {', '.join(several)}. "
    if single:
        text += (
            f"One training: {', '.join(single)}. The tests speak of these weights on other patients; whether another "
            "training of the same method would do the same, one training cannot tell. "
        )
    for side in sides:
        if side.partly:
            text += (
                f"{side.name}: {len(side.partly)} cases are not in all of its trainings and averaged over those that "
                f"have them ({', '.join(side.partly[:10])}{', ...' if len(side.partly) > 10 else ''}). "
            )
    return text.strip()
