"""`droseg discover`: readable slices in which a metric is bad and that no group axis names."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from droseg.errors import InputError

if TYPE_CHECKING:
    import pandas as pd

    from droseg.data.datalist import Case, Datalist
    from droseg.discovery import HiddenSubgroup

SUBGROUPS_FILE = "hidden_subgroups.csv"
FEATURES_FILE = "features.csv"


def register(subparsers: argparse._SubParsersAction) -> None:
    """Add `droseg discover`."""
    parser = subparsers.add_parser(
        "discover",
        help="hidden subgroups: readable rules where the metric is bad",
        description="Search half of the patients for rules of one or two conditions on header, acquisition and volume "
        "features under which the metric is bad, and test them on the other half; then the other way round. Where the "
        "metric has nothing to do with the features, the chance of any false alarm is at most --alpha; where they "
        "change its spread and not its mean, about so (docs/discovery.md). If nothing is confirmed, what could have "
        f"been found is estimated and said. The exit code is 1 also if images could not be read, which the search then "
        f"went without. Writes OUT/{SUBGROUPS_FILE} and OUT/{FEATURES_FILE}.",
    )
    parser.add_argument("cases", nargs="+", type=Path, metavar="CASES.csv", help="case_metrics.csv of droseg evaluate")
    parser.add_argument("--datalist", type=Path, metavar="D", help="images to read features from, and groups")
    parser.add_argument("--data-root", type=Path, help="folder that the datalist's relative paths start from")
    parser.add_argument(
        "--features",
        action="append",
        default=[],
        type=Path,
        metavar="CSV",
        help="more features, by case_id (repeatable)",
    )
    parser.add_argument("--bundle", help="bundle or run folder: adds features of its network (needs --datalist)")
    parser.add_argument("--device", default="auto", help="for --bundle: cpu, cuda, cuda:1 or auto (default)")
    parser.add_argument("--metric", default="dice", help="column to explain (default: dice)")
    parser.add_argument("--structure", metavar="NAME", help="of this structure (default: the mean over structures)")
    parser.add_argument(
        "--export-datalist", type=Path, metavar="OUT.json", help="datalist with an axis per confirmed rule"
    )
    parser.add_argument("--out", required=True, type=Path, metavar="DIR")
    parser.add_argument("--rules", type=int, default=3, metavar="K", help="how many to show at most (default: 3)")
    parser.add_argument(
        "--min-patients", type=int, default=5, metavar="N", help="smallest slice in each half (default: 5 patients)"
    )
    parser.add_argument("--min-effect", type=float, metavar="X", help="smallest difference (default: as droseg report)")
    parser.add_argument(
        "--alpha", type=float, default=0.05, help="chance of any false alarm, see above (default: 0.05)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the split (default: 0)")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Search, print and write; 1 if a case could not be read or there is nothing to export."""
    from droseg.data.datalist import read_datalist, write_datalist
    from droseg.discovery import (
        axis_names,
        find_hidden_subgroups,
        hidden_table,
        merge_features,
        visible_effect,
        with_hidden_axes,
    )
    from droseg.metrics import higher_is_better
    from droseg.report.compare import default_min_effect

    _check_arguments(args)
    cases, values = _read_values(args)
    datalist = read_datalist(args.datalist, args.data_root) if args.datalist else None
    features, known, problems = _read_features(args, cases, datalist)
    patients = cases.drop_duplicates("case_id").set_index("case_id")["patient_id"]
    options = {
        "higher_is_better": higher_is_better(args.metric),
        "min_patients": args.min_patients,
        "alpha": args.alpha,
        "min_effect": default_min_effect(args.metric) if args.min_effect is None else args.min_effect,
        "seed": args.seed,
    }
    found = find_hidden_subgroups(features, values, patients, known, num_rules=args.rules, **options)
    confirmed = [subgroup for subgroup in found if subgroup.confirmed]
    axes = axis_names(len(confirmed), list(known.columns))
    hidden_table(found, axes).to_csv(args.out / SUBGROUPS_FILE, index=False, float_format="%.6g")
    features.to_csv(args.out / FEATURES_FILE, float_format="%.10g")
    _print_findings(args, found, len(values), features.shape[1] + known.shape[1])
    if not confirmed:
        visible = visible_effect(features, values, patients, known, **options)
        print(
            "No rule holds enough patients to be tested."
            if visible is None
            else visible.sentence(_what(args), higher_is_better(args.metric))
        )
    print(f"\n{args.out / SUBGROUPS_FILE}")
    if datalist is not None and args.export_datalist and confirmed:
        of_rules = merge_features([known, features])
        write_datalist(with_hidden_axes(datalist, of_rules, confirmed, axes), args.export_datalist)
        print(f"{args.export_datalist}: " + ", ".join(f"{a} = {s.rule}" for a, s in zip(axes, confirmed, strict=True)))
    if problems:
        print(f"droseg: error: {_unread(problems)}", file=sys.stderr)
    if args.export_datalist and not confirmed:
        print(f"droseg: error: nothing is confirmed, so {args.export_datalist} is not written.", file=sys.stderr)
    return 1 if problems or (args.export_datalist and not confirmed) else 0


