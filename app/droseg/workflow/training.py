"""A training as the config's `run` calls it: it keeps `run.json` true whatever happens."""

from __future__ import annotations

import contextlib
import logging
import math
import re
import sys
from pathlib import Path
from typing import Any

from droseg.engine.roles import LostRankError
from droseg.engine.run_folder import FAILED, FINISHED, INTERRUPTED, RUNNING
from droseg.engine.stop import CONTINUE, stops_at_sigterm
from droseg.engine.trainer import DROTrainer
from droseg.errors import DrosegError, InputError
from droseg.handlers import RunCheckpoint, is_writer
from droseg.inference.weights import load_weights
from droseg.workflow.lost import check_same_start, end_without_rank, leave_note, watch_ranks


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
    """Run or continue a training and keep `run.json` true whatever happens; a config's `run` calls it.

    Raises:
        StopRequested: after SIGTERM, when the state is saved.
        SystemExit: for an error whose message is for the user; other errors are raised as they are.
    """
    run = checkpoint.run
    for engine in (trainer, checkpoint.validator):
        if engine is not None:
            engine.logger.addFilter(_is_no_end)
    checkpoint.attach(trainer)  # after the handlers of the config: it saves what they have measured
    if is_writer():
        run.lock()
        run.remove_partials()
    try:
        watch_ranks(run)
        with stops_at_sigterm(trainer, run):
            _run(trainer, checkpoint)
    finally:
        run.unlock()


def _run(trainer: DROTrainer, checkpoint: RunCheckpoint) -> None:
    run = checkpoint.run
    try:
        if is_writer():
            run.write_status(status=RUNNING, error=None, remedy=None)
        epoch = checkpoint.restore(trainer)
        check_same_start(run, trainer.state.iteration)
        if is_writer():
            print(f"checkpoint rule: {checkpoint.rule()}")
            if trainer.state.iteration:
                print(f"continues after epoch {epoch} of {trainer.state.max_epochs} (step {trainer.state.iteration})")
        trainer.run()
    except BaseException as error:
        if isinstance(error, LostRankError):
            end_without_rank(run, str(error))
        if not is_writer() and isinstance(error, Exception):
            leave_note(run, _describe(error), remedy_for(error))
        if is_writer():
            stopped = isinstance(error, (KeyboardInterrupt, SystemExit))
            status, remedy = (INTERRUPTED, CONTINUE) if stopped else (FAILED, remedy_for(error))
            step = trainer.state.iteration
            with contextlib.suppress(OSError):  # the disk may be what failed; the error itself matters more
                run.write_status(status=status, error=_describe(error), remedy=remedy, step=step)
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


def _is_no_end(record: logging.LogRecord) -> bool:
    """Filter of ignite's loggers: it logs each exception once per loop, and then raises what is said below."""
    return "run is terminating due to exception" not in record.getMessage()


def _describe(error: BaseException) -> str:
    """Return an error in one line; for what MONAI raises of a transform, the cause."""
    transform = re.match(r"applying transform <(?:\w+\.)*(\w+) object", str(error))
    if transform and error.__cause__ is not None:
        return f"{transform[1]}: {_describe(error.__cause__)}"[:500]
    kind = "" if isinstance(error, DrosegError) else f"{type(error).__name__}: "
    return f"{kind}{error}".strip().splitlines()[0][:500]


def _is_memory(error: BaseException) -> bool:
    # torch's CPU allocator says "can't allocate memory", cuDNN and cuBLAS "..._STATUS_ALLOC_FAILED"; MONAI wraps what
    # a transform raises.
    words = ("out of memory", "can't allocate memory", "cannot allocate memory", "alloc_failed")
    chain = [error]
    while chain[-1].__cause__ is not None:
        chain.append(chain[-1].__cause__)
    return any(isinstance(each, MemoryError) or any(word in str(each).lower() for word in words) for each in chain)


def remedy_for(error: BaseException) -> str:
    """Return what a person can do about an error that ended a training."""
    if _is_memory(error):
        return "Not enough memory: lower batch_size or roi_size, then run the same command with --restart."
    if "DataLoader worker" in str(error):
        return (
            "A data-loading worker ended, most often for lack of memory: lower num_workers (or give a container more "
            "by --shm-size); the same command continues from the last checkpoint."
        )
    if isinstance(error, InputError):
        return (
            "Mend that, then run the command again; with other settings, a run that has a checkpoint already starts "
            "over by --restart."
        )
    if isinstance(error, OSError):
        return "A file could not be read or written (disk full?); when it can, the same command continues the run."
    return "The same command continues from the last checkpoint; if it fails again, the message above says where."
