"""`droseg predict`: segment new images."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from droseg.errors import InputError, WeightsError

if TYPE_CHECKING:
    from droseg.inference import CaseResult

CONTAINER_LINE = (
    'docker run --rm --network none -u "$(id -u):$(id -g)" -v "$PWD/in":/input:ro -v "$PWD/out":/output IMAGE'
)
OWN_RUN = '-v "$PWD/run":/bundle:ro -e DROSEG_BUNDLE=/bundle'
CONTAINER_OUTPUT = "/output"
BUNDLE_VARIABLE = "DROSEG_BUNDLE"


def register(subparsers: argparse._SubParsersAction) -> None:
    """Add the arguments of `droseg predict`."""
    parser = subparsers.add_parser(
        "predict",
        help="segment new images",
        description="Segment images, each on its own grid: OUT/NAME_seg.nii.gz, and OUT/predict.json with what became "
        "of each. A bad image does not stop the rest; running again skips what is done. Not a medical device.",
        epilog=f"In a container: {CONTAINER_LINE} (with your own training run: {OWN_RUN} before IMAGE)",
    )
    parser.add_argument(
        "inputs",
        nargs="+",
        metavar="INPUT",
        help="NIfTI files, folders of them, DICOM series folders, or a datalist (JSON)",
    )
    parser.add_argument(
        "--bundle",
        default=os.environ.get(BUNDLE_VARIABLE),
        help=f"name of a shipped bundle, or the folder of a training run (default: ${BUNDLE_VARIABLE})",
    )
    parser.add_argument("--out", required=True, metavar="DIR", help="folder for the label maps, made if need be")
    parser.add_argument(
        "--device", default="auto", help="cpu, cuda, cuda:1, ...; auto takes a GPU if there is one (default)"
    )
    parser.add_argument(
        "--precision",
        default="fp32",
        choices=("fp32", "auto"),
        help="auto: bfloat16 where the hardware multiplies it; faster, a few border voxels may differ (default: fp32)",
    )
    parser.add_argument("--section", help="of a datalist: training, validation, testing, ...")
    parser.add_argument("--data-root", metavar="DIR", help="folder that a datalist's relative paths start from")
    parser.add_argument(
        "--overwrite", action="store_true", help="segment again what is done, and replace what is there"
    )
    parser.add_argument(
        "--debug", action="store_true", default=argparse.SUPPRESS, help="show the Python traceback of an error"
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Segment; return 0 if every case worked, else 1.

    Raises:
        InputError: if there is nothing to segment, or no bundle.
        WeightsError: if the weights are missing or damaged.
        OutputError: if the output folder cannot be written.
    """
    if not args.bundle:
        raise InputError(
            f"no bundle; give --bundle (a run folder or a shipped bundle's name), or set {BUNDLE_VARIABLE}."
        )
    from tqdm import tqdm

    from droseg.inference import Predictor, find_inputs, predict_cases, writable_folder

    try:
        found = find_inputs(args.inputs, args.out, section=args.section, data_root=args.data_root)
    except InputError as error:
        if args.inputs == ["/input"]:  # the container without a mounted folder
            raise InputError(f"{error}\nTo run the container: {CONTAINER_LINE}") from error
        raise
    out = writable_folder(args.out)  # said before the weights load
    try:
        predictor = Predictor(args.bundle, args.device, args.precision)
    except WeightsError as error:
        if args.out == CONTAINER_OUTPUT:
            raise WeightsError(f"{error}\nTo give the container a training run: {OWN_RUN} before IMAGE") from error
        raise
    started = time.monotonic()
    with tqdm(total=len(found.cases), desc="predict", unit="case", file=sys.stderr, disable=None) as bar:

        def show(result: CaseResult) -> None:
            bar.update()
            if bar.disable or result.error or result.flags:  # no bar in a log file: a line per case
                bar.write(_line(result), file=sys.stderr)

        results = predict_cases(found.cases, predictor, out, overwrite=args.overwrite, on_result=show, debug=args.debug)
    print(_summary(results, time.monotonic() - started, args.out))
    return 0 if all(result.status == "ok" for result in results) else 1


def _line(result: CaseResult) -> str:
    """Return what became of a case in one line."""
    if result.error:
        return f"{result.case_id}: failed: {result.error}; {result.remedy}."
    if result.reused:
        return f"{result.case_id}: done before"
    flags = "".join(f"; {flag}" for flag in result.flags)
    return f"{result.case_id}: done in {result.seconds:.1f} s{flags}"


def _summary(results: Sequence[CaseResult], seconds: float, out: str) -> str:
    """Return the counts of a whole run in one line."""
    failed = sum(result.status == "failed" for result in results)
    reused = sum(result.reused for result in results)
    parts = [f"{len(results) - failed - reused} segmented in {seconds:.0f} s"]
    parts += [f"{reused} skipped (done before; --overwrite repeats them)"] if reused else []
    parts += [f"{failed} failed (see above)"] if failed else []
    return f"{', '.join(parts)}. Results: {out}"
