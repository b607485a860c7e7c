"""What the hardness handler measures in a real training, against direct computation; and when it warns."""

from __future__ import annotations

import logging
import math
import time

import numpy as np
import pytest
import torch
from ignite.engine import Engine, Events
from monai.engines import IterationEvents
from scipy.special import logsumexp, softmax

from droseg.handlers import HardnessHandler
from droseg.objectives import build_objective


@pytest.mark.parametrize("objective", ["hardness", "erm"])
def test_metrics_of_an_epoch_are_those_of_the_history(run_factory, tmp_path, objective):
    run = run_factory(tmp_path, objective=objective, epochs=3, num_batches=2, beta=5.0)
    unvisited = []

    @run.trainer.on(Events.EPOCH_COMPLETED)
    def compare() -> None:
        metrics, history, beta = run.trainer.state.metrics, run.objective.history, run.objective.beta
        q = softmax(beta * history.loss)
        risk = logsumexp(beta * history.loss, b=1 / 8) / beta if beta else history.loss.mean()
        expected = {
            "sampler/ess_fraction": 1 / (q**2).sum() / 8,
            "sampler/max_probability": q.max(),
            "sampler/batch_share": math.log(2 * q.max()),
            "sampler/lag": 0.0,
            "history/mean_loss": history.loss.mean(),
            "history/robust_risk": risk,
            "history/unvisited": (history.visits == 0).sum(),
        }
        assert {name: metrics[name] for name in expected} == pytest.approx(expected, rel=1e-9)
        assert metrics.get("sampler/beta", 0.0) == beta
        unvisited.append(metrics["history/unvisited"])

    run.trainer.run()
    assert unvisited[0] == 4


def test_beta_in_the_metrics_is_the_one_that_meets_the_target(run_factory, tmp_path):
    run = run_factory(tmp_path, epochs=4, target_ess=0.6)
    run.trainer.run()
    assert run.objective.history.visits.min() > 0
    assert run.trainer.state.metrics["sampler/ess_fraction"] == pytest.approx(0.6, rel=1e-6)
    assert run.trainer.state.metrics["sampler/beta"] == run.objective.beta


def test_importance_weights_report_how_many_were_clipped(run_factory, tmp_path):
    run = run_factory(tmp_path, epochs=4, beta=1000.0, importance_weighting=True)
    run.trainer.run()
    assert 0 < run.trainer.state.metrics["sampler/clipped_weights"] <= 1


def test_the_measured_lag_is_that_of_the_prefetching_workers(run_factory, tmp_path):
    # Two workers times prefetch 2: four batches are drawn before the first is trained, and each epoch starts anew.
    run = run_factory(tmp_path, epochs=2, num_workers=2, num_batches=10)
    run.trainer.run()
    assert run.trainer.state.metrics["sampler/lag"] == pytest.approx(np.mean([0, 1, 2, 3, 4, 4, 4, 4, 4, 4]))


def after_two_epochs(losses, caplog, **options) -> str:
    """Return what is logged at the end of two epochs whose history holds these losses."""
    name, case_ids = options.pop("name", "hardness"), [f"case{index}" for index in range(len(losses))]
    objective = build_objective(name, case_ids, **{"batch_size": 2, "num_batches": 1, **options})
    objective.update(range(len(losses)), losses)
    engine, handler = Engine(lambda engine, batch: None), HardnessHandler(objective)
    with caplog.at_level(logging.WARNING):
        handler.epoch_completed(engine)
        handler.epoch_completed(engine)
    return caplog.text


def test_a_collapse_is_warned_of_and_the_hardest_case_named(caplog):
    losses = np.linspace(0.1, 0.5, 100)
    losses[42] = 3.0
    text = after_two_epochs(losses, caplog, beta=10.0)
    assert "the draws collapse: effective sample size 1.0 of 100 cases" in text
    assert "case42" in text
    assert text.count("collapse") == 1, "a thing is said once"
    assert "caps the hardest case" in text


