"""The two-level objective: its axes, priors and limits on real groups; the sampler has its own tests."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import softmax

from droseg.errors import InputError
from droseg.sampling import robust_risk

LOSSES = np.random.default_rng(0).gamma(2.0, 0.3, 8)
AXES = {"anatomy": [[3, 5], [0, 1, 2, 4, 6, 7]], "site": [[0, 1, 5, 6], [2, 3, 4, 7]]}


def visited(objective_of, **options):
    objective = objective_of("two_level", **options)
    objective.update(range(8), LOSSES)
    return objective


@pytest.mark.parametrize("axes", [["anatomy"], ["site"], ["anatomy", "site"]])
def test_by_size_with_gamma_beta_it_is_plain_kl(objective_of, axes: list[str]):
    objective = visited(objective_of, axes=axes, pi="size", beta=4.0, gamma=4.0)
    np.testing.assert_allclose(objective.probabilities(), softmax(4.0 * LOSSES), rtol=0, atol=1e-12)
    assert objective.risk() == pytest.approx(robust_risk(LOSSES, 4.0), rel=1e-12)
    assert objective.beta == objective.sampler.draw().beta == 4.0


def test_overlapping_axes_are_a_mixture_over_all_groups(objective_of):
    objective = visited(objective_of, beta=2.0, gamma=3.0)
    members = [np.array(m) for axis in ("anatomy", "site") for m in AXES[axis]]
    assert objective.groups.names == ("anatomy=rare", "anatomy=typical", "site=x", "site=y")
    w = softmax([3.0 * np.log(np.exp(2.0 * LOSSES[m]).mean()) / 2.0 for m in members])
    q = np.zeros(8)
    for share, m in zip(w, members, strict=True):
        q[m] += share * softmax(2.0 * LOSSES[m])
    np.testing.assert_allclose(objective.probabilities(), q, rtol=1e-12)
    values = objective.epoch_completed(1)
    assert [values[f"share/{name}"] for name in objective.groups.names] == pytest.approx(w.tolist())


def test_gamma_0_shares_by_the_prior_and_beta_0_inside_uniformly(objective_of):
    uniform = visited(objective_of, axes=["anatomy"], beta=0.0, gamma=0.0)
    np.testing.assert_allclose(uniform.probabilities()[AXES["anatomy"][0]], 1 / 4)
    by_size = visited(objective_of, axes=["anatomy"], beta=0.0, gamma=0.0, pi="size")
    np.testing.assert_allclose(by_size.probabilities(), 1 / 8)
    assert by_size.risk() == pytest.approx(LOSSES.mean())


def test_a_large_gamma_draws_from_the_worst_group_alone(objective_of):
    objective = visited(objective_of, axes=["site"], beta=0.0, gamma=1e6)
    worst = max(AXES["site"], key=lambda m: LOSSES[m].mean())
    np.testing.assert_allclose(objective.probabilities()[worst], 1 / 4)
    assert objective.risk() == pytest.approx(LOSSES[worst].mean(), abs=1e-5)


def test_combinations_of_values_are_groups_if_asked(objective_of):
    assert len(objective_of("two_level", product=True).groups) == 4
    assert objective_of("two_level", product=True).groups.names[0] == "anatomy=rare, site=x"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"beta": -1.0}, "beta is -1.0"),
        ({"gamma": -1.0}, "gamma is -1.0"),
        ({"pi": "half"}, "pi is 'half'; choose uniform"),
        ({"batch_size": 9}, "batch_size is 9 but there are 8 cases"),
    ],
)
def test_settings_outside_their_range_are_refused(objective_of, options: dict, message: str):
    with pytest.raises(InputError, match=f"objective two_level: {message}"):
        objective_of("two_level", **options)
