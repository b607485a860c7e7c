"""The command line: `droseg JOB ...`. Each job is one module that registers its own arguments."""

from __future__ import annotations

import argparse
import importlib
import logging
import os
import sys
from collections.abc import Sequence

from droseg import __version__
from droseg.errors import DrosegError

JOBS = ("data", "bundle", "train", "evaluate", "report", "discover", "hardest", "predict", "calibrate", "overhead")


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the whole command line."""
    parser = argparse.ArgumentParser(
        prog="droseg",
        description="3D MRI segmentation that holds up on the patients where it usually fails. Not a medical device.",
    )
    parser.add_argument("--version", action="version", version=f"droseg {__version__}")
    parser.add_argument("--debug", action="store_true", help="show the Python traceback of an error")
    subparsers = parser.add_subparsers(title="jobs", dest="job", metavar="JOB", required=True)
    for job in JOBS:
        importlib.import_module(f"droseg.cli.{job}").register(subparsers)
    return parser


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Return the parsed command line; ends the process with exit code 2 if it cannot be understood."""
    parser = build_parser()
    # argparse does not take key=value words again once an option has come between them.
    args, rest = parser.parse_known_args(argv)
    wrong = [word for word in rest if word.startswith("-") or "=" not in word or not hasattr(args, "overrides")]
    if wrong:
        hint = "; a setting of the config is written key=value, for example epochs=5" if args.job == "train" else ""
        parser.error(f"unrecognized arguments: {' '.join(wrong)}{hint}")
    if rest:
        args.overrides += rest
    return args


def main(argv: Sequence[str] | None = None) -> int:
    """Run one job and return the exit code: 0 only if all of it worked."""
    args = parse_arguments(argv)
    # Set either way: a former call of this process may have been a --debug one.
    logging.getLogger("droseg").setLevel(logging.DEBUG if args.debug else logging.NOTSET)
    try:
        return int(args.run(args))
    except DrosegError as error:
        if args.debug:
            raise
        print(f"droseg: error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("droseg: stopped by the keyboard.", file=sys.stderr)
        return 130
    except BrokenPipeError:  # `droseg ... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
