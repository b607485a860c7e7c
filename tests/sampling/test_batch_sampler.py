"""Batch samplers: frequencies against computed probabilities, resume, ranks, records."""

from __future__ import annotations

import itertools
import threading
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.special import softmax
from scipy.stats import chisquare

from droseg.sampling import HardnessWeightedBatchSampler, LossHistory, ShuffledBatchSampler


def history_of(*losses: float) -> LossHistory:
    history = LossHistory([f"case{i}" for i in range(len(losses))])
    history.update(range(len(losses)), losses)
    return history


def draws_of(sampler, num_batches: int) -> list[list[int]]:
    return [list(sampler.draw().indices) for _ in range(num_batches)]


def goodness_of_fit(drawn: Counter, probability: dict) -> float:
    """Return the p-value of Pearson's chi-square test."""
    assert set(drawn) <= set(probability)
    total = sum(drawn.values())
    return chisquare([drawn[key] for key in probability], [p * total for p in probability.values()]).pvalue


def plackett_luce(q: np.ndarray, batch_size: int) -> dict[tuple[int, ...], float]:
    """Return the probability of each ordered batch: q1 * q2 / (1 - q1) * q3 / (1 - q1 - q2) ..."""
    result = {}
    for batch in itertools.permutations(range(len(q)), batch_size):
        left, value = 1.0, 1.0
        for index in batch:
            value *= q[index] / left
            left -= q[index]
        result[batch] = value
    return result


def test_with_replacement_the_frequencies_are_the_softmax():
    losses = np.random.default_rng(0).random(20) * 0.3
    sampler = HardnessWeightedBatchSampler(history_of(*losses), 10.0, 10, 10_000, replacement=True, seed=1)
    drawn = Counter(itertools.chain.from_iterable(sampler))
    assert sum(drawn.values()) == 100_000
    assert goodness_of_fit(drawn, dict(enumerate(softmax(10.0 * losses)))) > 1e-3


