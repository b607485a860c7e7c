"""The headers of many DICOM files, and the folders with files that cannot be read."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path

from tqdm import tqdm

from droseg.data.dicom import DicomSeries, DicomSlice
from droseg.data.dicom_header import DicomFile, read_dicom_header
from droseg.data.grids import VolumeError


def read_headers(files: Iterable[Path], progress: bool = False) -> tuple[dict[Path, DicomFile], list[DicomSeries]]:
    """Return the header of each file, and one failing series per folder with files that cannot be read.

    Args:
        files: each is read once.
        progress: show a progress bar on stderr once it has taken two seconds.
    """
    headers: dict[Path, DicomFile] = {}
    damaged: dict[Path, list[tuple[Path, VolumeError]]] = defaultdict(list)
    for path in tqdm(dict.fromkeys(files), desc="reading headers", unit="file", delay=2, disable=not progress):
        try:
            headers[path] = read_dicom_header(path)
        except VolumeError as error:  # also of a file beside a named one: it may be a slice of the same series
            damaged[path.parent].append((path, error))
    return headers, [_damaged(folder, errors) for folder, errors in damaged.items()]


def _damaged(folder: Path, errors: Sequence[tuple[Path, VolumeError]]) -> DicomSeries:
    first, error = errors[0]
    found = error.found.removeprefix(f"{first}: ")
    more = f", and {len(errors) - 1} more like it" if len(errors) > 1 else ""
    return DicomSeries(
        folder=folder,
        uid="",
        slices=tuple(DicomSlice(path, None) for path, _ in errors),
        problem=(f"{first.name}{more}: {found}", error.remedy),
    )
