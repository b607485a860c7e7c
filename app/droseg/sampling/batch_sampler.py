"""The hardness-weighted batch sampler: draws from a loss history in O(log N)."""

from __future__ import annotations

import math
import time
from dataclasses import asdict
from typing import Any, TypeGuard

import numpy as np

from droseg.sampling.divergences import (
    KL,
    RULES,
    ChiSquare,
    Divergence,
    Exponential,
    Rule,
    build_divergence,
    check_beta,
)
from droseg.sampling.history import LossHistory
from droseg.sampling.limits import LossLimits
from droseg.sampling.overdue import Overdue
from droseg.sampling.recording import RecordingBatchSampler
from droseg.sampling.tree import LogSumTree
from droseg.sampling.urn import Part, TreePart, UniformPart, Urn

REFIT = math.log(2.0)
"""A rule fitted to old losses is fitted anew when the sum of its weights has halved or doubled."""


class HardnessWeightedBatchSampler(RecordingBatchSampler):
    """Each batch is drawn from softmax(beta * stale loss), Fidon et al. 2022, arXiv:2001.02658, algorithm 1.

    Without replacement inside the batch (default) the cases of a batch are drawn one after the other, the
    probabilities renormalized over those left (Plackett-Luce). No case can then fill more than 1 / batch_size of
    the slots: where batch_size * max q is above 1, the batch is more uniform than q. If fewer cases than slots have
    any weight, the rest of the batch is drawn uniformly from the others. A draw and an update cost O(log N); changing
    beta costs O(N), and so do, once per epoch, a divergence other than KL, caps, trimming and a maximum age. In the
    epoch such a divergence is fitted anew, O(N log N), when the sum of its weights has halved or doubled: about once
    in as many draws as half of its effective sample size. It and the limits are also fitted anew each time the updates
    have doubled, which is in the first epoch. `refits` counts it.

    Args:
        history: the stale losses; the sampler follows its updates at once.
        beta: robustness, >= 0; 0 draws independent uniform batches. Also of the chi-square penalty.
        batch_size: cases per (global) batch.
        num_batches: batches per epoch.
        replacement: whether a case may occur more than once in a batch.
        seed: of the sampler's own generator.
        floor: probabilities below floor / N are raised to it and all renormalized; 1e-4 reproduces the authors'
            released code. Above 0 a draw costs O(N).
        rank, world_size: under torch.distributed every rank draws the same global batch and yields its own slice.
        divergence: "kl", "chi2" or "cvar"; see `droseg.sampling.divergences`.
        rho: radius of a chi-square ball, in place of beta.
        alpha: worst fraction of the cases, for CVaR.
        mix: share of the draws that are uniform, in [0, 1).
        cap: losses above this quantile of the visited cases count as that quantile, in (0, 1].
        trim: the cases of this highest fraction of the visited losses get no weight of hardness, in [0, 1).
        max_age: a case that was not trained for this many epochs is drawn in the next one.
    Raises:
        ValueError: for an argument outside its range; if a batch without replacement is larger than the number of
            cases; or if cases can get no weight at all and neither `mix` nor `max_age` brings them back.
    """

    def __init__(
        self,
        history: LossHistory,
        beta: float = 10.0,
        batch_size: int = 2,
        num_batches: int = 100,
        replacement: bool = False,
        seed: int = 0,
        floor: float = 0.0,
        rank: int = 0,
        world_size: int = 1,
        *,
        divergence: str = "kl",
        rho: float | None = None,
        alpha: float | None = None,
        mix: float = 0.0,
        cap: float | None = None,
        trim: float = 0.0,
        max_age: float | None = None,
    ) -> None:
        super().__init__(history, batch_size, num_batches, seed, rank, world_size)
        if not replacement and batch_size > len(history):
            raise ValueError(
                f"batch_size is {batch_size} but there are {len(history)} cases, and a batch is drawn without "
                "replacement; lower batch_size or set replacement=True."
            )
        if not 0.0 <= floor < 1.0:
            raise ValueError(f"floor is {floor}; it must be >= 0 and < 1 (times 1/N).")
        if not 0.0 <= mix < 1.0:
            raise ValueError(f"mix is {mix}; it is the share of uniform draws, >= 0 and < 1.")
        self.replacement, self.floor, self.mix = replacement, floor, mix
        self.divergence: Divergence = build_divergence(divergence, beta, rho, alpha)
        self.limits = LossLimits(cap, trim)
        self.overdue = Overdue(max_age, len(history), num_batches, batch_size)
        self._check_combination()
        self.refits = 0
        self._fitted_at = 0
        self._rule = self._fit()
        self._build_parts()
        history.subscribe(self._follow)

    def _check_combination(self) -> None:
        forgets = self.divergence.forgets or self.limits.trim > 0.0
        if forgets and self.mix == 0.0 and self.overdue.max_age is None:
            cause = f"divergence {self.divergence.name}" if self.divergence.forgets else "trim"
            raise ValueError(
                f"{cause} gives some cases no weight at all, and their losses would never be seen again; "
                "set mix (e.g. 0.1) or max_age (e.g. 10 epochs)."
            )
        if self.floor and (not isinstance(self.divergence, KL) or self.alters_draws):
            raise ValueError(
                "floor reproduces the released code; it goes with divergence kl alone, without mix, cap, trim, max_age."
            )

    @property
    def alters_draws(self) -> bool:
        """Whether mixing, limits or a maximum age let the draws differ from the divergence's own q."""
        return bool(self.mix or self.limits.active or self.overdue.max_age is not None)

    @property
    def beta(self) -> float:
        """Robustness; setting it rebuilds the tree in O(N). Always 0 where the problem has another parameter."""
        return self.divergence.beta if _has_beta(self.divergence) else 0.0

    @beta.setter
    def beta(self, beta: float) -> None:
        if _has_beta(self.divergence):
            with self.history.lock:
                self.divergence.beta = check_beta(beta)
                self._rule = self._fit()
                self._build_parts()

    @property
    def has_beta(self) -> bool:
        """Whether beta is the parameter of the problem."""
        return _has_beta(self.divergence)

    def limited_losses(self) -> np.ndarray:
        """Return the losses that the problem is stated on: capped, without the trimmed cases; O(N)."""
        loss, allowed = self.limits.apply(self.history.loss, self.history.visits > 0)
        if not (allowed & self.history.counted).any():  # all losses have risen above the limit
            self._fit_limits()
            loss, allowed = self.limits.apply(self.history.loss, self.history.visits > 0)
        return loss[allowed & self.history.counted]

    def _fit_limits(self) -> None:
        self.limits.fit(self.history.loss[(self.history.visits > 0) & self.history.counted])
        self._fitted_at = self.history.num_updates

    def _fit(self) -> Rule:
        return self.divergence.fit(self.limited_losses())

    def _build_parts(self) -> None:
        self._tree = LogSumTree(self._log_weights(self.history.loss))
        self._fitted_total = self._tree.log_total
        self._parts: list[Part] = [TreePart(self._tree)]
        self._log_share = [0.0]
        if self.mix:
            self._parts.append(self._uniform_part())
            self._log_share = [math.log1p(-self.mix), math.log(self.mix)]

    def _uniform_part(self) -> UniformPart:
        counted = np.flatnonzero(self.history.counted) if self.history.excluded else None
        return UniformPart(len(self.history) if counted is None else len(counted), counted)

    def _log_weights(self, loss: np.ndarray) -> np.ndarray:
        limited, allowed = self.limits.apply(loss, self.history.visits > 0)
        return np.where(allowed & self.history.counted, self._rule.log_weights(limited), -math.inf)

    def _follow(self, changed: list[int] | None) -> None:
        if changed is None:
            self._rule = self._fit()
            self._build_parts()
            self.overdue.drawn(self.history.excluded)
            return
        loss, visits = self.history.loss, self.history.visits
        for index in changed:
            if index in self.history.excluded:
                continue
            limited = self.limits.apply_one(float(loss[index]), bool(visits[index]))
            self._tree.set(index, -math.inf if limited is None else self._rule.log_weight(limited))

    def start_epoch(self) -> None:
        """Fit the limits and a divergence other than KL to the losses as they are; plan the overdue cases. O(N)."""
        with self.history.lock:
            self.overdue.plan(self.history)
            if self.limits.active or not isinstance(self._rule, Exponential):
                self.refit()

    def refit(self) -> None:
        """Fit limits and rule anew; O(N log N)."""
        self._fit_limits()
        self._rule = self._fit()
        self._build_parts()
        self.refits += 1

    def draw_batch(self) -> tuple[list[int], list[float]]:
        """Draw one global batch: the overdue cases whose turn it is, then the others by hardness."""
        if self.floor:
            return Urn([TreePart(self._floored_tree())], [0.0]).draw(self.generator, self.batch_size, self.replacement)
        self._refit_if_outdated()
        forced = self.overdue.take()
        urn = Urn(self._parts, self._log_share)
        indices, probability = urn.draw(self.generator, self.batch_size, self.replacement, forced)
        if len(indices) < self.batch_size:
            indices, probability = self._fill(indices, probability)
        self.overdue.drawn(indices)
        return indices, [self.overdue.probability(i, p) for i, p in zip(indices, probability, strict=True)]

    def _refit_if_outdated(self) -> None:
        fitted = not isinstance(self._rule, Exponential)
        if not fitted and not self.limits.active:
            return
        total, updates = self._tree.log_total, self.history.num_updates
        # Each time the updates have doubled: at the end of the first epoch it would be late for an absurd loss.
        doubled = updates > self._fitted_at and updates >= 2 * self._fitted_at
        if doubled or total == -math.inf or (fitted and abs(total - self._fitted_total) >= REFIT):
            started = time.perf_counter()
            self.refit()
            self.whole_pass_s += time.perf_counter() - started

    def _fill(self, indices: list[int], probability: list[float]) -> tuple[list[int], list[float]]:
        """Fill a batch up uniformly: fewer cases have any weight than it has slots."""
        others = Urn([self._uniform_part()], [0.0])
        filled, _ = others.draw(self.generator, self.batch_size, self.replacement, indices)
        left = len(self.history) - len(self.history.excluded)
        return filled, probability + [1.0 / left] * (len(filled) - len(indices))

    def _floored_tree(self) -> LogSumTree:
        with np.errstate(divide="ignore"):  # log 0 of a case that was taken out
            return LogSumTree(np.log(self._floored(self._q())))

    def _q(self) -> np.ndarray:
        """Return the probabilities of hardness alone, shape (N,)."""
        log_weight = self._log_weights(self.history.loss)
        q = np.exp(log_weight - log_weight.max())
        return np.asarray(q / q.sum())

    def _floored(self, q: np.ndarray) -> np.ndarray:
        """Return probabilities raised to the floor, except those of cases that were taken out; any scale."""
        return np.where(self.history.counted, np.maximum(q, self.floor / len(q)), 0.0)

    def probabilities(self) -> np.ndarray:
        """Return the probability of each case to be drawn next, shape (N,), the overdue ones aside; O(N)."""
        self._refit_if_outdated()  # as the next draw would
        q = self._q()
        if self.floor:
            q = self._floored(q)
            q /= q.sum()
        counted = self.history.counted
        return np.asarray((1.0 - self.mix) * q + self.mix * counted / counted.sum())

    def num_underflowed(self) -> int:
        """Return how many cases have weight, but a probability below the smallest float: they are lost. O(N).

        While some cases were never visited only those count: the others will rise when the initial losses are gone.
        """
        if self.mix or self.floor or self.overdue.max_age is not None:
            return 0
        self._refit_if_outdated()
        log_q = self._log_weights(self.history.loss) - self._tree.log_total
        lost = (log_q > -math.inf) & (log_q < math.log(np.finfo(float).tiny))
        unvisited = (self.history.visits == 0) & self.history.counted
        return int((lost & unvisited if unvisited.any() else lost).sum())

    def target_log_weight(self, loss: float) -> float:
        """Return the log weight that the divergence alone gives a loss: no mixing, no limits; any scale."""
        return self._rule.log_weight(loss)

    @property
    def nbytes(self) -> int:
        """Memory of history, tree and plan, case names and Python's own objects excluded."""
        return self.history.nbytes + self._tree.nbytes + self.overdue.nbytes

    def state_dict(self) -> dict[str, Any]:
        """Return beta, the fitted rule, limits, plan, and the base's state, as tensors and primitives."""
        return {
            **super().state_dict(),
            "beta": self.beta,
            "rule": {"kind": type(self._rule).__name__, **asdict(self._rule)},  # type: ignore[call-overload]
            "fitted_total": self._fitted_total,
            "fitted_at": self._fitted_at,
            "refits": self.refits,
            "limits": self.limits.state_dict(),
            "overdue": self.overdue.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where a saved sampler was; load the history first."""
        super().load_state_dict(state)
        self.beta = state["beta"]
        self.limits.load_state_dict(state["limits"])
        self.overdue.load_state_dict(state["overdue"])
        values = dict(state["rule"])
        self._rule = RULES[values.pop("kind")](**values)
        self._build_parts()
        self._fitted_total = float(state["fitted_total"])
        self._fitted_at, self.refits = int(state["fitted_at"]), int(state["refits"])


def _has_beta(divergence: Divergence) -> TypeGuard[KL | ChiSquare]:
    return isinstance(divergence, KL) or (isinstance(divergence, ChiSquare) and divergence.rho is None)
