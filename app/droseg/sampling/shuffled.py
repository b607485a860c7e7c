"""Shuffled passes over the cases: what empirical risk minimization draws."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from droseg.sampling.history import LossHistory
from droseg.sampling.recording import RecordingBatchSampler


class ShuffledBatchSampler(RecordingBatchSampler):
    """ERM: every case once per pass, in a new random order each pass; passes run on across epochs of fixed length.

    A batch that reaches over the end of a pass is filled from the next one.

    Args:
        history, batch_size, num_batches, seed, rank, world_size: see `RecordingBatchSampler`.
        repeats: how often each case occurs in a pass, shape (N,); None: once.
    """

    def __init__(
        self,
        history: LossHistory,
        batch_size: int = 2,
        num_batches: int = 100,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        repeats: Sequence[int] | None = None,
    ) -> None:
        super().__init__(history, batch_size, num_batches, seed, rank, world_size)
        self._rest = np.empty(0, dtype=np.int64)
        self._cases = np.arange(len(history))
        if repeats is not None:
            self.repeat(repeats)
        history.subscribe(self._follow)

    def _follow(self, changed: list[int] | None) -> None:
        """Take out of the passes what the history has taken out."""
        if changed is None and self.history.excluded:
            counted = self.history.counted
            self._cases, self._rest = (each[counted[each]] for each in (self._cases, self._rest))

    def repeat(self, repeats: Sequence[int]) -> None:
        """Let each case occur so often in a pass, from now on; the current pass is given up.

        Raises:
            ValueError: if the numbers are not one per case, negative, or all 0.
        """
        times = np.asarray(repeats, dtype=np.int64)
        if times.shape != (len(self.history),) or times.min() < 0 or times.sum() == 0:
            raise ValueError(f"repeats are one whole number >= 0 for each of {len(self.history)} cases, not all 0.")
        self._cases = np.repeat(np.arange(len(self.history)), times * self.history.counted)
        self._rest = np.empty(0, dtype=np.int64)

    def draw_batch(self) -> tuple[list[int], list[float]]:
        """Take the next cases of the current pass."""
        while len(self._rest) < self.batch_size:
            order = torch.randperm(len(self._cases), generator=self.generator)
            self._rest = np.concatenate([self._rest, self._cases[order.numpy()]])
        indices, self._rest = self._rest[: self.batch_size].tolist(), self._rest[self.batch_size :]
        return indices, [float(self._share(index)) for index in indices]

    def _share(self, index: int) -> float:
        first, last = np.searchsorted(self._cases, [index, index + 1])
        return float(last - first) / len(self._cases)

    def probabilities(self) -> np.ndarray:
        """Return the share of each case in a pass, shape (N,)."""
        return np.bincount(self._cases, minlength=len(self.history)) / len(self._cases)

    def state_dict(self) -> dict[str, Any]:
        """Return the rest of the current pass and the base's state, as tensors and primitives."""
        repeats = torch.from_numpy(np.bincount(self._cases, minlength=len(self.history)))
        return {**super().state_dict(), "rest": torch.from_numpy(self._rest.copy()), "repeats": repeats}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue in the middle of a saved pass."""
        super().load_state_dict(state)
        self.repeat(state["repeats"].tolist())
        self._rest = state["rest"].numpy().copy()
