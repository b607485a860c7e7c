"""Every problem of a datalist in one run, found by reading the voxels."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from droseg.data.datalist import Case, Datalist
from droseg.data.grids import axis_codes, same_voxels
from droseg.data.volumes import Volume, VolumeError, corner_distance_mm, read_volume, same_grid, spacing_mm
from droseg.keys import TESTING

REGRID: Final = "`droseg data regrid` puts all images and the label of a case on one grid"

_REGRID_LABEL: Final = "Go back to the one before; `droseg data regrid` keeps the values of labels."

NO_LABEL: Final = "no label; give one, or move the case to the testing section."

SMALL_GROUP: Final = 5
"""Below this number of patients a subgroup table has no confidence interval."""

Severity = Literal["error", "warning"]
Finding = tuple[Severity, str]


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong with a datalist; `case_id` is empty where it concerns more than one case."""

    severity: Severity
    section: str
    case_id: str
    message: str


def check_datalist(datalist: Datalist, sections: Sequence[str] | None = None, progress: bool = False) -> list[Problem]:
    """Return every problem of a datalist; reads all voxels, and no bad case keeps the others from being read.

    Args:
        datalist: as `read_datalist` gives it.
        sections: whose volumes to read; None: all. Cases, patients and groups are compared over all sections always.
        progress: show a progress bar on stderr once it has taken two seconds.
    Raises:
        DatalistError: if a section that was asked for is not there.
    """
    problems = [*_identity_problems(datalist), *missing_channels(datalist), *_group_problems(datalist)]
    if sections is None:
        rows = [(name, case) for name, cases in datalist.sections.items() for case in cases]
    else:
        rows = [(name, case) for name in sections for case in datalist.section(name)]
    for name, case in tqdm(rows, desc="checking", unit="case", delay=2, disable=not progress):
        needs_label = name != TESTING
        problems += [
            Problem(severity, name, case.case_id, text) for severity, text in _check_case(case, datalist, needs_label)
        ]
    return problems


def problem_table(problems: Sequence[Problem]) -> str:
    """Return the problems as aligned text, errors first, and a line that counts them."""
    ordered = sorted(problems, key=lambda problem: problem.severity)  # stable: "error" before "warning"
    rows = [("", "section", "case", "problem")]
    rows += [(p.severity, p.section, p.case_id or "-", p.message) for p in ordered]
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    lines = [
        "  ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[3]]) for row in rows
    ]
    errors = sum(problem.severity == "error" for problem in problems)
    warnings = len(problems) - errors
    count = f"{errors} error{'s' * (errors != 1)}, {warnings} warning{'s' * (warnings != 1)}"
    return "\n".join([*lines, count]) if problems else count


def _check_case(case: Case, datalist: Datalist, needs_label: bool) -> Iterator[Finding]:
    """Yield what is wrong with the volumes of one case."""
    channels: list[tuple[Path, Volume]] = []
    for path in case.present_images:
        try:
            channels.append((path, read_volume(path)))
        except VolumeError as error:
            yield "error", f"image {error}"
    for path, volume in channels:
        yield from _check_image(path, volume)
        if volume is not channels[0][1]:
            yield from _check_grid("channel", path, volume, *channels[0])
    expected = len(datalist.channels) - case.images.count(None)
    found = sum(len(volume.array) for _, volume in channels)
    if len(channels) == len(case.present_images) and found != expected:
        names = ", ".join(datalist.channels)
        missing = f", {case.images.count(None)} missing" * (None in case.images)
        text = f"{found} channel(s) found{missing}, {len(datalist.channels)} declared ({names})."
        yield "error", f"image {case.present_images[0]}: {text}"
    if case.label is None:
        if needs_label:
            yield "error", NO_LABEL
        return
    try:
        label = read_volume(case.label)
    except VolumeError as error:
        yield "error", f"label {error}"
        return
    yield from _check_label(case.label, label, datalist.structures, datalist.background)
    if channels:
        yield from _check_grid("label", case.label, label, *channels[0])


