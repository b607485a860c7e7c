"""q and robust risk of each divergence against numerical solvers, root finding and linear programs."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import LinearConstraint, NonlinearConstraint, brentq, linprog, minimize, minimize_scalar
from scipy.special import logsumexp, rel_entr

from droseg.sampling import (
    KL,
    ChiSquare,
    CVaR,
    build_divergence,
    effective_sample_size,
    hardness_probabilities,
    kl_to_uniform,
    solve_beta,
    solve_beta_for_kl,
)


def random_losses(seed: int, size: int = 9) -> np.ndarray:
    return np.random.default_rng(seed).gamma(2.0, 0.3, size)


def chi_square(q: np.ndarray) -> float:
    return float(((len(q) * q - 1.0) ** 2).sum() / (2.0 * len(q)))


def solve(losses: np.ndarray, penalty=None, ball=None) -> tuple[np.ndarray, float]:
    """Return the maximizer over the simplex and its value, by scipy's SLSQP from the uniform distribution."""
    size = len(losses)
    constraints = [{"type": "eq", "fun": lambda q: q.sum() - 1.0}]
    if ball is not None:
        constraints.append({"type": "ineq", "fun": ball})
    result = minimize(
        lambda q: -(q @ losses) + (penalty(q) if penalty else 0.0),
        np.full(size, 1.0 / size),
        method="SLSQP",
        bounds=[(0.0, 1.0)] * size,
        constraints=constraints,
        options={"ftol": 1e-12, "maxiter": 2000},
    )
    # 8: at the optimum its line search finds no step beyond rounding; the comparison then decides.
    assert result.status in (0, 8), result.message
    return result.x, -float(result.fun)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("beta", [0.5, 3.0, 20.0])
def test_the_kl_problem_is_solved(seed: int, beta: float):
    losses = random_losses(seed)
    q, value = solve(losses, lambda q: rel_entr(q, 1 / 9).sum() / beta)
    np.testing.assert_allclose(KL(beta).probabilities(losses), q, atol=1e-4)
    assert KL(beta).risk(losses) == pytest.approx(value, abs=1e-8)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("beta", [0.5, 3.0, 20.0])
def test_the_chi_square_penalty_is_solved(seed: int, beta: float):
    losses = random_losses(seed)
    q, value = solve(losses, lambda q: chi_square(q) / beta)
    np.testing.assert_allclose(ChiSquare(beta).probabilities(losses), q, atol=1e-4)
    assert ChiSquare(beta).risk(losses) == pytest.approx(value, abs=1e-8)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("rho", [0.05, 0.5, 2.0, 3.9])
def test_the_chi_square_ball_is_solved_and_has_its_effective_sample_size(seed: int, rho: float):
    losses = random_losses(seed)
    q, value = solve(losses, ball=lambda q: rho - chi_square(q))
    ours = ChiSquare(rho=rho).probabilities(losses)
    np.testing.assert_allclose(ours, q, atol=1e-4)
    assert ChiSquare(rho=rho).risk(losses) == pytest.approx(value, abs=1e-7)
    assert chi_square(ours) == pytest.approx(rho, rel=1e-9)
    assert 1.0 / (ours**2).sum() == pytest.approx(9 / (1 + 2 * rho), rel=1e-9)


def test_the_chi_square_ball_agrees_with_an_interior_point_solver_too():
    losses = random_losses(7, 20)
    result = minimize(
        lambda q: -(q @ losses),
        np.full(20, 1 / 20),
        jac=lambda q: -losses,
        hess=lambda q: np.zeros((20, 20)),
        method="trust-constr",
        bounds=[(0.0, 1.0)] * 20,
        constraints=[
            LinearConstraint(np.ones(20), 1.0, 1.0),
            NonlinearConstraint(
                chi_square,
                -np.inf,
                0.8,
                jac=lambda q: (20 * q - 1)[None],
                hess=lambda q, v: 20 * v[0] * np.eye(20),
            ),
        ],
        options={"gtol": 1e-10, "xtol": 1e-12, "maxiter": 3000},
    )
    assert ChiSquare(rho=0.8).risk(losses) == pytest.approx(-float(result.fun), abs=1e-6)
    np.testing.assert_allclose(ChiSquare(rho=0.8).probabilities(losses), result.x, atol=1e-4)


