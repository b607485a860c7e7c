"""Truths from outside that the sampling tests share: direct numpy forms of every draw, and a test that can fail."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Hashable, Mapping

import numpy as np
import pytest
from scipy.optimize import brentq
from scipy.special import softmax
from scipy.stats import chisquare

from droseg.sampling import LossHistory


def visited_history(losses, **options) -> LossHistory:
    """Return a history in which every case has this loss, from one visit."""
    history = LossHistory([f"case{index}" for index in range(len(losses))], **options)
    history.update(range(len(losses)), losses)
    return history


def p_value(drawn: Mapping[Hashable, int], probability: Mapping[Hashable, float]) -> float:
    """Return the p-value of Pearson's chi-square test; cells of less than 5 expected draws are one cell."""
    total = sum(drawn.values())
    impossible = [key for key in drawn if probability.get(key, 0.0) == 0.0]
    assert not impossible, f"drawn, but of probability 0: {impossible}"
    expected = np.array([p * total for p in probability.values()])
    observed = np.array([drawn.get(key, 0) for key in probability])
    few = expected < 5
    expected, observed = (np.append(each[~few], each[few].sum()) for each in (expected, observed))
    if expected[-1] < 5:  # even all of them together: a test of its own, by the Poisson bound
        assert observed[-1] <= expected[-1] + 6 * np.sqrt(expected[-1]) + 5
        expected, observed = expected[:-1], observed[:-1]
    if len(expected) < 2:
        return 1.0
    return float(chisquare(observed, expected * observed.sum() / expected.sum()).pvalue)


def ordered_batches(q: np.ndarray, batch_size: int) -> dict[tuple[int, ...], float]:
    """Return Plackett-Luce: the probability q1 * q2 / (1 - q1) * q3 / (1 - q1 - q2) ... of each ordered batch."""
    result = {}
    for batch in itertools.permutations(range(len(q)), batch_size):
        value = 1.0
        for position, index in enumerate(batch):
            left = sum(q[other] for other in range(len(q)) if other not in batch[:position])
            value *= q[index] / left if left else 0.0
        result[batch] = value
    return result


def chi_square_q(losses: np.ndarray, beta: float) -> np.ndarray:
    """Return max(0, 1 + beta (L - eta)) / N with eta by root finding, from the conditions of optimality."""
    size = len(losses)

    def excess(eta: float) -> float:
        return float(np.maximum(0.0, 1.0 + beta * (losses - eta)).mean() - 1.0)

    low, high = losses.min() - 1.0, losses.max() + 1.0 / beta
    eta = brentq(excess, low, high, xtol=1e-15, rtol=1e-15)
    return np.maximum(0.0, 1.0 + beta * (losses - eta)) / size


def chi_square_ball_q(losses: np.ndarray, rho: float) -> np.ndarray:
    """Return the q of the beta whose divergence is rho, by root finding around the root finding."""

    def excess(log_beta: float) -> float:
        q = chi_square_q(losses, np.exp(log_beta))
        return (len(q) * (q**2).sum() - 1.0) / 2.0 - rho

    return chi_square_q(losses, float(np.exp(brentq(excess, np.log(1e-6 / np.ptp(losses)), np.log(1e9)))))


def cvar_q(losses: np.ndarray, alpha: float) -> np.ndarray:
    """Return 1 / (alpha N) for the largest losses, one after the other, until the sum is 1; for losses that differ."""
    q, left = np.zeros(len(losses)), 1.0
    for index in np.argsort(-losses):
        q[index] = min(left, 1.0 / (alpha * len(losses)))
        left -= q[index]
    return q


def direct_q(losses: np.ndarray, **variant) -> np.ndarray:
    """Return the draw probabilities of a variant of the sampler, all cases visited, by direct numpy."""
    losses, size = np.asarray(losses, dtype=np.float64), len(losses)
    keeps = np.ones(size, dtype=bool)
    if variant.get("trim"):
        keeps = losses <= np.sort(losses)[int(np.ceil((1.0 - variant["trim"]) * size - 1e-9)) - 1]
    if variant.get("cap"):
        losses = np.minimum(losses, np.sort(losses)[int(np.ceil(variant["cap"] * size - 1e-9)) - 1])
    kept, kind = losses[keeps], variant.get("divergence", "kl")
    if kind == "cvar":
        part = cvar_q(kept, variant["alpha"])
    elif kind == "chi2" and variant.get("rho"):
        part = chi_square_ball_q(kept, variant["rho"])
    elif kind == "chi2":
        part = chi_square_q(kept, variant["beta"])
    else:
        part = softmax(variant["beta"] * kept)
    q = np.zeros(size)
    q[keeps] = part
    if variant.get("floor"):
        q = np.maximum(q, variant["floor"] / size)
        q /= q.sum()
    mix = variant.get("mix", 0.0)
    return (1.0 - mix) * q + mix / size


@pytest.fixture(name="visited_history", scope="session")
def _visited_history() -> Callable[..., LossHistory]:
    return visited_history


@pytest.fixture(name="p_value", scope="session")
def _p_value() -> Callable[..., float]:
    return p_value


@pytest.fixture(name="ordered_batches", scope="session")
def _ordered_batches() -> Callable[..., dict[tuple[int, ...], float]]:
    return ordered_batches


@pytest.fixture(name="direct_q", scope="session")
def _direct_q() -> Callable[..., np.ndarray]:
    return direct_q
