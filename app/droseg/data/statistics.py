"""What the training cases look like: the ranges that a later input is compared with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from nibabel.orientations import io_orientation
from numpy.typing import NDArray
from scipy import ndimage

from droseg.data.datalist import Case
from droseg.data.regions import Structures, label_values, mask_of
from droseg.data.volumes import read_volume, spacing_mm

QUANTILES = {"min": 0.0, "p5": 0.05, "median": 0.5, "p95": 0.95, "max": 1.0}
BACKGROUND_SHARE: Final = 0.005
"""Voxels within this share of the range above the minimum are background: a mask's zeros, also after resampling."""
_MAX_SAMPLES: Final = 2_000_000  # voxels; more would not move a percentile, and a 512x512x400 volume has 50 times that


@dataclass(frozen=True)
class ImageMeasures:
    """What can be compared between images whatever scale their scanner or converter stored them in.

    Attributes:
        spacing_mm: edges of a voxel, finest first, (3,).
        extent_mm: of the field of view along the axes nearest to right, front and up, (3,).
        foreground_mm: likewise, of the box around all that is not background; zeros if there is nothing else.
        background_share: of the voxels; large where images are masked (skull-stripped) or padded.
        balance: per channel, (p99 - p50) / (p99 - p1) of the foreground: 0.5 is symmetric, and it turns with the
            contrast (T1 or T2); NaN for a constant channel.
        roughness: per channel, median step between neighbors / interquartile range of the foreground: large for noise,
            small for a blurred image; NaN for a constant channel.
        sharpness: per channel, median second difference / median step: 1.7 for noise, 0 for an image that was
            interpolated from a coarser one; NaN for a constant channel.
    """

    spacing_mm: tuple[float, float, float]
    extent_mm: tuple[float, float, float]
    foreground_mm: tuple[float, float, float]
    background_share: float
    balance: tuple[float, ...]
    roughness: tuple[float, ...]
    sharpness: tuple[float, ...]


@dataclass(frozen=True)
class StructureMeasures:
    """Size and form of one structure in a label map.

    Attributes:
        volume_ml: 0 if it is absent; then the others are NaN.
        pieces: components, voxels that share a face, edge or corner being connected.
        stray_share: of its voxels outside the largest piece.
        border_share: of its voxels in the outermost layer of the field of view.
    """

    volume_ml: float
    pieces: float = float("nan")
    stray_share: float = float("nan")
    border_share: float = float("nan")


def measure_image(image: NDArray[Any], affine: NDArray[np.float64]) -> ImageMeasures:
    """Return the measures of an image, (C, H, W, D); large ones are measured on a sample of their voxels."""
    edges = spacing_mm(affine)
    to_ras = np.argsort(io_orientation(affine)[:, 0])  # array axis nearest to right, front, up
    foreground = np.zeros(image.shape[1:], dtype=bool)
    balance, roughness, sharpness = [], [], []
    for channel in image:
        mask = _foreground(channel)
        foreground |= mask
        balance.append(_balance(channel, mask))
        step, bend = (np.median(_differences(channel, mask, order)) for order in (1, 2))
        roughness.append(float(step) / _spread(channel, mask))
        sharpness.append(float(bend) / float(step) if step > 0 else float("nan"))
    return ImageMeasures(
        spacing_mm=_triple(np.sort(edges)),
        extent_mm=_triple((edges * image.shape[1:])[to_ras]),
        foreground_mm=_triple((edges * _box(foreground))[to_ras]),
        background_share=float(1.0 - foreground.mean()),
        balance=tuple(balance),
        roughness=tuple(roughness),
        sharpness=tuple(sharpness),
    )


def measure_structures(
    labels: NDArray[Any], affine: NDArray[np.float64], structures: Structures
) -> dict[str, StructureMeasures]:
    """Return structure -> its measures in a label map, (H, W, D)."""
    voxel_ml = float(spacing_mm(affine).prod()) / 1000.0
    values = label_values(structures)
    boxes = ndimage.find_objects(labels.astype(np.int32, copy=False), max(max(those) for those in values.values()))
    result = {}
    for name, those in values.items():
        box = _around([boxes[value - 1] for value in those])
        if box is None:
            result[name] = StructureMeasures(0.0)
            continue
        mask = mask_of(labels[box], those)
        components, pieces = ndimage.label(mask, np.ones((3, 3, 3)))
        count, largest = int(mask.sum()), int(np.bincount(components.ravel())[1:].max())
        result[name] = StructureMeasures(
            volume_ml=count * voxel_ml,
            pieces=float(pieces),
            stray_share=1.0 - largest / count,
            border_share=_border_voxels(mask, box, labels.shape) / count,
        )
    return result


