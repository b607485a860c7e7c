"""Volumes as they lie on disk: NIfTI by nibabel, DICOM series, NRRD and MetaImage by ITK where it is installed."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from droseg.errors import DrosegError

_ITK_SUFFIXES: Final = (".nrrd", ".mha", ".mhd")
GRID_TOLERANCE: Final = 0.05
"""Two grids are the same if no corner differs by more than this fraction of a voxel's shortest edge."""


class VolumeError(DrosegError):
    """A file that holds no usable volume: what was found, and what to do about it."""


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


def read_volume(path: Path) -> Volume:
    """Return the volume of a file or of a DICOM series folder.

    Raises:
        VolumeError: if it is missing, truncated, of an unknown format, not 3D, or has no usable affine.
    """
    if not path.exists():
        raise VolumeError(f"{path}: no such file or folder; correct the path or the data root.")
    if path.is_dir():
        volume = _read_dicom(path)
    elif path.name.lower().endswith(_ITK_SUFFIXES):
        volume = _read_itk([str(path)], path)
    else:
        volume = _read_nifti(path)
    _check_form(volume, path)
    return volume


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


def spacing_mm(affine: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the edge lengths of a voxel, (3,)."""
    return np.asarray(np.linalg.norm(affine[:3, :3], axis=0))


def _read_nifti(path: Path) -> Volume:
    try:
        if path.stat().st_size == 0:
            raise VolumeError(f"{path}: an empty file (0 bytes); copy or export it again.")
        image: Any = nib.load(path)
    except PermissionError as error:
        raise VolumeError(f"{path}: no permission to read it; change its permissions.") from error
    except VolumeError:
        raise
    except Exception as error:  # nibabel raises many types on a damaged header
        raise VolumeError(f"{path}: not an image that can be read ({_short(error)}); export it as NIfTI.") from error
    try:
        array = np.asanyarray(image.dataobj)
    except Exception as error:  # truncated gzip, too few bytes, damaged compression: EOF, zlib, OS and value errors
        raise VolumeError(f"{path}: truncated or damaged ({_short(error)}); copy or export it again.") from error
    if array.ndim == 5 and array.shape[3] == 1:  # the vector axis of NIfTI is the fifth
        array = array[:, :, :, 0]
    array = np.moveaxis(array, -1, 0) if array.ndim == 4 else array[None]
    header = image.header
    oriented = not isinstance(header, nib.Nifti1Header) or bool(header["sform_code"] or header["qform_code"])
    return Volume(array, np.asarray(image.affine, dtype=np.float64), oriented)


def _read_dicom(folder: Path) -> Volume:
    itk = _import_itk(folder)
    names = itk.GDCMSeriesFileNames.New()
    names.SetUseSeriesDetails(True)
    names.SetDirectory(str(folder))
    series = list(names.GetSeriesUIDs())
    if len(series) != 1:
        raise VolumeError(f"{folder}: a folder with {len(series)} DICOM series; give a folder that holds one.")
    return _read_itk(list(names.GetFileNames(series[0])), folder)


def _read_itk(files: list[str], path: Path) -> Volume:
    itk = _import_itk(path)
    from monai.data import ITKReader

    try:
        image = itk.imread(files[0] if len(files) == 1 else files)
        array, meta = ITKReader().get_data(image)
    except Exception as error:  # ITK raises RuntimeError for everything, with pages of text
        raise VolumeError(f"{path}: not an image that can be read ({_short(error)}); export it as NIfTI.") from error
    array = np.moveaxis(array, -1, 0) if array.ndim == 4 else array[None]
    return Volume(array, np.asarray(meta["affine"], dtype=np.float64))


def _import_itk(path: Path) -> Any:
    try:
        import itk
    except ImportError as error:
        remedy = "pip install 'droseg[dicom]', or convert it to NIfTI"
        raise VolumeError(f"{path}: this format needs ITK, which is not installed; {remedy}.") from error
    return itk


def _check_form(volume: Volume, path: Path) -> None:
    """Raise a VolumeError unless these are the numbers of a 3D grid with an affine that can be inverted."""
    shape = volume.array.shape[1:]
    if len(shape) != 3 or min(shape) < 2:
        raise VolumeError(f"{path}: its shape is {shape}; a 3D volume is expected.")
    if volume.array.dtype.kind not in "biuf":
        raise VolumeError(f"{path}: its voxels are {volume.array.dtype}; export it as a scalar volume.")
    if not np.isfinite(volume.affine).all() or abs(np.linalg.det(volume.affine[:3, :3])) < 1e-9:
        raise VolumeError(f"{path}: its affine is singular or not finite (a spacing of 0?); repair the header.")


def _short(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[-1][:120]}" if lines else type(error).__name__
