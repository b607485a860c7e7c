"""A convex problem: SGD on the sampler's draws reaches the minimum of the robust risk that another solver finds.

L2-penalized multinomial logistic regression on an imbalanced subset of scikit-learn's digits, two classes rare.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.special import logsumexp, softmax
from sklearn.datasets import load_digits

from droseg.sampling import HardnessWeightedBatchSampler, LossHistory

PENALTY, NUM_CLASSES = 1e-3, 10
STEPS, BATCH_SIZE = 16_000, 8


@dataclass(frozen=True)
class Problem:
    """min over W of (1/beta) log mean exp(beta L_i(W)) + (penalty / 2) |W|^2, L_i the cross entropy of image i."""

    images: np.ndarray  # (N, 65): 64 intensities in [0, 1], and a 1
    classes: np.ndarray  # (N,)

    def losses(self, weights: np.ndarray) -> np.ndarray:
        scores = self.images @ weights
        return logsumexp(scores, axis=1) - scores[np.arange(len(scores)), self.classes]

    def risk(self, weights: np.ndarray, beta: float) -> float:
        losses = self.losses(weights)
        robust = logsumexp(beta * losses, b=1 / len(losses)) / beta if beta else losses.mean()
        return float(robust + PENALTY / 2 * np.square(weights).sum())

    def gradient(self, weights: np.ndarray, rows: np.ndarray | slice, q: np.ndarray) -> np.ndarray:
        """Return the gradient of sum_i q_i L_i over these rows, and of the penalty."""
        error = softmax(self.images[rows] @ weights, axis=1) - np.eye(NUM_CLASSES)[self.classes[rows]]
        return self.images[rows].T @ (q[:, None] * error) + PENALTY * weights

    def solve(self, beta: float) -> np.ndarray:
        """Return the minimizer that L-BFGS finds on the full batch."""
        shape, uniform = (self.images.shape[1], NUM_CLASSES), np.full(len(self.images), 1 / len(self.images))

        def both(flat: np.ndarray) -> tuple[float, np.ndarray]:
            weights = flat.reshape(shape)
            q = softmax(beta * self.losses(weights)) if beta else uniform
            return self.risk(weights, beta), self.gradient(weights, slice(None), q).ravel()

        options = {"maxiter": 5000, "ftol": 1e-14, "gtol": 1e-8}
        result = minimize(both, np.zeros(math.prod(shape)), jac=True, method="L-BFGS-B", options=options)
        assert result.success, result.message
        return result.x.reshape(shape)

    def descend(self, beta: float, seed: int) -> np.ndarray:
        """Return what plain SGD with a decaying rate reaches on the sampler's draws."""
        history = LossHistory([str(row) for row in range(len(self.images))])
        sampler = HardnessWeightedBatchSampler(history, beta, BATCH_SIZE, STEPS, replacement=True, seed=seed)
        weights, share = np.zeros((self.images.shape[1], NUM_CLASSES)), np.full(BATCH_SIZE, 1 / BATCH_SIZE)
        for step, batch in enumerate(sampler):
            rows = np.array(batch)
            scores = self.images[rows] @ weights
            history.update(batch, logsumexp(scores, axis=1) - scores[np.arange(BATCH_SIZE), self.classes[rows]])
            weights -= 0.5 / (1 + step / 2000) * self.gradient(weights, rows, share)
        return weights


@pytest.fixture(scope="module")
def problem() -> Problem:
    images, classes = load_digits(return_X_y=True)
    rng = np.random.default_rng(0)
    sizes = {digit: 6 if digit in (3, 8) else 60 for digit in range(NUM_CLASSES)}
    rows = np.concatenate([rng.permutation(np.flatnonzero(classes == digit))[:size] for digit, size in sizes.items()])
    return Problem(np.hstack([images[rows] / 16.0, np.ones((len(rows), 1))]), classes[rows])


@pytest.mark.parametrize("beta", [1.0, 10.0])
def test_sgd_on_the_draws_reaches_the_robust_minimum_within_one_percent(problem: Problem, beta: float):
    best = problem.risk(problem.solve(beta), beta)
    erm = problem.risk(problem.solve(0.0), beta)
    assert erm > 1.02 * best, "ERM's own minimum has a worse robust risk"
    reached = problem.risk(problem.descend(beta, seed=0), beta)
    assert best <= reached < 1.01 * best


def test_draws_at_another_beta_miss_it(problem: Problem):
    # So that the test above can fail: with uniform batches the same descent ends far off.
    best = problem.risk(problem.solve(10.0), 10.0)
    assert problem.risk(problem.descend(0.0, seed=0), 10.0) > 2.0 * best
