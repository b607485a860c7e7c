"""Label errors as they happen in annotation, of known kind and size, to plant in the labels of phantoms.

Each function takes a label map (H, W, D) with its affine (voxel index -> mm, RAS+) and returns a changed copy. What a
structure leaves behind is filled as the error in question would: background where it was erased, the nearest other
structure where it was drawn too small.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from nibabel.affines import voxel_sizes
from nibabel.orientations import aff2axcodes
from numpy.typing import NDArray
from scipy import ndimage

Labels = NDArray[np.integer[Any]]
Affine = NDArray[np.float64]


def erase(label: Labels, value: int) -> Labels:
    """Return the label without a structure: background in its place."""
    return np.where(label == value, 0, label).astype(label.dtype)


def merge(label: Labels, value: int, into: int) -> Labels:
    """Return the label with one structure drawn as another."""
    return np.where(label == value, into, label).astype(label.dtype)


def swap(label: Labels, first: int, second: int) -> Labels:
    """Return the label with the names of two structures confused."""
    result = label.copy()
    result[label == first], result[label == second] = second, first
    return result


def erase_part(label: Labels, affine: Affine, value: int, share: float) -> Labels:
    """Return the label without the share of a structure that lies farthest to the left."""
    mask = label == value
    x = _world(label.shape, affine, axis=0)
    return np.where(mask & (x <= np.quantile(x[mask], share)), 0, label).astype(label.dtype)


def leave_unfinished(label: Labels, affine: Affine, share: float) -> Labels:
    """Return the label with the upper share of the labelled volume not drawn at all."""
    z = _world(label.shape, affine, axis=2)
    return np.where(z > np.quantile(z[label > 0], 1 - share), 0, label).astype(label.dtype)


def shift(label: Labels, affine: Affine, offset_mm: Sequence[float]) -> Labels:
    """Return the label moved by a vector in mm, as by a wrong origin."""
    offset = np.linalg.solve(affine[:3, :3], np.asarray(offset_mm, dtype=float))
    moved = ndimage.shift(label, offset, order=0, mode="constant", cval=0)
    return np.asarray(moved, dtype=label.dtype)


def turn(label: Labels, affine: Affine, axis: str) -> Labels:
    """Return the label mirrored along the array axis that runs left-right (L), front-back (A) or up-down (S)."""
    codes = aff2axcodes(affine)
    same = {"L": "LR", "A": "AP", "S": "SI"}[axis]
    return np.flip(label, next(i for i, code in enumerate(codes) if code in same)).copy()


def from_other_case(shape: Sequence[int], affine: Affine, other: Labels, other_affine: Affine) -> Labels:
    """Return another case's label where it lies in the world, on this case's grid."""
    to_other = np.linalg.inv(other_affine) @ affine
    result = ndimage.affine_transform(
        other, to_other[:3, :3], to_other[:3, 3], output_shape=tuple(shape), order=0, mode="constant", cval=0
    )
    return np.asarray(result, dtype=other.dtype)


def grow(label: Labels, affine: Affine, value: int, by_mm: float) -> Labels:
    """Return the label with a structure drawn too large, over whatever lies around it."""
    distance = ndimage.distance_transform_edt(label != value, sampling=voxel_sizes(affine))
    return np.where(distance <= by_mm, value, label).astype(label.dtype)


def shrink(label: Labels, affine: Affine, value: int, by_mm: float) -> Labels:
    """Return the label with a structure drawn too small; the nearest other label takes its place."""
    spacing = voxel_sizes(affine)
    mask = label == value
    depth, nearest = ndimage.distance_transform_edt(mask, sampling=spacing, return_indices=True)
    return np.where(mask & (depth <= by_mm), label[tuple(nearest)], label).astype(label.dtype)


def changed_ml(before: Labels, after: Labels, affine: Affine) -> float:
    """Return the volume of the voxels that differ, in ml."""
    return float((before != after).sum() * abs(np.linalg.det(affine[:3, :3])) / 1000)


def _world(shape: Sequence[int], affine: Affine, axis: int) -> NDArray[np.float64]:
    """Return one world coordinate in mm of every voxel."""
    grids = np.ogrid[tuple(slice(n) for n in shape)]
    return np.asarray(sum(affine[axis, i] * grids[i] for i in range(3)) + affine[axis, 3])


def read_label(path: Path) -> tuple[Labels, Affine]:
    """Return a label map and its affine."""
    image: Any = nib.load(path)
    return np.asarray(image.dataobj), image.affine


def write_label(path: Path, label: Labels, affine: Affine) -> None:
    """Write a label map; its folder is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(label.astype(np.uint8), affine), path)
