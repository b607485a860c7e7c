"""The segments of DICOM SEG objects by their names: what each object refers to, and one value per name in all cases."""

from __future__ import annotations

import warnings
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from droseg.data.dicom import tells_patient
from droseg.data.dicom_header import DicomFile, read_dataset
from droseg.data.grids import VolumeError, short

_TAGS: Final = [
    *("SOPInstanceUID", "SegmentationType", "SegmentSequence", "ReferencedSeriesSequence"),
    *("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"),
]
_EXPORT: Final = "export it again as a binary segmentation"
_RESERVED: Final = "mean"  # a column of the result tables


@dataclass(frozen=True)
class SegObject:
    """The header of a DICOM SEG object.

    Attributes:
        series: SeriesInstanceUIDs that it refers to.
        images: SOPInstanceUIDs that it refers to.
        segments: number -> name; several numbers may have one name, and are one structure then.
        notes: what a person should know about its segments.
    """

    path: Path
    instance: str
    series: frozenset[str]
    images: frozenset[str]
    segments: Mapping[int, str]
    notes: tuple[str, ...] = ()

    @property
    def numbers(self) -> dict[str, int]:
        """Name -> the first number that has it."""
        first: dict[str, int] = {}
        for number, name in sorted(self.segments.items()):
            first.setdefault(name, number)
        return first


def read_seg_header(file: DicomFile) -> SegObject:
    """Return what a SEG object says about itself.

    Raises:
        VolumeError: if it is none, is no segmentation by whole voxels, or names no segment.
    """
    dataset = read_dataset(file.path, _TAGS)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return _seg_object(file, dataset)
    except VolumeError:
        raise
    except Exception as error:  # pydicom raises many types on damaged values
        raise VolumeError(f"{file.path}: a SEG object that cannot be read ({short(error)})", _EXPORT) from error


def _seg_object(file: DicomFile, dataset: Any) -> SegObject:
    kind = str(dataset.get("SegmentationType") or "")
    if kind not in ("BINARY", "LABELMAP"):
        # A fraction would need a threshold, and occupancy is not probability.
        raise VolumeError(f"{file.path}: a SEG object of type {kind or 'unknown'}, not BINARY or LABELMAP", _EXPORT)
    names: dict[int, str] = {}
    notes = []
    for item in dataset.get("SegmentSequence") or ():
        number, name = int(item.SegmentNumber), " ".join(str(item.get("SegmentLabel") or "").split())
        if number == 0 and kind == "LABELMAP":  # its background
            continue
        if not name or name == _RESERVED or tells_patient(name, file.series.private):
            notes.append(f"segment {number} has no name that can be used; it is called 'segment_{number}'")
            name = f"segment_{number}"
        names[number] = name
    if not names:
        raise VolumeError(f"{file.path}: a SEG object without segments", _EXPORT)
    for name, count in Counter(names.values()).items():
        if count > 1:
            notes.append(f"{count} segments are called '{name}'; they are one structure")
    referenced = dataset.get("ReferencedSeriesSequence") or ()
    images = {str(item.ReferencedSOPInstanceUID) for one in referenced for item in one.get(_INSTANCES) or ()}
    return SegObject(
        path=file.path,
        instance=file.instance,
        series=frozenset(str(item.SeriesInstanceUID) for item in referenced),
        images=frozenset(images or _source_images(dataset)),
        segments=names,
        notes=tuple(notes),
    )


_INSTANCES: Final = "ReferencedInstanceSequence"


def _source_images(dataset: Any) -> set[str]:
    """Return the images that the frames say they were drawn on."""
    groups = [*(dataset.get("SharedFunctionalGroupsSequence") or ())]
    groups += dataset.get("PerFrameFunctionalGroupsSequence") or ()
    return {
        str(source.ReferencedSOPInstanceUID)
        for group in groups
        for derivation in group.get("DerivationImageSequence") or ()
        for source in derivation.get("SourceImageSequence") or ()
    }


def structure_values(
    cases: Sequence[Mapping[str, int]], known: Mapping[str, int] | None = None
) -> tuple[dict[str, int], list[str]]:
    """Return name -> label value, one for all cases, and a line per name whose value is not its number everywhere.

    A name keeps the value that earlier runs gave it, else its segment number in the case with the most segments that
    has it; where that number is another structure's already, it gets the first above all numbers.

    Args:
        cases: name -> segment number, of each case.
        known: name -> value of earlier runs.
    """
    values = dict(known or {})
    above = max([0, *values.values(), *(number for case in cases for number in case.values())])
    for case in sorted(cases, key=lambda case: (-len(case), sorted((number, name) for name, number in case.items()))):
        for name, number in sorted(case.items(), key=lambda item: item[1]):
            if name in values:
                continue
            if number in values.values():
                above += 1
                number = above
            values[name] = number
    return values, _conflicts(cases, values)


def _conflicts(cases: Sequence[Mapping[str, int]], values: Mapping[str, int]) -> list[str]:
    numbers: dict[str, Counter[int]] = defaultdict(Counter)
    for case in cases:
        for name, number in case.items():
            numbers[name][number] += 1
    lines = []
    for name, value in values.items():
        others = {number: count for number, count in sorted(numbers[name].items()) if number != value}
        if others:
            listed = " and ".join(f"{number} in {count} case{'s' * (count != 1)}" for number, count in others.items())
            lines.append(f"segment '{name}' has the number {listed}; its label value is {value} in all cases")
    by_spelling: dict[str, list[str]] = defaultdict(list)
    for name in values:
        by_spelling["".join(filter(str.isalnum, name.casefold()))].append(name)
    for alike in by_spelling.values():
        if len(alike) > 1:
            listed = " and ".join(f"'{name}'" for name in alike)
            lines.append(f"segments {listed} are spelled alike, but are structures of their own; rename them if not")
    return lines
