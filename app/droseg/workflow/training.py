"""A training as the config's `run` calls it: it keeps `run.json` true whatever happens."""

from __future__ import annotations

import contextlib
import math
import sys
from pathlib import Path
from typing import Any

from droseg.engine.run_folder import FAILED, FINISHED, INTERRUPTED
from droseg.engine.trainer import DROTrainer
from droseg.errors import DrosegError
from droseg.handlers import RunCheckpoint, is_writer
from droseg.inference.weights import load_weights


def prepare_network(network: Any, init_from: str | Path | None) -> Any:
    """Return the network, with the weights of another run or file in it if `init_from` is given.

    Raises:
        WeightsError: if they cannot be read or are of another network.
    """
    if init_from is not None:
        path = Path(init_from)
        load_weights(network, path / "models/model.pt" if path.is_dir() else path)
    return network


def run_training(trainer: DROTrainer, checkpoint: RunCheckpoint) -> None:
    """Run or continue a training and keep `run.json` true whatever happens; a config's `run` calls it."""
    run = checkpoint.run
    checkpoint.attach(trainer)  # after the handlers of the config: it saves what they have measured
    try:
        epoch = checkpoint.restore(trainer)
        if is_writer():
            print(f"checkpoint rule: {checkpoint.rule()}")
            if epoch:
                print(f"continues after epoch {epoch} of {trainer.state.max_epochs} (step {trainer.state.iteration})")
        trainer.run()
    except BaseException as error:
        if is_writer():
            stopped = isinstance(error, (KeyboardInterrupt, SystemExit))
            remedy = "run the same command again to continue." if stopped else remedy_for(error)
            with contextlib.suppress(OSError):  # the disk may be what failed; the error itself matters more
                run.write_status(status=INTERRUPTED if stopped else FAILED, error=_describe(error), remedy=remedy)
        if isinstance(error, DrosegError) or (isinstance(error, Exception) and _is_memory(error)):
            print(f"droseg: error: {_describe(error)}\n{remedy_for(error)}", file=sys.stderr)
            raise SystemExit(getattr(error, "exit_code", 1)) from error
        raise
    if is_writer():
        found = math.isfinite(checkpoint.best_value)
        best = round(checkpoint.best_value, 5) if found else None
        rule = checkpoint.rule() if found or checkpoint.select == "last" else f"last; {checkpoint.select} had no value"
        selected_by = checkpoint.select if found else "last"
        run.write_status(
            status=FINISHED, time_left_s=0, selected_by=selected_by, best=best, best_epoch=checkpoint.best_epoch
        )
        print(f"finished: {run.best_model} (epoch {checkpoint.best_epoch}; {rule})", flush=True)


def _describe(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}".strip().splitlines()[0][:500]


def _is_memory(error: BaseException) -> bool:
    return isinstance(error, MemoryError) or "out of memory" in str(error).lower()


def remedy_for(error: BaseException) -> str:
    """Return what a person can do about an error that ended a training."""
    if _is_memory(error):
        return "Not enough memory: lower batch_size or roi_size, then run the same command with --restart."
    if isinstance(error, OSError):
        return "A file could not be read or written (disk full?); when it can, the same command continues the run."
    return "The same command continues from the last checkpoint; if it fails again, the message above says where."
