"""What `droseg predict --list` prints: each case with its grid, and what is skipped."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from droseg.data.dicom import DicomSeries
from droseg.data.dicom_stack import series_spacing_mm
from droseg.data.volumes import (
    NIBABEL_SUFFIXES,
    NIFTI_SUFFIXES,
    VOLUME_SUFFIXES,
    ImageSource,
    VolumeError,
    read_nibabel_header,
    read_text_header,
    spacing_mm,
    unreadable,
)
from droseg.inference.inputs import FoundInputs
from droseg.inference.names import printable

_HEADER = ("case", "kind", "description", "shape", "spacing [mm]")


def inputs_table(found: FoundInputs) -> str:
    """Return what was found as aligned text, a row per case and channel; only headers are read."""
    rows = [_HEADER]
    for case in found.cases:
        for index, source in enumerate(case.images):
            described = _describe(source) if source is not None else ("-", f"channel {index} is missing", "-", "-")
            rows.append((case.case_id if index == 0 else "", *described))
    lines = _aligned(rows)
    if found.skipped:
        lines += [
            "",
            *_aligned([("skipped", "reason", "path")] + [(s.name, s.reason, str(s.path)) for s in found.skipped]),
        ]
    cases = len(found.cases)
    return "\n".join([*lines, "", f"{cases} case{'s' * (cases != 1)}, {len(found.skipped)} skipped"])


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    rows = [[printable(cell) for cell in row] for row in rows]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def _describe(source: ImageSource) -> tuple[str, str, str, str]:
    """Return kind, description, shape and spacing of one source."""
    if isinstance(source, DicomSeries):
        if source.problem:
            return "DICOM", f"{source.label}: {source.problem[0]}".removeprefix(": "), "-", "-"
        return "DICOM", source.label, _shape(source.shape), _spacing(series_spacing_mm(source))
    try:
        return _describe_file(source)
    except VolumeError as error:
        return "-", error.found.removeprefix(f"{source}: "), "-", "-"
    except OSError as error:
        return "-", unreadable(source, error).found.removeprefix(f"{source}: "), "-", "-"


def _describe_file(path: Path) -> tuple[str, str, str, str]:
    name = path.name.lower()
    if name.endswith(NIBABEL_SUFFIXES):
        image = read_nibabel_header(path)
        kind = "NIfTI" if name.endswith(NIFTI_SUFFIXES) else path.suffix[1:].upper()
        return kind, path.name, _shape(image.shape), _spacing(spacing_mm(image.affine).tolist())
    if name.endswith(VOLUME_SUFFIXES):
        header = read_text_header(path)
        kind = "NRRD" if name.endswith((".nrrd", ".nhdr")) else "MetaImage"
        channels = () if header.channel_axis is None else (header.sizes[header.channel_axis],)
        return kind, path.name, _shape((*header.shape, *channels)), _spacing(spacing_mm(header.affine).tolist())
    path.stat()
    return "-", f"{path.name}: not an image by its name" if path.is_file() else "a folder without images", "-", "-"


def _shape(shape: Sequence[int]) -> str:
    return " x ".join(str(size) for size in shape)


def _spacing(spacing: Sequence[float] | None) -> str:
    return "-" if spacing is None else " x ".join(f"{edge:.3g}" for edge in spacing)
