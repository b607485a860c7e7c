"""Fair error-bound scaling: the scores of groups with a larger loss in the batch are scaled down, and cost more."""

from __future__ import annotations

import math

import numpy as np
from torch import Tensor

from droseg.objectives.base import Objective, Setting
from droseg.objectives.group_balanced import sampler_of
from droseg.objectives.groups import groups_of


class FairErrorBoundScaling(Objective):
    """FairSeg's loss: Dice of predicted scores that are scaled by s_g = tanh((min_h D_h / D_g)^gamma) of their group.

    Tian et al. 2024, ICLR, arXiv:2311.02189, in the form of the authors' code (FairSeg, `febs_loss`, `FairDiceLoss`).
    D_g is the loss of group g in the batch, without gradient. The group with the smallest loss has s = tanh(1), those
    with larger ones less; smaller scores bound their Dice loss from below and keep pulling. Cross entropy stays as it
    is, weights are 1, and the history keeps the plain losses. What differs from the code:

    - There is one Dice over all voxels of the batch, which has no value per case; here each case has its own.
    - D_g is the mean over the group's items in the global batch of the overlap term of the training loss (of the whole
      loss, where that is none of `droseg.losses`), there the Dice loss of all their voxels.
    - Dice is that of the training: in our bundles without the background and not squared. Theirs counts the background
      and has squares in its denominator; `include_background=True, squared_pred=True` of the loss are the same.
    - A group without a case in the batch is left out. There its D_g counts as 0, and so every scale is 0: with a small
      batch and several groups, the Dice term then has no gradient at all.

    A batch of one group has the one scale tanh(1).

    Args:
        setting: cases, groups (the product of the axes) and batches.
        gamma: exponent of the scale, >= 0; 1 in the authors' code. 0 scales all groups alike.
        sampling: "shuffled" passes over the cases as in the authors' code, or "uniform" over the groups.
    Raises:
        ValueError: for an argument outside its range, or if there are no groups.
    """

    name = "febs"
    scales_scores = True

    def __init__(self, setting: Setting, gamma: float = 1.0, sampling: str = "shuffled") -> None:
        if not (math.isfinite(gamma) and gamma >= 0.0):
            raise ValueError(f"gamma is {gamma}; it must be a number >= 0 (0 scales all groups alike).")
        self.groups = groups_of(setting)
        super().__init__(setting.history, sampler_of(setting, self.groups, sampling, replacement=True))
        self.gamma = float(gamma)
        self._group_of_case = self.groups.of_case(len(setting.history))

    def score_scale(self, indices: list[int], losses: Tensor) -> Tensor | None:
        """Return s_g of each item of the global batch; None for a step that is left out."""
        values = losses.detach().double().cpu().numpy()
        if not np.isfinite(values).all():
            return None
        _, row = np.unique(self._group_of_case[indices], return_inverse=True)
        scale = fair_scale(np.bincount(row, weights=values) / np.bincount(row), self.gamma)
        return losses.new_tensor(scale[row].tolist())


def fair_scale(group_loss: np.ndarray, gamma: float) -> np.ndarray:
    """Return FairSeg's scale of each group, shape (G,): tanh((smallest loss / its loss)^gamma).

    Args:
        group_loss: losses of the groups that are in the batch, shape (G,); below 1e-12 they count as that.
        gamma: exponent, >= 0.
    """
    loss = np.maximum(group_loss, 1e-12)
    return np.asarray(np.tanh((loss.min() / loss) ** gamma))