def _around(boxes: Sequence[tuple[slice, ...] | None]) -> tuple[slice, ...] | None:
    """Return the smallest box around several; None if there is none."""
    found = [box for box in boxes if box is not None]
    if not found:
        return None
    return tuple(
        slice(min(side.start for side in sides), max(side.stop for side in sides)) for sides in zip(*found, strict=True)
    )


def training_statistics(cases: Sequence[Case], structures: Structures) -> dict[str, Any]:
    """Return quantiles over the cases, as JSON takes them; nothing in them belongs to a case by name.

    As ever: `volume_ml` per structure (0 where a case lacks it) and `absent` (number of such cases); per array axis in
    the file's own order `spacing_mm` and `extent_mm`; per channel `intensity_p1`, `intensity_median`, `intensity_p99`.
    For the quality flags: `structures` (per structure `volume_ml` where it is there, `pieces`, `stray_share`,
    `border_share`) and `image` (see `ImageMeasures`). A quantity that no case has is null. `missing_channels` counts,
    per channel, the cases that lack it; they say nothing about its intensities.
    """
    percentiles, spacing, extent = [], [], []
    missing: list[list[bool]] = []
    images: list[ImageMeasures] = []
    found: list[dict[str, StructureMeasures]] = []
    for case in cases:
        channels, affine = _read_channels(case)
        missing.append([channel is None for channel in channels])
        percentiles.append([_percentiles(channel) for channel in channels])
        images.append(measure_image(_stacked(channels), affine))
        if case.label is None:
            continue
        label = read_volume(case.label)
        edges = spacing_mm(label.affine)
        spacing.append(edges.tolist())
        extent.append((edges * label.array.shape[1:]).tolist())
        found.append(measure_structures(np.rint(label.array[0]), label.affine, structures))
    columns = np.moveaxis(np.array(percentiles), -1, 0) if percentiles else np.zeros((3, 0))
    return {
        "cases": len(cases),
        "missing_channels": np.sum(missing, axis=0, dtype=int).tolist() if missing else [],
        "volume_ml": {name: _volumes([case[name].volume_ml for case in found]) for name in structures},
        "spacing_mm": _quantiles(spacing),
        "extent_mm": _quantiles(extent),
        "intensity_p1": _quantiles(columns[0]),
        "intensity_median": _quantiles(columns[1]),
        "intensity_p99": _quantiles(columns[2]),
        "structures": {name: _forms([case[name] for case in found]) for name in structures},
        "image": {
            name: _quantiles([getattr(image, name) for image in images]) for name in ImageMeasures.__dataclass_fields__
        },
    }


def _read_channels(case: Case) -> tuple[list[NDArray[Any] | None], NDArray[np.float64]]:
    """Return the channels of a case, None for one that it lacks, and their affine."""
    volumes = [None if path is None else read_volume(path) for path in case.images]
    arrays = [[None] if volume is None else list(volume.array) for volume in volumes]
    first = next(volume for volume in volumes if volume is not None)
    return [channel for one in arrays for channel in one], first.affine


def _percentiles(channel: NDArray[Any] | None) -> list[float]:
    return [float("nan")] * 3 if channel is None else list(np.percentile(channel, [1, 50, 99]).tolist())


def _stacked(channels: Sequence[NDArray[Any] | None]) -> NDArray[Any]:
    """Return (C, H, W, D); a missing channel is constant, so that its measures are NaN."""
    first = next(channel for channel in channels if channel is not None)
    return np.stack([np.zeros_like(first) if channel is None else channel for channel in channels])


def _volumes(volumes_ml: Sequence[float]) -> dict[str, Any]:
    return {**(_quantiles(volumes_ml) or {}), "absent": sum(volume == 0 for volume in volumes_ml)}


