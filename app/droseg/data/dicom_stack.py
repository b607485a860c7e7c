"""The geometry of a DICOM series: the slices of its files as one upright, evenly spaced stack, or what keeps them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from droseg.data.dicom import DicomSeries, affine_rows, common_folder
from droseg.data.dicom_header import SPLIT_TAGS, DicomFile, Frame, dicom_files, read_dicom_header
from droseg.data.grids import VolumeError, spacing_mm
from droseg.data.text_header import LPS_TO_RAS

MIN_SLICES: Final = 5
"""Fewer are a localizer or a preview; no volume of the brain has so few."""
MAX_PARTS: Final = 8
"""More volumes than this in one series are a time series, of which nobody wants every one segmented."""

_SAME_PLACE_MM: Final = 0.01
_STEP_TOLERANCE: Final = 0.05  # of a step; scanners round positions to 0.001 mm or better
_DRIFT_TOLERANCE: Final = 0.5  # of a pixel, over the whole stack
_DIRECTION_TOLERANCE: Final = 1e-2  # of unit vectors; half a degree
_SPACING_TOLERANCE: Final = 1e-3  # of a pixel


def folder_series(folder: Path) -> list[DicomSeries]:
    """Return the series whose files lie directly in a folder, those that are no candidates included.

    Raises:
        VolumeError: if a DICOM file in it is damaged, so that a slice might be missing.
        OSError: if a file or the folder cannot be read.
    """
    files = (path for path in folder.iterdir() if path.is_file() and not path.name.startswith("."))
    return group_series(read_dicom_header(path) for path in dicom_files(files))


def group_series(files: Iterable[DicomFile]) -> list[DicomSeries]:
    """Return the volumes of DICOM files, ordered by study, series number and UID."""
    by_series: dict[tuple[str, str, str], list[DicomFile]] = defaultdict(list)
    for item in files:
        # Without a SeriesInstanceUID only the folder can tell what belongs together.
        key = (item.series.study_uid, item.series.uid or str(item.series.folder), item.unfit)
        by_series[key].append(item)
    found = [series for items in by_series.values() for series in stack(items)]
    return sorted(found, key=lambda item: (item.study_uid, item.number or 0, item.uid, str(item.folder)))


def stack(files: Sequence[DicomFile]) -> list[DicomSeries]:
    """Return the volumes of the files of one series: one, or one per echo, phase, ... where these are interleaved."""
    files = _without_copies(files)
    frames = [frame for item in files for frame in item.frames]
    series = replace(
        files[0].series,
        folder=common_folder(item.path for item in files),
        slices=tuple(frame.slice for frame in frames),
        shape=(files[0].columns, files[0].rows, len(frames)),
    )
    if files[0].unfit:
        return [replace(series, unfit=files[0].unfit)]
    if len(frames) < MIN_SLICES:
        return [replace(series, unfit=f"{len(frames)} slice{'s' * (len(frames) != 1)}, fewer than {MIN_SLICES}")]
    try:
        sizes = sorted({(item.columns, item.rows) for item in files})
        if len(sizes) > 1:
            listed = " and ".join(f"{columns} x {rows}" for columns, rows in sizes[:3])
            raise VolumeError(
                f"slices of several sizes ({listed})", "give the files of one size in a folder of their own"
            )
        if not any(frame.position for frame in frames):
            return [replace(series, unfit="images without a position in the patient")]
        orientations = np.array([frame.orientation for frame in frames if frame.orientation])
        if len(orientations) and np.abs(orientations - orientations[0]).max() > _DIRECTION_TOLERANCE:
            return [replace(series, unfit="slices of several orientations, a localizer?")]
        axes, spacing = _plane(frames)
        return list(_volumes(series, frames, axes, spacing))
    except VolumeError as error:
        return [replace(series, problem=(error.found, error.remedy))]


def _without_copies(files: Sequence[DicomFile]) -> list[DicomFile]:
    """Return the files without further copies of the same image; equal UIDs with other tags are no copies."""
    kept: dict[Any, DicomFile] = {}
    for item in sorted(files, key=lambda item: item.path):
        where = tuple((frame.position, *sorted(frame.split.items())) for frame in item.frames)
        kept.setdefault((item.instance or str(item.path), where), item)
    return list(kept.values())


def _plane(frames: Sequence[Frame]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the directions of a row, a column and the normal as rows, in LPS, and the pixel's edges along the two."""
    for frame in frames:
        for tag, value in (
            ("ImagePositionPatient", frame.position),
            ("ImageOrientationPatient", frame.orientation),
            ("PixelSpacing", frame.spacing),
        ):
            if value is None:
                raise VolumeError(f"{frame.slice} has no usable {tag}", "export the series from the scanner again")
    first = frames[0]
    row, column = np.array(first.orientation).reshape(2, 3)
    lengths = np.linalg.norm(row), np.linalg.norm(column)
    if max(abs(length - 1) for length in lengths) > _DIRECTION_TOLERANCE or abs(row @ column) > _DIRECTION_TOLERANCE:
        raise VolumeError(
            f"{first.slice}: ImageOrientationPatient {first.orientation} is no pair of unit vectors at a right angle",
            "export the series from the scanner again",
        )
    row = row / np.linalg.norm(row)
    column = column - (column @ row) * row
    column /= np.linalg.norm(column)
    spacing = np.array([frame.spacing for frame in frames])
    if spacing.min() <= 0 or np.ptp(spacing, axis=0).max() > _SPACING_TOLERANCE * spacing.min():
        raise VolumeError(
            f"PixelSpacing between {spacing.min():g} and {spacing.max():g} mm",
            "export the series from the scanner again",
        )
    # PixelSpacing is (between rows, between columns); along a row lie the columns (DICOM PS3.3 10.7.1.3).
    return np.stack([row, column, np.cross(row, column)]), spacing[0][::-1]


