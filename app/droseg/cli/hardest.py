"""`droseg hardest`: the hardest training cases of a run, and which of their labels look wrong."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from droseg.errors import InputError

if TYPE_CHECKING:
    from droseg.hardest import Sheet

FOLDER = "hardest"


def register(subparsers: argparse._SubParsersAction) -> None:
    """Add `droseg hardest`."""
    parser = subparsers.add_parser(
        "hardest",
        help="the hardest training cases, ranked, with pictures, and which labels look wrong",
        description="Measure every training case of a run on its whole volume, without augmentation. Write "
        "DIR/hardest.csv (all cases, hardest first) and DIR/hardest.html (one self-contained page: the labels that "
        "look wrong, pictures of image, label and prediction, the loss curve of each case).",
    )
    parser.add_argument("run_folder", metavar="RUN", type=Path, help="the --out of `droseg train`; it may still train")
    parser.add_argument("--out", type=Path, metavar="DIR", help=f"folder for the sheet (default: RUN/{FOLDER})")
    parser.add_argument(
        "--top",
        type=int,
        default=12,
        metavar="N",
        help="cases with pictures: N whose label looks wrong and the N hardest others (default: 12)",
    )
    which = parser.add_mutually_exclusive_group()
    which.add_argument(
        "--by",
        choices=["early", "late"],
        help="rank by the losses that the training has kept of early_epoch, when wrong labels were not yet learned by "
        "heart (default if they are there), or by those of the selected network (model.pt); Dice, pictures and flags "
        "are those of model.pt either way",
    )
    which.add_argument("--last", action="store_true", help="rank and judge by the last network (model_last.pt)")
    parser.add_argument("--datalist", type=Path, metavar="D", help="instead of the one that the run was trained with")
    parser.add_argument("--data-root", type=Path, help="folder that the datalist's relative paths start from")
    parser.add_argument("--device", default="auto", help="cpu, cuda, cuda:1 or auto (default)")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Write the sheet; 1 if any case could not be measured."""
    from tqdm import tqdm

    from droseg.hardest import read_run, write_sheet

    if args.top < 0:
        raise InputError(f"--top is {args.top}; it must be >= 0.")
    options = {name: getattr(args, name) for name in ("by", "last", "device", "datalist", "data_root")}
    trained = read_run(args.run_folder, **options)
    out = args.out or args.run_folder / FOLDER
    _make_folder(out)
    total = len(trained.cases)
    with tqdm(total=total, desc="measuring", unit="case", disable=not sys.stderr.isatty()) as bar:
        sheet = write_sheet(trained, out, top=args.top, on_case=lambda _: bar.update() and None)
    return _say(sheet)


def _make_folder(out: Path) -> None:
    """Make the output folder and try to write into it, before the work."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        trial = out / ".droseg-write-test"
        trial.write_bytes(b"")
        trial.unlink()
    except OSError as error:
        raise InputError(f"{out}: cannot be written ({error.strerror}); choose another place by --out.") from error


def _say(sheet: Sheet) -> int:
    """Print what was found; return the exit code."""
    table = sheet.table
    for note in sheet.notes:
        print(f"note: {note}", file=sys.stderr)
    measured, flagged = table[table["rank"].notna()], table[table["flag"] != ""]
    columns = ["rank", "case_id", "loss", "dice_mean", "flag_score"]
    print(f"the hardest of {len(measured)} training cases, by the loss of the whole volume")
    print(f"({sheet.ranked_by}; Dice and flags: {sheet.judge}):\n")
    shown = measured.head(10)[columns].rename(columns={"case_id": "case", "dice_mean": "dice", "flag_score": "flag"})
    print(shown.to_string(index=False, float_format="{:.3g}".format))
    if len(flagged):
        print(f"\n{len(flagged)} label{'s' * (len(flagged) != 1)} that look{'s' * (len(flagged) == 1)} wrong:\n")
        for row in flagged.sort_values("flag_score", ascending=False, kind="stable").itertuples():
            print(f"  {row.case_id}: {row.flag_reason}")
    else:
        print("\nno label looks wrong (flag: 1 and above would)." + (" See the notes above." if sheet.notes else ""))
    print(f"\n{sheet.csv}\n{sheet.html}")
    failed = table[table["problem"] != ""]
    for row in failed.itertuples():
        print(f"droseg: error: {row.case_id}: not measured: {row.problem}", file=sys.stderr)
    return int(len(failed) > 0)
