"""Checkpoints of a run: the best model, the last one, and all that is needed to go on."""

from __future__ import annotations

import copy
import logging
import math
import pickle
import time
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Engine, Events
from torch import nn

from droseg.engine.random_state import random_states, restore_random_states
from droseg.engine.roles import agree, gather_losses, is_writer, world_size
from droseg.engine.run_folder import RunFolder, replace_state
from droseg.engine.stop import StopRequested
from droseg.engine.trainer import CheckpointEvents, DROTrainer
from droseg.errors import DrosegError, InputError
from droseg.handlers.restart import RestartHandler
from droseg.metrics import higher_is_better
from droseg.objectives import Objective
from droseg.sampling import RecordingBatchSampler

logger = logging.getLogger(__name__)

FORMAT = 1
"""Of `checkpoint.pt`."""


class RunCheckpoint:
    """Writes `model.pt` (selected), `model_last.pt` and `checkpoint.pt` (resume state), each atomically.

    The rule that selects `model.pt` is the same for every objective. Model files hold the bare state dict of the
    network. The resume state can be of any step. One that is saved after the last step of an epoch and before the
    handlers of its end *owes* that end: a resumed training makes up for it first, with the random generators as they
    were, so that it validates and selects as if nothing had happened. Such a state is written before the validation (or
    the refresh of the history) of an epoch that is due for a checkpoint, since these can be long.

    When the trainer is asked to stop (SIGTERM), the state is saved after the step on which all ranks agree, and
    `StopRequested` is raised; in a validation it is the state before it. Several ranks finish the end of the epoch
    first: they have no step in common during it.

    Args:
        run: the folder of the run.
        network: without or with a DistributedDataParallel wrapper.
        state: further objects with `state_dict` to resume: optimizer, schedule, objective.
        validator: evaluator whose `state.metrics` holds the selecting metric; None if nothing is validated.
        select: name of the metric; larger is better, except for distances (`_mm`). Or "last" to take the last epoch.
            Without a validator: last.
        interval: epochs between two checkpoints; the last epoch always writes one.
        minutes: longest time between two checkpoints, which are then written in the middle of an epoch; None: never.
        init_from: run folder whose weights the network has; with `carry_over_history` also its loss history.
        carry_over_history: whether the losses of cases that remain are taken over from a history of other cases, of
            `init_from` or of this run.
    Raises:
        InputError: if an interval is not positive.
    """

    def __init__(
        self,
        run: RunFolder,
        network: nn.Module,
        state: dict[str, Any],
        validator: Engine | None = None,
        select: str = "last",
        interval: int = 1,
        minutes: float | None = None,
        init_from: str | Path | None = None,
        carry_over_history: bool = False,
    ) -> None:
        if interval < 1 or int(interval) != interval:
            raise InputError(f"checkpoint_interval is {interval}; it must be a whole number of epochs >= 1.")
        if minutes is not None and not minutes >= 0:
            raise InputError(f"checkpoint_minutes is {minutes}; it must be >= 0, or null for epochs only.")
        self.run, self.network, self.state = run, network, state
        self.validator = validator
        self.select = select if validator is not None else "last"
        self.interval, self.minutes = int(interval), minutes
        self.init_from, self.carry_over_history = init_from, carry_over_history
        self.sign = 1.0 if higher_is_better(self.select.partition("/")[0]) else -1.0
        self.best_value, self.best_epoch = -self.sign * math.inf, 0
        self._saved_at = time.monotonic()
        self._is_due = False
        self._before_epoch_end: dict[str, Any] | None = None
        self._trainer: DROTrainer

    def rule(self) -> str:
        """Return the selection rule in words."""
        if self.select == "last":
            return "model.pt is the network after the last epoch"
        best = "highest" if self.sign > 0 else "lowest"
        return f"model.pt is the network with the {best} {self.select} on the validation cases"

    def attach(self, engine: DROTrainer) -> None:
        """Attach to the trainer, after all other handlers; a second time does nothing."""
        if engine.has_event_handler(self.epoch_completed):
            return
        self._trainer = engine
        for item in self.state.values():
            if isinstance(item, RestartHandler):
                item.attach(engine)  # what is saved at the end of an epoch is already where a second training begins
        engine.add_event_handler(Events.STARTED, self.started)
        engine.add_event_handler(Events.ITERATION_STARTED, self.iteration_started)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self.iteration_completed)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self.epoch_completed)
        engine.add_event_handler(CheckpointEvents.BETWEEN_CASES, self.between_cases)
        if self.validator is not None:
            self.validator.add_event_handler(Events.STARTED | Events.ITERATION_COMPLETED, self.between_cases)

    def started(self, engine: DROTrainer) -> None:
        """Start the clock."""
        self._saved_at = time.monotonic()

    def iteration_started(self, engine: DROTrainer) -> None:
        """Ask all ranks for a checkpoint if it is time."""
        is_time = self.minutes is not None and time.monotonic() - self._saved_at >= 60 * self.minutes
        engine.checkpoint_requested = is_writer() and is_time

    def iteration_completed(self, engine: DROTrainer) -> None:
        """Save the state if all ranks have agreed to; stop if they have agreed to that."""
        step_of_epoch = engine.state.iteration % engine.state.epoch_length
        ended = step_of_epoch == 0
        if not ended and step_of_epoch % engine.accumulation_steps:
            return  # gradients of several steps are being summed up; they are in no state dict
        stop = engine.stop_agreed or (world_size() == 1 and engine.stop_requested)
        self._is_due = engine.checkpoint_agreed
        if stop or (self._is_due and not ended):
            self._save_resume_state(engine, owes_epoch_end=ended)
        if stop:
            self._stop(engine)
        if ended:
            self._before_epoch_end = copy.deepcopy(self._state(engine, owes_epoch_end=True))

    def between_cases(self, _: Engine) -> None:
        """Save the state before the epoch's end once, if it is due or asked for; a single process then stops if asked.

        It runs at the start of a validation and between the cases of what is done at the end of an epoch.
        """
        trainer = self._trainer
        if trainer.stop_requested or self._is_due or trainer.state.epoch % self.interval == 0:
            state, self._before_epoch_end = self._before_epoch_end, None
            if state is not None:
                self._save_checkpoint(trainer, state)
        if trainer.stop_requested and world_size() == 1:
            self._stop(trainer)

    def epoch_completed(self, engine: DROTrainer) -> None:
        """Select, then save."""
        self._before_epoch_end = None
        epoch, last = engine.state.epoch, engine.state.epoch == engine.state.max_epochs
        better = self.select == "last" and last
        counts = not any(item.is_provisional(epoch) for item in self.state.values() if isinstance(item, RestartHandler))
        if counts and self.select != "last" and self.validator is not None and self.validator.state.epoch == epoch:
            value = self._selecting_value(self.validator.state.metrics)
            if math.isfinite(value) and self.sign * value > self.sign * self.best_value:
                self.best_value, self.best_epoch, better = float(value), epoch, True
        if last and self.best_epoch == 0:
            better = True  # nothing was ever selectable; the last network is better than none
        if better:
            self.best_epoch = epoch
            self._save_weights(self.run.best_model)
        stop = self._stops_after_epoch(engine) and not last
        if last or stop or self._is_due or epoch % self.interval == 0:
            self._save_weights(self.run.last_model)
            self._save_resume_state(engine)
        if stop:
            self._stop(engine)

    def _stops_after_epoch(self, engine: DROTrainer) -> bool:
        nothing = torch.empty(0, device=engine.state.device)
        return bool(gather_losses([], nothing, int(engine.stop_requested))[2])

    def _stop(self, engine: DROTrainer) -> None:
        agree(None)  # no rank ends, and has the others ended with it, while rank 0 still writes
        raise StopRequested(engine.state.iteration)

    def _selecting_value(self, metrics: dict[str, Any]) -> float:
        if self.select not in metrics:
            raise InputError(
                f"select is {self.select}, but the validation gave no such metric; choose one of "
                f"{', '.join(sorted(name for name in metrics if name.startswith('val_')))}, or last."
            )
        return float(metrics[self.select])

    def restore(self, engine: DROTrainer) -> int:
        """Load the resume state if there is one; return the number of completed epochs in it, else 0.

        Raises:
            DrosegError: if it cannot be read.
            InputError: if `carry_over_history` finds nothing to carry over.
            HistoryMismatchError: if it is of other training cases, without `carry_over_history`.
        """
        if not self.run.checkpoint.is_file():
            if self.carry_over_history:
                self._carry_over_from(self.init_from)
            return 0
        if self.init_from is not None and is_writer():
            logger.warning("init_from is ignored: %s continues from its own checkpoint.", self.run.path)
        saved = _read(self.run.checkpoint)
        _bare(self.network).load_state_dict(saved["network"])
        max_epochs = engine.state.max_epochs
        self.best_value, self.best_epoch = saved["best_value"], saved["best_epoch"]
        for name, item in self.state.items():
            total = getattr(item, "t_total", None)
            self._load(item, saved[name])
            if total is not None:
                item.t_total = total  # MONAI's schedule saves its length; a run may go on for more epochs than planned
        new_keys = {key: getattr(engine.state, key) for key in engine.state_dict_user_keys}  # of handlers added since
        engine.load_state_dict({**new_keys, **saved["trainer"]})
        engine.state.max_epochs = max_epochs  # ignite's own state would bring the old number back
        engine.owes_epoch_end = saved["owes_epoch_end"]
        restore_random_states(saved["rng"])
        return int(engine.state.epoch)

    def _load(self, item: Any, saved: dict[str, Any]) -> None:
        is_of_other_cases = isinstance(item, Objective) and tuple(saved["history"]["case_ids"]) != item.history.case_ids
        if not (is_of_other_cases and self.carry_over_history):
            item.load_state_dict(saved)
            return
        self._carry_over(item, saved, self.run.checkpoint)
        # What else the sampler knows is by row of the old cases; only its place in the epoch is worth keeping.
        sampler = {**saved["sampler"], "num_drawn": saved["sampler"]["num_drawn"] - len(saved["sampler"]["pending"])}
        RecordingBatchSampler.load_state_dict(item.sampler, {**sampler, "pending": []})
        self.best_value, self.best_epoch = -self.sign * math.inf, 0  # it may be of other validation cases, too

    def _carry_over_from(self, folder: str | Path | None) -> None:
        file = None if folder is None else RunFolder(folder).checkpoint
        if file is None or not file.is_file():
            raise InputError(
                f"carry_over_history is set, but init_from ({folder}) is no run folder with a models/checkpoint.pt; "
                "give the folder of the run whose loss history is to be taken over, or leave carry_over_history out."
            )
        saved = _read(file)
        for name, item in self.state.items():
            if isinstance(item, Objective):
                self._carry_over(item, saved[name], file)

    @staticmethod
    def _carry_over(objective: Objective, saved: dict[str, Any], file: Path) -> None:
        own, others = objective.history.case_ids, saved["history"]["case_ids"]
        if not set(own) & set(others):
            raise InputError(
                f"carry_over_history is set, but {file} has losses of none of the {len(own)} training cases "
                f"({own[0]}, ...; there {others[0]}, ...): there is nothing to take over. Check the case_ids of the "
                "datalist, or leave carry_over_history out and train in a new folder."
            )
        objective.carry_over(saved)

    def _state(self, engine: DROTrainer, owes_epoch_end: bool) -> dict[str, Any]:
        """Return the resume state without what only steps change: network and optimizer; on every rank."""
        changing = {name: item for name, item in self.state.items() if not isinstance(item, torch.optim.Optimizer)}
        return {
            "format": FORMAT,
            "trainer": dict(engine.state_dict()),
            **{name: item.state_dict() for name, item in changing.items()},
            "best_value": self.best_value,
            "best_epoch": self.best_epoch,
            "owes_epoch_end": owes_epoch_end,
            "rng": random_states(),
        }

    def _save_resume_state(self, engine: DROTrainer, owes_epoch_end: bool = False) -> None:
        self._save_checkpoint(engine, self._state(engine, owes_epoch_end))

    def _save_checkpoint(self, engine: DROTrainer, state: dict[str, Any]) -> None:
        if is_writer():
            engine.fire_event(CheckpointEvents.CHECKPOINT_STARTED)
            steps_only = {name: item.state_dict() for name, item in self.state.items() if name not in state}
            replace_state(self.run.checkpoint, {"network": self._weights(), **steps_only, **state})
        self._saved_at = time.monotonic()

    def _save_weights(self, file: Path) -> None:
        if is_writer():
            replace_state(file, self._weights())

    def _weights(self) -> dict[str, Any]:
        return dict(_bare(self.network).state_dict())


def _bare(network: nn.Module) -> nn.Module:
    return network.module if isinstance(network, nn.parallel.DistributedDataParallel) else network


def _read(file: Path) -> dict[str, Any]:
    try:
        saved: dict[str, Any] = torch.load(file, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, ValueError, pickle.UnpicklingError) as error:
        raise DrosegError(
            f"{file} cannot be read ({type(error).__name__}); put a copy of it back, or start over by --restart."
        ) from error
    if saved.get("format") != FORMAT:
        raise DrosegError(
            f"{file} was written by another version of droseg (format {saved.get('format')}, expected {FORMAT}); "
            "finish the run with that version, or start over by --restart."
        )
    return saved
