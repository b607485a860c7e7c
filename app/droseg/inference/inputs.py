"""What was given to segment: files, folders, DICOM studies and datalists -> cases with names that do not collide."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from droseg.data.channels import MissingChannels
from droseg.data.datalist import EntryProblem, parse_datalist
from droseg.data.dicom import DicomSeries
from droseg.data.dicom_header import is_dicom_file
from droseg.data.dicom_stack import folder_series
from droseg.data.volumes import NIFTI_SUFFIXES, VOLUME_SUFFIXES, ImageSource, VolumeError
from droseg.data.walk import Skip, walk_folder
from droseg.errors import InputError
from droseg.inference.channels import channel_sets
from droseg.inference.names import Nameable, case_names, repeated
from droseg.inference.studies import choose_series, compile_patterns, scan_dicom
from droseg.keys import CASE_ID, IMAGE

RESULT_SUFFIX = "_seg.nii.gz"


@dataclass(frozen=True)
class InputCase:
    """One image to segment.

    Attributes:
        case_id: unique, and the stem of the result's file name.
        images: one source that holds all channels, or one per channel in the bundle's order; None where one is missing.
    """

    case_id: str
    images: tuple[ImageSource | None, ...]


@dataclass(frozen=True)
class SkippedInput:
    """Something among the inputs that is no candidate, such as a localizer; it changes no exit code."""

    name: str
    path: Path
    reason: str


@dataclass(frozen=True)
class FoundInputs:
    """What was found among the inputs."""

    cases: tuple[InputCase, ...]
    skipped: tuple[SkippedInput, ...] = ()


@dataclass
class _Given:
    """What the arguments stand for, before it is put together to cases."""

    images: list[Path] = field(default_factory=list)
    dicom: list[Path] = field(default_factory=list)
    named_dicom: list[Path] = field(default_factory=list)
    listed: list[InputCase] = field(default_factory=list)
    empty: list[Path] = field(default_factory=list)
    skips: list[Skip] = field(default_factory=list)


def image_files(folder: str | Path) -> list[Path]:
    """Return the NIfTI files directly in a folder, sorted by name; hidden files are left out."""
    files = (path for path in Path(folder).iterdir() if not path.name.startswith("."))
    return sorted(path for path in files if path.name.lower().endswith(NIFTI_SUFFIXES) and path.is_file())


def image_items(
    folder: str | Path, num_channels: int = 1, missing_channels: MissingChannels = "error"
) -> list[dict[str, Any]]:
    """Return one item per case of a folder, as a MONAI dataset takes them: its `image` and its name as `case_id`.

    Args:
        folder: of images.
        num_channels: of a case; if there are several, `CASE_0000.nii.gz`, `CASE_0001.nii.gz`, ... make one item with a
            list of paths.
        missing_channels: "zero": None stands in the list for a file that is not there.

    Raises:
        InputError: if there is no such folder or no NIfTI file in it.
    """
    files = image_files(folder) if Path(folder).is_dir() else []
    if not files:
        found = "no .nii or .nii.gz file in it" if Path(folder).is_dir() else "no such folder"
        raise InputError(f"dataset_dir {folder}: {found}; give a folder of NIfTI images.")
    several = num_channels > 1
    cases = channel_sets(files, num_channels, missing_channels) if several else [Nameable.of_path(p) for p in files]
    items = []
    for case, name in zip(cases, case_names(cases), strict=True):
        paths = [None if source is None else str(source) for source in case.sources]
        items.append({IMAGE: paths if len(paths) > 1 else paths[0], CASE_ID: name})
    return items


def find_inputs(
    inputs: Sequence[str | Path],
    out: str | Path,
    *,
    num_channels: int = 1,
    section: str | None = None,
    data_root: str | Path | None = None,
    series_description: Sequence[str] = (),
    missing_channels: MissingChannels = "error",
) -> FoundInputs:
    """Return one case per image among files, folders and datalists, and what among them is no candidate.

    A folder gives the NIfTI, NRRD and MetaImage files and the MR series in it and in its subfolders, a DICOMDIR those
    of the folder that it lies in, one file of a DICOM series its whole series, a JSON file the cases of its `section`.
    `CASE_0000.nii.gz`, `CASE_0001.nii.gz`, ... are the channels of one case. What was named but is no image or does
    not exist is a case that will fail, with the reason; so is an incomplete set of channels.

    Args:
        inputs: files and folders.
        out: the output folder; results in it are never taken for input.
        num_channels: what the network takes.
        section: of the datalists among the inputs.
        data_root: folder that the relative paths of datalists start from.
        series_description: regular expressions, one per channel, that choose DICOM series by their description.
        missing_channels: "zero" takes an incomplete set of numbered files for a case that lacks channels.

    Raises:
        InputError: if there is no image at all, if a datalist comes without a section, or if a regular expression
            cannot be used.
        DatalistError: if a datalist cannot be read.
    """
    patterns = compile_patterns(series_description, num_channels)
    given = _Given()
    out = Path(out).expanduser().absolute()
    for path in (Path(item).expanduser().absolute() for item in inputs):
        _add(given, path, out, section, data_root)
    series, damaged = scan_dicom(given.dicom, given.named_dicom)
    chosen, failing, skips = choose_series(series, patterns, num_channels)
    skipped = [SkippedInput(*skip) for skip in dict.fromkeys([*given.skips, *skips])]

    images = list(dict.fromkeys(given.images))  # the same file twice is one case
    if not given.listed and not any((chosen, failing, damaged)) and not any(path.exists() for path in images):
        raise InputError(_nothing(inputs, images, given, skipped))
    entries = channel_sets(images, num_channels, missing_channels)
    entries += [Nameable.of_path(path) for path in given.empty]
    entries += [Nameable.of_series(item, series) for item in [*chosen, *((item,) for item in failing + damaged)]]
    cases = list(given.listed)
    names = case_names(entries)
    cases += [InputCase(name, entry.sources) for name, entry in zip(names, entries, strict=True)]
    _refuse_equal_names(cases)
    return FoundInputs(tuple(cases), tuple(skipped))


def _add(given: _Given, path: Path, out: Path, section: str | None, data_root: str | Path | None) -> None:
    """Sort one argument into what it stands for."""
    if path.name.upper() == "DICOMDIR" and path.is_file():
        path = path.parent  # its files lie below it, and are looked at themselves
    if path.is_dir():
        images, dicom, skips = walk_folder(path, out, RESULT_SUFFIX)
        given.images.extend(images)
        given.dicom.extend(dicom)
        given.skips.extend(skips)
        given.empty.extend([] if images or dicom else [path])
    elif path.name.lower().endswith(".json") and path.is_file():
        given.listed.extend(_section_cases(path, section, data_root))
    elif not path.name.lower().endswith(VOLUME_SUFFIXES) and _is_dicom(path):
        given.named_dicom.append(path)
    else:
        given.images.append(path)


def _is_dicom(path: Path) -> bool:
    try:
        return path.is_file() and is_dicom_file(path)
    except OSError:
        return False  # reading it will say why


def _listed_source(path: Path | None) -> ImageSource | None:
    """Return the DICOM series of a datalist's folder; reading the folder says what is wrong with any other."""
    if path is None or not path.is_dir():
        return path
    try:
        fit: list[DicomSeries] = [item for item in folder_series(path) if not item.unfit]
    except (VolumeError, OSError):
        return path
    return fit[0] if len(fit) == 1 else path


