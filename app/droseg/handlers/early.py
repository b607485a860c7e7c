"""Keeps what an early network says of the training cases: a late one has learned wrong labels by heart."""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Callable
from functools import partial
from typing import Any

from ignite.engine import Events
from monai.inferers import Inferer
from torch import Tensor, nn

from droseg.engine.roles import is_writer
from droseg.engine.run_folder import RunFolder, replace_state, replace_text
from droseg.engine.trainer import CheckpointEvents, DROTrainer
from droseg.handlers.whole_volumes import WholeVolumeLosses
from droseg.objectives import Objective

logger = logging.getLogger(__name__)


class EarlyLossHandler:
    """After one early epoch, writes the loss of each training case's whole volume, and the network as it is then.

    `early_losses.json` has `epoch`, `step`, `datalist_sha256` (of `run.json`) and `losses`, by case_id; null where a
    loss is not finite. `models/model_early.pt` is the network. `droseg hardest` ranks by the losses; the network
    measures changed cases again, and judges labels only where there is no `model.pt`. The training itself sees nothing
    of it: neither history nor generators change. A training that is killed meanwhile, or before its next checkpoint,
    measures again when it continues, and finds the same.

    Args:
        run: the folder of the run.
        objective: whose history names the cases.
        dataset, inferer, loss_function: see `WholeVolumeLosses`.
        epoch: after which it is done; 0: never, nor in a run that is shorter.
    Raises:
        ValueError: if `epoch` is negative, or the data set has other cases than the history.
    """

    def __init__(
        self,
        run: RunFolder,
        objective: Objective,
        dataset: Any,
        inferer: Inferer,
        loss_function: Callable[[Tensor, Tensor], Tensor],
        epoch: int,
    ) -> None:
        if epoch < 0 or int(epoch) != epoch:
            raise ValueError(f"early_epoch is {epoch}; it is a whole number of epochs, 0 for never.")
        self.run, self.epoch = run, int(epoch)
        case_ids = objective.history.case_ids
        self.volumes = WholeVolumeLosses(case_ids, dataset, inferer, loss_function, key="early_epoch")
        self._started_at = 0.0

    def attach(self, engine: DROTrainer) -> None:
        """Attach to the trainer."""
        engine.add_event_handler(Events.STARTED, self.started)
        if self.epoch:
            engine.add_event_handler(Events.EPOCH_COMPLETED, self.epoch_completed)

    def started(self, engine: DROTrainer) -> None:
        """Forget what an earlier run of this folder has left, if this one begins."""
        self._started_at = time.perf_counter()
        if is_writer() and engine.state.iteration == 0:
            self.run.early_losses_file.unlink(missing_ok=True)
            self.run.early_model.unlink(missing_ok=True)

    def epoch_completed(self, engine: DROTrainer) -> None:
        """Measure and write, if this is the epoch."""
        if engine.state.epoch != self.epoch:
            return
        begun = time.perf_counter()
        network = engine.network
        between_cases = partial(engine.fire_event, CheckpointEvents.BETWEEN_CASES)
        losses = self.volumes.measure(network, engine.state.device, between_cases)
        if not is_writer():
            return
        bare = network.module if isinstance(network, nn.parallel.DistributedDataParallel) else network
        replace_state(self.run.early_model, dict(bare.state_dict()))
        by_case = dict(zip(self.volumes.case_ids, losses.tolist(), strict=True))
        content = {
            "epoch": self.epoch,
            "step": engine.state.iteration,
            "datalist_sha256": self.run.status().get("datalist_sha256"),
            "losses": {case_id: loss if math.isfinite(loss) else None for case_id, loss in by_case.items()},
        }
        replace_text(self.run.early_losses_file, json.dumps(content, indent=2) + "\n")
        ended = time.perf_counter()
        logger.info(
            "epoch %d: the early losses of %d whole volumes are in %s; %.1f s, %.0f %% of the time of this start.",
            self.epoch,
            len(by_case),
            self.run.early_losses_file.name,
            ended - begun,
            100 * (ended - begun) / (ended - self._started_at),
        )
