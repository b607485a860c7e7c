"""A bundle's `preprocessing` of an image that is in memory already, within the memory that there is."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor
from monai.transforms import Compose, EnsureChannelFirstd, LoadImaged, Spacingd
from numpy.typing import NDArray

from droseg.inference.grid import resample
from droseg.keys import IMAGE

UNCHANGED = 1e-3
"""MONAI leaves an image as it is if no element of the transform between the grids differs by more."""


class Preprocessing:
    """The transforms of `preprocessing` but those that read files.

    Args:
        compose: of the bundle.
        invertible: keep what MONAI's `Invertd` needs. If it is not needed, `Spacingd` runs slab by slab, with the same
            result and a fraction of the memory (MONAI's holds 32 bytes of coordinates and values per voxel).
    """

    def __init__(self, compose: Compose, invertible: bool) -> None:
        self.transforms = [t for t in compose.transforms if not isinstance(t, LoadImaged | EnsureChannelFirstd)]
        self.invertible = invertible

    def __call__(self, image: MetaTensor) -> dict[str, Any]:
        """Return the item that the network's input is in; the image itself stays as it is."""
        item: dict[str, Any] = {IMAGE: image.clone()}
        for transform in self.transforms:
            lean = isinstance(transform, Spacingd) and not self.invertible
            item = _spaced(transform, item) if lean else transform(item)
        return item


def _spaced(transform: Spacingd, item: dict[Any, Any]) -> dict[Any, Any]:
    """Return what a `Spacingd` makes of an item, with its affine and without a record of the transform."""
    image = item[IMAGE]
    options = [
        (mode, padding)
        for key, mode, padding in transform.key_iterator(item, transform.mode, transform.padding_mode)
        if key == IMAGE
    ]
    if options != [("bilinear", "border")] or set(item) != {IMAGE}:
        return dict(transform(item))
    planned: Any = transform({IMAGE: image}, lazy=True)[IMAGE]  # the grid alone
    affine: NDArray[np.float64] = np.asarray(planned.peek_pending_affine(), dtype=np.float64)
    shape = tuple(int(size) for size in planned.peek_pending_shape())
    to_source = np.asarray(np.linalg.solve(np.asarray(image.affine, dtype=np.float64), affine), dtype=np.float64)
    if shape == tuple(image.shape[1:]) and np.allclose(to_source, np.eye(4), rtol=0, atol=UNCHANGED):
        return item
    values = resample(image.as_tensor(), to_source, shape)
    return {IMAGE: MetaTensor(values, affine=torch.as_tensor(affine))}
