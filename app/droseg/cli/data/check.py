"""`droseg data check`: every problem of a datalist in one run."""

from __future__ import annotations

import argparse


def register(jobs: argparse._SubParsersAction) -> None:
    """Add this job to `droseg data`."""
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
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
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
