"""The folder of one training run: a complete bundle, plus what watches and continues the run."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

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
        self.checkpoint = self.models / "checkpoint.pt"
        self.statistics_file = self.path / "training_statistics.json"
        self.status_file = self.path / "run.json"

    def status(self) -> dict[str, Any]:
        """Return what `run.json` holds; empty if there is none, or none that can be read."""
        try:
            content = json.loads(self.status_file.read_text())
        except (OSError, ValueError):
            return {}
        return content if isinstance(content, dict) else {}

    def write_status(self, **values: Any) -> None:
        """Merge values into `run.json`, atomically: a reader never sees half a file."""
        content = {**self.status(), **values, "updated": time.strftime("%Y-%m-%dT%H:%M:%S%z")}
        replace_text(self.status_file, json.dumps(content, indent=2) + "\n")


def replace_text(path: Path, text: str) -> None:
    """Write a text file so that a reader sees the old content or the new one, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    partial.write_text(text)
    os.replace(partial, path)
