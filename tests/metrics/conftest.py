"""Label maps to measure."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from scipy import ndimage


def blobs(seed: int, shape: tuple[int, ...] = (24, 20, 14), num_structures: int = 3, smooth: float = 2.0) -> np.ndarray:
    """Return a label map of touching blobs with speckles, some of them at the image border."""
    rng = np.random.default_rng(seed)
    fields = np.stack([ndimage.gaussian_filter(rng.normal(size=shape), smooth) for _ in range(num_structures + 1)])
    labels = fields.argmax(axis=0).astype(np.int16)
    speckle = rng.random(shape) < 0.01
    labels[speckle] = rng.integers(0, num_structures + 1, speckle.sum())
    return labels


@pytest.fixture(scope="session")
def make_blobs() -> Callable[..., np.ndarray]:
    return blobs
