"""Group DRO: an adversary weights the groups by their losses."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from droseg.objectives.base import Objective, Setting
from droseg.objectives.group_balanced import group_means, sampler_of
from droseg.objectives.groups import check_same_groups, groups_of


class GroupDRO(Objective):
    """min over theta of max over groups of the group's mean loss, by online mirror ascent on the groups' weights q.

    Sagawa et al. 2020, ICLR, arXiv:1911.08731, algorithm 1 with the group adjustments of section 3.3, in the mini-batch
    form of the authors' code (group_DRO, `LossComputer.compute_robust_loss`). In each step, with L_g the mean loss of
    group g in the global batch: q_g <- q_g exp(step_size (L_g + adjustment / sqrt(n_g))), normalized; then a step on
    sum_g q_g L_g with the new q.

    A group without a case in the batch keeps its q before normalization, as one that algorithm 1 does not sample, and
    adds nothing to the loss. The authors' code does the same but for the adjustment, which it adds to absent groups too
    (and to all groups only if it is above 0 for all): with an adjustment, groups rarely in a batch would gain weight
    there by their absence alone.

    Args:
        setting: cases, groups (the product of the axes) and batches.
        step_size: of the adversary, >= 0; 0.01 in the paper. 0 keeps q uniform.
        adjustment: C >= 0 of the group adjustment C / sqrt(n_g), which makes up for the larger gap between training and
            test loss of small groups; the paper tries 0 to 5.
        sampling: "uniform" over the groups as in the paper, or "shuffled" passes over the cases.
        replacement: of the uniform sampling, whether a case may be in a batch twice; the authors' code does so.
    Raises:
        ValueError: for an argument outside its range, or if there are no groups.
    """

    name = "group_dro"

    def __init__(
        self,
        setting: Setting,
        step_size: float = 0.01,
        adjustment: float = 0.0,
        sampling: str = "uniform",
        replacement: bool = True,
    ) -> None:
        if not (math.isfinite(step_size) and step_size >= 0.0):
            raise ValueError(f"step_size is {step_size}; it must be a number >= 0 (0 keeps all groups equal).")
        if not (math.isfinite(adjustment) and adjustment >= 0.0):
            raise ValueError(f"adjustment is {adjustment}; it must be a number >= 0 (0 adjusts nothing).")
        self.groups = groups_of(setting)
        super().__init__(setting.history, sampler_of(setting, self.groups, sampling, replacement))
        self.step_size = float(step_size)
        self.adjustment = adjustment / np.sqrt(self.groups.sizes)
        self._group_of_case = self.groups.of_case(len(setting.history))
        self._log_q = np.full(len(self.groups), -math.log(len(self.groups)))

    @property
    def adversary(self) -> np.ndarray:
        """Weight q of each group, shape (G,), sums to 1."""
        return np.exp(self._log_q)

    def weights(self, indices: list[int], losses: Tensor) -> Tensor:
        """Let the adversary make its step; return q_g B / B_g, so that the weighted mean is sum_g q_g L_g.

        If a loss is not finite the step is left out by the trainer, and by the adversary.
        """
        values = losses.detach().double().cpu().numpy()
        if not np.isfinite(values).all():
            return torch.ones_like(losses)
        group = self._group_of_case[indices]
        count = np.bincount(group, minlength=len(self.groups))
        present = count > 0
        mean = np.bincount(group, weights=values, minlength=len(self.groups))[present] / count[present]
        log_q = self._log_q.copy()
        log_q[present] += self.step_size * (mean + self.adjustment[present])
        self._log_q = log_q - np.logaddexp.reduce(log_q)
        return losses.new_tensor((self.adversary[group] * len(values) / count[group]).tolist())

    def risk(self) -> float:
        """Return the largest adjusted mean stale loss of a group: what is minimized."""
        return float(np.nanmax(group_means(self.history, self.groups) + self.adjustment))

    def epoch_completed(self, epoch: int) -> dict[str, float]:
        """Return the adversary's weight of each group."""
        return {f"adversary/{name}": float(q) for name, q in zip(self.groups.names, self.adversary, strict=True)}

    def state_dict(self) -> dict[str, Any]:
        """Return all state, the adversary's with it, as tensors and primitives."""
        mine = {"groups": list(self.groups.names), "log_q": torch.from_numpy(self._log_q.copy())}
        return {**super().state_dict(), **mine}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a saved state of the same objective and groups."""
        super().load_state_dict(state)
        check_same_groups(state["groups"], self.groups)
        self._log_q = state["log_q"].numpy().copy()
