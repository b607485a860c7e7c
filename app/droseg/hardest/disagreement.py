"""Where a network is sure of another structure than the label says, away from the borders that anyone may dispute."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

BINS = 50
LOWEST = 0.5
"""Probability below which the network is not sure of anything."""


@dataclass(frozen=True)
class Disagreement:
    """What one case says about its label; C classes, 0 is the background, of overlapping regions the outside of each.

    Attributes:
        label_ml: volume of each class in the label, (C,).
        self_confidence: mean probability of the labelled class over the voxels of each class, (C,); NaN if absent.
        far_ml: volume labelled i and predicted k, farther than the band from what is labelled k, by the probability of
            k in `BINS` equal bins from `LOWEST` to 1, shape (C, C, BINS).
        overlapping: whether the classes are regions, each against its own outside; a voxel then counts once for each.
    """

    label_ml: NDArray[np.float64]
    self_confidence: NDArray[np.float64]
    far_ml: NDArray[np.float64]
    overlapping: bool = False

    def sure_ml(self, threshold: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the volume labelled i where the network is sure of k: its probability is at least threshold[k]."""
        first = np.ceil((np.clip(threshold, LOWEST, 1.0) - LOWEST) / (1 - LOWEST) * BINS - 1e-9).astype(int)
        counts = np.arange(BINS)[None] >= np.minimum(first, BINS - 1)[:, None]  # (C, BINS)
        return np.asarray((self.far_ml * counts[None]).sum(axis=-1))


def find_disagreement(
    pred: NDArray[np.integer],
    probability: NDArray[np.floating],
    label: NDArray[np.integer],
    self_confidence: NDArray[np.float64],
    spacing_mm: NDArray[np.float64],
    band_mm: float,
) -> Disagreement:
    """Return the disagreement of one case.

    Args:
        pred: most probable class, (H, W, D).
        probability: its probability, (H, W, D).
        label: class that the label says, (H, W, D).
        self_confidence: see `Disagreement`; its length is the number of classes.
        spacing_mm: edges of a voxel, (3,).
        band_mm: a voxel predicted k within this distance of a voxel labelled k is a matter of where the border runs.
    """
    num = len(self_confidence)
    voxel_ml = float(np.prod(spacing_mm)) / 1000
    far = far_places(pred, label, probability >= LOWEST, spacing_mm, band_mm)
    index = ((probability[far].astype(np.float64) - LOWEST) / (1 - LOWEST) * BINS).astype(int)
    far_ml = np.zeros((num, num, BINS))
    np.add.at(far_ml, (label[far].astype(int), pred[far].astype(int), np.minimum(index, BINS - 1)), voxel_ml)
    label_ml = np.bincount(label.ravel().astype(int), minlength=num) * voxel_ml
    return Disagreement(np.asarray(label_ml, dtype=np.float64), self_confidence, far_ml)


def far_places(
    pred: NDArray[np.integer],
    label: NDArray[np.integer],
    places: NDArray[np.bool_],
    spacing_mm: NDArray[np.float64],
    band_mm: float,
) -> NDArray[np.bool_]:
    """Return the places where label and prediction differ, farther than the band from what is labelled as predicted."""
    other = (pred != label) & places
    far = np.zeros_like(other)
    for value in np.flatnonzero(np.bincount(pred[other].ravel().astype(int))).tolist():
        far |= _far_from(label == value, other & (pred == value), spacing_mm, band_mm)
    return far


def _far_from(
    structure: NDArray[np.bool_], places: NDArray[np.bool_], spacing_mm: NDArray[np.float64], band_mm: float
) -> NDArray[np.bool_]:
    """Return the places that are farther than the band from the structure."""
    if not structure.any():
        return places
    margin = np.ceil(band_mm / spacing_mm).astype(int) + 1
    box = ndimage.find_objects(places.astype(np.uint8))[0]
    wide = tuple(
        slice(max(0, side.start - m), min(n, side.stop + m))
        for side, m, n in zip(box, margin, places.shape, strict=True)
    )
    if not structure[wide].any():
        return places
    far = places.copy()
    far[wide] &= ndimage.distance_transform_edt(~structure[wide], sampling=spacing_mm) > band_mm
    return far
