"""Group DRO against algorithm 1 computed directly, its limits, and its adversary through a checkpoint."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from droseg.errors import InputError

RARE, TYPICAL = [3, 5], [0, 1, 2, 4, 6, 7]  # of anatomy; the names sort so
BATCHES = [[0, 3, 1, 5], [2, 4, 6, 7], [3, 3, 0, 0], [1, 2, 3, 4], [5, 0, 1, 2]]


def step(objective, batch: list[int], losses: list[float]) -> list[float]:
    weights = objective.weights(batch, torch.tensor(losses, dtype=torch.float64))
    objective.update(batch, losses)
    return weights.tolist()


@pytest.mark.parametrize("adjustment", [0.0, 2.0])
def test_weights_and_adversary_are_those_of_algorithm_1(objective_of, adjustment: float):
    objective = objective_of("group_dro", axes=["anatomy"], step_size=0.3, adjustment=adjustment)
    assert objective.groups.names == ("anatomy=rare", "anatomy=typical")
    rng, q = np.random.default_rng(0), {"rare": 0.5, "typical": 0.5}
    for batch in BATCHES:
        losses = rng.gamma(2.0, 0.5, len(batch)).tolist()
        mean = {}
        for name, members in (("rare", RARE), ("typical", TYPICAL)):
            own = [loss for index, loss in zip(batch, losses, strict=True) if index in members]
            if own:  # algorithm 1 moves the groups that it has drawn
                mean[name] = sum(own) / len(own)
                q[name] *= math.exp(0.3 * (mean[name] + adjustment / math.sqrt(len(members))))
        total = sum(q.values())
        q = {name: value / total for name, value in q.items()}
        weights = step(objective, batch, losses)
        assert objective.adversary == pytest.approx([q["rare"], q["typical"]], rel=1e-12)
        weighted = np.mean(np.multiply(weights, losses))
        assert weighted == pytest.approx(sum(q[name] * value for name, value in mean.items()), rel=1e-12)
        of_rare = {weight for index, weight in zip(batch, weights, strict=True) if index in RARE}
        assert len(of_rare) <= 1, "all cases of a group weigh alike"


def test_without_adjustment_the_adversary_is_that_of_the_authors_code(objective_of):
    # Their form: absent groups enter with a loss of 0.
    objective, q = objective_of("group_dro", axes=["anatomy", "site"], step_size=0.5), np.full(4, 0.25)
    names = list(objective.groups.names)
    pairs = [("typical", "x"), ("typical", "x"), ("typical", "y"), ("rare", "y")]
    pairs += [("typical", "y"), ("rare", "x"), ("typical", "x"), ("typical", "y")]
    product = np.array([names.index(f"anatomy={a}, site={s}") for a, s in pairs])
    rng = np.random.default_rng(1)
    for batch in BATCHES:
        losses = rng.random(len(batch))
        group_map = (product[batch] == np.arange(4)[:, None]).astype(float)
        count = group_map.sum(1)
        group_loss = group_map @ losses / (count + (count == 0))
        q = q * np.exp(0.5 * group_loss)
        q = q / q.sum()
        weights = step(objective, batch, losses.tolist())
        assert objective.adversary == pytest.approx(q, rel=1e-12)
        assert np.mean(np.multiply(weights, losses)) == pytest.approx(group_loss @ q, rel=1e-12)


def test_the_adversary_goes_to_the_harder_group_and_reports_it(objective_of):
    objective = objective_of("group_dro", axes=["anatomy"], step_size=0.1)
    for _ in range(2000):
        step(objective, [0, 3], [0.2, 0.9])
    values = objective.epoch_completed(1)
    assert values["adversary/anatomy=rare"] == pytest.approx(1.0)
    assert values["adversary/anatomy=typical"] == pytest.approx(math.exp(-0.1 * 0.7 * 2000), rel=1e-6)
    for _ in range(4000):
        step(objective, [0, 3], [0.9, 0.2])
    assert objective.adversary[1] == pytest.approx(1.0), "and comes back from a weight of nearly 0"


def test_a_step_size_of_0_keeps_the_groups_equal(objective_of):
    objective = objective_of("group_dro", axes=["anatomy"], step_size=0.0)
    weights = step(objective, [0, 1, 2, 3], [1.0, 2.0, 3.0, 9.0])
    assert weights == pytest.approx([4 / 6, 4 / 6, 4 / 6, 4 / 2])


def test_the_risk_is_the_worst_adjusted_group_mean(objective_of):
    objective = objective_of("group_dro", axes=["anatomy"], adjustment=1.0)
    losses = np.linspace(0.1, 0.8, 8)
    objective.update(range(8), losses)
    expected = max(losses[RARE].mean() + 1 / math.sqrt(2), losses[TYPICAL].mean() + 1 / math.sqrt(6))
    assert objective.risk() == pytest.approx(expected)


@pytest.mark.parametrize(("sampling", "rare"), [("uniform", 0.5), ("shuffled", 0.25)])
def test_groups_are_drawn_uniformly_unless_cases_are_shuffled(objective_of, sampling: str, rare: float):
    objective = objective_of("group_dro", axes=["anatomy"], sampling=sampling, num_batches=2500)
    drawn = Counter(index in RARE for batch in objective.sampler for index in batch)
    assert drawn[True] / 10_000 == pytest.approx(rare, abs=0.02)
    assert objective.probabilities()[RARE].sum() == pytest.approx(rare)


def test_the_adversary_passes_through_a_checkpoint_and_goes_on_identically(objective_of, tmp_path: Path):
    objective = objective_of("group_dro", axes=["anatomy"], step_size=0.3)
    for batch in BATCHES:
        step(objective, batch, [0.1, 0.2, 0.3, 0.4])
    torch.save(objective.state_dict(), tmp_path / "state.pt")
    other = objective_of("group_dro", axes=["anatomy"], step_size=0.3, seed=9)
    other.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    for batch in BATCHES:
        assert step(other, batch, [0.5, 0.2, 0.3, 0.4]) == step(objective, batch, [0.5, 0.2, 0.3, 0.4])
    assert other.adversary.tolist() == objective.adversary.tolist()
    assert list(other.sampler) == list(objective.sampler)
    by_site = objective_of("group_dro", axes=["site"])
    with pytest.raises(ValueError, match=r"of other groups \(differing: anatomy=rare"):
        by_site.load_state_dict(objective.state_dict())


def test_a_step_that_is_left_out_leaves_the_adversary_alone(objective_of):
    objective = objective_of("group_dro", axes=["anatomy"], step_size=0.3)
    weights = objective.weights([0, 1, 3, 5], torch.tensor([0.5, float("nan"), 0.1, 0.2]))
    assert weights.tolist() == [1.0, 1.0, 1.0, 1.0]
    assert objective.adversary.tolist() == [0.5, 0.5]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"step_size": -0.1}, "objective group_dro: step_size is -0.1"),
        ({"step_size": math.inf}, "step_size is inf"),
        ({"adjustment": -1.0}, "adjustment is -1.0"),
        ({"sampling": "random"}, "sampling is 'random'; choose uniform"),
        ({"steps": 1}, "objective group_dro has no setting steps; it has step_size, adjustment"),
    ],
)
def test_settings_outside_their_range_are_refused(objective_of, options: dict, message: str):
    with pytest.raises(InputError, match=message):
        objective_of("group_dro", axes=["anatomy"], **options)
