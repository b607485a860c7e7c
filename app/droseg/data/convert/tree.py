"""What DICOM trees hold: the series to convert, the SEG objects that refer to them, and what is neither."""

from __future__ import annotations

import hashlib
import importlib.util
import warnings
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from droseg.data.convert.segments import SegObject, read_seg_header
from droseg.data.dicom import DicomSeries, squeezed
from droseg.data.dicom_header import read_dataset
from droseg.data.dicom_stack import group_series
from droseg.data.dicom_tree import read_headers
from droseg.data.grids import VolumeError
from droseg.data.scanner import TAG_KEYWORDS, Tags, fixed_tags
from droseg.data.walk import Skip, walk_folder
from droseg.errors import InputError

_IDENTITY: Final = (
    *("PatientID", "IssuerOfPatientID", "PatientName", "PatientBirthDate"),
    *("StudyInstanceUID", "StudyDate", "StudyTime"),
)


@dataclass(frozen=True)
class Scan:
    """One volume to convert.

    Attributes:
        patient: what tells patients apart; identifies a person, so it stays in memory.
        patient_id: PatientID as it stands in the header; empty if it has none.
        birth: name and birth date, to see whether two people share one PatientID.
        study: what tells studies of a patient apart.
        when: date and time of the study, for the order of sessions.
        tags: how it was scanned, see `fixed_tags`.
        key: fingerprint of the series, the same when a slice is added to it.
        source: fingerprint of the images that it consists of.
    """

    series: DicomSeries
    patient: str
    patient_id: str
    birth: tuple[str, str]
    study: str
    when: str
    tags: Tags = field(hash=False)
    key: str = ""
    source: str = ""


@dataclass(frozen=True)
class Tree:
    """What was found.

    Attributes:
        instances: SOPInstanceUID of each file.
        failures: where something is that should be converted and cannot be, and why.
    """

    scans: tuple[Scan, ...]
    segs: tuple[SegObject, ...]
    skips: tuple[Skip, ...]
    failures: tuple[tuple[str, str], ...]
    instances: Mapping[Path, str]


def read_trees(folders: Sequence[Path], out: Path, progress: bool = False) -> Tree:
    """Return what is in some folders and their subfolders, whatever the files are called.

    Args:
        folders: DICOM trees.
        out: a folder to leave out.
        progress: show a progress bar on stderr once it has taken two seconds.
    Raises:
        InputError: if pydicom is missing, a folder does not exist, or none has a DICOM file.
    """
    if importlib.util.find_spec("pydicom") is None:
        raise InputError("reading DICOM needs pydicom, which is not installed; pip install 'droseg[dicom-seg]'.")
    failures: list[tuple[str, str]] = []
    files: list[Path] = []
    for folder in folders:
        if not folder.is_dir():
            raise InputError(f"{folder}: no such folder; give the folder of a DICOM export.")
        images, dicom, _ = walk_folder(folder, out, ".nii.gz")
        files += dicom
        failures += [(str(path), why) for path in images if (why := _unreachable(path))]
    if not files and not failures:
        raise InputError(f"{', '.join(map(str, folders))}: no DICOM files; give the folder of a DICOM export.")
    headers, damaged = read_headers(files, progress)
    series = group_series(item for item in headers.values() if item.series.modality != "SEG")
    lost = {item.folder: item.problem for item in damaged}
    alone = _alone_in_folder(series)
    failures += [(str(item), _sentence(item.problem)) for item in damaged if item.folder not in alone]
    instances = {path: item.instance for path, item in headers.items()}
    scans, skips = [], []
    for item in series:
        problems = [lost[folder] for folder in {path.parent for path in item.files} & alone & set(lost)]
        if item.unfit:
            skips.append(Skip(item.label or item.folder.name, item.folder, item.unfit))
        elif item.problem or problems:
            failures.append((str(item), _sentence(next(iter(problems), item.problem))))
        else:
            scans.append(_scan(item, instances))
    segs, bad = _seg_objects(item for item in headers.values() if item.series.modality == "SEG")
    return Tree(tuple(scans), tuple(segs), tuple(skips), (*failures, *bad), instances)


def _unreachable(path: Path) -> str:
    """Return why there may be DICOM files behind a path that nobody can read; empty for an image file."""
    if path.is_dir():
        return "the folder cannot be listed; change its permissions"
    if path.is_symlink() and not path.exists():
        return f"a link to {path.readlink()}, which does not exist here; correct it"
    return ""


def _sentence(problem: tuple[str, str] | None) -> str:
    return "; ".join(problem or ())


def _alone_in_folder(series: Sequence[DicomSeries]) -> set[Path]:
    """Return the folders that hold one series only, and one to convert: a damaged file there was one of its slices."""
    beside: dict[Path, set[str]] = defaultdict(set)
    for item in series:
        for path in item.files:
            beside[path.parent] |= {item.uid, ""} if item.unfit else {item.uid}
    return {folder for folder, uids in beside.items() if len(uids) == 1}


def _scan(series: DicomSeries, instances: Mapping[Path, str]) -> Scan:
    header = read_dataset(series.files[0], [*_IDENTITY, *TAG_KEYWORDS])

    def text(tag: str) -> str:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                return " ".join(str(header.get(tag) or "").split())
            except Exception:  # pydicom converts values when they are asked for, and raises many types
                return ""

    name, identity = text("PatientName"), text("PatientID")
    study = series.study_uid or str(series.folder)
    if identity:
        patient = f"{identity}|{text('IssuerOfPatientID')}"
    else:
        patient = f"|name {squeezed(name)}" if squeezed(name) else f"|study {study}"
    key = _digest(series.study_uid, series.uid or str(series.folder), series.part)
    return Scan(
        series=series,
        patient=patient,
        patient_id=identity,
        birth=(squeezed(name), text("PatientBirthDate")),
        study=study,
        when=text("StudyDate") + text("StudyTime"),
        tags=fixed_tags(header, series.private),
        key=key,
        source=_digest(key, *sorted(instances[path] or path.name for path in series.files)),
    )


def _digest(*parts: str) -> str:
    # Of UIDs with 30 and more digits, so nobody finds them by trial; whoever has the UIDs has the patients anyway.
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


def _seg_objects(files: Any) -> tuple[list[SegObject], list[tuple[str, str]]]:
    """Return the SEG objects, each once, and those that cannot be read with the reason."""
    found: dict[str, SegObject] = {}
    bad: list[tuple[str, str]] = []
    for item in sorted(files, key=lambda item: item.path):
        try:
            found.setdefault(item.instance or str(item.path), read_seg_header(item))
        except VolumeError as error:
            bad.append((str(item.path), f"{error.found.removeprefix(f'{item.path}: ')}; {error.remedy}"))
    return list(found.values()), bad