def test_a_ball_that_holds_every_distribution_leaves_the_largest_losses_alone():
    tied = np.array([0.2, 0.9, 0.9, 0.1])
    for rho in (0.5, 0.51, 100.0):  # (N / ties - 1) / 2 = 0.5
        assert ChiSquare(rho=rho).probabilities(tied).tolist() == [0.0, 0.5, 0.5, 0.0]
    inside = ChiSquare(rho=0.4999).probabilities(tied)
    assert chi_square(inside) == pytest.approx(0.4999, rel=1e-9)
    assert inside[1] == inside[2]


@pytest.mark.parametrize("spread", [1e-12, 1e-6, 1.0, 1e6, 1e40])
@pytest.mark.parametrize("rho", [1e-6, 0.3, 2.0])
def test_the_ball_is_met_exactly_at_any_scale_of_the_losses(spread: float, rho: float):
    losses = spread * random_losses(1, 500)
    assert chi_square(ChiSquare(rho=rho).probabilities(losses)) == pytest.approx(rho, rel=1e-6)


def test_losses_a_rounding_error_apart_are_told_apart_or_equal_but_never_nan():
    for losses in ([4.0, 4.0 + 1e-15, 4.0 - 1e-15, 3.9], [1.0, 1.0 + 2**-52, 1.0], [0.0, 5e-324, 0.0], [1e-320, 0.0]):
        for divergence in (ChiSquare(rho=0.2), ChiSquare(1e6), CVaR(0.5), KL(1e6)):
            q = divergence.probabilities(np.array(losses))
            assert q.sum() == pytest.approx(1.0)
            assert (q >= 0.0).all()
            assert np.isfinite(divergence.risk(np.array(losses)))


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("alpha", [0.05, 0.1, 0.25, 1 / 3, 0.5, 0.77, 1.0])
def test_cvar_is_the_optimum_of_the_linear_program(seed: int, alpha: float):
    losses = random_losses(seed, 30)
    result = linprog(-losses, A_eq=np.ones((1, 30)), b_eq=[1.0], bounds=(0.0, 1.0 / (alpha * 30)), method="highs")
    q = CVaR(alpha).probabilities(losses)
    assert CVaR(alpha).risk(losses) == pytest.approx(-result.fun, rel=1e-9)
    assert q @ losses == pytest.approx(-result.fun, rel=1e-9)
    np.testing.assert_allclose(q, result.x, atol=1e-9)


@pytest.mark.parametrize("alpha", [0.1, 0.3, 0.9, 1.0])
def test_cvar_is_the_minimum_of_rockafellar_and_uryasev(alpha: float):
    losses = random_losses(5, 40)

    def value(t: float) -> float:
        return t + np.maximum(0.0, losses - t).mean() / alpha

    best = minimize_scalar(value, bounds=(losses.min(), losses.max()), method="bounded", options={"xatol": 1e-12}).fun
    best = min(best, *(value(t) for t in losses))  # a piecewise linear function has its minimum at a kink
    assert CVaR(alpha).risk(losses) == pytest.approx(best, rel=1e-12)


def test_cvar_of_ties_shares_what_is_left_among_them():
    q = CVaR(0.5).probabilities(np.array([3.0, 1.0, 1.0, 0.0]))  # half of 4 cases: one of them alone, one by two
    np.testing.assert_allclose(q, [0.5, 0.25, 0.25, 0.0])
    np.testing.assert_allclose(CVaR(0.25).probabilities(np.array([2.0, 2.0, 2.0, 0.0])), [1 / 3, 1 / 3, 1 / 3, 0.0])
    np.testing.assert_allclose(CVaR(0.1).probabilities(np.array([2.0, 5.0, 3.0])), [0.0, 1.0, 0.0])  # 0.3 of a case


