"""DICOM files -> the series of each study that are to be segmented, by their description where one is asked for."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from droseg.data.dicom import DicomSeries, common_folder
from droseg.data.dicom_header import DicomFile, dicom_files
from droseg.data.dicom_stack import group_series
from droseg.data.dicom_tree import read_headers
from droseg.data.walk import Skip
from droseg.errors import InputError

OPTION = "--series-description"


def compile_patterns(patterns: Sequence[str], num_channels: int) -> list[re.Pattern[str]]:
    """Return the regular expressions that choose series; case does not count.

    Raises:
        InputError: if one cannot be compiled, or their number is not that of the channels.
    """
    if patterns and len(patterns) != num_channels:
        raise InputError(
            f"{OPTION} is given {len(patterns)} times, but the network takes {num_channels} "
            f"channel{'s' * (num_channels != 1)}; give it once per channel, in the bundle's order."
        )
    try:
        return [re.compile(pattern, re.IGNORECASE) for pattern in patterns]
    except re.error as error:
        raise InputError(f"{OPTION} {error.pattern!r}: {error}; give a regular expression.") from error


def scan_dicom(files: Sequence[Path], named: Sequence[Path]) -> tuple[list[DicomSeries], list[DicomSeries]]:
    """Return the series of DICOM files, and one failing series per folder with files that cannot be read.

    Args:
        files: found in folders.
        named: given by their own path; each stands for its series, whose other files lie in the same folder.
    """
    beside = [path for folder in dict.fromkeys(path.parent for path in named) for path in _beside(folder)]
    headers, failing = read_headers([*files, *named, *beside])
    wanted = set(files)
    series_named = {_series_key(headers[path]) for path in named if path in headers}
    wanted |= {path for path in beside if path in headers and _series_key(headers[path]) in series_named}
    return group_series(header for path, header in headers.items() if path in wanted), failing


def choose_series(
    series: Sequence[DicomSeries], patterns: Sequence[re.Pattern[str]], num_channels: int
) -> tuple[list[tuple[DicomSeries, ...]], list[DicomSeries], list[Skip]]:
    """Return the series of each case (one per channel), one failing series per study that has none, and the rest."""
    skips = [Skip(item.label or item.folder.name, _place(item), item.unfit) for item in series if item.unfit]
    studies: dict[str, list[DicomSeries]] = defaultdict(list)
    for item in series:
        if not item.unfit:
            studies[item.study_uid or str(item.folder)].append(item)
    chosen: list[tuple[DicomSeries, ...]] = []
    failing: list[DicomSeries] = []
    for candidates in studies.values():
        if num_channels == 1 and not patterns:
            chosen += [(item,) for item in candidates]
            continue
        matches = [[item for item in candidates if pattern.search(_text(item))] for pattern in patterns]
        problem = _mismatch(candidates, patterns, matches, num_channels)
        if problem:
            failing.append(_failing_study(candidates, *problem))
            continue
        found = [(item,) for item in matches[0]] if num_channels == 1 else [tuple(items[0] for items in matches)]
        chosen += found
        used = {item for items in found for item in items}
        skips += [Skip(item.label, _place(item), f"not chosen by {OPTION}") for item in candidates if item not in used]
    return chosen, failing, skips


def _mismatch(
    candidates: Sequence[DicomSeries],
    patterns: Sequence[re.Pattern[str]],
    matches: Sequence[Sequence[DicomSeries]],
    num_channels: int,
) -> tuple[str, str] | None:
    """Return what keeps a study from being a case, and what to do about it."""
    listed = ", ".join(item.label for item in candidates[:8])
    if not patterns:
        return (
            f"{len(candidates)} MR series ({listed}), but the network takes {num_channels} channels",
            f"choose one per channel with {OPTION}",
        )
    for pattern, items in zip(patterns, matches, strict=True):
        if not items:
            return f"no series matches {OPTION} {pattern.pattern!r}; there are {listed}", "correct the expression"
        if len(items) > 1 and num_channels > 1:
            alike = ", ".join(item.label for item in items[:8])
            return f"{len(items)} series match {OPTION} {pattern.pattern!r} ({alike})", "make the expression stricter"
    return None


def _failing_study(candidates: Sequence[DicomSeries], found: str, remedy: str) -> DicomSeries:
    return DicomSeries(
        folder=common_folder(item.folder / "x" for item in candidates),
        uid="",
        study_uid=candidates[0].study_uid,
        slices=tuple(part for item in candidates for part in item.slices),
        problem=(found, remedy),
        private=frozenset(word for item in candidates for word in item.private),
    )


def _beside(folder: Path) -> list[Path]:
    try:
        return dicom_files(path for path in folder.iterdir() if path.is_file() and not path.name.startswith("."))
    except OSError:
        return []


def _series_key(header: DicomFile) -> tuple[str, str]:
    return header.series.study_uid, header.series.uid


def _place(series: DicomSeries) -> Path:
    return series.files[0] if len(series.files) == 1 else series.folder


def _text(series: DicomSeries) -> str:
    return f"{series.description} {series.part}".strip()
