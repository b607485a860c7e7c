"""How unequal a run treats the groups of an axis: worst group, gap, and the equity-scaled score."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import stats

from droseg.metrics import higher_is_better, penalized
from droseg.metrics.groups import ALL
from droseg.report.subgroups import by_structure, draw_patients, interval, patient_sums, patients_of, stream

COLUMNS = (
    "axis",
    "structure",
    "metric",
    "n_groups",
    "n_too_small",
    "overall",
    "worst_group",
    "worst_mean",
    "best_group",
    "best_mean",
    "gap",
    "gap_ci_low",
    "gap_ci_high",
    "p_groups",
    "equity_scaled",
)


def gap_table(
    cases: pd.DataFrame,
    penalized_groups: pd.DataFrame,
    axes: Sequence[str],
    metrics: Sequence[str],
    *,
    min_n: int = 5,
    num_bootstrap: int = 2000,
    seed: int = 0,
) -> pd.DataFrame:
    """Return one row per axis, structure and metric: worst and best group, the gap between their means, and equity.

    Penalized values. Only groups of at least `min_n` patients are ranked; `n_too_small` counts the others. `gap` is
    positive: the best group's mean minus the worst's for scores, the reverse for distances. `gap_ci_low, gap_ci_high`:
    95 % bootstrap over patients of the gap between these two groups; that they were picked by their results makes it
    too optimistic when groups are many. `p_groups` is free of that pick: Kruskal and Wallis's test of whether the
    ranked groups differ at all, over the patients' means, not corrected. `equity_scaled`: see there; NaN for distances,
    errors, and scores that are not all between 0 and 1.

    Args:
        cases: a cases table.
        penalized_groups: its `penalized_table`, with the same axes and metrics.
        axes: columns to group by.
        metrics: columns to summarize.
        min_n: patients that a group needs to be ranked.
        num_bootstrap: samples per interval; 0 gives no intervals.
        seed: of the bootstrap.
    """
    everyone = penalized_groups[penalized_groups["axis"] == ALL]
    keys = zip(everyone["structure"], everyone["metric"], strict=True)
    overall = dict(zip(keys, everyone["mean"].astype(float), strict=True))
    fractions = {m for m in metrics if higher_is_better(m) and penalized(cases, m).dropna().between(0, 1 + 1e-6).all()}
    rows = []
    for axis in axes:
        of_axis = penalized_groups[(penalized_groups["axis"] == axis) & penalized_groups["mean"].notna()]
        for names, groups in of_axis.groupby(["structure", "metric"], sort=False):
            structure, metric = map(str, names)  # type: ignore[arg-type]
            ranking = _ranking(groups, metric, overall[(structure, metric)], min_n, scaled=metric in fractions)
            rows.append({"axis": axis, "structure": structure, "metric": metric, **ranking})
    table = pd.DataFrame(rows, columns=list(COLUMNS))
    for axis in axes:
        pairs = table[(table["axis"] == axis) & table["gap"].notna()]
        if pairs.empty:
            continue
        values = _axis_values(cases, axis, metrics)
        table.loc[pairs.index, "p_groups"] = [_p_groups(values, s, m, min_n) for s, m in _cells(pairs)]
        if num_bootstrap > 0:
            rng = stream(seed, "gap", axis)
            table.loc[pairs.index, ["gap_ci_low", "gap_ci_high"]] = _gap_intervals(values, pairs, num_bootstrap, rng)
    return table


def equity_scaled(overall: float, group_means: Sequence[float]) -> float:
    """Return the equity-scaled score I / (1 + sum over groups of |I - I_group|), with I the overall mean.

    ESSP of FairSeg (Tian et al. 2024, ICLR, arXiv:2311.02189; the authors' `equity_scaled_perf` with alpha = 1; their
    first preprint had the standard deviation of the group means in place of the sum). At most I, and I if all groups
    are alike. It is made for scores between 0 and 1, and falls with the number of groups: compare it on one axis only.
    """
    return overall / (1.0 + sum(abs(overall - mean) for mean in group_means))


def _ranking(groups: pd.DataFrame, metric: str, overall: float, min_n: int, *, scaled: bool) -> Mapping[str, object]:
    ranked = groups[groups["n_patients"] >= min_n]
    row: dict[str, object] = {"n_groups": len(groups), "n_too_small": len(groups) - len(ranked), "overall": overall}
    if ranked.empty:
        return row
    means = ranked["mean"].to_numpy(dtype=float)
    low, high = int(means.argmin()), int(means.argmax())
    worst, best = (low, high) if higher_is_better(metric) else (high, low)
    row |= {"worst_group": ranked["group"].iloc[worst], "worst_mean": means[worst]}
    if len(ranked) > 1:
        row |= {"best_group": ranked["group"].iloc[best], "best_mean": means[best]}
        row["gap"] = abs(means[best] - means[worst])
        if scaled:
            row["equity_scaled"] = equity_scaled(overall, list(means))
    return row


@dataclass(frozen=True)
class _AxisValues:
    """The penalized values of one axis: per metric cases x structures, and the group and patient of each case."""

    wide: Mapping[str, pd.DataFrame]
    group: NDArray[np.object_]
    codes: NDArray[np.intp]
    num_patients: int

    def of(self, structure: str, metric: str, group: str) -> NDArray[np.float64]:
        """Return the values of one group, NaN for the cases of the others."""
        return np.where(self.group == group, self.wide[metric][structure].to_numpy(dtype=float), np.nan)


def _axis_values(cases: pd.DataFrame, axis: str, metrics: Sequence[str]) -> _AxisValues:
    names = list(cases["structure"].unique())
    members = cases.assign(**{m: penalized(cases, m) for m in metrics})[cases[axis].notna()]
    wide = {m: by_structure(members, m, names) for m in metrics}
    index = wide[metrics[0]].index
    group = members.drop_duplicates("case_id").set_index("case_id")[axis].astype(str).reindex(index)
    codes, patients = pd.factorize(patients_of(members, index))
    return _AxisValues(wide, group.to_numpy(dtype=object), codes, len(patients))


def _cells(pairs: pd.DataFrame) -> list[tuple[str, str]]:
    return list(zip(pairs["structure"], pairs["metric"], strict=True))


def _p_groups(values: _AxisValues, structure: str, metric: str, min_n: int) -> float:
    """Return p of Kruskal and Wallis over the patients' means in the groups of at least `min_n` patients."""
    columns = [values.of(structure, metric, group) for group in dict.fromkeys(values.group)]
    sums, counts = patient_sums(np.column_stack(columns), values.codes, values.num_patients)
    means = [s[c > 0] / c[c > 0] for s, c in zip(sums.T, counts.T, strict=True)]
    ranked = [np.round(of_group, 12) for of_group in means if len(of_group) >= max(min_n, 1)]
    if len(np.unique(np.concatenate(ranked))) == 1:
        return 1.0  # nothing differs; scipy refuses to rank that
    return float(stats.kruskal(*ranked).pvalue)


def _gap_intervals(
    values: _AxisValues, pairs: pd.DataFrame, num_bootstrap: int, rng: np.random.Generator
) -> NDArray[np.float64]:
    """Return the interval of each pair's gap; patients are drawn from the whole axis, so they may be in both groups."""
    columns: list[NDArray[np.float64]] = []
    for side in ("best_group", "worst_group"):
        columns += [values.of(*cell, g) for cell, g in zip(_cells(pairs), pairs[side], strict=True)]
    sums, counts = patient_sums(np.column_stack(columns), values.codes, values.num_patients)
    gaps = []
    for drawn in draw_patients(values.num_patients, num_bootstrap, rng):
        with np.errstate(invalid="ignore"):
            best, worst = np.hsplit((drawn @ sums) / (drawn @ counts), 2)
        gaps.append(best - worst)
    sign = np.array([1.0 if higher_is_better(m) else -1.0 for m in pairs["metric"]])
    return interval(np.concatenate(gaps) * sign)
