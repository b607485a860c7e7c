"""Effective sample size, the beta for a target, and the robust risk, against closed forms."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch

from droseg.sampling import effective_sample_size, hardness_probabilities, robust_risk, solve_beta


def test_effective_sample_size_is_n_if_uniform_and_1_if_one_case_takes_all():
    assert effective_sample_size(torch.full((8,), 1 / 8)) == pytest.approx(8.0)
    assert effective_sample_size(torch.tensor([0.0, 1.0, 0.0])) == 1.0
    assert effective_sample_size(torch.tensor([0.5, 0.5, 0.0, 0.0])) == pytest.approx(2.0)


@pytest.mark.parametrize("scale", [1e-3, 1.0, 100.0])
@pytest.mark.parametrize("target", [0.1, 0.5, 0.9, 0.99])
def test_solved_beta_meets_the_target(target: float, scale: float):
    loss = scale * torch.rand(200, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    beta = solve_beta(loss, target, max_beta=1e6)
    assert effective_sample_size(hardness_probabilities(loss, beta)) / 200 == pytest.approx(target, rel=1e-6)


def test_solved_beta_of_two_cases_is_the_closed_form():
    # p = 1 / (1 + exp(-beta d)): ESS = 1 / (p^2 + (1-p)^2) = 2 * 0.8 gives p = (1 + sqrt(1/4)) / 2 = 3/4.
    assert solve_beta(torch.tensor([1.0, 3.0]), 0.8) == pytest.approx(math.log(3) / 2, rel=1e-9)


def test_a_smaller_target_needs_a_larger_beta():
    loss = torch.rand(50, generator=torch.Generator().manual_seed(1))
    betas = [solve_beta(loss, target) for target in (1.0, 0.9, 0.7, 0.5, 0.3, 0.1, 0.05)]
    assert betas[0] == 0.0
    assert all(a < b for a, b in itertools.pairwise(betas))


def test_targets_that_ties_rule_out_end_at_a_bound():
    assert solve_beta(torch.full((10,), 2.0), 0.5) == 0.0
    three_share_the_top = torch.tensor([1.0, 1.0, 1.0, 0.5, 0.0])
    assert solve_beta(three_share_the_top, 0.5, max_beta=123.0) == 123.0  # at least 3 of 5
    beta = solve_beta(three_share_the_top, 0.7)
    assert effective_sample_size(hardness_probabilities(three_share_the_top, beta)) == pytest.approx(3.5)


@pytest.mark.parametrize("target", [0.0, -0.1, 1.1])
def test_a_target_outside_its_range_is_refused(target: float):
    with pytest.raises(ValueError, match="target_ess"):
        solve_beta(torch.tensor([1.0, 2.0]), target)


def test_robust_risk_is_the_log_mean_exp():
    loss, beta = np.array([0.2, 1.0, 0.7]), 3.0
    assert robust_risk(torch.tensor(loss), beta) == pytest.approx(
        math.log(np.exp(beta * loss).mean()) / beta, rel=1e-12
    )


def test_robust_risk_is_the_value_of_the_inner_maximum():
    # max over q of sum q L - KL(q || uniform) / beta, at q = softmax(beta L) and smaller anywhere else.
    loss, beta = torch.rand(6, generator=torch.Generator().manual_seed(2), dtype=torch.float64), 5.0

    def value(q: torch.Tensor) -> float:
        return float((q * loss).sum() - (q * (q * 6).log()).sum() / beta)

    best = hardness_probabilities(loss, beta)
    assert robust_risk(loss, beta) == pytest.approx(value(best), rel=1e-12)
    for seed in range(20):
        other = torch.softmax(torch.randn(6, generator=torch.Generator().manual_seed(seed), dtype=torch.float64), 0)
        assert value(other) < value(best)


def test_robust_risk_goes_from_the_mean_to_the_maximum():
    loss = torch.tensor([0.5, 2.0, 1.0, 0.1], dtype=torch.float64)
    mean, variance = float(loss.mean()), float(loss.var(correction=0))
    assert robust_risk(loss, 0.0) == pytest.approx(mean, rel=1e-12)
    for beta in (1e-15, 1e-9, 1e-6):
        assert robust_risk(loss, beta) == pytest.approx(mean + beta * variance / 2, rel=1e-10)
    assert robust_risk(loss, 1e6) == pytest.approx(2.0, abs=2e-6)
    values = [robust_risk(loss, beta) for beta in (0.0, 0.1, 1.0, 10.0, 100.0)]
    assert values == sorted(values)


def test_robust_risk_of_huge_losses_is_finite():
    assert robust_risk(torch.tensor([1e5, 0.0]), 1e4) == pytest.approx(1e5, rel=1e-9)
    assert robust_risk(torch.tensor([-1e5, -1e5]), 1e4) == pytest.approx(-1e5, rel=1e-12)