@pytest.mark.parametrize("size", [10, 30, 70, 1000])
def test_cvar_counts_whole_cases_in_spite_of_rounding(size: int):
    # 0.1 * 30 is 3.0000000000000004 in floating point; that is three cases.
    q = CVaR(0.1).probabilities(np.arange(float(size)))
    assert (q > 0).sum() == size // 10
    np.testing.assert_allclose(q[q > 0], 10 / size)


def test_without_robustness_every_problem_is_the_mean():
    losses = random_losses(0)
    for divergence in (KL(0.0), ChiSquare(0.0), ChiSquare(rho=0.0), CVaR(1.0)):
        np.testing.assert_allclose(divergence.probabilities(losses), 1 / 9, rtol=1e-12)
        assert divergence.risk(losses) == pytest.approx(losses.mean(), rel=1e-12)


def test_a_rule_gives_one_case_the_weight_it_gives_it_among_all():
    losses = random_losses(3)
    for divergence in (KL(3.0), ChiSquare(3.0), ChiSquare(rho=0.7), ChiSquare(rho=99.0), CVaR(0.4)):
        rule = divergence.fit(losses)
        assert [rule.log_weight(float(loss)) for loss in losses] == pytest.approx(rule.log_weights(losses).tolist())


def test_the_divergence_of_a_name_takes_its_own_parameter():
    losses = random_losses(0)
    for divergence, expected in (
        (build_divergence("kl", 2.0), KL(2.0)),
        (build_divergence("chi2", 2.0), ChiSquare(2.0)),
        (build_divergence("chi2", 2.0, rho=0.5), ChiSquare(rho=0.5)),
        (build_divergence("cvar", 2.0, alpha=0.3), CVaR(0.3)),
    ):
        np.testing.assert_array_equal(divergence.probabilities(losses), expected.probabilities(losses))


@pytest.mark.parametrize("scale", [1e-5, 1.0, 1e4])
@pytest.mark.parametrize("target", [0.05, 0.3, 0.5, 0.95, 0.9999])
def test_solved_betas_agree_with_scipys_root_finding(target: float, scale: float):
    import torch

    losses = scale * random_losses(2, 300)
    tensor = torch.from_numpy(losses)

    def log_q(beta: float) -> np.ndarray:
        return beta * losses - logsumexp(beta * losses)

    def ess(beta: float) -> float:
        return float(np.exp(-logsumexp(2 * log_q(beta)))) / 300 - target

    wanted = brentq(ess, 0.0, 1e3 / scale, xtol=1e-300, rtol=1e-14)
    found = solve_beta(tensor, target, max_beta=1e10)
    assert found == pytest.approx(wanted, rel=1e-5 if target > 0.99 else 1e-8)
    assert effective_sample_size(hardness_probabilities(tensor, found)) / 300 == pytest.approx(target, rel=1e-9)

    nats = -np.log(target)

    def kl(beta: float) -> float:
        return float((np.exp(log_q(beta)) * log_q(beta)).sum() + np.log(300)) - nats

    wanted = brentq(kl, 0.0, 1e4 / scale, xtol=1e-300, rtol=1e-14)
    found = solve_beta_for_kl(tensor, nats, max_beta=1e10)
    assert found == pytest.approx(wanted, rel=1e-5 if target > 0.99 else 1e-8)
    assert kl_to_uniform(hardness_probabilities(tensor, found)) == pytest.approx(nats, rel=1e-9, abs=1e-12)


def test_a_kl_target_that_cannot_be_met_ends_at_a_bound():
    import torch

    tied = torch.tensor([1.0, 1.0, 0.5, 0.0], dtype=torch.float64)  # at most log(4 / 2)
    assert solve_beta_for_kl(tied, 0.7, max_beta=50.0) == 50.0
    assert solve_beta_for_kl(torch.full((5,), 2.0), 0.7) == 0.0
    assert solve_beta_for_kl(tied, 0.0) == 0.0
    for tiny in (1e-17, 1e-15):
        assert 0.0 <= solve_beta_for_kl(tied, tiny) < 1e-5
    for bad in (-0.1, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="target_kl"):
            solve_beta_for_kl(tied, bad)
