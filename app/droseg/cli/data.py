"""`droseg data`: generate phantoms, split a datalist, check a datalist."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from droseg.keys import SECTIONS


def register(subparsers: argparse._SubParsersAction) -> None:
    """Add `droseg data` and its jobs."""
    parser = subparsers.add_parser("data", help="datalists: generate phantoms, split, check")
    jobs = parser.add_subparsers(title="jobs", dest="data_job", metavar="JOB", required=True)
    _register_phantoms(jobs)
    _register_split(jobs)
    _register_check(jobs)


def _register_phantoms(jobs: argparse._SubParsersAction) -> None:
    parser = jobs.add_parser(
        "phantoms",
        help="write a synthetic cohort with known subgroups and its datalist.json",
        description="Write a cohort of generated 3D brains: anatomies typical, enlarged_ventricles (14 %% of training) "
        "and absent_cerebellum (6 %%), protocols isotropic and thick_slice, and its datalist.json.",
    )
    parser.add_argument("out", metavar="OUT", help="folder to write")
    parser.add_argument("--cases", type=int, default=100, metavar="N", help="number of cases, at least 6 (default 100)")
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="of everything random (default 0)")
    parser.add_argument("--size", type=int, default=64, metavar="V", help="voxels along 128 mm (default 64, so 2 mm)")
    parser.add_argument(
        "--workers", type=int, default=1, metavar="W", help="processes (default 1); the files do not depend on it"
    )
    parser.set_defaults(run=run_phantoms)


def _register_split(jobs: argparse._SubParsersAction) -> None:
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
    parser.set_defaults(run=run_split)


def _register_check(jobs: argparse._SubParsersAction) -> None:
    parser = jobs.add_parser(
        "check",
        help="every problem of a datalist in one run, as a table",
        description="Read every volume of a datalist and list all problems. The exit code is 1 if any is an error.",
    )
    parser.add_argument("datalist", metavar="DATALIST", help="JSON file")
    parser.add_argument("--data-root", metavar="DIR", help="folder that relative paths start from")
    parser.add_argument(
        "--section", action="append", metavar="NAME", help="read only its volumes (repeatable; default: all sections)"
    )
    parser.set_defaults(run=run_check)


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


def run_phantoms(args: argparse.Namespace) -> int:
    """Generate a cohort and print what is in it."""
    from droseg.data import group_table, read_datalist
    from droseg.data.phantoms import generate_phantoms

    path = generate_phantoms(
        args.out, cases=args.cases, seed=args.seed, size=args.size, workers=args.workers, progress=True
    )
    print(group_table(read_datalist(path)))
    print(f"Wrote {args.cases} cases and {path}")
    return 0


def run_split(args: argparse.Namespace) -> int:
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


def run_check(args: argparse.Namespace) -> int:
    """Print every problem of a datalist; 1 if any is an error."""
    from droseg.data import Problem, check_datalist, problem_table
    from droseg.data.datalist import parse_datalist

    datalist, entry_problems = parse_datalist(args.datalist, args.data_root)
    problems = [Problem("error", p.section, p.case_id, p.message) for p in entry_problems]
    problems += check_datalist(datalist, args.section, progress=True)
    sections = args.section or list(datalist.sections)
    count = sum(len(datalist.section(name)) if args.section else len(datalist.sections[name]) for name in sections)
    print(problem_table(problems))
    print(f"{datalist.path}: {count} cases read in {', '.join(sections)}.")
    return int(any(problem.severity == "error" for problem in problems))
