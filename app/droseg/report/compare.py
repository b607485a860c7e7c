"""This run against a baseline: paired by case, per subgroup, with the words that a stated rule allows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd

from droseg.errors import InputError
from droseg.metrics import OVERLAP_METRICS, higher_is_better, largest_value, penalized, share_diagonals
from droseg.report.subgroups import MEAN, bootstrap_means, by_structure, iterate_groups, stream

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
    "verdict",
    "baseline_tail",
    "tail",
    "baseline_worst",
    "worst",
)


@dataclass(frozen=True)
class Comparison:
    """What changed against a baseline.

    Attributes:
        table: one row per axis, group, structure and metric (`COLUMNS`).
        only_run: cases that the baseline does not have; left out of the table.
        only_baseline: cases that only the baseline has; left out of the table.
        min_effect: per metric, the smallest |difference| that is called helped or hurt.
    """

    table: pd.DataFrame
    only_run: list[str]
    only_baseline: list[str]
    min_effect: dict[str, float]


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
    num_bootstrap: int = 2000,
    seed: int = 0,
) -> Comparison:
    """Return the paired differences (run minus baseline) of the penalized values, per group, structure and metric.

    A pair is a case and structure with a value in both runs. structure=mean pairs the cases' means over structures, as
    verdicts use them: a false positive that is gone takes its 0 out of the mean. A failure costs the same in both runs:
    the diagonal of the case that either table gives, else the largest finite distance of both.
    Means, tails and worst values are those of the paired cases, so that both runs are judged on the same ones. `tail`
    is the 10th percentile of a score and the 90th of a distance. `ci_low, ci_high`: 95 % bootstrap of the mean
    difference over patients, NaN for fewer than 5. Groups are those of the run. `verdict`: see `verdict`.

    Raises:
        InputError: if the two runs have no case or no structure in common.
    """
    limits = {m: (min_effect or {}).get(m, default_min_effect(m)) for m in metrics}
    run_ids, base_ids = list(cases["case_id"].unique()), list(baseline["case_id"].unique())
    pairs = _pairs(cases, baseline, metrics)
    names = list(pairs["structure"].unique())
    rows: list[dict[str, object]] = []
    for axis, group, members in iterate_groups(pairs, axes):
        run = {m: by_structure(members, f"{m}_run", names) for m in metrics}
        base = {m: by_structure(members, f"{m}_base", names) for m in metrics}
        differences = np.hstack([(run[m] - base[m]).to_numpy(dtype=float) for m in metrics])
        patients = members.drop_duplicates("case_id").set_index("case_id")["patient_id"].reindex(run[metrics[0]].index)
        intervals = bootstrap_means(differences, patients.to_numpy(), num_bootstrap, stream(seed, axis, group))
        for metric, metric_intervals in zip(metrics, np.split(intervals, len(metrics)), strict=True):
            for interval, structure in zip(metric_intervals, [*names, MEAN], strict=True):
                row = _row(run[metric][structure], base[metric][structure], metric, interval, limits[metric])
                rows.append({"axis": axis, "group": group, "structure": structure, "metric": metric, **row})
    table = pd.DataFrame(rows, columns=list(COLUMNS))
    shared = set(run_ids) & set(base_ids)
    return Comparison(
        table[table["n"] > 0].reset_index(drop=True),
        [c for c in run_ids if c not in shared],
        [c for c in base_ids if c not in shared],
        limits,
    )


def verdict(difference: float, low: float, high: float, metric: str, min_effect: float) -> Verdict:
    """Return "helped" or "hurt" if the interval excludes 0 and |difference| >= min_effect, else "inconclusive"."""
    if not (np.isfinite(low) and np.isfinite(high)) or low <= 0 <= high or abs(difference) < min_effect:
        return "inconclusive"
    return "helped" if (difference > 0) == higher_is_better(metric) else "hurt"


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


def _row(
    run: pd.Series, base: pd.Series, metric: str, interval: np.ndarray, min_effect: float
) -> dict[str, float | str]:
    both = run.notna() & base.notna()
    run_values, base_values = run[both].to_numpy(dtype=float), base[both].to_numpy(dtype=float)
    if not len(run_values):
        return {"n": 0}
    better = higher_is_better(metric)
    tail, worst = (10, np.min) if better else (90, np.max)
    difference = float((run_values - base_values).mean())
    low, high = float(interval[0]), float(interval[1])
    return {
        "n": len(run_values),
        "baseline_mean": float(base_values.mean()),
        "mean": float(run_values.mean()),
        "difference": difference,
        "ci_low": low,
        "ci_high": high,
        "verdict": verdict(difference, low, high, metric, min_effect),
        "baseline_tail": float(np.percentile(base_values, tail)),
        "tail": float(np.percentile(run_values, tail)),
        "baseline_worst": float(worst(base_values)),
        "worst": float(worst(run_values)),
    }
