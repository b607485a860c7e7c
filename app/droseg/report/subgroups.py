"""subgroups.csv: how each subgroup fares, per structure and metric, with the uncertainty that its size implies."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from droseg.metrics import higher_is_better, is_missed, penalized
from droseg.metrics.groups import ALL
from droseg.report import tails

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
TAIL_COLUMNS = ("n_patients", "size", "cvar10", *tails.COLUMNS)
"""What `penalized_table` adds."""
MEAN = "mean"
"""Name of the structure that stands for the mean over structures."""
MIN_PATIENTS = 5
"""Fewer patients with a value get no interval: a bootstrap of so few says nothing."""
SMALL = 20
"""Groups of fewer patients are marked: a percentile bootstrap of so few is too narrow."""
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
    if penalize:
        cases = cases.assign(**{metric: penalized(cases, metric) for metric in metrics})
    return _table(cases, axes, metrics, num_bootstrap, seed)[list(COLUMNS)]


def penalized_table(
    cases: pd.DataFrame, axes: Sequence[str], metrics: Sequence[str], *, num_bootstrap: int = 2000, seed: int = 0
) -> pd.DataFrame:
    """Return `subgroup_table` of penalized values with `TAIL_COLUMNS`: what verdicts and rankings are made from.

    `n_patients` counts the patients with a value. `size` is "too few" below `MIN_PATIENTS` of them (no interval),
    "small" below `SMALL`, else "ok". `cvar10` is the mean of the worst tenth of the cases, see `cvar`. The columns
    `tails.COLUMNS` are the 95 % intervals of the bad tail (p10 of a score, p90 of a distance) and of `cvar10`, from
    the same samples of patients as that of the mean.
    """
    cases = cases.assign(**{metric: penalized(cases, metric) for metric in metrics})
    return _table(cases, axes, metrics, num_bootstrap, seed, with_tails=True)


def _table(
    cases: pd.DataFrame,
    axes: Sequence[str],
    metrics: Sequence[str],
    num_bootstrap: int,
    seed: int,
    *,
    with_tails: bool = False,
) -> pd.DataFrame:
    rows: list[dict[str, object]] = []
    cases = cases.assign(_missed=is_missed(cases))
    names = list(cases["structure"].unique())
    for axis, group, members in iterate_groups(cases, axes):
        missed = by_structure(members, "_missed", names)
        patients = patients_of(members, missed.index)
        blocks = [by_structure(members, metric, names).to_numpy() for metric in metrics]
        intervals = bootstrap_means(np.hstack(blocks), patients, num_bootstrap, stream(seed, axis, group))
        if with_tails:
            ends = [metric for metric in metrics for _ in (*names, MEAN)]
            bad = bootstrap_tails(np.hstack(blocks), patients, ends, num_bootstrap, stream(seed, axis, group))
            intervals = np.hstack([intervals, bad])
        for metric, values, bounds in zip(metrics, blocks, np.split(intervals, len(metrics)), strict=True):
            columns = zip([*names, MEAN], values.T, missed.to_numpy().T, bounds, strict=True)
            for structure, of_cases, misses, (low, high, *of_tails) in columns:
                there = ~np.isnan(misses)
                if not there.any():
                    continue
                row = _summary(of_cases[there], metric)
                row |= {"n_missed": int((misses[there] > 0).sum()), "ci_low": low, "ci_high": high}
                row["n_patients"] = len(set(patients[~np.isnan(of_cases)]))
                row["size"] = size_mark(row["n_patients"])
                row |= dict(zip(tails.COLUMNS, of_tails, strict=False))
                rows.append({"axis": axis, "group": group, "structure": structure, "metric": metric, **row})
    table = pd.DataFrame(rows, columns=[*COLUMNS, *TAIL_COLUMNS])
    return _in_order(table, [*names, MEAN], metrics)


def size_mark(num_patients: int) -> str:
    """Return "too few" (no interval), "small" (marked) or "ok"."""
    return "too few" if num_patients < MIN_PATIENTS else "small" if num_patients < SMALL else "ok"


def cvar(values: NDArray[np.float64], metric: str, share: float = 0.1) -> float:
    """Return the conditional value at risk: the mean of the worst `share` of the values; NaN without any.

    Rockafellar and Uryasev 2000, J. of Risk 2:21: if `share` cuts a value in two, its part enters with that weight, so
    of 16 values the worst counts fully and the second worst with 0.6. Of few values it is the worst one.
    """
    worst_first = np.sort(values if higher_is_better(metric) else -values)
    if not len(worst_first):
        return float("nan")
    weights = np.clip(share * len(worst_first) - np.arange(len(worst_first)), 0.0, 1.0)
    mean = float((worst_first * weights).sum() / weights.sum())
    return mean if higher_is_better(metric) else -mean


def patients_of(members: pd.DataFrame, case_ids: pd.Index) -> NDArray[np.object_]:
    """Return the patient of each case."""
    return members.drop_duplicates("case_id").set_index("case_id")["patient_id"].reindex(case_ids).to_numpy()


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
    sums, counts = patient_sums(values, codes, len(names))
    result = np.full((values.shape[1], 2), np.nan)
    enough = (counts > 0).sum(axis=0) >= MIN_PATIENTS
    if not enough.any() or num_bootstrap < 1:
        return result
    means = []
    for drawn in draw_patients(len(names), num_bootstrap, rng):
        with np.errstate(invalid="ignore"):  # a sample without any patient that has the structure
            means.append((drawn @ sums[:, enough]) / (drawn @ counts[:, enough]))
    result[enough] = interval(np.concatenate(means))
    return result


def bootstrap_tails(
    values: NDArray[np.float64],
    patients: NDArray[np.object_],
    metrics: Sequence[str],
    num_bootstrap: int,
    rng: np.random.Generator,
) -> NDArray[np.float64]:
    """Return per column the intervals `tails.COLUMNS`, shape (columns, 4); arguments as `bootstrap_means`.

    With the generator of `bootstrap_means` the samples are the same.
    """
    codes, names = pd.factorize(patients)
    result = np.full((values.shape[1], 4), np.nan)
    enough = (patient_sums(values, codes, len(names))[1] > 0).sum(axis=0) >= MIN_PATIENTS
    if not enough.any() or num_bootstrap < 1:
        return result
    chosen = [metric for metric, there in zip(metrics, enough, strict=True) if there]
    samples = tails.tail_samples(values[:, enough], codes, draw_patients(len(names), num_bootstrap, rng), chosen)
    result[enough] = interval(samples.reshape(len(samples), -1)).reshape(-1, 4)
    return result


def patient_sums(
    values: NDArray[np.float64], codes: NDArray[np.intp], num_patients: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return per patient and column the sum of the defined values, and their number."""
    defined = np.isfinite(values)
    sums, counts = np.zeros((num_patients, values.shape[1])), np.zeros((num_patients, values.shape[1]))
    np.add.at(sums, codes, np.where(defined, values, 0.0))
    np.add.at(counts, codes, defined)
    return sums, counts


