"""The confirmation: tests on patients that the search has not seen, corrected for how many there are."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

MIN_PATIENTS_INTERVAL: Final = 5
"""Fewer patients inside get no interval, as everywhere in droseg."""
_CHUNK_VALUES: Final = 1_000_000

Floats = NDArray[np.float64]


def split_patients(patients: NDArray[np.intp], rng: np.random.Generator) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Return the positions of the cases of two random halves of the patients, alike in how many scans they have."""
    scans = np.bincount(patients)
    order = np.lexsort((rng.random(len(scans)), scans))
    in_first = np.zeros(len(scans), dtype=bool)
    in_first[order[int(rng.integers(2)) :: 2]] = True
    return np.flatnonzero(in_first[patients]), np.flatnonzero(~in_first[patients])


def permutation_p_values(
    badness: Floats, patients: NDArray[np.intp], members: Floats, num_permutations: int, rng: np.random.Generator
) -> tuple[Floats, Floats]:
    """Return per rule the one-sided p-value of "inside is no worse than outside", alone and adjusted for all rules.

    Statistic: the difference of means, inside minus outside, of the values and of their ranks, each in its own
    standard deviations under permutation; the larger of the two. What is permuted are whole patients, among those
    with the same number of scans, and then the scans of a patient: exact where patients are exchangeable, whatever
    the shape of the distribution and however alike the scans of a patient. p = (1 + b) / (1 + permutations), b the
    number of permutations that are at least as bad (Phipson & Smyth 2010, Stat. Appl. Genet. Mol. Biol. 9:39).
    Adjusted: b counts the permutations in which the worst of all rules is as bad as this one (the single-step maxT of
    Westfall & Young 1993, Resampling-Based Multiple Testing), so that rules that share cases cost little.

    Args:
        badness: larger is worse, (cases,).
        patients: number of the patient of each case.
        members: 1 inside, 0 outside, NaN neither, (rules, cases).
        num_permutations: how many.
        rng: source of the draws.
    """
    known = np.isfinite(members)
    inside = np.where(known, members, 0.0)
    outside = np.where(known, 1.0 - inside, 0.0)
    contrast = (inside / inside.sum(1, keepdims=True) - outside / outside.sum(1, keepdims=True)).T
    scores = (badness, rankdata(badness))
    blocks = [np.array([score @ contrast for score in scores])[None]]
    for orders in _permutations(patients, num_permutations, rng):
        blocks.append(np.stack([score[orders] @ contrast for score in scores], axis=1))
    statistics = np.concatenate(blocks)  # (1 + permutations, scores, rules)
    spread = statistics.std(axis=0)
    statistic = (statistics / np.where(spread > 0, spread, 1.0)).max(axis=1)
    observed = statistic[0] - 1e-9 * np.abs(statistic[0])  # equal but for rounding is as bad
    p_values, adjusted = (
        (1 + (permuted >= observed).sum(axis=0)) / (1 + num_permutations)
        for permuted in (statistic[1:], statistic[1:].max(axis=1, keepdims=True))
    )
    return p_values, adjusted


def _permutations(
    patients: NDArray[np.intp], num_permutations: int, rng: np.random.Generator
) -> Iterator[NDArray[np.intp]]:
    """Yield (some, cases): which case's value each case gets, a few permutations at a time to bound the memory."""
    codes = np.unique(patients, return_inverse=True)[1]
    scans = np.bincount(codes)
    by_patient = np.argsort(codes, kind="stable")
    starts = np.cumsum(scans) - scans
    # Per number of scans: the cases of its patients, (patients, scans)
    strata = [
        by_patient[starts[np.flatnonzero(scans == number), None] + np.arange(number)] for number in np.unique(scans)
    ]
    step = max(1, _CHUNK_VALUES // len(patients))
    for begin in range(0, num_permutations, step):
        size = min(step, num_permutations - begin)
        orders = np.empty((size, len(patients)), dtype=np.intp)
        for cases in strata:
            rows = rng.permuted(np.broadcast_to(np.arange(len(cases)), (size, len(cases))), axis=1)
            drawn = cases[rows]
            if cases.shape[1] > 1:
                drawn = rng.permuted(drawn, axis=2)
            orders[:, cases.ravel()] = drawn.reshape(size, -1)
        yield orders


def bootstrap_difference(
    values: Floats, patients: NDArray[np.intp], members: Floats, num_bootstrap: int, rng: np.random.Generator
) -> tuple[float, float]:
    """Return the 95 % percentile interval of mean inside minus mean outside, resampling patients.

    NaN for fewer than `MIN_PATIENTS_INTERVAL` patients inside or outside.
    """
    codes = np.unique(patients, return_inverse=True)[1]
    count = int(codes.max()) + 1
    table = np.zeros((count, 4))
    for column, side in enumerate((members == 1, members == 0)):
        table[:, 2 * column] = np.bincount(codes, values * side, count)
        table[:, 2 * column + 1] = np.bincount(codes, side, count)
    if min((table[:, column] > 0).sum() for column in (1, 3)) < MIN_PATIENTS_INTERVAL or num_bootstrap < 1:
        return float("nan"), float("nan")
    differences = []
    step = max(1, _CHUNK_VALUES // count)
    for begin in range(0, num_bootstrap, step):
        size = min(step, num_bootstrap - begin)
        draws = rng.integers(count, size=(size, count)) + count * np.arange(size)[:, None]
        drawn = np.bincount(draws.ravel(), minlength=size * count).reshape(size, count).astype(float)
        sums = drawn @ table
        with np.errstate(invalid="ignore"):  # a sample without anyone inside
            differences.append(sums[:, 0] / sums[:, 1] - sums[:, 2] / sums[:, 3])
    low, high = np.nanpercentile(np.concatenate(differences), [2.5, 97.5])
    return float(low), float(high)
