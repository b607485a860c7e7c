"""`droseg predict`: segment new images."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from droseg.cli.stopping import stop, stoppable
from droseg.errors import BundleError, DatalistError, InputError, WeightsError

if TYPE_CHECKING:
    from tqdm import tqdm

    from droseg.data.channels import MissingChannels
    from droseg.inference import CaseResult, FoundInputs

CONTAINER_LINE = (
    'docker run --rm --network none -u "$(id -u):$(id -g)" -v "$PWD/in":/input:ro -v "$PWD/out":/output IMAGE'
)
OWN_RUN = '-v "$PWD/run":/bundle:ro'
CONTAINER_INPUT = "/input"
CONTAINER_OUTPUT = "/output"
SHOWN_FLAGS = 3
SHOWN_SKIPS = 3
"""Of those that were skipped for the same reason."""
BUNDLE_VARIABLE = "DROSEG_BUNDLE"

DESCRIPTION = """\
Segment MRI volumes, each on its own grid. A bad image does not stop the rest. If the
run is interrupted, give the same command again: it skips what is done.
Nothing is sent anywhere. Not a medical device."""

EPILOG = f"""\
what it writes into DIR, for each image NAME:
  NAME_seg.nii.gz   the label map
  NAME_seg.json     which value is which structure, volumes in ml, quality flags
  NAME_prob.nii.gz  with --probabilities: (x, y, z, class), background first; of overlapping regions
                    (x, y, z, region), without it (NAME_seg.json has the names)
  NAME_seg.dcm      with --dicom-seg: the label map as a DICOM object
and for all of them:
  volumes.csv       case_id, structure, volume_ml
  predict.json      ok, failed, skipped or out_of_domain; what to look at; what to do

exit codes:
  0    all images are segmented (what is no candidate, such as a localizer, is skipped)
  1    some images failed or are unlike what the model knows, or DIR cannot be written
  2    nothing to segment, or a command or datalist that cannot be understood
  3    the model is missing or damaged: its folder, its config or its weights
  130  stopped by Ctrl-C        143  stopped by SIGTERM (docker stop)

in a container (all in ./in is segmented, results in ./out):
  {CONTAINER_LINE}
  with your own training run: {OWN_RUN} before IMAGE

