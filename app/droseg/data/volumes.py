"""Volumes as they lie on disk: NIfTI by nibabel, NRRD and MetaImage by their headers, DICOM series by pydicom."""

from __future__ import annotations

import logging
import stat
from pathlib import Path
from typing import Any, Final

import nibabel as nib
import numpy as np
from nibabel import imageglobals
from numpy.typing import NDArray

from droseg.data.dicom import DicomSeries
from droseg.data.dicom_header import is_dicom_file
from droseg.data.dicom_pixels import read_series
from droseg.data.dicom_stack import folder_series
from droseg.data.grids import (
    GRID_TOLERANCE,
    Volume,
    VolumeError,
    check_size,
    corner_distance_mm,
    same_grid,
    short,
    spacing_mm,
)
from droseg.data.metaimage import METAIMAGE_SUFFIXES, read_metaimage_header
from droseg.data.nrrd import NRRD_SUFFIXES, read_nrrd_header
from droseg.data.text_header import TextHeader, read_headed_volume

__all__ = [
    "GRID_TOLERANCE",
    "ImageSource",
    "Volume",
    "VolumeError",
    "corner_distance_mm",
    "read_volume",
    "same_grid",
    "spacing_mm",
]

ImageSource = Path | DicomSeries
NIFTI_SUFFIXES: Final = (".nii.gz", ".nii")
VOLUME_SUFFIXES: Final = (*NIFTI_SUFFIXES, *NRRD_SUFFIXES, *METAIMAGE_SUFFIXES)
"""Of the files that are taken for images where a whole folder is given."""
NIBABEL_SUFFIXES: Final = (*NIFTI_SUFFIXES, ".hdr", ".img", ".mgz", ".mgh")
_CONVERT: Final = "give NIfTI (.nii, .nii.gz), NRRD, MetaImage or a folder with one DICOM series"
_COPY: Final = "copy or export it again"

imageglobals.logger.setLevel(logging.CRITICAL)  # its lines on headers name no file; what matters here is an error


def read_volume(source: ImageSource) -> Volume:
    """Return the volume of a file, of a DICOM series, or of a folder with one DICOM series.

    Raises:
        VolumeError: if it is missing, truncated, of an unknown format, not 3D, or has no usable affine.
    """
    if isinstance(source, DicomSeries):
        volume = read_series(source)
    else:
        try:
            volume = _read_path(source)
        except OSError as error:
            raise unreadable(source, error) from error
    check_form(volume, str(source))
    return volume


def unreadable(path: Path, error: OSError) -> VolumeError:
    """Return what the operating system said about a file, as an error with a remedy."""
    if isinstance(error, FileNotFoundError) and path.is_symlink():
        return VolumeError(
            f"{path}: a link to {path.readlink()}, which does not exist here",
            "correct it, or make that folder available (in a container: mount it, too)",
        )
    if isinstance(error, FileNotFoundError):
        return VolumeError(f"{path}: no such file or folder", "correct the path or the data root")
    if isinstance(error, PermissionError):
        return VolumeError(f"{path}: no permission to read it", "change its permissions")
    return VolumeError(f"{path}: cannot be read ({(error.strerror or short(error)).lower()})", _COPY)


def read_text_header(path: Path) -> TextHeader:
    """Return the header of a NRRD or MetaImage file.

    Raises:
        VolumeError: if it is not one, or declares what cannot be.
        OSError: if the file cannot be read.
    """
    return (read_nrrd_header if path.name.lower().endswith(NRRD_SUFFIXES) else read_metaimage_header)(path)


def read_nibabel_header(path: Path) -> Any:
    """Return the nibabel image of a NIfTI file, whose voxels are not read yet but are known to fit into the file.

    Raises:
        VolumeError: if it is not one, or declares what cannot be.
        OSError: if the file cannot be read.
    """
    try:
        image: Any = nib.load(path)
        array = Path(image.file_map["image"].filename)
        offset = 0 if _is_compressed(array) else int(image.dataobj.offset)
        voxel_bytes = int(image.get_data_dtype().itemsize)
    except (FileNotFoundError, PermissionError):
        raise
    except Exception as error:  # nibabel raises many types on a damaged header
        raise VolumeError(f"{path}: not an image that can be read ({short(error)})", _CONVERT) from error
    check_size(str(path), image.shape, voxel_bytes, array.stat().st_size - offset, _is_compressed(array))
    _check_spacing(path, image)
    return image


def _check_spacing(path: Path, image: Any) -> None:
    """Refuse a spacing of 0 that the affine rests on; nibabel puts 1 mm in its place."""
    if not isinstance(image.header, nib.Nifti1Header) or image.header["sform_code"] > 0:
        return
    holder = image.file_map.get("header", image.file_map["image"])
    with nib.openers.ImageOpener(holder.filename) as file:
        stored = type(image.header).from_fileobj(file, check=False)["pixdim"][1 : 1 + min(len(image.shape), 3)]
    if (stored == 0).any():
        listed = " x ".join(f"{edge:g}" for edge in stored)
        raise VolumeError(f"{path}: a voxel spacing of {listed} mm", "repair its header, or export it again")


