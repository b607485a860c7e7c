"""Globs with named wildcards, such as `sub-{subject}/ses-{session}/*_T2w.nii.gz`, and the files that they match."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from droseg.data.dicom_header import is_dicom_file
from droseg.data.from_folders.findings import some
from droseg.data.volumes import NIBABEL_SUFFIXES, VOLUME_SUFFIXES
from droseg.errors import InputError

SUBJECT: Final = "subject"
SESSION: Final = "session"
PREFIXES: Final = {SUBJECT: "sub-", SESSION: "ses-"}
"""What BIDS writes before a subject and a session; with and without it is the same one."""

IMAGE_SUFFIXES: Final = tuple(dict.fromkeys((*VOLUME_SUFFIXES, *NIBABEL_SUFFIXES)))
_WILDCARD: Final = re.compile(r"\*\*/|\*\*|\*|\?|\[[^\]]+\]|\{(\w+)(?::((?:[^{}]|\{[\d,]+\})+))?\}")


def without_prefix(value: str, kind: str) -> str:
    """Return a subject without "sub-", or a session without "ses-"."""
    return value.removeprefix(PREFIXES[kind]) or value


@dataclass(frozen=True)
class Scan:
    """An image file, or the folder of a DICOM series, and whose it is.

    Attributes:
        subject: as the path has it, with "sub-" if that is there.
        session: the same with "ses-"; empty where the path names none.
        fields: the values of other wildcards.
    """

    path: Path
    subject: str
    session: str = ""
    fields: dict[str, str] = field(default_factory=dict)

    @property
    def key(self) -> tuple[str, str]:
        """Subject and session without prefixes, by which files of one case find each other."""
        return without_prefix(self.subject, SUBJECT), without_prefix(self.session, SESSION)


class Tree:
    """The files and folders below folders, each looked through once; hidden ones and `__MACOSX` are left out."""

    def __init__(self) -> None:
        self._known: dict[Path, list[tuple[str, bool]]] = {}

    def entries(self, base: Path) -> list[tuple[str, bool]]:
        """Return each path below a folder, relative and with slashes, and whether it is a folder; sorted."""
        if base not in self._known:
            self._known[base] = sorted(self._walk(base))
        return self._known[base]

    def _walk(self, base: Path) -> Iterator[tuple[str, bool]]:
        seen = {os.path.realpath(base)}
        for folder, names, files in os.walk(base, followlinks=True):
            names[:] = [name for name in names if _is_visible(name)]
            place = Path(folder).relative_to(base)
            for name in list(names):
                yield (place / name).as_posix(), True
                path = os.path.join(folder, name)
                if os.path.islink(path):  # a link to a folder above would be followed for ever
                    real = os.path.realpath(path)
                    if real in seen:
                        names.remove(name)
                    seen.add(real)
            yield from (((place / name).as_posix(), False) for name in files if _is_visible(name))


def _is_visible(name: str) -> bool:
    return not name.startswith(".") and name != "__MACOSX"


class Pattern:
    """A glob with named wildcards.

    `{subject}`, `{session}` and any other `{name}` stand for a part of a name, the same one wherever it is repeated;
    `{name:REGEX}` for what a regular expression allows. `*`, `?`, `[abc]` and `**` (any folders) are those of a shell.

    Args:
        text: the glob; relative to `root`, or absolute.
        root: folder that it starts from.

    Raises:
        InputError: if it has no `{subject}` or cannot be understood.
    """

    def __init__(self, text: str, root: Path) -> None:
        self.text = text
        parts = text.rstrip("/").split("/")
        fixed = next((i for i, part in enumerate(parts) if _WILDCARD.search(part)), len(parts) - 1)
        self.base = Path(os.path.abspath(root / ("/".join(parts[:fixed]) + "/" * text.startswith("/"))))
        self.parts = parts[fixed:]
        self.only_folders = text.endswith("/")
        rest = "/".join(self.parts)
        self._regexes = {match[1]: match[2] for match in _WILDCARD.finditer(rest) if match[1] and match[2]}
        names = [match[1] for match in _WILDCARD.finditer(rest) if match[1]]
        if SUBJECT not in names:
            raise InputError(
                f"'{text}': no {{subject}} in it; write {{subject}} where the patient's name or number stands, "
                "for example 'sub-{subject}/anat/*_T2w.nii.gz'."
            )
        if stray := re.search(r"[{}]", _WILDCARD.sub("", rest)):
            raise InputError(
                f"'{text}': a '{stray[0]}' that belongs to no wildcard; a wildcard is written {{subject}}."
            )
        self.names = tuple(dict.fromkeys(names))
        self._prefixed = {kind: f"{prefix}{{{kind}" in rest for kind, prefix in PREFIXES.items()}
        self._lazy, self._greedy, self._any_case = (
            self._compiled(rest, lazy, flags) for lazy, flags in ((True, 0), (False, 0), (True, re.IGNORECASE))
        )

    def _compiled(self, glob: str, lazy: bool, flags: int = 0) -> re.Pattern[str]:
        try:
            return re.compile(_regex(glob, lazy), flags)
        except re.error as error:
            raise InputError(f"'{self.text}': cannot be understood as a glob ({error}).") from error

    def scans(self, tree: Tree) -> tuple[list[Scan], list[str], list[str]]:
        """Return the images that it matches, why others are unclear, and the matched files that are no images."""
        found, unclear, others = [], [], []
        for name, is_folder in tree.entries(self.base):
            first, last = self._lazy.fullmatch(name), self._greedy.fullmatch(name)
            if first is None or last is None or (self.only_folders and not is_folder):
                continue
            path = self.base / name
            if is_folder and (self.parts[-1] == "**" or not _holds_dicom(path)):
                continue
            if not is_folder and not name.lower().endswith(IMAGE_SUFFIXES) and not _is_dicom(path):
                others.append(str(path))
                continue
            across = next((wildcard for wildcard, value in first.groupdict().items() if "/" in value), None)
            if across:
                unclear.append(f"{path}: {self._across(across, first[across])}")
                continue
            if first.groupdict() != last.groupdict():
                unclear.append(f"{path}: {_difference(first.groupdict(), last.groupdict())}")
                continue
            values = first.groupdict()
            for kind, prefix in PREFIXES.items():
                if kind in values and self._prefixed[kind] and not values[kind].startswith(prefix):
                    values[kind] = prefix + values[kind]
            subject, session = values.pop(SUBJECT), values.pop(SESSION, "")
            found.append(Scan(path, subject, session, values))
        return found, unclear, others

    def _across(self, name: str, value: str) -> str:
        """Return what to do about a regular expression that took a part of the path for a part of a name."""
        # Neither an escaped dot nor one in brackets stands for a slash.
        parts = re.compile(r"\\.|\[[^\]]*\]|\.")
        within = parts.sub(lambda match: "[^/]" if match[0] == "." else match[0], self._regexes[name])
        within = within if within != self._regexes[name] else "[^/]+"
        return f"{{{name}}} is '{value}', which goes across folders; write {{{name}:{within}}}"

    def why_nothing(self, tree: Tree) -> str:
        """Return why no image matches: the first part of the glob that nothing fits, and what is there instead."""
        if not self.base.is_dir():
            parent = next(folder for folder in self.base.parents if folder.is_dir())
            beside = sorted(path.name for path in parent.iterdir() if _is_visible(path.name))
            return f"there is no folder {self.base}; in {parent} there are: {some(beside) or 'no files'}"
        entries = tree.entries(self.base)
        other_case = sum(bool(self._any_case.fullmatch(name)) for name, _ in entries)
        if other_case:
            return f"{other_case} would match if upper and lower case were the same"
        parents = [""]
        for index, part in enumerate(self.parts):
            if part == "**":
                parents += [name for name, is_folder in entries if is_folder]
                continue
            last = index == len(self.parts) - 1
            fit = self._compiled("/".join(self.parts[: index + 1]), True)
            fitting = [name for name, is_folder in entries if (last or is_folder) and fit.fullmatch(name)]
            if fitting:
                parents = fitting
                continue
            names = _names_in(set(parents), entries)
            place = some([str(self.base / name) for name in parents[:2]], 2) + (" ..." if len(parents) > 2 else "")
            return f"nothing fits '{part}'; in {place} there are: {some(names) or 'no files'}"
        return "what matches are neither images nor folders of DICOM files"


def _names_in(folders: set[str], entries: Sequence[tuple[str, bool]]) -> list[str]:
    """Return the names, each once, of what lies directly in folders; the name of a folder ends with a slash."""
    found: dict[str, None] = {}
    for name, is_folder in entries:
        parent, _, last = name.rpartition("/")
        if parent in folders:
            found[last + "/" * is_folder] = None
    return list(found)


def _regex(glob: str, lazy: bool) -> str:
    """Return the regular expression of a glob; a lazy one gives each wildcard as little as it can have."""
    more = "?" if lazy else ""
    result, position, seen = "", 0, set()
    for match in _WILDCARD.finditer(glob):
        result += re.escape(glob[position : match.start()])
        position = match.end()
        token, name = match[0], match[1]
        if name in seen:
            result += f"(?P={name})"
        elif name:
            seen.add(name)
            result += f"(?P<{name}>{_within_name(match[2]) if match[2] else '[^/]+' + more})"
        elif token == "**/":
            result += f"(?:[^/]+/)*{more}"
        elif token == "**":
            result += f".*{more}"
        elif token == "*":
            result += f"[^/]*{more}"
        elif token == "?":
            result += "[^/]"
        else:
            result += token.replace("[!", "[^")
    return result + re.escape(glob[position:])


def _within_name(regex: str) -> str:
    """Return a person's regular expression so that "anything but _" is no slash either."""
    return f"(?:{regex.replace('[^', '[^/')})"


def _difference(first: dict[str, str], last: dict[str, str]) -> str:
    """Return what is unclear about a name that can be taken apart in more than one way."""
    name = next(name for name in first if first[name] != last[name])
    if len(first[name]) > len(last[name]):
        first, last = last, first
    after = last[name][len(first[name])] if last[name].startswith(first[name]) else "_"
    return f"{{{name}}} may be '{first[name]}' or '{last[name]}'; if it has no '{after}', write {{{name}:[^{after}]+}}"


def _is_dicom(path: Path) -> bool:
    try:
        return is_dicom_file(path)
    except OSError:
        return False


def _holds_dicom(folder: Path) -> bool:
    """Return whether one of the first files of a folder is DICOM."""
    files = sorted(path for path in folder.iterdir() if path.is_file() and _is_visible(path.name))
    return any(_is_dicom(path) for path in files[:5])
