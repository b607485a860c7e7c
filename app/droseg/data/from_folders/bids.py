"""A BIDS tree: images by their suffix, labels in `derivatives/`, and the tables and sidecars that belong to it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Final

from droseg.data.form import strip_suffix
from droseg.data.from_folders.findings import Findings, counted, some
from droseg.data.from_folders.ids import without_zeros
from droseg.data.from_folders.patterns import IMAGE_SUFFIXES, Scan, Tree
from droseg.data.from_folders.sources import Source
from droseg.errors import InputError

DERIVATIVES: Final = "derivatives"
LABEL_SUFFIX: Final = "dseg"


@dataclass(frozen=True)
class Name:
    """A BIDS file name taken apart: `sub-01_ses-1_run-2_T2w` has the entities sub, ses, run and the suffix T2w."""

    entities: dict[str, str]
    suffix: str

    @classmethod
    def of(cls, stem: str) -> Name:
        """Return a name without its file suffix, taken apart."""
        words = stem.split("_")
        pairs = [word.partition("-") for word in words[:-1] if "-" in word]
        return cls({key: value for key, _, value in pairs}, words[-1])


def query(text: str) -> Name:
    """Return which files an option such as `T2w` or `acq-mprage_run-1_T1w` asks for.

    Raises:
        InputError: if it is a glob or a path.
    """
    if re.search(r"[{}*?/\[\]]|\.nii", text):
        raise InputError(
            f"--bids takes the suffix of file names, such as --image T2w or --image 'T1w=acq-mprage_run-1_T1w', not "
            f"'{text}'; leave out --bids to give globs."
        )
    name = Name.of(text)
    if "-" in name.suffix:
        raise InputError(f"'{text}' has no suffix such as T2w at its end; write for example '{text}_T2w'.")
    return name


def fits(name: Name, wanted: Name) -> bool:
    """Return whether a file is one that is asked for; a scan that was done once needs no `run`."""
    if name.suffix != wanted.suffix:
        return False
    return all(
        _same(name.entities[key], value) if key in name.entities else key == "run"
        for key, value in wanted.entities.items()
    )


def _same(first: str, second: str) -> bool:
    return without_zeros(first) == without_zeros(second) if first.isdigit() else first == second


def image_source(channel: str, wanted: Name, root: Path, tree: Tree, findings: Findings) -> Source:
    """Return the images of a BIDS tree with this suffix and these entities."""
    names = [name for name, is_folder in tree.entries(root) if name.startswith("sub-") and not is_folder]
    if not names:
        there = some(name for name, _ in tree.entries(root) if "/" not in name) or "nothing"
        text = f"{root}: no folder sub-* with files, so no BIDS tree; in it are: {there}."
        findings.error(f"{text} Give the folder that holds sub-..., or globs without --bids.")
    scans = _scans(names, wanted, root, findings)
    if names and not scans:
        suffixes = {Name.of(strip_suffix(PurePosixPath(n).name)).suffix for n in names if n.endswith(IMAGE_SUFFIXES)}
        findings.error(
            f"{channel}: no image '{_text(wanted)}' in {root}; suffixes there: {some(sorted(suffixes), 12)}."
        )
    findings.note(f"{channel}: {counted(len(scans), 'image')} with '{_text(wanted)}' in the BIDS tree {root}.")
    return Source(channel, tuple(scans), lambda paths: _which(paths, f"--image '{channel}=", wanted))


def label_source(option: str | None, root: Path, tree: Tree, findings: Findings) -> Source:
    """Return the `_dseg` files below `derivatives/`, or below the folder, or with the entities, that `option` names."""
    folder, wanted = root / DERIVATIVES, Name({}, LABEL_SUFFIX)
    if option and (root / option).is_dir():
        folder = root / option
    elif option:
        wanted = query(option)
    if not folder.is_dir():
        findings.error(f"{root}: no folder {DERIVATIVES}/ with labels; name them by --label GLOB, or give --no-label.")
        return Source("label", (), lambda _: "")
    names = [name for name, is_folder in tree.entries(folder) if not is_folder]
    scans = _scans(names, wanted, folder, findings)
    if not scans:
        found = sorted({PurePosixPath(name).name for name in names if name.endswith(IMAGE_SUFFIXES)})
        there = f"images there: {some(found, 4)}" if found else "there are no images"
        findings.error(f"label: no '*_{_text(wanted)}.nii.gz' in {folder}; {there}. Name the labels by --label GLOB.")
    findings.note(f"label: {counted(len(scans), 'file')} with '{_text(wanted)}' in {folder}.")
    return Source("label", tuple(scans), lambda paths: _which_label(paths, folder, root, wanted))


def _scans(names: Sequence[str], wanted: Name, base: Path, findings: Findings) -> list[Scan]:
    """Return the images of a query; those whose folders say another subject or session become a finding."""
    scans, misplaced = [], []
    for text in names:
        path = PurePosixPath(text)
        name = Name.of(strip_suffix(path.name))
        if not path.name.endswith(IMAGE_SUFFIXES) or "sub" not in name.entities or not fits(name, wanted):
            continue
        subject = f"sub-{name.entities['sub']}"
        session = f"ses-{name.entities['ses']}" if "ses" in name.entities else ""
        says = [part for part in path.parts[:-1] if part.startswith(("sub-", "ses-"))]
        if any(part not in (subject, session) for part in says):
            misplaced.append(f"{base / text}: lies in {'/'.join(says)}")
            continue
        scans.append(Scan(base / text, subject, session))
    if misplaced:
        text = "the folder and the name of a file do not agree on whose it is; rename or move it:"
        findings.error(text, misplaced)
    return scans


def _text(name: Name) -> str:
    return "_".join([*(f"{key}-{value}" for key, value in name.entities.items()), name.suffix])


def _differing(paths: Sequence[Path]) -> tuple[str, str] | None:
    """Return the entity, and its value in the first file, by which files differ; None if there is no such one."""
    names = [Name.of(strip_suffix(path.name)) for path in paths]
    for key, value in [pair for name in names for pair in name.entities.items()]:
        if len({name.entities.get(key) for name in names}) > 1:
            return key, value
    return None


def _which(paths: Sequence[Path], option: str, wanted: Name) -> str:
    """Return the option that chooses among several images of one case."""
    found = _differing(paths)
    if found is None:
        return "keep one of them in the tree"
    key, value = found
    chosen = Name({**wanted.entities, key: value}, wanted.suffix)
    return f"they differ in '{key}'; choose one for all cases, for example {option}{_text(chosen)}'"


def _which_label(paths: Sequence[Path], folder: Path, root: Path, wanted: Name) -> str:
    """Return the option that chooses among several labels of one case."""
    below = {path.relative_to(folder).parts[0] for path in paths}
    if len(below) > 1:
        places = sorted((folder / part).relative_to(root).as_posix() for part in below)
        return f"they lie in different folders; choose one for all cases, for example --label {places[0]}"
    return _which(paths, "--label '", wanted)


def sidecars(image: Path, root: Path) -> list[Path]:
    """Return the JSON files that describe an image, the nearest first (BIDS: inheritance principle)."""
    name = Name.of(strip_suffix(image.name))
    found = []
    for folder in image.parents:
        fitting = []
        for path in folder.glob(f"*{name.suffix}.json"):
            other = Name.of(path.name.removesuffix(".json"))
            if other.suffix == name.suffix and other.entities.items() <= name.entities.items():
                fitting.append((len(other.entities), path))
        found += [path for _, path in sorted(fitting, reverse=True)]
        if folder == root:
            break
    return found
