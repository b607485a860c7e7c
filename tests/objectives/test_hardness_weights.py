"""Importance weights of altered draws against direct numpy, and what they are for: the expectation under the target."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.special import softmax

from droseg.errors import InputError
from droseg.objectives import Objective, build_objective
from droseg.sampling import ChiSquare, CVaR

SIZE = 12
STALE = np.random.default_rng(0).gamma(4.0, 0.1, SIZE)
NEW = STALE * np.random.default_rng(1).uniform(0.8, 1.1, SIZE)


def objective_of(batch_size: int = SIZE, **options) -> Objective:
    """Return an objective whose history holds STALE, every case visited once."""
    robustness = {} if "divergence" in options else {"beta": 4.0}
    options = {**robustness, "importance_weighting": True, "initial_loss": 1.0, **options}
    objective = build_objective(
        "hardness", [str(i) for i in range(SIZE)], batch_size=batch_size, num_batches=10, **options
    )
    objective.update(range(SIZE), STALE)
    np.testing.assert_allclose(objective.history.loss, STALE)
    return objective


def weigh(objective: Objective, losses: np.ndarray) -> tuple[list[int], np.ndarray]:
    """Draw the next batch and return it with its weights."""
    batch = [int(index) for index in next(iter(objective.sampler))]
    objective.begin_batch(batch)
    return batch, objective.weights(batch, torch.from_numpy(losses[batch])).numpy()


def expected_weights(batch: list[int], target: np.ndarray, drawn: np.ndarray) -> np.ndarray:
    """Return target over draw probability, divided by its mean over the batch, clipped to [0.1, 10]."""
    ratio = target[batch] / drawn[batch]
    return np.clip(ratio / ratio.mean(), 0.1, 10.0)


@pytest.mark.parametrize("momentum", [0.0, 0.4])
@pytest.mark.parametrize("replacement", [False, True])
@pytest.mark.parametrize(
    ("options", "drawn"),
    [
        ({"mix": 0.3}, 0.7 * softmax(4.0 * STALE) + 0.3 / SIZE),
        ({"cap": 0.5}, softmax(4.0 * np.minimum(STALE, np.sort(STALE)[5]))),
        ({"floor": 0.9}, np.maximum(softmax(4.0 * STALE), 0.9 / SIZE)),
        (
            {"trim": 0.25, "mix": 0.2},
            0.8 * softmax(np.where(np.sort(STALE)[8] >= STALE, 4.0 * STALE, -np.inf)) + 0.2 / SIZE,
        ),
    ],
    ids=["mix", "cap", "floor", "trim"],
)
def test_altered_kl_draws_are_weighed_target_over_draw(options, drawn, replacement, momentum):
    objective = objective_of(10, replacement=replacement, momentum=momentum, **options)
    batch, weights = weigh(objective, NEW)
    target = np.exp(4.0 * (momentum * STALE + (1.0 - momentum) * NEW))
    np.testing.assert_allclose(weights, expected_weights(batch, target, drawn / drawn.sum()), rtol=1e-9)
    assert replacement == (len(set(batch)) < len(batch))


@pytest.mark.parametrize(
    ("options", "q", "target"),
    [
        (
            {"divergence": "chi2", "rho": 0.8, "mix": 0.2},
            ChiSquare(rho=0.8).probabilities(STALE),
            np.exp(ChiSquare(rho=0.8).fit(STALE).log_weights(NEW)),
        ),
        (
            {"divergence": "cvar", "alpha": 0.6, "mix": 0.2},
            CVaR(0.6).probabilities(STALE),
            np.exp(CVaR(0.6).fit(STALE).log_weights(NEW)),
        ),
    ],
    ids=["chi2", "cvar"],
)
def test_the_target_of_other_divergences_is_their_own_rule_at_the_new_loss(options, q, target):
    batch, weights = weigh(objective_of(**options), NEW)
    np.testing.assert_allclose(weights, expected_weights(batch, target, 0.8 * q + 0.2 / SIZE), rtol=1e-9)
    assert weights.min() == pytest.approx(0.1), "a case that the divergence forgets keeps the smallest weight"


def test_a_beta_that_changed_since_the_draw_is_corrected_for():
    objective = objective_of(beta=4.0)
    batch = [int(index) for index in next(iter(objective.sampler))]
    objective.sampler.beta = 9.0
    objective.begin_batch(batch)
    weights = objective.weights(batch, torch.from_numpy(NEW[batch])).numpy()
    expected = expected_weights(batch, np.exp(9.0 * NEW), softmax(4.0 * STALE))
    np.testing.assert_allclose(weights, expected, rtol=1e-9)
    # The next draw is plain again: no normalization.
    batch, weights = weigh(objective, NEW)
    np.testing.assert_allclose(weights, np.clip(np.exp(9.0 * (NEW - STALE))[batch], 0.1, 10.0), rtol=1e-9)


def test_a_forced_case_is_weighed_by_its_share_of_the_epoch():
    objective = objective_of(4, max_age=1, beta=1.0)
    for _ in range(10):
        objective.update([0, 1, 2], STALE[:3])  # nine cases of twelve are overdue: nine of the epoch's 40 slots
    sampler = objective.sampler
    batch = [int(index) for index in next(iter(sampler))]
    draw = objective.begin_batch(batch)
    free = softmax(STALE)
    share = np.where(np.arange(SIZE) < 3, 0.0, 1 / 40) + (1 - 9 / 40) * free
    np.testing.assert_allclose(draw.probability, share[batch], rtol=1e-9)
    weights = objective.weights(batch, torch.from_numpy(NEW[batch])).numpy()
    np.testing.assert_allclose(weights, expected_weights(batch, np.exp(NEW), share), rtol=1e-9)


def test_first_visits_weigh_1_and_are_left_out_of_the_normalization():
    objective = build_objective(
        "hardness", list("abcd"), batch_size=4, num_batches=1, beta=2.0, mix=0.5, importance_weighting=True
    )
    objective.update([0, 2], [1.0, 1.5])
    batch = [int(index) for index in next(iter(objective.sampler))]
    draw = objective.begin_batch(batch)
    new = np.array([1.1, 2.0, 1.2, 3.0])
    weights = dict(zip(batch, objective.weights(batch, torch.tensor([new[i] for i in batch])).tolist(), strict=True))
    ratio = {i: math.exp(2.0 * new[i]) / draw.probability[batch.index(i)] for i in (0, 2)}
    mean = sum(ratio.values()) / 2
    assert weights == pytest.approx({0: ratio[0] / mean, 1: 1.0, 2: ratio[2] / mean, 3: 1.0}, rel=1e-6)


def test_repeats_of_a_case_share_one_weight_one_visit_and_one_momentum_step():
    # Two patches per case: L_new is the mean of the two, as the history takes it.
    objective = objective_of(2, momentum=0.5, beta=4.0)
    a, b = (int(index) for index in next(iter(objective.sampler)))
    objective.begin_batch([a, a, b, b])
    losses = torch.tensor([STALE[a] + 0.1, STALE[a] + 0.3, STALE[b], STALE[b] - 0.2], dtype=torch.float64)
    weights = objective.weights([a, a, b, b], losses)
    assert weights.tolist() == pytest.approx([math.exp(0.4)] * 2 + [math.exp(-0.2)] * 2)
    before = objective.history.visits.copy()
    objective.update([a, a, b, b], losses.tolist())
    assert (objective.history.visits - before)[[a, b]].tolist() == [1, 1]
    assert objective.history.loss[[a, b]] == pytest.approx([STALE[a] + 0.1, STALE[b] - 0.05])


def test_weights_carry_no_gradient_and_keep_the_type_of_the_losses():
    for dtype in (torch.float32, torch.float64):
        objective = objective_of(mix=0.1)
        batch = [int(index) for index in next(iter(objective.sampler))]
        objective.begin_batch(batch)
        weights = objective.weights(batch, torch.tensor(NEW[batch], dtype=dtype, requires_grad=True))
        assert weights.dtype == dtype
        assert not weights.requires_grad


def test_the_clipped_share_counts_weights_on_both_sides():
    objective = objective_of(beta=30.0, mix=0.9)
    _, weights = weigh(objective, STALE)
    clipped = ((weights <= 0.1 + 1e-12) | (weights >= 10.0 - 1e-12)).mean()
    assert 0 < clipped < 1
    assert objective.epoch_completed(1)["clipped_weights"] == pytest.approx(clipped)


@pytest.mark.parametrize(
    "options",
    [{}, {"mix": 0.5}, {"cap": 0.5}, {"floor": 0.9}, {"mix": 0.3, "trim": 0.1}],
    ids=["plain", "mix", "cap", "floor", "mix and trim"],
)
def test_weighted_draws_have_the_expectation_of_the_target(options):
    # E_p[w g] / E_p[w] = E_target[g] for any g; here g is 1 for one half of the cases, and the losses have moved.
    objective = objective_of(400, beta=2.0, replacement=True, **options)
    moved = STALE + np.linspace(-0.4, 0.4, SIZE)
    g, target = np.arange(SIZE) % 2 == 0, softmax(2.0 * moved)
    estimates, plain = [], []
    iterator = iter(objective.sampler)
    for _ in range(100):
        try:
            batch = next(iterator)
        except StopIteration:
            iterator = iter(objective.sampler)
            batch = next(iterator)
        objective.begin_batch(batch)
        weights = objective.weights(batch, torch.from_numpy(moved[batch])).numpy()
        assert ((weights > 0.1) & (weights < 10.0)).all(), "no clipping, which would bias it"
        estimates.append(weights @ g[batch] / weights.sum())
        plain.append(g[batch].mean())
    error = np.std(estimates) / math.sqrt(len(estimates))
    assert abs(np.mean(estimates) - target[g].sum()) < 4 * error + 1e-3
    assert abs(np.mean(plain) - target[g].sum()) > 4 * error + 1e-3, "without weights it is another one"


def test_warm_up_raises_beta_linearly_and_then_holds_it():
    objective = build_objective("hardness", list("abcd"), batch_size=2, num_batches=1, beta=8.0, warmup_epochs=4)
    betas = [objective.beta] + [objective.epoch_completed(epoch)["beta"] for epoch in range(1, 8)]
    assert betas == [0.0, 2.0, 4.0, 6.0, 8.0, 8.0, 8.0, 8.0]
    objective.update([0, 1, 2, 3], [1.0, 2.0, 3.0, 4.0])
    assert objective.sampler.draw().beta == 8.0
    np.testing.assert_allclose(objective.probabilities(), softmax(8.0 * np.array([1.0, 2.0, 3.0, 4.0])))


def test_warm_up_leads_to_a_solved_beta_too():
    objective = build_objective("hardness", list("abcd"), batch_size=2, num_batches=1, target_ess=0.5, warmup_epochs=2)
    objective.update([0, 1, 2, 3], [0.1, 0.2, 0.3, 0.4])
    half, full = (objective.epoch_completed(epoch)["beta"] for epoch in (1, 2))
    assert full == pytest.approx(2 * half)
    assert 1.0 / float((objective.probabilities() ** 2).sum()) == pytest.approx(2.0)


@pytest.mark.parametrize("options", [{"divergence": "cvar", "alpha": 0.5}, {"divergence": "chi2", "rho": 0.5}])
def test_warm_up_without_a_beta_is_refused(options):
    with pytest.raises(InputError, match="has no beta to raise here"):
        build_objective("hardness", list("abcd"), batch_size=2, num_batches=1, warmup_epochs=3, mix=0.1, **options)


def test_the_targets_of_other_divergences_are_exact_from_the_start():
    for divergence, tail in (("chi2", 0.25), ("cvar", 0.25)):
        objective = build_objective(
            "hardness", [str(i) for i in range(40)], batch_size=2, num_batches=1,
            divergence=divergence, target_ess=tail, max_age=5,
        )  # fmt: skip
        objective.update(range(40), np.random.default_rng(0).random(40))
        objective.hardness_sampler.start_epoch()
        assert 1.0 / float((objective.probabilities() ** 2).sum()) == pytest.approx(10.0)
        assert objective.beta == 0.0


def test_the_risk_is_that_of_the_problem():
    losses = np.random.default_rng(0).random(40)
    for options, expected in (
        ({"beta": 3.0}, math.log(np.exp(3.0 * losses).mean()) / 3.0),
        ({"divergence": "cvar", "alpha": 0.25, "mix": 0.1}, np.sort(losses)[-10:].mean()),
        ({"divergence": "chi2", "rho": 0.5, "mix": 0.1}, ChiSquare(rho=0.5).probabilities(losses) @ losses),
    ):
        objective = build_objective("hardness", [str(i) for i in range(40)], batch_size=2, num_batches=1, **options)
        objective.update(range(40), losses)
        assert objective.risk() == pytest.approx(expected)