@pytest.mark.parametrize("batch_size", [2, 3])
def test_without_replacement_the_batches_follow_plackett_luce(batch_size: int):
    losses = np.array([0.1, 0.4, 0.25, 0.0, 0.15])
    sampler = HardnessWeightedBatchSampler(history_of(*losses), 5.0, batch_size, 100_000 // batch_size, seed=2)
    drawn = Counter(tuple(batch) for batch in sampler)
    assert goodness_of_fit(drawn, plackett_luce(softmax(5.0 * losses), batch_size)) > 1e-3


@pytest.mark.parametrize("replacement", [False, True])
def test_beta_zero_draws_uniform_batches(replacement: bool):
    sampler = HardnessWeightedBatchSampler(history_of(9.0, 0.0, 3.0, 5.0), 0.0, 2, 50_000, replacement, seed=3)
    pairs = itertools.product(range(4), repeat=2) if replacement else itertools.permutations(range(4), 2)
    probability = dict.fromkeys(pairs, 1 / (16 if replacement else 12))
    assert goodness_of_fit(Counter(tuple(batch) for batch in sampler), probability) > 1e-3


def test_equal_losses_are_drawn_equally_often_at_any_beta():
    sampler = HardnessWeightedBatchSampler(history_of(2.0, 2.0, 2.0), 1000.0, 1, 30_000, seed=4)
    assert goodness_of_fit(Counter(itertools.chain.from_iterable(sampler)), dict.fromkeys(range(3), 1 / 3)) > 1e-3
    sampler = HardnessWeightedBatchSampler(history_of(2.0, 1.0, 2.0), 1000.0, 1, 30_000, seed=4)
    assert goodness_of_fit(Counter(itertools.chain.from_iterable(sampler)), {0: 0.5, 2: 0.5}) > 1e-3


def test_with_a_floor_the_probabilities_are_raised_and_renormalized():
    losses, beta = np.array([3.0, 2.0, 1.0, 0.0]), 10.0
    for floor in (1e-4, 0.4):
        expected = np.maximum(softmax(beta * losses), floor / 4)
        expected /= expected.sum()
        sampler = HardnessWeightedBatchSampler(history_of(*losses), beta, 4, 1, seed=5, floor=floor)
        draw = sampler.draw()
        np.testing.assert_allclose(draw.probability, expected[list(draw.indices)], rtol=1e-12)
    # The last floor is large enough to be seen in frequencies.
    sampler = HardnessWeightedBatchSampler(history_of(*losses), beta, 1, 20_000, seed=5, floor=0.4)
    assert goodness_of_fit(Counter(itertools.chain.from_iterable(sampler)), dict(enumerate(expected))) > 1e-3


def test_the_floor_follows_the_history():
    sampler = HardnessWeightedBatchSampler(history_of(3.0, 0.0, 0.0), 100.0, 1, 1, seed=5, floor=1e-4)
    sampler.history.update([0, 2], [0.0, 3.0])
    assert draws_of(sampler, 20) == [[2]] * 20


def test_an_update_between_two_batches_changes_the_next_one():
    sampler = HardnessWeightedBatchSampler(history_of(*[1.0] * 50), 100.0, 1, 100, seed=6)
    for number, batch in enumerate(sampler):
        hardest = number % 50
        if number:
            assert batch == [(number - 1) % 50]
        losses = np.ones(50)
        losses[hardest] = 5.0
        sampler.history.update(range(50), losses)


def test_a_batch_without_replacement_larger_than_the_cohort_is_refused():
    with pytest.raises(ValueError, match=r"batch_size is 4 but there are 3 cases.*replacement=True"):
        HardnessWeightedBatchSampler(history_of(1.0, 1.0, 1.0), batch_size=4)
    sampler = HardnessWeightedBatchSampler(history_of(1.0, 1.0, 1.0), batch_size=4, replacement=True)
    assert len(sampler.draw().indices) == 4
    whole = HardnessWeightedBatchSampler(history_of(1.0, 5.0, 1.0), 1000.0, batch_size=3)
    assert sorted(whole.draw().indices) == [0, 1, 2]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"beta": -1.0}, "beta is -1.0"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"num_batches": 0}, "num_batches is 0"),
        ({"floor": 1.0}, "floor is 1.0"),
        ({"batch_size": 3, "world_size": 2}, "a multiple of the number of ranks"),
        ({"rank": 2, "world_size": 2}, "rank 2 of 2"),
    ],
)
def test_arguments_outside_their_range_are_refused(arguments: dict, message: str):
    with pytest.raises(ValueError, match=message):
        HardnessWeightedBatchSampler(history_of(1.0, 1.0, 1.0), **arguments)


def test_the_seed_decides_the_draws_and_nothing_else_does():
    first, second, other = (
        draws_of(HardnessWeightedBatchSampler(history_of(*np.linspace(0, 1, 30)), 3.0, seed=seed), 20)
        for seed in (7, 7, 8)
    )
    assert first == second != other
    torch.manual_seed(0)
    state = torch.get_rng_state()
    draws_of(HardnessWeightedBatchSampler(history_of(*np.linspace(0, 1, 30)), 3.0, seed=7), 5)
    assert torch.equal(torch.get_rng_state(), state), "the global generator is not touched"


@pytest.mark.parametrize("kind", [HardnessWeightedBatchSampler, ShuffledBatchSampler])
def test_a_saved_state_continues_with_the_identical_draws(kind, tmp_path: Path):
    def train(sampler, steps: range) -> list[list[int]]:
        batches = []
        for step in steps:
            batches.append(list(sampler.draw().indices))
            sampler.history.update(batches[-1], np.random.default_rng(step).random(len(batches[-1])))
        return batches

    whole = kind(history_of(*np.linspace(0, 1, 11)), batch_size=3, seed=9)
    expected = train(whole, range(60))

    half = kind(history_of(*np.linspace(0, 1, 11)), batch_size=3, seed=9)
    if isinstance(half, HardnessWeightedBatchSampler):
        half.beta = whole.beta = 20.0
        whole = kind(history_of(*np.linspace(0, 1, 11)), batch_size=3, seed=9)
        whole.beta = 20.0
        expected = train(whole, range(60))
    assert train(half, range(25)) == expected[:25]  # 75 of 11 cases: in the middle of a pass
    torch.save({"history": half.history.state_dict(), "sampler": half.state_dict()}, tmp_path / "state.pt")

    saved = torch.load(tmp_path / "state.pt", weights_only=True)
    resumed = kind(LossHistory(half.history.case_ids), batch_size=3, seed=123)
    resumed.history.load_state_dict(saved["history"])
    resumed.load_state_dict(saved["sampler"])
    assert train(resumed, range(25, 60)) == expected[25:]