def test_with_replacement_nothing_caps_the_hardest_case(caplog):
    losses = np.full(100, 0.1)
    losses[42] = 3.0
    text = after_two_epochs(losses, caplog, beta=10.0, replacement=True)
    assert "collapse" in text
    assert "caps" not in text


def test_a_beta_without_effect_is_warned_of(caplog):
    losses = 0.3 + 0.001 * np.random.default_rng(0).random(100)
    text = after_two_epochs(losses, caplog, beta=10.0)
    assert "hardness changes next to nothing: effective sample size 100.0 %" in text
    assert "target_ess" in text


@pytest.mark.parametrize("options", [{"beta": 4.0}, {"name": "erm"}, {"target_ess": 0.5}])
def test_a_training_that_is_as_it_should_be_is_not_warned_of(caplog, options):
    losses = np.random.default_rng(0).random(100)
    assert after_two_epochs(losses, caplog, **options) == ""


def epochs_of(objective, losses, epochs, caplog) -> list[str]:
    """Draw and feed these losses back, on and on; return what is logged at the end of each epoch."""
    engine, handler, said = Engine(lambda engine, batch: None), HardnessHandler(objective), []
    for epoch in range(1, epochs + 1):
        for batch in objective.sampler:
            objective.begin_batch(batch)
            objective.update([int(i) for i in batch], [losses[int(i)] for i in batch])
        engine.state.epoch = epoch
        caplog.clear()
        handler.epoch_completed(engine)
        said.append(caplog.text)
    return said


def test_a_collapse_is_warned_of_although_other_cases_were_never_drawn(caplog):
    losses = np.full(100, 2.0)
    losses[0] = 8.0
    options = {"batch_size": 1, "num_batches": 200, "target_ess": 0.5}
    objective = build_objective("hardness", [f"case{i}" for i in range(100)], **options)
    objective.history.unvisited_first = False  # as published: case0 stays above the initial loss of the others
    said = epochs_of(objective, losses, 3, caplog)
    assert objective.history.visits.min() == 0
    assert "the draws collapse: effective sample size 1.0 of 100 cases; the hardest is case0" in said[0]
    assert "the draws collapse" not in "".join(said[1:]), "it is said once"


def test_cases_that_never_get_a_loss_are_named(caplog):
    # One out of twenty has no finite loss; the others are drawn all the same (mix).
    losses = np.random.default_rng(0).random(20)
    losses[7] = np.nan
    options = {"batch_size": 2, "num_batches": 20, "target_ess": 0.5, "mix": 0.5}
    objective = build_objective("hardness", [f"case{i}" for i in range(20)], **options)
    said = epochs_of(objective, losses, 6, caplog)
    assert [epoch for epoch, text in enumerate(said, 1) if "have no loss" in text] == [4]  # 20 (log 20 + 5) / 40
    assert "1 of 20 cases have no loss after 4 epochs: case7." in said[3]


def test_uniform_draws_leave_cases_out_for_long_and_that_is_no_reason_to_warn(caplog):
    objective = build_objective("hardness", [f"case{i}" for i in range(200)], batch_size=2, num_batches=100, beta=0.0)
    said = epochs_of(objective, np.full(200, 1.0), 3, caplog)
    assert (objective.history.visits == 0).any()
    assert "have no loss" not in "".join(said)


def test_a_beta_that_still_rises_is_not_warned_of_but_one_that_has_risen_to_little_is(caplog):
    losses = 0.3 + 0.15 * np.random.default_rng(0).random(40)
    options = {"batch_size": 2, "num_batches": 40, "warmup_epochs": 6}
    names = [f"case{i}" for i in range(40)]
    enough = epochs_of(build_objective("hardness", names, beta=20.0, **options), losses, 8, caplog)
    assert "next to nothing" not in "".join(enough)
    little = epochs_of(build_objective("hardness", names, beta=2.0, **options), losses, 8, caplog)
    assert [epoch for epoch, text in enumerate(little, 1) if "next to nothing" in text] == [6]
    assert "raise beta (2)" in little[5]


