"""The log-domain sum tree against numpy."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.stats import chisquare

from droseg.sampling.tree import LogSumTree

SIZES = (1, 2, 3, 5, 1000)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("size", SIZES)
def test_the_total_stays_numpys_logsumexp_after_thousands_of_changes(size: int):
    rng = np.random.default_rng(size)
    weights = rng.normal(0, 50, size)
    tree = LogSumTree(weights)
    assert tree.log_total == pytest.approx(np.logaddexp.reduce(weights), rel=1e-13)
    for step in range(4000):
        index = int(rng.integers(size))
        weights[index] = rng.normal(0, 50)
        tree.set(index, weights[index])
        if step % 100 == 0:
            assert tree.log_total == pytest.approx(np.logaddexp.reduce(weights), rel=1e-13)
    assert [tree.log_weight(i) for i in range(size)] == weights.tolist()


@pytest.mark.parametrize("size", SIZES)
def test_a_changed_tree_equals_a_new_one_bit_for_bit(size: int):
    # A resumed run builds its tree anew; the uninterrupted one has changed its own step by step. Both must draw alike.
    rng = np.random.default_rng(1)
    weights = 10 * rng.random(size)
    tree = LogSumTree(np.zeros(size))
    for index in rng.permutation(size):
        tree.set(int(index), float(weights[index]))
    assert tree._nodes.tolist() == LogSumTree(weights)._nodes.tolist()


@pytest.mark.parametrize("size", SIZES)
def test_draws_follow_the_weights(size: int):
    log_weight = np.random.default_rng(2).normal(0, 1, size)
    tree, generator = LogSumTree(log_weight), seeded()
    counts = np.bincount([tree.draw(generator) for _ in range(100_000)], minlength=size)
    assert len(counts) == size
    if size > 1:
        expected = np.exp(log_weight - np.logaddexp.reduce(log_weight)) * counts.sum()
        assert chisquare(counts, expected).pvalue > 1e-3


def test_weights_far_apart_neither_overflow_nor_vanish():
    tree = LogSumTree(np.array([1e6, -1e6, 1e6, 0.0, -1e300]))
    assert tree.log_total == pytest.approx(1e6 + math.log(2), rel=1e-15)
    generator = seeded()
    counts = np.bincount([tree.draw(generator) for _ in range(2000)], minlength=5)
    assert counts[[1, 3, 4]].tolist() == [0, 0, 0]
    assert chisquare(counts[[0, 2]]).pvalue > 1e-3
    # Nothing is lost while it was hidden: with the giants gone, the small ones are drawn by their own odds.
    tree.set(0, -math.inf)
    tree.set(2, -math.inf)
    assert tree.log_total == 0.0
    assert {tree.draw(generator) for _ in range(200)} == {3}


@pytest.mark.parametrize("size", [2, 3, 5, 1000])
def test_a_weight_of_minus_infinity_is_never_drawn(size: int):
    log_weight = np.zeros(size)
    log_weight[::2] = -math.inf
    tree, generator = LogSumTree(log_weight), seeded()
    assert {tree.draw(generator) % 2 for _ in range(2000)} == {1}
    for index in range(1, size - 2, 2):
        tree.set(index, -math.inf)
    last = [i for i in range(size) if tree.log_weight(i) == 0.0]
    assert {tree.draw(generator) for _ in range(100)} == set(last)


def test_probabilities_far_below_the_resolution_of_one_uniform_number_survive():
    # 60 cases, each half as likely as the one before: the rarest has 2**-60. Only their sum is on a level of the tree.
    log_weight = -math.log(2.0) * np.arange(60)
    tree = LogSumTree(log_weight)
    for index in range(40):
        tree.set(index, -math.inf)
    generator = seeded()
    counts = np.bincount([tree.draw(generator) - 40 for _ in range(20_000)], minlength=20)
    expected = 0.5 ** np.arange(1, 21) / (1 - 0.5**20) * counts.sum()
    few = expected < 5
    counts, expected = [np.append(a[~few], a[few].sum()) for a in (counts, expected)]
    assert chisquare(counts, expected).pvalue > 1e-3


def test_an_empty_tree_is_refused():
    with pytest.raises(ValueError, match="nothing to draw from"):
        LogSumTree(np.zeros(0))
