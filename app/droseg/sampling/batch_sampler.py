"""Batch samplers: hardness-weighted draws from a loss history, and the shuffled epochs of ERM."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.utils.data import Sampler

from droseg.sampling.history import LossHistory, check_beta
from droseg.sampling.tree import LogSumTree


@dataclass(frozen=True)
class Draw:
    """One global batch as it was drawn: what an importance weight and the measured lag need later."""

    indices: tuple[int, ...]
    probability: tuple[float, ...]
    """Probability q of each case at draw time, before any case left the urn."""
    stale_loss: tuple[float, ...]
    visited: tuple[bool, ...]
    """Whether the case had been visited before this draw; if not, its stale loss is the initial one."""
    num_updates: int
    """Updates of the history before this draw; what came since is the lag."""


class _RecordingBatchSampler(Sampler[list[int]], ABC):
    """Draws lazily, one global batch at a time, in the main process, and remembers what is not yet used.

    A batch sampler by construction: as a `sampler=` without replacement every epoch would visit every case exactly
    once, and hardness would change the order of the cases and never their frequency.
    """

    def __init__(
        self, history: LossHistory, batch_size: int, num_batches: int, seed: int, rank: int, world_size: int
    ) -> None:
        if batch_size < 1 or num_batches < 1:
            raise ValueError(f"batch_size is {batch_size}, num_batches is {num_batches}; both must be >= 1.")
        if not 0 <= rank < world_size or batch_size % world_size:
            raise ValueError(
                f"rank {rank} of {world_size}, global batch_size {batch_size}: "
                "the global batch must be a multiple of the number of ranks."
            )
        self.history, self.batch_size, self.num_batches = history, int(batch_size), int(num_batches)
        self.rank, self.world_size = rank, world_size
        self.generator = torch.Generator().manual_seed(int(seed))
        self.pending: deque[Draw] = deque()

    def __len__(self) -> int:
        return self.num_batches

    def __iter__(self) -> Iterator[list[int]]:
        self.pending.clear()
        for _ in range(self.num_batches):
            draw = self.draw()
            self.pending.append(draw)
            yield self.share(draw)

    def share(self, draw: Draw) -> list[int]:
        """Return the cases of a global batch that this rank trains."""
        per_rank = self.batch_size // self.world_size
        return list(draw.indices[self.rank * per_rank : (self.rank + 1) * per_rank])

    @abstractmethod
    def draw(self) -> Draw:
        """Draw one global batch."""

    def _record(self, indices: list[int], probability: list[float]) -> Draw:
        history = self.history
        return Draw(
            tuple(indices),
            tuple(probability),
            tuple(float(history.loss[index]) for index in indices),
            tuple(bool(history.visits[index]) for index in indices),
            history.num_updates,
        )

    def state_dict(self) -> dict[str, Any]:
        """Return the generator's state, as tensors and primitives."""
        return {"generator": self.generator.get_state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue with a saved generator."""
        self.generator.set_state(state["generator"])


class HardnessWeightedBatchSampler(_RecordingBatchSampler):
    """Each batch is drawn from softmax(beta * stale loss), Fidon et al. 2022, arXiv:2001.02658, algorithm 1.

    Without replacement inside the batch (default) the cases of a batch are drawn one after the other, the
    probabilities renormalized over those left (Plackett-Luce). No case can then fill more than 1 / batch_size of
    the slots: where batch_size * max q is above 1, the batch is more uniform than q. A draw and an update cost
    O(log N); changing beta costs O(N).

    Args:
        history: the stale losses; the sampler follows its updates at once.
        beta: robustness, >= 0; 0 draws independent uniform batches.
        batch_size: cases per (global) batch.
        num_batches: batches per epoch.
        replacement: whether a case may occur more than once in a batch.
        seed: of the sampler's own generator.
        floor: probabilities below floor / N are raised to it and all renormalized; 1e-4 reproduces the authors'
            released code. Above 0 a draw costs O(N).
        rank, world_size: under torch.distributed every rank draws the same global batch and yields its own slice.
    Raises:
        ValueError: for a negative beta, or if a batch without replacement is larger than the number of cases.
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
    ) -> None:
        super().__init__(history, batch_size, num_batches, seed, rank, world_size)
        if not replacement and batch_size > len(history):
            raise ValueError(
                f"batch_size is {batch_size} but there are {len(history)} cases, and a batch is drawn without "
                "replacement; lower batch_size or set replacement=True."
            )
        if not 0.0 <= floor < 1.0:
            raise ValueError(f"floor is {floor}; it must be >= 0 and < 1 (times 1/N).")
        self.replacement, self.floor = replacement, floor
        self._beta = check_beta(beta)
        self._tree = self._build_tree()
        history.subscribe(self._follow)

    @property
    def beta(self) -> float:
        """Robustness; setting it rebuilds the tree in O(N)."""
        return self._beta

    @beta.setter
    def beta(self, beta: float) -> None:
        with self.history.lock:
            self._beta = check_beta(beta)
            self._tree = self._build_tree()

    def _build_tree(self) -> LogSumTree:
        return LogSumTree(self._beta * self.history.loss)

    def _follow(self, changed: list[int] | None) -> None:
        if changed is None:
            self._tree = self._build_tree()
            return
        for index in changed:
            self._tree.set(index, self._beta * float(self.history.loss[index]))

    def draw(self) -> Draw:
        """Draw one global batch from the history as it is now."""
        with self.history.lock:
            return self._draw_from(self._floored_tree() if self.floor else self._tree)

    def _draw_from(self, tree: LogSumTree) -> Draw:
        log_total = tree.log_total
        indices: list[int] = []
        taken: list[float] = []
        for _ in range(self.batch_size):
            index = tree.draw(self.generator)
            indices.append(index)
            taken.append(tree.log_weight(index))
            if not self.replacement:
                tree.set(index, -math.inf)
        if not self.replacement:
            for index, log_weight in zip(indices, taken, strict=True):
                tree.set(index, log_weight)
        return self._record(indices, [math.exp(log_weight - log_total) for log_weight in taken])

    def _floored_tree(self) -> LogSumTree:
        probability = self.history.probabilities(self._beta).numpy()
        return LogSumTree(np.log(np.maximum(probability, self.floor / len(self.history))))

    def state_dict(self) -> dict[str, Any]:
        """Return beta and the generator's state, as tensors and primitives."""
        return {**super().state_dict(), "beta": self._beta}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue with a saved beta and generator."""
        super().load_state_dict(state)
        self.beta = state["beta"]


class ShuffledBatchSampler(_RecordingBatchSampler):
    """ERM: every case once per pass, in a new random order each pass; passes run on across epochs of fixed length.

    A batch that reaches over the end of a pass is filled from the next one.
    """

    def __init__(
        self,
        history: LossHistory,
        batch_size: int = 2,
        num_batches: int = 100,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        super().__init__(history, batch_size, num_batches, seed, rank, world_size)
        self._rest: list[int] = []

    def draw(self) -> Draw:
        """Take the next cases of the current pass."""
        while len(self._rest) < self.batch_size:
            self._rest += torch.randperm(len(self.history), generator=self.generator).tolist()
        indices, self._rest = self._rest[: self.batch_size], self._rest[self.batch_size :]
        return self._record(indices, [1.0 / len(self.history)] * len(indices))

    def state_dict(self) -> dict[str, Any]:
        """Return the rest of the current pass and the generator's state, as tensors and primitives."""
        return {**super().state_dict(), "rest": list(self._rest)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue in the middle of a saved pass."""
        super().load_state_dict(state)
        self._rest = [int(index) for index in state["rest"]]
