"""What a person who waits wants to know: how far, how long still, how much memory, how good so far."""

from __future__ import annotations

import math
import sys
import time
from typing import Any

import psutil
import torch
from ignite.engine import Engine, Events
from monai.engines import IterationEvents
from tqdm import tqdm

from droseg.engine.roles import is_writer
from droseg.engine.run_folder import RunFolder
from droseg.engine.trainer import DROTrainer
from droseg.handlers.case_metrics import WORST


class ProgressHandler:
    """A progress bar over all steps, one line per validation, and `run.json`.

    Args:
        run: the folder of the run.
        validator: evaluator whose metrics are shown; None if nothing is validated.
    """

    def __init__(self, run: RunFolder, validator: Engine | None = None) -> None:
        self.run, self.validator = run, validator
        self._bar: Any = None
        self._start, self._first_step = 0.0, 0

    def attach(self, engine: DROTrainer) -> None:
        """Attach to the trainer, as the last handler."""
        if not is_writer():
            return
        engine.state.smoothed_loss = math.nan
        engine.state_dict_user_keys.append("smoothed_loss")
        engine.add_event_handler(Events.STARTED, self.started)
        engine.add_event_handler(IterationEvents.LOSS_COMPLETED, self.loss_completed)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self.step_completed)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self.epoch_completed)
        engine.add_event_handler(Events.COMPLETED, self.completed)

    def started(self, engine: DROTrainer) -> None:
        """Open the bar at the step that the run continues from."""
        self._start, self._first_step = time.monotonic(), engine.state.iteration
        total = engine.state.max_epochs * engine.state.epoch_length
        in_terminal = sys.stderr.isatty()
        self._bar = tqdm(
            total=total,
            initial=self._first_step,
            desc="training",
            unit="step",
            mininterval=0.5 if in_terminal else 30.0,
            dynamic_ncols=in_terminal,
        )

    def loss_completed(self, engine: DROTrainer) -> None:
        """Smooth the loss for the bar; that of a step that is left out does not count."""
        loss = float(engine.state.output["loss"].detach())
        if not math.isfinite(loss):
            return
        before = engine.state.smoothed_loss
        engine.state.smoothed_loss = loss if math.isnan(before) else 0.95 * before + 0.05 * loss

    def step_completed(self, engine: DROTrainer) -> None:
        """Move the bar."""
        self._bar.set_postfix(epoch=engine.state.epoch, loss=f"{engine.state.smoothed_loss:.3f}", refresh=False)
        self._bar.update(1)

    def epoch_completed(self, engine: DROTrainer) -> None:
        """Write `run.json`; after a validation, print a line."""
        state = engine.state
        total = state.max_epochs * state.epoch_length
        pace = (time.monotonic() - self._start) / max(1, state.iteration - self._first_step)
        left_s = pace * (total - state.iteration)
        memory_gb = memory_in_use_gb(state.device)
        self.run.write_status(
            epoch=state.epoch,
            step=state.iteration,
            total_steps=total,
            loss=round(state.smoothed_loss, 5),
            step_s=round(pace, 4),
            time_left_s=round(left_s),
            memory_gb=round(memory_gb, 2),
            steps_left_out=state.steps_left_out,
            excluded_cases=_excluded(engine),
        )
        if self.validator is not None and self.validator.state.epoch == state.epoch:
            metrics = self.validator.state.metrics
            dice, worst = (metrics.get(f"val_dice/{name}", math.nan) for name in ("all", WORST))
            line = f"epoch {state.epoch}/{state.max_epochs}  loss {state.smoothed_loss:.3f}"
            line += f"  val dice {dice:.3f}, worst group {worst:.3f}"
            line += f"  {_minutes(left_s)} left  {memory_gb:.1f} GB"
            tqdm.write(line, file=sys.stdout)
            sys.stdout.flush()

    def completed(self, engine: DROTrainer) -> None:
        """Close the bar; say what was left out."""
        self._bar.close()
        if engine.state.steps_left_out:
            names = ", ".join(_excluded(engine)) or "none"
            print(
                f"{engine.state.steps_left_out} of {engine.state.iteration} steps were left out, their losses not "
                f"finite; cases taken out of the draws: {names}",
                flush=True,
            )


def _excluded(engine: DROTrainer) -> list[str]:
    history = engine.objective.history
    return [history.case_ids[index] for index in sorted(history.excluded)]


def memory_in_use_gb(device: torch.device) -> float:
    """Return the memory of this process: the GPU's peak on CUDA, else the resident set of the process, in GB."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e9
    return float(psutil.Process().memory_info().rss) / 1e9


def _minutes(seconds: float) -> str:
    return f"{int(seconds // 3600)} h {int(seconds % 3600 // 60)} min" if seconds >= 3600 else f"{seconds / 60:.1f} min"