def _check_arguments(args: argparse.Namespace) -> None:
    if args.export_datalist and not args.datalist:
        raise InputError("--export-datalist adds axes to a datalist; give it by --datalist.")
    if args.bundle and not args.datalist:
        raise InputError("--bundle looks at images; give them by --datalist.")
    if not 0 < args.alpha < 1:
        raise InputError(f"--alpha is {args.alpha}; it must lie between 0 and 1.")
    for name, value, least in (
        ("rules", args.rules, 1),
        ("min-patients", args.min_patients, 2),
        ("seed", args.seed, 0),
    ):
        if value < least:
            raise InputError(f"--{name} is {value}; it must be at least {least}.")
    try:
        args.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{args.out}: cannot be made ({error.strerror}); choose another --out.") from error


def _read_values(args: argparse.Namespace) -> tuple[pd.DataFrame, pd.Series]:
    """Return the cases table and the penalized metric of each case."""
    from droseg.metrics import METRICS
    from droseg.metrics.groups import case_values
    from droseg.report.read import read_cases

    cases = read_cases(args.cases, metrics=None if args.metric in METRICS else {args.metric: args.metric})
    if args.metric not in cases.columns:
        raise InputError(f"{args.cases[0]}: no column '{args.metric}'; those there: {', '.join(cases.columns)}.")
    names = list(cases["structure"].unique())
    if args.structure is not None and args.structure not in names:
        raise InputError(f"{args.cases[0]}: no structure '{args.structure}'; those there: {', '.join(names)}.")
    scored = cases if args.structure is None else cases[cases["structure"] == args.structure]
    return cases, case_values(scored, args.metric)


def _read_features(
    args: argparse.Namespace, cases: pd.DataFrame, datalist: Datalist | None
) -> tuple[pd.DataFrame, pd.DataFrame, dict[str, str]]:
    """Return features and known groups by case_id, and the cases whose volumes cannot be read."""
    from tqdm import tqdm

    from droseg.discovery import datalist_features, group_features, merge_features, read_features, volume_features
    from droseg.report.seeds import group_axes

    scored = set(cases["case_id"])
    tables = [read_features(path) for path in args.features]
    for path, table in zip(args.features, tables, strict=True):
        if not scored & set(table.index):
            raise InputError(f"{path}: none of its cases is in {args.cases[0]}; correct its case_id.")
    tables.append(volume_features(cases))
    known = [cases.drop_duplicates("case_id").set_index("case_id")[group_axes(cases)]]
    problems: dict[str, str] = {}
    if datalist is not None:
        listed = [case for section in datalist.sections.values() for case in section]
        missing = scored - {case.case_id for case in listed}
        if missing:
            print(
                f"note: {len(missing)} of {len(scored)} cases are not in {args.datalist}; their header features are "
                f"unknown: {', '.join(sorted(missing)[:5])}{', ...' if len(missing) > 5 else ''}",
                file=sys.stderr,
            )
        # Rules come from the scored cases alone; an exported axis needs the features of the others too.
        wanted = [case for case in listed if args.export_datalist or case.case_id in scored]
        bar = tqdm(wanted, desc="reading", unit="case", disable=not sys.stderr.isatty())
        table, problems = datalist_features(bar, datalist.structures, datalist.channels)
        tables.append(table)
        if args.bundle:
            tables.append(_network_features(args, [case for case in wanted if case.case_id not in problems]))
        known.append(group_features(wanted))
    return merge_features(tables), merge_features(known), problems


def _network_features(args: argparse.Namespace, cases: Sequence[Case]) -> pd.DataFrame:
    from tqdm import tqdm

    from droseg.discovery.network import network_features
    from droseg.inference import Predictor

    predictor = Predictor(args.bundle, device=args.device, force=True)
    with tqdm(total=len(cases), desc="network", unit="case", disable=not sys.stderr.isatty()) as bar:

        def segment(paths: Sequence[Path]) -> None:
            predictor(paths)
            bar.update()

        return network_features(predictor.network, segment, {case.case_id: case.images for case in cases})


def _print_findings(args: argparse.Namespace, found: list[HiddenSubgroup], num_cases: int, num_features: int) -> None:
    print(f"{num_cases} cases, {num_features} features. Failures count as Dice 0 or the image diagonal.")
    print(
        f"If {_what(args)} had nothing to do with any of the features, something would be confirmed with a chance of "
        f"at most {args.alpha:.2g}.\n"
    )
    for title, confirmed in (("Confirmed", True), ("Looked bad to one half, not confirmed by the other", False)):
        chosen = [subgroup for subgroup in found if subgroup.confirmed == confirmed]
        if chosen or confirmed:
            print(f"{title}:" if chosen else "No hidden subgroup is confirmed.")
        for subgroup in chosen:
            print(f"  {subgroup.sentence(_what(args))}")
            if subgroup.overlap is not None:
                print(f"    {subgroup.overlap}")


def _what(args: argparse.Namespace) -> str:
    """Return what is explained, in words."""
    return args.metric if args.structure is None else f"{args.metric} of {args.structure}"


def _unread(problems: Mapping[str, str]) -> str:
    """Return in one line whose images could not be read, and what the search went without."""
    (name, problem), *others = problems.items()
    listed = ", ".join(other for other, _ in others[:4]) + (", ..." if len(others) > 4 else "")
    more = f" (and {len(others)} more cases: {listed})" if others else ""
    return f"{name}: {problem.rstrip('.')}{more}. The search went without the features of these images."
