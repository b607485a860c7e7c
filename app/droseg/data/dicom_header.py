"""The headers of DICOM files: what each says about its slices, or why it is no slice of an MR volume."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from droseg.data.dicom import DicomSeries, DicomSlice, squeezed, tells_patient
from droseg.data.grids import VolumeError, short

_SUFFIXES: Final = (".dcm", ".ima", ".dic", ".dicom")
_MEDIA_DIRECTORY: Final = "1.2.840.10008.1.3.10"
_SECONDARY_CAPTURE: Final = "1.2.840.10008.5.1.4.1.1.7"
_MR_IMAGES: Final = tuple(f"1.2.840.10008.5.1.4.1.1.4{kind}" for kind in ("", ".1", ".3", ".4"))
_DEFLATED: Final = b"1.2.840.10008.1.2.1.99"
_MAX_DEFLATED: Final = 1 << 22  # bytes; pydicom inflates such a file as a whole, to a thousand times its size at worst
_AGAIN: Final = "copy or export the series again"
_NO_VOLUMES: Final = {
    "LOCALIZER": "a localizer",
    "SCOUT": "a localizer",
    "PROJECTION IMAGE": "a projection, not slices",
    "MIP": "a projection, not slices",
    "MOSAIC": "a mosaic of slices in one image",
}
SPLIT_TAGS: Final = (
    "EchoTime",
    "DiffusionBValue",
    "TemporalPositionIdentifier",
    "ImageType",
    "InversionTime",
    "TriggerTime",
    "StackID",
    "AcquisitionNumber",
)
"""What may tell apart the images at one place; the first that does splits a series."""
_PATIENT_TAGS: Final = ("PatientName", "PatientID", "PatientBirthDate", "OtherPatientIDs", "AccessionNumber")
_DATE_TAGS: Final = ("StudyDate", "SeriesDate", "AcquisitionDate", "ContentDate")
_TAGS: Final = [
    *("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID", "SeriesNumber", "SeriesDescription"),
    *("ProtocolName", "Modality", "Rows", "Columns", "SamplesPerPixel", "NumberOfFrames", "PixelSpacing"),
    *("ImagePositionPatient", "ImageOrientationPatient", "RescaleSlope", "RescaleIntercept"),
    *("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"),
    *(*SPLIT_TAGS, *_PATIENT_TAGS, *_DATE_TAGS),
]
# Where an enhanced multi-frame object keeps what a classic one has at its top level (DICOM PS3.3 C.7.6.16, C.8.13).
_FRAME_GROUPS: Final = {
    "ImagePositionPatient": ("PlanePositionSequence", "ImagePositionPatient"),
    "ImageOrientationPatient": ("PlaneOrientationSequence", "ImageOrientationPatient"),
    "PixelSpacing": ("PixelMeasuresSequence", "PixelSpacing"),
    "RescaleSlope": ("PixelValueTransformationSequence", "RescaleSlope"),
    "RescaleIntercept": ("PixelValueTransformationSequence", "RescaleIntercept"),
    "EchoTime": ("MREchoSequence", "EffectiveEchoTime"),
    "DiffusionBValue": ("MRDiffusionSequence", "DiffusionBValue"),
    "TemporalPositionIdentifier": ("FrameContentSequence", "TemporalPositionIndex"),
    "ImageType": ("MRImageFrameTypeSequence", "FrameType"),
    "StackID": ("FrameContentSequence", "StackID"),
}


@dataclass(frozen=True)
class Frame:
    """The header of one slice; what is missing or cannot be is None."""

    slice: DicomSlice
    position: tuple[float, ...] | None
    orientation: tuple[float, ...] | None
    spacing: tuple[float, ...] | None
    split: dict[str, str]


@dataclass(frozen=True)
class DicomFile:
    """The header of one file."""

    path: Path
    instance: str
    series: DicomSeries
    frames: tuple[Frame, ...]
    rows: int
    columns: int
    unfit: str


def dicom_files(paths: Iterable[Path]) -> list[Path]:
    """Return which files of one folder are DICOM, those included that only seem to have been before they were damaged.

    These are files whose suffix says DICOM, files without suffix that may not be opened, and empty ones beside others:
    were they left out, a slice might be missing without a word.
    """
    paths = list(paths)
    found = set()
    for path in paths:
        try:
            is_dicom = is_dicom_file(path)
        except OSError:
            is_dicom = _may_be_dicom(path)
        found |= {path} if is_dicom else set()
    if found:
        found |= {path for path in paths if _may_be_dicom(path) and path.stat().st_size == 0}
    return sorted(found)


def is_dicom_file(path: Path) -> bool:
    """Return whether a file starts as DICOM (128 bytes and "DICM", or the elements of an older file) or is called so.

    Raises:
        OSError: if the file cannot be read.
    """
    with path.open("rb") as file:
        start = file.read(132)
    if start[128:] == b"DICM" or path.suffix.lower() in _SUFFIXES:
        return True
    # Group 2 or 8, little endian, an element number up to 0x18, then the type "UL", "UI" or "CS", or a length.
    return _may_be_dicom(path) and bool(re.match(rb"[\x02\x08]\x00[\x00-\x18]\x00(UL|UI|CS|..\x00\x00)", start, re.S))


def _may_be_dicom(path: Path) -> bool:
    suffix = path.suffix.lower()
    return not suffix or suffix in _SUFFIXES or suffix[1:].isdigit()  # many are called by their UID


def read_dicom_header(path: Path) -> DicomFile:
    """Return what one file says about itself.

    Raises:
        VolumeError: if pydicom is missing, or the header cannot be read.
    """
    dataset = read_dataset(path, _TAGS)
    try:
        return _header(path, dataset)
    except Exception as error:  # pydicom converts values when they are asked for, and raises many types
        raise _damaged(path, error) from error


def read_dataset(path: Path, tags: list[str] | None = None) -> Any:
    """Return a file's data set: all of it, or some tags.

    Raises:
        VolumeError: if pydicom is missing, or the file is damaged.
    """
    try:
        import pydicom
    except ImportError as error:
        remedy = "pip install 'droseg[dicom]', or convert it to NIfTI"
        raise VolumeError(f"{path}: reading DICOM needs pydicom, which is not installed", remedy) from error
    try:
        size = path.stat().st_size
        if not size:
            raise VolumeError(f"{path}: an empty file (0 bytes), so a slice may be missing", _AGAIN)
        with path.open("rb") as file:
            if size > _MAX_DEFLATED and _DEFLATED in file.read(1024):
                raise VolumeError(f"{path}: a deflated DICOM file of {size} bytes", "export it without compression")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # values that break a rule of DICOM, in most files of most scanners
            return pydicom.dcmread(path, force=True, stop_before_pixels=tags is not None, specific_tags=tags)
    except VolumeError:
        raise
    except Exception as error:
        raise _damaged(path, error) from error


def _damaged(path: Path, error: Exception) -> VolumeError:
    if isinstance(error, PermissionError):
        return VolumeError(f"{path}: no permission to read it", "change its permissions")
    return VolumeError(
        f"{path}: a DICOM file that cannot be read ({short(error)}), so a slice may be missing",
        _AGAIN,
    )


def _header(path: Path, dataset: Any) -> DicomFile:
    def text(tag: str) -> str:
        value = dataset.get(tag)
        shown = (character if character.isprintable() else " " for character in str(value))
        return "" if value is None else " ".join("".join(shown).split())

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        private = frozenset(_private_words(dataset))
        descriptions = [text(tag) for tag in ("SeriesDescription", "ProtocolName")]
        number = text("SeriesNumber")
        series = DicomSeries(
            folder=path.parent,
            uid=text("SeriesInstanceUID"),
            study_uid=text("StudyInstanceUID"),
            modality=text("Modality").upper(),
            number=int(number) if re.fullmatch(r"-?\d{1,9}", number) else None,
            description=next((name for name in descriptions if name and not tells_patient(name, private)), "")[:64],
            private=private,
        )
        rows, columns = (_count(dataset.get(tag)) for tag in ("Rows", "Columns"))
        frames = tuple(_frames(path, dataset))
        unfit = _unfit(dataset, text, rows * columns)
    return DicomFile(path, text("SOPInstanceUID"), series, frames, rows, columns, unfit)


def _unfit(dataset: Any, text: Any, pixels: int) -> str:
    """Return why a file is no slice of an MR volume; empty if it is one."""
    file_class = str(getattr(dataset, "file_meta", {}).get("MediaStorageSOPClassUID", ""))
    if _MEDIA_DIRECTORY in (file_class, text("SOPClassUID")):
        return "DICOMDIR, an index; the files that it lists are looked at themselves"
    modality = text("Modality").upper()
    if modality not in ("", "MR"):
        return f"modality {modality[:16]}, not MR"
    if text("SOPClassUID").startswith(_SECONDARY_CAPTURE):
        return "a secondary capture, such as a screenshot"
    file_kind = text("SOPClassUID")
    if not pixels and (not file_kind or file_kind in _MR_IMAGES):
        raise ValueError("no Rows and Columns")  # its end is missing; were it skipped, its slice would be, too
    if not pixels:
        return "no image in it"
    if _count(dataset.get("SamplesPerPixel", 1)) != 1:
        return "a color image"
    kinds = dataset.get("ImageType") or ()
    kinds = [str(kind).upper() for kind in ([kinds] if isinstance(kinds, str) else kinds)]
    return next((reason for kind, reason in _NO_VOLUMES.items() if kind in kinds), "")


def _frames(path: Path, dataset: Any) -> Iterator[Frame]:
    """Yield the slices of a file."""
    per_frame = dataset.get("PerFrameFunctionalGroupsSequence") or ()
    if not per_frame:
        several = _count(dataset.get("NumberOfFrames") or 1) > 1
        yield _frame(path, 0 if several else None, dataset.get)
        return
    shared = (dataset.get("SharedFunctionalGroupsSequence") or [{}])[0]
    if len(per_frame) != _count(dataset.get("NumberOfFrames")):
        raise ValueError(f"NumberOfFrames is not that of its {len(per_frame)} frames")
    for index, groups in enumerate(per_frame):

        def value(tag: str, groups: Any = groups) -> Any:
            if tag not in _FRAME_GROUPS:
                return None
            sequence, item = _FRAME_GROUPS[tag]
            found = groups.get(sequence) or shared.get(sequence)
            return found[0].get(item) if found else None

        yield _frame(path, index, value)


def _frame(path: Path, index: int | None, value: Any) -> Frame:
    slope, intercept = _numbers(value("RescaleSlope"), 1), _numbers(value("RescaleIntercept"), 1)
    scaled = slope is not None and slope[0] != 0
    split = {tag: str(value(tag)) for tag in SPLIT_TAGS if value(tag) not in (None, "")}
    return Frame(
        slice=DicomSlice(
            path,
            index,
            slope[0] if slope and scaled else 1.0,
            intercept[0] if intercept and scaled else 0.0,
        ),
        position=_numbers(value("ImagePositionPatient"), 3),
        orientation=_numbers(value("ImageOrientationPatient"), 6),
        spacing=_numbers(value("PixelSpacing"), 2),
        split=split,
    )


def _count(value: Any) -> int:
    return int(value) if value is not None and str(value).strip() != "" else 0


def _numbers(value: Any, count: int) -> tuple[float, ...] | None:
    """Return so many finite numbers; None if there are none, or others."""
    if value is None or isinstance(value, str | bytes):
        return None
    values = [float(item) for item in (value if count > 1 else [value])]
    return tuple(values) if len(values) == count and bool(np.isfinite(values).all()) else None


def _private_words(dataset: Any) -> Iterator[str]:
    for tag in (*_PATIENT_TAGS, *_DATE_TAGS):
        value = str(dataset.get(tag) or "")
        yield from (squeezed(word) for word in [value, *re.split(r"[\^=,\s_]+", value)])
