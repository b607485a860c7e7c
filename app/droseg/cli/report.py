"""`droseg report`: from case metrics to subgroups, a comparison and a page."""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence
from pathlib import Path

from droseg.errors import InputError


def register(subparsers: argparse._SubParsersAction) -> None:
    """Add `droseg report`."""
    parser = subparsers.add_parser(
        "report",
        help="where a model fails, by subgroup, and what changed against a baseline",
        description="Write OUT/report.html (one self-contained page), OUT/subgroups.csv and, with --baseline, "
        "OUT/comparison.csv. Takes case_metrics.csv of droseg evaluate, or any CSV with one row per case and "
        "structure. Several files on one side are several trainings (seeds), averaged per case first.",
    )
    parser.add_argument("cases", nargs="+", type=Path, metavar="CASES.csv")
    parser.add_argument("--baseline", nargs="+", type=Path, metavar="OTHER.csv", help="run to compare with")
    parser.add_argument("--group-by", action="append", metavar="COLUMN", help="group axis; may be given several times")
    parser.add_argument("--datalist", type=Path, metavar="D", help="images and labels, for the pictures")
    parser.add_argument("--data-root", type=Path, help="folder that the datalist's relative paths start from")
    parser.add_argument("--pred", type=Path, metavar="DIR", help="folder of the predictions, for the pictures")
    parser.add_argument("--pictures", type=int, default=6, metavar="N", help="worst cases to show (default: 6)")
    parser.add_argument("--out", required=True, type=Path, metavar="DIR")
    parser.add_argument("--name", help="what to call the run (default: the folder of its CSV)")
    parser.add_argument("--baseline-name", help="what to call the baseline (default: the folder of its CSV)")
    parser.add_argument("--seed", type=int, default=0, help="of the bootstrap (default: 0)")
    parser.add_argument("--bootstrap", type=int, default=2000, metavar="N", help="samples per interval (default: 2000)")
    parser.add_argument(
        "--min-effect",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="smallest difference called helped or hurt (default: scores 0.01, hd_mm and hd95_mm 0.5, assd_mm 0.1)",
    )
    columns = parser.add_argument_group("columns of CSVs made by other software")
    columns.add_argument("--case-column", default="case_id", metavar="COLUMN")
    columns.add_argument("--patient-column", metavar="COLUMN", help="default: patient_id if there, else the case")
    columns.add_argument("--structure-column", default="structure", metavar="COLUMN")
    columns.add_argument(
        "--metric",
        action="append",
        metavar="NAME:COLUMN",
        help="e.g. dice:DSC or hd95_mm:HD95; names in _mm are distances",
    )
    columns.add_argument("--where", action="append", default=[], metavar="COLUMN=VALUE", help="keep only these rows")
    columns.add_argument("--percent", action="store_true", help="dice and nsd are in percent")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Write the report and print its short form."""
    from droseg.data.datalist import read_datalist
    from droseg.report.console import failure_lines, group_table
    from droseg.report.read import read_seeds
    from droseg.report.seeds import average_seeds, average_sides
    from droseg.report.write import write_report

    options = {
        "case_column": args.case_column,
        "patient_column": args.patient_column,
        "structure_column": args.structure_column,
        "metrics": dict(_pair(text, ":", "--metric") for text in args.metric) if args.metric else None,
        "where": [_pair(text, "=", "--where") for text in args.where],
        "percent": args.percent,
    }
    if args.pred is not None and not args.pred.is_dir():  # said before the tables are read
        raise InputError(f"--pred {args.pred}: no such folder; give the folder of the predictions.")
    cases, baseline = read_seeds(args.cases, axes=args.group_by, **options), None
    if args.baseline:
        # The groups are those of the run, so the baseline needs none.
        cases, baseline = average_sides(cases, read_seeds(args.baseline, axes=(), **options))
    else:
        cases = average_seeds(cases)
    name, baseline_name = _names(args)
    report = write_report(
        cases,
        args.out,
        axes=args.group_by,
        baseline=baseline,
        name=name,
        baseline_name=baseline_name,
        datalist=read_datalist(args.datalist, args.data_root) if args.datalist else None,
        pred_dir=args.pred,
        num_pictures=args.pictures,
        min_effect=_min_effects(args.min_effect),
        num_bootstrap=args.bootstrap,
        seed=args.seed,
        notes=_notes(args, options["percent"]),
    )
    evidence = report.evidence
    for metric in dict.fromkeys([evidence.main_metric, *(m for m in ("hd95_mm",) if m in evidence.metrics)]):
        print(group_table(evidence.penalized, metric, evidence.comparison), end="\n\n")
    for line in failure_lines(cases):
        print(line)
    if evidence.comparison is not None:
        for ids, side in ((evidence.comparison.only_run, name), (evidence.comparison.only_baseline, baseline_name)):
            if ids:
                print(f"only in {side}, not compared: {', '.join(ids)}")
    for picture in report.pictures:
        if picture.problem:
            print(f"note: no picture of {picture.case_id}: {picture.problem}", file=sys.stderr)
    print(f"\n{report.html}")
    return 0


def _pair(text: str, separator: str, option: str) -> tuple[str, str]:
    left, found, right = text.partition(separator)
    if not (found and left and right):
        raise InputError(f"{option} {text}: expected two parts with '{separator}' between them.")
    return left, right


def _min_effects(texts: Sequence[str]) -> dict[str, float]:
    effects = {}
    for text in texts:
        name, value = _pair(text, "=", "--min-effect")
        try:
            effects[name] = float(value)
        except ValueError as error:
            raise InputError(f"--min-effect {text}: '{value}' is not a number.") from error
        if not (math.isfinite(effects[name]) and effects[name] >= 0):
            raise InputError(f"--min-effect {text}: it must be >= 0.")
    return effects


def _names(args: argparse.Namespace) -> tuple[str, str]:
    """Return what to call both sides: their folders if those differ."""
    own = args.cases[0].resolve().parent.name
    other = args.baseline[0].resolve().parent.name if args.baseline else ""
    if not own or own == other:
        own, other = "This run", "the baseline"
    return args.name or own, args.baseline_name or other or "the baseline"


def _notes(args: argparse.Namespace, percent: bool) -> list[str]:
    notes = []
    for side, paths in (("run", args.cases), ("baseline", args.baseline or [])):
        files = ", ".join(map(str, paths))
        if len(paths) > 1:
            notes.append(
                f"The {side} is {len(paths)} trainings, averaged per case and structure before anything else (a "
                f"failure in some of them enters the mean with its penalized value): {files}."
            )
        else:
            notes.append(f"The {side} is one training, from {files}: its luck is part of every difference.")
    if percent:
        notes.append("dice and nsd were given in percent and divided by 100.")
    if args.where:
        notes.append(f"Only rows with {' and '.join(args.where)}.")
    return notes
