"""The inner maximum of distributionally robust optimization: q from the losses, for three divergences.

Every divergence states max over q of sum_i q_i L_i under its own penalty or bound, and `fit` solves it exactly in
O(N log N). The result is a rule, loss -> weight with q proportional to it, which a tree of weights follows in O(log N).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Literal

import numpy as np

Name = Literal["kl", "chi2", "cvar"]
DIVERGENCES: tuple[Name, ...] = ("kl", "chi2", "cvar")
SMALLEST_SPREAD = 1e-250
TIE_STEPS = 2.0**40
"""Losses that differ by less are equal: the slope that tells them apart would be no floating-point number."""
LARGEST = 1e100
"""A beta or a loss above this is refused: no product of the two then overflows."""


class Rule(ABC):
    """Weight of a case as a function of its loss alone; q is proportional to it."""

    @abstractmethod
    def log_weights(self, loss: np.ndarray) -> np.ndarray:
        """Return the log weights, shape (N,); -inf is never drawn."""

    @abstractmethod
    def log_weight(self, loss: float) -> float:
        """Return the log weight of one case."""


@dataclass(frozen=True)
class Exponential(Rule):
    """exp(beta * (loss - reference)): the KL divergence, whose q does not depend on the reference.

    The largest loss as reference keeps the digits of losses that are large and hardly differ.
    """

    beta: float
    reference: float = 0.0

    def log_weights(self, loss: np.ndarray) -> np.ndarray:
        """Return beta * (loss - reference)."""
        return self.beta * (loss - self.reference)

    def log_weight(self, loss: float) -> float:
        """Return beta * (loss - reference)."""
        return self.beta * (loss - self.reference)


@dataclass(frozen=True)
class Hinge(Rule):
    """max(0, height + slope * (loss - largest)): the chi-square divergence.

    Stated from the largest loss down, so that losses that hardly differ and a steep slope lose nothing to rounding.
    """

    slope: float
    largest: float
    height: float

    def log_weights(self, loss: np.ndarray) -> np.ndarray:
        """Return the log of the hinge; -inf where it is 0."""
        with np.errstate(divide="ignore"):
            return np.asarray(np.log(np.maximum(0.0, self.height + self.slope * (loss - self.largest))))

    def log_weight(self, loss: float) -> float:
        """Return the log of the hinge."""
        weight = self.height + self.slope * (loss - self.largest)
        return math.log(weight) if weight > 0.0 else -math.inf


@dataclass(frozen=True)
class Step(Rule):
    """1 above the threshold, `at_threshold` on it, 0 below: the conditional value at risk."""

    threshold: float
    at_threshold: float

    def log_weights(self, loss: np.ndarray) -> np.ndarray:
        """Return the log of the step."""
        at = math.log(self.at_threshold) if self.at_threshold > 0.0 else -math.inf
        return np.where(loss > self.threshold, 0.0, np.where(loss == self.threshold, at, -math.inf))

    def log_weight(self, loss: float) -> float:
        """Return the log of the step."""
        return float(self.log_weights(np.asarray(loss)))


RULES: dict[str, type[Exponential] | type[Hinge] | type[Step]] = {
    "Exponential": Exponential,
    "Hinge": Hinge,
    "Step": Step,
}
"""The rules by the name that a saved state gives them."""


class Divergence(ABC):
    """One inner problem over q in the simplex."""

    name: Name
    forgets = False
    """Whether q is exactly 0 for some cases, so that they need uniform mixing or a maximum age."""

    @abstractmethod
    def fit(self, loss: np.ndarray) -> Rule:
        """Return the rule that maximizes the problem for these losses, shape (N,)."""

    @abstractmethod
    def risk(self, loss: np.ndarray) -> float:
        """Return the value of the maximum: the robust risk."""

    def probabilities(self, loss: np.ndarray) -> np.ndarray:
        """Return the maximizing q, shape (N,), sums to 1."""
        log_weight = self.fit(loss).log_weights(loss)
        weight = np.exp(log_weight - log_weight.max())
        return np.asarray(weight / weight.sum())


class KL(Divergence):
    """max over q of sum_i q_i L_i - (1/beta) KL(q || uniform), so q = softmax(beta L); Fidon et al. 2022.

    Args:
        beta: robustness, >= 0.
    """

    name = "kl"

    def __init__(self, beta: float) -> None:
        self.beta = check_beta(beta)

    def fit(self, loss: np.ndarray) -> Rule:
        """Return exp(beta * (loss - largest loss))."""
        return Exponential(self.beta, float(np.max(loss)))

    def risk(self, loss: np.ndarray) -> float:
        """Return (1/beta) log mean exp(beta L)."""
        return robust_risk(loss, self.beta)


class ChiSquare(Divergence):
    """The chi-square divergence D(q || uniform) = 1/(2N) sum_i (N q_i - 1)^2, as a penalty or as a ball.

    Penalty: max over q of sum_i q_i L_i - (1/beta) D. Ball (`rho`): max over q of sum_i q_i L_i with D <= rho, Namkoong
    and Duchi 2017, arXiv:1610.02581, whose effective sample size is N / (1 + 2 rho). Both give
    N q_i = max(0, 1 + beta (L_i - eta)), where eta makes q sum to 1, and the ball the beta that meets it.

    Args:
        beta: robustness of the penalty, >= 0.
        rho: radius of the ball, > 0; if given, beta is not used.
    """

    name = "chi2"
    forgets = True

    def __init__(self, beta: float = 0.0, rho: float | None = None) -> None:
        if rho is not None and not (math.isfinite(rho) and rho >= 0.0):
            raise ValueError(f"rho is {rho}; it must be a number >= 0 (0 gives uniform sampling).")
        self.beta, self.rho = check_beta(beta), rho

    def fit(self, loss: np.ndarray) -> Rule:
        """Return the hinge that maximizes the problem; uniform over the largest losses where no beta meets rho."""
        loss = np.asarray(loss, dtype=np.float64)
        if self.rho is None:
            return _fit_hinge(loss, self.beta)
        spread = float(loss.max() - loss.min())
        if self.rho == 0.0 or spread < SMALLEST_SPREAD:
            return _fit_hinge(loss, 0.0)
        below = _below_largest(loss, spread)
        ties = int((below == 0.0).sum())
        if self.rho >= (len(loss) / ties - 1.0) / 2.0 * (1.0 - 1e-12):
            return Step(float(loss[below == 0.0].min()), 1.0)
        return _fit_hinge(loss, _beta_for_ball(below, self.rho) / spread)

    def risk(self, loss: np.ndarray) -> float:
        """Return sum_i q_i L_i at the maximum, less the penalty if there is one."""
        loss = np.asarray(loss, dtype=np.float64)
        q = self.probabilities(loss)
        mean = float(q @ loss)
        if self.rho is not None or self.beta == 0.0:
            return mean
        return mean - _chi_square(q) / self.beta


class CVaR(Divergence):
    """max over q of sum_i q_i L_i with q_i <= 1 / (alpha N): the mean of the worst alpha, Rockafellar and Uryasev 2000.

    Args:
        alpha: the fraction of the cases that counts, in (0, 1].
    """

    name = "cvar"
    forgets = True

    def __init__(self, alpha: float) -> None:
        if not 0.0 < alpha <= 1.0:
            raise ValueError(f"alpha is {alpha}; it is the worst fraction of the cases, > 0 and <= 1 (1 is uniform).")
        self.alpha = alpha

    def fit(self, loss: np.ndarray) -> Rule:
        """Return the step at the alpha-quantile from above; cases that tie there share what is left."""
        loss = np.asarray(loss, dtype=np.float64)
        wanted = self.alpha * len(loss)
        # math.ceil of alpha * N would count one case more where the product is a rounding error above a whole number
        count = min(len(loss), max(1, math.ceil(wanted - 1e-9)))
        threshold = float(np.partition(loss, len(loss) - count)[len(loss) - count])
        above, at = int((loss > threshold).sum()), int((loss == threshold).sum())
        return Step(threshold, min(1.0, max(0.0, wanted - above) / at))

    def risk(self, loss: np.ndarray) -> float:
        """Return the mean of the worst alpha of the losses."""
        loss = np.asarray(loss, dtype=np.float64)
        return float(self.probabilities(loss) @ loss)


def build_divergence(name: str, beta: float, rho: float | None = None, alpha: float | None = None) -> Divergence:
    """Return the divergence of this name.

    Raises:
        ValueError: for another name, a parameter outside its range, or CVaR without alpha.
    """
    if name == "kl":
        return KL(beta)
    if name == "chi2":
        return ChiSquare(beta, rho)
    if name == "cvar":
        if alpha is None:
            raise ValueError("divergence cvar needs alpha, the worst fraction of the cases, > 0 and <= 1.")
        return CVaR(alpha)
    raise ValueError(f"divergence is {name!r}; choose one of {', '.join(DIVERGENCES)}.")


def robust_risk(loss: np.ndarray, beta: float) -> float:
    """Return (1 / beta) log mean exp(beta * loss), the KL-robust risk; the mean loss at beta = 0.

    Fidon et al. 2022, arXiv:2001.02658, the value of the inner maximum over the sampling distribution.
    """
    check_beta(beta)
    loss = np.asarray(loss, dtype=np.float64)
    if beta == 0.0:
        return float(loss.mean())
    # From the largest loss down, by expm1 and log1p: neither a large beta overflows, nor does log N swamp a small one.
    largest = float(loss.max())
    return largest + math.log1p(float(np.expm1(beta * (loss - largest)).mean())) / beta


def check_beta(beta: float) -> float:
    """Return beta as a float.

    Raises:
        ValueError: if it is negative or no number up to 1e100.
    """
    if not 0.0 <= beta <= LARGEST:
        raise ValueError(f"beta is {beta}; it must be a number >= 0 (0 gives uniform sampling).")
    return float(beta)


def _fit_hinge(loss: np.ndarray, beta: float) -> Hinge:
    """Return the hinge with N q_i = max(0, h + beta (L_i - max L)), whose height h makes the sum of q 1, by sorting."""
    largest = float(loss.max())
    exponent = beta * (np.sort(loss)[::-1] - largest)
    count = np.arange(1, len(loss) + 1)
    # With the k largest losses above 0: h = N / k - mean of their exponents. The right k is the last one whose own
    # loss is still above 0.
    height = len(loss) / count - np.cumsum(exponent) / count
    inside = np.flatnonzero(height + exponent > 0.0)
    return Hinge(beta, largest, float(height[inside[-1]]))


def _below_largest(loss: np.ndarray, spread: float) -> np.ndarray:
    """Return (L_i - max L) / spread, 0 to -1, in steps of 2^-40; closer losses are ties: their slope would overflow."""
    return np.asarray(np.round((loss - loss.max()) / spread * TIE_STEPS) / TIE_STEPS)


def _beta_for_ball(below: np.ndarray, rho: float) -> float:
    """Return the slope of the hinge that meets D = rho, by sorting; it exists where rho is below the value of the ties.

    With the k largest losses above 0, their e_i = `_below_largest` and V = the sum of squares of these about the mean,
    2 D + 1 = N / k + b^2 V / N for slope b of e. Case k is above 0 as long as b < (N / k) / (mean - e_k).
    """
    size, count = len(below), np.arange(1, len(below) + 1)
    e = np.sort(below)[::-1]
    mean = np.cumsum(e) / count
    variation = np.cumsum(np.square(e)) - count * np.square(mean)
    with np.errstate(divide="ignore", invalid="ignore"):
        last_slope = size / count / (mean - e)
        largest_d = np.where(mean > e, (size / count + np.square(last_slope) * variation / size - 1.0) / 2.0, np.inf)
    k = int(np.flatnonzero(largest_d > rho)[-1])
    return math.sqrt(size * (1.0 + 2.0 * rho - size / count[k]) / variation[k])


def _chi_square(q: np.ndarray) -> float:
    return float((len(q) * np.square(q).sum() - 1.0) / 2.0)
