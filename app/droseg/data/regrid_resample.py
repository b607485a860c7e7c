"""From one voxel grid to another by their affines: images by interpolation, labels by a vote of their neighbors.

Linear interpolation of one-hot labels and the largest score, as nnU-Net resamples them (Isensee et al. 2021, Nature
Methods 18:203): borders run where they ran, between the voxels, and no new value can come up.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from droseg.data.grids import spacing_mm

TIE: Final = 1e-5
"""Scores that differ by less are equal (float32); the lower label value has the voxel then, the background first."""
_EDGE: Final = 1e-4  # of a voxel: rounding in affines of float32
_TRUNCATE: Final = 4.0  # standard deviations; scipy's default


@dataclass(frozen=True)
class Grid:
    """Where the voxels lie: their number along each axis, and voxel index (of centers) to mm in RAS+, (4, 4)."""

    shape: tuple[int, int, int]
    affine: NDArray[np.float64]


def with_spacing(grid: Grid, wanted_mm: Sequence[float]) -> Grid:
    """Return a grid of the same axes and outer border, with other voxels; the border moves by half a voxel at most.

    Args:
        grid: whose axes, in their order, are kept.
        wanted_mm: edge lengths of a voxel along these axes, (3,).
    """
    old = spacing_mm(grid.affine)
    new = np.asarray(wanted_mm, dtype=np.float64)
    extent = np.array(grid.shape) * old
    shape = np.maximum(np.rint(extent / new), 1)
    affine = grid.affine.copy()
    affine[:3, :3] = grid.affine[:3, :3] / old * new
    # The middle of both grids is the same point, so that what the rounding adds or takes lies on both sides.
    middle = grid.affine[:3, :3] @ ((np.array(grid.shape) - 1) / 2) + grid.affine[:3, 3]
    affine[:3, 3] = middle - affine[:3, :3] @ ((shape - 1) / 2)
    return Grid((int(shape[0]), int(shape[1]), int(shape[2])), affine)


def resample_image(
    array: NDArray[Any], affine: NDArray[np.float64], grid: Grid, order: int = 1
) -> tuple[NDArray[np.float32], float]:
    """Return an image on another grid, and the share of that grid that lies outside of the image, where it is 0.

    Where the grid is coarser, the image is smoothed before, so that no voxel is skipped (as in scikit-image, by a
    Gaussian with a standard deviation of (factor - 1) / 2 voxels). Within half a voxel of its border the border holds.

    Args:
        array: (H, W, D).
        affine: of the array, (4, 4).
        grid: the target.
        order: of the spline, 1 (linear) or 3; overshoots of the latter are cut at the range of the image.
    """
    matrix = np.linalg.inv(affine) @ grid.affine
    source = array.astype(np.float32)
    sigma = _sigma(matrix)
    if sigma.any():
        source = ndimage.gaussian_filter(source, sigma, mode="nearest", truncate=_TRUNCATE)
    found = _transform(source, matrix, np.zeros(3), grid.shape, order)
    if order > 1:
        np.clip(found, source.min(), source.max(), out=found)
    outside = _outside(matrix, array.shape, grid.shape)
    found[outside] = 0
    return found, float(outside.mean())


def resample_labels(array: NDArray[Any], affine: NDArray[np.float64], grid: Grid) -> NDArray[Any]:
    """Return a label map on another grid: each voxel has the value with the largest share of it.

    Where two have the same share, the lower value has it. Outside of the label map it is 0.

    Args:
        array: whole numbers >= 0, (H, W, D).
        affine: of the array, (4, 4).
        grid: the target.
    """
    matrix = np.linalg.inv(affine) @ grid.affine
    values = [int(value) for value in np.unique(array) if value != 0]
    labels = np.zeros(grid.shape, np.min_scalar_type(max(values, default=1)))
    best = np.zeros(grid.shape, np.float32)
    share = np.zeros(grid.shape, np.float32)  # of all structures; the rest is background
    sigma = _sigma(matrix)
    margin = np.ceil(_TRUNCATE * sigma).astype(int) + 2
    boxes = ndimage.find_objects(array.astype(np.int64), max(values, default=0))
    for value in values:
        box = boxes[value - 1]
        part = tuple(
            slice(max(edge.start - more, 0), min(edge.stop + more, size))
            for edge, more, size in zip(box, margin, array.shape, strict=True)
        )
        start = np.array([edge.start for edge in part])
        target = _reach(matrix, part, grid.shape)
        if any(edge.stop <= edge.start for edge in target):
            continue
        onehot = (array[part] == value).astype(np.float32)
        if sigma.any():
            onehot = ndimage.gaussian_filter(onehot, sigma, mode="nearest", truncate=_TRUNCATE)
        inside = matrix.copy()
        inside[:3, 3] -= start
        shape = tuple(edge.stop - edge.start for edge in target)
        score = _transform(onehot, inside, np.array([edge.start for edge in target]), shape, 1)
        share[target] += score
        wins = score > best[target] + TIE
        labels[target][wins] = value
        best[target][wins] = score[wins]
    labels[1 - share >= best - TIE] = 0
    labels[_outside(matrix, array.shape, grid.shape)] = 0
    return labels


def lost_share(array: NDArray[Any], affine: NDArray[np.float64], grid: Grid) -> float:
    """Return the share of the labelled voxels that lie outside of a grid; 0 if none is labelled."""
    places = np.argwhere(array != 0)
    if not len(places):
        return 0.0
    matrix = np.linalg.inv(grid.affine) @ affine
    moved = places @ matrix[:3, :3].T + matrix[:3, 3]
    return float(((moved < -0.5 - _EDGE) | (moved > np.array(grid.shape) - 0.5 + _EDGE)).any(axis=1).mean())


def _sigma(matrix: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return by how much to smooth along each axis of the source, in its voxels; 0 where the target is not coarser."""
    factor = np.linalg.norm(matrix[:3, :3], axis=1)
    return np.where(factor > 1 + 1e-3, (factor - 1) / 2, 0.0)