@pytest.mark.parametrize("kind", [HardnessWeightedBatchSampler, ShuffledBatchSampler])
def test_the_shares_of_all_ranks_are_the_global_batches_of_one_process(kind):
    losses = np.linspace(0, 1, 17)
    alone = list(kind(history_of(*losses), batch_size=6, num_batches=30, seed=10))
    ranks = [
        kind(history_of(*losses), batch_size=6, num_batches=30, seed=10, rank=rank, world_size=3) for rank in range(3)
    ]
    assert [list(itertools.chain(*shares)) for shares in zip(*ranks, strict=True)] == alone


def test_a_draw_records_probability_and_loss_as_they_were():
    losses = np.array([0.3, 0.1, 0.9, 0.5])
    history = LossHistory(["a", "b", "c", "d"], initial_loss=0.9)
    history.update([0, 1, 3], losses[[0, 1, 3]])
    sampler = HardnessWeightedBatchSampler(history, 4.0, batch_size=4, num_batches=1)
    (indices,) = list(sampler)
    history.update([0, 1, 2, 3], [9.0, 9.0, 9.0, 9.0])
    (draw,) = sampler.pending
    assert list(draw.indices) == indices
    np.testing.assert_allclose(draw.probability, softmax(4.0 * losses)[indices], rtol=1e-12)
    assert draw.stale_loss == tuple(losses[indices])
    assert draw.visited == tuple(index != 2 for index in indices)
    assert draw.num_updates == 1
    assert history.num_updates == 2


def test_shuffled_passes_visit_each_case_once():
    sampler = ShuffledBatchSampler(history_of(*[1.0] * 7), batch_size=3, num_batches=5, seed=11)
    stream = [index for _ in range(7) for batch in sampler for index in batch]  # 7 epochs x 5 x 3 = 15 passes of 7
    passes = [stream[start : start + 7] for start in range(0, len(stream), 7)]
    assert len(passes) == 15
    assert all(sorted(one) == list(range(7)) for one in passes)
    assert len({tuple(one) for one in passes}) > 10, "each pass has an order of its own"


def test_a_shuffled_batch_may_be_larger_than_the_cohort():
    batch = ShuffledBatchSampler(history_of(1.0, 2.0, 3.0), batch_size=6).draw().indices
    assert sorted(batch[:3]) == sorted(batch[3:]) == [0, 1, 2]


def test_an_update_from_another_thread_is_not_lost_in_a_running_draw():
    # A draw without replacement takes cases out and puts them back; an update in between must come before or after.
    sampler = HardnessWeightedBatchSampler(history_of(*[1.0] * 4), 2.0, batch_size=3)
    tree, drawn = sampler._tree, []
    draw_one = tree.draw

    def draw_while_the_first_case_is_updated(generator: torch.Generator) -> int:
        if len(drawn) == 1:
            updates.start()
            updates.join(timeout=0.3)
        drawn.append(draw_one(generator))
        return drawn[-1]

    updates = threading.Thread(target=lambda: sampler.history.update([drawn[0]], [-9.0]))
    tree.draw = draw_while_the_first_case_is_updated
    sampler.draw()
    updates.join()
    assert len(set(drawn)) == 3
    assert sampler.history.loss[drawn[0]] == -9.0
    differences = [tree.log_weight(index) - tree.log_weight(drawn[1]) for index in range(4)]
    assert differences == (2.0 * (sampler.history.loss - 1.0)).tolist()
