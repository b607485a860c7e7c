"""Wilcoxon and Holm against enumeration, scipy and examples by hand."""

from itertools import product

import numpy as np
import pytest
from scipy import stats

from droseg.report.significance import fewest_pairs, holm, signed_rank


def enumerated_p(differences):
    """Return the two-sided p by trying every assignment of signs to the ranks."""
    values = np.asarray([d for d in differences if d != 0])
    ranks = stats.rankdata(np.abs(values))
    observed = ranks[values > 0].sum()
    sums = np.array([(ranks * np.array(signs)).sum() for signs in product((0, 1), repeat=len(values))])
    return min(1.0, 2 * min((sums <= observed).mean(), (sums >= observed).mean()))


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("ties", [False, True])
def test_p_equals_that_of_all_sign_assignments(seed, ties):
    rng = np.random.default_rng(seed)
    differences = rng.normal(0.3, 1.0, size=rng.integers(1, 11))
    differences = np.round(differences * 2) / 2 if ties else differences
    p, direction = signed_rank(differences)
    if not differences.any():
        assert (p, direction) == (1.0, 0.0)
        return
    assert p == pytest.approx(enumerated_p(differences), rel=1e-12)


@pytest.mark.parametrize("size", [7, 30, 51, 200])
def test_p_equals_that_of_scipy_without_ties(size):
    differences = np.random.default_rng(size).normal(0.1, 1.0, size=size)
    assert signed_rank(differences)[0] == pytest.approx(stats.wilcoxon(differences).pvalue, rel=1e-12)


def test_ties_by_rounding_errors_are_ties():
    gains = np.array([0.1, 0.2, 0.3]) + 0.7 - 0.7  # not exactly equal to what is added below
    with_noise = np.concatenate([gains, [0.1, 0.2, -0.3]])
    clean = [0.1, 0.2, 0.3, 0.1, 0.2, -0.3]
    assert signed_rank(with_noise)[0] == signed_rank(clean)[0] == pytest.approx(enumerated_p(clean))


def test_direction_is_that_of_the_ranks_and_undefined_pairs_are_left_out():
    assert signed_rank([1.0, 2.0, 3.0, -0.5, np.nan, 0.0]) == (enumerated_p([1, 2, 3, -0.5]), 1.0)
    assert signed_rank([-1.0, -2.0, 0.5])[1] == -1.0
    assert signed_rank([0.0, np.nan]) == (1.0, 0.0)


def test_holm_of_an_example_by_hand():
    # Sorted 0.01, 0.02, 0.03, 0.04 times 4, 3, 2, 1 = 0.04, 0.06, 0.06, 0.04; none below one before it.
    assert holm([0.04, 0.01, 0.03, 0.02]) == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert holm([0.5, 0.6]) == pytest.approx([1.0, 1.0])
    assert holm([]).size == 0


def test_holm_rejects_as_the_step_down_procedure_does():
    rng = np.random.default_rng(0)
    for _ in range(200):
        p = rng.uniform(0, 0.1, size=rng.integers(1, 12)) ** 2
        rejected = set()
        for step, index in enumerate(np.argsort(p)):  # Holm 1979: stop at the first that is above its level
            if p[index] > 0.05 / (len(p) - step):
                break
            rejected.add(int(index))
        assert rejected == set(np.flatnonzero(holm(p) <= 0.05).tolist())


def test_fewest_pairs_is_where_the_smallest_p_passes():
    for family in (1, 24, 585):
        n = fewest_pairs(family)
        assert signed_rank(np.arange(1.0, n + 1))[0] * family <= 0.05
        assert signed_rank(np.arange(1.0, n))[0] * family > 0.05
