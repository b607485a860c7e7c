from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import permutation_test, ttest_ind

from droseg.discovery.confirm import _Studentized, bootstrap_difference, permutation_p_values, split_patients


def test_p_value_is_that_of_all_permutations_of_the_patients():
    # Values 1..n are their own ranks, so the tests are those that scipy enumerates.
    badness = np.array([3.0, 9, 7, 10, 1, 2, 4, 5, 6, 8])
    inside = np.array([0.0, 1, 1, 1, 0, 0, 0, 0, 0, 0])

    def difference(a: np.ndarray, b: np.ndarray, axis: int) -> np.ndarray:
        return a.mean(axis) - b.mean(axis)

    def studentized(a: np.ndarray, b: np.ndarray, axis: int) -> np.ndarray:
        return ttest_ind(a, b, axis=axis, equal_var=False).statistic

    (p,), (adjusted,) = permutation_p_values(badness, np.arange(10), inside[None], 40_000, np.random.default_rng(0))
    for found, statistic in ((p, studentized), (adjusted, difference)):
        exact = permutation_test(
            (badness[inside == 1], badness[inside == 0]), statistic, alternative="greater", n_resamples=np.inf
        )
        assert found == pytest.approx(exact.pvalue, abs=4 * np.sqrt(exact.pvalue / 40_000))


def test_scans_of_one_patient_count_once():
    # Each value twice, for two scans of one patient: as much evidence as each patient once.
    badness, inside = np.array([3.0, 9, 7, 10, 1, 2, 4, 5, 6, 8]), np.array([0.0, 1, 1, 1, 0, 0, 0, 0, 0, 0])
    once, twice, naive = (
        permutation_p_values(b, patients, m[None], 40_000, np.random.default_rng(1))[0][0]
        for b, patients, m in (
            (badness, np.arange(10), inside),
            (np.repeat(badness, 2), np.repeat(np.arange(10), 2), np.repeat(inside, 2)),
            (np.repeat(badness, 2), np.arange(20), np.repeat(inside, 2)),
        )
    )
    assert twice == pytest.approx(once, abs=0.003)
    assert naive < once / 4


def test_patients_with_different_numbers_of_scans_are_not_exchanged():
    # The only patient with two scans is inside and bad: nobody can take its place, so it is evidence of nothing.
    badness, patients = np.array([9.0, 9, 1, 1, 1, 1, 1]), np.array([0, 0, 1, 2, 3, 4, 5])
    inside = np.array([[1.0, 1, 0, 0, 0, 0, 0]])
    assert permutation_p_values(badness, patients, inside, 999, np.random.default_rng(0))[0] == [1.0]


def test_cases_that_a_rule_cannot_judge_do_not_count():
    badness, members = np.array([5.0, 1, 100, 1, 5, 1]), np.array([[1.0, 0, np.nan, 0, 1, 0]])
    low, high = bootstrap_difference(badness, np.arange(6), members[0], 100, np.random.default_rng(0))
    assert np.isnan([low, high]).all()  # two patients inside are too few
    many = np.tile(members[0], 5)
    low, high = bootstrap_difference(np.tile(badness, 5), np.arange(30), many, 500, np.random.default_rng(0))
    assert (low, high) == pytest.approx((4.0, 4.0))


def test_a_slice_with_total_failures_and_one_that_is_a_little_worse_are_both_seen():
    rng = np.random.default_rng(0)
    inside = (np.arange(60) < 15).astype(float)[None]
    dice = rng.normal(0.9, 0.01, size=60)
    failures = dice - 0.85 * (np.arange(60) < 5)  # 5 of the 15 failed; ranks see 15 ordinary and 5 bad cases
    shifted = dice - 0.012 * inside[0] - 0.85 * (np.arange(60) >= 57)  # failures outside drown the mean
    for values in (failures, shifted):
        assert permutation_p_values(-values, np.arange(60), inside, 4999, rng)[0][0] < 0.01


