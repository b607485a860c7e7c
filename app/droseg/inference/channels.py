"""nnU-Net's file names: `CASE_0000.nii.gz`, `CASE_0001.nii.gz`, ... are the channels of the case CASE."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from droseg.data.channels import MissingChannels
from droseg.data.volumes import NIFTI_SUFFIXES, VOLUME_SUFFIXES, VolumeError, read_nibabel_header, read_text_header
from droseg.inference.names import Nameable, volume_stem

_CHANNEL: Final = re.compile(r"(?P<case>.+)_(?P<index>\d{4})")


def channel_sets(
    images: Sequence[Path], num_channels: int, missing_channels: MissingChannels = "error"
) -> list[Nameable]:
    """Return the files as cases: sets of channels where their names say so, and single files.

    For several channels a set has one path per channel, also where there is no such file, so that reading it names
    the missing one; with `missing_channels` "zero" it has None there. Further channels of the set are in it too. For
    one channel `CASE_0000` stands for CASE where it is the only file of that kind: `CASE_0000, CASE_0001` are more
    likely numbered cases.
    """
    sets: dict[tuple[Path, str, str], dict[int, Path]] = defaultdict(dict)
    for path in images:
        match = _CHANNEL.fullmatch(volume_stem(path.name))
        if match and path.name.lower().endswith(VOLUME_SUFFIXES):
            sets[_set_key(path, match["case"])][int(match["index"])] = path
    entries: dict[object, Nameable] = {}
    for path in images:
        match = _CHANNEL.fullmatch(volume_stem(path.name))
        key = _set_key(path, match["case"]) if match else None
        files = sets.get(key, {}) if key else {}
        if not match or key is None or not _is_set(files, num_channels):
            entries[path] = Nameable.of_path(path)
        elif key not in entries:
            suffix = path.name[len(volume_stem(path.name)) :]
            indices = sorted({*range(num_channels), *files})
            paths = [files.get(index, path.with_name(f"{match['case']}_{index:04d}{suffix}")) for index in indices]
            sources = [None if missing_channels == "zero" and not _is_there(file) else file for file in paths]
            entries[key] = Nameable(tuple(sources), match["case"], path.parent, match["case"] + suffix)
    return list(entries.values())


def _set_key(path: Path, case: str) -> tuple[Path, str, str]:
    return path.parent, case, path.name[len(volume_stem(path.name)) :].lower()


def _is_set(files: dict[int, Path], num_channels: int) -> bool:
    """Return whether numbered files are the channels of one case: not if one of them holds all channels itself."""
    if num_channels == 1:
        return list(files) == [0]
    return min(files, default=num_channels) < num_channels and not any(map(_is_4d, files.values()))


def _is_there(path: Path) -> bool:
    """Return whether there is anything of that name; a broken link is an error to mend, not a missing channel."""
    return path.exists() or path.is_symlink()


def _is_4d(path: Path) -> bool:
    try:
        if path.name.lower().endswith(NIFTI_SUFFIXES):
            return len(read_nibabel_header(path).shape) > 3
        return read_text_header(path).channel_axis is not None
    except (VolumeError, OSError):
        return False