Not a medical device: for research; a person must check every result."""


def register(subparsers: argparse._SubParsersAction) -> None:
    """Add the arguments of `droseg predict`."""
    parser = subparsers.add_parser(
        "predict",
        help="segment new images",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "inputs",
        nargs="*",
        metavar="INPUT",
        help="image files, folders of them, DICOM folders, or a datalist (JSON); in the container: /input",
    )
    parser.add_argument(
        "--out", metavar="DIR", help="folder for the results, made if need be; in the container: /output"
    )
    parser.add_argument(
        "--bundle",
        default=os.environ.get(BUNDLE_VARIABLE),
        help=f"the model: name of a shipped bundle, or the folder of a training run (default: ${BUNDLE_VARIABLE})",
    )
    _register_choice(parser.add_argument_group("which images"))
    _register_outputs(parser.add_argument_group("what is written"))
    _register_computing(parser.add_argument_group("how it is computed"))
    parser.set_defaults(run=run)


def _register_choice(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--list", action="store_true", help="show what was found, and segment nothing")
    group.add_argument(
        "--series-description",
        action="append",
        metavar="REGEX",
        help="take DICOM series whose description matches; once per channel if there are several",
    )
    group.add_argument("--section", help="of a datalist: training, validation, testing, ...")
    group.add_argument("--data-root", metavar="DIR", help="folder that a datalist's relative paths start from")
    group.add_argument(
        "--missing-channels",
        choices=("error", "zero"),
        help="a case that lacks a channel (no CASE_0001, or null in a datalist) fails, or gets zeros there and a flag "
        "if the network was trained to do without (default: as the bundle says)",
    )
    group.add_argument(
        "--force", action="store_true", help="segment images, too, that are unlike what the model was trained on"
    )


def _register_outputs(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--probabilities", action="store_true", help="write the probability of each class, too")
    group.add_argument(
        "--dicom-seg", action="store_true", help="for DICOM input, write a DICOM SEG object, too (needs highdicom)"
    )
    group.add_argument("--no-overview", action="store_true", help="write no page with pictures")
    group.add_argument("--overwrite", action="store_true", help="segment again what is done, and replace what is there")


def _register_computing(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--device", default="auto", help="cpu, cuda, cuda:1, ...; auto takes a GPU if there is one (default)"
    )
    group.add_argument(
        "--precision",
        choices=("fp32", "bf16", "fp16", "auto"),
        help="auto: the fastest that the hardware has; below fp32 a few border voxels may differ (default: fp32)",
    )
    group.add_argument("--mirror", action="store_true", help="average over mirrored views; 2 to 8 times slower")
    group.add_argument(
        "--checkpoint", action="append", metavar="PATH", help="other weights; several are averaged (repeat the option)"
    )
    group.add_argument("--overlap", type=float, metavar="F", help="of the sliding windows, 0 to below 1")
    group.add_argument("--memory-gb", type=float, metavar="GB", help="memory to stay within (default: what is free)")
    group.add_argument(
        "--case-timeout",
        type=_seconds,
        metavar="SECONDS",
        help="end a case that takes longer, and go on with the next; the work is then done in a second process, "
        "so that an image that crashes it costs only itself (default: no limit)",
    )
    group.add_argument(
        "--debug", action="store_true", default=argparse.SUPPRESS, help="show the Python traceback of an error"
    )


def run(args: argparse.Namespace) -> int:
    """Segment; return 0 if every case worked, else 1; 130 or 143 if it was interrupted.

    Raises:
        InputError: if there is nothing to segment, or no bundle.
        DatalistError: if a datalist cannot be read.
        BundleError: if the model's folder or config is missing or cannot be used.
        WeightsError: if the weights are missing or damaged.
        OutputError: if the output folder cannot be written.
    """
    results: list[CaseResult] = []
    with stoppable():
        try:
            return _run(args, results)
        except DatalistError as error:
            error.exit_code = InputError.exit_code
            raise
        except BundleError as error:
            error.exit_code = WeightsError.exit_code
            raise
        except KeyboardInterrupt as error:
            done = sum(result.status == "ok" for result in results)
            return stop(error, f"{done} cases are done; to go on, give the same command again")


def _run(args: argparse.Namespace, results: list[CaseResult]) -> int:
    _fill_in_container_folders(args)
    if not args.bundle and not args.list:
        raise InputError(
            f"no bundle; give --bundle (a run folder or a shipped bundle's name), or set {BUNDLE_VARIABLE}."
        )
    found = _find(args)
    if args.list:
        from droseg.inference import inputs_table

        print(inputs_table(found))
        return 0
    if not found.cases:
        reasons = "; ".join(f"{item.path} ({item.reason})" for item in found.skipped[:6])
        raise InputError(f"no image to segment: {reasons}; give images of the kind that the bundle knows.")
    return _predict(args, found, results)


def _fill_in_container_folders(args: argparse.Namespace) -> None:
    if not args.inputs:
        if not Path(CONTAINER_INPUT).is_dir():
            raise InputError(
                "no INPUT; give image files or folders. In a container, mount a folder at /input: " + CONTAINER_LINE
            )
        args.inputs = [CONTAINER_INPUT]
        args.out = args.out or CONTAINER_OUTPUT
    if args.out is None:
        if not args.list:
            raise InputError("no output folder; give --out DIR.")
        args.out = os.devnull  # nothing lies in it


def _find(args: argparse.Namespace) -> FoundInputs:
    from droseg.inference import find_inputs

    num_channels, missing_channels = _channel_settings(args.bundle) if args.bundle else (1, "error")
    try:
        return find_inputs(
            args.inputs,
            args.out,
            num_channels=num_channels,
            missing_channels=args.missing_channels or missing_channels,
            section=args.section,
            data_root=args.data_root,
            series_description=args.series_description or (),
        )
    except InputError as error:
        if args.inputs == [CONTAINER_INPUT]:  # the container without a mounted folder
            raise InputError(f"{error}\nTo run the container: {CONTAINER_LINE}") from error
        raise


def _channel_settings(bundle: str) -> tuple[int, MissingChannels]:
    """Return how many channels a bundle takes, and what it does where one is missing."""
    import torch

    from droseg.bundles import find_bundle
    from droseg.inference.bundle_config import InferenceConfig

    config = InferenceConfig(find_bundle(bundle), torch.device("cpu"))
    return len(config["channels"]), config.missing_channels()


def _predict(args: argparse.Namespace, found: FoundInputs, results: list[CaseResult]) -> int:
    """Segment what was found, with a progress bar, collect the results, and return the exit code."""
    from tqdm import tqdm

    from droseg.inference import OutputError, predict_cases

    started = time.monotonic()
    with tqdm(total=len(found.cases), desc="predict", unit="case", file=sys.stderr, disable=None) as bar:

        def show(result: CaseResult) -> None:
            results.append(result)
            alike = sum(other.status == "skipped" and other.error == result.error for other in results)
            if result.status != "skipped" or alike <= SHOWN_SKIPS:
                _show(bar, result)

        def show_stage(case_id: str, stage: str | None) -> None:
            if stage == "segmenting":
                bar.set_postfix_str(case_id)

        try:
            predict_cases(
                found.cases,
                args.bundle,
                args.out,
                skipped=found.skipped,
                device=args.device,
                options=_predictor_options(args),
                probabilities=args.probabilities,
                dicom_seg=args.dicom_seg,
                overview=not args.no_overview,
                overwrite=args.overwrite,
                case_timeout_s=args.case_timeout,
                on_result=show,
                on_stage=show_stage,
                debug=args.debug,
            )
        except WeightsError as error:
            if args.out == CONTAINER_OUTPUT:
                raise WeightsError(f"{error}\nTo give the container a training run: {OWN_RUN} before IMAGE") from error
            raise
        except OutputError as error:
            if args.out == CONTAINER_OUTPUT:
                raise OutputError(f"{error}\nTo run the container: {CONTAINER_LINE}") from error
            raise
    print(_summary(results, time.monotonic() - started, args.out))
    return 0 if all(result.status in ("ok", "skipped") for result in results) else 1


def _predictor_options(args: argparse.Namespace) -> dict[str, Any]:
    """Return the keyword arguments of `Predictor` that were given."""
    options = {
        "precision": args.precision,
        "force": args.force or None,
        "mirror": args.mirror or None,
        "checkpoints": tuple(args.checkpoint) if args.checkpoint else None,
        "overlap": args.overlap,
        "memory_gb": args.memory_gb,
        "missing_channels": args.missing_channels,
    }
    return {name: value for name, value in options.items() if value is not None}


def _show(bar: tqdm, result: CaseResult) -> None:
    if result.status != "skipped":
        bar.update()
    if bar.disable or result.error or result.flags:  # no bar in a log file: a line per case
        bar.write(_line(result), file=sys.stderr)


def _line(result: CaseResult) -> str:
    """Return what became of a case in one line, and its flags below."""
    from droseg.inference.names import printable

    if result.status == "skipped":
        return printable(f"{result.case_id}: skipped: {result.error}")
    if result.error:
        kind = "failed" if result.status == "failed" else "out of domain"
        return printable(f"{result.case_id}: {kind}: {result.error}; {result.remedy}.")
    if result.reused:
        return f"{result.case_id}: done before"
    return f"{result.case_id}: done in {result.seconds:.1f} s{_flags(result)}"


def _flags(result: CaseResult) -> str:
    """Return what to look at, a line each; the most serious ones of many."""
    lines = [f"\n  look: {flag}" for flag in result.flags[:SHOWN_FLAGS]]
    more = len(result.flags) - len(lines)
    return "".join([*lines, f"\n  and {more} more flag{'s' * (more != 1)} in predict.json" if more else ""])


def _summary(results: Sequence[CaseResult], seconds: float, out: str) -> str:
    """Return the counts of a whole run in one line."""
    reused = sum(result.reused for result in results)
    number = Counter(result.status for result in results)
    parts = [f"{number['ok'] - reused} segmented in {seconds:.0f} s"]
    parts += [f"{reused} done before (--overwrite repeats them)"] if reused else []
    parts += [f"{number['failed']} failed (see above)"] if number["failed"] else []
    parts += [f"{number['out_of_domain']} out of domain (see above)"] if number["out_of_domain"] else []
    parts += [f"{number['skipped']} skipped (no candidates; listed in predict.json)"] if number["skipped"] else []
    return f"{', '.join(parts)}. Results: {out}"


def _seconds(text: str) -> float:
    value = float(text)
    if not value > 0:
        raise argparse.ArgumentTypeError(f"{text}: must be more than 0 seconds")
    return value