def _volumes(
    series: DicomSeries, frames: Sequence[Frame], axes: NDArray[np.float64], spacing: NDArray[np.float64]
) -> Iterator[DicomSeries]:
    """Yield the series as one volume, or as its parts if several images lie at each place."""
    places = {frame.slice: float(np.array(frame.position) @ axes[2]) for frame in frames}
    if not _repeated(list(places.values())):
        yield _upright(series, frames, axes, spacing)
        return
    for tag in SPLIT_TAGS:
        parts: dict[str, list[Frame]] = defaultdict(list)
        for frame in frames:
            parts[frame.split.get(tag, "")].append(frame)
        complete = len({len(part) for part in parts.values()}) == 1
        apart = not any(_repeated([places[frame.slice] for frame in part]) for part in parts.values())
        if 1 < len(parts) <= MAX_PARTS and complete and apart:
            for value, part in sorted(parts.items(), key=lambda item: _natural(item[0])):
                yield _part(series, f"{tag} {value}"[:60], part, axes, spacing)
            return
    distinct = len(np.unique(np.round(list(places.values()), 2)))
    differ = [tag for tag in SPLIT_TAGS if len({frame.split.get(tag) for frame in frames}) > 1]
    raise VolumeError(
        f"{len(frames)} images at {distinct} places"
        + (f", which differ in {' and '.join(differ[:3])}" if differ else "; no tag tells them apart"),
        "give the files of one volume in a folder of their own",
    )


def _part(
    series: DicomSeries, name: str, frames: Sequence[Frame], axes: NDArray[np.float64], spacing: NDArray[np.float64]
) -> DicomSeries:
    series = replace(
        series, part=name, slices=tuple(frame.slice for frame in frames), shape=(*series.shape[:2], len(frames))
    )
    try:
        return _upright(series, frames, axes, spacing)
    except VolumeError as error:
        return replace(series, problem=(error.found, error.remedy))


def _natural(text: str) -> tuple[float, str]:
    try:
        return float(text), text
    except ValueError:
        return 0.0, text


def _repeated(places: Sequence[float]) -> bool:
    return bool((np.diff(np.sort(places)) < _SAME_PLACE_MM).any())


def _upright(
    series: DicomSeries, frames: Sequence[Frame], axes: NDArray[np.float64], spacing: NDArray[np.float64]
) -> DicomSeries:
    """Return the series with its slices along the normal and its affine.

    Raises:
        VolumeError: if a slice is missing, or the stack is bent or sheared.
    """
    if len(frames) < MIN_SLICES:
        return replace(series, unfit=f"{len(frames)} slices, fewer than {MIN_SLICES}")
    positions = np.array([frame.position for frame in frames])
    order = np.argsort(positions @ axes[2], kind="stable")
    positions, slices = positions[order], tuple(frames[index].slice for index in order)
    _check_steps(positions @ axes[2], slices)
    step = (positions[-1] - positions[0]) / (len(slices) - 1)
    inside = (positions @ axes[:2].T) / spacing  # where the first pixel of each slice lies within its plane
    drift = inside - inside[0]
    even = np.linspace(0, 1, len(slices))[:, None] * drift[-1]
    if np.abs(drift - even).max() > _DRIFT_TOLERANCE:
        worst = slices[int(np.abs(drift - even).max(axis=1).argmax())]
        raise VolumeError(
            f"slices that are shifted against each other within their planes ({worst})",
            "resample the series to an upright grid",
        )
    if np.abs(drift[-1]).max() > _DRIFT_TOLERANCE:
        angle = np.degrees(np.arccos(min(1.0, float(step @ axes[2]) / float(np.linalg.norm(step)))))
        raise VolumeError(
            f"a stack that is sheared by {angle:.1f} degrees, as by a tilted gantry",
            "resample the series to an upright grid",
        )
    affine = np.eye(4)
    affine[:3, :3] = LPS_TO_RAS @ np.column_stack([axes[0] * spacing[0], axes[1] * spacing[1], step])
    affine[:3, 3] = LPS_TO_RAS @ positions[0]
    return replace(series, slices=slices, affine=affine_rows(affine))


def _check_steps(places: NDArray[np.float64], slices: Sequence[Any]) -> None:
    steps = np.diff(places)
    usual = float(np.median(steps))
    wrong = np.abs(steps - usual) > _STEP_TOLERANCE * usual
    if wrong.any():
        index = int(np.abs(steps - usual).argmax())
        missing = round(steps[index] / usual) - 1
        guess = f" ({missing} slice{'s' * (missing != 1)} missing?)" if missing > 0 else ""
        raise VolumeError(
            f"slices that are not evenly spaced: {steps[index]:.2f} mm between {slices[index]} and "
            f"{slices[index + 1]}, {usual:.2f} mm elsewhere{guess}",
            "copy or export the whole series again, or resample it",
        )


def series_spacing_mm(series: DicomSeries) -> tuple[float, ...] | None:
    """Return the edge lengths of a voxel; None where the slices give none."""
    return tuple(spacing_mm(np.array(series.affine)).tolist()) if series.affine else None
