"""`droseg data split`: deal the patients of a datalist into sections or folds, or hold groups out."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from droseg.keys import SECTIONS

if TYPE_CHECKING:
    from droseg.data import Datalist


def register(jobs: argparse._SubParsersAction) -> None:
    """Add this job to `droseg data`."""
    parser = jobs.add_parser(
        "split",
        help="deal the patients of a datalist into sections or folds, or hold a group out",
        description="Write a new datalist in which all cases of a patient are in one section or fold, each stratum (a "
        "combination of the groups on the --stratify axes) in proportion. --hold-out can be combined with --fractions "
        "(of the rest, without testing) or --folds. Prints the patients in each cell, and warns about empty ones.",
    )
    parser.add_argument("datalist", metavar="DATALIST", help="JSON file")
    parser.add_argument(
        "--fractions", type=_fractions, metavar="SECTION=F,...", help="training=0.7,validation=0.1,testing=0.2"
    )
    parser.add_argument("--folds", type=int, metavar="K", help="number the training cases with folds 0 to K - 1")
    parser.add_argument(
        "--hold-out",
        action="append",
        default=[],
        type=_group,
        metavar="AXIS=VALUE",
        help="make this group the testing section (repeatable: all of them)",
    )
    parser.add_argument(
        "--stratify",
        action="append",
        default=[],
        metavar="AXIS",
        help="keep its groups in proportion (repeatable: their combinations)",
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the dealing (default 0)")
    parser.add_argument("--out", metavar="FILE", help="datalist to write (default: NAME_split.json beside DATALIST)")
    parser.add_argument("--overwrite", action="store_true", help="replace FILE if it holds another datalist")
    parser.add_argument("--data-root", metavar="DIR", help="folder that relative paths start from, in both files")
    parser.set_defaults(run=run)


def _fractions(text: str) -> dict[str, float]:
    """Return section -> share of "training=0.7,validation=0.1,testing=0.2"."""
    result: dict[str, float] = {}
    for item in text.split(","):
        section, _, share = item.partition("=")
        try:
            value = float(share)
        except ValueError as error:
            sections = ", ".join(SECTIONS)
            raise argparse.ArgumentTypeError(f"'{item}' is not SECTION=SHARE; the sections are {sections}") from error
        if section.strip() in result:
            raise argparse.ArgumentTypeError(f"'{section.strip()}' is given twice")
        result[section.strip()] = value
    return result


def _group(text: str) -> tuple[str, str]:
    """Return axis and group of "AXIS=VALUE"."""
    axis, equals, group = text.partition("=")
    if not (axis and equals and group):
        raise argparse.ArgumentTypeError(f"'{text}' is not AXIS=VALUE, e.g. protocol=site_a")
    return axis, group


def run(args: argparse.Namespace) -> int:
    """Split a datalist, write it and print how many patients are in each cell."""
    from droseg.data import group_table, read_datalist, split_datalist, write_datalist
    from droseg.data.groups import cell_table

    stratify = list(dict.fromkeys(args.stratify))
    datalist = read_datalist(args.datalist, args.data_root)
    result = split_datalist(
        datalist,
        fractions=args.fractions,
        folds=args.folds,
        hold_out=args.hold_out,
        stratify=stratify,
        seed=args.seed,
    )
    source = datalist.path
    out = Path(args.out).expanduser() if args.out else source.with_name(f"{source.stem}_split.json")
    _check_out(out, result, args)
    write_datalist(result, out, args.data_root)
    print("Cases of each group:")
    print(group_table(result))
    if stratify or args.folds is not None:
        print("Patients in each cell (and their cases, where these are more):")
        print(cell_table(result, stratify))
    for warning in _warnings(datalist, result, args, stratify):
        print(f"droseg: warning: {warning}.", file=sys.stderr)
    print(f"Wrote {out}")
    return 0


def _check_out(out: Path, result: Datalist, args: argparse.Namespace) -> None:
    """Refuse to replace a file, unless it is the same datalist or leave is given.

    Raises:
        InputError: if another file is there.
    """
    from droseg.data import read_datalist
    from droseg.errors import DatalistError, InputError

    if not out.exists() or args.overwrite:
        return
    try:
        same = replace(read_datalist(out, args.data_root), path=result.path) == result
    except DatalistError:
        same = False
    if not same:
        raise InputError(f"{out}: is there, and is not this split; give another --out, or --overwrite.")


def _warnings(datalist: Datalist, result: Datalist, args: argparse.Namespace, stratify: Sequence[str]) -> Iterator[str]:
    """Yield what a person should know about the cells of a split."""
    from droseg.data.groups import patients_in_several_groups, thin_cells

    held_out = list(dict.fromkeys(axis for axis, _ in args.hold_out))
    for section, share in (args.fractions or {}).items():
        if share > 0 and not result.sections.get(section):
            yield f"no patient in {section}: {share:g} of so few are rounded to none"
    for axis, patients in patients_in_several_groups(datalist, list(dict.fromkeys([*stratify, *held_out]))).items():
        shown = ", ".join(f"{name} ({' and '.join(groups)})" for name, groups in list(patients.items())[:5])
        more = f" and {len(patients) - 5} more" if len(patients) > 5 else ""
        moved = "all their scans are held out if one is" if axis in held_out else "they are a stratum of their own"
        have = "1 patient has" if len(patients) == 1 else f"{len(patients)} patients have"
        yield f"{have} scans in several groups of {axis}; {moved}: {shown}{more}"
    # That a group which is held out is missing elsewhere, and the others in testing, is what was asked for.
    axes = [axis for axis in result.axes if axis not in held_out]
    for axis in axes:
        yield from thin_cells(result, [axis], args.folds)
    combined = [axis for axis in stratify if axis not in held_out]
    if len(combined) > 1:
        yield from thin_cells(result, combined, args.folds)
