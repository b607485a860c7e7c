"""Group samplers: frequencies against enumeration, the gradient of the risk, plain KL as a limit, state, ranks."""

from __future__ import annotations

import itertools
import math
import tracemalloc
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.special import logsumexp, softmax
from scipy.stats import chisquare

from droseg.sampling import (
    GroupBalancedBatchSampler,
    HardnessWeightedBatchSampler,
    LossHistory,
    TwoLevelBatchSampler,
    robust_risk,
)

LOSSES = np.array([0.1, 0.4, 0.25, 0.0, 0.15])
DISJOINT = [np.array([0, 1]), np.array([2]), np.array([3, 4])]
TWO_AXES = [np.array([0, 1, 2]), np.array([3, 4]), np.array([0, 3]), np.array([1, 2, 4])]


def history_of(losses) -> LossHistory:
    history = LossHistory([f"case{i}" for i in range(len(losses))])
    history.update(range(len(losses)), losses)
    return history


def balanced_q(members: list[np.ndarray], num_cases: int) -> np.ndarray:
    q = np.zeros(num_cases)
    for each in members:
        for index in each:
            q[index] += 1.0 / (len(members) * len(each))
    return q


def two_level_q(losses, members, prior, beta: float, gamma: float) -> np.ndarray:
    """Directly from the formulas, with probabilities and not with their logs."""
    losses, prior = np.asarray(losses, dtype=np.float64), np.asarray(prior, dtype=np.float64)
    risk = [losses[m].mean() if beta == 0 else np.log(np.mean(np.exp(beta * losses[m]))) / beta for m in members]
    w = prior * np.exp(gamma * np.array(risk))
    q = np.zeros(len(losses))
    for share, m in zip(w / w.sum(), members, strict=True):
        q[m] += share * np.exp(beta * losses[m]) / np.exp(beta * losses[m]).sum()
    return q


def plackett_luce(q: np.ndarray, batch_size: int) -> dict[tuple[int, ...], float]:
    """Return the probability of each ordered batch: q1 * q2 / (1 - q1) * ..."""
    result = {}
    for batch in itertools.permutations(range(len(q)), batch_size):
        left, value = 1.0, 1.0
        for index in batch:
            value *= q[index] / left
            left -= q[index]
        result[batch] = value
    return result


def goodness_of_fit(drawn: Counter, probability: dict) -> float:
    assert set(drawn) <= set(probability)
    total = sum(drawn.values())
    return chisquare([drawn[key] for key in probability], [p * total for p in probability.values()]).pvalue


def balanced(members, **options) -> GroupBalancedBatchSampler:
    return GroupBalancedBatchSampler(history_of(LOSSES), members, **options)


def two_level(members, losses=LOSSES, prior=None, **options) -> TwoLevelBatchSampler:
    prior = np.ones(len(members)) if prior is None else prior
    return TwoLevelBatchSampler(history_of(losses), members, prior, **options)


@pytest.mark.parametrize(("replacement", "batch_size", "num_batches"), [(True, 20, 5_000), (False, 3, 34_000)])
def test_group_balanced_frequencies_are_the_enumerated_ones(replacement, batch_size, num_batches):
    q = balanced_q(TWO_AXES, 5)
    sampler = balanced(TWO_AXES, replacement=replacement, batch_size=batch_size, num_batches=num_batches, seed=1)
    np.testing.assert_allclose(sampler.probabilities(), q, rtol=1e-12)
    if replacement:
        drawn = Counter(itertools.chain.from_iterable(sampler))
        assert goodness_of_fit(drawn, dict(enumerate(q))) > 1e-3
    else:
        drawn = Counter(tuple(batch) for batch in sampler)
        assert goodness_of_fit(drawn, plackett_luce(q, batch_size)) > 1e-3
    assert batch_size * num_batches >= 100_000


@pytest.mark.parametrize(("replacement", "batch_size", "num_batches"), [(True, 20, 5_000), (False, 2, 50_000)])
def test_two_level_frequencies_are_the_enumerated_ones(replacement, batch_size, num_batches):
    prior = np.arange(1.0, 5.0)
    options = {"replacement": replacement, "batch_size": batch_size, "num_batches": num_batches, "seed": 2}
    sampler = two_level(TWO_AXES, prior=prior, beta=5.0, gamma=3.0, **options)
    q = two_level_q(LOSSES, TWO_AXES, prior, 5.0, 3.0)
    if replacement:
        drawn = Counter(itertools.chain.from_iterable(sampler))
        assert goodness_of_fit(drawn, dict(enumerate(q))) > 1e-3
    else:
        drawn = Counter(tuple(batch) for batch in sampler)
        assert goodness_of_fit(drawn, plackett_luce(q, batch_size)) > 1e-3
    assert batch_size * num_batches >= 100_000


