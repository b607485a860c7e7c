"""How a scan was made, as the JSON file beside it or its DICOM header says; nothing about who was scanned."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

Tags = dict[str, float | str]

SIDECAR_TAGS: Final = (
    *("Manufacturer", "ManufacturersModelName", "SoftwareVersions", "MagneticFieldStrength", "ReceiveCoilName"),
    *("PulseSequenceType", "ScanningSequence", "SequenceVariant", "MRAcquisitionType", "ProtocolName"),
    *("EchoTime", "RepetitionTime", "InversionTime", "FlipAngle", "EchoTrainLength", "PixelBandwidth"),
    *("SliceThickness", "SpacingBetweenSlices", "ParallelReductionFactorInPlane", "PartialFourier"),
)
"""The fields of a BIDS sidecar that are read."""

# Without those of BIDS' fields that DICOM's basic confidentiality profile (PS3.15, table E.1-1) removes, as the
# protocol's name, into which people type anything, and without those that mean something else in DICOM.
_DICOM_TEXTS: Final = {
    "Manufacturer": "Manufacturer",
    "ManufacturerModelName": "ManufacturersModelName",
    "SoftwareVersions": "SoftwareVersions",
    "ReceiveCoilName": "ReceiveCoilName",
    "ScanningSequence": "ScanningSequence",
    "SequenceVariant": "SequenceVariant",
    "MRAcquisitionType": "MRAcquisitionType",
}
_DICOM_NUMBERS: Final = {
    **{name: (name, 1.0) for name in ("MagneticFieldStrength", "FlipAngle", "EchoTrainLength", "PixelBandwidth")},
    **{name: (name, 1.0) for name in ("SliceThickness", "SpacingBetweenSlices", "ParallelReductionFactorInPlane")},
    # BIDS has seconds, DICOM milliseconds.
    **{name: (name, 1000.0) for name in ("EchoTime", "RepetitionTime", "InversionTime")},
}
DICOM_TAGS: Final = (*_DICOM_TEXTS, *_DICOM_NUMBERS)
"""The elements of a DICOM header that are read, by keyword; no other one is looked at."""


def scanner_tags(image: Path) -> Tags:
    """Return the scanner tags of an image, by their names and in the units of BIDS; empty where none are known.

    They come from the header of the first file of a DICOM series folder, if pydicom is installed (extra `dicom`), and
    for any other image from the JSON file of the same name.
    """
    if image.is_dir():
        return _of_series(image)
    return _of_sidecar(image.with_name(image.name.removesuffix(".gz").removesuffix(".nii") + ".json"))


def _of_sidecar(path: Path) -> Tags:
    try:
        tags = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    if not isinstance(tags, Mapping):
        return {}
    found: Tags = {}
    for tag in SIDECAR_TAGS:
        value = tags.get(tag)
        if isinstance(value, bool) or not isinstance(value, int | float | str):
            continue
        found[tag] = float(value) if isinstance(value, int | float) else value
    return found


def _of_series(folder: Path) -> Tags:
    try:
        import pydicom
    except ImportError:
        return {}
    for path in sorted(path for path in folder.iterdir() if path.is_file() and path.name != "DICOMDIR"):
        try:
            header = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=list(DICOM_TAGS))
        except Exception:  # other files may lie beside the slices, and a damaged one raises many types
            continue
        return _of_header(header)
    return {}


def _of_header(header: Any) -> Tags:
    found: Tags = {}
    for keyword, name in _DICOM_TEXTS.items():
        value = _element(header, keyword)
        # Several values in one string, as dcm2niix writes them into the sidecar: SE_IR.
        text = value if isinstance(value, str) else "_".join(map(str, value or ()))
        if text.strip():
            found[name] = text.strip()
    for keyword, (name, per_unit) in _DICOM_NUMBERS.items():
        try:
            number = float(_element(header, keyword)) / per_unit
        except (TypeError, ValueError):  # absent, empty, or several values
            continue
        if math.isfinite(number):
            found[name] = number
    return found


def _element(header: Any, keyword: str) -> Any:
    """Return the value of an element; None if it is not there or breaks the rules of its type."""
    try:
        return getattr(header, keyword, None)
    except Exception:  # pydicom reads a value when it is asked for, and raises many types on a damaged one
        return None
