"""The grid that images are resampled to, and how large they are on it; as nnU-Net decides it."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from droseg.plan.fingerprint import Fingerprint

ANISOTROPY = 3.0
"""From this ratio on an axis is thick (ANISO_THRESHOLD of nnU-Net)."""
AXES = ("left-right", "back-front", "down-up")


def target_spacing(fingerprint: Fingerprint) -> tuple[tuple[float, float, float], str]:
    """Return the spacing in mm, and why: the median; along a thick axis of few voxels the 10th percentile.

    `determine_fullres_target_spacing` of nnU-Net 2.8.1, with axes compared after the turn to RAS.
    """
    found, boxes = fingerprint.per_case("spacing_mm"), fingerprint.per_case("box")
    target, size = np.median(found, axis=0), np.median(boxes, axis=0)
    thick = int(np.argmax(target))
    others = [axis for axis in range(3) if axis != thick]
    span = (
        f"{_edges(found.min(axis=0))} to {_edges(found.max(axis=0))}"
        if np.ptp(found, axis=0).max() > 1e-3
        else "all the same"
    )
    reason = f"median of {len(found)} training cases ({span})"
    if target[thick] > ANISOTROPY * target[others].max() and size[thick] * ANISOTROPY < size[others].min():
        edge = max(float(np.percentile(found[:, thick], 10)), float(target[others].max()))
        reason += (
            f"; {AXES[thick]}, {target[thick]:.3g} mm thick and {size[thick]:.0f} voxels, the 10th percentile "
            "(thinner slices lose less when they are resampled)"
        )
        target[thick] = edge
    spacing = tuple(float(f"{edge:.4g}") for edge in target)
    return (spacing[0], spacing[1], spacing[2]), reason


def thick_axes(fingerprint: Fingerprint) -> dict[str, int]:
    """Return how many cases are thickest (3 times the thinnest edge at least) along each axis."""
    counts = dict.fromkeys(AXES, 0)
    for edges in fingerprint.per_case("spacing_mm"):
        if edges.max() >= ANISOTROPY * edges.min():
            counts[AXES[int(np.argmax(edges))]] += 1
    return {axis: count for axis, count in counts.items() if count}


def resampled(fingerprint: Fingerprint, spacing_mm: tuple[float, float, float], what: str) -> NDArray[np.float64]:
    """Return `shape` or `box` of every case in voxels of the target spacing, (N, 3)."""
    sizes = fingerprint.per_case(what) * fingerprint.per_case("spacing_mm") / np.array(spacing_mm)
    return np.maximum(np.rint(sizes), 1.0)


def _edges(edges: NDArray[np.float64]) -> str:
    return " x ".join(f"{edge:.3g}" for edge in edges) + " mm"
