"""This run against a baseline: paired by case, per subgroup, with the words that a stated rule allows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from droseg.errors import InputError
from droseg.metrics import OVERLAP_METRICS, bad_tail, higher_is_better, largest_value, penalized, share_diagonals
from droseg.report.significance import ALPHA, fewest_pairs, holm, signed_rank
from droseg.report.subgroups import (
    MEAN,
    MIN_PATIENTS,
    bootstrap_means,
    by_structure,
    iterate_groups,
    patient_sums,
    patients_of,
    stream,
)
from droseg.report.unpaired import Unpaired, unpaired

Verdict = Literal["helped", "hurt", "inconclusive"]

COLUMNS = (
    "axis",
    "group",
    "structure",
    "metric",
    "n",
    "baseline_mean",
    "mean",
    "difference",
    "ci_low",
    "ci_high",
    "n_patients",
    "p",
    "p_holm",
    "verdict",
    "reason",
    "baseline_tail",
    "tail",
    "baseline_worst",
    "worst",
    "rank_direction",
)


@dataclass(frozen=True)
class Comparison:
    """What changed against a baseline.

    Attributes:
        table: one row per axis, group, structure and metric (`COLUMNS`).
        structures: those that both have; structure=mean is the mean over them.
        run_alone: what the baseline does not have; left out of the table.
        baseline_alone: what only the baseline has; left out of the table.
        min_effect: per metric, the smallest |difference| that is called helped or hurt.
        family: number of tests that `p_holm` is corrected for: all rows of all comparisons of one report.
        min_n: patients that a group needs for a word.
    """

    table: pd.DataFrame
    min_effect: dict[str, float]
    family: int
    min_n: int = MIN_PATIENTS
    structures: Sequence[str] = ()
    run_alone: Unpaired = field(default_factory=Unpaired)
    baseline_alone: Unpaired = field(default_factory=Unpaired)

    def unpaired(self, name: str, baseline_name: str) -> list[str]:
        """Return in sentences what only one of the two has."""
        sides = ((self.run_alone, name), (self.baseline_alone, baseline_name))
        return [sentence for alone, side in sides for sentence in alone.sentences(side, self.structures)]

    def rule(self) -> str:
        """Return the rule behind the words, for people."""
        return (
            "Helped or hurt: Wilcoxon's signed-rank test over patients, corrected by Holm for all "
            f"{self.family} tests of this report (every group, structure, metric and compared run), has p of at most "
            f"{ALPHA:g}; the 95 % interval of the mean difference excludes 0 on the same side; the difference is at "
            f"least the minimum effect; and the group has at least {max(self.min_n, MIN_PATIENTS)} patients. Anything "
            f"else is inconclusive, which is not the same as no difference. In a family of {self.family}, fewer than "
            f"{fewest_pairs(self.family)} patients cannot pass whatever they show; a report of fewer axes, structures "
            "and metrics, chosen before the results, tests fewer."
        )


def default_min_effect(metric: str) -> float:
    """Return the smallest difference of means worth a word: 0.01 of an overlap or other score, 0.5 mm of a distance."""
    if metric in OVERLAP_METRICS or higher_is_better(metric):
        return 0.01
    return 0.1 if metric == "assd_mm" else 0.5


def compare_runs(
    cases: pd.DataFrame,
    baseline: pd.DataFrame,
    axes: Sequence[str],
    metrics: Sequence[str],
    *,
    min_effect: Mapping[str, float] | None = None,
    min_n: int = MIN_PATIENTS,
    num_bootstrap: int = 2000,
    seed: int = 0,
) -> Comparison:
    """Return the paired differences (run minus baseline) of the penalized values, per group, structure and metric.

    A pair is a case and structure with a value in both runs. structure=mean pairs the cases' means over the structures
    that both tables have a row of, as verdicts use them: a false positive that is gone takes its 0 out of the mean.
    What only one table has is left out and listed (`run_alone`, `baseline_alone`). A failure costs the same in both:
    the diagonal of the case that either table gives, else the largest finite distance of both.
    Means, tails and worst values are those of the paired cases, so that both runs are judged on the same ones. `tail`
    is the 10th percentile of a score and the 90th of a distance. `ci_low, ci_high`: 95 % bootstrap of the mean
    difference over patients, NaN for fewer than 5, of each row alone. `p`: Wilcoxon's signed-rank test of the patients'
    mean differences; `p_holm`: corrected for the family, all rows of the table. Groups are those of the run.
    `verdict` and, where it is inconclusive, `reason`: see `verdict`.

    Raises:
        InputError: if the two runs have no case or no structure in common.
    """
    limits = {m: (min_effect or {}).get(m, default_min_effect(m)) for m in metrics}
    pairs = _pairs(cases, baseline, metrics)
    names = list(pairs["structure"].unique())
    rows: list[dict[str, object]] = []
    for axis, group, members in iterate_groups(pairs, axes):
        run = {m: by_structure(members, f"{m}_run", names) for m in metrics}
        base = {m: by_structure(members, f"{m}_base", names) for m in metrics}
        differences = np.hstack([(run[m] - base[m]).to_numpy(dtype=float) for m in metrics])
        patients = patients_of(members, run[metrics[0]].index)
        intervals = bootstrap_means(differences, patients, num_bootstrap, stream(seed, axis, group))
        tests = _tests(differences, patients)
        for metric, metric_intervals in zip(metrics, np.split(intervals, len(metrics)), strict=True):
            for interval, structure in zip(metric_intervals, [*names, MEAN], strict=True):
                row = _row(run[metric][structure], base[metric][structure], metric, interval)
                key = {"axis": axis, "group": group, "structure": structure, "metric": metric}
                rows.append({**key, **row, **next(tests)})
    table = pd.DataFrame(rows, columns=list(COLUMNS))
    table = table[table["n"] > 0].reset_index(drop=True)
    alone = unpaired(cases, baseline), unpaired(baseline, cases)
    return correct_together([Comparison(table, limits, 0, min_n, names, *alone)])[0]


def correct_together(comparisons: Sequence[Comparison]) -> list[Comparison]:
    """Return the comparisons of one report with `p_holm` and the words for the family of all their rows."""
    tables = [comparison.table for comparison in comparisons]
    adjusted = np.split(holm(np.concatenate([t["p"] for t in tables])), np.cumsum([len(t) for t in tables])[:-1])
    result = []
    for comparison, p_holm in zip(comparisons, adjusted, strict=True):
        table = comparison.table.assign(p_holm=p_holm)
        words = [_word(row, comparison) for row in table.to_dict("records")]
        table = table.assign(verdict=[word for word, _ in words], reason=[reason for _, reason in words])
        result.append(replace(comparison, table=table, family=sum(map(len, tables))))
    return result


def verdict(
    difference: float, low: float, high: float, metric: str, min_effect: float, *, p_holm: float
) -> tuple[Verdict, str]:
    """Return the word and, if it is "inconclusive", why.

    "helped" or "hurt" if the interval excludes 0, |difference| >= min_effect and p_holm <= `ALPHA`.
    """
    if not (np.isfinite(low) and np.isfinite(high)):
        return "inconclusive", "no interval"
    if low <= 0 <= high:
        return "inconclusive", "the interval holds 0"
    if abs(difference) < min_effect:
        return "inconclusive", "below the minimum effect"
    if not p_holm <= ALPHA:
        return "inconclusive", "not after Holm's correction"
    return ("helped" if (difference > 0) == higher_is_better(metric) else "hurt"), ""


def _word(row: Mapping[Any, Any], comparison: Comparison) -> tuple[Verdict, str]:
    if row["n_patients"] < max(comparison.min_n, MIN_PATIENTS):
        return "inconclusive", "too few patients"
    limit = comparison.min_effect[row["metric"]]
    word, reason = verdict(row["difference"], row["ci_low"], row["ci_high"], row["metric"], limit, p_holm=row["p_holm"])
    if word != "inconclusive" and row["rank_direction"] * row["difference"] < 0:
        return "inconclusive", "mean and ranks disagree"
    return word, reason


def _tests(differences: NDArray[np.float64], patients: NDArray[np.object_]) -> Iterator[dict[str, float]]:
    """Yield per column the signed-rank test of the patients' mean differences: scans of one patient are one pair."""
    codes, names = pd.factorize(patients)
    sums, counts = patient_sums(differences, codes, len(names))
    for column_sums, column_counts in zip(sums.T, counts.T, strict=True):
        there = column_counts > 0
        p, direction = signed_rank(column_sums[there] / column_counts[there])
        yield {"n_patients": int(there.sum()), "p": p, "rank_direction": direction}


