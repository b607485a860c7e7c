"""How a scan was made, as the JSON file beside it or its DICOM header says; nothing about who was scanned."""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from droseg.data.dicom import tells_patient
from droseg.data.dicom_header import read_dicom_header
from droseg.data.form import strip_suffix

Tags = dict[str, float | str]

SIDECAR_TAGS: Final = (
    *("Manufacturer", "ManufacturersModelName", "SoftwareVersions", "MagneticFieldStrength", "ReceiveCoilName"),
    *("PulseSequenceType", "ScanningSequence", "SequenceVariant", "SequenceName", "MRAcquisitionType", "ProtocolName"),
    *("EchoTime", "RepetitionTime", "InversionTime", "FlipAngle", "EchoTrainLength", "PixelBandwidth"),
    *("SliceThickness", "SpacingBetweenSlices", "ParallelReductionFactorInPlane", "PartialFourier"),
)
"""The fields of a BIDS sidecar that are read."""

# Without those of BIDS' fields that DICOM's basic confidentiality profile (PS3.15, table E.1-1) removes, as the
# protocol's name, into which people type anything, and without those that mean something else in DICOM.
_TEXTS: Final = {
    "Manufacturer": "Manufacturer",
    "ManufacturerModelName": "ManufacturersModelName",
    "SoftwareVersions": "SoftwareVersions",
    "ReceiveCoilName": "ReceiveCoilName",
    "ScanningSequence": "ScanningSequence",
    "SequenceVariant": "SequenceVariant",
    "SequenceName": "SequenceName",
    "MRAcquisitionType": "MRAcquisitionType",
}
_NUMBERS: Final = {
    "MagneticFieldStrength": ("MagneticFieldStrength", 1.0),
    "SliceThickness": ("SliceThickness", 1.0),
    "SpacingBetweenSlices": ("SpacingBetweenSlices", 1.0),
    # BIDS has seconds, DICOM milliseconds.
    "RepetitionTime": ("RepetitionTime", 1000.0),
    "EchoTime": ("EchoTime", 1000.0),
    "InversionTime": ("InversionTime", 1000.0),
    "FlipAngle": ("FlipAngle", 1.0),
    "EchoTrainLength": ("EchoTrainLength", 1.0),
    "PixelBandwidth": ("PixelBandwidth", 1.0),
    "ParallelReductionFactorInPlane": ("ParallelReductionFactorInPlane", 1.0),
}
"""DICOM keyword -> name in BIDS, and how many of DICOM's units are one of BIDS'."""

# Where an enhanced multi-frame object keeps them (DICOM PS3.3 C.8.13.5).
_FRAME_GROUPS: Final = {
    "SliceThickness": ("PixelMeasuresSequence", "SliceThickness"),
    "SpacingBetweenSlices": ("PixelMeasuresSequence", "SpacingBetweenSlices"),
    "RepetitionTime": ("MRTimingAndRelatedParametersSequence", "RepetitionTime"),
    "FlipAngle": ("MRTimingAndRelatedParametersSequence", "FlipAngle"),
    "EchoTrainLength": ("MRTimingAndRelatedParametersSequence", "EchoTrainLength"),
    "EchoTime": ("MREchoSequence", "EffectiveEchoTime"),
    "InversionTime": ("MRModifierSequence", "InversionTimes"),
    "ParallelReductionFactorInPlane": ("MRModifierSequence", "ParallelReductionFactorInPlane"),
    "PixelBandwidth": ("MRImagingModifierSequence", "PixelBandwidth"),
}
_RENAMED: Final = {"SequenceName": "PulseSequenceName"}  # in an enhanced object

TAG_KEYWORDS: Final = (
    *_TEXTS,
    *_NUMBERS,
    *_RENAMED.values(),
    *("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"),
)
"""All that is read of a header for the tags."""

DICOM_TAGS: Final = (*_TEXTS, *_NUMBERS)
"""The elements of a DICOM header that leave it, by keyword."""
TAG_NAMES: Final = (*_TEXTS.values(), *(name for name, _ in _NUMBERS.values()))
"""What BIDS calls them."""


def scanner_tags(image: Path) -> Tags:
    """Return the scanner tags of an image, by their names and in the units of BIDS; empty where none are known.

    They come from the header of the first file of a DICOM series folder, if pydicom is installed (extra `dicom`), and
    for any other image from the JSON file of the same name.
    """
    if image.is_dir():
        return _of_series(image)
    return sidecar_tags(image.with_name(strip_suffix(image.name) + ".json"))


def sidecar_tags(path: Path) -> Tags:
    """Return the scanner tags of a JSON file; empty if it is not there or no such file."""
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
            header = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=list(TAG_KEYWORDS))
            private = read_dicom_header(path).series.private
        except Exception:  # other files may lie beside the slices, and a damaged one raises many types
            continue
        return fixed_tags(header, private)
    return {}


def fixed_tags(header: Any, private: frozenset[str]) -> Tags:
    """Return the tags of the fixed list, by their names and in the units of BIDS (times in seconds).

    Args:
        header: a pydicom data set.
        private: words of the patient's tags; a text with one of them is left out.
    """
    found: Tags = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # values that break a rule of DICOM, in most files of most scanners
        for keyword, name in _TEXTS.items():
            text = _text(_element(header, keyword) or _element(header, _RENAMED.get(keyword, keyword)))
            if text and not tells_patient(text, private):
                found[name] = text
        for keyword, (name, per_unit) in _NUMBERS.items():
            number = _number(_element(header, keyword))
            if number is None and keyword in _FRAME_GROUPS:
                number = _number(_of_frame(header, *_FRAME_GROUPS[keyword]))
            if number is not None:
                found[name] = number / per_unit
    return found


def _text(value: Any) -> str:
    """Return a text on one line; several values in one, as in a sidecar of dcm2niix: SE_IR."""
    text = value if isinstance(value, str) else "_".join(map(str, value or ()))
    return " ".join("".join(character if character.isprintable() else " " for character in text).split())


def _number(value: Any) -> float | None:
    try:
        number = float(value)
    except (TypeError, ValueError):  # absent, empty, or several values
        return None
    return number if math.isfinite(number) else None


def _element(header: Any, keyword: str) -> Any:
    """Return the value of an element; None if it is not there or breaks the rules of its type."""
    try:
        return header.get(keyword)
    except Exception:  # pydicom reads a value when it is asked for, and raises many types on a damaged one
        return None


def _of_frame(header: Any, sequence: str, keyword: str) -> Any:
    """Return a value of the first frame, or of what all frames share."""
    for groups in ("PerFrameFunctionalGroupsSequence", "SharedFunctionalGroupsSequence"):
        items = _element(header, groups)
        found = _element(items[0], sequence) if items else None
        if found:
            return _element(found[0], keyword)
    return None
