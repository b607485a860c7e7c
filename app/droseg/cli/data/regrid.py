"""`droseg data regrid`: the channels and the label of each case on one grid."""

from __future__ import annotations

import argparse
import math
import os
import sys
from collections import Counter
from pathlib import Path

_DESCRIPTION = """\
Resample the channels and the label of each case onto one grid, by what their headers say about where they lie, and
write a datalist of the results with the same groups, folds and patients:

  DIR/images/CASE.nii.gz   CASE_0000.nii.gz and so on if there are several channels; 4D files are split
  DIR/labels/CASE.nii.gz   each voxel has the structure with the largest share of it; no new values, no jagged borders
  DIR/datalist.json        without the cases that failed

Images of one patient that moved between scans must be registered before: nothing is registered here. Volumes that are
on the grid already keep their voxels as they are. The same command again goes on where it stopped.
"""


def register(jobs: argparse._SubParsersAction) -> None:
    """Add this job to `droseg data`."""
    parser = jobs.add_parser(
        "regrid",
        help="resample channels and labels of each case onto one grid, by their headers",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("datalist", metavar="DATALIST", help="JSON file")
    parser.add_argument("--out", required=True, metavar="DIR", help="folder to write")
    parser.add_argument(
        "--like", choices=("channel", "label"), help="whose grid each case gets (default: that of a channel)"
    )
    parser.add_argument("--reference", metavar="CHANNEL", help="the channel whose grid it is (default: the first)")
    parser.add_argument(
        "--spacing-mm", type=_spacing, metavar="X,Y,Z", help="voxel size on the axes of that grid (default: its own)"
    )
    parser.add_argument(
        "--interpolation", choices=("linear", "cubic"), default="linear", help="of images (default linear)"
    )
    parser.add_argument("--data-root", metavar="DIR", help="folder that relative paths of DATALIST start from")
    parser.add_argument("--overwrite", action="store_true", help="replace files that were made from something else")
    parser.set_defaults(run=run)


def _spacing(text: str) -> tuple[float, float, float]:
    """Return the three lengths of "X,Y,Z"."""
    try:
        x, y, z = (float(word) for word in text.split(","))
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"'{text}' is not X,Y,Z, e.g. 1,1,1") from error
    if not all(math.isfinite(value) and value > 0 for value in (x, y, z)):
        raise argparse.ArgumentTypeError(f"'{text}' has a length that is not above 0")
    return x, y, z


def run(args: argparse.Namespace) -> int:
    """Regrid the cases of a datalist; 1 if one could not be."""
    from droseg.data.datalist import read_datalist
    from droseg.data.regrid import DATALIST_FILE, Target, regrid
    from droseg.errors import InputError

    if args.like == "label" and args.reference is not None:
        raise InputError("--like label and --reference CHANNEL are two different grids; give one of them.")
    out = Path(os.path.abspath(Path(args.out).expanduser()))
    target = Target(args.like or "channel", args.reference, args.spacing_mm, args.interpolation)
    counts: Counter[str] = Counter()
    for outcome in regrid(read_datalist(args.datalist, args.data_root), out, target, args.overwrite):
        counts[outcome.status] += 1
        for warning in outcome.warnings:
            print(f"droseg: warning: {outcome.case_id}: {warning}.", file=sys.stderr)
        if outcome.message:
            print(f"droseg: error: {outcome.case_id}: {outcome.message}", file=sys.stderr)
        else:
            words = {"unchanged": "on one grid already, voxels unchanged", "there": "there already"}
            print(f"{outcome.case_id}: {words.get(outcome.status, outcome.status)}")
    failed = counts["failed"]
    print(
        f"{counts['resampled']} cases resampled, {counts['unchanged']} on one grid already (voxels unchanged), "
        f"{counts['there']} there already, {failed} problem{'s' * (failed != 1)}"
    )
    if failed < sum(counts.values()):
        left_out = ", without the cases that failed" if failed else ""
        print(f"Wrote {out / DATALIST_FILE}{left_out}")
    return int(failed > 0)
