"""Does what a plan says: one series after the other, and no bad one keeps the others from being converted."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from droseg.data.convert import files
from droseg.data.convert.label_map import label_map
from droseg.data.convert.plan import Item, Plan
from droseg.data.dicom_pixels import read_series
from droseg.data.volumes import VolumeError, check_form
from droseg.data.writing import output_lock, remove_leftovers, writable_folder, write_image
from droseg.errors import InputError

Status = Literal["written", "there", "failed"]


@dataclass(frozen=True)
class Outcome:
    """What became of one series.

    Attributes:
        status: "there" if an earlier run has written it from the same images.
        label: of its label map; empty if there is no SEG object.
        message: what went wrong.
    """

    item: Item
    status: Status
    label: Status | Literal[""] = ""
    message: str = ""


class _Taken(Exception):
    """A file that is there already, and was made from something else."""


def convert(
    plan: Plan, out: Path, *, seg_order: Sequence[str] = (), overwrite: bool = False, mapping: Path | None = None
) -> Iterator[Outcome]:
    """Yield what became of each series, and write the tables in the end, also of a run that is stopped.

    Args:
        plan: of `plan_conversion`.
        out: folder to write.
        seg_order: names of segments that may overlap; where they do, the first one wins.
        overwrite: replace files that were made from something else.
        mapping: table that says which subject is who; it identifies people.
    Raises:
        InputError: if `seg_order` names no segment, or a file of another kind has the name of a table.
        OutputError: if the folder takes no file, or another run writes there.
    """
    unknown = [name for name in seg_order if name not in plan.structures]
    if unknown:
        there = ", ".join(plan.structures) or "none"
        raise InputError(f"--seg-order: no segment is called '{unknown[0]}'; there are {there}.")
    files.read_table(out / files.SCANS_FILE, files.SCAN_COLUMNS)
    if mapping is not None:
        files.read_table(mapping, files.MAPPING_COLUMNS)
    done: list[Outcome] = []
    with output_lock(writable_folder(out)):
        for folder in (out, *out.glob("*/*/")):
            remove_leftovers(folder)
        try:
            for item in plan.items:
                done.append(_convert(item, out, plan.structures, seg_order, overwrite))
                yield done[-1]
        finally:
            _write_tables(done, out, plan.structures, mapping)


def _convert(
    item: Item, out: Path, structures: Mapping[str, int], seg_order: Sequence[str], overwrite: bool
) -> Outcome:
    label: Status | Literal[""] = ""
    status: Status = "failed"
    try:
        status = _write_image(item, out / item.file, overwrite)
        if item.segs:
            label = "failed"
            label = _write_label(item, out / item.label_file, structures, seg_order, overwrite)
    except (VolumeError, _Taken) as error:
        return Outcome(item, status, label, str(error))
    except MemoryError:
        return Outcome(item, status, label, f"{item.scan.series}: it needs more memory than there is here.")
    return Outcome(item, status, label)


def _write_image(item: Item, path: Path, overwrite: bool) -> Status:
    mark = files.series_mark(item.scan.key, item.scan.source)
    if _is_there(path, (mark,), overwrite):
        return "there"
    volume = read_series(item.scan.series)
    check_form(volume, str(item.scan.series))
    files.write_series(files.nifti(files.small(volume.array[0]), volume.affine, mark), path, item.scan.tags)
    return "written"


def _write_label(
    item: Item, path: Path, structures: Mapping[str, int], seg_order: Sequence[str], overwrite: bool
) -> Status:
    values = {name: structures[name] for seg in item.segs for name in seg.numbers}
    said = [item.scan.source, *sorted(seg.instance or seg.path.name for seg in item.segs)]
    said += [f"{name}={value}" for name, value in sorted(values.items())]
    # One that was made without an order has no overlap, so that it is the same with any.
    orders = [[name for name in seg_order if name in values], []]
    digests = [hashlib.sha256("\n".join([*said, "order", *order]).encode()).hexdigest()[:16] for order in orders]
    mark, plain = map(files.label_mark, digests)
    if _is_there(path, (mark, plain), overwrite):
        return "there"
    labels = label_map(item.segs, item.scan.series, values, seg_order)
    write_image(files.nifti(labels, np.array(item.scan.series.affine), mark), path)
    return "written"


def _is_there(path: Path, marks: Sequence[str], overwrite: bool) -> bool:
    """Return whether the file has been written from the same source already, as one of the marks says.

    Raises:
        _Taken: if another file has its name, and may not be replaced.
    """
    if not path.exists():
        return False
    if files.read_mark(path) in marks:
        return True
    if overwrite:
        return False
    raise _Taken(f"{path}: is there, made from other files or options; --overwrite, or another --out.")


def _write_tables(done: Sequence[Outcome], out: Path, structures: Mapping[str, int], mapping: Path | None) -> None:
    usable = [outcome for outcome in done if outcome.status != "failed"]
    rows = []
    for outcome in usable:
        item = outcome.item
        has_label = outcome.label != "failed" and (out / item.label_file).is_file()
        rows.append(files.scan_row(item.name, item.file, item.label_file if has_label else "", item.scan.tags))
    if rows:
        files.update_table(out / files.SCANS_FILE, files.SCAN_COLUMNS, rows, out)
    if structures and any(outcome.label in ("written", "there") for outcome in done):
        files.write_structures(out, structures)
    if mapping is not None and usable:
        who = [_mapping_row(outcome.item) for outcome in usable]
        mapping.parent.mkdir(parents=True, exist_ok=True)
        files.update_table(mapping, files.MAPPING_COLUMNS, who, out, mode=0o600)


def _mapping_row(item: Item) -> dict[str, str]:
    series = item.scan.series
    told = (item.scan.patient_id, series.study_uid, series.uid, series.description, str(series.folder))
    return dict(zip(files.MAPPING_COLUMNS, (*item.name, item.file, *told), strict=True))
