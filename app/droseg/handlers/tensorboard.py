"""TensorBoard of a robust training: losses, subgroups, the state of the sampler, and pictures; one event file."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ignite.engine import Engine, Events
from monai.engines import IterationEvents
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams

from droseg import keys
from droseg.data.channels import present_channels
from droseg.engine.roles import is_writer, world_size
from droseg.engine.run_folder import RunFolder
from droseg.engine.trainer import CheckpointEvents, DROTrainer
from droseg.handlers.overlays import overlay_planes
from droseg.handlers.scalar_layout import PREFIX, Layout, scalar_layout
from droseg.objectives import Objective


class TensorBoardHandler:
    """Writes everything of one run through one `SummaryWriter`, against the global step.

    Scalars: `train/loss`, `train/learning_rate`, `train/step_s`, every value that other handlers left in the
    metrics of trainer and validator; the page "Custom Scalars" has a category for each group axis (`scalar_layout`).
    Histograms: sampling probabilities (times N, so 1 is uniform) and stale losses. Pictures: one fixed validation case
    and the hardest one of each validation (of several ranks: among the cases of rank 0, which writes). A table of the
    hardest training cases.

    Args:
        run: the folder of the run; the events go to `tensorboard/`.
        objective: whose history and probabilities are shown.
        validator: evaluator to show; None if nothing is validated.
        interval: steps between two values of the training loss.
        hparams: settings of the run, shown with its best value at the end, as are those of the objective.
    """

    def __init__(
        self,
        run: RunFolder,
        objective: Objective,
        validator: Engine | None = None,
        interval: int = 10,
        hparams: dict[str, Any] | None = None,
    ) -> None:
        self.run, self.objective, self.validator, self.interval = run, objective, validator, interval
        self.hparams = hparams or {}
        self.writer: Any = None
        self._trainer: Any = None
        self._step_started = 0.0
        self._fixed: tuple[str, np.ndarray] | None = None
        self._hardest: tuple[float, str, np.ndarray] | None = None
        self._shown: dict[str, None] = {}
        self._layout: Layout = {}
        self._layout_is_behind = False

    def attach(self, engine: DROTrainer) -> None:
        """Attach to the trainer, after the validation and history handlers."""
        if not is_writer():
            return
        self._trainer = engine
        engine.state.best_values = {}
        engine.state_dict_user_keys.append("best_values")
        engine.add_event_handler(Events.STARTED, self.started)
        engine.add_event_handler(Events.ITERATION_STARTED, self.step_started)
        engine.add_event_handler(IterationEvents.MODEL_COMPLETED, self.step_completed)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self.epoch_completed)
        engine.add_event_handler(Events.COMPLETED, self.completed)
        engine.add_event_handler(CheckpointEvents.CHECKPOINT_STARTED, self.flush)
        if self.validator is not None:
            self.validator.add_event_handler(Events.EPOCH_STARTED, self.validation_started)
            self.validator.add_event_handler(Events.ITERATION_COMPLETED, self.case_validated)
            self.validator.add_event_handler(Events.EPOCH_COMPLETED, self.validation_completed)

    def started(self, engine: DROTrainer) -> None:
        """Open the writer; what a killed run logged after its last checkpoint, or without one, is hidden."""
        self.writer = SummaryWriter(str(self.run.tensorboard), purge_step=engine.state.iteration + 1)
        self._layout_is_behind = self.validator is not None and engine.state.iteration > 0

    def step_started(self, engine: DROTrainer) -> None:
        """Note the time."""
        self._step_started = time.perf_counter()

    def step_completed(self, engine: DROTrainer) -> None:
        """Log the training loss, the learning rate and the time of a step."""
        step = engine.state.iteration
        if step % self.interval:
            return
        self.writer.add_scalar("train/loss", float(engine.state.output["loss"].detach()), step)
        self.writer.add_scalar("train/learning_rate", self._trainer.optimizer.param_groups[0]["lr"], step)
        self.writer.add_scalar("train/step_s", time.perf_counter() - self._step_started, step)

    def epoch_completed(self, engine: DROTrainer) -> None:
        """Log the state of the sampler and of the history."""
        step, history = engine.state.iteration, self.objective.history
        self._show(engine.state.metrics, step)
        if engine.state.epoch % 5 == 0 or engine.state.epoch == engine.state.max_epochs:
            relative = self.objective.probabilities() * len(history)
            self.writer.add_histogram("sampler/probability_times_n", relative, step)
            self.writer.add_histogram("history/stale_loss", torch.from_numpy(history.loss), step)
            self.writer.add_text("hardest training cases", self._hardest_table(), step)
        self.writer.flush()

    def _show(self, values: Mapping[str, float], step: int) -> None:
        """Write the values; if there are new ones among them, a layout that has them too.

        TensorBoard takes the last layout of a run. So one that continues leaves the layout alone until it has validated
        too: without its groups, the new one would be poorer than the one that is there.
        """
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)
        self._shown |= dict.fromkeys(values)
        layout = scalar_layout(self._shown)
        if layout != self._layout and not self._layout_is_behind:
            self._layout = layout
            self.writer.add_custom_scalars(layout)

    def _hardest_table(self, rows: int = 10) -> str:
        history = self.objective.history
        lines = ["| case | stale loss | visits | updates ago |", "|---|---|---|---|"]
        for index in np.argsort(-history.loss)[:rows]:
            lines.append(
                f"| {history.case_ids[index]} | {history.loss[index]:.4f} "
                f"| {history.visits[index]} | {history.age[index]} |"
            )
        return "\n".join(lines)

    def validation_started(self, engine: Engine) -> None:
        """Forget the pictures of the last validation."""
        self._fixed = self._hardest = None

    def case_validated(self, engine: Engine) -> None:
        """Keep the pictures of the first case and of the one with the lowest Dice of all foreground."""
        batch: Any = engine.state.batch
        output: Any = engine.state.output
        for item, result in zip(batch, output, strict=True):
            first = present_channels(result[keys.IMAGE]).index(True)
            image = np.asarray(result[keys.IMAGE][first].detach().cpu())
            label, pred = (np.asarray(result[key][0].detach().cpu()) for key in (keys.LABEL, keys.PRED))
            label, pred = label.astype(int), pred.astype(int)
            if self._fixed is None:
                self._fixed = (item[keys.CASE_ID], overlay_planes(image, label, pred))
            agreement = _foreground_dice(pred, label)
            if self._hardest is None or agreement < self._hardest[0]:
                self._hardest = (agreement, item[keys.CASE_ID], overlay_planes(image, label, pred))

    def validation_completed(self, engine: Engine) -> None:
        """Log values per subgroup and the two pictures."""
        step = self._trainer.state.iteration
        self._layout_is_behind = False
        self._show({name: value for name, value in engine.state.metrics.items() if name.startswith(PREFIX)}, step)
        best = self._trainer.state.best_values
        for name in ("val_dice/all", "val_dice/worst_group"):
            best[name] = max(best.get(name, 0.0), engine.state.metrics.get(name, 0.0))
        if self._fixed is not None:
            self.writer.add_image(f"fixed case {self._fixed[0]} (image, reference, prediction)", self._fixed[1], step)
        if self._hardest is not None:
            agreement, case_id, picture = self._hardest
            self.writer.add_image("hardest case (image, reference, prediction)", picture, step)
            among = ", the lowest of those that rank 0 validates" if world_size() > 1 else ""
            text = f"{case_id}: Dice of all structures {agreement:.3f}{among}"
            self.writer.add_text("hardest validation case", text, step)

    def flush(self, engine: DROTrainer) -> None:
        """Write out what a run that is killed and continued from the coming checkpoint would not log again."""
        self.writer.flush()

    def completed(self, engine: DROTrainer) -> None:
        """Log the settings beside the best values, and close the file."""
        best = engine.state.best_values
        metrics = {f"best/{name}": value for name, value in best.items()}
        shown = {**self.objective.settings, **self.hparams}
        plain = {name: value for name, value in shown.items() if isinstance(value, (int, float, str, bool))}
        if metrics and plain:
            # add_hparams() would open a second event file, and TensorBoard follows one
            for summary in hparams(plain, metrics):
                self.writer.file_writer.add_summary(summary)
            for name, value in metrics.items():
                self.writer.add_scalar(name, value, engine.state.iteration)
        self.writer.close()


def _foreground_dice(pred: np.ndarray, label: np.ndarray) -> float:
    size = int((pred > 0).sum() + (label > 0).sum())
    return 2 * int(((pred == label) & (label > 0)).sum()) / size if size else 1.0


def tensorboard_line(folder: str | Path) -> str:
    """Return the command that shows the runs of a folder."""
    return f"tensorboard --logdir {folder}"