def _transform(
    source: NDArray[np.float32],
    matrix: NDArray[np.float64],
    start: NDArray[np.int64] | NDArray[np.float64],
    shape: Sequence[int],
    order: int,
) -> NDArray[np.float32]:
    """Return a box of the target grid; beyond the border of the source its border values hold."""
    offset = matrix[:3, 3] + matrix[:3, :3] @ start
    found = ndimage.affine_transform(
        source, matrix[:3, :3], offset, output_shape=tuple(shape), output=np.float32, order=order, mode="nearest"
    )
    return np.asarray(found)


def _outside(matrix: NDArray[np.float64], size: Sequence[int], shape: Sequence[int]) -> NDArray[np.bool_]:
    """Return which voxels of the target have their center outside of all voxels of the source."""
    index = np.ogrid[: shape[0], : shape[1], : shape[2]]
    outside = np.zeros(tuple(shape), bool)
    for axis in range(3):
        place = sum(matrix[axis, k] * index[k] for k in range(3)) + matrix[axis, 3]
        outside |= (place < -0.5 - _EDGE) | (place > size[axis] - 0.5 + _EDGE)
    return outside


def _reach(matrix: NDArray[np.float64], part: Sequence[slice], shape: Sequence[int]) -> tuple[slice, slice, slice]:
    """Return the box of the target grid that a box of the source, and a voxel around it, lies in."""
    edges = [(edge.start - 1.0, float(edge.stop)) for edge in part]
    corners = np.array(np.meshgrid(*edges, indexing="ij")).reshape(3, -1)
    moved = (np.linalg.inv(matrix) @ np.vstack([corners, np.ones(corners.shape[1])]))[:3]
    starts = np.clip(np.floor(moved.min(axis=1)) - 1, 0, shape).astype(int)
    stops = np.clip(np.ceil(moved.max(axis=1)) + 2, 0, shape).astype(int)
    first, second, third = (slice(int(a), int(b)) for a, b in zip(starts, stops, strict=True))
    return first, second, third
