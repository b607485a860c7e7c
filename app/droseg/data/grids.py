"""A volume on its grid, what makes two grids the same, and how large a volume may be."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from droseg.errors import DrosegError

GRID_TOLERANCE: Final = 0.05
"""Two grids are the same if no corner differs by more than this fraction of a voxel's shortest edge."""

MAX_VOXELS: Final = 2**30
"""More (1024 x 1024 x 1024) is taken for a damaged header; a 512 x 512 x 400 volume has a tenth of it."""

MAX_INFLATION: Final = 1100
"""No byte of a deflate stream can become more than 1032 (https://zlib.net/zlib_tech.html)."""


class VolumeError(DrosegError):
    """A file that holds no usable volume: what was found, and what to do about it."""

    def __init__(self, found: str, remedy: str) -> None:
        super().__init__(f"{found}; {remedy}.")
        self.found = found
        self.remedy = remedy

    def __reduce__(self) -> tuple[type[VolumeError], tuple[str, str]]:
        return type(self), (self.found, self.remedy)


@dataclass(frozen=True)
class Volume:
    """A volume in the values it was stored with.

    Attributes:
        array: (C, H, W, D), in the stored data type where the header scales nothing.
        affine: voxel index to world coordinates in mm (RAS+), (4, 4).
        oriented: False if the header says nothing about the position of the patient.
    """

    array: NDArray[Any]
    affine: NDArray[np.float64]
    oriented: bool = True


def corner_distance_mm(first: Volume, second: Volume) -> float:
    """Return how far apart two affines place the corners of the first grid, at most."""
    size = np.array(first.array.shape[1:]) - 1
    corners = np.array(np.meshgrid(*[(0, n) for n in size], indexing="ij")).reshape(3, -1)
    apart = (first.affine - second.affine)[:3] @ np.vstack([corners, np.ones(corners.shape[1])])
    return float(np.linalg.norm(apart, axis=0).max())


def same_grid(volume: Volume, reference: Volume) -> bool:
    """Return whether two volumes have the same shape and place their corners within `GRID_TOLERANCE` of each other."""
    if volume.array.shape[1:] != reference.array.shape[1:]:
        return False
    return corner_distance_mm(volume, reference) <= GRID_TOLERANCE * float(spacing_mm(reference.affine).min())


def same_voxels(volume: Volume, reference: Volume) -> bool:
    """Return whether two volumes have the same grid but for the order and the direction of their axes."""
    orientations = nib.orientations
    turn = orientations.ornt_transform(*(orientations.io_orientation(each.affine) for each in (volume, reference)))
    array = np.moveaxis(orientations.apply_orientation(np.moveaxis(volume.array, 0, -1), turn), -1, 0)
    affine = volume.affine @ orientations.inv_ornt_aff(turn, volume.array.shape[1:])
    return same_grid(Volume(array, affine), reference)


def axis_codes(affine: NDArray[np.float64]) -> str:
    """Return where the axes of an array point to in the patient, such as "LPS"."""
    return "".join(nib.orientations.aff2axcodes(affine))


def spacing_mm(affine: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the edge lengths of a voxel, (3,)."""
    return np.asarray(np.linalg.norm(affine[:3, :3], axis=0))


def check_size(name: str, shape: Sequence[int], voxel_bytes: int, stored_bytes: int, compressed: bool) -> None:
    """Refuse a header that declares more voxels than its file can hold, before memory is taken for them.

    Raises:
        VolumeError: if an axis is not positive, or there are too many voxels for any scan or for `stored_bytes`.
    """
    shape = tuple(int(size) for size in shape)
    if not shape or min(shape) < 1:
        raise VolumeError(f"{name}: its header declares the shape {shape}", "repair it, or export the image again")
    voxels = math.prod(shape)
    if voxels > MAX_VOXELS:
        raise VolumeError(
            f"{name}: its header declares the shape {shape}, which is {voxels:.2g} voxels; at most 2^30 are read",
            "repair the header, or crop the image",
        )
    needed = voxels * voxel_bytes
    if needed > stored_bytes * (MAX_INFLATION if compressed else 1):
        raise VolumeError(
            f"{name}: its header declares {needed} bytes of voxels, but there are only {stored_bytes}"
            f"{' compressed' if compressed else ''}; the file is truncated, or its header damaged",
            "copy or export it again",
        )


def short(error: BaseException) -> str:
    """Return the type and the last line of an exception of another library, whose message may be pages long."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[-1][:120]}" if lines else type(error).__name__
