"""Datalists: the cases of a data set, their structures and their groups, in MONAI's Decathlon layout."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from droseg.data import form
from droseg.errors import DatalistError
from droseg.keys import CASE_ID, IMAGE, LABEL, PATIENT_ID, SECTIONS, TESTING

T = TypeVar("T")
PathLike = str | os.PathLike[str]

_SECTION_ALIASES = {"test": TESTING}  # Decathlon's dataset.json says `test` and lists bare file names there


@dataclass(frozen=True)
class Case:
    """One scan and its label.

    Attributes:
        images: one path (a file or a DICOM series folder) or one path per channel; absolute; None is a channel that
            the case lacks, never all of them.
        label: the reference volume; None where only an inference is wanted.
        groups: axis -> value, e.g. {"anatomy": "spina_bifida", "protocol": "site_a"}.
        fold: number of the cross-validation fold that holds the case out.
    """

    case_id: str
    patient_id: str
    images: tuple[Path | None, ...]
    label: Path | None
    groups: dict[str, str]
    fold: int | None = None

    @property
    def present_images(self) -> tuple[Path, ...]:
        """The images that there are, in the order of the channels."""
        return tuple(image for image in self.images if image is not None)

    def missing_channels(self, channels: Sequence[str]) -> list[str]:
        """Return the names of the channels that the case lacks."""
        return [name for name, image in zip(channels, self.images, strict=False) if image is None]


@dataclass(frozen=True)
class Datalist:
    """The cases of a data set by section.

    Attributes:
        structures: name -> its label values; several: a region.
        background: the label values that belong to no structure, 0 among them.
    """

    path: Path
    channels: tuple[str, ...]
    structures: dict[str, tuple[int, ...]]
    sections: dict[str, tuple[Case, ...]]
    background: tuple[int, ...] = (0,)

    @property
    def axes(self) -> tuple[str, ...]:
        """The group axes that occur in any case, sorted."""
        return tuple(sorted({axis for cases in self.sections.values() for case in cases for axis in case.groups}))

    def section(self, name: str) -> tuple[Case, ...]:
        """Return the cases of a section.

        Raises:
            DatalistError: if the section is not there or empty; the message names those that are.
        """
        cases = self.sections.get(name, ())
        if not cases:
            present = ", ".join(f"{key} ({len(value)})" for key, value in self.sections.items() if value) or "none"
            raise DatalistError(f"{self.path}: no section '{name}', or it is empty. Sections with cases: {present}.")
        return cases


@dataclass(frozen=True)
class EntryProblem:
    """One entry of a datalist that is not of the right form."""

    section: str
    case_id: str  # "training[3]" where the entry has no usable case_id
    message: str


def read_datalist(path: PathLike, data_root: PathLike | None = None) -> Datalist:
    """Return the datalist of a JSON file; only its form is checked, see `check_datalist` for the images.

    Args:
        path: JSON in MONAI's Decathlon layout; `modality` and `labels` are accepted for `channels` and `structures`.
        data_root: folder that relative paths start from, instead of the folder of the file.

    Raises:
        DatalistError: if the file cannot be read; the message lists every entry that is not of the right form.
    """
    datalist, problems = parse_datalist(path, data_root)
    if problems:
        lines = [f"  {problem.section}: {problem.case_id}: {problem.message}" for problem in problems[:20]]
        if len(problems) > len(lines):
            lines.append(f"  ... and {len(problems) - len(lines)} more; `droseg data check` lists all")
        count = "1 entry is" if len(problems) == 1 else f"{len(problems)} entries are"
        raise DatalistError(f"{datalist.path}: {count} not usable; correct the file:\n" + "\n".join(lines))
    return datalist


def parse_datalist(path: PathLike, data_root: PathLike | None = None) -> tuple[Datalist, list[EntryProblem]]:
    """Return the usable cases of a JSON file and the entries that are not of the right form.

    Raises:
        DatalistError: if the file as a whole cannot be used (not JSON, no sections, no channels, no structures).
    """
    path = _absolute(path)
    document = _load_json(path)
    root = path.parent if data_root is None else _absolute(data_root)
    if not root.is_dir():
        raise DatalistError(f"{root}: no such folder; it was given as the data root of {path}.")
    problems: list[EntryProblem] = []
    sections: dict[str, tuple[Case, ...]] = {}
    for key, entries in _section_entries(document, path).items():
        cases = []
        for index, entry in enumerate(entries):
            try:
                cases.append(_case(entry, root))
            except ValueError as error:
                problems.append(EntryProblem(key, _entry_name(entry, key, index), str(error)))
        sections[key] = tuple(cases)
    if not any(sections.values()) and not problems:
        raise DatalistError(f"{path}: no cases; add entries to at least one of {', '.join(SECTIONS)}.")
    labelled = any(case.label is not None for cases in sections.values() for case in cases)
    try:
        channels = form.read_channels(document)
        structures = form.read_structures(document, required=labelled)
        background = form.read_background(document)
    except ValueError as error:
        raise DatalistError(f"{path}: {error}") from error
    for key, section_cases in sections.items():
        for case in section_cases:
            if 1 < len(case.images) != len(channels):
                names = ", ".join(channels)
                message = f"{len(case.images)} image paths, but {len(channels)} channel(s) are declared ({names})"
                problems.append(EntryProblem(key, case.case_id, message))
    return Datalist(path, channels, structures, sections, background), problems


def write_datalist(datalist: Datalist, path: PathLike, data_root: PathLike | None = None) -> None:
    """Write a datalist as JSON; paths below `data_root` (default: below the folder of the file) become relative.

    Raises:
        DatalistError: if the file cannot be written.
    """
    path = _absolute(path)
    root = path.parent if data_root is None else _absolute(data_root)
    document: dict[str, Any] = {
        "channels": {str(index): name for index, name in enumerate(datalist.channels)},
    }
    if datalist.structures:  # a list of images to segment names none
        document["structures"] = {
            name: values[0] if len(values) == 1 else list(values) for name, values in datalist.structures.items()
        }
        if set(datalist.background) != {0}:
            document["structures"][form.BACKGROUND] = list(datalist.background)
    for section, cases in datalist.sections.items():
        document[section] = [_entry(case, root) for case in cases]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(_one_line_per_case(document), encoding="utf-8")
    except OSError as error:
        raise DatalistError(f"{path}: cannot be written ({error.strerror}); choose another place.") from error


def _absolute(path: PathLike) -> Path:
    """Return the path from the root of the file system, without "..", links not followed."""
    return Path(os.path.abspath(Path(path).expanduser()))


def _load_json(path: Path) -> dict[str, Any]:
    """Return the top-level object of a JSON file."""
    try:
        document = json.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError as error:
        raise DatalistError(f"{path}: no such file; give the path of a datalist (JSON).") from error
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}"
        raise DatalistError(f"{path}, {where}: not valid JSON ({error.msg}); correct that line.") from error
    except UnicodeDecodeError as error:
        raise DatalistError(f"{path}: not a text file; a datalist is JSON in UTF-8.") from error
    except OSError as error:
        raise DatalistError(f"{path}: cannot be read ({error.strerror}).") from error
    if not isinstance(document, dict):
        found = type(document).__name__
        raise DatalistError(
            f"{path}: the top level is a {found}; an object with `channels`, `structures` and sections is expected."
        )
    return document


def _section_entries(document: Mapping[str, Any], path: Path) -> dict[str, list[Any]]:
    """Return section -> entries: the three usual sections, and any other list of objects with an `image`."""
    result: dict[str, list[Any]] = {}
    for key, value in document.items():
        name = _SECTION_ALIASES.get(key, key)
        usual = name in SECTIONS
        if usual and not isinstance(value, list):
            raise DatalistError(f"{path}: `{key}` is a {type(value).__name__}; a list of entries is expected.")
        if usual or (isinstance(value, list) and value and all(isinstance(e, dict) and IMAGE in e for e in value)):
            result[name] = result.get(name, []) + value
    if not result:
        raise DatalistError(f"{path}: no section found; at least one of {', '.join(SECTIONS)} is needed.")
    return result


def _entry_name(entry: Any, section: str, index: int) -> str:
    """Return what to call an unusable entry in a message."""
    case_id = entry.get(CASE_ID) if isinstance(entry, dict) else None
    return case_id if isinstance(case_id, str) and case_id else f"{section}[{index}]"


def _case(entry: Any, root: Path) -> Case:
    """Return the case of one entry; a ValueError says all that is wrong with it."""
    if isinstance(entry, str):  # Decathlon's `test` section
        entry = {IMAGE: entry}
    if not isinstance(entry, dict):
        raise ValueError(f"is a {type(entry).__name__}; an object with case_id, image and label is expected")
    errors: list[str] = []
    images: tuple[Path | None, ...] = _collect(errors, lambda: form.read_images(entry.get(IMAGE), root), ())
    label = _collect(errors, lambda: form.read_label(entry.get(LABEL), root), None)
    case_id = _collect(errors, lambda: form.read_case_id(entry, images), "")
    patient_id = _collect(errors, lambda: form.read_text(entry.get(PATIENT_ID, case_id or "?"), PATIENT_ID), "")
    groups: dict[str, str] = _collect(errors, lambda: form.read_groups(entry.get("groups")), {})
    fold = _collect(errors, lambda: form.read_fold(entry.get("fold")), None)
    if errors:
        raise ValueError("; ".join(errors))
    return Case(case_id, patient_id, images, label, groups, fold)


def _collect(errors: list[str], read: Callable[[], T], default: T) -> T:
    """Return what `read` returns; its ValueError joins `errors`, so that one entry says all its problems."""
    try:
        return read()
    except ValueError as error:
        errors.append(str(error))
        return default


def _entry(case: Case, root: Path) -> dict[str, Any]:
    """Return the JSON object of a case."""
    images = [None if image is None else _relative(image, root) for image in case.images]
    entry: dict[str, Any] = {CASE_ID: case.case_id}
    if case.patient_id != case.case_id:
        entry[PATIENT_ID] = case.patient_id
    entry[IMAGE] = images[0] if len(images) == 1 else images
    if case.label is not None:
        entry[LABEL] = _relative(case.label, root)
    if case.groups:
        entry["groups"] = dict(case.groups)
    if case.fold is not None:
        entry["fold"] = case.fold
    return entry


def _relative(path: Path, root: Path) -> str:
    path = _absolute(path)
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else str(path)


def _one_line_per_case(document: Mapping[str, Any]) -> str:
    """Return JSON with one line per case, so that a difference between two datalists can be read."""
    parts = []
    for key, value in document.items():
        if isinstance(value, list):
            lines = ",\n".join("    " + json.dumps(entry, ensure_ascii=False) for entry in value)
            parts.append(f"  {json.dumps(key)}: [\n{lines}\n  ]" if value else f"  {json.dumps(key)}: []")
        else:
            parts.append(f"  {json.dumps(key)}: {json.dumps(value, ensure_ascii=False)}")
    return "{\n" + ",\n".join(parts) + "\n}\n"
