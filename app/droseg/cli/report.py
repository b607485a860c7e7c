"""`droseg report`: from case metrics to subgroups, a comparison and a page."""

from __future__ import annotations

import argparse
import hashlib
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from droseg.cli.evaluate import CASES_FILE, RECORD_FILE, evaluated_section
from droseg.errors import InputError

if TYPE_CHECKING:
    import pandas as pd

    from droseg.data.datalist import Datalist
    from droseg.report import Report
    from droseg.report.card import ModelCard


def register(subparsers: argparse._SubParsersAction) -> None:
    """Add `droseg report`."""
    parser = subparsers.add_parser(
        "report",
        help="where a model fails, by subgroup, and what changed against a baseline",
        description="Write into OUT: report.html (one self-contained page), report.json (all numbers), table.md and "
        "table.tex (for a paper), subgroups.csv and further CSVs. Takes case_metrics.csv of droseg evaluate, or any "
        "CSV with one row per case and structure. Several files of one run are several trainings (seeds), averaged per "
        "case first.",
    )
    parser.add_argument("cases", nargs="*", type=Path, metavar="CASES.csv")
    parser.add_argument("--baseline", nargs="+", type=Path, metavar="OTHER.csv", help="run to compare with")
    parser.add_argument(
        "--run",
        action="append",
        default=[],
        dest="named",
        metavar="NAME=CSV",
        help="a run and its name, instead of CASES.csv; may be given several times, a name again is another seed. The "
        "first is what the others are compared with, unless there is a --baseline",
    )
    parser.add_argument(
        "--group-by",
        action="append",
        metavar="COLUMN",
        help='group axis; may be given several times; "A*B" groups by both at once (quote it)',
    )
    parser.add_argument(
        "--datalist", type=Path, metavar="D", help="images and labels for the pictures, and groups that the CSV lacks"
    )
    parser.add_argument("--data-root", type=Path, help="folder that the datalist's relative paths start from")
    parser.add_argument(
        "--pred", type=Path, metavar="DIR", help="predictions of the (first compared) run, for the pictures"
    )
    parser.add_argument(
        "--hidden", type=Path, metavar="CSV", help="hidden_subgroups.csv of droseg discover, for a section of its own"
    )
    parser.add_argument("--pictures", type=int, default=6, metavar="N", help="worst cases to show (default: 6)")
    parser.add_argument("--no-pictures", action="store_true", help="show none")
    parser.add_argument("--out", required=True, type=Path, metavar="DIR")
    parser.add_argument(
        "--model-card",
        type=Path,
        metavar="FILE",
        help="BUNDLE/docs/README.md: replace the results between its two marks by the tables of this report",
    )
    parser.add_argument("--name", help="what to call the run (default: the folder of its CSV)")
    parser.add_argument("--baseline-name", help="what to call the baseline (default: the folder of its CSV)")
    _add_statistics(parser.add_argument_group("statistics"))
    parser.add_argument(
        "--table",
        action="append",
        default=[],
        metavar="METRIC[@STRUCTURE]:FORM",
        help="column of table.md and table.tex, e.g. dice:mean±std, hd95_mm:median[iqr] (the default) or "
        "dice@*:mean[ci], one column per structure",
    )
    parser.add_argument(
        "--pseudonyms",
        action="store_true",
        help="replace the ids of cases and patients everywhere by random numbers; names of runs and groups stay",
    )
    parser.add_argument(
        "--pseudonym-key",
        type=Path,
        metavar="KEY.csv",
        help="write (and read again) which pseudonym is whom; implies --pseudonyms",
    )
    _add_columns(parser.add_argument_group("columns of CSVs made by other software"))
    parser.set_defaults(run=run)


