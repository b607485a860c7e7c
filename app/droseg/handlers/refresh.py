"""Measures each training case on its whole volume without augmentation: random patches are a noisy measure of it."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any

import torch
from ignite.engine import Engine, Events
from monai.inferers import Inferer
from monai.networks.utils import eval_mode
from torch import Tensor, nn

from droseg import keys
from droseg.engine.roles import gather_objects, is_writer, rank, world_size
from droseg.engine.trainer import CheckpointEvents
from droseg.errors import DrosegError
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
        dataset: the training cases in the order of the history, whole and not augmented; items with image and label.
        inferer: for whole volumes, e.g. `SlidingWindowInferer`.
        loss_function: (pred, label) -> (B,), the one that is trained with.
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
        if len(dataset) != len(objective.history):
            raise ValueError(
                f"the data set to refresh from has {len(dataset)} cases, the loss history {len(objective.history)}; "
                "give it the training cases in the order of the history."
            )
        self.objective, self.dataset, self.interval = objective, dataset, int(interval)
        self.inferer, self.loss_function = inferer, loss_function
        self._trained_since = time.perf_counter()
        self._between_cases: Callable[[], None] = lambda: None

    def attach(self, engine: Engine) -> None:
        """Attach to the trainer, before the handlers that look at the history at the end of an epoch."""
        self._between_cases = lambda: engine.fire_event(CheckpointEvents.BETWEEN_CASES)
        if self.interval:
            engine.add_event_handler(Events.STARTED, self.started)
            engine.add_event_handler(Events.EPOCH_COMPLETED, self.epoch_completed)

    def started(self, engine: Engine) -> None:
        """Note the time, so that the first refresh knows its share of it."""
        self._trained_since = time.perf_counter()

    def epoch_completed(self, engine: Engine) -> None:
        """Refresh if this epoch is due."""
        for name in METRICS:  # those of an earlier epoch
            engine.state.metrics.pop(name, None)
        if engine.state.epoch % self.interval:
            return
        started = time.perf_counter()
        losses = self.measure(engine.network, engine.state.device)  # type: ignore[attr-defined]
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

    def measure(self, network: nn.Module, device: torch.device) -> Tensor:
        """Return the loss of each case's whole volume, shape (N,), float64, the same on every rank."""
        # Not through DistributedDataParallel: its forward may be collective, and the ranks have different numbers.
        bare = network.module if isinstance(network, nn.parallel.DistributedDataParallel) else network
        with eval_mode(bare):
            own = {row: self._loss(row, bare, device) for row in range(rank(), len(self.dataset), world_size())}
        found = {row: loss for share in gather_objects(own) for row, loss in share.items()}
        return torch.tensor([found[row] for row in range(len(self.dataset))], dtype=torch.float64)

    def _loss(self, row: int, network: nn.Module, device: torch.device) -> float:
        self._between_cases()
        item = self.dataset[row]
        try:
            image, label = item[keys.IMAGE][None].to(device), item[keys.LABEL][None].to(device)
            return float(self.loss_function(self.inferer(image, network), label)[0])
        except torch.OutOfMemoryError as error:
            raise DrosegError(
                f"{self.objective.history.case_ids[row]}: the device has too little memory for its whole volume; set "
                "refresh_interval to 0, or lower roi_size."
            ) from error
