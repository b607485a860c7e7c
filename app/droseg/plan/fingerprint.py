"""What a plan must know of the training cases; one case is in memory at a time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from nibabel.orientations import io_orientation
from numpy.typing import NDArray
from tqdm import tqdm

from droseg.data import Case, Datalist
from droseg.data.check import Problem, check_datalist, problem_table
from droseg.data.datalist import EntryProblem
from droseg.data.volumes import Volume, read_volume, spacing_mm
from droseg.errors import DatalistError
from droseg.keys import TRAINING, VALIDATION

Triple = tuple[float, float, float]


@dataclass(frozen=True)
class CaseMeasures:
    """What one case looks like; axes are those of the RAS orientation that the training turns it to.

    Attributes:
        spacing_mm: edges of a voxel.
        shape: voxels per axis.
        box: voxels per axis of the box around all that is not exactly 0 in some channel.
        zero_share: of the voxels, those that are exactly 0 in every channel.
        intensity: per channel the median over the labelled voxels; None for a missing channel.
        voxels: structure -> voxels of its label values.
    """

    spacing_mm: Triple
    shape: Triple
    box: Triple
    zero_share: float
    intensity: tuple[float | None, ...]
    voxels: Mapping[str, int]


@dataclass(frozen=True)
class Fingerprint:
    """The measures of all training cases of a datalist."""

    cases: tuple[CaseMeasures, ...]
    channels: tuple[str, ...]
    structures: Mapping[str, tuple[int, ...]]

    def per_case(self, name: str) -> NDArray[np.float64]:
        """Return one measure of all cases, (N,) or (N, 3)."""
        return np.array([getattr(case, name) for case in self.cases], dtype=float)

    def median_ml(self, structure: str) -> float:
        """Return the median volume of a structure over the cases that have it; NaN if none has."""
        found = [
            case.voxels[structure] * float(np.prod(case.spacing_mm)) / 1000.0
            for case in self.cases
            if case.voxels[structure]
        ]
        return float(np.median(found)) if found else float("nan")

    def absent(self, structure: str) -> int:
        """Return how many cases lack a structure."""
        return sum(case.voxels[structure] == 0 for case in self.cases)


def take_fingerprint(
    datalist: Datalist, entries: Sequence[EntryProblem] = (), progress: bool = False
) -> tuple[Fingerprint, list[str]]:
    """Return the measures of the training cases, and the warnings of `droseg data check`.

    Args:
        datalist: its usable cases.
        entries: what is wrong with the others, from `parse_datalist`.
        progress: show progress bars on stderr.
    Raises:
        DatalistError: with all errors of training and validation cases, or if there are too few training cases.
    """
    problems = [Problem("error", entry.section, entry.case_id, entry.message) for entry in entries]
    sections = [name for name in (TRAINING, VALIDATION) if datalist.sections.get(name)]
    if sections:
        problems += check_datalist(datalist, sections, progress=progress)
    errors = [problem for problem in problems if problem.severity == "error"]
    if errors:
        raise DatalistError(
            f"{datalist.path}: nothing is planned, {len(errors)} error(s):\n{problem_table(errors)}\n"
            "Mend these files or take the cases out of the datalist."
        )
    cases = datalist.section(TRAINING)
    if len(cases) < 2:
        raise DatalistError(
            f"{datalist.path}: {TRAINING} has 1 case; a batch draws different cases, so there must be 2 at least "
            "(some dozens for a network that is of use)."
        )
    bar = tqdm(cases, desc="measuring", unit="case", delay=2, disable=not progress)
    measures = tuple(measure_case(case, datalist.structures) for case in bar)
    _check_structures(datalist, measures)
    warnings = [f"{p.section}: {p.case_id + ': ' if p.case_id else ''}{p.message}" for p in problems]
    return Fingerprint(measures, datalist.channels, dict(datalist.structures)), warnings


def measure_case(case: Case, structures: Mapping[str, Sequence[int]]) -> CaseMeasures:
    """Return what one labelled case looks like.

    Raises:
        DatalistError: if it has no label. VolumeError: if a file of it cannot be read.
    """
    if case.label is None:
        raise DatalistError(f"{case.case_id}: no label; give one, or move the case to the testing section.")
    label = read_volume(case.label)
    values = np.rint(label.array[0]).astype(np.int64)
    labelled = np.isin(values, [value for numbers in structures.values() for value in numbers])
    counts = np.bincount(values[labelled])
    intensity: list[float | None] = []
    present = np.zeros(values.shape, dtype=bool)
    grid: Volume = label
    for path in case.images:
        if path is None:
            intensity.append(None)
            continue
        grid = read_volume(path)
        for channel in grid.array:
            present |= channel != 0
            intensity.append(float(np.median(channel[labelled] if labelled.any() else channel)))
    order = np.argsort(io_orientation(grid.affine)[:, 0])  # array axis nearest to right, front, up
    return CaseMeasures(
        spacing_mm=_triple(spacing_mm(grid.affine)[order]),
        shape=_triple(np.array(present.shape)[order]),
        box=_triple(_box(present)[order]),
        zero_share=float(1.0 - present.mean()),
        intensity=tuple(intensity),
        voxels={
            name: int(sum(counts[value] for value in set(numbers) if value < len(counts)))
            for name, numbers in structures.items()
        },
    )


def _check_structures(datalist: Datalist, measures: Sequence[CaseMeasures]) -> None:
    never = [name for name in datalist.structures if not any(case.voxels[name] for case in measures)]
    if never:
        raise DatalistError(
            f"{datalist.path}: no training case has {', '.join(never)}, so it cannot be learned; take it out of "
            "`structures`, or move cases that have it to training."
        )


def _box(mask: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Return the number of voxels per axis of the box around a mask; the whole grid if the mask is empty."""
    if not mask.any():
        return np.array(mask.shape)
    found = [np.flatnonzero(mask.any(axis=tuple(a for a in range(3) if a != axis))) for axis in range(3)]
    return np.array([inside[-1] - inside[0] + 1 for inside in found])


def _triple(values: NDArray[Any]) -> Triple:
    return float(values[0]), float(values[1]), float(values[2])
