"""Label maps on disk: found by the name of their case, read, and laid on the grid of their reference.

Worker processes import no more than this and what is below it, to start fast and stay small: no torch, no MONAI.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from nibabel.affines import voxel_sizes
from nibabel.orientations import apply_orientation, inv_ornt_aff, io_orientation, ornt_transform
from numpy.typing import NDArray

from droseg.errors import DrosegError

ITK_SUFFIXES = (".nrrd", ".mha", ".mhd")
SUFFIXES = (".nii.gz", ".nii", ".mgz", ".mgh", ".hdr", ".img", *ITK_SUFFIXES)


def prediction_files(files: Mapping[str, Path], case_id: str, others: Collection[str] = ()) -> list[Path]:
    """Return every file (name -> path) that may be the label map of a case: CASE_ID.* or CASE_ID_seg.*.

    Args:
        files: what lies in a folder.
        case_id: the case.
        others: further case_ids: a case "a_seg" keeps its file from being that of a case "a".
    """
    found = [
        stem + suffix
        for stem in (case_id, f"{case_id}_seg")
        for suffix in SUFFIXES
        if stem + suffix in files and (stem == case_id or stem not in others)
    ]
    # One image in two files: the header stands for both.
    return [
        files[name] for name in found if not (name.endswith(".img") and name.removesuffix(".img") + ".hdr" in found)
    ]


def find_prediction(files: Mapping[str, Path], case_id: str) -> Path | None:
    """Return the label map of a case among the files of a folder (name -> path), or None."""
    return next(iter(prediction_files(files, case_id)), None)


def read_labels(path: Path) -> tuple[NDArray[np.integer], NDArray[np.float64]]:
    """Return a label map, shape (H, W, D), and its affine.

    Raises:
        DrosegError: if it cannot be read, is not 3D or holds values that are no labels.
    """
    try:
        array, affine = _read_itk(path) if path.name.endswith(ITK_SUFFIXES) else _read_nibabel(path)
    except FileNotFoundError as error:
        raise DrosegError(f"{path}: no such file; correct the datalist.") from error
    except ImportError as error:
        raise DrosegError(f"{path}: this format needs ITK; pip install 'droseg[itk]', or give NIfTI.") from error
    except Exception as error:  # damaged headers and data raise many types
        raise DrosegError(f"{path}: cannot be read ({error}); write it again as NIfTI.") from error
    if affine.shape != (4, 4) or not np.isfinite(affine).all() or abs(np.linalg.det(affine)) < 1e-9:
        raise DrosegError(f"{path}: its affine is singular or not finite; repair its header.")
    array = np.squeeze(array, axis=tuple(a for a in range(3, array.ndim) if array.shape[a] == 1))
    if array.ndim != 3:
        raise DrosegError(f"{path}: has shape {array.shape}; a 3D label map is expected.")
    if array.dtype.kind not in "iub":
        rounded = np.rint(array)
        if not (np.array_equal(rounded, array) and np.isfinite(array).all()):
            raise DrosegError(f"{path}: holds values that are not whole numbers; save labels, not probabilities.")
        array = rounded.astype(np.int64)
    return array, affine


def _read_nibabel(path: Path) -> tuple[NDArray[Any], NDArray[np.float64]]:
    image: Any = nib.load(path)
    return np.asanyarray(image.dataobj), np.asarray(image.affine, dtype=np.float64)


def _read_itk(path: Path) -> tuple[NDArray[Any], NDArray[np.float64]]:
    import itk
    from monai.data import ITKReader

    array, meta = ITKReader().get_data(itk.imread(str(path)))
    return np.asarray(array), np.asarray(meta["affine"], dtype=np.float64)


def lay_on_grid(
    volume: NDArray[Any],
    affine: NDArray[np.float64],
    ref_shape: Sequence[int],
    ref_affine: NDArray[np.float64],
    tolerance: float,
) -> NDArray[Any] | None:
    """Return the label map or image in the reference's axis order and directions, or None if its voxels lie elsewhere.

    Axes are only permuted and flipped, never interpolated. `tolerance`: how far corners may lie apart, as a fraction of
    a voxel's shortest edge.
    """
    if _same_grid(volume.shape, affine, ref_shape, ref_affine, tolerance):
        return volume
    transform = ornt_transform(io_orientation(affine), io_orientation(ref_affine))
    moved: NDArray[Any] = apply_orientation(volume, transform)
    moved_affine = affine @ inv_ornt_aff(transform, volume.shape)
    return moved if _same_grid(moved.shape, moved_affine, ref_shape, ref_affine, tolerance) else None


def _same_grid(
    shape: Sequence[int],
    affine: NDArray[np.float64],
    ref_shape: Sequence[int],
    ref_affine: NDArray[np.float64],
    tolerance: float,
) -> bool:
    if tuple(shape) != tuple(ref_shape):
        return False
    corners = np.array(np.meshgrid(*[(0, size - 1) for size in shape], [1])).reshape(4, -1)
    apart_mm = np.linalg.norm((affine @ corners - ref_affine @ corners)[:3], axis=0).max()
    return bool(apart_mm <= tolerance * voxel_sizes(ref_affine).min())


def describe_grid(shape: Sequence[int], affine: NDArray[np.float64]) -> str:
    """Return shape, spacing, orientation and origin in words."""
    spacing = " x ".join(f"{s:.4g}" for s in voxel_sizes(affine))
    origin = ", ".join(f"{o:.4g}" for o in affine[:3, 3])
    return f"{tuple(shape)} of {spacing} mm, {''.join(nib.aff2axcodes(affine))}, origin ({origin})"
