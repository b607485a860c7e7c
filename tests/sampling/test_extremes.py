"""No NaN, no overflow, no case lost in silence: random losses and parameters of any size."""

from __future__ import annotations

import logging
import math

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy.special import log_softmax

from droseg.handlers import HardnessHandler
from droseg.objectives import build_objective
from droseg.sampling import HardnessWeightedBatchSampler, LossHistory

LOSSES = st.lists(st.floats(-1e6, 1e6) | st.sampled_from([0.0, 1.0, 1.0 + 1e-6, 1e6]), min_size=1, max_size=12)
BETAS = st.floats(0.0, 1e6) | st.sampled_from([0.0, 1e-300, 1.0, 1e6])
VARIANTS = st.sampled_from(
    [
        {},
        {"replacement": True},
        {"floor": 1e-4},
        {"mix": 0.1},
        {"cap": 0.8},
        {"cap": 0.8, "trim": 0.2, "max_age": 2},
        {"divergence": "chi2", "mix": 0.1},
        {"divergence": "chi2", "rho": 0.5, "max_age": 1},
        {"divergence": "chi2", "trim": 0.3, "mix": 0.1},
        {"divergence": "cvar", "alpha": 0.3, "mix": 0.1},
        {"divergence": "cvar", "alpha": 0.3, "max_age": 1, "cap": 0.5},
    ]
)


BALL = {"divergence": "chi2", "rho": 0.5, "max_age": 1}


def history_with(losses: list[float]) -> LossHistory:
    history = LossHistory([f"case{index}" for index in range(len(losses))])
    history.update(range(len(losses)), losses)
    return history


@settings(max_examples=150, deadline=None)
@example(losses=[0.0, 0.0, 0.0, 1.0, 5e-230], beta=0.0, variant=BALL, rises=-1.0, seed=0)
@example(losses=[0.0, 5e-230, -1.0], beta=0.0, variant=BALL, rises=0.0, seed=0)
@given(losses=LOSSES, beta=BETAS, variant=VARIANTS, rises=st.floats(-1e6, 1e6), seed=st.integers(0, 99))
def test_draws_are_always_whole_batches_with_finite_probabilities(losses, beta, variant, rises, seed):
    size, history = len(losses), history_with(losses)
    batch_size = min(size, 3)
    sampler = HardnessWeightedBatchSampler(history, beta, batch_size, 4, seed=seed, **variant)
    with np.errstate(all="raise", under="ignore"):
        for batch in sampler:
            assert len(batch) == batch_size
            assert all(0 <= index < size for index in batch)
            if not variant.get("replacement"):
                assert len(set(batch)) == batch_size
            draw = sampler.pending[-1]
            assert all(math.isfinite(p) and 0.0 <= p <= 1.0 for p in draw.probability)
            q = sampler.probabilities()
            assert np.isfinite(q).all()
            assert q.sum() == pytest.approx(1.0, abs=1e-12)
            history.update(batch, [losses[index] + rises for index in batch])


@settings(max_examples=100, deadline=None)
@given(losses=LOSSES, beta=BETAS)
def test_log_probabilities_are_scipys_and_lost_cases_are_counted(losses, beta):
    sampler = HardnessWeightedBatchSampler(history_with(losses), beta, 1)
    expected = log_softmax(beta * (np.array(losses) - max(losses)))
    for index in range(len(losses)):
        found = sampler._tree.log_weight(index) - sampler._tree.log_total
        assert found == pytest.approx(
            expected[index], rel=1e-9, abs=1e-3 if beta * max(map(abs, losses)) > 1e9 else 1e-9
        )
    bound = math.log(np.finfo(float).tiny)
    if not (np.abs(expected - bound) < 1e-2).any():
        assert sampler.num_underflowed() == (expected < bound).sum()


@pytest.mark.parametrize(("options", "warned"), [({}, True), ({"mix": 0.01}, False), ({"max_age": 5}, False)])
def test_cases_lost_to_underflow_are_in_the_log(options, warned, run_epoch_end, caplog):
    # exp(-1000) is below the smallest floating-point number: such a case is never drawn again.
    objective = build_objective("hardness", list("abcd"), batch_size=1, num_batches=1, beta=1.0, **options)
    objective.update([0, 1, 2, 3], [1000.0, 999.0, 0.0, -5.0])
    assert (objective.probabilities() == 0.0).sum() == (2 if not options.get("mix") else 0)
    metrics = run_epoch_end(objective)
    assert metrics["sampler/underflow"] == (2 if warned else 0)
    assert ("2 cases have a probability below the smallest floating-point number" in caplog.text) == warned


@pytest.fixture
def run_epoch_end(caplog):
    """Return what runs the handler's end of an epoch on an engine of ignite, and gives its metrics."""
    from ignite.engine import Engine

    def run(objective):
        engine = Engine(lambda engine, batch: None)
        engine.state.epoch = 1
        with caplog.at_level(logging.WARNING):
            HardnessHandler(objective).epoch_completed(engine)
        return engine.state.metrics

    return run


@pytest.mark.parametrize("absurd", [1e101, -1e101, 1e308, math.inf, math.nan])
def test_a_loss_that_no_product_with_beta_would_survive_is_refused_and_named(absurd, caplog):
    history = history_with([1.0, 2.0, 3.0])
    sampler = HardnessWeightedBatchSampler(history, 1e6, 2)
    with caplog.at_level(logging.WARNING):
        assert history.update([0, 1], [absurd, 2.5]) == [1]
    assert history.loss.tolist() == [1.0, 2.5, 3.0]
    assert "case0" in caplog.text
    assert np.isfinite(sampler.probabilities()).all()


def test_the_largest_loss_and_beta_that_are_taken_draw_without_overflow():
    history = history_with([1e100, -1e100, 1e100, 0.0])
    for variant in ({}, {"divergence": "chi2", "mix": 0.1}, {"divergence": "chi2", "rho": 0.5, "mix": 0.1}):
        sampler = HardnessWeightedBatchSampler(history, 1e100, 2, **variant)
        with np.errstate(over="raise", invalid="raise"):
            expected = np.array([0.5, 0.0, 0.5, 0.0]) * (1 - sampler.mix) + sampler.mix / 4
            np.testing.assert_allclose(sampler.probabilities(), expected, atol=1e-12)
            if sampler.mix == 0.0:
                assert set(sampler.draw_batch()[0]) == {0, 2}


def test_a_history_whose_losses_all_rise_above_the_trim_is_drawn_by_new_limits():
    # All four cases go from 1..4 to 10..40 in the last step of an epoch: each is then above the old limit.
    for options in (
        {"beta": 2.0, "target_ess": 0.7},
        {"beta": 2.0, "target_kl": 0.1},
        {"beta": 2.0, "divergence": "chi2", "warmup_epochs": 3},
        {"divergence": "cvar", "alpha": 0.5},
    ):
        objective = build_objective("hardness", "abcd", batch_size=4, num_batches=1, trim=0.5, mix=0.1, **options)
        for factor in (1.0, 10.0):
            (batch,) = objective.sampler
            objective.begin_batch(batch)
            objective.update(batch, [factor * (index + 1.0) for index in batch])
        assert math.isfinite(objective.epoch_completed(1)["beta"])
        probability = objective.probabilities().numpy()
        assert probability.sum() == pytest.approx(1.0)
        assert probability[2:].tolist() == pytest.approx([0.025, 0.025]), "the two hardest are trimmed"
