"""Group-balanced sampling: who is drawn how often, and what is minimized."""

from __future__ import annotations

import numpy as np
import pytest

RARE, TYPICAL = [3, 5], [0, 1, 2, 4, 6, 7]


def test_every_group_has_the_same_share_and_every_case_of_it(objective_of):
    q = objective_of("group_balanced", axes=["anatomy"]).probabilities().numpy()
    np.testing.assert_allclose(q[RARE], 1 / 4)
    np.testing.assert_allclose(q[TYPICAL], 1 / 12)


def test_groups_are_combinations_or_axes_by_themselves(objective_of):
    product = objective_of("group_balanced")
    assert product.groups.names[0] == "anatomy=rare, site=x"
    np.testing.assert_allclose(product.probabilities()[5], 1 / 4)  # alone in its combination
    overlapping = objective_of("group_balanced", overlapping=True)
    # Four groups: rare has two cases, site x four.
    np.testing.assert_allclose(overlapping.probabilities()[5], 1 / 4 * 1 / 2 + 1 / 4 * 1 / 4)


def test_the_risk_is_the_mean_of_the_group_means_and_the_gradient_draws_by_it(objective_of):
    objective = objective_of("group_balanced", axes=["anatomy"])
    losses = np.random.default_rng(0).random(8)
    objective.update(range(8), losses)
    assert objective.risk() == pytest.approx((losses[RARE].mean() + losses[TYPICAL].mean()) / 2)
    assert objective.risk() == pytest.approx(float(objective.probabilities().numpy() @ losses))


@pytest.mark.parametrize("replacement", [True, False])
def test_a_case_is_twice_in_a_batch_only_with_replacement(objective_of, replacement: bool):
    objective = objective_of("group_balanced", axes=["anatomy"], replacement=replacement, num_batches=50)
    repeats = any(len(set(batch)) < len(batch) for batch in objective.sampler)
    assert repeats is replacement
