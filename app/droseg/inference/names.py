"""Names of cases: as short as can be, without collisions, and without what DICOM says about the patient."""

from __future__ import annotations

import hashlib
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeVar

from droseg.data.dicom import DicomSeries, common_folder, tells_patient
from droseg.data.form import strip_suffix
from droseg.data.volumes import VOLUME_SUFFIXES, ImageSource

_MAX_PART: Final = 48  # characters

T = TypeVar("T")


@dataclass(frozen=True)
class Nameable:
    """A case that needs a name.

    Attributes:
        stem: the name, unless another case has it too.
        folder: whose name, and whose parents' names, go in front where names are alike.
        full: a longer name, where another case of the same folder has the same stem.
        last: something unique, the last resort.
        private: words that must not occur in the name.
    """

    sources: tuple[ImageSource | None, ...]
    stem: str
    folder: Path
    full: str
    last: str = ""
    private: frozenset[str] | None = None

    @classmethod
    def of_path(cls, path: Path) -> Nameable:
        """Return what names a file or folder: its own name."""
        stem = path.name if path.is_dir() else volume_stem(path.name)
        return cls((path,), stem, path.parent, path.name)

    @classmethod
    def of_series(cls, series: Sequence[DicomSeries], beside: Iterable[DicomSeries]) -> Nameable:
        """Return what names the channels of a study: their folder, with number and description if it holds others."""
        first = series[0]
        folder = common_folder(item.folder / "x" for item in series)
        private = frozenset(word for item in series for word in item.private)
        alone = all(item in series or item.unfit or item.folder != folder for item in beside)
        own = "" if tells_patient(folder.name, private) else folder.name
        described = [first.description, first.part] if len(series) == 1 else []
        number = [] if first.number is None or len(series) > 1 else [str(first.number)]
        long = "_".join(part for part in map(_plain, [own, *number, *described]) if part)
        stem = (_plain(own) if alone else "") or long or "dicom"
        last = hashlib.sha256("".join(f"{item.uid}{item.part}{item.folder}" for item in series).encode()).hexdigest()
        return cls(tuple(series), stem, folder.parent, long or stem, last[:6], private)


def volume_stem(name: str) -> str:
    """Return a file's name without the suffix of its format."""
    if name.lower().endswith(".nhdr") and len(name) > len(".nhdr"):
        return name[: -len(".nhdr")]
    return strip_suffix(name) if name.lower().endswith(VOLUME_SUFFIXES) else name


def case_names(entries: Sequence[Nameable]) -> list[str]:
    """Return a name per case; where several are alike, with the folders in front of it."""
    beside = repeated((entry.folder, entry.stem) for entry in entries)  # x.nii beside x.nii.gz
    names = [entry.full if (entry.folder, entry.stem) in beside else entry.stem for entry in entries]
    same = repeated((entry.folder, name) for entry, name in zip(entries, names, strict=True))
    names = [
        f"{name}_{entry.last}" if entry.last and (entry.folder, name) in same else name
        for entry, name in zip(entries, names, strict=True)
    ]
    for depth in range(1, max((len(entry.folder.parts) for entry in entries), default=0)):
        apart = _told_apart(names, entries, depth)
        for index, entry in enumerate(entries):
            if names[index] not in apart or depth >= len(entry.folder.parts):
                continue
            part = entry.folder.parts[-depth]
            if entry.private is None:
                names[index] = f"{part}_{names[index]}"
            elif not tells_patient(part, entry.private):
                names[index] = f"{_plain(part)}_{names[index]}"
    alike = repeated(names)
    return [
        f"{name}_{entry.last}" if name in alike and entry.last else name
        for name, entry in zip(names, entries, strict=True)
    ]


def _told_apart(names: Sequence[str], entries: Sequence[Nameable], depth: int) -> set[str]:
    """Return the names of several cases that do not all lie in the same folder, `depth` levels up."""
    places: dict[str, set[Path]] = defaultdict(set)
    for name, entry in zip(names, entries, strict=True):
        places[name].add(Path(*entry.folder.parts[: max(len(entry.folder.parts) - depth + 1, 0)]))
    return {name for name in repeated(names) if len(places[name]) > 1}


def printable(text: str) -> str:
    """Return a text on one line that every terminal and file takes.

    What else stands in names of files and in DICOM tags is spelled out: line ends, escape sequences, bytes that are no
    UTF-8.
    """
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


def repeated(values: Iterable[T]) -> set[T]:
    """Return the values that occur more than once."""
    return {value for value, count in Counter(values).items() if count > 1}


def _plain(text: str) -> str:
    """Return a text as part of a file name that every file system and shell takes as it is."""
    return re.sub(r"[^A-Za-z0-9.+-]+", "_", text).strip("._-")[:_MAX_PART]
