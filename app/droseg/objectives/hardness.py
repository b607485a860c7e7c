"""Hardness-weighted sampling for distributionally robust optimization: KL, chi-square and CVaR."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from droseg.objectives.base import HARDNESS_KEYS, Objective, Setting, case_means
from droseg.sampling import (
    ChiSquare,
    CVaR,
    Draw,
    HardnessWeightedBatchSampler,
    solve_beta,
    solve_beta_for_kl,
)

BETA = 10.0
"""Where no robustness is given, and before one can be solved."""
WEIGHT_BOUNDS = (0.1, 10.0)
"""Clipping of importance weights, as in the authors' released code."""


def choose_robustness(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings of `HardnessWeighted` with one parameter of robustness left: the first that is given.

    In this order: `beta` by hand (`rho` for a chi-square ball, `alpha` for CVaR), `target_kl`, `target_ess`. None is
    not given. So a number by hand stays whatever target the bundle has. Without any, `beta` is 10.

    Raises:
        ValueError: for one that the divergence does not have.
    """
    divergence = settings.get("divergence", "kl")
    own = {"kl": ("beta",), "chi2": ("beta", "rho"), "cvar": ("alpha",)}.get(divergence, ())
    given = {name: value for name, value in settings.items() if value is not None}
    foreign = [name for name in ("beta", "rho", "alpha") if name in given and name not in own]
    if own and foreign:
        raise ValueError(
            f"{' and '.join(foreign)}: divergence {divergence} has no such parameter; it takes "
            f"{' or '.join(own)}, or target_ess."
        )
    if sum(name in given for name in own) > 1:
        raise ValueError("beta is the chi-square penalty and rho the ball; give one of them.")
    order = [*own, "target_kl", "target_ess"]
    first = next((name for name in order if name in given), None)
    chosen = {name: value for name, value in given.items() if name == first or name not in order}
    return {**chosen, "beta": BETA} if first is None and "beta" in own else chosen


class HardnessWeighted(Objective):
    """min over theta of max over q of sum_i q_i L_i - (1/beta) KL(q || uniform), by drawing from q.

    Fidon et al. 2022, MELBA, arXiv:2001.02658: the inner maximum is q = softmax(beta * L), and drawing the batches
    from q with the stale losses in place of L makes plain SGD follow the gradient of the robust risk. The chi-square
    divergence and CVaR state other inner problems, see `droseg.sampling.divergences`.

    Args:
        setting: cases and batches.
        beta: robustness, >= 0. With a target it is the beta until every case has been visited.
        target_ess: if given, the robustness follows the losses as they shrink so that the effective sample size of q is
            this fraction of N: for KL beta is solved at the end of each epoch; a chi-square ball has rho = (1/target -
            1)/2, and CVaR alpha = target, from the start.
        target_kl: if given, beta is solved at the end of each epoch for this KL(q || uniform), in nats. KL only.
        max_beta: largest beta that is solved for; losses that hardly differ would ask for any.
        warmup_epochs: over the first epochs beta rises linearly from 0 to its value.
        importance_weighting: whether to correct for stale losses and altered draws; see `weights`.
        replacement, floor, divergence, rho, alpha, mix, cap, trim, max_age: see the batch sampler.
    Raises:
        ValueError: for an argument outside its range, or two targets at once.
    """

    name = "hardness"
    draws_by_loss = True
    uses = HARDNESS_KEYS

    def __init__(
        self,
        setting: Setting,
        beta: float = BETA,
        target_ess: float | None = None,
        importance_weighting: bool = False,
        replacement: bool = False,
        floor: float = 0.0,
        divergence: str = "kl",
        rho: float | None = None,
        alpha: float | None = None,
        target_kl: float | None = None,
        max_beta: float = 1e4,
        warmup_epochs: int = 0,
        mix: float = 0.0,
        cap: float | None = None,
        trim: float = 0.0,
        max_age: float | None = None,
    ) -> None:
        _check_targets(target_ess, target_kl, divergence, warmup_epochs)
        if target_ess is not None and divergence == "chi2" and rho is None:
            rho = (1.0 / target_ess - 1.0) / 2.0
        if target_ess is not None and divergence == "cvar" and alpha is None:
            alpha = target_ess
        self.target_ess = target_ess if divergence == "kl" else None
        self.target_kl, self.max_beta, self.warmup_epochs = target_kl, max_beta, warmup_epochs
        self.hardness_sampler = HardnessWeightedBatchSampler(
            setting.history,
            beta,
            setting.batch_size,
            setting.num_batches,
            replacement,
            setting.seed,
            floor,
            setting.rank,
            setting.world_size,
            divergence=divergence,
            rho=rho,
            alpha=alpha,
            mix=mix,
            cap=cap,
            trim=trim,
            max_age=max_age,
        )
        super().__init__(setting.history, self.hardness_sampler)
        if warmup_epochs and not self.hardness_sampler.has_beta:
            raise ValueError(
                f"beta_warmup_epochs is {warmup_epochs}, but divergence {divergence} has no beta to raise here; "
                "set it to 0."
            )
        self.importance_weighting = importance_weighting
        self._full_beta = self.hardness_sampler.beta
        self._weighted = self._clipped = 0
        self._warm_up(0)

    @property
    def less_robust(self) -> str:  # type: ignore[override]
        """What to set so that the draws lean less on the hard cases."""
        return self._change("raise", "lower")

    @property
    def more_robust(self) -> str:  # type: ignore[override]
        """What to set so that the draws lean more on them."""
        return self._change("lower", "raise")

    def _change(self, of_fraction: str, of_strength: str) -> str:
        divergence = self.hardness_sampler.divergence
        if self.target_ess is not None:
            return f"{of_fraction} target_ess ({self.target_ess:g})"
        if self.target_kl is not None:
            return f"{of_strength} target_kl ({self.target_kl:g})"
        if isinstance(divergence, CVaR):
            return f"{of_fraction} alpha ({divergence.alpha:g})"
        if isinstance(divergence, ChiSquare) and divergence.rho is not None:
            return f"{of_strength} rho ({divergence.rho:g})"
        return f"{of_strength} beta ({self.beta:.3g}), or set target_ess (e.g. 0.5) in its place"

    def describe(self) -> str:
        """Return in one line which problem is solved, with what robustness, and the guards that are on."""
        divergence = self.hardness_sampler.divergence
        if self.target_ess is not None:
            robustness = f"beta solved for an effective sample size of {self.target_ess:g} N"
        elif self.target_kl is not None:
            robustness = f"beta solved for KL(q || uniform) = {self.target_kl:g}"
        elif isinstance(divergence, CVaR):
            robustness = f"the worst {100 * divergence.alpha:g} % of the cases (alpha {divergence.alpha:g})"
        elif isinstance(divergence, ChiSquare) and divergence.rho is not None:
            robustness = f"ball of rho {divergence.rho:.3g}"
        else:
            robustness = f"beta {self._full_beta:g}"
        warmup = f", rising over {self.warmup_epochs} epochs" if self.warmup_epochs else ""
        shown = ("mix", "max_age", "cap", "trim", "floor", "replacement", "importance_weighting")
        guards = [f"{name} {self.settings[name]}" for name in shown if self.settings.get(name)]
        return ", ".join([f"hardness ({divergence.name})", robustness + warmup, *guards])

    def _warm_up(self, epoch: int) -> None:
        """Set the beta of the epoch after `epoch`."""
        if self.warmup_epochs:
            self.hardness_sampler.beta = self._full_beta * min(1.0, epoch / self.warmup_epochs)
        elif self.hardness_sampler.beta != self._full_beta:
            self.hardness_sampler.beta = self._full_beta

    def weights(self, indices: list[int], losses: Tensor) -> Tensor:
        """Return the importance weight of each loss, clipped to [0.1, 10]; 1 on a case's first visit.

        Where the draw follows softmax(beta * stale loss) alone: exp(beta (1-m) (L_new - L_stale)). Where mixing, caps,
        age, another divergence or a beta changed since let the draw differ from the target: the target at the loss
        as it will be over the probability at draw time, divided by the mean of these ratios over the items of the
        batch. L_stale is the loss at draw time, not the one that other batches have written since. L_new is the mean
        over the case's items (patches, repeats, ranks), as in the history.
        """
        if not self.importance_weighting or self.current_draw is None:
            return torch.ones_like(losses)
        draw = self.current_draw
        drawn = {index: row for row, index in enumerate(draw.indices) if draw.visited[row]}
        new = {index: loss for index, loss in case_means(indices, losses).items() if index in drawn}
        weigh = self._altered if self._is_altered(draw) else self._plain
        log_weight = weigh(draw, drawn, new, indices)
        low, high = (math.log(bound) for bound in WEIGHT_BOUNDS)
        # log weight 0 on a first visit: the stale loss of an unvisited case is a constant of ours, not a measurement.
        exponents = [log_weight.get(index, 0.0) for index in indices]
        self._weighted += len(exponents)
        self._clipped += sum(not low <= exponent <= high for exponent in exponents)
        return losses.new_tensor([math.exp(min(max(exponent, low), high)) for exponent in exponents])

    def _is_altered(self, draw: Draw) -> bool:
        sampler = self.hardness_sampler
        plain = sampler.divergence.name == "kl" and not sampler.alters_draws and not sampler.floor
        return not plain or draw.beta != sampler.beta

    def _plain(self, draw: Draw, drawn: dict[int, int], new: dict[int, float], indices: list[int]) -> dict[int, float]:
        share = self.beta * (1.0 - self.history.momentum)
        return {index: share * (loss - draw.stale_loss[drawn[index]]) for index, loss in new.items()}

    def _altered(
        self, draw: Draw, drawn: dict[int, int], new: dict[int, float], indices: list[int]
    ) -> dict[int, float]:
        if not new:
            return {}
        m = self.history.momentum
        log_ratio = {}
        for index, loss in new.items():
            row = drawn[index]
            target = self.hardness_sampler.target_log_weight(m * draw.stale_loss[row] + (1.0 - m) * loss)
            log_ratio[index] = target - math.log(max(draw.probability[row], 5e-324))
        # Every item counts, so that a case that was drawn twice does so twice.
        items = np.array([log_ratio[index] for index in indices if index in log_ratio])
        largest = float(items.max())
        if largest == -math.inf:
            return {}
        mean = largest + math.log(float(np.exp(items - largest).mean()))
        return {index: each - mean for index, each in log_ratio.items()}

    def risk(self) -> float:
        """Return the robust risk of the stale losses: the value of the inner maximum."""
        return self.hardness_sampler.divergence.risk(self.history.loss[self.history.counted])

    def epoch_completed(self, epoch: int) -> dict[str, float]:
        """Solve beta for its target; return beta, the clipped fraction of the weights, refits and lost cases. O(N)."""
        sampler = self.hardness_sampler
        if (self.target_ess is not None or self.target_kl is not None) and self.history.all_visited:
            stale = torch.from_numpy(sampler.limited_losses())
            if self.target_kl is not None:
                self._full_beta = solve_beta_for_kl(stale, self.target_kl, self.max_beta)
            elif self.target_ess is not None:
                self._full_beta = solve_beta(stale, self.target_ess, self.max_beta)
        self._warm_up(epoch)
        values = {"beta": self.beta, "refits": float(sampler.refits), "underflow": float(sampler.num_underflowed())}
        if self._weighted:
            values["clipped_weights"] = self._clipped / self._weighted
        self._weighted = self._clipped = sampler.refits = 0
        return values

    def state_dict(self) -> dict[str, Any]:
        """Return all state as tensors and primitives."""
        mine = {"full_beta": self._full_beta, "weighted": self._weighted, "clipped": self._clipped}
        return {**super().state_dict(), **mine}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a saved state of the same objective."""
        super().load_state_dict(state)
        self._full_beta = float(state["full_beta"])
        self._weighted, self._clipped = int(state["weighted"]), int(state["clipped"])

    def carry_over(self, state: dict[str, Any]) -> None:
        """Take over the losses of the cases that remain, and a solved beta until it can be solved for the new cases."""
        super().carry_over(state)
        if "full_beta" in state and (self.target_ess is not None or self.target_kl is not None):
            self._full_beta, self.hardness_sampler.beta = float(state["full_beta"]), float(state["sampler"]["beta"])


def _check_targets(target_ess: float | None, target_kl: float | None, divergence: str, warmup_epochs: int) -> None:
    if target_ess is not None and not 0.0 < target_ess <= 1.0:
        raise ValueError(f"target_ess is {target_ess}; it is a fraction of the cases, > 0 and <= 1.")
    if target_kl is not None and (divergence != "kl" or target_ess is not None):
        raise ValueError("target_kl goes with divergence kl and without target_ess; give one target only.")
    if target_kl is not None and not (math.isfinite(target_kl) and target_kl >= 0.0):
        raise ValueError(f"target_kl is {target_kl}; it must be a number of nats >= 0 (0 is uniform).")
    if warmup_epochs < 0:
        raise ValueError(f"beta_warmup_epochs is {warmup_epochs}; it must be >= 0.")
