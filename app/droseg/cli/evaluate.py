"""`droseg evaluate`: score predictions, or a bundle, on the labelled cases of a datalist."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from droseg.errors import InputError
from droseg.keys import TESTING

if TYPE_CHECKING:
    from droseg.data.datalist import Datalist
    from droseg.report.score import Scores

CASES_FILE = "case_metrics.csv"


def register(subparsers: argparse._SubParsersAction) -> None:
    """Add `droseg evaluate`."""
    parser = subparsers.add_parser(
        "evaluate",
        help="score predictions: one row per case and structure",
        description="Score predicted label maps against the labels of a datalist, in mm of each case's own grid, and "
        f"write OUT/{CASES_FILE}. Give the predictions (--pred), or a bundle that makes them (--bundle).",
    )
    parser.add_argument("--datalist", required=True, type=Path, metavar="D")
    parser.add_argument("--section", default=TESTING, help="section of the datalist (default: testing)")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--pred", type=Path, metavar="DIR", help="folder with CASE_ID.nii.gz or CASE_ID_seg.nii.gz")
    source.add_argument("--bundle", help="shipped bundle or run folder; predictions go to OUT/predictions")
    parser.add_argument("--out", required=True, type=Path, metavar="DIR")
    parser.add_argument("--data-root", type=Path, help="folder that the datalist's relative paths start from")
    parser.add_argument("--structures", nargs="+", metavar="NAME", help="score only these (default: all declared)")
    parser.add_argument("--nsd-tolerance-mm", type=float, default=1.0, metavar="MM", help="default: 1.0")
    parser.add_argument("--missing-as-failure", action="store_true", help="score cases without a prediction as missed")
    parser.add_argument("--workers", type=int, default=1, metavar="N", help="processes for the metrics (default: 1)")
    parser.add_argument("--device", default="auto", help="for --bundle: cpu, cuda, cuda:1 or auto (default)")
    parser.add_argument("--overwrite", action="store_true", help="for --bundle: predict again what is already there")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Score one section; 1 if any case could not be scored."""
    from tqdm import tqdm

    from droseg.data.datalist import read_datalist
    from droseg.report.score import score_section

    if not args.nsd_tolerance_mm >= 0:
        raise InputError(f"--nsd-tolerance-mm is {args.nsd_tolerance_mm}; it must be >= 0.")
    datalist = read_datalist(args.datalist, args.data_root)
    cases = datalist.section(args.section)
    _make_folder(args.out)
    pred_dir, structures = args.pred, args.structures
    unpredicted: dict[str, str] = {}
    if args.bundle is not None:
        pred_dir, structures, unpredicted = _predict(args, datalist)
    with tqdm(total=len(cases), desc="scoring", unit="case", disable=not sys.stderr.isatty()) as bar:
        scores = score_section(
            datalist,
            args.section,
            pred_dir,
            structures=structures,
            nsd_tolerance_mm=args.nsd_tolerance_mm,
            missing_as_failure=args.missing_as_failure,
            workers=args.workers,
            on_case=lambda _: bar.update() and None,
        )
    if len(scores.cases):
        path = args.out / CASES_FILE
        scores.cases.to_csv(path, index=False, float_format="%.10g")
        _print_summary(scores, datalist, args.section, len(cases))
        print(f"\n{path}")
    return _print_problems(scores, pred_dir, unpredicted, args.missing_as_failure)


def _make_folder(out: Path) -> None:
    """Make the output folder and try to write into it, before hours of work."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        trial = out / ".droseg-write-test"
        trial.write_bytes(b"")
        trial.unlink()
    except OSError as error:
        raise InputError(f"{out}: cannot be written ({error.strerror}); choose another --out.") from error


def _predict(args: argparse.Namespace, datalist: Datalist) -> tuple[Path, list[str], dict[str, str]]:
    """Return the folder of the predictions, the structures that the bundle knows, and case_id -> what went wrong."""
    from tqdm import tqdm

    from droseg.inference import Predictor, predict_cases

    predictor = Predictor(args.bundle, device=args.device)
    absent = [name for name in predictor.structures if name not in datalist.structures]
    wanted = args.structures or [name for name in predictor.structures if name not in absent]
    unknown = [name for name in wanted if name not in predictor.structures]
    if unknown or not wanted:
        raise InputError(
            f"{args.bundle} segments {', '.join(predictor.structures)}; {args.datalist} declares "
            f"{', '.join(datalist.structures)}: {'no ' + ', '.join(unknown) if unknown else 'nothing in common'}."
        )
    for name in absent:
        print(f"note: {name} of the bundle is not declared in {args.datalist}; it is not scored.", file=sys.stderr)
    _check_values(predictor.structures, datalist, wanted, args.bundle)
    cases = datalist.section(args.section)
    out = args.out / "predictions"
    with tqdm(total=len(cases), desc="predicting", unit="case", disable=not sys.stderr.isatty()) as bar:
        results = predict_cases(
            cases, predictor, out, overwrite=args.overwrite, on_result=lambda _: bar.update() and None
        )
    return out, list(wanted), {r.case_id: f"{r.error}; {r.remedy}." for r in results if r.error}


def _check_values(predicted: dict[str, int], datalist: Datalist, names: list[str], bundle: str) -> None:
    """Refuse a bundle whose label values mean something else in the datalist."""
    for name in names:
        if predicted[name] not in datalist.structures[name]:
            raise InputError(
                f"{name} has the label value {predicted[name]} in {bundle} and {datalist.structures[name]} in "
                f"{datalist.path}; give a datalist with the values that the bundle was trained with."
            )


def _print_summary(scores: Scores, datalist: Datalist, section: str, total: int) -> None:
    from droseg.metrics import METRICS
    from droseg.report.console import failure_lines, group_table
    from droseg.report.subgroups import subgroup_table

    scored = scores.cases["case_id"].nunique()
    print(f"{scored} of {total} cases of section '{section}' scored; failures count as Dice 0 or the image diagonal.\n")
    axes = [axis for axis in datalist.axes if scores.cases[axis].notna().any()]
    table = subgroup_table(scores.cases, axes, METRICS, penalize=True, num_bootstrap=0)
    for metric in ("dice", "hd95_mm"):
        print(group_table(table, metric), end="\n\n")
    for line in failure_lines(scores.cases):
        print(line)
    for warning in scores.warnings:
        print(f"warning: {warning}", file=sys.stderr)


def _print_problems(scores: Scores, pred_dir: Path, unpredicted: dict[str, str], missing_as_failure: bool) -> int:
    """Say which cases are not in the table, or only as failures, and return the exit code."""
    for case_id, problem in [*unpredicted.items(), *scores.problems.items()]:
        print(f"droseg: error: {case_id}: {problem}", file=sys.stderr)
    missing = [case_id for case_id in scores.missing if case_id not in {*unpredicted, *scores.problems}]
    if missing:
        level, fate = "droseg: error", "not scored (--missing-as-failure counts them as missed)"
        if missing_as_failure:
            level, fate = "note", "scored as all background, as asked"
        print(f"{level}: no prediction in {pred_dir} for {len(missing)} cases, {fate}:", file=sys.stderr)
        print("  " + "\n  ".join(missing), file=sys.stderr)
    return 1 if unpredicted or scores.problems or (missing and not missing_as_failure) else 0
