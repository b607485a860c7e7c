"""Checkpoints of a run: the best model, the last one, and all that is needed to go on."""

from __future__ import annotations

import math
import random
from typing import Any

import numpy as np
import torch
from ignite.engine import Engine, Events
from ignite.handlers import DiskSaver
from torch import nn

from droseg.engine.run_folder import RunFolder
from droseg.errors import InputError
from droseg.metrics import higher_is_better


class RunCheckpoint:
    """Writes `model.pt` (selected), `model_last.pt` and `checkpoint.pt` (resume state), each atomically.

    The rule that selects `model.pt` is the same for every objective. Model files hold the bare state dict of the
    network.

    Args:
        run: the folder of the run.
        network: without or with a DistributedDataParallel wrapper.
        state: further objects with `state_dict` to resume: optimizer, schedule, objective.
        validator: evaluator whose `state.metrics` holds the selecting metric; None if nothing is validated.
        select: name of the metric; larger is better, except for distances (`_mm`). Or "last" to take the last epoch.
            Without a validator: last.
        interval: epochs between two checkpoints; the last epoch always writes one.
    """

    def __init__(
        self,
        run: RunFolder,
        network: nn.Module,
        state: dict[str, Any],
        validator: Engine | None = None,
        select: str = "last",
        interval: int = 1,
    ) -> None:
        self.run, self.network, self.state = run, network, state
        self.validator = validator
        self.select = select if validator is not None else "last"
        self.interval = interval
        self.sign = 1.0 if higher_is_better(self.select.partition("/")[0]) else -1.0
        self.best_value, self.best_epoch = -self.sign * math.inf, 0

    def rule(self) -> str:
        """Return the selection rule in words."""
        if self.select == "last":
            return "model.pt is the network after the last epoch"
        best = "highest" if self.sign > 0 else "lowest"
        return f"model.pt is the network with the {best} {self.select} on the validation cases"

    def attach(self, engine: Engine) -> None:
        """Attach to the trainer, after the validation and history handlers."""
        engine.add_event_handler(Events.EPOCH_COMPLETED, self.epoch_completed)

    def epoch_completed(self, engine: Engine) -> None:
        """Select, then save."""
        epoch, last = engine.state.epoch, engine.state.epoch == engine.state.max_epochs
        better = self.select == "last" and last
        if self.select != "last" and self.validator is not None and self.validator.state.epoch == epoch:
            value = self._selecting_value(self.validator.state.metrics)
            if math.isfinite(value) and self.sign * value > self.sign * self.best_value:
                self.best_value, self.best_epoch, better = float(value), epoch, True
        if last and self.best_epoch == 0:
            better = True  # nothing was ever selectable; the last network is better than none
        if better:
            self.best_epoch = epoch
            self._save(self.run.best_model.name, self._weights())
        if last or epoch % self.interval == 0:
            self._save(self.run.last_model.name, self._weights())
            self._save(self.run.checkpoint.name, self._resume_state(engine))

    def _selecting_value(self, metrics: dict[str, Any]) -> float:
        if self.select not in metrics:
            raise InputError(
                f"select is {self.select}, but the validation gave no such metric; choose one of "
                f"{', '.join(sorted(name for name in metrics if name.startswith('val_')))}, or last."
            )
        return float(metrics[self.select])

    def restore(self, engine: Engine) -> int:
        """Load the resume state if there is one; return the epoch that it was saved after, else 0."""
        if not self.run.checkpoint.is_file():
            return 0
        saved = torch.load(self.run.checkpoint, map_location="cpu", weights_only=True)
        _bare(self.network).load_state_dict(saved["network"])
        max_epochs = engine.state.max_epochs
        for name, item in self.state.items():
            total = getattr(item, "t_total", None)
            item.load_state_dict(saved[name])
            if total is not None:
                item.t_total = total  # MONAI's schedule saves its length; a run may go on for more epochs than planned
        engine.load_state_dict(saved["trainer"])
        engine.state.max_epochs = max_epochs  # ignite's own state would bring the old number back
        self.best_value, self.best_epoch = saved["best_value"], saved["best_epoch"]
        _set_rng_state(saved["rng"])
        return int(engine.state.epoch)

    def _weights(self) -> dict[str, Any]:
        return dict(_bare(self.network).state_dict())

    def _resume_state(self, engine: Engine) -> dict[str, Any]:
        return {
            "network": self._weights(),
            "trainer": dict(engine.state_dict()),
            **{name: item.state_dict() for name, item in self.state.items()},
            "best_value": self.best_value,
            "best_epoch": self.best_epoch,
            "rng": _rng_state(),
        }

    def _save(self, name: str, content: dict[str, Any]) -> None:
        # On every rank: ignite's saver is collective (it counts the processes) and writes on rank 0 only.
        DiskSaver(self.run.models, atomic=True, require_empty=False)(content, name)


def _bare(network: nn.Module) -> nn.Module:
    return network.module if isinstance(network, nn.parallel.DistributedDataParallel) else network


def _rng_state() -> dict[str, Any]:
    kind, keys, position, has_gauss, cached = np.random.get_state()
    version, internal, gauss = random.getstate()
    return {
        "torch": torch.get_rng_state(),
        "numpy": [kind, torch.from_numpy(np.asarray(keys).astype(np.int64)), position, has_gauss, cached],
        "python": [version, list(internal), gauss],
    }


def _set_rng_state(state: dict[str, Any]) -> None:
    torch.set_rng_state(state["torch"])
    kind, keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), position, has_gauss, cached))
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
