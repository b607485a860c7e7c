"""Cases that were not trained for too long are drawn again."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch

from droseg.sampling.history import LossHistory

logger = logging.getLogger(__name__)

FREE, DRAWN, WAITING = 0, 1, 2
"""Status of a case in the plan of an epoch: not overdue; overdue and drawn since; overdue and still waiting."""


class Overdue:
    """A queue, planned once per epoch, of the cases that no draw has taken for `max_age` epochs.

    The queue is spread evenly over the epoch, and a case that is drawn meanwhile leaves it. So each case is trained at
    least once in any max_age + 1 epochs in a row, unless the overdue cases alone are more than the slots of an epoch;
    then the oldest come first. It keeps 1 byte per case and 4 per overdue case.

    Args:
        max_age: epochs; None: no case is ever overdue.
        num_cases: in the history.
        num_batches, batch_size: of an epoch.
    Raises:
        ValueError: for a maximum age that is not positive.
    """

    def __init__(self, max_age: float | None, num_cases: int, num_batches: int, batch_size: int) -> None:
        if max_age is not None and not max_age > 0.0:
            raise ValueError(f"max_age is {max_age}; it is a number of epochs > 0.")
        self.max_age, self.num_batches, self.batch_size = max_age, num_batches, batch_size
        self._status = np.full(num_cases if max_age is not None else 0, FREE, dtype=np.uint8)
        self._queue = np.empty(0, dtype=np.int32)
        self._next = self._num_waiting = self._num_planned = 0
        self._batches_left = num_batches

    @property
    def nbytes(self) -> int:
        """Memory of the plan."""
        return int(self._status.nbytes + self._queue.nbytes)

    def plan(self, history: LossHistory) -> None:
        """Find the overdue cases, oldest first; O(N), once per epoch."""
        self._batches_left = self.num_batches
        if self.max_age is None:
            return
        age = history.age
        overdue = np.flatnonzero((age >= self.max_age * self.num_batches) & history.counted)
        oldest_first = overdue[np.argsort(-age[overdue], kind="stable")]
        slots = self.num_batches * self.batch_size
        if len(oldest_first) > slots:
            logger.warning(
                "%d cases were not drawn for %g epochs, but an epoch has only %d slots: raise max_age or "
                "batches_per_epoch.", len(oldest_first), self.max_age, slots,
            )  # fmt: skip
            oldest_first = oldest_first[:slots]
        self._start(oldest_first, oldest_first)

    def _start(self, planned: np.ndarray, waiting: np.ndarray) -> None:
        self._status[:] = FREE
        self._status[planned] = DRAWN
        self._status[waiting] = WAITING
        self._queue, self._next = waiting.astype(np.int32), 0
        self._num_planned, self._num_waiting = len(planned), len(waiting)

    def take(self) -> list[int]:
        """Return the overdue cases whose turn it is in the next batch."""
        self._batches_left = max(0, self._batches_left - 1)
        may_wait = self._num_planned * self._batches_left // self.num_batches
        turn: list[int] = []
        while self._num_waiting > may_wait and len(turn) < self.batch_size:
            index = int(self._queue[self._next])
            self._next += 1
            if self._status[index] == WAITING:
                turn.append(index)
                self.drawn([index])
        return turn

    def drawn(self, indices: Iterable[int]) -> None:
        """Take cases off the queue that a draw has taken anyway."""
        if self._num_waiting:
            for index in indices:
                if self._status[index] == WAITING:
                    self._status[index] = DRAWN
                    self._num_waiting -= 1

    def probability(self, index: int, free: float) -> float:
        """Return the share of an epoch's slots that a case gets, if each free slot takes it with probability `free`."""
        if not self._num_planned:
            return free
        slots = self.num_batches * self.batch_size
        return bool(self._status[index] != FREE) / slots + (1.0 - self._num_planned / slots) * free

    def state_dict(self) -> dict[str, Any]:
        """Return the plan of the current epoch, as tensors and primitives."""
        left = self._queue[self._next :]
        return {
            "planned": torch.from_numpy(np.flatnonzero(self._status != FREE)),
            "waiting": torch.from_numpy(left[self._status[left] == WAITING].astype(np.int64)),
            "batches_left": self._batches_left,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue a plan; one of a run with a maximum age is nothing to a sampler without."""
        self._batches_left = int(state["batches_left"])
        if self.max_age is not None:
            self._start(state["planned"].numpy(), state["waiting"].numpy())
