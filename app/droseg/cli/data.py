"""`droseg data`: generate phantoms."""

from __future__ import annotations

import argparse
import sys
from collections import Counter


def register(subparsers: argparse._SubParsersAction) -> None:
    """Add `droseg data` and its jobs."""
    parser = subparsers.add_parser("data", help="datalists: generate phantoms, split, check")
    jobs = parser.add_subparsers(title="jobs", dest="data_job", metavar="JOB", required=True)

    phantoms = jobs.add_parser("phantoms", help="write a synthetic cohort with known subgroups and its datalist.json")
    phantoms.add_argument("out", metavar="OUT", help="folder to write")
    phantoms.add_argument("--cases", type=int, default=100, metavar="N", help="number of cases (default 100)")
    phantoms.add_argument("--seed", type=int, default=0, metavar="S", help="of everything random (default 0)")
    phantoms.add_argument("--size", type=int, default=64, help="voxels along 128 mm (default 64, so 2 mm)")
    phantoms.add_argument("--workers", type=int, default=1, help="processes (default 1); the files do not depend on it")
    phantoms.set_defaults(run=run_phantoms)


def run_phantoms(args: argparse.Namespace) -> int:
    """Generate a cohort and print what is in it."""
    from droseg.data.datalist import read_datalist
    from droseg.data.phantoms import generate_phantoms

    path = generate_phantoms(
        args.out, cases=args.cases, seed=args.seed, size=args.size, workers=args.workers, progress=sys.stderr.isatty()
    )
    for section, cases in read_datalist(path).sections.items():
        counts = Counter(case.groups["anatomy"] for case in cases)
        print(f"{section}: {len(cases)} cases ({', '.join(f'{count} {name}' for name, count in counts.items())})")
    print(f"Wrote {path}")
    return 0
