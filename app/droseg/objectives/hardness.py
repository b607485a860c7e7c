"""Hardness-weighted sampling for KL-regularized distributionally robust optimization."""

from __future__ import annotations

import logging
import math

import numpy as np
import torch
from torch import Tensor

from droseg.objectives.base import Objective
from droseg.sampling import HardnessWeightedBatchSampler, LossHistory, solve_beta
from droseg.sampling.history import check_beta

logger = logging.getLogger(__name__)

WEIGHT_BOUNDS = (0.1, 10.0)
"""Clipping of importance weights, as in the authors' released code."""


class HardnessWeighted(Objective):
    """min over theta of max over q of sum_i q_i L_i - (1/beta) KL(q || uniform), by drawing from q.

    Fidon et al. 2022, MELBA, arXiv:2001.02658: the inner maximum is q = softmax(beta * L), and drawing the batches
    from q with the stale losses in place of L makes plain SGD follow the gradient of the robust risk.

    Args:
        history, batch_size, num_batches, seed, replacement, floor, rank, world_size: see the batch sampler.
        beta: robustness, >= 0. With `target_ess` it is the beta until every case has been visited.
        target_ess: if given, beta is solved at the end of each epoch so that the effective sample size of q is this
            fraction of N; it so follows the losses as they shrink.
        importance_weighting: whether to correct for stale losses by exp(beta (1-m) (L_new - L_stale)), clipped.
    Raises:
        ValueError: for a negative beta or a target outside (0, 1].
    """

    name = "hardness"

    def __init__(
        self,
        history: LossHistory,
        batch_size: int,
        num_batches: int,
        seed: int = 0,
        beta: float = 10.0,
        target_ess: float | None = None,
        importance_weighting: bool = False,
        replacement: bool = False,
        floor: float = 0.0,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self._hardness_sampler = HardnessWeightedBatchSampler(
            history, check_beta(beta), batch_size, num_batches, replacement, seed, floor, rank, world_size
        )
        super().__init__(history, self._hardness_sampler)
        if target_ess is not None and not 0.0 < target_ess <= 1.0:
            raise ValueError(f"target_ess is {target_ess}; it is a fraction of the cases, > 0 and <= 1.")
        self.target_ess, self.importance_weighting = target_ess, importance_weighting
        self._weighted = self._clipped = 0

    @property
    def beta(self) -> float:
        """Robustness that the next draw uses."""
        return self._hardness_sampler.beta

    def weights(self, indices: list[int], losses: Tensor) -> Tensor:
        """Return exp(beta (1-m) (L_new - L_stale)) clipped to [0.1, 10], and 1 on a case's first visit.

        L_stale is the loss at draw time, not the one that other batches have written since. L_new is the mean over
        the case's items of the batch (patches, replacement), as in the history.
        """
        if not self.importance_weighting or self.current_draw is None:
            return torch.ones_like(losses)
        draw = self.current_draw
        stale = {i: loss for i, loss, seen in zip(draw.indices, draw.stale_loss, draw.visited, strict=True) if seen}
        new_share = self.beta * (1.0 - self.history.momentum)
        low, high = (math.log(bound) for bound in WEIGHT_BOUNDS)
        # log weight 0 on a first visit: the stale loss of an unvisited case is a constant of ours, not a measurement.
        rows = np.asarray(indices)
        values = losses.double().cpu().numpy()
        case_loss = {index: float(values[rows == index].mean()) for index in set(indices)}
        exponents = [new_share * (case_loss[i] - stale.get(i, case_loss[i])) for i in indices]
        self._weighted += len(exponents)
        self._clipped += sum(not low <= exponent <= high for exponent in exponents)
        return losses.new_tensor([math.exp(min(max(exponent, low), high)) for exponent in exponents])

    def epoch_completed(self) -> dict[str, float]:
        """Solve beta for the target effective sample size; return beta and the clipped fraction of the weights."""
        if self.target_ess is not None and self.history.visits.min() > 0:
            self._hardness_sampler.beta = solve_beta(torch.from_numpy(self.history.loss), self.target_ess)
        values = {"beta": self.beta}
        if self._weighted:
            values["clipped_weights"] = self._clipped / self._weighted
        self._weighted = self._clipped = 0
        return values
