"""Images from disk or memory -> one checked `(C, H, W, D)` tensor with its affine, in mm and RAS+."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from monai.data import MetaTensor
from numpy.typing import ArrayLike, NDArray

from droseg.data.channels import fill_missing
from droseg.data.dicom import DicomSeries
from droseg.data.grids import axis_codes, same_voxels
from droseg.data.volumes import (
    ImageSource,
    Volume,
    VolumeError,
    channels_first,
    check_form,
    read_volume,
    same_grid,
    spacing_mm,
    unreadable,
    volume_files,
    voxels,
)

ORIENTED: Final = "oriented"
"""Key of an image's meta data: whether its file says which of its axes points where in the patient."""
MAX_EXTENT_MM: Final = 3000.0
"""No scanner's field of view is wider; more is a header in other units, and resampling it would take all memory."""


class ImageError(VolumeError):
    """An image that cannot be segmented: what was found, and what to do about it."""


def read_image(sources: Sequence[ImageSource | str | None], num_channels: int) -> MetaTensor:
    """Return a case's image, shape (C, H, W, D), float32, with its affine; zeros in a missing channel.

    Args:
        sources: a file, a DICOM series or a folder with one, which holds all channels; or one per channel in the
            bundle's order, None for one that is missing, but never all of them.
        num_channels: what the network takes.

    Raises:
        ImageError: if an image is missing, unreadable, not 3D, not finite, without a usable affine, or if the
            channels are too few, too many or on different grids.
    """
    present = [source is not None for source in sources]
    paths = [Path(source) if isinstance(source, str) else source for source in sources if source is not None]
    if not paths:
        raise ImageError("no image of any channel", "give at least one")
    try:
        volumes = [read_volume(path) for path in paths]
    except VolumeError as error:
        raise ImageError(error.found, error.remedy) from error
    for path, volume in zip(paths[1:], volumes[1:], strict=True):
        if not same_grid(volume, volumes[0]):
            first = paths[0].label if isinstance(paths[0], DicomSeries) else paths[0].name
            raise ImageError(
                f"{path}: its grid is not that of {first} ({_difference(volume, volumes[0])})",
                "resample the channels of a case to one grid (`droseg data regrid`)",
            )
    if not all(present):
        several = next((path for path, volume in zip(paths, volumes, strict=True) if len(volume.array) > 1), None)
        if several is not None:
            raise ImageError(f"{several}: several channels, in a case that lacks one", "give a file per channel")
    found = sum(len(volume.array) for volume in volumes) + present.count(False)
    _check_channels(str(paths[0]), found, num_channels)
    images = [_image(volume, str(path)) for path, volume in zip(paths, volumes, strict=True)]
    if len(images) == 1 and all(present):
        return images[0]
    image = MetaTensor(torch.cat(tuple(images)), affine=images[0].affine, meta={ORIENTED: volumes[0].oriented})
    return image if all(present) else fill_missing(image, present)


def image_from_array(array: ArrayLike, affine: ArrayLike, num_channels: int, name: str = "image") -> MetaTensor:
    """Return an image in memory as `read_image` does; `array` is (C, H, W, D), or (H, W, D) for one channel.

    Raises:
        ImageError: as `read_image`.
    """
    array = np.asarray(array)
    return _from_memory(array[None] if array.ndim == 3 else array, np.asarray(affine), num_channels, name)


def image_from_nibabel(image: Any, num_channels: int, name: str = "image") -> MetaTensor:
    """Return a nibabel image as `read_image` does; a 4th axis holds the channels.

    Raises:
        ImageError: as `read_image`.
    """
    try:
        array = voxels(image, name)
    except VolumeError as error:
        raise ImageError(error.found, error.remedy) from error
    return _from_memory(channels_first(array), image.affine, num_channels, name)


def image_checksum(sources: Sequence[ImageSource | str | None]) -> str:
    """Return the SHA-256 of a case's file in hex; of several files that of their SHA-256, whatever they are called.

    Raises:
        ImageError: if a file is missing or cannot be read.
    """
    parts: list[bytes] = []
    for source in sources:
        if source is None:
            parts.append(b"missing")  # which of the channels it is changes the result
            continue
        if isinstance(source, DicomSeries):
            # Two volumes of one multi-frame file, such as echoes, differ in their frames only.
            parts.append(repr([item.frame for item in source.slices if item.frame is not None]).encode())
        for file in _files(source):
            try:
                with file.open("rb") as stream:
                    parts.append(hashlib.file_digest(stream, "sha256").digest())
            except OSError as error:
                problem = unreadable(file, error)
                raise ImageError(problem.found, problem.remedy) from error
    return parts[0].hex() if len(parts) == 1 else hashlib.sha256(b"".join(parts)).hexdigest()


def _files(source: ImageSource | str) -> list[Path]:
    if isinstance(source, DicomSeries):
        return list(source.files)
    path = Path(source)
    return sorted(file for file in path.iterdir() if file.is_file()) if path.is_dir() else volume_files(path)


def _difference(volume: Volume, first: Volume) -> str:
    """Return in words how the grids of two channels differ."""
    codes = axis_codes(volume.affine), axis_codes(first.affine)
    if codes[0] != codes[1] and same_voxels(volume, first):
        return f"the same voxels, but its axes point to {codes[0]}, not {codes[1]}"
    return f"shapes {first.array.shape[1:]} and {volume.array.shape[1:]}, or affines that differ"


def _from_memory(array: NDArray[Any], affine: NDArray[Any], num_channels: int, name: str) -> MetaTensor:
    volume = Volume(array, np.asarray(affine, dtype=np.float64))
    try:
        check_form(volume, name)
    except VolumeError as error:
        raise ImageError(error.found, error.remedy) from error
    _check_channels(name, len(array), num_channels)
    return _image(volume, name)


def _image(volume: Volume, name: str) -> MetaTensor:
    """Return a volume as a tensor, or say why it cannot be segmented."""
    extent = spacing_mm(volume.affine) * volume.array.shape[1:]
    if extent.max() > MAX_EXTENT_MM:
        raise ImageError(
            f"{name}: by its header it is {' x '.join(f'{edge / 1000:.3g}' for edge in extent)} m large",
            "write the voxel spacing in mm into its header",
        )
    with np.errstate(over="ignore"):  # a value too large for float32 becomes infinite, which is refused below
        values = np.ascontiguousarray(volume.array, dtype=np.float32)
    invalid = int(values.size - np.count_nonzero(np.isfinite(values)))
    if invalid:
        raise ImageError(f"{name}: {invalid} of {values.size} voxels are NaN or infinite", "repair or export it again")
    affine = torch.as_tensor(volume.affine, dtype=torch.float64)
    return MetaTensor(torch.from_numpy(values), affine=affine, meta={ORIENTED: volume.oriented})


def _check_channels(name: str, found: int, expected: int) -> None:
    if found != expected:
        raise ImageError(
            f"{name}: {found} channel{'s' * (found != 1)}, but the network takes {expected}",
            "give the channels that the bundle names, in its order",
        )