def _forms(cases: Sequence[StructureMeasures]) -> dict[str, Any]:
    present = [case for case in cases if case.volume_ml > 0]
    names = StructureMeasures.__dataclass_fields__
    return {name: _quantiles([getattr(case, name) for case in present]) for name in names}


def _quantiles(values: Any) -> dict[str, Any] | None:
    """Return the quantiles per column, NaN left out, to six digits; None if there is no value in some column."""
    table = np.asarray(values, dtype=float)
    if table.size == 0 or np.isnan(table).all(axis=0).any():
        return None
    return {name: _rounded(np.nanquantile(table, q, axis=0).tolist()) for name, q in QUANTILES.items()}


def _rounded(value: Any) -> Any:
    return [_rounded(item) for item in value] if isinstance(value, list) else float(f"{value:.6g}")


def _foreground(channel: NDArray[Any]) -> NDArray[np.bool_]:
    low, high = float(channel.min()), float(np.percentile(_sample(channel), 99.9))
    if high <= low:  # fewer than a thousandth of the voxels are above the minimum
        return np.asarray(channel > low)
    return np.asarray(channel > low + BACKGROUND_SHARE * (high - low))


def _balance(channel: NDArray[Any], mask: NDArray[np.bool_]) -> float:
    values = _sample(channel)[_sample(mask)]
    if values.size == 0:
        return float("nan")
    low, middle, high = (float(p) for p in np.percentile(values, (1, 50, 99)))
    return (high - middle) / (high - low) if high > low else float("nan")


def _spread(channel: NDArray[Any], mask: NDArray[np.bool_]) -> float:
    """Return the interquartile range of the foreground; NaN if it is 0."""
    values = _sample(channel)[_sample(mask)]
    low, high = (float(p) for p in np.percentile(values, (25, 75))) if values.size else (0.0, 0.0)
    return high - low if high > low else float("nan")


def _differences(channel: NDArray[Any], mask: NDArray[np.bool_], order: int) -> NDArray[np.float32]:
    """Return |difference| of neighbors along each axis, of an order, where all are foreground; NaN if nowhere."""
    stride = int(np.ceil(np.sqrt(max(1.0, channel.size / _MAX_SAMPLES))))  # between the lines that are looked at
    found = []
    for axis in range(3):
        lines = tuple(slice(None) if a == axis else slice(None, None, stride) for a in range(3))
        values = np.moveaxis(channel[lines], axis, 0).astype(np.float32)
        inside = np.moveaxis(mask[lines], axis, 0)
        count = len(values) - order
        if count > 0:
            together = np.all([inside[start : start + count] for start in range(order + 1)], axis=0)
            found.append(np.abs(np.diff(values, n=order, axis=0))[together])
    steps = np.concatenate(found) if found else np.zeros(0, dtype=np.float32)
    return steps if steps.size else np.full(1, np.nan, dtype=np.float32)


def _sample(volume: NDArray[Any]) -> NDArray[Any]:
    """Return at most about `_MAX_SAMPLES` voxels of the volume, evenly spread, the same ones for each volume."""
    flat = volume.reshape(-1)
    return flat[:: max(1, flat.size // _MAX_SAMPLES) | 1]  # odd, to fall on all columns of an even grid


def _box(mask: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Return the number of voxels per axis of the box around a mask."""
    lengths = np.zeros(3)
    for axis in range(3):
        inside = np.flatnonzero(mask.any(axis=tuple(a for a in range(3) if a != axis)))
        lengths[axis] = inside[-1] - inside[0] + 1 if inside.size else 0
    return lengths


def _border_voxels(mask: NDArray[np.bool_], box: tuple[slice, ...], shape: Sequence[int]) -> int:
    """Return how many voxels of a structure, given in its box, lie in the outermost layer of the volume."""
    inner = tuple(
        slice(int(part.start == 0), (part.stop - part.start) - int(part.stop == size))
        for part, size in zip(box, shape, strict=True)
    )
    return int(mask.sum() - mask[inner].sum())


def _triple(values: NDArray[np.float64]) -> tuple[float, float, float]:
    return float(values[0]), float(values[1]), float(values[2])
