"""The folder of one training run: a complete bundle, plus what watches and continues the run."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import logging
import math
import os
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import torch

from droseg.errors import DrosegError

logger = logging.getLogger(__name__)

RUNNING, FINISHED, FAILED, INTERRUPTED = "running", "finished", "failed", "interrupted"
"""What `status` in `run.json` says."""


class RunFolder:
    """Paths inside a run folder, and its `run.json`.

    Args:
        path: the folder; it need not exist yet.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.configs = self.path / "configs"
        self.models = self.path / "models"
        self.tensorboard = self.path / "tensorboard"
        self.best_model = self.models / "model.pt"
        self.last_model = self.models / "model_last.pt"
        self.early_model = self.models / "model_early.pt"
        self.checkpoint = self.models / "checkpoint.pt"
        self.statistics_file = self.path / "training_statistics.json"
        self.early_losses_file = self.path / "early_losses.json"
        self.status_file = self.path / "run.json"
        self.card = self.path / "docs" / "README.md"
        self.audit_file = self.path / "audit.bin"
        self.audit_cases_file = self.path / "audit.json"
        self.lock_file = self.path / ".lock"

    def status(self) -> dict[str, Any]:
        """Return what `run.json` holds; empty if there is none, or none that can be read."""
        try:
            content = json.loads(self.status_file.read_text())
        except (OSError, ValueError):
            return {}
        return content if isinstance(content, dict) else {}

    def write_status(self, **values: Any) -> None:
        """Merge values into `run.json`, atomically: a reader never sees half a file. What is not finite is null."""
        content = {**self.status(), **values, "updated": time.strftime("%Y-%m-%dT%H:%M:%S%z")}
        replace_text(self.status_file, json.dumps(_finite(content), indent=2, allow_nan=False) + "\n")

    def remove_partials(self) -> list[Path]:
        """Remove the half-written files that killed processes left, and return them; only while holding the lock."""
        found = [file for folder in (self.path, self.models) for file in folder.glob(".*.partial")]
        for file in found:
            file.unlink(missing_ok=True)
        return found

    def lock(self) -> bool:
        """Keep other trainings out of this folder until `unlock`, or until this process ends in whatever way.

        Return whether that is so: some network file systems know no locks, of which a warning says so.

        Raises:
            DrosegError: if another process trains there; naming it.
        """
        if self.path.resolve() in _LOCKS:
            return True
        self.path.mkdir(parents=True, exist_ok=True)
        file = None
        try:
            file = self.lock_file.open("a+")
            # A POSIX lock, unlike flock's, is not inherited by data-loading workers, which may outlive a killed
            # training by seconds. It ends when this process closes any handle of the file, so nobody else opens it.
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if file is None or error.errno not in (errno.EACCES, errno.EAGAIN):
                logger.warning("%s cannot be locked (%s): start no second training there.", self.path, error)
                return False
            file.seek(0)
            holder = file.read().strip() or "another process"
            file.close()
            raise DrosegError(
                f"{self.path}: {holder} is training there; wait until it ends, or give another folder by --out."
            ) from error
        file.truncate(0)
        file.write(f"process {os.getpid()} on {platform.node()}\n")
        file.flush()
        _LOCKS[self.path.resolve()] = file
        return True

    def unlock(self) -> None:
        """Let other trainings in."""
        file = _LOCKS.pop(self.path.resolve(), None)
        if file is not None:
            with contextlib.suppress(OSError):
                file.truncate(0)
            file.close()


def _finite(value: Any) -> Any:
    """Return nested values with None in place of floats that are not finite: JSON has no NaN."""
    if isinstance(value, dict):
        return {key: _finite(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


_LOCKS: dict[Path, IO[str]] = {}
"""Open handles of the locks that this process holds."""


def unlock_all() -> None:
    """Give up all locks of this process."""
    for path in list(_LOCKS):
        RunFolder(path).unlock()


def replace_text(path: Path, text: str) -> None:
    """Write a text file so that a reader sees the old content or the new one, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    _replace(path, lambda file: file.write(text.encode()))


def replace_state(path: Path, state: dict[str, Any]) -> None:
    """Write tensors and primitives by `torch.save` so that a kill or a full disk leaves the old file as it was."""
    path.parent.mkdir(parents=True, exist_ok=True)
    _replace(path, lambda file: torch.save(state, file), durable=True)


def _replace(path: Path, write: Callable[[IO[bytes]], Any], durable: bool = False) -> None:
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with partial.open("wb") as file:
            write(file)
            if durable:
                file.flush()
                os.fsync(file.fileno())  # else a power cut could leave the new name with no content
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