def _add_statistics(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--seed", type=int, default=0, help="of the bootstrap (default: 0)")
    group.add_argument("--bootstrap", type=int, default=2000, metavar="N", help="samples per interval (default: 2000)")
    group.add_argument(
        "--min-n",
        type=int,
        default=5,
        metavar="N",
        help="patients that a group needs to be ranked and to be called helped or hurt; smaller ones are shown and "
        "marked (default: 5)",
    )
    group.add_argument(
        "--min-effect",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="smallest difference called helped or hurt (default: scores 0.01, hd_mm and hd95_mm 0.5, assd_mm 0.1)",
    )


def _add_columns(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--case-column", default="case_id", metavar="COLUMN")
    group.add_argument("--patient-column", metavar="COLUMN", help="default: patient_id if there, else the case")
    group.add_argument("--structure-column", default="structure", metavar="COLUMN")
    group.add_argument(
        "--metric",
        action="append",
        metavar="NAME:COLUMN[:lower|higher]",
        help="e.g. dice:DSC or hd95_mm:HD95. Lower is better if NAME ends in _mm (a distance) or _error, else higher; "
        "'lower' or 'higher' says so for any name, and 'higher' also that a score is no fraction. volume_ref_ml:COLUMN "
        "and volume_pred_ml:COLUMN tell missed from false positive",
    )
    group.add_argument("--where", action="append", default=[], metavar="COLUMN=VALUE", help="keep only these rows")
    group.add_argument(
        "--percent",
        action="store_true",
        help="dice, nsd and every other score are in percent; one that is not: NAME:COLUMN:higher",
    )


def run(args: argparse.Namespace) -> int:
    """Write the report and print its short form."""
    from droseg.data.datalist import read_datalist
    from droseg.metrics.axes import axis_columns
    from droseg.report.hidden import read_hidden
    from droseg.report.read import read_seeds
    from droseg.report.record import read_record
    from droseg.report.write import write_report

    if args.pred is not None and not args.pred.is_dir():  # said before the tables are read
        raise InputError(f"--pred {args.pred}: no such folder; give the folder of the predictions.")
    hidden = None if args.hidden is None else read_hidden(args.hidden)
    runs, reference = _runs(args)
    columns = None if args.group_by is None else axis_columns(args.group_by)
    read_notes: list[tuple[Path, str]] = []
    datalist = read_datalist(args.datalist, args.data_root) if args.datalist else None
    options = _read_options(args) | {"notes": read_notes, "groups": _groups(datalist)}
    _refuse_same_files(runs if reference is None else {**runs, reference[0]: reference[1]})
    tables: dict[str, pd.DataFrame] = {}
    for name, paths in runs.items():
        tables[name] = read_seeds(paths, axes=columns, **options)
    # The groups are those of the runs, so what they are compared with needs none.
    baseline = None if reference is None else read_seeds(reference[1], axes=(), **options)
    for note in _read_notes(read_notes):
        print(f"note: {note}", file=sys.stderr)
    first, *others = tables
    sources = runs if reference is None else {**runs, reference[0]: reference[1]}
    report = write_report(
        tables[first],
        args.out,
        axes=args.group_by,
        baseline=baseline,
        name=first,
        baseline_name="" if reference is None else reference[0],
        others={name: tables[name] for name in others},
        datalist=datalist,
        pred_dir=args.pred,
        num_pictures=0 if args.no_pictures else args.pictures,
        min_effect=_min_effects(args.min_effect),
        min_n=args.min_n,
        num_bootstrap=args.bootstrap,
        seed=args.seed,
        tables=args.table,
        pseudonyms=args.pseudonyms,
        pseudonym_key=args.pseudonym_key,
        hidden=hidden,
        notes=[*_origins(args, sources), *_filters(args), *_read_notes(read_notes, _hides_ids(args))],
        model_card=_model_card(args, sources, tables[first], datalist),
        records={name: record for name, paths in sources.items() if (record := read_record(_record_files(paths)))},
    )
    _print(report)
    return 0


def _print(report: Report) -> None:
    """Print the short form of a report: groups, failures, cases that were not compared, and where it lies."""
    from droseg.report.console import SIZE_LEGEND, failure_lines, group_table

    for evidence in report.runs:
        if len(report.runs) > 1:
            print(f"{evidence.name}:")
        for metric in dict.fromkeys([evidence.main_metric, *(m for m in ("hd95_mm",) if m in evidence.metrics)]):
            print(group_table(evidence.penalized, metric, evidence.comparison), end="\n\n")
        for line in failure_lines(evidence.cases):
            print(line)
        for sentence in () if evidence.record is None else evidence.record.sentences(evidence.name):
            print(f"note: {sentence}", file=sys.stderr)
        if evidence.comparison is None:
            continue
        for sentence in evidence.comparison.unpaired(evidence.name, evidence.baseline_name):
            print(sentence)
    print(SIZE_LEGEND)
    if report.evidence.comparison is not None:
        print(report.evidence.comparison.rule())
    for picture in report.pictures:
        if picture.problem:
            print(f"note: no picture of {picture.case_id}: {picture.problem}", file=sys.stderr)
    print(f"\n{report.html}")


def _runs(args: argparse.Namespace) -> tuple[dict[str, list[Path]], tuple[str, list[Path]] | None]:
    """Return name -> CSVs of the runs to report, and name and CSVs of what they are compared with."""
    if bool(args.cases) == bool(args.named):
        raise InputError("give either CASES.csv or --run NAME=CSV (several times for several runs).")
    if args.cases:
        name, baseline_name = _names(args)
        return {name: args.cases}, (baseline_name, args.baseline) if args.baseline else None
    if args.name:
        raise InputError("--name is for CASES.csv; the names of --run stand before the '='.")
    runs: dict[str, list[Path]] = {}
    for text in args.named:
        name, path = _pair(text, "=", "--run")
        runs.setdefault(name, []).append(Path(path))
    if args.baseline:
        return runs, (args.baseline_name or args.baseline[0].resolve().parent.name or "the baseline", args.baseline)
    if args.baseline_name:
        raise InputError("--baseline-name is for --baseline; the first --run has a name already.")
    if len(runs) == 1:
        return runs, None
    first = next(iter(runs))
    return {name: paths for name, paths in runs.items() if name != first}, (first, runs[first])


def _read_options(args: argparse.Namespace) -> dict[str, Any]:
    return {
        "case_column": args.case_column,
        "patient_column": args.patient_column,
        "structure_column": args.structure_column,
        "metrics": dict(_metric(text) for text in args.metric) if args.metric else None,
        "where": [_pair(text, "=", "--where") for text in args.where],
        "percent": args.percent,
        "other_scale": [_metric(text)[0] for text in args.metric or () if text.endswith(":higher")],
    }


def _pair(text: str, separator: str, option: str) -> tuple[str, str]:
    left, found, right = text.partition(separator)
    if not (found and left and right):
        raise InputError(f"{option} {text}: expected two parts with '{separator}' between them.")
    return left, right


def _metric(text: str) -> tuple[str, str]:
    """Return name and column of NAME:COLUMN or NAME:COLUMN:lower; the name says which direction is better."""
    from droseg.metrics.names import with_direction

    rest, _, direction = text.rpartition(":")
    if ":" not in rest or direction not in ("lower", "higher"):
        return _pair(text, ":", "--metric")
    name, column = _pair(rest, ":", "--metric")
    try:
        return with_direction(name, direction), column
    except ValueError as error:
        raise InputError(f"--metric {text}: {error}") from error


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


def _origins(args: argparse.Namespace, runs: Mapping[str, Sequence[Path]]) -> list[str]:
    """Return from which files the numbers come; a path may say who the patients are, its hash does not."""
    notes = []
    for name, paths in runs.items():
        digests = [_sha256(path)[:12] for path in paths]
        files = ", ".join(
            f"SHA-256 {digest}..." if _hides_ids(args) else f"{path} (SHA-256 {digest}...)"
            for path, digest in zip(paths, digests, strict=True)
        )
        count = f"is {len(paths)} trainings" if len(paths) > 1 else "is one training"
        notes.append(f"{name} {count}, from {files}.")
    return notes


def _filters(args: argparse.Namespace) -> list[str]:
    """Return what was done to the values and which rows were kept."""
    notes = ["Scores were given in percent and divided by 100."] if args.percent else []
    if args.where:
        kept = [text.partition("=")[0] + "=..." if _hides_ids(args) else text for text in args.where]
        notes.append(f"Only rows with {' and '.join(kept)}.")
    return notes


def _groups(datalist: Datalist | None) -> dict[str, dict[str, str]]:
    """Return axis -> case_id -> group, e.g. those of a datalist that `droseg discover --export-datalist` wrote."""
    if datalist is None:
        return {}
    cases = [case for section in datalist.sections.values() for case in section]
    return {axis: {c.case_id: c.groups[axis] for c in cases if axis in c.groups} for axis in datalist.axes}


def _read_notes(notes: Sequence[tuple[Path, str]], hide_files: bool = False) -> list[str]:
    """Return how the files were read, each once; the name of a file may say who the patients are."""
    texts = [text[0].upper() + text[1:] if hide_files else f"{path}: {text}" for path, text in notes]
    return [f"{text}." for text in dict.fromkeys(texts)]


def _refuse_same_files(runs: Mapping[str, Sequence[Path]]) -> None:
    """Refuse one table in two places: it would count as two trainings without any spread, or as no difference."""
    seen: dict[str, Path] = {}
    for path in (path for paths in runs.values() for path in paths if path.is_file()):
        other = seen.setdefault(_sha256(path), path)
        if other is not path:
            raise InputError(
                f"{path} has the same content as {other}; give each training once, and another one to compare with."
            )


def _model_card(
    args: argparse.Namespace, runs: Mapping[str, Sequence[Path]], cases: pd.DataFrame, datalist: Datalist | None
) -> ModelCard | None:
    """Return the card that takes the results; its section is the datalist's, else that of the evaluation."""
    from droseg.report.card import ModelCard, section_of

    if args.model_card is None:
        return None
    if datalist is not None:
        section = section_of(list(cases["case_id"]), datalist)
    else:
        sections = {evaluated_section(path.parent) for paths in runs.values() for path in paths}
        section = sections.pop() if len(sections) == 1 else ""
    digests = {name: [_sha256(path) for path in paths] for name, paths in runs.items()}
    return ModelCard(args.model_card, digests, section, _filters(args))


def _record_files(paths: Sequence[Path]) -> list[Path]:
    """Return where droseg evaluate wrote how it made these tables; a CSV of another name is not its own."""
    return [path.parent / RECORD_FILE for path in paths if path.name == CASES_FILE]


def _hides_ids(args: argparse.Namespace) -> bool:
    return bool(args.pseudonyms or args.pseudonym_key is not None)


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
