"""What the scans say of themselves: grid and data type, and the scanner's tags of a JSON sidecar or DICOM header."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import nibabel as nib
import numpy as np

from droseg.data.scanner import DICOM_TAGS, SIDECAR_TAGS, Tags, scanner_tags, sidecar_tags
from droseg.data.volumes import (
    METAIMAGE_SUFFIXES,
    NRRD_SUFFIXES,
    VolumeError,
    only_series,
    read_nibabel_header,
    read_text_header,
    spacing_mm,
    unreadable,
)

GRID_FIELDS: Final = ("slice_thickness", "in_plane", "spacing", "shape", "orientation", "data_type")
"""Of every image: largest and smallest voxel edge in mm, all three, voxels along each axis, axis codes, stored type."""

TAG_FIELDS: Final = tuple(dict.fromkeys((*SIDECAR_TAGS, *DICOM_TAGS)))
"""Of images with a JSON sidecar or a DICOM header."""

_FIELD_STRENGTHS: Final = (0.2, 0.35, 0.5, 0.55, 1.0, 1.5, 3.0, 4.7, 7.0, 9.4)
_OFF_NOMINAL: Final = 0.06  # Siemens writes 2.89362 for what is sold as 3 T


def field_name(text: str) -> str | None:
    """Return the field that a person means by "manufacturer" or "magnetic_field_strength"; None if there is none."""
    if text in GRID_FIELDS or text in TAG_FIELDS:
        return text
    squeezed = text.replace("_", "").casefold()
    return next((field for field in TAG_FIELDS if field.casefold() == squeezed), None)


def header_fields(image: Path, sidecars: list[Path] | None = None) -> Tags:
    """Return the grid fields and scanner tags of an image; its voxels are not read.

    Args:
        image: a file or the folder of a DICOM series.
        sidecars: JSON files with tags, the nearest first; default: the one beside the image.

    Raises:
        VolumeError: if its header cannot be read.
    """
    found = _grid_fields(image)
    if sidecars is None or image.is_dir():
        return found | scanner_tags(image)
    tags: Tags = {}
    for path in reversed(sidecars):
        tags |= sidecar_tags(path)
    return found | tags


def as_group(field: str, value: float | str) -> str:
    """Return a field's value as the name of a group, rounded to what distinguishes scans."""
    if isinstance(value, str):
        return value.strip()
    if field == "MagneticFieldStrength":
        measured = value
        nominal = min(_FIELD_STRENGTHS, key=lambda tesla: abs(tesla - measured))
        value = nominal if abs(nominal - value) <= _OFF_NOMINAL * nominal else value
    return f"{value:.3g}"


def _grid_fields(image: Path) -> Tags:
    try:
        shape, affine, stored = _grid(image)
    except OSError as error:
        raise unreadable(image, error) from error
    edges = np.round(spacing_mm(affine), 2)  # 3.0 and 2.9999998 are one slice thickness
    return {
        "slice_thickness": float(edges.max()),
        "in_plane": float(edges.min()),
        "spacing": "x".join(f"{edge:g}" for edge in edges),
        "shape": "x".join(str(size) for size in shape[:3]),
        "orientation": "".join(str(code) for code in nib.orientations.aff2axcodes(affine)),
        **({"data_type": stored} if stored else {}),
    }


def _grid(image: Path) -> tuple[tuple[int, ...], Any, str]:
    """Return the shape, the affine and the stored data type (empty for DICOM) of an image."""
    if image.is_dir():
        series = only_series(image)
        if series.problem:
            raise VolumeError(*series.problem)
        return series.shape, np.array(series.affine), ""
    if image.name.lower().endswith((*NRRD_SUFFIXES, *METAIMAGE_SUFFIXES)):
        header = read_text_header(image)
        return header.shape, header.affine, str(header.dtype)
    nifti = read_nibabel_header(image)
    return nifti.shape, np.asarray(nifti.affine, dtype=np.float64), str(nifti.get_data_dtype())