@pytest.mark.parametrize(("beta", "gamma"), [(0.0, 0.0), (0.0, 4.0), (4.0, 0.0), (2.0, 7.0), (30.0, 1.0)])
@pytest.mark.parametrize("members", [DISJOINT, TWO_AXES], ids=["disjoint", "overlapping"])
def test_two_level_probabilities_are_the_formula_and_the_gradient_of_the_risk(members, beta: float, gamma: float):
    prior = np.linspace(1.0, 2.0, len(members))
    sampler = two_level(members, prior=prior, beta=beta, gamma=gamma)
    np.testing.assert_allclose(sampler.probabilities(), two_level_q(LOSSES, members, prior, beta, gamma), rtol=1e-12)
    draw = sampler.draw()
    np.testing.assert_allclose(draw.probability, sampler.probabilities()[list(draw.indices)], rtol=1e-12)

    def risk(losses: np.ndarray) -> float:
        return two_level(members, losses, prior, beta=beta, gamma=gamma).risk()

    step = 1e-5
    slope = [(risk(LOSSES + step * e) - risk(LOSSES - step * e)) / (2 * step) for e in np.eye(5)]
    np.testing.assert_allclose(sampler.probabilities(), slope, atol=1e-7)


@pytest.mark.parametrize("beta", [1e-15, 1e-9, 0.9e-6, 1.1e-6])
def test_a_tiny_beta_comes_to_the_mean_of_the_group(beta: float):
    prior = np.arange(1.0, 5.0)
    limit = two_level_q(LOSSES, TWO_AXES, prior, 0.0, 100.0)
    sampler = two_level(TWO_AXES, prior=prior, beta=beta, gamma=100.0)
    np.testing.assert_allclose(sampler.probabilities(), limit, rtol=2.0 * 100.0 * 1.1e-6 * LOSSES.var())


@pytest.mark.parametrize("beta", [0.0, 1e-3, 1.0, 10.0, 1000.0])
def test_disjoint_groups_with_their_sizes_and_gamma_beta_are_plain_kl(beta: float):
    rng = np.random.default_rng(3)
    losses, group = rng.gamma(2.0, 0.5, 60), rng.integers(0, 4, 60)
    members = [np.flatnonzero(group == g) for g in range(4)]
    sampler = two_level(members, losses, [len(m) for m in members], beta=beta, gamma=beta)
    plain = HardnessWeightedBatchSampler(history_of(losses), beta)
    np.testing.assert_allclose(sampler.probabilities(), plain.probabilities(), rtol=0, atol=1e-12)
    np.testing.assert_allclose(sampler.probabilities(), softmax(beta * losses), rtol=1e-9, atol=1e-300)
    assert sampler.risk() == pytest.approx(robust_risk(losses, beta), rel=1e-12)
    rng.shuffle(losses)  # and after updates
    for history in (sampler.history, plain.history):
        for index in range(60):
            history.update([index], [losses[index]])
    np.testing.assert_allclose(sampler.probabilities(), plain.probabilities(), rtol=0, atol=1e-12)


def test_every_axis_by_size_with_gamma_beta_is_plain_kl_too():
    sampler = two_level(TWO_AXES, prior=[len(m) for m in TWO_AXES], beta=6.0, gamma=6.0)
    np.testing.assert_allclose(sampler.probabilities(), softmax(6.0 * LOSSES), rtol=1e-12)


def test_large_and_far_apart_losses_neither_overflow_nor_lose_a_group():
    losses = np.array([1000.0, 0.0, 500.0, 1000.0 + 1e-6, -1000.0])
    sampler = two_level(DISJOINT, losses, beta=1000.0, gamma=1000.0, batch_size=5, replacement=False)
    q = sampler.probabilities()
    expected = softmax(1000.0 * losses[[0, 3]])  # each shares its group of two with a case of no weight
    np.testing.assert_allclose(q[[0, 3]], expected, rtol=1e-6)
    assert np.isfinite(q).all()
    assert sorted(sampler.draw().indices) == [0, 1, 2, 3, 4], "without replacement every case comes at last"
    risks = [logsumexp(1000.0 * losses[m], b=1 / len(m)) / 1000.0 for m in DISJOINT]
    assert sampler.risk() == pytest.approx(logsumexp(1000.0 * np.array(risks), b=1 / 3) / 1000.0, rel=1e-12)


@pytest.mark.parametrize("beta", [0.0, 3.0])
def test_an_update_changes_the_next_draw_as_if_built_anew(beta: float):
    sampler = two_level(TWO_AXES, beta=beta, gamma=4.0)
    rng = np.random.default_rng(4)
    for _ in range(200):
        indices = rng.integers(0, 5, 2)
        sampler.history.update(indices, rng.random(2))
    again = two_level(TWO_AXES, sampler.history.loss, beta=beta, gamma=4.0)
    np.testing.assert_allclose(sampler.probabilities(), again.probabilities(), rtol=1e-12)
    np.testing.assert_allclose(sampler.shares(), again.shares(), rtol=1e-12)


