"""What all batch samplers share: lazy draws in the main process, their record, and a state mid-epoch."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch.utils.data import Sampler

from droseg.sampling.history import LossHistory

MAX_PENDING = 4096
"""Batches drawn ahead that are remembered; no DataLoader prefetches that many."""


class SeededIndex(int):
    """The index of a drawn case, with the seed of its augmentation.

    An augmentation that follows from the draw alone is the same with any number of workers, and after a resume in
    the middle of an epoch; see `droseg.data.seeded`.
    """

    seed: int

    def __new__(cls, index: int, seed: int) -> SeededIndex:
        """Make the index."""
        self = super().__new__(cls, index)
        self.seed = seed
        return self

    def __reduce__(self) -> tuple[type[SeededIndex], tuple[int, int]]:
        """Return what a data-loading worker rebuilds it from."""
        return SeededIndex, (int(self), self.seed)


@dataclass(frozen=True)
class Draw:
    """One global batch as it was drawn: what an importance weight, the measured lag and the audit need later."""

    indices: tuple[int, ...]
    probability: tuple[float, ...]
    """Probability of each case at draw time, before any case left the urn."""
    stale_loss: tuple[float, ...]
    visited: tuple[bool, ...]
    """Whether the case had been visited before this draw; if not, its stale loss is the initial one."""
    num_updates: int
    """Updates of the history before this draw; what came since is the lag."""
    seeds: tuple[int, ...]
    """Seed of the augmentation of each case."""
    beta: float
    """Robustness of this draw; 0 where the draws do not follow the losses."""


class RecordingBatchSampler(Sampler[list[int]], ABC):
    """Draws lazily, one global batch at a time, in the main process, and remembers what is not yet used.

    A batch sampler by construction: as a `sampler=` without replacement every epoch would visit every case exactly
    once, and hardness would change the order of the cases and never their frequency.

    The state can be saved at any time, also in the middle of an epoch: the next pass over the sampler then yields the
    rest of that epoch, beginning with the batches that were drawn ahead and not used (if `keeps_pending`).

    Args:
        history: the stale losses.
        batch_size: cases per (global) batch.
        num_batches: batches per epoch.
        seed: of the sampler's own generator.
        rank, world_size: under torch.distributed every rank draws the same global batch and yields its own slice.
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
        self.pending: deque[Draw] = deque(maxlen=MAX_PENDING)
        self.whole_pass_s = 0.0
        """Seconds that the samplers' own O(N) work took; whoever logs it puts it back to 0."""
        self.keeps_pending = False
        """Whether somebody takes each draw out of `pending` as it is used; if not, every yielded batch is used."""
        self._num_drawn = self.num_batches  # of the current epoch; none has begun
        self._again: deque[Draw] = deque()

    def __len__(self) -> int:
        return self.num_batches

    @property
    def beta(self) -> float:
        """Robustness of the next draw; 0 where the draws do not follow the losses."""
        return 0.0

    def __iter__(self) -> Iterator[list[int]]:
        self.pending.clear()
        if not self._again and self._num_drawn >= self.num_batches:
            self._num_drawn = 0
            started = time.perf_counter()
            self.start_epoch()
            self.whole_pass_s += time.perf_counter() - started
        while self._again:  # one by one: the state may be saved again before all of them are handed out
            draw = self._again.popleft()
            self.pending.append(draw)
            yield self.share(draw)
        while self._num_drawn < self.num_batches:
            draw = self.draw()
            self._num_drawn += 1
            self.pending.append(draw)
            yield self.share(draw)

    def share(self, draw: Draw) -> list[int]:
        """Return the cases of a global batch that this rank trains."""
        per_rank = self.batch_size // self.world_size
        own = slice(self.rank * per_rank, (self.rank + 1) * per_rank)
        return [SeededIndex(i, seed) for i, seed in zip(draw.indices[own], draw.seeds[own], strict=True)]

    def start_epoch(self) -> None:
        """Do what costs O(N) and is due once per epoch."""

    @abstractmethod
    def draw_batch(self) -> tuple[list[int], list[float]]:
        """Return the cases of one global batch and the probability of each."""

    @abstractmethod
    def probabilities(self) -> np.ndarray:
        """Return the probability of each case to be drawn next, shape (N,); O(N)."""

    def draw(self) -> Draw:
        """Draw one global batch from the history as it is now."""
        history = self.history
        with history.lock:
            indices, probability = self.draw_batch()
            seeds = torch.randint(2**31, (len(indices),), generator=self.generator).tolist()
            return Draw(
                tuple(indices),
                tuple(probability),
                tuple(float(history.loss[index]) for index in indices),
                tuple(bool(history.visits[index]) for index in indices),
                history.num_updates,
                tuple(seeds),
                self.beta,
            )

    def state_dict(self) -> dict[str, Any]:
        """Return the generator, the place in the epoch and what is drawn but not used, as tensors and primitives."""
        with self.history.lock:
            pending = [*self.pending, *self._again] if self.keeps_pending else []
            return {
                "generator": self.generator.get_state(),
                "num_drawn": self._num_drawn,
                "pending": [{name: _plain(value) for name, value in asdict(draw).items()} for draw in pending],
            }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where a saved sampler was, with any number of ranks."""
        self.generator.set_state(state["generator"])
        self._num_drawn = int(state["num_drawn"])
        self.pending.clear()
        self._again = deque(_restored(saved) for saved in state["pending"])


def _restored(saved: dict[str, Any]) -> Draw:
    values: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value for name, value in saved.items()}
    return Draw(**values)


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