def test_a_warning_comes_again_when_its_reason_does_after_three_epochs_without(caplog):
    objective = build_objective("hardness", [f"case{i}" for i in range(100)], batch_size=2, num_batches=1, beta=10.0)
    engine, handler = Engine(lambda engine, batch: None), HardnessHandler(objective)
    calm, absurd, said = np.linspace(0.1, 0.5, 100), np.linspace(0.1, 0.5, 100), []
    absurd[42] = 3.0
    for epoch, losses in enumerate([absurd, absurd, calm, calm, absurd, calm, calm, calm, absurd, absurd], 1):
        objective.history.update(range(100), losses)
        engine.state.epoch = epoch
        caplog.clear()
        handler.epoch_completed(engine)
        said.append("collapse" in caplog.text)
    assert said == [True, *[False] * 7, True, False]


@pytest.mark.parametrize(
    ("options", "advice"),
    [
        ({"beta": 10.0}, "lower beta (10), or set target_ess"),
        ({"target_ess": 0.02}, "raise target_ess (0.02)"),
        ({"target_kl": 4.0}, "lower target_kl (4)"),
        ({"divergence": "cvar", "alpha": 0.01, "mix": 0.01}, "raise alpha (0.01)"),
        ({"divergence": "chi2", "rho": 40.0, "mix": 0.01}, "lower rho (40)"),
        ({"divergence": "chi2", "target_ess": 0.02, "mix": 0.01}, "lower rho (24.5)"),
        (
            {
                "name": "two_level",
                "groups": [{"site": "x"}, {"site": "y"}] * 50,
                "rivals": {"two_level": {"beta": 30.0}},
            },
            "lower beta (30) or rivals#two_level#gamma (10)",
        ),
    ],
)
def test_a_collapse_says_which_key_of_this_training_to_change(caplog, options, advice):
    losses = np.linspace(0.1, 0.5, 100)
    losses[42] = 3.0
    text = after_two_epochs(losses, caplog, **options)
    assert "the draws collapse" in text
    assert advice in text
    assert ("cap (e.g. 0.95)" in text) == (options.get("name") != "two_level"), "two_level has no cap"


def test_the_time_of_the_epoch_counts_what_is_fitted_at_its_start(caplog):
    objective = build_objective("hardness", list("abcd"), batch_size=1, num_batches=1)
    objective.sampler.start_epoch = lambda: time.sleep(0.2)
    engine, handler = Engine(lambda engine, batch: None), HardnessHandler(objective)
    for _ in range(2):
        objective.begin_batch(next(iter(objective.sampler)))
        handler.epoch_completed(engine)
        assert 0.2 < engine.state.metrics["sampler/epoch_s"] < 0.35
    handler.epoch_completed(engine)
    assert engine.state.metrics["sampler/epoch_s"] < 0.2


def test_nothing_is_warned_of_before_every_case_was_visited(caplog):
    objective = build_objective("hardness", ["a", "b", "c", "d"], batch_size=1, num_batches=1, initial_loss=100.0)
    objective.update([0, 1, 2], [1.0, 1.0, 1.0])
    with caplog.at_level(logging.WARNING):
        HardnessHandler(objective).epoch_completed(Engine(lambda engine, batch: None))
    assert caplog.text == ""


def test_the_handler_is_what_closes_the_loop(run_factory, tmp_path):
    # Without it the history never moves, which no other part would notice.
    run = run_factory(tmp_path, epochs=1)
    before = run.objective.history.num_updates
    run.trainer.run()
    assert run.objective.history.num_updates == before + 4
    assert torch.as_tensor(run.objective.history.visits.astype(int)).sum() == 8


