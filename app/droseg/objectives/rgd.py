"""Re-weighted gradient descent: each loss of a batch is weighted by its own exponential."""

from __future__ import annotations

import math

from torch import Tensor

from droseg.objectives.base import Objective, Setting
from droseg.sampling import robust_risk


class RGD(Objective):
    """SGD on the KL-robust risk with the batch in place of the cases: shuffled passes, weight exp(min(L, tau)/(tau+1)).

    Kumar et al. 2024, TMLR, arXiv:2306.09222, algorithm 1 with the re-weighting of the KL divergence (RGD-exp) and the
    clipping and scale of their experiments. The weights lie in (0, e) and are not normalized there, so that a batch of
    hard cases also makes a longer step; `normalize` divides them by their mean over the global batch.

    Args:
        setting: cases and batches.
        tau: loss from which on all weights are the same, > 0.
        normalize: whether the weights of a batch average to 1.
    Raises:
        ValueError: if tau is not a number above 0.
    """

    name = "rgd"

    def __init__(self, setting: Setting, tau: float = 1.0, normalize: bool = False) -> None:
        if not (math.isfinite(tau) and tau > 0.0):
            raise ValueError(f"tau is {tau}; it is the loss at which the weights are clipped, > 0.")
        super().__init__(setting.history, setting.shuffled())
        self.tau, self.normalize = float(tau), normalize

    def weights(self, indices: list[int], losses: Tensor) -> Tensor:
        """Return exp(min(L, tau) / (tau + 1)) of each loss, without gradient."""
        values = losses.detach().double().cpu()
        weight = (values.clamp(max=self.tau) / (self.tau + 1.0)).exp()
        if self.normalize:
            weight = weight / weight.mean()
        return losses.new_tensor(weight.tolist())

    def risk(self) -> float:
        """Return (tau + 1) log mean exp(L / (tau + 1)): the robust risk whose gradient the weights follow below tau."""
        return robust_risk(self.history.loss, 1.0 / (self.tau + 1.0))
