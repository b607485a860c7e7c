"""`droseg calibrate`: thresholds of a bundle's quality flags, and how often a flag is right."""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from droseg.errors import DrosegError, InputError
from droseg.keys import TESTING, TRAINING, VALIDATION

if TYPE_CHECKING:
    from droseg.data.datalist import Datalist
    from droseg.inference.labelled_scores import ScoringPredictor


def register(subparsers: argparse._SubParsersAction) -> None:
    """Add `droseg calibrate`."""
    parser = subparsers.add_parser(
        "calibrate",
        help="set the thresholds of a bundle's quality flags on labelled cases",
        description="Segment labelled cases as they are and with something wrong (noise, bias field, ringing, stripes, "
        "low resolution, another contrast, a part cut off). Set the thresholds of the quality flags of `droseg "
        "predict` from them, and write BUNDLE/quality.json: thresholds, and the precision and recall of each flag for "
        "a Dice under --dice-below. docs/quality_flags.md says what this means and what not.",
    )
    parser.add_argument("bundle", metavar="BUNDLE", help="run folder (its quality.json is written) or shipped bundle")
    parser.add_argument("--datalist", required=True, type=Path, metavar="D")
    parser.add_argument("--section", default=VALIDATION, help="section with labels (default: validation)")
    parser.add_argument("--data-root", type=Path, metavar="DIR", help="folder that relative paths start from")
    parser.add_argument(
        "--dice-below", type=float, default=0.7, metavar="X", help="a case under this has failed (default: 0.7)"
    )
    parser.add_argument(
        "--degraded", type=int, default=4, metavar="N", help="degraded images per case; 0: none (default: 4)"
    )
    parser.add_argument("--mirror", action="store_true", help="with test-time mirroring, as `droseg predict --mirror`")
    parser.add_argument("--device", default="auto", help="cpu, cuda, cuda:1 or auto (default)")
    parser.add_argument(
        "--remake-statistics",
        action="store_true",
        help="first make BUNDLE/training_statistics.json anew from section training, for runs of an older droseg",
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Write quality.json and print it as a table; 1 if any case could not be scored.

    Raises:
        InputError: if the options cannot be used.
        DrosegError: if no case could be scored.
        OutputError: if the bundle cannot be written.
    """
    _check_arguments(args)
    from tqdm import tqdm

    from droseg.bundles import find_bundle
    from droseg.data.datalist import read_datalist
    from droseg.data.writing import write_text
    from droseg.inference import writable_folder
    from droseg.inference.calibration import calibrate, quality_table
    from droseg.inference.labelled_scores import ScoringPredictor, score_labelled
    from droseg.inference.quality import QUALITY_FILE

    datalist = read_datalist(args.datalist, args.data_root)
    cases = datalist.section(args.section)
    folder = writable_folder(find_bundle(args.bundle))
    options: dict[str, Any] = {"mirror": True} if args.mirror else {}
    predictor = ScoringPredictor(folder, args.device, **options)
    _check_structures(predictor, datalist, args.bundle)
    if args.remake_statistics:
        _remake_statistics(predictor, datalist, folder)
        predictor = ScoringPredictor(folder, args.device, **options)
    elif predictor.rules.ranges.image("background_share") is None:
        print(
            f"note: {folder} has no training statistics of this version, so sizes, intensities and edges of the image "
            "are not checked; --remake-statistics makes them from section training.",
            file=sys.stderr,
        )
    with tqdm(total=len(cases), desc="calibrating", unit="case", file=sys.stderr, disable=None) as bar:
        scored = score_labelled(predictor, cases, datalist.structures, args.degraded, bar.update)
    for case_id, problem in scored.problems.items():
        print(f"droseg: error: {case_id}: {problem}", file=sys.stderr)
    if not scored.cases:
        raise DrosegError(f"none of the {len(cases)} cases of section '{args.section}' could be scored (see above).")
    document = {
        **calibrate(scored.cases, args.dice_below),
        "section": args.section,
        "datalist_sha256": hashlib.sha256(args.datalist.read_bytes()).hexdigest(),
        "fingerprint": predictor.fingerprint,
        "mirror": args.mirror,
    }
    path = folder / QUALITY_FILE
    write_text(json.dumps(document, indent=2) + "\n", path)
    print(f"{quality_table(folder)}\n\n{path}")
    return 1 if scored.problems else 0


def _check_arguments(args: argparse.Namespace) -> None:
    if not 0 < args.dice_below <= 1:
        raise InputError(f"--dice-below is {args.dice_below}; it must be above 0 and at most 1.")
    if args.degraded < 0:
        raise InputError(f"--degraded is {args.degraded}; it must be >= 0.")
    if args.section == TESTING:
        raise InputError("--section testing: those cases measure the network; choose thresholds on validation.")


def _check_structures(predictor: ScoringPredictor, datalist: Datalist, bundle: str) -> None:
    if not set(predictor.structures) & set(datalist.structures):
        raise InputError(
            f"{bundle} segments {', '.join(predictor.structures)}; {datalist.path} declares "
            f"{', '.join(datalist.structures)}: nothing in common."
        )


def _remake_statistics(predictor: ScoringPredictor, datalist: Datalist, folder: Path) -> None:
    from droseg.data.statistics import training_statistics
    from droseg.data.writing import write_text
    from droseg.inference.ranges import STATISTICS_FILE

    statistics = training_statistics(datalist.section(TRAINING), predictor.structures)
    write_text(json.dumps(statistics, indent=2) + "\n", folder / STATISTICS_FILE)