@pytest.mark.parametrize(
    ("num_cases", "options", "warned"),
    [
        (16, {"batch_size": 4}, False),
        (15, {"batch_size": 4}, True),
        (15, {"batch_size": 4, "world_size": 2}, True),  # the batch of all ranks counts
        (15, {"batch_size": 4, "replacement": True}, False),
        (15, {"batch_size": 4, "name": "erm"}, False),
    ],
)
def test_a_global_batch_of_more_than_a_quarter_of_the_cases_is_warned_of(caplog, num_cases, options, warned):
    name, case_ids = options.pop("name", "hardness"), [f"case{index}" for index in range(num_cases)]
    objective = build_objective(name, case_ids, num_batches=1, **options)
    engine = Engine(lambda engine, batch: None)
    engine.register_events(*IterationEvents)
    HardnessHandler(objective).attach(engine)
    with caplog.at_level(logging.WARNING):
        engine.fire_event(Events.STARTED)
    assert ("batch_size is 4 over all ranks, 27 % of the 15 training cases" in caplog.text) == warned
    assert ("Lower batch_size to 3 or less" in caplog.text) == warned


@pytest.mark.parametrize(
    "options",
    [{"divergence": "cvar", "alpha": 0.25, "max_age": 3}, {"divergence": "cvar", "alpha": 0.25, "mix": 0.5}],
)
def test_metrics_of_cvar_are_those_of_the_worst_fraction(options):
    losses = np.random.default_rng(0).random(40)
    objective = build_objective("hardness", [f"case{i}" for i in range(40)], batch_size=2, num_batches=1, **options)
    objective.update(range(40), losses)
    engine = Engine(lambda engine, batch: None)
    HardnessHandler(objective, tail=0.1).epoch_completed(engine)
    metrics, mix = engine.state.metrics, options.get("mix", 0.0)
    probability = np.where(losses >= np.sort(losses)[-10], (1 - mix) / 10, 0.0) + mix / 40
    assert metrics["sampler/max_probability"] == pytest.approx(probability.max())
    assert metrics["sampler/ess_fraction"] == pytest.approx(1 / (probability**2).sum() / 40)
    assert metrics["sampler/batch_share"] == pytest.approx(math.log(2 * probability.max()))
    assert metrics["history/robust_risk"] == pytest.approx(np.sort(losses)[-10:].mean())
    assert metrics["history/cvar_10"] == pytest.approx(np.sort(losses)[-4:].mean())
    assert metrics["history/mean_loss"] == pytest.approx(losses.mean())
    assert metrics["sampler/beta"] == 0.0
    assert metrics["sampler/epoch_s"] > 0.0


@pytest.mark.parametrize(
    ("size", "share_the_weight", "batch_size", "collapses"),
    [
        (400, 19, 2, True),  # below 5 %
        (400, 21, 2, False),
        (100, 7, 2, True),  # below 4 batches
        (100, 9, 2, False),
        (20, 4, 4, True),  # of few cases, below a quarter
        (20, 6, 4, False),
    ],
)
def test_a_collapse_is_below_4_batches_or_5_percent_of_the_cases(caplog, size, share_the_weight, batch_size, collapses):
    # k cases tie far above the others: the effective sample size is k.
    losses = np.zeros(size)
    losses[:share_the_weight] = 5.0
    text = after_two_epochs(losses, caplog, beta=10.0, batch_size=batch_size)
    assert ("the draws collapse" in text) == collapses
    if collapses:
        assert f"effective sample size {share_the_weight:.1f} of {size} cases; the hardest is case0" in text


@pytest.mark.parametrize(
    ("thresholds", "said"),
    [((0.05, 0.98), None), ((0.2, 0.98), "the draws collapse"), ((0.05, 0.1), "hardness changes next to nothing")],
)
def test_the_thresholds_of_the_warnings_can_be_set(thresholds, said, caplog):
    objective = build_objective("hardness", [f"case{i}" for i in range(100)], batch_size=2, num_batches=1, beta=10.0)
    objective.update(range(100), [5.0] * 15 + [0.0] * 85)  # an effective sample size of 15 %
    with caplog.at_level(logging.WARNING):
        HardnessHandler(objective, *thresholds).epoch_completed(Engine(lambda engine, batch: None))
    assert (said in caplog.text) if said else caplog.text == ""
