"""What became of each case, in memory and on disk: `predict.json` and `volumes.csv`."""

from __future__ import annotations

import csv
import io
import json
import threading
import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, get_args

import monai
import torch

from droseg import __version__
from droseg.data.volumes import ImageSource
from droseg.data.writing import write_text
from droseg.inference.inputs import SkippedInput
from droseg.inference.quality import Flag

RECORD = "predict.json"
VOLUMES = "volumes.csv"
Status = Literal["ok", "failed", "skipped", "out_of_domain"]
SHARE = 0.05
"""Of the time, at most, goes into rewriting the record; it matters from some thousand cases on."""


@dataclass(frozen=True)
class CaseResult:
    """What became of one case.

    Attributes:
        images: paths of the channels; None for one that is missing.
        status: `skipped` is no candidate, such as a localizer; `out_of_domain` is an image the network cannot know.
        seconds: of work on this case; waiting does not count.
        output: path of the label map; None if there is none.
        files: names of all files that were written for it.
        reused: the label map was there before, made from the same image by the same bundle.
        flags: what a person should look at.
        volumes_ml: structure -> volume.
        image_sha256: of the image's files; None if they could not be read.
        error: what went wrong, or why it was skipped; None if nothing did.
        remedy: what to do about it.
    """

    case_id: str
    images: tuple[str | None, ...]
    status: Status
    seconds: float
    output: str | None = None
    files: tuple[str, ...] = ()
    reused: bool = False
    flags: tuple[Flag, ...] = ()
    volumes_ml: Mapping[str, float] = field(default_factory=dict)
    image_sha256: str | None = None
    error: str | None = None
    remedy: str | None = None

    @classmethod
    def of_skipped(cls, skipped: SkippedInput) -> CaseResult:
        """Return what becomes of something that is no candidate."""
        return cls(skipped.name, (str(skipped.path),), "skipped", 0.0, error=skipped.reason)


def source_names(images: Iterable[ImageSource | None]) -> tuple[str | None, ...]:
    """Return the images of a case as they stand in a record."""
    return tuple(None if image is None else str(image) for image in images)


class RunRecord:
    """`predict.json` and `volumes.csv` of an output folder, rewritten as the run goes on; earlier cases stay.

    Args:
        out: the folder.
        about: what made the results: bundle, fingerprint, structures, ...
    """

    def __init__(self, out: Path, about: Mapping[str, Any]) -> None:
        self._out = out
        self._about = {"droseg": __version__, "torch": str(torch.__version__), "monai": monai.__version__, **about}
        self._cases = _earlier(out / RECORD)
        self._lock = threading.Lock()
        self._changed = False
        self._next_write = 0.0

    def add(self, result: CaseResult) -> None:
        """Take in what became of a case, and rewrite both files, unless that would take over 5 % of the time.

        Raises:
            OutputError: if they cannot be written.
        """
        entry: dict[str, Any] = asdict(result)
        entry["output"] = result.output and Path(result.output).name
        with self._lock:
            earlier = self._cases.get(_key(entry))
            if result.reused and earlier is not None and earlier.get("status") == "ok":
                entry["seconds"] = earlier.get("seconds", result.seconds)
            self._cases[_key(entry)] = entry
            self._changed = True
            if time.monotonic() >= self._next_write:
                self._write()

    def entries(self) -> list[dict[str, Any]]:
        """Return all cases as they stand in `predict.json`, those of earlier runs, too."""
        with self._lock:
            return list(self._cases.values())

    def close(self) -> None:
        """Write what is not written yet.

        Raises:
            OutputError: if it cannot be written.
        """
        with self._lock:
            if self._changed:
                self._write()

    def _write(self) -> None:
        started = time.monotonic()
        document = {**self._about, "cases": list(self._cases.values())}
        write_text(json.dumps(document, indent=2) + "\n", self._out / RECORD)
        write_text(self._volumes(), self._out / VOLUMES)
        self._changed = False
        ended = time.monotonic()
        self._next_write = ended + (ended - started) * (1 / SHARE - 1)

    def _volumes(self) -> str:
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(("case_id", "structure", "volume_ml"))
        for entry in self._cases.values():
            volumes = entry.get("volumes_ml")
            if entry.get("status") == "ok" and isinstance(volumes, dict):
                writer.writerows((entry["case_id"], name, f"{volume:.10g}") for name, volume in volumes.items())
        return text.getvalue()


def _key(entry: Mapping[str, Any]) -> tuple[str, ...]:
    """Return what identifies an entry; a skipped input may have the name of a case."""
    name = str(entry["case_id"])
    return (name, *map(str, entry.get("images", ()))) if entry.get("status") == "skipped" else (name,)


def _earlier(path: Path) -> dict[tuple[str, ...], dict[str, Any]]:
    """Return the entries of an earlier run; none if there was none, or if its record is damaged."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        return {_key(entry): entry for entry in document["cases"] if _is_entry(entry)}
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return {}


def _is_entry(entry: Any) -> bool:
    if not isinstance(entry, dict) or not isinstance(entry.get("case_id"), str):
        return False
    volumes, flags = entry.get("volumes_ml", {}), entry.get("flags", [])
    whole = isinstance(volumes, dict) and all(isinstance(volume, int | float) for volume in volumes.values())
    names = {item.name for item in fields(Flag)}
    return (
        whole
        and entry.get("status") in get_args(Status)
        and isinstance(flags, list)
        and all(isinstance(flag, dict) and set(flag) == names for flag in flags)
    )
