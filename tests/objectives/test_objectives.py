"""Objectives: importance weights by hand, the target effective sample size, state, refusals."""

from __future__ import annotations

import math
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch

from droseg.errors import InputError
from droseg.objectives import OBJECTIVES, Objective, build_objective
from droseg.sampling import effective_sample_size

CASES = ("a", "b", "c", "d")
GROUPS = tuple({"anatomy": anatomy} for anatomy in ("typical", "rare", "typical", "rare"))
DRAWING_ONLY = ("erm", "hardness", "two_level", "group_balanced", "jtt")
"""Objectives that act by their draws alone unless asked for more."""


def hardness(**options) -> Objective:
    robustness = {} if "target_ess" in options else {"beta": 2.0}
    defaults = {"batch_size": 4, "num_batches": 10, "initial_loss": 1.0, **robustness}
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
    assert objective.epoch_completed(1)["clipped_weights"] == 0.75
    assert "clipped_weights" not in objective.epoch_completed(1)


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


@pytest.mark.parametrize("name", DRAWING_ONLY)
def test_all_weights_are_1_unless_asked_for(name: str):
    objective = build_objective(name, CASES, batch_size=4, num_batches=10, groups=GROUPS)
    objective.update([0, 1, 2, 3], [1.0, 1.0, 1.0, 1.0])
    batch = next(iter(objective.sampler))
    assert set(objective.weights(batch, torch.tensor([5.0, 0.0, 1.0, 2.0])).tolist()) == {1.0}


def test_a_target_is_solved_only_once_every_case_was_visited():
    objective = hardness(target_ess=0.5)
    objective.update([0, 1, 2], [0.1, 0.2, 0.3])
    assert objective.epoch_completed(1)["beta"] == 10.0
    objective.update([3], [0.4])
    beta = objective.epoch_completed(1)["beta"]
    assert beta == objective.beta != 10.0
    assert effective_sample_size(objective.history.probabilities(beta)) == pytest.approx(2.0)
    draw = objective.sampler.draw()
    assert draw.probability == pytest.approx(objective.history.probabilities(beta)[list(draw.indices)].tolist())


def test_a_hand_set_beta_stays():
    objective = hardness(beta=7.0)
    objective.update([0, 1, 2, 3], [0.1, 0.2, 0.3, 0.4])
    assert objective.epoch_completed(1)["beta"] == 7.0


def test_erm_and_beta_zero_draw_every_case_with_one_probability():
    for objective in (build_objective("erm", CASES, batch_size=4, num_batches=1), hardness(beta=0.0)):
        objective.update([0, 1, 2, 3], [0.1, 9.0, 0.3, 0.4])
        assert objective.beta == 0.0
        assert objective.sampler.draw().probability == pytest.approx((0.25,) * 4)


def test_erm_keeps_the_losses_of_its_cases_too():
    objective = build_objective("erm", CASES, batch_size=2, num_batches=1)
    objective.update([1, 3], [0.5, 0.25])
    assert objective.history.loss.tolist() == [4.0, 0.5, 4.0, 0.25]


def train(objective: Objective, epochs: range) -> list[tuple[list[int], list[float]]]:
    """Train as the trainer does, with losses that depend on nothing but the cases and the step."""
    steps = []
    for epoch in epochs:
        for batch in objective.sampler:
            draw = objective.begin_batch(batch)
            cases = list(draw.indices)
            losses = np.random.default_rng([objective.history.num_updates, *cases]).random(len(cases))
            weights = objective.weights(cases, torch.from_numpy(losses))
            scale = objective.score_scale(cases, torch.from_numpy(losses))
            objective.update(cases, losses.tolist())
            steps.append((cases, [*weights.tolist(), *([] if scale is None else scale.tolist())]))
        objective.epoch_completed(epoch)
        objective.wants_restart = False  # what RestartHandler does
    return steps


def any_objective(name: str, **options) -> Objective:
    rivals = {"jtt": {"first_epochs": 2}, "group_dro": {"step_size": 0.5}, "febs": {"sampling": "uniform"}}
    defaults = {"batch_size": 2, "num_batches": 10, "target_ess": 0.6, "groups": GROUPS, "rivals": rivals}
    return build_objective(name, CASES, **{**defaults, **options})


