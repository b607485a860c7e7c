"""The files of a folder and its subfolders: images, DICOM files, and what is neither, with the reason."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, NamedTuple

import nibabel as nib

from droseg.data.dicom_header import dicom_files
from droseg.data.volumes import VOLUME_SUFFIXES, volume_files

RESULT_MARK: Final = b"droseg image="
"""How the description in the header of a result begins."""
_SYSTEM: Final = frozenset({"thumbs.db", "desktop.ini", "__macosx", "@eadir", "lost+found"})


class Skip(NamedTuple):
    """Something that is no candidate: its name, where it lies, and why."""

    name: str
    path: Path
    reason: str


def walk_folder(folder: Path, out: Path, result_suffix: str) -> tuple[list[Path], list[Path], list[Skip]]:
    """Return the image files, the DICOM files and the rest of a folder, each in the order of their paths.

    A subfolder that cannot be listed counts as an image, so that reading it says why.
    """
    images: list[Path] = []
    others: dict[Path, list[Path]] = defaultdict(list)
    skips: list[Skip] = []
    for path, reason in _files(folder, out):
        name = path.name.lower()
        if reason:
            skips.append(Skip(path.name, path, reason))
        elif name.endswith(result_suffix) and (path.parent == out or _is_result(path)):
            skips.append(Skip(path.name, path, "a result of droseg"))
        elif name.endswith(VOLUME_SUFFIXES) or path.is_dir() or _lost_dicom(path):
            images.append(path)
        else:
            others[path.parent].append(path)
    dicom = [path for paths in others.values() for path in dicom_files(paths)]
    voxels = {file for path in images for file in volume_files(path)[1:]}  # .raw of a .mhd: part of that image
    rest = sorted(set().union(*others.values()).difference(dicom, voxels))
    skips += [Skip(path.name, path, _no_image(path.name.lower())) for path in rest]
    return images, dicom, skips


def _is_result(path: Path) -> bool:
    """Return whether a label map was written by droseg, into whatever folder."""
    try:
        header: Any = nib.load(path).header
        return bytes(header["descrip"].item()).startswith(RESULT_MARK)
    except Exception:  # damaged or another format: reading it will say so
        return False


def _lost_dicom(path: Path) -> bool:
    """Return whether a link to nothing may have led to a DICOM file or a folder."""
    return path.suffix.lower() in ("", ".dcm") and path.is_symlink() and not path.exists()


def _no_image(name: str) -> str:
    if name.endswith(".json"):
        return "a JSON file; a datalist is given by its own path"
    suffix = Path(name).suffix
    return f"not an image ({suffix})" if suffix else "not an image"


def _files(folder: Path, out: Path) -> Iterator[tuple[Path, str]]:
    """Yield each regular file with the reason to skip it, if any; a folder that cannot be listed is yielded itself."""
    visited: set[tuple[int, int]] = set()
    waiting = [folder]
    while waiting:
        current = waiting.pop(0)
        try:
            status = os.stat(current)
            if (status.st_dev, status.st_ino) in visited:  # a link to a folder above it
                continue
            visited.add((status.st_dev, status.st_ino))
            children = sorted(current.iterdir())
        except OSError:
            yield current, ""
            continue
        for path in children:
            is_folder = path.is_dir()
            if path.name.startswith(".") or path.name.lower() in _SYSTEM:
                yield path, "hidden or of the system"
            elif is_folder and path == out:
                yield path, "the output folder"
            elif is_folder:
                waiting.append(path)
            elif path.is_file() or path.is_symlink():  # a link to nothing must not be lost in silence
                yield path, ""
            else:
                yield path, "not a regular file"
