"""Keeps the history close to the losses of whole volumes: those of random patches are noisy."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from ignite.engine import Events
from monai.inferers import Inferer
from torch import Tensor

from droseg.engine.roles import is_writer
from droseg.engine.trainer import CheckpointEvents, DROTrainer
from droseg.handlers.whole_volumes import WholeVolumeLosses
from droseg.objectives import Objective

logger = logging.getLogger(__name__)

METRICS = ("history/refresh_s", "history/refresh_change")


class HistoryRefreshHandler:
    """Every few epochs, puts the loss of each case's whole volume into the history, by `LossHistory.replace`.

    Such a measurement is no visit and takes no momentum step. The ranks share the cases, and all of them get all the
    losses. A loss that is not finite leaves the case's previous one, with a warning that names it.

    Leaves in `engine.state.metrics` of these epochs: `history/refresh_s`, what it cost in seconds, and
    `history/refresh_change`, the mean absolute difference from the stale losses that it replaced.

    Args:
        objective: whose history is refreshed.
        dataset, inferer, loss_function: see `WholeVolumeLosses`.
        interval: epochs between two refreshes; 0: never.
    Raises:
        ValueError: if `interval` is negative, or the data set has other cases than the history.
    """

    def __init__(
        self,
        objective: Objective,
        dataset: Any,
        inferer: Inferer,
        loss_function: Callable[[Tensor, Tensor], Tensor],
        interval: int,
    ) -> None:
        if interval < 0 or int(interval) != interval:
            raise ValueError(f"refresh_interval is {interval}; it is a whole number of epochs, 0 for never.")
        self.objective, self.interval = objective, int(interval)
        case_ids = objective.history.case_ids
        self.volumes = WholeVolumeLosses(case_ids, dataset, inferer, loss_function, key="refresh_interval")
        self._trained_since = time.perf_counter()

    def attach(self, engine: DROTrainer) -> None:
        """Attach to the trainer, before the handlers that look at the history at the end of an epoch."""
        if self.interval:
            engine.add_event_handler(Events.STARTED, self.started)
            engine.add_event_handler(Events.EPOCH_COMPLETED, self.epoch_completed)

    def started(self, engine: DROTrainer) -> None:
        """Note the time, so that the first refresh knows its share of it."""
        self._trained_since = time.perf_counter()

    def epoch_completed(self, engine: DROTrainer) -> None:
        """Refresh if this epoch is due."""
        for name in METRICS:  # those of an earlier epoch
            engine.state.metrics.pop(name, None)
        if engine.state.epoch % self.interval:
            return
        started = time.perf_counter()
        network = engine.network
        between_cases = partial(engine.fire_event, CheckpointEvents.BETWEEN_CASES)
        losses = self.volumes.measure(network, engine.state.device, between_cases)
        history = self.objective.history
        change = (losses - torch.from_numpy(history.loss)).abs()
        change = change[change.isfinite()]
        history.replace(range(len(history)), losses)
        ended = time.perf_counter()
        values = (ended - started, float(change.mean()) if len(change) else 0.0)
        engine.state.metrics.update(zip(METRICS, values, strict=True))
        if is_writer():
            logger.info(
                "epoch %d: %d whole volumes measured in %.1f s (%.0f %% of the time since the last ones); "
                "mean loss %.4g, %.2g from the stale one in the mean.",
                engine.state.epoch,
                len(history),
                values[0],
                100 * values[0] / (ended - self._trained_since),
                float(history.loss.mean()),
                values[1],
            )
        self._trained_since = ended
