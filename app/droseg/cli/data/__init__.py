"""`droseg data JOB ...`: datalists. Each job is one module that registers its own arguments."""

from __future__ import annotations

import argparse
import importlib

JOBS = ("phantoms", "convert", "new", "regrid", "split", "check")


def register(subparsers: argparse._SubParsersAction) -> None:
    """Add `droseg data` and its jobs."""
    parser = subparsers.add_parser("data", help="datalists: generate phantoms, build from folders, split, check")
    jobs = parser.add_subparsers(title="jobs", dest="data_job", metavar="JOB", required=True)
    for job in JOBS:
        importlib.import_module(f"droseg.cli.data.{job}").register(jobs)
