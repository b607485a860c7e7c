"""What every objective is: what it draws, what it weights, what state it keeps."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from droseg.sampling import Draw, HardnessWeightedBatchSampler, LossHistory, ShuffledBatchSampler


class Objective:
    """Makes some training cases count more than others, by how they are drawn and how their losses are weighted.

    A subclass chooses the batch sampler and may override `weights` and `epoch_completed`. The trainer calls, for
    each step, `begin_batch`, `weights` (before the backward pass) and `update` (with the losses of all ranks).
    """

    name = "objective"

    def __init__(self, history: LossHistory, sampler: HardnessWeightedBatchSampler | ShuffledBatchSampler) -> None:
        self.history, self.sampler = history, sampler
        self.current_draw: Draw | None = None

    @property
    def beta(self) -> float:
        """Robustness of the draws; 0 where they are uniform."""
        return 0.0

    def begin_batch(self, indices: list[int]) -> Draw:
        """Return the draw that the batch with these case indices came from.

        Raises:
            RuntimeError: if the batch was not drawn by this objective's sampler, next in turn.
        """
        if not self.sampler.pending:
            raise RuntimeError(
                "a batch arrived that the objective's sampler did not draw; "
                "give the DataLoader batch_sampler=objective.sampler."
            )
        draw = self.sampler.pending.popleft()
        if set(indices) != set(self.sampler.share(draw)):
            raise RuntimeError(
                f"the batch holds the cases {indices}, but the draw in turn was {self.sampler.share(draw)}; the "
                "DataLoader must hand out every drawn case, in the order of the draws (in_order=True)."
            )
        self.current_draw = draw
        return draw

    def weights(self, indices: list[int], losses: Tensor) -> Tensor:
        """Return the importance weight of each loss of the batch, shape (B,), without gradient."""
        return torch.ones_like(losses)

    def update(self, indices: list[int], losses: list[float]) -> None:
        """Feed the losses of one step (of all ranks) back."""
        self.history.update(indices, losses)

    def epoch_completed(self) -> dict[str, float]:
        """Do what costs O(N) once per epoch; return values worth logging."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        """Return all state as tensors and primitives."""
        return {"name": self.name, "history": self.history.state_dict(), "sampler": self.sampler.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a saved state of the same objective."""
        if state["name"] != self.name:
            raise ValueError(f"the saved state is of objective {state['name']}, this one is {self.name}.")
        self.history.load_state_dict(state["history"])
        self.sampler.load_state_dict(state["sampler"])
