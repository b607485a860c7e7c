"""The worst cases as pictures: image, reference and prediction on the slice through the worst structure."""

from __future__ import annotations

import base64
import io
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from nibabel.affines import voxel_sizes
from nibabel.orientations import apply_orientation, axcodes2ornt, inv_ornt_aff, io_orientation, ornt_transform
from numpy.typing import NDArray
from scipy import ndimage

from droseg.colors import PALETTE
from droseg.data.datalist import Case, Datalist
from droseg.data.volumes import VolumeError, read_volume
from droseg.errors import DrosegError
from droseg.metrics import higher_is_better, penalized
from droseg.metrics.groups import case_values
from droseg.report.score import find_prediction, on_reference_grid, read_labels

_SIZE = 300  # pixels of the longer side
_MARGIN_MM = 8.0
_PLANES = ("sagittal", "coronal", "axial")


@dataclass(frozen=True)
class Picture:
    """Three panels of one case as PNG data URIs; `problem` says why there are none.

    Attributes:
        case_id: the case.
        structure: its worst structure.
        value: the case's value, structures averaged, failures counted.
        structure_value: the value of the worst structure.
        where: plane and position in mm.
        panels: caption -> data URI.
        problem: empty, or what is missing.
    """

    case_id: str
    structure: str
    value: float
    structure_value: float
    where: str = ""
    panels: tuple[tuple[str, str], ...] = ()
    problem: str = ""


def worst_cases(cases: pd.DataFrame, metric: str, count: int) -> list[tuple[str, str, float, float]]:
    """Return case_id, worst structure, value of the case and of that structure, worst case first (penalized)."""
    better = higher_is_better(metric)
    values = case_values(cases, metric).dropna().sort_values(ascending=better, kind="stable").head(count)
    rows = cases.assign(_value=penalized(cases, metric)).dropna(subset=["_value"])
    result = []
    for case_id, value in values.items():
        own = rows[rows["case_id"] == case_id].set_index("structure")["_value"]
        structure = own.index[int(own.argmin() if better else own.argmax())]
        result.append((str(case_id), str(structure), float(value), float(own.min() if better else own.max())))
    return result


def worst_case_pictures(
    cases: pd.DataFrame, metric: str, datalist: Datalist, pred_dir: str | os.PathLike[str], count: int = 6
) -> list[Picture]:
    """Return the pictures of the worst cases; a case that cannot be shown says why in `problem`."""
    known = {case.case_id: case for section in datalist.sections.values() for case in section}
    folder = Path(pred_dir)
    files = {path.name: path for path in sorted(folder.iterdir())} if folder.is_dir() else {}
    pictures = []
    for case_id, structure, value, structure_value in worst_cases(cases, metric, count):
        try:
            if case_id not in known:
                raise DrosegError(f"not in {datalist.path}.")
            where, panels = _draw(known[case_id], datalist, structure, find_prediction(files, case_id), folder)
            pictures.append(Picture(case_id, structure, value, structure_value, where, panels))
        except DrosegError as error:
            pictures.append(Picture(case_id, structure, value, structure_value, problem=str(error)))
    return pictures


def structure_colors(datalist: Datalist) -> dict[str, str]:
    """Return structure -> color, as drawn."""
    return {name: PALETTE[i % len(PALETTE)] for i, name in enumerate(datalist.structures)}


def _draw(
    case: Case, datalist: Datalist, structure: str, pred_path: Path | None, folder: Path
) -> tuple[str, tuple[tuple[str, str], ...]]:
    """Return where the slice lies, and the panels."""
    if case.label is None:
        raise DrosegError("the datalist gives no label.")
    if pred_path is None:
        raise DrosegError(f"no prediction in {folder}.")
    label, affine = read_labels(case.label)
    raw, pred_affine = read_labels(pred_path)
    pred = on_reference_grid(raw, pred_affine, label.shape, affine)
    if pred is None:
        raise DrosegError(f"{pred_path} lies on another grid than the reference.")
    image, caption_image = _read_image(case.present_images[0], label.shape, affine)
    volumes, affine = to_ras([image, label, pred], affine)
    axis, index = _slice_of(volumes[1], volumes[2], datalist.structures.get(structure, ()), affine)
    spacing = np.delete(voxel_sizes(affine), axis)
    frame = frame_of(np.any((volumes[1] > 0) | (volumes[2] > 0), axis=axis, keepdims=False), spacing)
    planes = [np.take(volume, index, axis=axis)[frame] for volume in volumes]
    gray = upright(window(planes[0], volumes[0]), spacing, order=1)
    reference, prediction = (upright(p, spacing, order=0) for p in planes[1:])
    colors = structure_colors(datalist)
    panels = [(caption_image, gray_rgb(gray))]
    for caption, labels in (("reference", reference), ("prediction", prediction)):
        panels.append((caption, overlay(gray, labels, datalist.structures, colors, structure)))
    center = (np.asarray(volumes[1].shape) - 1) / 2
    center[axis] = index
    position = float((affine @ np.append(center, 1))[axis])
    where = f"{_PLANES[axis]} slice at {'LPI'[axis] if position < 0 else 'RAS'[axis]} {abs(position):.0f} mm"
    return where, tuple((caption, _data_uri(panel)) for caption, panel in panels)


