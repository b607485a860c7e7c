"""Puts network, optimizer and schedule back to where they began, when an objective asks for a second training."""

from __future__ import annotations

import copy
from typing import Any

import torch
from ignite.engine import Engine, Events
from torch import nn

from droseg.errors import InputError
from droseg.objectives import Objective


class RestartHandler:
    """At the end of an epoch in which the objective's `wants_restart` is set: start anew, with the steps that remain.

    Network (batch statistics too), optimizer and schedule get their initial state back; the schedule is made as long as
    the steps that are left, with its warm-up as at first. Objectives that never ask cost nothing: the initial state is
    kept, on the CPU, only while the objective names a `restart_epoch`, and is saved with the checkpoint until then, so
    that a resumed run starts anew from the same network.

    A network of the training before is provisional: `RunCheckpoint` does not select it, so that `model.pt` is one of
    the training that the objective is about.

    Args:
        objective: whose `restart_epoch` and `wants_restart` are looked at.
        network: without or with a DistributedDataParallel wrapper, in its initial state.
        optimizer: of the trainer.
        lr_scheduler: its schedule; if it has a length `t_total`, as MONAI's, this becomes the remaining steps.
        max_epochs: of the run, to refuse one that is too short at once; None: when it starts.
    Raises:
        InputError: if the run ends before, or with, the first training.
    """

    def __init__(
        self,
        objective: Objective,
        network: nn.Module,
        optimizer: torch.optim.Optimizer,
        lr_scheduler: Any = None,
        max_epochs: int | None = None,
    ) -> None:
        self.objective = objective
        if max_epochs is not None:
            self._check(max_epochs)
        self.parts: dict[str, Any] = {"network": getattr(network, "module", network), "optimizer": optimizer}
        if lr_scheduler is not None:
            self.parts["lr_scheduler"] = lr_scheduler
        self.lr_scheduler = lr_scheduler
        self.planned_steps = getattr(lr_scheduler, "t_total", None)
        self.restarted_epoch = self.restarted_step = 0
        """Epoch and step after which the second training began; 0 if it has not."""
        self._initial = self._copies() if objective.restart_epoch is not None else {}

    def _copies(self) -> dict[str, Any]:
        return {name: _on_cpu(part.state_dict()) for name, part in self.parts.items()}

    def attach(self, engine: Engine) -> None:
        """Attach to the trainer, after the handlers that update the objective and validate; a second time does nothing.

        `RunCheckpoint` does it if this is part of its state.
        """
        if engine.has_event_handler(self.epoch_completed):
            return
        engine.add_event_handler(Events.STARTED, self.started)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self.epoch_completed)

    def started(self, engine: Engine) -> None:
        """Refuse a run that is too short; give a resumed schedule the length of the second training."""
        self._check(engine.state.max_epochs or 0)
        self._fit_schedule()

    def _check(self, epochs: int) -> None:
        first, name = self.objective.restart_epoch, self.objective.name
        if first is not None and first >= epochs:
            raise InputError(
                f"objective {name}: its first training takes {first} epochs and the run has {epochs}, so the second "
                f"never begins; raise epochs above {first}, or lower rivals#{name}#first_epochs."
            )

    def epoch_completed(self, engine: Engine) -> None:
        """Start anew if the objective asks for it."""
        if not self.objective.wants_restart:
            return
        self.restarted_epoch, self.restarted_step = engine.state.epoch, engine.state.iteration
        for name, part in self.parts.items():
            part.load_state_dict(self._initial[name])
        self._fit_schedule()
        self._initial = {}
        self.objective.wants_restart = False

    def _fit_schedule(self) -> None:
        if self.restarted_epoch and self.planned_steps is not None:
            self.lr_scheduler.t_total = max(1, self.planned_steps - self.restarted_step)

    def is_provisional(self, epoch: int) -> bool:
        """Return whether the network after this epoch belongs to a training that is, or was, started over."""
        return self.objective.restart_epoch is not None or epoch <= self.restarted_epoch

    def state_dict(self) -> dict[str, Any]:
        """Return the initial state while it may be needed, and when the second training began."""
        return {
            "initial": self._initial,
            "restarted_epoch": self.restarted_epoch,
            "restarted_step": self.restarted_step,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what a checkpoint saved."""
        # A history carried over to other cases takes the objective back to its first training: it can ask again.
        own = self._initial if self.objective.restart_epoch is not None else {}
        self._initial = state["initial"] or own
        self.restarted_epoch, self.restarted_step = int(state["restarted_epoch"]), int(state["restarted_step"])
        self._fit_schedule()


def _on_cpu(state: Any) -> Any:
    """Return a copy of a nested state with its tensors on the CPU."""
    if isinstance(state, torch.Tensor):
        return state.detach().cpu().clone()
    if isinstance(state, dict):
        return {name: _on_cpu(value) for name, value in state.items()}
    if isinstance(state, (list, tuple)):
        return type(state)(_on_cpu(value) for value in state)
    return copy.deepcopy(state)
