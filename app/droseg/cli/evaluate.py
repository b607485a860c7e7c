"""`droseg evaluate`: score predictions, or a bundle, on the labelled cases of a datalist."""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from droseg.errors import InputError
from droseg.keys import CASES_FILE, RECORD_FILE, TESTING

if TYPE_CHECKING:
    from droseg.data.datalist import Case, Datalist
    from droseg.inference import Predictor
    from droseg.report.score import Scores

PREDICTIONS = "predictions"


def register(subparsers: argparse._SubParsersAction) -> None:
    """Add `droseg evaluate`."""
    parser = subparsers.add_parser(
        "evaluate",
        help="score predictions: one row per case and structure",
        description="Score predicted label maps against the labels of a datalist, in mm of each case's own grid, and "
        f"write OUT/{CASES_FILE} and how it was made, OUT/{RECORD_FILE}. Give the predictions (--pred: also those of "
        "nnU-Net, or of a bundle's evaluate.yaml), or a bundle that makes them (--bundle). docs/metrics.md defines "
        "every metric.",
    )
    parser.add_argument("--datalist", required=True, type=Path, metavar="D")
    parser.add_argument("--section", default=TESTING, help="section of the datalist (default: testing)")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--pred", type=Path, metavar="DIR", help="folder with CASE_ID.nii.gz or CASE_ID_seg.nii.gz")
    source.add_argument("--bundle", help=f"shipped bundle or run folder; predictions go to OUT/{PREDICTIONS}")
    parser.add_argument("--out", required=True, type=Path, metavar="DIR")
    parser.add_argument("--data-root", type=Path, help="folder that the datalist's relative paths start from")
    parser.add_argument("--structures", nargs="+", metavar="NAME", help="score only these (default: all declared)")
    parser.add_argument(
        "--nsd-tolerance-mm",
        nargs="+",
        default=["1.0"],
        metavar="MM",
        help="for all structures (default: 1.0); NAME=MM for single ones",
    )
    parser.add_argument(
        "--extra-metrics",
        nargs="+",
        default=[],
        metavar="NAME",
        help="also measure any percentile of the Hausdorff distance (hd90_mm, hd99.5_mm), betti0_error, betti1_error, "
        "betti2_error",
    )
    parser.add_argument(
        "--missing-as-failure", action="store_true", help="for --pred: cases without one count as missed"
    )
    parser.add_argument("--workers", type=int, default=1, metavar="N", help="processes for the metrics (default: 1)")
    parser.add_argument("--device", default="auto", help="for --bundle: cpu, cuda, cuda:1 or auto (default)")
    parser.add_argument("--overwrite", action="store_true", help="for --bundle: predict again what is already there")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Score one section; 1 if any case could not be scored."""
    from tqdm import tqdm

    from droseg.data.datalist import read_datalist
    from droseg.metrics import EXTRA_METRICS
    from droseg.report.score import score_section

    _check_arguments(args)
    datalist = read_datalist(args.datalist, args.data_root)
    tolerance_mm = _tolerances_mm(args.nsd_tolerance_mm, list(datalist.structures))
    cases = datalist.section(args.section)
    _make_folder(args.out)
    pred_dir, structures = args.pred, args.structures
    predictions: dict[str, Path] | None = None
    unpredicted: dict[str, str] = {}
    if args.bundle is not None:
        from droseg.inference import Predictor

        predictor = Predictor(args.bundle, device=args.device, force=True)
        pred_dir, structures = args.out / PREDICTIONS, _common_structures(predictor, args, datalist)
        predictions, unpredicted = _predict(predictor, cases, pred_dir, args.overwrite)
    total = len(cases) if predictions is None else len(predictions)
    with tqdm(total=total, desc="scoring", unit="case", disable=not sys.stderr.isatty()) as bar:
        scores = score_section(
            datalist,
            args.section,
            pred_dir,
            predictions=predictions,
            structures=structures,
            nsd_tolerance_mm=tolerance_mm,
            extra_metrics=(*EXTRA_METRICS, *args.extra_metrics),
            missing_as_failure=args.missing_as_failure,
            workers=args.workers,
            on_case=lambda _: bar.update(),
        )
    path = args.out / CASES_FILE
    if len(scores.cases):
        scores.cases.to_csv(path, index=False, float_format="%.10g")
        _write_record(args, datalist, scores, tolerance_mm, unpredicted)
        _print_summary(scores, datalist, args.section, len(cases))
        print(f"\n{path}")
    elif path.exists():
        print(f"note: no case was scored; {path} is that of an earlier evaluation.", file=sys.stderr)
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


def _check_arguments(args: argparse.Namespace) -> None:
    from droseg.metrics.names import BETTI_ERRORS, is_metric
    from droseg.metrics.topology import require_topology

    unknown = [name for name in args.extra_metrics if not is_metric(name)]
    if unknown:
        raise InputError(
            f"--extra-metrics: no metric {', '.join(unknown)}; give hdP_mm with a percentile P above 0 and up to 100, "
            f"or of {', '.join(BETTI_ERRORS)}."
        )
    if {*BETTI_ERRORS[1:]} & {*args.extra_metrics}:
        require_topology()  # before hours of prediction
    if args.workers < 0:
        raise InputError(f"--workers is {args.workers}; it must be >= 0.")
    if args.bundle is not None and args.missing_as_failure:
        raise InputError(
            "--missing-as-failure is for --pred: a case that --bundle cannot segment is an error to mend. To count it "
            f"as missed all the same, evaluate again with --pred {args.out / PREDICTIONS}."
        )


def _tolerances_mm(texts: Sequence[str], structures: Sequence[str]) -> dict[str, float]:
    """Return the tolerance of every structure: its own, else the one without a name, else 1 mm."""
    default, own = 1.0, {}
    for text in texts:
        name, _, number = text.rpartition("=")
        try:
            value = float(number)
        except ValueError:
            value = math.nan
        if not (math.isfinite(value) and value >= 0):
            raise InputError(f"--nsd-tolerance-mm is {text}; it must be a number >= 0, or NAME=NUMBER.")
        if name and name not in structures:
            raise InputError(
                f"--nsd-tolerance-mm {text}: no structure {name}; those declared: {', '.join(structures)}."
            )
        if name:
            own[name] = value
        else:
            default = value
    return {name: own.get(name, default) for name in structures}


def _write_record(
    args: argparse.Namespace,
    datalist: Datalist,
    scores: Scores,
    tolerance_mm: dict[str, float],
    unpredicted: dict[str, str],
) -> None:
    from droseg.metrics import evaluation_record, write_record

    record = evaluation_record(
        scores.cases,
        datalist.structures,
        tolerance_mm,
        datalist=datalist.path,
        section=args.section,
        predictions=args.pred if args.bundle is None else args.out / PREDICTIONS,
        bundle=args.bundle,
        missing=[case_id for case_id in scores.missing if case_id not in unpredicted],
        missing_as_failure=args.missing_as_failure,
        not_scored={**unpredicted, **scores.problems},
        warnings=scores.warnings,
    )
    write_record(args.out, record)


def _common_structures(predictor: Predictor, args: argparse.Namespace, datalist: Datalist) -> list[str]:
    """Return the structures to score: those that the bundle segments and the datalist declares."""
    absent = [name for name in predictor.structures if name not in datalist.structures]
    wanted = args.structures or [name for name in predictor.structures if name not in absent]
    unknown = [name for name in wanted if name not in predictor.structures or name not in datalist.structures]
    if unknown or not wanted:
        raise InputError(
            f"{args.bundle} segments {', '.join(predictor.structures)}; {args.datalist} declares "
            f"{', '.join(datalist.structures)}: {'no ' + ', '.join(unknown) if unknown else 'nothing in common'}."
        )
    for name in absent:
        print(f"note: {name} of the bundle is not declared in {args.datalist}; it is not scored.", file=sys.stderr)
    _check_values(predictor, datalist, wanted, args.bundle)
    return list(wanted)


def _predict(
    predictor: Predictor, cases: Sequence[Case], out: Path, overwrite: bool
) -> tuple[dict[str, Path], dict[str, str]]:
    """Return case_id -> label map that this bundle made of this image, and case_id -> what went wrong."""
    from tqdm import tqdm

    from droseg.inference import InputCase, predict_cases

    with tqdm(total=len(cases), desc="predicting", unit="case", disable=not sys.stderr.isatty()) as bar:
        inputs = [InputCase(case.case_id, case.images) for case in cases]
        results = predict_cases(inputs, predictor, out, overwrite=overwrite, on_result=lambda _: bar.update() and None)
    # What else lies in the folder may be the work of another model.
    predictions = {r.case_id: Path(r.output) for r in results if r.status == "ok" and r.output is not None}
    failed = {r.case_id: f"{r.error}; {r.remedy}; not scored." for r in results if r.case_id not in predictions}
    return predictions, failed


def _check_values(predictor: Predictor, datalist: Datalist, names: list[str], bundle: str) -> None:
    """Refuse a bundle whose label values mean something else in the datalist."""
    other = []
    for name in names:
        predicted, declared = predictor.structures[name], datalist.structures[name]
        written = predicted if predictor.overlapping else predicted[:1]  # of several values of a class: the first
        if not set(written) <= set(declared) or (predictor.overlapping and set(predicted) != set(declared)):
            other.append(f"{name} ({', '.join(map(str, written))} and {', '.join(map(str, declared))})")
    if other:
        raise InputError(
            f"the label values in {bundle} are not those in {datalist.path}: {'; '.join(other)}; give a datalist with "
            "the values that the bundle was trained with."
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
        if scores.strangers:
            names = ", ".join(scores.strangers[:3]) + (", ..." if len(scores.strangers) > 3 else "")
            print(
                f"  {pred_dir} holds {len(scores.strangers)} label maps of no case ({names}); "
                "a prediction is named CASE_ID or CASE_ID_seg.",
                file=sys.stderr,
            )
    return 1 if unpredicted or scores.problems or (missing and not missing_as_failure) else 0


def evaluated_section(folder: Path) -> str:
    """Return the section that was scored into this folder; "" if no record there says so."""
    try:
        record = json.loads((folder / RECORD_FILE).read_text())
    except (OSError, ValueError):
        return ""
    return str(record.get("section", "")) if isinstance(record, dict) else ""