@pytest.mark.parametrize("name", OBJECTIVES)
@pytest.mark.parametrize("saved_after", [1, 2, 3])
def test_state_passes_through_a_file_and_continues_identically(name: str, saved_after: int, tmp_path: Path):
    expected = train(any_objective(name), range(1, 6))
    objective = any_objective(name)
    assert train(objective, range(1, saved_after + 1)) == expected[: 10 * saved_after]
    torch.save(objective.state_dict(), tmp_path / "state.pt")
    other = any_objective(name, seed=99)
    other.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert other.beta == objective.beta
    assert other.risk() == objective.risk()
    assert train(other, range(saved_after + 1, 6)) == expected[10 * saved_after :]


@pytest.mark.parametrize("name", OBJECTIVES)
def test_every_rank_draws_the_same_global_batches_and_gives_the_same_weights(name: str):
    alone = train(any_objective(name), range(1, 4))
    for rank in range(2):
        assert train(any_objective(name, rank=rank, world_size=2), range(1, 4)) == alone


@pytest.mark.parametrize("name", OBJECTIVES)
def test_probabilities_sum_to_1_and_risks_are_numbers(name: str):
    objective = any_objective(name)
    for _ in range(2):
        assert float(objective.probabilities().sum()) == pytest.approx(1.0, abs=1e-12)
        assert objective.probabilities().shape == (4,)
        assert math.isfinite(objective.risk())
        train(objective, range(1, 4))


@pytest.mark.parametrize("name", [name for name in OBJECTIVES if name != "erm"])
def test_an_objective_is_not_erm(name: str):
    # Either whom it draws or how it weights differs; else a comparison would compare ERM with itself.
    erm, other = (train(any_objective(each), range(1, 6)) for each in ("erm", name))
    assert [cases for cases, _ in erm] != [cases for cases, _ in other] or any(set(w) != {1.0} for _, w in other)


def test_the_state_of_another_objective_is_refused():
    state = build_objective("erm", CASES, batch_size=2, num_batches=1).state_dict()
    with pytest.raises(ValueError, match="objective erm, this one is hardness"):
        hardness().load_state_dict(state)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        (
            "hardnes",
            {},
            "objective is 'hardnes'; choose one of erm, hardness, two_level, group_dro, group_balanced, jtt",
        ),
        ("erm", {"rivals": {"dro": {}}}, "rivals has settings of 'dro', which is no objective; there are erm"),
        ("erm", {"rivals": {"rgd": {"tua": 1}}}, "objective rgd has no setting tua; it has tau, normalize"),
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


@pytest.mark.parametrize("name", OBJECTIVES)
def test_every_objective_keeps_40_bytes_per_case_and_takes_no_memory_of_that_size_for_a_step(name):
    size = 40_000
    case_ids = [f"case{index}" for index in range(size)]
    groups = [{"anatomy": str(index % 5), "protocol": str(index % 3)} for index in range(size)]
    rivals = {"jtt": {"first_epochs": 1}, "group_balanced": {"overlapping": True}}
    tracemalloc.start()
    try:
        objective = build_objective(name, case_ids, batch_size=2, num_batches=size // 2, groups=groups, rivals=rivals)
        batches = iter(objective.sampler)
        batch = next(batches)
        kept = tracemalloc.get_traced_memory()[0] - sys.getsizeof(objective.history.case_ids)
        objective.begin_batch(batch)
        objective.update(batch, [0.5] * len(batch))
        tracemalloc.reset_peak()
        before = tracemalloc.get_traced_memory()[0]
        for _ in range(20):
            batch = next(batches)
            objective.begin_batch(batch)
            objective.update(batch, [0.5] * len(batch))
        assert tracemalloc.get_traced_memory()[1] - before < 40_000, "not even one byte per case"
    finally:
        tracemalloc.stop()
    assert kept <= 40 * size + 30_000
