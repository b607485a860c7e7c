"""Objectives: importance weights by hand, the target effective sample size, state, refusals."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from droseg.errors import InputError
from droseg.objectives import OBJECTIVES, Objective, build_objective
from droseg.sampling import effective_sample_size

CASES = ("a", "b", "c", "d")


def hardness(**options) -> Objective:
    defaults = {"batch_size": 4, "num_batches": 10, "beta": 2.0, "initial_loss": 1.0}
    return build_objective("hardness", CASES, **{**defaults, **options})


def weigh(objective: Objective, losses: dict[int, float]) -> dict[int, float]:
    """Let the sampler draw all cases as one batch and return the weights that these new losses get."""
    batch = next(iter(objective.sampler))
    objective.begin_batch(batch)
    weights = objective.weights(batch, torch.tensor([losses[index] for index in batch]))
    return dict(zip(batch, weights.tolist(), strict=True))


def test_importance_weights_correct_for_stale_losses():
    objective = hardness(importance_weighting=True, momentum=0.25)
    objective.update([0, 1, 2], [1.0, 1.0, 1.0])  # case 3 was never visited
    weights = weigh(objective, {0: 1.2, 1: 0.9, 2: 1.0, 3: 1.7})
    expected = [math.exp(2.0 * 0.75 * 0.2), math.exp(2.0 * 0.75 * -0.1), 1.0, 1.0]
    assert [weights[index] for index in range(4)] == pytest.approx(expected, rel=1e-6)


def test_importance_weights_are_the_growth_of_the_unnormalized_probability():
    objective = hardness(importance_weighting=True, momentum=0.4, beta=3.0)
    objective.update([0, 1, 2, 3], [0.5, 0.6, 0.7, 0.8])
    before = np.exp(3.0 * objective.history.loss)
    losses = {0: 0.9, 1: 0.3, 2: 0.7, 3: 0.5}
    weights = weigh(objective, losses)
    objective.update(list(losses), list(losses.values()))
    after = np.exp(3.0 * objective.history.loss)
    assert [weights[index] for index in range(4)] == pytest.approx(list(after / before), rel=1e-6)


def test_importance_weights_are_clipped_and_the_clipped_share_is_reported():
    objective = hardness(importance_weighting=True, beta=100.0, initial_loss=1.0)
    objective.update([0, 1, 2, 3], [1.0, 1.0, 1.0, 1.0])
    weights = weigh(objective, {0: 5.0, 1: 0.0, 2: 1.01, 3: 1e6})
    assert [weights[index] for index in range(4)] == pytest.approx([10.0, 0.1, math.e, 10.0], rel=1e-5)
    assert objective.epoch_completed()["clipped_weights"] == 0.75
    assert "clipped_weights" not in objective.epoch_completed()


def test_importance_weights_use_the_loss_at_draw_time():
    objective = hardness(importance_weighting=True)
    objective.update([0, 1, 2, 3], [1.0, 1.0, 1.0, 1.0])
    batch = next(iter(objective.sampler))
    objective.begin_batch(batch)
    objective.update([0, 1, 2, 3], [3.0, 3.0, 3.0, 3.0])  # by batches that were prefetched before this one
    weights = objective.weights(batch, torch.full((4,), 1.5))
    assert weights.tolist() == pytest.approx([math.exp(2.0 * 0.5)] * 4, rel=1e-6)


def test_patches_of_one_case_share_the_weight_of_their_mean_loss():
    objective = hardness(importance_weighting=True, batch_size=1)
    objective.update([0, 1, 2, 3], [1.0, 1.0, 1.0, 1.0])
    (index,) = next(iter(objective.sampler))
    objective.begin_batch([index, index])
    weights = objective.weights([index, index], torch.tensor([1.0, 1.6]))
    assert weights.tolist() == pytest.approx([math.exp(2.0 * 0.3)] * 2, rel=1e-6)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_all_weights_are_1_unless_asked_for(name: str):
    objective = build_objective(name, CASES, batch_size=4, num_batches=10)
    objective.update([0, 1, 2, 3], [1.0, 1.0, 1.0, 1.0])
    assert set(weigh(objective, {0: 5.0, 1: 0.0, 2: 1.0, 3: 2.0}).values()) == {1.0}


def test_a_target_is_solved_only_once_every_case_was_visited():
    objective = hardness(target_ess=0.5, beta=7.0)
    objective.update([0, 1, 2], [0.1, 0.2, 0.3])
    assert objective.epoch_completed() == {"beta": 7.0}
    objective.update([3], [0.4])
    beta = objective.epoch_completed()["beta"]
    assert beta == objective.beta != 7.0
    assert effective_sample_size(objective.history.probabilities(beta)) == pytest.approx(2.0)
    draw = objective.sampler.draw()
    assert draw.probability == pytest.approx(objective.history.probabilities(beta)[list(draw.indices)].tolist())


def test_a_hand_set_beta_stays():
    objective = hardness(beta=7.0)
    objective.update([0, 1, 2, 3], [0.1, 0.2, 0.3, 0.4])
    assert objective.epoch_completed() == {"beta": 7.0}


def test_erm_and_beta_zero_draw_every_case_with_one_probability():
    for objective in (build_objective("erm", CASES, batch_size=4, num_batches=1), hardness(beta=0.0)):
        objective.update([0, 1, 2, 3], [0.1, 9.0, 0.3, 0.4])
        assert objective.beta == 0.0
        assert objective.sampler.draw().probability == pytest.approx((0.25,) * 4)


def test_erm_keeps_the_losses_of_its_cases_too():
    objective = build_objective("erm", CASES, batch_size=2, num_batches=1)
    objective.update([1, 3], [0.5, 0.25])
    assert objective.history.loss.tolist() == [4.0, 0.5, 4.0, 0.25]


@pytest.mark.parametrize("name", OBJECTIVES)
def test_state_passes_through_a_file_and_continues_identically(name: str, tmp_path: Path):
    def make(seed: int) -> Objective:
        return build_objective(name, CASES, batch_size=2, num_batches=10, seed=seed, beta=3.0, target_ess=0.6)

    objective = make(0)
    for batch in objective.sampler:
        objective.begin_batch(batch)
        objective.update(batch, np.random.default_rng(batch).random(2).tolist())
    objective.epoch_completed()
    torch.save(objective.state_dict(), tmp_path / "state.pt")
    other = make(99)
    other.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert other.beta == objective.beta
    assert list(other.sampler) == list(objective.sampler)


def test_the_state_of_another_objective_is_refused():
    state = build_objective("erm", CASES, batch_size=2, num_batches=1).state_dict()
    with pytest.raises(ValueError, match="objective erm, this one is hardness"):
        hardness().load_state_dict(state)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("hardnes", {}, "objective is 'hardnes'; choose one of erm, hardness"),
        ("hardness", {"beta": -1.0}, "objective hardness: beta is -1.0"),
        ("hardness", {"target_ess": 0.0}, "target_ess is 0.0"),
        ("hardness", {"target_ess": 2.0}, "target_ess is 2.0"),
        ("hardness", {"batch_size": 9}, "batch_size is 9 but there are 4 cases"),
        ("erm", {"batch_size": 0}, "batch_size is 0"),
        ("erm", {"momentum": 1.0}, "momentum is 1.0"),
    ],
)
def test_what_cannot_be_is_refused_as_input(name: str, options: dict, message: str):
    with pytest.raises(InputError, match=message):
        build_objective(name, CASES, **{"batch_size": 2, "num_batches": 1, **options})


def test_a_batch_that_the_sampler_did_not_draw_is_refused():
    objective = hardness(batch_size=2)
    with pytest.raises(RuntimeError, match=r"batch_sampler=objective\.sampler"):
        objective.begin_batch([0, 1])
    first, second = two_batches_that_differ(objective)
    assert set(first) != set(second)
    with pytest.raises(RuntimeError, match="in the order of the draws"):
        objective.begin_batch(second)


def two_batches_that_differ(objective: Objective) -> tuple[list[int], list[int]]:
    """Return two batches in turn that differ, both waiting to be trained."""
    iterator = iter(objective.sampler)
    first = next(iterator)
    for second in iterator:
        if set(second) != set(first):
            return first, second
    raise AssertionError("ten draws were alike")