def test_adjusted_p_values_are_those_of_the_worst_rule_under_permutation():
    # Second implementation: a loop over permutations of the values (their own ranks) and over disjoint or equal rules.
    rng = np.random.default_rng(0)
    badness = rng.permutation(30) + 1.0
    members = np.zeros((4, 30))
    members[0, :8], members[1, 8:16], members[2, 16:24], members[3, :8] = 1, 1, 1, 1
    badness[:8] += 10
    badness = np.argsort(np.argsort(badness)) + 1.0
    p_values, adjusted = permutation_p_values(badness, np.arange(30), members, 20_000, rng)

    def differences(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        sides = [(values[:, m == 1], values[:, m == 0]) for m in members]
        bare = [a.mean(1) - b.mean(1) for a, b in sides]
        studentized = [ttest_ind(a, b, axis=1, equal_var=False).statistic for a, b in sides]
        return np.stack(bare, axis=1), np.stack(studentized, axis=1)

    observed = differences(badness[None])
    permuted = differences(np.array([rng.permutation(badness) for _ in range(4000)]))
    assert p_values == pytest.approx((permuted[1] >= observed[1] - 1e-9).mean(0), abs=0.03)
    assert adjusted == pytest.approx((permuted[0].max(1, keepdims=True) >= observed[0] - 1e-9).mean(0), abs=0.03)
    assert adjusted[0] == adjusted[3]
    # The rule that is there twice costs nothing: three disjoint ones, at most three times the p-value.
    alone = permutation_p_values(badness, np.arange(30), members[:1], 20_000, rng)[1]
    assert alone[0] <= adjusted[0] <= 3 * alone[0] + 0.002


def test_the_statistic_is_welchs_t_and_scans_of_a_patient_are_one_observation():
    rng = np.random.default_rng(0)
    values, inside = rng.normal(size=30), (np.arange(30) < 8).astype(float)
    values = (values - values.mean()) / values.std()
    expected = ttest_ind(values[:8], values[8:], equal_var=False).statistic
    assert _Studentized(np.arange(30), inside[None])(values[None])[1] == pytest.approx(expected, rel=1e-9)
    # Scans of a patient on both sides, some of them on neither: cluster by cluster, with the loop of the textbook.
    patients, members = rng.integers(12, size=30), rng.choice([0.0, 1.0, np.nan], size=30, p=[0.5, 0.4, 0.1])
    square = 0.0
    for patient in range(12):
        deviation = 0.0
        for side, sign in ((1.0, 1), (0.0, -1)):
            there = members == side
            num = len(np.unique(patients[there]))
            of_patient = values[there & (patients == patient)] - values[there].mean()
            deviation += sign * np.sqrt(num / (num - 1)) * of_patient.sum() / there.sum()
        square += deviation**2
    bare = values[members == 1].mean() - values[members == 0].mean()
    found = _Studentized(patients, members[None])(values[None])
    assert found.ravel() == pytest.approx([bare, bare / np.sqrt(square)], rel=1e-9)


def test_where_only_the_spread_differs_the_level_of_the_rule_alone_holds():
    # 10 of 60 patients spread 4 times as much around the same mean.
    rng, inside = np.random.default_rng(0), (np.arange(60) < 10).astype(float)[None]
    values = rng.normal(size=(600, 60)) * np.where(inside[0], 4, 1)
    both = np.array([permutation_p_values(row, np.arange(60), inside, 199, rng) for row in values])[:, :, 0]
    alone, of_differences = (both <= 0.05).mean(axis=0)
    assert alone <= 0.05 + 2.6 * np.sqrt(0.05 * 0.95 / 600)
    assert of_differences > 0.1, "the bare difference is no test of the mean here; see the docstring"


def test_slices_of_one_value_each_are_no_division_by_zero():
    inside = (np.arange(20) < 6).astype(float)
    p_values, _ = permutation_p_values(inside.copy(), np.arange(20), inside[None], 999, np.random.default_rng(0))
    assert p_values[0] == pytest.approx(1 / 1000, abs=0.002)
    p_values, _ = permutation_p_values(np.ones(20), np.arange(20), inside[None], 99, np.random.default_rng(0))
    assert p_values == [1.0]


def test_halves_share_no_patient_and_have_as_many_scans():
    patients = np.repeat(np.arange(41), np.r_[np.ones(30, int), np.full(8, 2), np.full(3, 5)])
    first, second = split_patients(patients, np.random.default_rng(3))
    assert not set(patients[first]) & set(patients[second])
    assert sorted([*first, *second]) == list(range(len(patients)))
    for scans, least in ((1, 14), (2, 3), (5, 1)):
        of_kind = np.flatnonzero(np.bincount(patients) == scans)
        assert len(set(of_kind) & set(patients[first])) >= least


def test_interval_of_single_scans_is_the_normal_one():
    rng = np.random.default_rng(0)
    values, inside = rng.normal(size=400), (np.arange(400) < 200).astype(float)
    low, high = bootstrap_difference(values, np.arange(400), inside, 4000, rng)
    sides = values[:200], values[200:]
    difference, error = sides[0].mean() - sides[1].mean(), np.sqrt(sum(s.var() / 200 for s in sides))
    assert (low, high) == pytest.approx((difference - 1.96 * error, difference + 1.96 * error), abs=0.1 * error)
