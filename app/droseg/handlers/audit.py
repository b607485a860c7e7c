"""The audit trail of a training: which case was drawn when, at what probability, with which loss."""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path
from typing import IO

import numpy as np
import pandas as pd
from ignite.engine import Events

from droseg import keys
from droseg.engine.roles import is_writer
from droseg.engine.run_folder import RunFolder, replace_text
from droseg.engine.trainer import CheckpointEvents, DROTrainer
from droseg.errors import InputError
from droseg.objectives import Objective

logger = logging.getLogger(__name__)

FORMAT = 1
RECORD = np.dtype([("step", "<u4"), ("case", "<u4"), ("probability", "<f4"), ("loss", "<f4")])
"""One item of a global batch. `case` is a row of the `case_ids` in `audit.json`."""


class AuditHandler:
    """Appends one record of 16 bytes per item of each global batch to `audit.bin` of the run.

    The records are those of the steps that were trained: a resumed training cuts off what a killed one had written
    after its last checkpoint. Several patches of a case are several records of one draw. `read_audit` reads them.

    Args:
        run: the folder of the run.
        objective: whose draws are recorded.
    """

    def __init__(self, run: RunFolder, objective: Objective) -> None:
        self.run, self.objective = run, objective
        self._file: IO[bytes]
        self._rows = np.arange(len(objective.history), dtype=np.uint32)

    def attach(self, engine: DROTrainer) -> None:
        """Attach to the trainer."""
        if not is_writer():
            return
        engine.add_event_handler(Events.STARTED, self.started)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self.step_completed)
        engine.add_event_handler(CheckpointEvents.CHECKPOINT_STARTED, self.flush)
        engine.add_event_handler(Events.COMPLETED, self.completed)

    def started(self, engine: DROTrainer) -> None:
        """Open the file, at the step that the training continues from."""
        step = engine.state.iteration
        case_ids = _case_ids(self.run) if step else []
        row_of = {case_id: row for row, case_id in enumerate(case_ids)}
        for case_id in self.objective.history.case_ids:  # of a changed datalist: the old cases keep their rows
            row_of.setdefault(case_id, len(row_of))
        self._rows = np.array([row_of[case_id] for case_id in self.objective.history.case_ids], dtype=np.uint32)
        content = {"format": FORMAT, "batches_per_epoch": engine.state.epoch_length, "case_ids": list(row_of)}
        replace_text(self.run.audit_cases_file, json.dumps(content) + "\n")
        self._cut_off(step)
        self._file = self.run.audit_file.open("ab")

    def _cut_off(self, step: int) -> None:
        """Remove what was written after this step."""
        self.run.audit_file.touch()
        steps = _records(self.run.audit_file)["step"]
        kept = int(np.searchsorted(steps, step, side="right"))
        if step and (kept == 0 or steps[kept - 1] != step):
            logger.warning("the audit trail has no record of step %d; it goes on with a gap.", step)
        del steps
        os.truncate(self.run.audit_file, kept * RECORD.itemsize)

    def step_completed(self, engine: DROTrainer) -> None:
        """Record the global batch of this step."""
        draw = self.objective.current_draw
        if draw is None:
            return
        indices, losses = engine.step_losses
        probability = dict(zip(draw.indices, draw.probability, strict=True))
        records = np.empty(len(indices), RECORD)
        records["step"], records["case"] = engine.state.iteration, self._rows[indices]
        records["probability"], records["loss"] = [probability[index] for index in indices], losses
        self._file.write(records.tobytes())

    def flush(self, _: DROTrainer) -> None:
        """Bring the file up to the checkpoint that is about to be written."""
        self._file.flush()

    def completed(self, _: DROTrainer) -> None:
        """Close the file."""
        self._file.close()


def read_audit(run: RunFolder | str | Path) -> pd.DataFrame:
    """Return case_id, epoch, step (both from 1), probability and loss of each trained item, in the order of training.

    Raises:
        InputError: if the run has no audit trail, or one that cannot be read.
    """
    folder = run if isinstance(run, RunFolder) else RunFolder(run)
    if not folder.audit_file.is_file():
        raise InputError(f"{folder.path}: there is no {folder.audit_file.name}; train with audit=true to write one.")
    case_ids = np.array(_case_ids(folder), dtype=object)
    batches_per_epoch = int(json.loads(folder.audit_cases_file.read_text())["batches_per_epoch"])
    records = np.array(_records(folder.audit_file))
    if len(records) and int(records["case"].max()) >= len(case_ids):
        raise InputError(f"{folder.audit_file} does not belong to {folder.audit_cases_file}: it has more cases.")
    step = records["step"].astype(np.int64)
    return pd.DataFrame(
        {
            keys.CASE_ID: case_ids[records["case"]],
            "epoch": (step - 1) // batches_per_epoch + 1,
            "step": step,
            "probability": records["probability"],
            "loss": records["loss"],
        }
    )


def _case_ids(run: RunFolder) -> list[str]:
    try:
        content = json.loads(run.audit_cases_file.read_text())
    except FileNotFoundError:
        return []
    if content.get("format") != FORMAT:
        raise InputError(
            f"{run.audit_cases_file} is of format {content.get('format')}, this version of droseg knows {FORMAT}."
        )
    return [str(case_id) for case_id in content["case_ids"]]


def _records(file: Path) -> np.ndarray:
    """Return the whole records; a killed training may have left a part of one behind them."""
    count = file.stat().st_size // RECORD.itemsize
    return np.memmap(file, RECORD, "r", shape=(count,)) if count else np.empty(0, RECORD)
