"""Exact distances in mm between the surfaces of two label maps, for all structures in one pass."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import KDTree

# Neighbors that are looked up one by one before a KD-tree takes the voxels that are left. Most surface voxels of a
# usable prediction have their nearest counterpart among the first few; one look-up costs about 1/100 of a tree query,
# so looking up stops once fewer than 1 voxel in 200 is found at a time.
_NUM_OFFSETS = 150
_OFFSETS_AT_A_TIME = 12
_WORTHWHILE_SHARE = 1 / 200


@dataclass(frozen=True)
class SurfaceDistances:
    """Distances of every surface voxel of one structure to the nearest one of the other map, in mm.

    Both arrays are empty if the structure is empty in either map: its distances are then undefined.
    """

    pred_to_ref_mm: NDArray[np.float64]
    ref_to_pred_mm: NDArray[np.float64]

    @property
    def defined(self) -> bool:
        """Whether both maps have the structure."""
        return self.pred_to_ref_mm.size > 0

    def hausdorff_mm(self, percentile: float = 100.0) -> float:
        """Return the larger of the two directed percentiles (linear interpolation); 100 is the Hausdorff distance."""
        if not self.defined:
            return float("nan")
        directed = (np.percentile(d, percentile) for d in (self.pred_to_ref_mm, self.ref_to_pred_mm))
        return float(max(directed))

    def average_mm(self) -> float:
        """Return the average symmetric surface distance: the mean over the surface voxels of both maps, pooled."""
        if not self.defined:
            return float("nan")
        total = self.pred_to_ref_mm.sum() + self.ref_to_pred_mm.sum()
        return float(total / (self.pred_to_ref_mm.size + self.ref_to_pred_mm.size))

    def within(self, tolerance_mm: float) -> float:
        """Return the share of surface voxels, both maps pooled, that are at most `tolerance_mm` from the other one."""
        if not self.defined:
            return float("nan")
        # Spacings come from float32 headers: 0.8 mm is stored as 0.80000001 and must not miss a tolerance of 0.8.
        limit = tolerance_mm * (1 + 1e-6)
        near = np.count_nonzero(self.pred_to_ref_mm <= limit) + np.count_nonzero(self.ref_to_pred_mm <= limit)
        return near / (self.pred_to_ref_mm.size + self.ref_to_pred_mm.size)


def surface_distances(
    pred: NDArray[np.integer], ref: NDArray[np.integer], num_structures: int, spacing_mm: Sequence[float]
) -> list[SurfaceDistances]:
    """Return the surface distances of structures 1..num_structures, in this order.

    A surface voxel belongs to the structure and has a face neighbor that does not; outside of the image nothing
    belongs to it, so a structure cut by the border has surface there (as in MONAI's `get_mask_edges`). Distances are
    between voxel centers, exact in float64.

    Args:
        pred: structure index per voxel, 0 is background, shape (H, W, D).
        ref: the same for the reference.
        num_structures: the largest index.
        spacing_mm: voxel size along each axis of the arrays.
    """
    offsets, length_mm, margin = _offsets_by_distance(tuple(float(s) for s in spacing_mm))
    pred_surface, ref_surface = (np.pad(_surface(m), [(m_, m_) for m_ in margin]) for m in (pred, ref))
    steps = offsets @ np.asarray(_strides(pred_surface.shape))
    forth = _nearest(pred_surface, ref_surface, num_structures, steps, length_mm, spacing_mm)
    back = _nearest(ref_surface, pred_surface, num_structures, steps, length_mm, spacing_mm)
    return [SurfaceDistances(f, b) for f, b in zip(forth, back, strict=True)]


def crop_to_foreground(
    pred: NDArray[np.integer], ref: NDArray[np.integer]
) -> tuple[NDArray[np.integer], NDArray[np.integer]]:
    """Return both maps cut to the box of what is not 0 in either; surfaces and distances stay as they are."""
    foreground = (pred != 0) | (ref != 0)
    box = []
    for axis in range(foreground.ndim):
        inside = np.flatnonzero(foreground.any(axis=tuple(a for a in range(foreground.ndim) if a != axis)))
        box.append(slice(inside[0], inside[-1] + 1) if inside.size else slice(0, 0))
    return pred[tuple(box)], ref[tuple(box)]


def _surface(labels: NDArray[np.integer]) -> NDArray[np.integer]:
    """Return the label map with 0 at every voxel that is not on the surface of its own structure."""
    on_surface = np.zeros(labels.shape, dtype=bool)
    for axis in range(labels.ndim):
        along, edge = np.moveaxis(labels, axis, 0), np.moveaxis(on_surface, axis, 0)
        changes = along[1:] != along[:-1]
        edge[1:] |= changes
        edge[:-1] |= changes
        edge[:1] = True
        edge[-1:] = True
    return labels * on_surface


def _strides(shape: tuple[int, ...]) -> list[int]:
    return [int(np.prod(shape[axis + 1 :], dtype=np.int64)) for axis in range(len(shape))]


def _offsets_by_distance(
    spacing_mm: tuple[float, ...],
) -> tuple[NDArray[np.int64], NDArray[np.float64], tuple[int, ...]]:
    """Return all voxel offsets up to a radius, nearest first, their lengths in mm, and the radius in voxels."""
    ndim = len(spacing_mm)
    unit_ball = np.pi if ndim == 2 else 4 / 3 * np.pi
    radius_mm = max((_NUM_OFFSETS * float(np.prod(spacing_mm)) / unit_ball) ** (1 / ndim), min(spacing_mm))
    # Extremely anisotropic grids: never more than 12 voxels of padding on a side.
    radius_mm = min(radius_mm, 12.5 * min(spacing_mm))
    margin = tuple(int(radius_mm / s) for s in spacing_mm)
    axes = np.meshgrid(*[np.arange(-m, m + 1) for m in margin], indexing="ij")
    offsets = np.stack([axis.ravel() for axis in axes], axis=1)
    length_mm = np.sqrt(((offsets * np.asarray(spacing_mm)) ** 2).sum(axis=1))
    order = np.argsort(length_mm, kind="stable")
    order = order[length_mm[order] <= radius_mm]
    return offsets[order], length_mm[order], margin


def _nearest(
    from_surface: NDArray[np.integer],
    to_surface: NDArray[np.integer],
    num_structures: int,
    steps: NDArray[np.int64],
    length_mm: NDArray[np.float64],
    spacing_mm: Sequence[float],
) -> list[NDArray[np.float64]]:
    """Return, per structure, the distance of each `from` voxel to the nearest `to` voxel of the same structure."""
    source, target = from_surface.ravel(), to_surface.ravel()
    voxels = np.flatnonzero(source)
    labels = source[voxels]
    present = np.zeros(num_structures + 1, dtype=bool)
    present[np.unique(target)] = True
    voxels, labels = voxels[present[labels]], labels[present[labels]]

    distance_mm = np.full(voxels.shape, np.inf)
    left, left_voxels, left_labels = np.arange(voxels.size), voxels, labels
    before = left.size
    for looked_up, (step, length) in enumerate(zip(steps, length_mm, strict=True)):
        if looked_up and looked_up % _OFFSETS_AT_A_TIME == 0:
            if before - left.size < _WORTHWHILE_SHARE * _OFFSETS_AT_A_TIME * before:
                break
            before = left.size
        if not left.size:
            break
        hit = target[left_voxels + step] == left_labels
        distance_mm[left[hit]] = length
        miss = ~hit
        left, left_voxels, left_labels = left[miss], left_voxels[miss], left_labels[miss]

    for structure in np.unique(left_labels):
        rows = left[left_labels == structure]
        points_mm = _points_mm(np.flatnonzero(target == structure), to_surface.shape, spacing_mm)
        # Not balanced: built in a third of the time, and as fast to ask on surfaces.
        tree = KDTree(points_mm, leafsize=64, balanced_tree=False, compact_nodes=False)
        distance_mm[rows] = tree.query(_points_mm(voxels[rows], from_surface.shape, spacing_mm))[0]
    return [distance_mm[labels == structure] for structure in range(1, num_structures + 1)]


def _points_mm(flat: NDArray[np.int64], shape: tuple[int, ...], spacing_mm: Sequence[float]) -> NDArray[np.float64]:
    points: NDArray[np.float64] = np.stack(np.unravel_index(flat, shape), axis=1).astype(np.float64)
    return points * np.asarray(spacing_mm, dtype=np.float64)
