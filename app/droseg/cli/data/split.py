"""`droseg data split`: deal the patients of a datalist into sections or folds, or hold a group out."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from droseg.keys import SECTIONS


def register(jobs: argparse._SubParsersAction) -> None:
    """Add this job to `droseg data`."""
    parser = jobs.add_parser(
        "split",
        help="deal the patients of a datalist into sections or folds, or hold a group out",
        description="Write a new datalist in which all cases of a patient are in one section or fold, each stratum in "
        "proportion. --hold-out can be combined with --fractions (of the rest, without testing) or --folds.",
    )
    parser.add_argument("datalist", metavar="DATALIST", help="JSON file")
    parser.add_argument(
        "--fractions", type=_fractions, metavar="SECTION=F,...", help="training=0.7,validation=0.1,testing=0.2"
    )
    parser.add_argument("--folds", type=int, metavar="K", help="number the training cases with folds 0 to K - 1")
    parser.add_argument("--hold-out", type=_group, metavar="AXIS=VALUE", help="make this group the testing section")
    parser.add_argument(
        "--stratify", action="append", default=[], metavar="AXIS", help="keep its groups in proportion (repeatable)"
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the dealing (default 0)")
    parser.add_argument("--out", metavar="FILE", help="datalist to write (default: NAME_split.json beside DATALIST)")
    parser.add_argument("--data-root", metavar="DIR", help="folder that relative paths start from, in both files")
    parser.set_defaults(run=run)


def _fractions(text: str) -> dict[str, float]:
    """Return section -> share of "training=0.7,validation=0.1,testing=0.2"."""
    result = {}
    for item in text.split(","):
        section, _, share = item.partition("=")
        try:
            result[section.strip()] = float(share)
        except ValueError as error:
            sections = ", ".join(SECTIONS)
            raise argparse.ArgumentTypeError(f"'{item}' is not SECTION=SHARE; the sections are {sections}") from error
    return result


def _group(text: str) -> tuple[str, str]:
    """Return axis and group of "AXIS=VALUE"."""
    axis, equals, group = text.partition("=")
    if not (axis and equals and group):
        raise argparse.ArgumentTypeError(f"'{text}' is not AXIS=VALUE, e.g. protocol=site_a")
    return axis, group


def run(args: argparse.Namespace) -> int:
    """Split a datalist, write it and print the number of cases in each section and group."""
    from droseg.data import empty_cells, group_table, read_datalist, split_datalist, write_datalist

    datalist = read_datalist(args.datalist, args.data_root)
    result = split_datalist(
        datalist,
        fractions=args.fractions,
        folds=args.folds,
        hold_out=args.hold_out,
        stratify=args.stratify,
        seed=args.seed,
    )
    source = datalist.path
    out = Path(args.out) if args.out else source.with_name(f"{source.stem}_split.json")
    write_datalist(result, out, args.data_root)
    print(group_table(result))
    if args.folds is not None:
        numbers = [case.fold for case in result.sections["training"]]
        print("folds: " + ", ".join(f"{numbers.count(fold)} cases in {fold}" for fold in range(args.folds)))
    for cell in empty_cells(result):
        print(f"droseg: warning: no case with {cell}.", file=sys.stderr)
    print(f"Wrote {out}")
    return 0
