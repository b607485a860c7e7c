"""The training ranges that a bundle carries, from `training_statistics.json` of any version of droseg."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from droseg.errors import BundleError

STATISTICS_FILE: Final = "training_statistics.json"


@dataclass(frozen=True)
class Range:
    """Smallest and largest value of the training cases, per column: axis, channel, or a single one."""

    low: NDArray[np.float64]
    high: NDArray[np.float64]

    def times_outside(self, values: Any) -> float:
        """Return by which factor the most extreme value lies outside; 1 or less is inside, NaN counts as inside."""
        found = np.maximum(np.asarray(values, dtype=float), 1e-12)
        ratios = np.maximum(self.low / found, found / np.maximum(self.high, 1e-12))
        return float(np.nanmax(ratios)) if np.isfinite(ratios).any() else 1.0

    def widths_outside(self, values: Any, least_width: float = 0.0) -> NDArray[np.float64]:
        """Return per column by how many widths of the range a value lies below (negative) or above it; 0 is inside."""
        found = np.asarray(values, dtype=float)
        width = np.maximum(self.high - self.low, least_width)
        outside = np.minimum(found - self.low, 0) + np.maximum(found - self.high, 0)
        return np.nan_to_num(outside / np.maximum(width, 1e-12))


class TrainingRanges:
    """What the training cases look like; None for whatever the file does not say.

    Args:
        folder: of the bundle.

    Attributes:
        cases: number of training cases; 0 if there is no file.

    Raises:
        BundleError: if the file is there and cannot be used.
    """

    def __init__(self, folder: Path) -> None:
        self._document = read_document(folder / STATISTICS_FILE)
        self.cases = int(self._document.get("cases", 0))

    def image(self, measure: str) -> Range | None:
        """Return the range of a field of `ImageMeasures`."""
        found = _range(self._section("image").get(measure))
        if found is None and measure in ("extent_mm", "spacing_mm"):
            # Older files have these in the order of the files' axes, which differs from case to case.
            older = _range(self._document.get(measure))
            if older is not None and older.low.size == 3:
                return Range(np.full(3, older.low.min()), np.full(3, older.high.max()))
        return found

    def structure(self, name: str, measure: str) -> Range | None:
        """Return the range of a field of `StructureMeasures`, over the cases that have the structure."""
        forms = self._section("structures").get(name)
        found = _range(forms.get(measure)) if isinstance(forms, dict) else None
        if found is None and measure == "volume_ml" and self.absent(name) == 0:
            return _range(self._section("volume_ml").get(name))
        return found

    def absent(self, name: str) -> int | None:
        """Return in how many training cases a structure is absent."""
        volumes = self._section("volume_ml").get(name)
        return volumes.get("absent") if isinstance(volumes, dict) else None

    def missing(self, channel: int) -> int:
        """Return how many training cases lacked a channel, by its index; 0 where the file is older than that."""
        counts = self._document.get("missing_channels")
        return int(counts[channel]) if isinstance(counts, list) and channel < len(counts) else 0

    def _section(self, name: str) -> Mapping[str, Any]:
        section = self._document.get(name)
        return section if isinstance(section, dict) else {}


def read_document(path: Path) -> dict[str, Any]:
    """Return a JSON object; an empty one if there is no such file.

    Raises:
        BundleError: if the file is there and is no JSON object.
    """
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:120]
        raise BundleError(f"{path}: cannot be read ({reason}); copy it again, or remove it to go without.") from error
    if not isinstance(document, dict):
        raise BundleError(f"{path}: holds no JSON object; copy it again, or remove it to go without.")
    return document


def _range(quantiles: Any) -> Range | None:
    if not isinstance(quantiles, dict) or quantiles.get("min") is None or quantiles.get("max") is None:
        return None
    low, high = (np.atleast_1d(np.asarray(quantiles[name], dtype=float)) for name in ("min", "max"))
    return Range(low, high) if np.isfinite(low).all() and np.isfinite(high).all() else None