def _check_image(path: Path, volume: Volume) -> Iterator[Finding]:
    bad = _count_not_finite(volume.array)
    if bad:
        text = f"image {path}: {bad} of {volume.array.size} voxels are NaN or infinite; repair or export it again."
        yield "error", text
    elif volume.array.min() == volume.array.max():
        yield "warning", f"image {path}: every voxel is {volume.array.flat[0]}; is it the right file?"
    if not volume.oriented:
        yield (
            "warning",
            f"image {path}: its header has no orientation (sform and qform code 0); left and right are a guess.",
        )


def _check_grid(what: str, path: Path, volume: Volume, image_path: Path, image: Volume) -> Iterator[Finding]:
    shape, expected = volume.array.shape[1:], image.array.shape[1:]
    codes, expected_codes = axis_codes(volume.affine), axis_codes(image.affine)
    if codes != expected_codes and same_voxels(volume, image):
        text = f"its axes point to {codes}, those of {image_path.name} to {expected_codes}: the same voxels in another"
        yield "error", f"{what} {path}: {text} order; {REGRID}."
        return
    if shape != expected:
        edges, expected_edges = (_by_axis(spacing_mm(each.affine)) for each in (volume, image))
        unlike = f" (voxels of {edges} mm, there {expected_edges} mm)" if edges != expected_edges else ""
        text = f"shape {shape}, but {image_path.name} has {expected}{unlike}; resample it to that grid: {REGRID}."
        yield "error", f"{what} {path}: {text}"
        return
    where = f"affine differs from that of {image_path.name} by up to {corner_distance_mm(volume, image):.3g} mm"
    if not same_grid(volume, image):
        yield "error", f"{what} {path}: its {where}; repair the header that is wrong, or resample it: {REGRID}."
    # MONAI 1.6 stacks the channels of a training case on no other condition (monai.data.image_reader).
    elif what == "channel" and not np.allclose(volume.affine, image.affine):
        yield (
            "error",
            f"{what} {path}: its {where}, which is rounding, but MONAI stacks channels of one affine only; copy that "
            "affine into its header (nibabel, or fslcpgeom of FSL).",
        )


def _check_label(
    path: Path, volume: Volume, structures: dict[str, tuple[int, ...]], background: Sequence[int]
) -> Iterator[Finding]:
    if len(volume.array) != 1:
        yield "error", f"label {path}: {len(volume.array)} channels; one volume of label values is expected."
        return
    bad = _count_not_finite(volume.array)
    if bad:
        yield "error", f"label {path}: {bad} voxels are NaN or infinite; export it again."
        return
    values, counts = value_counts(volume.array)
    whole = values == np.round(values)
    if not whole.all():
        shown = _listed(f"{value:g}" for value in values[~whole])
        text = f"{int(counts[~whole].sum())} voxels have values that are not integers ({shown})"
        yield "error", f"label {path}: {text}; was it resampled with interpolation? {_REGRID_LABEL}"
    declared = {value for numbers in structures.values() for value in numbers}
    known = declared.union(background)
    strange = [i for i, value in enumerate(values) if whole[i] and int(value) not in known]
    if strange:
        shown = _listed(f"{values[i]:g} ({counts[i]} voxels)" for i in strange)
        text = f"values that no structure declares: {shown}"
        yield (
            "error",
            f"label {path}: {text}; declared are {sorted(declared)}. Add them to `structures`, by their names "
            f'or, if they are none, as "background": {sorted({*background, *(int(values[i]) for i in strange)})}.',
        )
    if all(value in background for value in values):
        yield "warning", f"label {path}: empty, there is no structure in it; is it the right file?"


def _count_not_finite(array: NDArray[Any]) -> int:
    return int(array.size - np.count_nonzero(np.isfinite(array))) if array.dtype.kind == "f" else 0