def _section_cases(path: Path, section: str | None, data_root: str | Path | None) -> list[InputCase]:
    """Return the cases of a section; an entry that cannot be used is a case that will fail, with the reason."""
    datalist, problems = parse_datalist(path, data_root)
    if section is None:
        sections = ", ".join(f"{name} ({len(cases)} cases)" for name, cases in datalist.sections.items())
        raise InputError(f"{path}: a datalist needs --section; it has {sections}.")
    unusable = {problem.case_id: problem for problem in problems if problem.section == section}
    usable = [case for case in datalist.sections.get(section, ()) if case.case_id not in unusable]
    if not usable and not unusable:
        datalist.section(section)  # says which sections there are
    cases = [InputCase(case.case_id, tuple(map(_listed_source, case.images))) for case in usable]
    return cases + [_unusable_entry(path, problem) for problem in unusable.values()]


def _unusable_entry(path: Path, problem: EntryProblem) -> InputCase:
    found = f"{problem.section}: {problem.case_id}: {problem.message}"
    name = re.sub(r"[^\w.-]+", "_", problem.case_id).strip("._") or "entry"
    return InputCase(name, (DicomSeries(folder=path, uid="", problem=(found, "correct that entry")),))


def _nothing(
    inputs: Sequence[str | Path], images: Sequence[Path], given: _Given, skipped: Sequence[SkippedInput]
) -> str:
    """Return what to say where there is nothing to segment."""
    found = [f"{path} (no such file)" for path in images]
    found += [f"{path} (no image in it)" for path in given.empty]
    found = found or [str(path) for path in inputs]
    reasons = Counter(item.reason for item in skipped)
    counted = ", ".join(f"{count} x {reason}" for reason, count in reasons.most_common(5))
    beside = f"; found and skipped: {counted}" if counted else ""
    return (
        f"no image to segment: {', '.join(found[:5])}{beside}; give NIfTI (.nii, .nii.gz), NRRD or MetaImage files, "
        "DICOM series of MR, or folders of them."
    )


def _refuse_equal_names(cases: Sequence[InputCase]) -> None:
    alike = repeated(case.case_id for case in cases)
    if alike:
        listed = [f"{case.case_id} ({next(filter(None, case.images))})" for case in cases if case.case_id in alike]
        raise InputError(
            f"several cases would be written to one file: {', '.join(listed[:6])}; rename them, or predict them apart."
        )
