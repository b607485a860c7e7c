"""The confirmation: tests on patients that the search has not seen, corrected for how many there are."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array, triu
from scipy.stats import rankdata

MIN_PATIENTS_INTERVAL: Final = 5
"""Fewer patients inside get no interval, as everywhere in droseg."""
_CHUNK_VALUES: Final = 1_000_000
_LEAST_VARIANCE: Final = 0.01
"""Smallest variance of a difference, as a share of what the spread of all values gives; without it one may be 0."""

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
    """Return per rule two one-sided p-values of "inside is no worse than outside": alone, and adjusted for all rules.

    What is permuted are whole patients, among those with the same number of scans, and then the scans of a patient.
    Statistic: the difference of means, inside minus outside, of the values and of their ranks, each in its own
    standard deviations under permutation; the larger of the two. p = (1 + b) / (1 + permutations), b the number of
    permutations that are at least as bad (Phipson & Smyth 2010, Stat. Appl. Genet. Mol. Biol. 9:39).

    Adjusted: b counts the permutations in which the worst of all rules is as bad as this one (the single-step maxT of
    Westfall & Young 1993, Resampling-Based Multiple Testing), so that rules that share cases cost little. Exact where
    patients are exchangeable, whatever the shape of the distribution and however alike the scans of a patient; but
    not where the metric is as good inside and only spreads more: of such a slice it is below 0.05 two to three times
    too often.

    Alone: the differences are studentized (`_Studentized`), so that it is also right there, for many patients (Janssen
    1997, Stat. Probab. Lett. 36:9; Chung & Romano 2013, Ann. Statist. 41:484), and exact where patients are
    exchangeable. Studentized and adjusted, total failures in a small slice would hardly ever be seen: they spread.

    Args:
        badness: larger is worse, (cases,).
        patients: number of the patient of each case.
        members: 1 inside, 0 outside, NaN neither, (rules, cases).
        num_permutations: how many.
        rng: source of the draws.
    """
    difference = _Studentized(patients, members)
    scores = [_standardized(score) for score in (badness, rankdata(badness))]
    blocks = [np.stack([difference(score[None]) for score in scores], axis=2)]
    for orders in permutations(patients, num_permutations, rng):
        blocks.append(np.stack([difference(score[orders]) for score in scores], axis=2))
    statistics = np.concatenate(blocks, axis=1)  # (bare and studentized, 1 + permutations, scores, rules)
    spread = statistics.std(axis=1, keepdims=True)
    bare, studentized = (statistics / np.where(spread > 0, spread, 1.0)).max(axis=2)
    p_values, adjusted = (
        (1 + (permuted >= observed - 1e-9 * np.abs(observed)).sum(axis=0)) / (1 + num_permutations)
        for observed, permuted in ((studentized[0], studentized[1:]), (bare[0], bare[1:].max(axis=1, keepdims=True)))
    )  # equal but for rounding is as bad
    return p_values, adjusted


class _Studentized:
    """The difference of means, inside minus outside of each rule, bare and in its own standard error.

    Scans of a patient are one observation: squared is the sum over the scans of a patient of their deviations from the
    mean of their side. With one scan per patient this is Welch's t. Everything is a product of matrices, so that it is
    as fast for thousands of permutations as the bare difference.

    Args:
        patients: number of the patient of each case.
        members: 1 inside, 0 outside, NaN neither, (rules, cases).
    """

    def __init__(self, patients: NDArray[np.intp], members: Floats) -> None:
        sides = np.stack([members == 1, members == 0]).astype(float)  # (2, rules, cases)
        codes = np.unique(patients, return_inverse=True)[1]
        # Sparse, for a dense one of 10,000 cases would take 800 MB.
        of_patient = csr_array((np.ones(len(codes)), (codes, np.arange(len(codes)))))
        self._mean = [(side / side.sum(1, keepdims=True)).T for side in sides]  # (cases, rules)
        num_patients = [((of_patient @ side.T) > 0).sum(0) for side in sides]
        own = [
            sign * mean * np.sqrt(num / np.maximum(num - 1, 1))
            for sign, mean, num in zip((1, -1), self._mean, num_patients, strict=True)
        ]
        weight = own[0] + own[1]
        # A patient's deviation is sum_i w_i (y_i - m), m the mean of the side of scan i. Its square has products of
        # two scans, of a scan and a mean, and of two means.
        self._pairs = triu(of_patient.T @ of_patient).nonzero()
        first, second = self._pairs
        self._of_pairs = weight[first] * weight[second] * np.where(first == second, 1, 2)[:, None]
        sums = [of_patient @ side for side in own]  # (patients, rules)
        self._of_scans = [weight * side[codes] for side in sums]
        self._of_means = [(sums[i] * sums[j]).sum(0) for i, j in ((0, 0), (0, 1), (1, 1))]
        self._least = _LEAST_VARIANCE * sum(1 / num for num in num_patients)

    def __call__(self, scores: Floats) -> Floats:
        """Return both, (2, some, rules), of scores with mean 0 and variance 1, (some, cases)."""
        inside, outside = (scores @ mean for mean in self._mean)
        first, second = self._pairs
        variance = (scores[:, first] * scores[:, second]) @ self._of_pairs
        variance -= 2 * (inside * (scores @ self._of_scans[0]) + outside * (scores @ self._of_scans[1]))
        both_inside, mixed, both_outside = self._of_means
        variance += inside**2 * both_inside + 2 * inside * outside * mixed + outside**2 * both_outside
        return np.stack([inside - outside, (inside - outside) / np.sqrt(np.maximum(variance, self._least))])


def _standardized(values: Floats) -> Floats:
    centered = values - values.mean()
    spread = float(centered.std())
    return np.asarray(centered / spread if spread > 0 else centered)


def permutations(
    patients: NDArray[np.intp], num_permutations: int, rng: np.random.Generator
) -> Iterator[NDArray[np.intp]]:
    """Yield (some, cases): which case's value each case gets, a few permutations at a time to bound the memory.

    Exchanged are whole patients, among those with the same number of scans, and the scans of a patient.
    """
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
