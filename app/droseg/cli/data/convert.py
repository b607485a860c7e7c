"""`droseg data convert`: DICOM series and SEG objects to NIfTI, without what identifies people."""

from __future__ import annotations

import argparse
import json
import os
import shlex
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from droseg.data.convert import Plan

_DESCRIPTION = """\
Convert trees of DICOM files, as a PACS or a scanner exports them, to NIfTI:

  DIR/sub-001/ses-1/series-003.nii.gz        the volume, in scanner coordinates (RAS), slope and intercept applied
  DIR/sub-001/ses-1/series-003.json          how it was scanned: a fixed list of tags, named as in BIDS
  DIR/sub-001/ses-1/series-003_label.nii.gz  the label map of the DICOM SEG objects that refer to the series
  DIR/scans.tsv                              a row per series: subject, session, series, file, label_file, tags
  DIR/structures.json                        the label value of each segment name, the same in all cases

Subjects and sessions are numbered; no name, ID, date or description leaves the DICOM files, but the names of segments
do: read structures.json. Faces and burnt-in text stay in the voxels: they are not removed. The same command again goes
on where it stopped; new patients get new numbers.
"""


def register(jobs: argparse._SubParsersAction) -> None:
    """Add this job to `droseg data`."""
    parser = jobs.add_parser(
        "convert",
        help="DICOM series and DICOM SEG to de-identified NIfTI, with a table of scanner tags",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("trees", nargs="+", metavar="DICOM_TREE", help="folder of DICOM files, in whatever subfolders")
    parser.add_argument("--out", required=True, metavar="DIR", help="folder to write")
    parser.add_argument("--list", action="store_true", help="show what would be converted, with descriptions, and end")
    parser.add_argument(
        "--series-description",
        action="append",
        default=[],
        metavar="[NAME=]REGEX",
        help="convert only series whose description matches, and call their files NAME (repeatable; e.g. t1=mprage)",
    )
    parser.add_argument(
        "--seg-order",
        type=lambda text: [name.strip() for name in text.split(",")],
        default=[],
        metavar="NAME,NAME,...",
        help="segments that may overlap; where they do, the one named first wins",
    )
    parser.add_argument(
        "--keep-patient-ids", action="store_true", help="call subjects by PatientID: the names then identify people"
    )
    parser.add_argument(
        "--mapping",
        metavar="FILE",
        help="write which subject is which PatientID (tab-separated). It identifies people: keep it apart from DIR",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace files that were made from something else")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Convert DICOM trees; 1 if a series could not be."""
    from droseg.data.convert import convert, plan_conversion
    from droseg.data.convert.files import SCANS_FILE, STRUCTURES_FILE
    from droseg.data.convert.plan import compile_choices
    from droseg.data.form import strip_suffix
    from droseg.errors import InputError

    out = _absolute(args.out)
    mapping = _absolute(args.mapping) if args.mapping else None
    if mapping is not None and mapping.is_relative_to(out):
        raise InputError(f"--mapping {mapping}: it identifies people; choose a place outside of {out}.")
    plan = plan_conversion(
        [_absolute(tree) for tree in args.trees],
        out,
        choices=compile_choices(args.series_description),
        keep_patient_ids=args.keep_patient_ids,
        mapping=mapping,
        progress=True,
    )
    for note in plan.notes:
        print(f"droseg: warning: {note}.", file=sys.stderr)
    failed = _print_failures(plan.failures)
    if args.list:
        print(_listing(plan))
        return int(failed > 0)
    if not plan.items and not failed:
        reasons = ", ".join(sorted({skip.reason for skip in plan.skips})) or "no DICOM file"
        raise InputError(f"{', '.join(args.trees)}: nothing to convert ({reasons}); --list names what was left out.")
    counts: Counter[str] = Counter()
    for outcome in convert(plan, out, seg_order=args.seg_order, overwrite=args.overwrite, mapping=mapping):
        if outcome.message:
            failed += _print_failures([("", outcome.message.rstrip("."))])
        if outcome.status != "failed":
            label = {"written": " and its label map", "there": " and its label map", "failed": ", but no label map"}
            already = " (there already)" if {outcome.status, outcome.label} <= {"there", ""} else ""
            print(f"{strip_suffix(outcome.item.file)}{label.get(outcome.label, '')}{already}")
        counts[outcome.status] += 1
    _print_skips(plan)
    if args.keep_patient_ids:
        print("droseg: warning: subjects are called by their PatientIDs; the names identify people.", file=sys.stderr)
    if mapping is not None:
        print(f"droseg: warning: {mapping} identifies people; keep it apart from the converted files.", file=sys.stderr)
    if any(item.segs for item in plan.items):
        print(f"Structures: {json.dumps(dict(plan.structures), ensure_ascii=False)}")
        options = " ".join(f"--structure {shlex.quote(f'{name}={v}')}" for name, v in plan.structures.items())
        print(f"For droseg data new: --structures {out / STRUCTURES_FILE}, or {options}")
    table = f"; the table is {out / SCANS_FILE}" if (out / SCANS_FILE).is_file() else ""
    done = f"{counts['written']} series written, {counts['there']} there already"
    print(f"{done}, {failed} problem{'s' * (failed != 1)}{table}")
    return int(failed > 0)


def _absolute(path: str) -> Path:
    """Return the path from the root of the file system, without ".."."""
    return Path(os.path.abspath(Path(path).expanduser()))


def _print_failures(failures: Sequence[tuple[str, str]]) -> int:
    for where, why in failures:
        print(f"droseg: error: {where}{': ' * bool(where)}{why}.", file=sys.stderr)
    return len(failures)


def _print_skips(plan: Plan) -> None:
    reasons = Counter(skip.reason for skip in plan.skips)
    if reasons:
        listed = ", ".join(f"{count} x {reason}" for reason, count in reasons.most_common())
        print(f"Left out (--list names them): {listed}")


def _listing(plan: Plan) -> str:
    """Return what would be converted, and what would not, as aligned text."""
    from droseg.data.dicom_stack import series_spacing_mm

    rows = [("file", "size", "spacing_mm", "segments", "series")]
    for item in plan.items:
        series = item.scan.series
        spacing = " x ".join(f"{edge:.3g}" for edge in series_spacing_mm(series) or ())
        segments = str(len({name for seg in item.segs for name in seg.numbers}) or "-")
        rows.append((item.file, " x ".join(map(str, series.shape)), spacing, segments, series.label))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    if plan.structures:
        lines.append(f"label values: {', '.join(f'{name} {value}' for name, value in plan.structures.items())}")
    lines += [f"left out: {skip.name} in {skip.path}: {skip.reason}" for skip in plan.skips]
    return "\n".join(lines)
