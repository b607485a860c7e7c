"""How concentrated the draws are, and the beta that gives a wanted concentration."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from scipy.optimize import brentq
from torch import Tensor

from droseg.sampling import divergences
from droseg.sampling.history import hardness_probabilities


def effective_sample_size(probability: Tensor) -> float:
    """Return Kish's effective number of cases, 1 / sum of squares: N if uniform, 1 if one case takes all."""
    return float(1.0 / probability.to(torch.float64).square().sum())


def kl_to_uniform(probability: Tensor) -> float:
    """Return KL(q || uniform) = log N - entropy, in nats: 0 if uniform, log N if one case takes all."""
    q = probability.to(torch.float64)
    return float(math.log(len(q)) + torch.special.xlogy(q, q).sum())


def solve_beta(stale_loss: Tensor, target: float, max_beta: float = 1e4) -> float:
    """Return the beta whose effective sample size is `target` * N, by Brent's method; some 15 passes over N losses.

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
    if target == 1.0:
        return 0.0
    log_wanted = math.log(target * len(stale_loss))
    return _solve(stale_loss, lambda q: log_wanted - math.log(effective_sample_size(q)), max_beta)


def solve_beta_for_kl(stale_loss: Tensor, target: float, max_beta: float = 1e4) -> float:
    """Return the beta whose KL(q || uniform) is `target` nats, by Brent's method; some 15 passes over N losses.

    It rises from 0 at beta = 0 to log(N / number of cases that share the largest loss); what cannot be met gives
    `max_beta`, or 0 for equal losses.

    Raises:
        ValueError: if `target` is negative or not finite.
    """
    if not (math.isfinite(target) and target >= 0.0):
        raise ValueError(f"target_kl is {target}; it must be a number of nats >= 0 (0 is uniform).")
    if target == 0.0:
        return 0.0
    return _solve(stale_loss, lambda q: kl_to_uniform(q) - target, max_beta)


def robust_risk(loss: Tensor | np.ndarray, beta: float) -> float:
    """Return (1 / beta) log mean exp(beta * loss), the KL-robust risk; the mean loss at beta = 0.

    Fidon et al. 2022, arXiv:2001.02658, the value of the inner maximum over the sampling distribution.
    """
    return divergences.robust_risk(np.asarray(loss, dtype=np.float64), beta)


def _solve(stale_loss: Tensor, excess: Callable[[Tensor], float], max_beta: float) -> float:
    """Return the beta in [0, max_beta] at which `excess`, which rises with it, is 0; the nearest bound if it never is.

    Losses that are all equal give 0: no beta tells them apart.
    """
    loss = stale_loss.to(torch.float64)
    spread = float(loss.max() - loss.min())
    if spread < 1e-12:
        return 0.0

    def at(beta: float) -> float:
        return excess(hardness_probabilities(loss, beta))

    low, high = 0.0, min(1.0 / spread, float(max_beta))
    while at(high) < 0.0:
        if high >= max_beta:
            return float(max_beta)
        low, high = high, min(2.0 * high, float(max_beta))
    if at(low) >= 0.0:  # a target so near uniform that rounding decides
        return low
    return float(brentq(at, low, high, xtol=1e-14 * high, rtol=1e-14))
