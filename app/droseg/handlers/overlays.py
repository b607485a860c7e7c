"""Pictures of a case: image, reference and prediction side by side, in three planes."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from droseg.colors import PALETTE

_RGB = np.array([[int(color[i : i + 2], 16) for i in (1, 3, 5)] for color in PALETTE], dtype=np.float32)


def overlay_planes(
    image: NDArray[np.floating], label: NDArray[np.integer], pred: NDArray[np.integer], opacity: float = 0.5
) -> NDArray[np.uint8]:
    """Return an RGB picture, shape (3, rows, columns): a row per plane; image, reference, prediction in a row.

    Args:
        image: gray values, shape (H, W, D), in RAS.
        label: class indices or label values on the same grid, 0 is background; each has a color of its own.
        pred: the same of the prediction.
        opacity: of the colors over the image.
    """
    where = np.argwhere(label > 0) if (label > 0).any() else np.argwhere(np.ones_like(label, dtype=bool))
    center = np.median(where, axis=0).astype(int)
    low, high = np.percentile(image, [1, 99])
    gray = np.clip((image - low) / max(float(high - low), 1e-6), 0, 1) * 255
    side = max(label.shape)
    zoom = max(1, round(192 / side))  # a small volume would be a stamp on the page
    rows = []
    for axis in (2, 1, 0):  # axial, coronal, sagittal
        planes = [np.rot90(np.take(volume, center[axis], axis=axis)) for volume in (gray, label, pred)]
        base = np.repeat(planes[0][..., None], 3, axis=2).astype(np.float32)
        tiles = (base, _colored(base, planes[1], opacity), _colored(base, planes[2], opacity))
        rows.append(np.concatenate([_square(tile, side) for tile in tiles], axis=1))
    return np.concatenate(rows, axis=0).astype(np.uint8).repeat(zoom, axis=0).repeat(zoom, axis=1).transpose(2, 0, 1)


def _square(tile: NDArray[np.float32], side: int) -> NDArray[np.float32]:
    """Return the tile in the middle of a black square with a margin of one pixel, so that the planes line up."""
    missing = [side + 2 - size for size in tile.shape[:2]]
    return np.pad(tile, [(m // 2, m - m // 2) for m in missing] + [(0, 0)])


def _colored(base: NDArray[np.float32], labels: NDArray[np.integer], opacity: float) -> NDArray[np.float32]:
    labels = np.asarray(labels).astype(int)
    color = _RGB[(labels - 1) % len(_RGB)]
    mixed = (1 - opacity) * base + opacity * color
    return np.where((labels > 0)[..., None], mixed, base).astype(np.float32)