def _pairs(cases: pd.DataFrame, baseline: pd.DataFrame, metrics: Sequence[str]) -> pd.DataFrame:
    """Return the rows of the run that the baseline has too, with the penalized values of both."""
    keys = ["case_id", "structure"]
    cases, baseline = share_diagonals(cases, baseline)
    largest = {m: float(np.fmax(largest_value(cases, m), largest_value(baseline, m))) for m in metrics}
    values = {f"{m}_run": penalized(cases, m, largest[m]) for m in metrics}
    theirs = baseline[keys].assign(**{f"{m}_base": penalized(baseline, m, largest[m]) for m in metrics})
    pairs = cases.drop(columns=list(metrics)).assign(**values).merge(theirs, on=keys, how="inner")
    if pairs.empty:
        shown = [", ".join(map(repr, t["case_id"].unique()[:3])) for t in (cases, baseline)]
        raise InputError(
            f"the run and the baseline have no case and structure in common (case_id: {shown[0]}... against "
            f"{shown[1]}...); compare runs on the same test cases."
        )
    return pairs


def _row(run: pd.Series, base: pd.Series, metric: str, interval: NDArray[np.float64]) -> dict[str, float]:
    both = run.notna() & base.notna()
    run_values, base_values = run[both].to_numpy(dtype=float), base[both].to_numpy(dtype=float)
    if not len(run_values):
        return {"n": 0}
    worst = np.min if higher_is_better(metric) else np.max
    difference = float((run_values - base_values).mean())
    low, high = float(interval[0]), float(interval[1])
    return {
        "n": len(run_values),
        "baseline_mean": float(base_values.mean()),
        "mean": float(run_values.mean()),
        "difference": difference,
        "ci_low": low,
        "ci_high": high,
        "baseline_tail": bad_tail(base_values, metric),
        "tail": bad_tail(run_values, metric),
        "baseline_worst": float(worst(base_values)),
        "worst": float(worst(run_values)),
    }
