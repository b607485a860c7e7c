"""Empirical risk minimization: the plain mean over the training cases."""

from __future__ import annotations

from droseg.objectives.base import Objective
from droseg.sampling import LossHistory, ShuffledBatchSampler


class ERM(Objective):
    """Shuffled passes, all weights 1. It keeps the loss history too, so that its hardest cases can be looked at."""

    name = "erm"

    def __init__(
        self,
        history: LossHistory,
        batch_size: int,
        num_batches: int,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        super().__init__(history, ShuffledBatchSampler(history, batch_size, num_batches, seed, rank, world_size))