def _read_image(path: Path, shape: Sequence[int], affine: NDArray[np.float64]) -> tuple[NDArray[np.float32], str]:
    """Return the first channel on the label's grid and its caption; zeros where that cannot be."""
    nothing = np.zeros(tuple(shape), dtype=np.float32)
    try:
        volume = read_volume(path)
    except VolumeError:
        return nothing, "image (cannot be read)"
    array = on_reference_grid(volume.array[0], volume.affine, shape, affine)
    if array is None:
        return nothing, "image (on another grid than the reference)"
    return np.nan_to_num(array.astype(np.float32)), "image"


def to_ras(
    volumes: Sequence[NDArray[Any]], affine: NDArray[np.float64]
) -> tuple[list[NDArray[Any]], NDArray[np.float64]]:
    """Return the volumes with their axes nearest to right, front and up, and their affine."""
    transform = ornt_transform(io_orientation(affine), axcodes2ornt("RAS"))
    return [apply_orientation(v, transform) for v in volumes], affine @ inv_ornt_aff(transform, volumes[0].shape)


def _slice_of(
    label: NDArray[np.integer], pred: NDArray[np.integer], values: Sequence[int], affine: NDArray[np.float64]
) -> tuple[int, int]:
    """Return axis and index of the slice with most wrong voxels of the structure; thick slices are shown in plane."""
    spacing = voxel_sizes(affine)
    axis = int(spacing.argmax()) if spacing.max() > 1.5 * spacing.min() else 2
    in_label, in_pred = np.isin(label, list(values)), np.isin(pred, list(values))
    others = tuple(a for a in range(3) if a != axis)
    wrong = (in_label ^ in_pred).sum(axis=others)
    if not wrong.any():
        wrong = (in_label | in_pred).sum(axis=others) if in_label.any() else (label > 0).sum(axis=others)
    return axis, int(wrong.argmax())


def frame_of(projection: NDArray[np.bool_], spacing: NDArray[np.float64]) -> tuple[slice, ...]:
    """Return the square part of the plane that holds all structures of the volume with `_MARGIN_MM` around them."""
    corners = [np.flatnonzero(projection.any(axis=1 - a))[[0, -1]] for a in (0, 1)] if projection.any() else []
    if not corners:
        return (slice(None), slice(None))
    side_mm = max((last - first + 1) * s for (first, last), s in zip(corners, spacing, strict=True)) + 2 * _MARGIN_MM
    frame = []
    for (first, last), step, size in zip(corners, spacing, projection.shape, strict=True):
        center, half = (first + last + 1) / 2, side_mm / step / 2
        frame.append(slice(max(0, round(center - half)), min(size, round(center + half))))
    return tuple(frame)


def window(plane: NDArray[np.float32], volume: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the plane scaled to 0..1 between percentiles of the volume's foreground."""
    foreground = volume[volume > volume.min()]
    low, high = np.percentile(foreground, (1, 99.5)) if foreground.size else (0.0, 1.0)
    low = min(float(low), float(np.percentile(volume, 5)))
    return np.clip((plane - low) / max(float(high) - low, 1e-6), 0, 1).astype(np.float32)


def upright(plane: NDArray[Any], spacing: NDArray[np.float64], order: int) -> NDArray[Any]:
    """Return the plane with square pixels, `_SIZE` on its longer side, second axis up, first axis to the left."""
    scale = _SIZE / (np.asarray(plane.shape) * spacing).max()
    zoomed = ndimage.zoom(plane, spacing * scale, order=order, mode="nearest", grid_mode=True)
    return zoomed[::-1, ::-1].T


def gray_rgb(gray: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Return the picture of a plane of 0..1, shape (H, W, 3)."""
    return np.repeat((gray * 255).astype(np.uint8)[..., None], 3, axis=-1)


def overlay(
    gray: NDArray[np.float32],
    labels: NDArray[np.integer],
    structures: Mapping[str, Sequence[int]],
    colors: Mapping[str, str],
    worst: str,
) -> NDArray[np.uint8]:
    """Return the image with all structures (name -> values) tinted, the worst one stronger and outlined.

    Where structures overlap, the one of the fewest values gives the tint, and the contours of all are drawn.
    """
    rgb = gray_rgb(gray).astype(np.float32)
    ordered = sorted(structures.items(), key=lambda item: -len(item[1]))  # those inside others over them; stable
    masks = {name: np.isin(labels, values) for name, values in ordered}
    rgbs = {name: np.array([int(colors[name][i : i + 2], 16) for i in (1, 3, 5)], dtype=np.float32) for name in masks}
    tinted = np.zeros(labels.shape, dtype=bool)
    for name, mask in reversed(masks.items()):
        share, own = 0.6 if name == worst else 0.32, mask & ~tinted
        rgb[own] = (1 - share) * rgb[own] + share * rgbs[name]
        tinted |= mask
    for name in sorted(masks, key=lambda each: each == worst):  # the white contour last
        mask, color = masks[name], rgbs[name]
        edge = mask & ~ndimage.binary_erosion(mask, iterations=2 if name == worst else 1)
        rgb[edge] = 255.0 if name == worst else 0.25 * rgb[edge] + 0.75 * color
    return rgb.astype(np.uint8)


def _data_uri(rgb: NDArray[np.uint8]) -> str:
    from matplotlib.image import imsave  # slow to import

    buffer = io.BytesIO()
    imsave(buffer, np.ascontiguousarray(rgb), format="png")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