KINDS: dict[str, Callable] = {
    "balanced": lambda history, **options: GroupBalancedBatchSampler(history, TWO_AXES, **options),
    "two level": lambda history, **options: TwoLevelBatchSampler(history, TWO_AXES, np.ones(4), 3.0, 5.0, **options),
    "linear": lambda history, **options: TwoLevelBatchSampler(history, TWO_AXES, np.ones(4), 0.0, 5.0, **options),
}


def train(sampler, steps: range) -> list[list[int]]:
    batches = []
    for step in steps:
        batches.append(list(sampler.draw().indices))
        sampler.history.update(batches[-1], np.random.default_rng(step).random(len(batches[-1])))
    return batches


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("replacement", [True, False])
def test_a_saved_state_continues_with_the_identical_draws(kind: str, replacement: bool, tmp_path: Path):
    def make(seed: int):
        return KINDS[kind](history_of(LOSSES), batch_size=2, replacement=replacement, seed=seed)

    expected = train(make(5), range(60))
    half = make(5)
    assert train(half, range(25)) == expected[:25]
    torch.save({"history": half.history.state_dict(), "sampler": half.state_dict()}, tmp_path / "state.pt")
    saved = torch.load(tmp_path / "state.pt", weights_only=True)
    resumed = make(99)
    resumed.history.load_state_dict(saved["history"])
    resumed.load_state_dict(saved["sampler"])
    assert train(resumed, range(25, 60)) == expected[25:]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("replacement", [True, False])
def test_the_shares_of_all_ranks_are_the_global_batches_of_one_process(kind: str, replacement: bool):
    def make(**options):
        options = {"batch_size": 4, "num_batches": 30, "replacement": replacement, "seed": 6, **options}
        return KINDS[kind](history_of(LOSSES), **options)

    ranks = [make(rank=rank, world_size=2) for rank in range(2)]
    assert [list(itertools.chain(*shares)) for shares in zip(*ranks, strict=True)] == list(make())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"beta": -1.0}, "beta is -1.0"),
        ({"gamma": -2.0}, "gamma is -2.0"),
        ({"gamma": math.nan}, "gamma is nan"),
        ({"prior": [1.0, 0.0, 1.0]}, r"prior is \[1.0, 0.0, 1.0\]"),
        ({"prior": [1.0]}, "one number > 0 for each of 3 groups"),
        ({"batch_size": 6, "replacement": False}, "batch_size is 6 but there are 5 cases"),
        ({"members": [np.array([0, 1]), np.array([], dtype=int)]}, "a group has no cases"),
        ({"members": [np.array([0, 1]), np.array([2, 4])]}, "case3 is in no group"),
    ],
)
def test_arguments_outside_their_range_are_refused(arguments: dict, message: str):
    with pytest.raises(ValueError, match=message):
        two_level(**{"members": DISJOINT, **arguments})


def test_a_draw_without_replacement_from_small_groups_is_still_exact():
    # A group of one case that is taken out must hand its share on to the others, not stall the draw.
    members = [np.array([0]), np.array([1, 2, 3, 4])]
    sampler = balanced(members, replacement=False, batch_size=2, num_batches=20_000, seed=7)
    first = Counter(batch[0] == 0 for batch in sampler)
    assert first[True] / 20_000 == pytest.approx(0.5, abs=0.015)
    assert all(len(set(batch)) == 2 for batch in sampler)


@pytest.mark.parametrize("kind", ["balanced", "two level"])
@pytest.mark.parametrize("axes", [1, 2])
def test_group_samplers_keep_at_most_40_bytes_per_case(kind: str, axes: int):
    size = 40_000
    case_ids = [f"case{i}" for i in range(size)]
    members = [np.flatnonzero(np.arange(size) % n == r).astype(np.int32) for n in (5, 3)[:axes] for r in range(n)]
    tracemalloc.start()
    history = LossHistory(case_ids)
    of_names = 8 * size  # the tuple of the case names
    if kind == "balanced":
        sampler = GroupBalancedBatchSampler(history, members)
    else:
        sampler = TwoLevelBatchSampler(history, members, np.ones(len(members)), 3.0, 5.0)
    kept, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    members_given = 4 * axes * size  # they were made before
    assert (kept - of_names + members_given) / size <= 40
    assert len(sampler.draw().indices) == 2


@pytest.mark.parametrize("replacement", [True, False])
def test_a_group_of_several_blocks_draws_each_case_by_its_weight(replacement: bool):
    losses = np.random.default_rng(8).gamma(2.0, 0.3, 50)
    members = [np.arange(0, 50, 2), np.arange(50)]
    options = {"replacement": replacement, "batch_size": 2, "num_batches": 30_000, "seed": 4}
    sampler = two_level(members, losses, beta=4.0, gamma=2.0, **options)
    q = two_level_q(losses, members, [1.0, 1.0], 4.0, 2.0)
    np.testing.assert_allclose(sampler.probabilities(), q, rtol=1e-12)
    first = Counter(batch[0] for batch in sampler)
    assert goodness_of_fit(first, dict(enumerate(q))) > 1e-3
    np.testing.assert_allclose(sampler.probabilities(), q, rtol=1e-12)  # everything was put back