def value_counts(array: NDArray[Any]) -> tuple[NDArray[Any], NDArray[np.intp]]:
    """Return the values of an array, increasing, and how often each occurs."""
    if array.dtype.kind in "bu" and array.dtype.itemsize <= 2:  # ten times as fast as sorting
        counts = np.bincount(array.reshape(-1))
        present = np.flatnonzero(counts)
        return present, counts[present]
    return np.unique(array, return_counts=True)


def _identity_problems(datalist: Datalist) -> Iterator[Problem]:
    """Yield case_ids, patients and files that occur where they must not."""
    by_case, by_patient, by_file, folds = (defaultdict(list) for _ in range(4))
    for section, cases in datalist.sections.items():
        for case in cases:
            by_case[case.case_id].append(section)
            by_patient[case.patient_id].append(section)
            for path in case.present_images:
                by_file[path].append((section, case.case_id))
            if case.fold is not None:
                folds[section, case.patient_id].append(case.fold)
    for case_id, places in by_case.items():
        if len(places) > 1:
            text = f"this case_id occurs {len(places)} times; give each case its own."
            yield Problem("error", ", ".join(dict.fromkeys(places)), case_id, text)
    for patient_id, places in by_patient.items():
        if len(set(places)) > 1:
            text = f"patient '{patient_id}' is in more than one section; keep all cases of a patient in one."
            yield Problem("error", ", ".join(dict.fromkeys(places)), "", text)
    for path, uses in by_file.items():
        sections, cases_ = (list(dict.fromkeys(column)) for column in zip(*uses, strict=True))
        if len(cases_) > 1:
            text = f"image {path} is used by the cases {_listed(cases_)}; list it once."
            yield Problem("error" if len(sections) > 1 else "warning", ", ".join(sections), "", text)
    for (section, patient_id), numbers in folds.items():
        if len(set(numbers)) > 1:
            text = f"patient '{patient_id}' is in the folds {sorted(set(numbers))}; keep all cases of a patient in one."
            yield Problem("error", section, "", text)


def missing_channels(datalist: Datalist) -> Iterator[Problem]:
    """Yield the channels that cases lack, a line per channel and section."""
    for section, cases in datalist.sections.items():
        for channel in datalist.channels:
            lacking = [case.case_id for case in cases if channel in case.missing_channels(datalist.channels)]
            if lacking:
                text = f"{len(lacking)} of {len(cases)} cases lack channel {channel} ({_listed(lacking, 20)})"
                yield Problem("warning", section, "", f"{text}; missing_channels: zero fills it with zeros.")


def _group_problems(datalist: Datalist) -> Iterator[Problem]:
    """Yield axes that only some cases have, and groups too small for statistics."""
    for axis in datalist.axes:
        patients: dict[tuple[str, str], set[str]] = defaultdict(set)
        for section, cases in datalist.sections.items():
            without = [case.case_id for case in cases if axis not in case.groups]
            if without:
                text = f"{len(without)} of {len(cases)} cases have no group '{axis}' ({_listed(without)}); others have."
                yield Problem("warning", section, "", text)
            for case in cases:
                if axis in case.groups:
                    patients[case.groups[axis], section].add(case.patient_id)
        for group in sorted({group for group, _ in patients}):
            small = {
                section: len(ids)
                for (name, section), ids in patients.items()
                if name == group and len(ids) < SMALL_GROUP
            }
            if small:
                counts = ", ".join(f"{number} in {section}" for section, number in small.items())
                text = f"group {axis}={group} has fewer than {SMALL_GROUP} patients: {counts}."
                yield Problem("warning", ", ".join(small), "", text)


def _by_axis(edges: NDArray[np.float64]) -> str:
    return " x ".join(f"{edge:.3g}" for edge in edges)


def _listed(items: Iterable[str], most: int = 5) -> str:
    """Return the first items with commas, and how many more there are."""
    names = list(items)
    more = f", and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
