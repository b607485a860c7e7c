"""The channels and the label of each case on one grid, by what their headers say; nothing is registered."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, Literal

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from droseg.data.convert.files import nifti, read_mark, small
from droseg.data.datalist import Case, Datalist, parse_datalist, write_datalist
from droseg.data.grids import Volume, VolumeError, same_grid
from droseg.data.regrid_resample import Grid, lost_share, resample_image, resample_labels, with_spacing
from droseg.data.volumes import read_volume, volume_files
from droseg.data.writing import StagedFiles, output_lock, remove_leftovers, writable_folder
from droseg.errors import InputError

DATALIST_FILE: Final = "datalist.json"
_ORDERS: Final = {"linear": 1, "cubic": 3}
_MIN_LOST: Final = 1e-4
"""Share of a grid or label below which what lies outside is rounding at the border, and not worth a line."""

Status = Literal["resampled", "unchanged", "there", "failed"]


@dataclass(frozen=True)
class Target:
    """Which grid a case gets.

    Attributes:
        like: whose grid, "channel" or "label".
        reference: name of the channel; None: the first that the case has.
        spacing_mm: other edge lengths of a voxel on the axes of that grid; None: its own.
        interpolation: of images, "linear" or "cubic".
    """

    like: str = "channel"
    reference: str | None = None
    spacing_mm: tuple[float, float, float] | None = None
    interpolation: str = "linear"


@dataclass(frozen=True)
class Outcome:
    """What became of one case.

    Attributes:
        status: "unchanged" if all its volumes were on the grid, so that their voxels are as they were.
        case: with its new files; None if it failed.
        warnings: what lies outside, and what has vanished.
        message: what went wrong.
    """

    case_id: str
    status: Status
    case: Case | None = None
    warnings: tuple[str, ...] = ()
    message: str = ""


@dataclass(frozen=True)
class _Part:
    """A volume of a case: a channel, or its label."""

    name: str
    source: Path
    volume: Volume


def regrid(datalist: Datalist, out: Path, target: Target | None = None, overwrite: bool = False) -> Iterator[Outcome]:
    """Yield what became of each case, and write the datalist of those that are done in the end.

    Args:
        datalist: its groups, folds and patients are kept.
        out: folder for `images/`, `labels/` and `datalist.json`.
        target: which grid; None: that of the first channel.
        overwrite: replace files that were made from something else.
    Raises:
        InputError: if the reference is no channel, two cases have one name, or `out` holds another datalist.
        OutputError: if the folder takes no file, or another run writes there.
    """
    target, out = target or Target(), Path(os.path.abspath(out))
    _check(datalist, out, target)
    done: dict[str, Case] = {}
    reached: set[str] = set()
    with output_lock(writable_folder(out)):
        for folder in (out / "images", out / "labels"):
            writable_folder(folder)
            remove_leftovers(folder)
        try:
            for cases in datalist.sections.values():
                for case in cases:
                    reached.add(case.case_id)
                    outcome = _regrid(case, datalist, out, target, overwrite)
                    if outcome.case is not None:
                        done[case.case_id] = outcome.case
                    yield outcome
        finally:
            later = (case for cases in datalist.sections.values() for case in cases if case.case_id not in reached)
            done |= {case.case_id: there for case in later if (there := _there(case, datalist, out, target))}
            sections = {
                name: tuple(done[case.case_id] for case in cases if case.case_id in done)
                for name, cases in datalist.sections.items()
            }
            if done:  # a datalist of an earlier run is worth more than an empty one
                write_datalist(replace(datalist, sections=sections), out / DATALIST_FILE)


def _check(datalist: Datalist, out: Path, target: Target) -> None:
    if target.reference is not None and target.reference not in datalist.channels:
        there = ", ".join(datalist.channels)
        raise InputError(f"--reference: no channel is called '{target.reference}'; {datalist.path} has {there}.")
    counts = Counter(case.case_id for cases in datalist.sections.values() for case in cases)
    twice = [name for name, count in counts.items() if count > 1]
    if twice:
        listed = ", ".join(twice[:10])
        raise InputError(f"{datalist.path}: {len(twice)} case_ids occur more than once ({listed}); make them unique.")
    _check_sources(datalist, out)
    path = out / DATALIST_FILE
    if not path.exists():
        return
    old, _ = parse_datalist(path)
    images = (image for cases in old.sections.values() for case in cases for image in case.images)
    if datalist.path == path or not all(image is None or image.is_relative_to(out / "images") for image in images):
        raise InputError(f"{path}: is there, and is no datalist of an earlier run of regrid; choose another --out.")


def _check_sources(datalist: Datalist, out: Path) -> None:
    """Refuse an output folder in which the files to write are those to read."""
    cases = [case for section in datalist.sections.values() for case in section]
    sources = {path.resolve() for case in cases for path in (*case.images, case.label) if path is not None}
    for case in cases:
        images, label = _outputs(case, datalist, out)
        own = next((path for path in (*images, label) if path is not None and path.resolve() in sources), None)
        if own is not None:
            raise InputError(f"{own}: is an image or label of {datalist.path}, and would be replaced; another --out.")


def _there(case: Case, datalist: Datalist, out: Path, target: Target) -> Case | None:
    """Return a case whose files an earlier run has made from the same sources; None if it has not."""
    images, label = _outputs(case, datalist, out)
    files = [path for path in (*images, label) if path is not None]
    try:
        mark = _mark(case, target)
        made = all(path.exists() and read_mark(path) == mark for path in files)
    except (VolumeError, OSError):
        return None
    return replace(case, images=images, label=label) if made else None


def _regrid(case: Case, datalist: Datalist, out: Path, target: Target, overwrite: bool) -> Outcome:
    try:
        images, label = _outputs(case, datalist, out)
        mark = _mark(case, target)
        files = [path for path in (*images, label) if path is not None]
        result = replace(case, images=images, label=label)
        marks = {path: read_mark(path) for path in files if path.exists()}
        if len(marks) == len(files) and set(marks.values()) == {mark}:
            return Outcome(case.case_id, "there", result)
        other = [path for path, found in marks.items() if found != mark]
        if other and not overwrite:
            return Outcome(
                case.case_id,
                "failed",
                message=f"{other[0]}: is there, made from other files or options; --overwrite, or another --out.",
            )
        return _resampled(case, datalist, result, mark, target)
    except (VolumeError, OSError) as error:
        return Outcome(case.case_id, "failed", message=str(error))
    except MemoryError:
        return Outcome(case.case_id, "failed", message="it needs more memory than there is here.")


def _outputs(case: Case, datalist: Datalist, out: Path) -> tuple[tuple[Path, ...], Path | None]:
    """Return the new files: CASE.nii.gz, or CASE_0000.nii.gz and so on if there are several channels."""
    count = len(datalist.channels)
    ends = [""] if count == 1 else [f"_{index:04d}" for index in range(count)]
    given: Sequence[Path | None] = case.images if len(case.images) == count else [case.images[0]] * count
    images: tuple[Any, ...] = tuple(
        None if path is None else out / "images" / f"{case.case_id}{end}.nii.gz"
        for path, end in zip(given, ends, strict=True)
    )
    return images, None if case.label is None else out / "labels" / f"{case.case_id}.nii.gz"


def _mark(case: Case, target: Target) -> str:
    """Return what the header of a result says: a fingerprint of its sources and of the options."""
    said = [repr(target)]
    for path in (*case.images, case.label):
        if path is None:
            continue
        for file in sorted(path.iterdir()) if path.is_dir() else volume_files(path):
            if not file.exists():
                raise VolumeError(f"{file}: no such file or folder", "correct the path or the data root")
            said.append(f"{file} {file.stat().st_size} {file.stat().st_mtime_ns}")
    digest = hashlib.sha256("\n".join(said).encode()).hexdigest()
    return f"droseg regrid={digest[:16]}"


def _resampled(case: Case, datalist: Datalist, result: Case, mark: str, target: Target) -> Outcome:
    channels = _channels(case, datalist)
    label = None if case.label is None else _label(case.label)
    grid = _grid(channels, label, target)
    warnings: list[str] = []
    changed = False
    with StagedFiles() as files:
        for part, path in zip(channels, result.images, strict=True):
            if part is None or path is None:
                continue
            array, moved = _image_on(part, grid, target, warnings)
            changed |= moved
            _stage(files, path, array, grid, mark)
        if label is not None and result.label is not None:
            array, moved = _label_on(label, grid, warnings)
            changed |= moved
            _stage(files, result.label, array, grid, mark)
        files.commit()
    return Outcome(case.case_id, "resampled" if changed else "unchanged", result, tuple(warnings))


def _stage(files: StagedFiles, path: Path, array: NDArray[Any], grid: Grid, mark: str) -> None:
    image = nifti(array, grid.affine, mark)
    files.add(path, lambda temporary: nib.save(image, temporary))


def _channels(case: Case, datalist: Datalist) -> list[_Part | None]:
    """Return the channels of a case, each a 3D volume; None where it has none."""
    names = datalist.channels
    if len(case.images) == 1 and case.images[0] is not None:
        volume = read_volume(case.images[0])
        if len(volume.array) != len(names):
            raise VolumeError(
                f"{case.images[0]}: {len(volume.array)} channels, but the datalist declares {len(names)}",
                "give a file per channel, or correct `channels`",
            )
        return [
            _Part(name, case.images[0], replace(volume, array=volume.array[index : index + 1]))
            for index, name in enumerate(names)
        ]
    parts: list[_Part | None] = []
    for name, path in zip(names, case.images, strict=True):
        part = None if path is None else _Part(name, path, read_volume(path))
        if part is not None and len(part.volume.array) != 1:
            raise VolumeError(f"{path}: {len(part.volume.array)} channels in a file of one", "split the file")
        parts.append(part)
    return parts


def _label(path: Path) -> _Part:
    volume = read_volume(path)
    if len(volume.array) != 1:
        raise VolumeError(f"{path}: a label with {len(volume.array)} channels", "give one label map per case")
    array = volume.array[0]
    whole = np.rint(array) if array.dtype.kind == "f" else array
    if not np.isfinite(array).all() or (whole != array).any() or array.min() < 0:
        raise VolumeError(
            f"{path}: label values that are not whole numbers >= 0 (between {array.min():g} and {array.max():g})",
            "give the label map as it was drawn, not interpolated",
        )
    return _Part("label", path, replace(volume, array=small(whole)[None]))


def _grid(channels: Sequence[_Part | None], label: _Part | None, target: Target) -> Grid:
    if target.like == "label":
        found = label
        wanted = "label"
    elif target.reference is not None:
        found = next((part for part in channels if part is not None and part.name == target.reference), None)
        wanted = f"channel '{target.reference}'"
    else:
        found = next((part for part in channels if part is not None), None)
        wanted = "channel"
    if found is None:
        raise VolumeError(f"it has no {wanted}, whose grid is wanted", "add it, or leave the case out")
    shape = found.volume.array.shape[1:]
    grid = Grid((shape[0], shape[1], shape[2]), found.volume.affine)
    return grid if target.spacing_mm is None else with_spacing(grid, target.spacing_mm)


def _is_on(part: _Part, grid: Grid) -> bool:
    """Return whether a volume is on a grid already.

    Raises:
        VolumeError: if it is not, and its header does not say where it lies.
    """
    stand_in = Volume(np.broadcast_to(np.uint8(0), (1, *grid.shape)), grid.affine)
    if same_grid(part.volume, stand_in):
        return True
    if not part.volume.oriented:
        raise VolumeError(
            f"{part.source}: its header does not say where it lies (no sform, no qform), and it is on another grid",
            "give it a header, for example by copying that of the image it was drawn on",
        )
    return False


def _image_on(part: _Part, grid: Grid, target: Target, warnings: list[str]) -> tuple[NDArray[Any], bool]:
    """Return a channel on the grid, and whether it had to be resampled."""
    array = part.volume.array[0]
    if _is_on(part, grid):
        narrow = array.dtype.kind in "iub" and array.dtype.itemsize <= 4 and array.dtype != bool
        return (array if narrow else small(array) if array.dtype.kind in "iub" else array.astype(np.float32)), False
    found, outside = resample_image(array, part.volume.affine, grid, _ORDERS[target.interpolation])
    if outside == 1:
        raise VolumeError(
            f"{part.source}: it lies entirely outside of the grid of the case",
            "its header, or that of the reference, is wrong, or they are of two patients",
        )
    if outside > _MIN_LOST:
        warnings.append(f"{part.name}: {outside:.1%} of the grid lies outside of it, and is filled with 0")
    return found, True


def _label_on(label: _Part, grid: Grid, warnings: list[str]) -> tuple[NDArray[Any], bool]:
    """Return the label on the grid, and whether it had to be resampled."""
    array = label.volume.array[0]
    if _is_on(label, grid):
        return array, False
    lost = lost_share(array, label.volume.affine, grid)
    if lost == 1:
        raise VolumeError(
            f"{label.source}: all that is labelled lies outside of the grid of the case",
            "its header, or that of the reference, is wrong, or they are of two patients",
        )
    found = resample_labels(array, label.volume.affine, grid)
    if lost > _MIN_LOST:
        warnings.append(f"label: {lost:.1%} of the labelled voxels lie outside of the grid, and are lost")
    counts = dict(zip(*(item.tolist() for item in np.unique(array, return_counts=True)), strict=True))
    gone = sorted(set(counts) - set(np.unique(found).tolist()) - {0})
    if gone:
        listed = ", ".join(f"{value} ({counts[value]} voxels)" for value in gone)
        warnings.append(f"label: nothing is left of value {listed}: too small for the voxels of the new grid")
    return found, True
