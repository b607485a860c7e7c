"""Just train twice: the cases that a first training gets wrong are repeated in a second one."""

from __future__ import annotations

import logging
import math
from typing import Any

import numpy as np

from droseg.objectives.base import Objective, Setting
from droseg.sampling import Draw, ShuffledBatchSampler

logger = logging.getLogger(__name__)


class JustTrainTwice(Objective):
    """ERM for `first_epochs`; then anew from the first network, with the error set repeated `upweight` times.

    Liu et al. 2021, ICML, arXiv:2107.09044, algorithm 1: the error set holds what the first model gets wrong, and the
    second training runs on the cases with the error set repeated. Segmentation has no 0-1 error; the error set is the
    `fraction` of the cases with the largest stale losses after the first training, ties by their order. It needs no
    groups. Both trainings share the epochs of the run, so that all objectives have one budget.

    At the switch `wants_restart` is set; `RestartHandler` puts network, optimizer and schedule back to where they
    began. Networks of the first training are no candidates for `model.pt`.

    Args:
        setting: cases and batches.
        first_epochs: of the first training, >= 1, fewer than the run has; `RestartHandler` refuses a run that would
            never come to the second one.
        fraction: of the cases that are the error set, > 0 and < 1.
        upweight: how often each of them occurs in a pass, >= 1.
    Raises:
        ValueError: for an argument outside its range, or if the first training cannot visit every case.
    """

    name = "jtt"

    def __init__(self, setting: Setting, first_epochs: int = 10, fraction: float = 0.2, upweight: int = 5) -> None:
        if first_epochs != int(first_epochs) or first_epochs < 1:
            raise ValueError(f"first_epochs is {first_epochs}; it is a whole number of epochs >= 1, below `epochs`.")
        if not 0.0 < fraction < 1.0:
            raise ValueError(f"fraction is {fraction}; it is the share of the cases in the error set, > 0 and < 1.")
        if upweight != int(upweight) or upweight < 1:
            raise ValueError(f"upweight is {upweight}; it is how often an error case occurs in a pass, >= 1.")
        slots = int(first_epochs) * setting.num_batches * setting.batch_size
        if slots < len(setting.history):
            raise ValueError(
                f"first_epochs is {first_epochs}, which visits {slots} of {len(setting.history)} cases, but every case "
                f"needs a loss; set it to {math.ceil(len(setting.history) * first_epochs / slots)} or more."
            )
        self.shuffled_sampler: ShuffledBatchSampler = setting.shuffled()
        super().__init__(setting.history, self.shuffled_sampler)
        self.first_epochs, self.fraction, self.upweight = int(first_epochs), float(fraction), int(upweight)
        self.error_set: tuple[int, ...] = ()
        """Case indices, hardest first; empty during the first training."""

    @property
    def restart_epoch(self) -> int | None:  # type: ignore[override]
        """Last epoch of the first training; None in the second."""
        return None if self.error_set else self.first_epochs

    def begin_batch(self, indices: list[int]) -> Draw:
        """Return the draw that the batch came from.

        Raises:
            RuntimeError: also if nobody has put the network back for the second training.
        """
        if self.wants_restart:
            raise RuntimeError(
                f"jtt trains anew after epoch {self.first_epochs}, but the network was not put back to its start; "
                "attach droseg.handlers.RestartHandler to the trainer, after HardnessHandler."
            )
        return super().begin_batch(indices)

    def epoch_completed(self, epoch: int) -> dict[str, float]:
        """After the first training find the error set and ask for the second; return the stage and its size."""
        if not self.error_set and epoch >= self.first_epochs and self.history.visits.any():
            self._switch()
        return {"stage": 2.0 if self.error_set else 1.0, "error_set": float(len(self.error_set))}

    def _switch(self) -> None:
        self.error_set = self.hardest()
        repeats = np.ones(len(self.history), dtype=np.int64)
        repeats[list(self.error_set)] = self.upweight
        self.shuffled_sampler.repeat(repeats.tolist())
        self.wants_restart = True
        names = [self.history.case_ids[index] for index in self.error_set]
        logger.info("jtt: the error set has %d cases: %s", len(names), ", ".join(names[:20]))

    def hardest(self) -> tuple[int, ...]:
        """Return the cases of the largest `fraction` of the visited stale losses, at least one, hardest first."""
        visited = np.flatnonzero((self.history.visits > 0) & self.history.counted)
        count = max(1, round(self.fraction * len(visited)))
        order = np.argsort(-self.history.loss[visited], kind="stable")
        return tuple(int(index) for index in visited[order[:count]])

    def state_dict(self) -> dict[str, Any]:
        """Return all state, the stage with it, as tensors and primitives."""
        return {**super().state_dict(), "error_set": list(self.error_set), "wants_restart": self.wants_restart}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a saved state of the same objective; the sampler brings the repeats."""
        super().load_state_dict(state)
        self.error_set = tuple(int(index) for index in state["error_set"])
        self.wants_restart = bool(state["wants_restart"])
