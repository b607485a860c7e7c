"""The score of one case from two files; what worker processes of `droseg evaluate` run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from nibabel.affines import voxel_sizes
from numpy.typing import NDArray

from droseg.errors import DrosegError
from droseg.metrics.case import case_metrics
from droseg.metrics.label_maps import describe_grid, lay_on_grid, read_labels
from droseg.metrics.names import DIAGONAL

_SMALL = 1 << 16


@dataclass(frozen=True)
class ScoreOptions:
    """How every case of a section is scored.

    Attributes:
        structures: label values of a structure -> its name.
        known_values: label values that may occur; others are warned about.
        nsd_tolerance_mm: structure -> tolerance.
        metrics: see `case_metrics`.
        grid_tolerance: see `lay_on_grid`.
    """

    structures: Mapping[tuple[int, ...], str]
    known_values: frozenset[int]
    nsd_tolerance_mm: Mapping[str, float]
    metrics: tuple[str, ...]
    grid_tolerance: float


@dataclass(frozen=True)
class FileScore:
    """The rows of one case, or why there are none."""

    table: pd.DataFrame | None = None
    problem: str = ""
    warning: str = ""


def score_files(label_path: Path, pred_path: Path | None, options: ScoreOptions) -> FileScore:
    """Return the metrics of a prediction on the reference's grid and in its spacing, with `diagonal_mm`.

    Args:
        label_path: the reference.
        pred_path: the prediction; None is all background.
        options: how to score.
    """
    try:
        label, affine = read_labels(label_path)
        pred, warning = np.zeros_like(label), ""
        if pred_path is not None:
            raw, pred_affine = read_labels(pred_path)
            placed = lay_on_grid(raw, pred_affine, label.shape, affine, options.grid_tolerance)
            if placed is None:
                found, expected = describe_grid(raw.shape, pred_affine), describe_grid(label.shape, affine)
                problem = f"{pred_path} has the grid {found}, the reference {label_path} {expected}"
                return FileScore(
                    problem=f"{problem}; resample the prediction to the reference's grid, with nearest neighbor."
                )
            pred = placed
            strange = sorted(_values(pred) - options.known_values - {0})
            if strange:
                shown = ", ".join(map(str, strange[:8])) + (", ..." if len(strange) > 8 else "")
                warning = f"{pred_path.name} holds label values that the datalist does not declare ({shown})."
        spacing_mm = voxel_sizes(affine)
        table = case_metrics(
            pred,
            label,
            options.structures,  # type: ignore[arg-type]
            tuple(spacing_mm),
            options.nsd_tolerance_mm,
            options.metrics,
        )
    except DrosegError as error:
        return FileScore(problem=str(error))
    except MemoryError:
        return FileScore(problem=f"{label_path}: not enough memory to score it; give fewer --workers.")
    diagonal_mm = float(np.linalg.norm(np.asarray(label.shape) * spacing_mm))
    return FileScore(table.assign(**{DIAGONAL: diagonal_mm}), "", warning)


def _values(labels: NDArray[np.integer]) -> set[int]:
    """Return the values that occur."""
    if labels.dtype == bool or (labels.size and labels.min() >= 0 and labels.max() < _SMALL):
        return set(np.flatnonzero(np.bincount(labels.ravel())).tolist())  # many times faster than sorting
    return set(np.unique(labels).tolist())
