"""subgroups.csv: how each subgroup fares, per structure and metric, with the uncertainty that its size implies."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from droseg.metrics import higher_is_better, is_missed, penalized
from droseg.metrics.groups import ALL

COLUMNS = (
    "axis",
    "group",
    "structure",
    "metric",
    "n",
    "n_undefined",
    "n_missed",
    "mean",
    "std",
    "median",
    "p25",
    "p75",
    "p5",
    "p10",
    "p90",
    "p95",
    "worst",
    "ci_low",
    "ci_high",
)
MEAN = "mean"
"""Name of the structure that stands for the mean over structures."""
MIN_PATIENTS = 5
"""Fewer patients with a value get no interval: a bootstrap of so few says nothing."""
_PERCENTILES = (50, 25, 75, 5, 10, 90, 95)
_CHUNK = 250  # bootstrap samples at a time, to bound memory with many patients


def subgroup_table(
    cases: pd.DataFrame,
    axes: Sequence[str],
    metrics: Sequence[str],
    *,
    penalize: bool = False,
    num_bootstrap: int = 2000,
    seed: int = 0,
) -> pd.DataFrame:
    """Return one row per axis, group, structure and metric, first axis=all, last structure=mean within a group.

    Undefined values are left out of the statistics and counted: `n` counts all rows of the structure in the group,
    `n_undefined` those without a value, `n_missed` those whose prediction alone is empty. structure=mean first
    averages over the structures of a case that have a value; there `n_missed` counts cases that miss any structure.
    `std` is that of the sample. `worst` is the minimum of scores and the maximum of distances. `ci_low, ci_high`:
    95 % percentile bootstrap of the mean, resampling patients; NaN below `MIN_PATIENTS` patients with a value.

    Args:
        cases: a cases table, see `droseg.metrics.groups`.
        axes: columns to group by; a case without a group on an axis is left out there.
        metrics: columns to summarize.
        penalize: summarize penalized values (failures as 0 or the image diagonal) instead.
        num_bootstrap: samples per interval; 0 gives no intervals.
        seed: of the bootstrap; each group has its own stream, so that other groups do not change its interval.
    """
    rows: list[dict[str, object]] = []
    if penalize:
        cases = cases.assign(**{metric: penalized(cases, metric) for metric in metrics})
    cases = cases.assign(_missed=is_missed(cases))
    names = list(cases["structure"].unique())
    for axis, group, members in iterate_groups(cases, axes):
        wide = {m: by_structure(members, m, names) for m in [*metrics, "_missed"]}
        patients = members.drop_duplicates("case_id").set_index("case_id")["patient_id"].reindex(wide["_missed"].index)
        values = np.hstack([wide[metric].to_numpy(dtype=float) for metric in metrics])
        intervals = bootstrap_means(values, patients.to_numpy(), num_bootstrap, stream(seed, axis, group))
        for metric, metric_intervals in zip(metrics, np.split(intervals, len(metrics)), strict=True):
            for column, structure in enumerate([*names, MEAN]):
                there = wide["_missed"][structure].notna()
                if not there.any():
                    continue
                row = _summary(wide[metric][structure][there], metric)
                missed = int(wide["_missed"][structure][there].gt(0).sum())
                low, high = metric_intervals[column]
                keys = {"axis": axis, "group": group, "structure": structure, "metric": metric}
                rows.append({**keys, **row, "n_missed": missed, "ci_low": low, "ci_high": high})
    table = pd.DataFrame(rows, columns=list(COLUMNS))
    return _in_order(table, [*names, MEAN], metrics)


def iterate_groups(cases: pd.DataFrame, axes: Sequence[str]) -> Iterator[tuple[str, str, pd.DataFrame]]:
    """Yield axis, group and the rows of each group: everyone first, then the axes in order with sorted groups."""
    yield ALL, ALL, cases
    for axis in axes:
        for group, members in cases.groupby(axis, sort=True):
            yield axis, str(group), members


def stream(seed: int, *names: str) -> np.random.Generator:
    """Return a generator that depends on the seed and the names only."""
    return np.random.default_rng([seed, zlib.crc32("\0".join(names).encode())])


def bootstrap_means(
    values: NDArray[np.float64], patients: NDArray[np.object_], num_bootstrap: int, rng: np.random.Generator
) -> NDArray[np.float64]:
    """Return the 95 % percentile interval of each column's mean, shape (columns, 2), resampling patients.

    Args:
        values: shape (cases, columns); NaN is left out.
        patients: the patient of each case; all cases of a drawn patient enter.
        num_bootstrap: number of samples; 0 gives no intervals.
        rng: source of the draws.
    """
    codes, names = pd.factorize(patients)
    defined = np.isfinite(values)
    sums, counts = np.zeros((len(names), values.shape[1])), np.zeros((len(names), values.shape[1]))
    np.add.at(sums, codes, np.where(defined, values, 0.0))
    np.add.at(counts, codes, defined)
    result = np.full((values.shape[1], 2), np.nan)
    enough = (counts > 0).sum(axis=0) >= MIN_PATIENTS
    if not enough.any() or num_bootstrap < 1:
        return result
    means = []
    for start in range(0, num_bootstrap, _CHUNK):
        size = min(_CHUNK, num_bootstrap - start)
        draws = rng.integers(len(names), size=(size, len(names))) + len(names) * np.arange(size)[:, None]
        drawn = np.bincount(draws.ravel(), minlength=size * len(names)).reshape(size, len(names)).astype(float)
        with np.errstate(invalid="ignore"):  # a sample without any patient that has the structure
            means.append((drawn @ sums[:, enough]) / (drawn @ counts[:, enough]))
    samples = np.concatenate(means)
    percentile = np.nanpercentile if np.isnan(samples).any() else np.percentile  # the first is many times slower
    result[enough] = percentile(samples, [2.5, 97.5], axis=0).T
    return result


def by_structure(members: pd.DataFrame, column: str, names: Sequence[str]) -> pd.DataFrame:
    """Return cases x structures plus their mean; NaN where a case has no row of the structure, or no value."""
    wide = members.assign(_value=members[column].astype(float)).pivot(
        index="case_id", columns="structure", values="_value"
    )
    wide = wide.reindex(columns=list(names))
    wide[MEAN] = wide.mean(axis=1)
    return wide


def _summary(values: pd.Series, metric: str) -> dict[str, float]:
    """Return the statistics of one row; all are NaN if nothing is defined."""
    defined = values.dropna().to_numpy(dtype=float)
    row: dict[str, float] = {"n": len(values), "n_undefined": len(values) - len(defined)}
    if not len(defined):
        return row
    row["mean"] = float(defined.mean())
    row["std"] = float(defined.std(ddof=1)) if len(defined) > 1 else float("nan")
    for percentile, value in zip(_PERCENTILES, np.percentile(defined, _PERCENTILES), strict=True):
        row["median" if percentile == 50 else f"p{percentile}"] = float(value)
    row["worst"] = float(defined.min() if higher_is_better(metric) else defined.max())
    return row


def _in_order(table: pd.DataFrame, structures: Sequence[str], metrics: Sequence[str]) -> pd.DataFrame:
    """Return the rows by group, then structure, then metric."""
    groups = pd.factorize(pd.MultiIndex.from_frame(table[["axis", "group"]]))[0]
    order = np.lexsort(
        (
            table["metric"].map({m: i for i, m in enumerate(metrics)}),
            table["structure"].map({s: i for i, s in enumerate(structures)}),
            groups,
        )
    )
    return table.iloc[order].reset_index(drop=True)
