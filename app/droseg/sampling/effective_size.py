"""How concentrated the draws are, and the beta that gives a wanted concentration."""

from __future__ import annotations

import torch
from torch import Tensor

from droseg.sampling.history import check_beta, hardness_probabilities


def effective_sample_size(probability: Tensor) -> float:
    """Return Kish's effective number of cases, 1 / sum of squares: N if uniform, 1 if one case takes all."""
    return float(1.0 / probability.to(torch.float64).square().sum())


def solve_beta(stale_loss: Tensor, target: float, max_beta: float = 1e4) -> float:
    """Return the beta whose effective sample size is `target` * N, by bisection; O(N) per step.

    The effective sample size of softmax(beta * loss) falls from N at beta = 0 to the number of cases that share
    the largest loss. A target below that, or losses that are all equal, cannot be met: the result is then
    `max_beta`, or 0 for equal losses.

    Args:
        stale_loss: shape (N,).
        target: wanted effective sample size as a fraction of N, in (0, 1].
        max_beta: upper bound of the result.
    Raises:
        ValueError: if `target` is outside (0, 1].
    """
    if not 0.0 < target <= 1.0:
        raise ValueError(f"target_ess is {target}; it is a fraction of the cases, > 0 and <= 1 (1 is uniform).")
    loss = stale_loss.to(torch.float64)
    if target == 1.0 or float(loss.max() - loss.min()) < 1e-12:
        return 0.0
    low, high, wanted = 0.0, float(max_beta), target * len(loss)
    if effective_sample_size(hardness_probabilities(loss, high)) >= wanted:
        return high
    for _ in range(80):  # halves [0, max_beta] down to the resolution of a float
        middle = 0.5 * (low + high)
        if effective_sample_size(hardness_probabilities(loss, middle)) > wanted:
            low = middle
        else:
            high = middle
    return 0.5 * (low + high)


def robust_risk(loss: Tensor, beta: float) -> float:
    """Return (1 / beta) log mean exp(beta * loss), the KL-robust risk; the mean loss at beta = 0.

    Fidon et al. 2022, arXiv:2001.02658, the value of the inner maximum over the sampling distribution.
    """
    check_beta(beta)
    loss = loss.to(torch.float64)
    if beta == 0.0:
        return float(loss.mean())
    # From the largest loss down, by expm1 and log1p: neither a large beta overflows, nor does log N swamp a small one.
    largest = loss.max()
    return float(largest + torch.log1p(torch.expm1(beta * (loss - largest)).mean()) / beta)