def volume_files(path: Path) -> list[Path]:
    """Return the files that an image is read from: its own, and that of its voxels where its header names one."""
    name = path.name.lower()
    try:
        if name.endswith((*NRRD_SUFFIXES, *METAIMAGE_SUFFIXES)):
            voxels_path = read_text_header(path).data_path
            return [path] if voxels_path == path else [path, voxels_path]
        if name.endswith((".hdr", ".img")):
            return sorted(Path(holder.filename) for holder in nib.load(path).file_map.values() if holder.filename)
    except Exception:  # reading it will say what is wrong
        return [path]
    return [path]


def _is_compressed(path: Path) -> bool:
    return path.name.lower().endswith((".gz", ".mgz"))


def _read_path(path: Path) -> Volume:
    status = path.stat()
    if stat.S_ISDIR(status.st_mode):
        return read_series(only_series(path))
    if not stat.S_ISREG(status.st_mode):  # opening a pipe would wait for ever
        raise VolumeError(f"{path}: not a regular file", _CONVERT)
    if not status.st_size:
        raise VolumeError(f"{path}: an empty file (0 bytes)", _COPY)
    name = path.name.lower()
    if name.endswith((*NRRD_SUFFIXES, *METAIMAGE_SUFFIXES)):
        return read_headed_volume(read_text_header(path))
    if name.endswith(NIBABEL_SUFFIXES):
        return _read_nibabel(path)
    if is_dicom_file(path):
        return read_series(only_series(path.parent, path))
    raise VolumeError(f"{path}: not an image that can be read (unknown format)", _CONVERT)


def only_series(folder: Path, file: Path | None = None) -> DicomSeries:
    """Return the one series of a folder, or the one that a file belongs to.

    Raises:
        VolumeError: if there is none that can be segmented, or more than one.
        OSError: if a file or the folder cannot be read.
    """
    found = folder_series(folder)
    fit = [series for series in found if not series.unfit and (file is None or file in series.files)]
    if len(fit) == 1:
        return fit[0]
    place = file or folder
    if fit:
        listed = ", ".join(sorted(series.label for series in fit))
        raise VolumeError(f"{place}: {len(fit)} DICOM series ({listed})", "give a folder that holds one")
    unfit = [series for series in found if file is None or file in series.files]
    if unfit:
        raise VolumeError(f"{place}: no DICOM series to segment ({unfit[0].unfit})", "give a folder with an MR volume")
    raise VolumeError(f"{place}: a folder without NIfTI or DICOM files", _CONVERT)


def _read_nibabel(path: Path) -> Volume:
    image = read_nibabel_header(path)
    header = image.header
    oriented = not isinstance(header, nib.Nifti1Header) or bool(header["sform_code"] or header["qform_code"])
    return Volume(channels_first(voxels(image, str(path))), np.asarray(image.affine, dtype=np.float64), oriented)


def voxels(image: Any, name: str) -> NDArray[Any]:
    """Return the scaled voxels of a nibabel image.

    Raises:
        VolumeError: if its file is truncated or damaged.
    """
    try:
        return np.asanyarray(image.dataobj)
    except MemoryError:
        raise
    except Exception as error:  # truncated gzip, too few bytes, damaged compression: EOF, zlib, OS and value errors
        raise VolumeError(
            f"{name}: the voxels cannot be read ({short(error)}); the file is truncated or damaged", _COPY
        ) from error


def channels_first(array: NDArray[Any]) -> NDArray[Any]:
    """Return a NIfTI array as (C, H, W, D); its channels are the fourth axis, or the fifth behind one time point."""
    if array.ndim == 5 and array.shape[3] == 1:  # the vector axis of NIfTI is the fifth
        array = array[:, :, :, 0]
    return np.moveaxis(array, -1, 0) if array.ndim == 4 else array[None]


def check_form(volume: Volume, name: str) -> None:
    """Refuse what are not the numbers of a 3D grid with an affine that can be inverted.

    Raises:
        VolumeError: what was found instead.
    """
    shape = volume.array.shape[1:]
    if len(shape) != 3 or min(shape) < 2:
        raise VolumeError(
            f"{name}: the image has shape {shape}", "a 3D volume is needed, with several voxels on each axis"
        )
    if volume.array.dtype.kind not in "biuf":
        raise VolumeError(f"{name}: its voxels are {volume.array.dtype}, not numbers", "convert it to a scalar image")
    if not np.isfinite(volume.affine).all() or abs(np.linalg.det(volume.affine[:3, :3])) < 1e-9:
        raise VolumeError(f"{name}: its affine is singular or not finite (a spacing of 0?)", "repair its header")