def draw_patients(num_patients: int, num_bootstrap: int, rng: np.random.Generator) -> Iterator[NDArray[np.float64]]:
    """Yield chunks of bootstrap samples, shape (samples, patients): how often each patient was drawn."""
    for start in range(0, num_bootstrap, _CHUNK):
        size = min(_CHUNK, num_bootstrap - start)
        draws = rng.integers(num_patients, size=(size, num_patients)) + num_patients * np.arange(size)[:, None]
        drawn = np.bincount(draws.ravel(), minlength=size * num_patients)
        yield drawn.reshape(size, num_patients).astype(float)


def interval(samples: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the 2.5th and the 97.5th percentile of each column, shape (columns, 2); NaN samples are left out."""
    percentile = np.nanpercentile if np.isnan(samples).any() else np.percentile  # the first is many times slower
    return np.asarray(percentile(samples, [2.5, 97.5], axis=0)).T


def by_structure(members: pd.DataFrame, column: str, names: Sequence[str]) -> pd.DataFrame:
    """Return cases x structures plus their mean; NaN where a case has no row of the structure, or no value."""
    cases, case_ids = pd.factorize(members["case_id"], sort=True)
    wide = np.full((len(case_ids), len(names)), np.nan)
    wide[cases, pd.Index(names).get_indexer(pd.Index(members["structure"]))] = members[column].to_numpy(dtype=float)
    table = pd.DataFrame(wide, index=pd.Index(case_ids, name="case_id"), columns=list(names))
    table[MEAN] = table.mean(axis=1)
    return table


def _summary(values: NDArray[np.float64], metric: str) -> dict[str, Any]:
    """Return the statistics of one row; all are NaN if nothing is defined."""
    defined = values[~np.isnan(values)]
    row: dict[str, Any] = {"n": len(values), "n_undefined": len(values) - len(defined)}
    if not len(defined):
        return row
    row["mean"] = float(defined.mean())
    row["std"] = float(defined.std(ddof=1)) if len(defined) > 1 else float("nan")
    for percentile, value in zip(_PERCENTILES, np.percentile(defined, _PERCENTILES), strict=True):
        row["median" if percentile == 50 else f"p{percentile}"] = float(value)
    row["worst"] = float(defined.min() if higher_is_better(metric) else defined.max())
    row["cvar10"] = cvar(defined, metric)
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
