"""`droseg data phantoms`: a synthetic cohort."""

from __future__ import annotations

import argparse


def register(jobs: argparse._SubParsersAction) -> None:
    """Add this job to `droseg data`."""
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
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Generate a cohort and print what is in it."""
    from droseg.data import group_table, read_datalist
    from droseg.data.phantoms import generate_phantoms

    path = generate_phantoms(
        args.out, cases=args.cases, seed=args.seed, size=args.size, workers=args.workers, progress=True
    )
    print(group_table(read_datalist(path)))
    print(f"Wrote {args.cases} cases and {path}")
    return 0
