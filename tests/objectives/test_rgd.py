"""RGD against its published update."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from droseg.errors import InputError
from droseg.sampling import robust_risk


@pytest.mark.parametrize("tau", [1.0, 3.0])
def test_the_weights_are_the_clipped_and_scaled_exponential(objective_of, tau: float):
    losses = [0.0, 0.3, 1.0, 2.0, 50.0, 3.0]
    weights = objective_of("rgd", tau=tau).weights([0, 1, 2, 3, 4, 5], torch.tensor(losses))
    expected = [math.exp(min(loss, tau) / (tau + 1.0)) for loss in losses]
    assert weights.tolist() == pytest.approx(expected, rel=1e-6)
    assert 1.0 <= min(expected) <= max(expected) < math.e


def test_a_step_is_the_gradient_of_the_exponential_risk_below_the_clip():
    # The pseudo-gradient mean(exp(beta L) grad L) is the gradient of mean(exp(beta L)) / beta, with beta = 1/(tau+1).
    from droseg.objectives import build_objective

    objective = build_objective("rgd", ["a", "b", "c"], batch_size=3, num_batches=1, rivals={"rgd": {"tau": 4.0}})
    theta = torch.tensor([0.3], dtype=torch.float64, requires_grad=True)
    scale = torch.tensor([1.0, 2.0, 0.5], dtype=torch.float64)
    losses = (scale * theta - 1.0) ** 2
    (step,) = torch.autograd.grad((objective.weights([0, 1, 2], losses) * losses).mean(), theta)
    again = (scale * theta - 1.0) ** 2
    (truth,) = torch.autograd.grad((again / 5.0).exp().mean() * 5.0, theta)
    assert float(step) == pytest.approx(float(truth), rel=1e-12)


def test_normalized_weights_average_to_1_over_the_global_batch(objective_of):
    losses = torch.tensor([0.1, 0.4, 0.9, 0.2])
    plain, normalized = (objective_of("rgd", normalize=n).weights([0, 1, 2, 3], losses) for n in (False, True))
    assert float(normalized.mean()) == pytest.approx(1.0, rel=1e-6)
    torch.testing.assert_close(normalized, plain / plain.mean())


def test_weights_carry_no_gradient(objective_of):
    losses = torch.tensor([0.1, 0.4], requires_grad=True)
    assert not objective_of("rgd").weights([0, 1], losses).requires_grad


def test_the_risk_is_the_robust_one_at_the_scale_of_the_weights(objective_of):
    objective = objective_of("rgd", tau=1.0)
    losses = np.random.default_rng(0).random(8)
    objective.update(range(8), losses)
    assert objective.risk() == pytest.approx(robust_risk(losses, 0.5))
    assert objective.risk() == pytest.approx(2.0 * math.log(np.exp(losses / 2.0).mean()))


@pytest.mark.parametrize("tau", [0.0, -1.0, math.inf])
def test_a_clip_that_is_no_positive_number_is_refused(objective_of, tau: float):
    with pytest.raises(InputError, match=f"objective rgd: tau is {tau}"):
        objective_of("rgd", tau=tau)
