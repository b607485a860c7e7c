"""Images from disk or memory -> one checked `(C, H, W, D)` tensor with its affine, in mm and RAS+."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from monai.data import MetaTensor
from numpy.typing import ArrayLike, NDArray

from droseg.data.volumes import Volume, same_grid
from droseg.errors import DrosegError

ITK_SUFFIXES = (".nrrd", ".mha", ".mhd")


class ImageError(DrosegError):
    """An image that cannot be segmented: what was found, and what to do about it."""

    def __init__(self, found: str, remedy: str) -> None:
        super().__init__(f"{found}; {remedy}.")
        self.found = found
        self.remedy = remedy


def read_image(paths: Sequence[Path], num_channels: int) -> MetaTensor:
    """Return a case's image, shape (C, H, W, D), float32, with its affine.

    Args:
        paths: one file or DICOM series folder that holds all channels, or one per channel in the bundle's order.
        num_channels: what the network takes.

    Raises:
        ImageError: if an image is missing, unreadable, not 3D, not finite, without a usable affine, or if the
            channels are too few, too many or on different grids.
    """
    volumes = [_read_volume(path) for path in paths]
    for path, volume in zip(paths[1:], volumes[1:], strict=True):
        if not same_grid(_grid(volume), _grid(volumes[0])):
            shapes = f"{tuple(volumes[0].shape[1:])} and {tuple(volume.shape[1:])}"
            raise ImageError(
                f"{path}: its grid is not that of {paths[0].name} (shapes {shapes}, or affines that differ)",
                "resample the channels of a case to one grid",
            )
    image = torch.cat([volume.as_tensor() for volume in volumes])
    _check_channels(str(paths[0]), len(image), num_channels)
    return MetaTensor(image, affine=volumes[0].affine)


def image_from_array(array: ArrayLike, affine: ArrayLike, num_channels: int, name: str = "image") -> MetaTensor:
    """Return an image in memory as `read_image` does; `array` is (C, H, W, D), or (H, W, D) for one channel.

    Raises:
        ImageError: as `read_image`.
    """
    array = np.asarray(array)
    image = _checked(array[None] if array.ndim == 3 else array, np.asarray(affine), name)
    _check_channels(name, len(image), num_channels)
    return image


def image_from_nibabel(image: Any, num_channels: int, name: str = "image") -> MetaTensor:
    """Return a nibabel image as `read_image` does; a 4th axis holds the channels.

    Raises:
        ImageError: as `read_image`.
    """
    volume = _from_nibabel(image, name)
    _check_channels(name, len(volume), num_channels)
    return volume


def image_checksum(paths: Sequence[Path]) -> str:
    """Return the SHA-256 of all files of a case, in hex; the names of the files do not count."""
    digest = hashlib.sha256()
    for path in paths:
        for file in sorted(path.iterdir()) if path.is_dir() else [path]:
            if file.is_file():
                with file.open("rb") as stream:
                    digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()


def is_dicom_file(path: Path) -> bool:
    """Return whether a file starts as DICOM Part 10 says: 128 bytes of anything, then "DICM"."""
    try:
        with path.open("rb") as file:
            return file.read(132)[128:] == b"DICM"
    except OSError:
        return False


def is_dicom_folder(folder: Path) -> bool:
    """Return whether DICOM files lie directly in a folder."""
    return any(is_dicom_file(path) for path in _files(folder))


def _files(folder: Path) -> Iterator[Path]:
    return (path for path in sorted(folder.iterdir()) if path.is_file() and not path.name.startswith("."))


def _read_volume(path: Path) -> MetaTensor:
    if not path.exists():
        raise ImageError(f"{path}: no such file or folder", "correct the path")
    if path.is_dir():
        return _read_dicom(path)
    if path.name.lower().endswith(ITK_SUFFIXES):
        return _from_itk([str(path)], str(path))
    try:
        size = path.stat().st_size
        image = nib.load(path) if size else None
    except PermissionError as error:
        raise ImageError(f"{path}: no permission to read it", "change its permissions") from error
    except Exception as error:  # any mutilated header; nibabel raises many types
        raise ImageError(f"{path}: not an image that can be read ({_short(error)})", _CONVERT) from error
    if image is None:
        raise ImageError(f"{path}: an empty file (0 bytes)", "copy or export it again")
    return _from_nibabel(image, str(path))


_CONVERT = "give NIfTI (.nii, .nii.gz), NRRD, MetaImage or a folder with one DICOM series"


def _from_nibabel(image: Any, name: str) -> MetaTensor:
    try:
        array = np.asanyarray(image.dataobj)
    except Exception as error:  # truncated gzip, too few bytes, damaged compression: zlib, EOF, OS and value errors
        raise ImageError(
            f"{name}: the voxels cannot be read ({_short(error)}); the file is truncated or damaged",
            "copy or export it again",
        ) from error
    if array.ndim == 5 and array.shape[3] == 1:  # NIfTI's vector axis is the fifth
        array = array[:, :, :, 0]
    if array.ndim == 4:
        array = np.moveaxis(array, -1, 0)
    elif array.ndim == 3:
        array = array[None]
    return _checked(array, image.affine, name)


def _read_dicom(folder: Path) -> MetaTensor:
    if not is_dicom_folder(folder):
        raise ImageError(f"{folder}: a folder without NIfTI or DICOM files", _CONVERT)
    itk = _import_itk(str(folder))
    names = itk.GDCMSeriesFileNames.New()
    names.SetUseSeriesDetails(True)
    names.SetDirectory(str(folder))
    series = list(names.GetSeriesUIDs())
    if len(series) != 1:
        raise ImageError(f"{folder}: {len(series)} DICOM series", "give a folder with one series")
    return _from_itk(list(names.GetFileNames(series[0])), str(folder))


def _from_itk(files: list[str], name: str) -> MetaTensor:
    from monai.data import ITKReader

    itk = _import_itk(name)
    try:
        image = itk.imread(files[0] if len(files) == 1 else files)
        array, meta = ITKReader().get_data(image)
    except Exception as error:  # ITK raises RuntimeError for all, with pages of text
        raise ImageError(f"{name}: not an image that can be read ({_short(error)})", _CONVERT) from error
    array = np.moveaxis(array, -1, 0) if array.ndim == 4 else array[None]
    return _checked(array, np.asarray(meta["affine"]), name)


def _import_itk(name: str) -> Any:
    try:
        import itk
    except ImportError as error:
        raise ImageError(
            f"{name}: reading this format needs ITK, which is not installed",
            "pip install 'droseg[dicom]', or convert the image to NIfTI",
        ) from error
    return itk


def _checked(array: NDArray[Any], affine: NDArray[Any], name: str) -> MetaTensor:
    """Return a (C, H, W, D) array as a tensor, or say why it cannot be segmented."""
    if array.ndim != 4 or min(array.shape) < 1 or sum(size > 1 for size in array.shape[1:]) < 3:
        shape = tuple(array.shape[1:]) if array.ndim > 3 else tuple(array.shape)
        raise ImageError(
            f"{name}: the image has shape {shape}", "a 3D volume is needed, with several voxels on each axis"
        )
    if array.dtype.kind not in "biuf":
        raise ImageError(f"{name}: its voxels are {array.dtype}, not numbers", "convert it to a scalar image")
    if affine.shape != (4, 4) or not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) < 1e-9:
        raise ImageError(f"{name}: its affine is singular or not finite (a spacing of 0?)", "repair its header")
    values = np.ascontiguousarray(array, dtype=np.float32)
    invalid = int(values.size - np.count_nonzero(np.isfinite(values)))
    if invalid:
        raise ImageError(f"{name}: {invalid} of {values.size} voxels are NaN or infinite", "repair or export it again")
    return MetaTensor(torch.from_numpy(values), affine=torch.as_tensor(affine, dtype=torch.float64))


def _check_channels(name: str, found: int, expected: int) -> None:
    if found != expected:
        raise ImageError(
            f"{name}: {found} channel{'s' * (found != 1)}, but the network takes {expected}",
            "give the channels that the bundle names, in its order",
        )


def _grid(image: MetaTensor) -> Volume:
    return Volume(image.as_tensor().numpy(), image.affine.numpy())


def _short(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[-1][:120]}" if lines else type(error).__name__
