"""`droseg data new`: a datalist from folders of images and a table of patients."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from droseg.data import Datalist
    from droseg.data.from_folders import Axis, Finding, Request

_DESCRIPTION = """\
Build a datalist from the images below ROOT, and the groups of its cases from a table, from numbers by bins, or from
the scans themselves. Nothing is guessed: what is unclear, missing or does not match is listed, with the option that
decides it, and the datalist is written only if there is no error."""

_EXAMPLES = """\
examples:
  droseg data new study --image 'T1w=sub-{subject}/ses-{session}/anat/*_T1w.nii.gz' \\
      --image 'T2w=sub-{subject}/ses-{session}/anat/*_T2w.nii.gz' --label 'labels/sub-{subject}_ses-{session}.nii.gz' \\
      --structure ventricles=1 --structure cortex=2 --table participants.tsv --group-by diagnosis --bin age=40,60 \\
      --group-by-header slice_thickness,manufacturer --out datalist.json
  droseg data new bids_study --bids --image T2w --structures dseg.tsv --group-by diagnosis --out datalist.json

globs: {subject} and {session} stand for what tells the patients and their scans apart; any other {name} can be given to
  --group-by. * is any part of a name, ** any folders. Put globs in quotation marks. The folder of a DICOM series is an
  image, too. {subject:[^_]+} is a subject without "_", where a name could be read in more than one way.
header fields: slice_thickness (the largest voxel edge, mm), in_plane (the smallest), spacing, shape, orientation,
  data_type; from a JSON sidecar or DICOM header: Manufacturer, ManufacturersModelName, MagneticFieldStrength, EchoTime,
  RepetitionTime, ... (those that your images have are listed if you name another one)."""


def register(jobs: argparse._SubParsersAction) -> None:
    """Add this job to `droseg data`."""
    parser = jobs.add_parser(
        "new",
        help="build a datalist from folders of images and a table of patients",
        description=_DESCRIPTION,
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("root", metavar="ROOT", help="folder that the globs start from, or a BIDS tree")
    add("--out", required=True, metavar="DATALIST", help="JSON file to write")
    add("--overwrite", action="store_true", help="replace DATALIST if it exists")
    add("--section", metavar="NAME", help="section of all cases (default: training; without labels: testing)")

    _add_files(parser)
    _add_table(parser)
    _add_groups(parser)
    parser.add_argument(
        "--list-all", action="store_true", help="list all files and rows, not the first 20 of each finding"
    )
    parser.set_defaults(run=run)


def _add_files(parser: argparse.ArgumentParser) -> None:
    """Add what says where images and labels lie."""
    add = parser.add_argument_group("images and labels").add_argument
    add(
        "--image",
        action="append",
        required=True,
        metavar="[NAME=]GLOB",
        help="files of a channel (repeatable, in the order of the channels; the same NAME twice: either glob);"
        " with --bids a suffix such as T2w, or NAME=acq-mprage_run-1_T1w; 'T1w,T2w=GLOB': one file holds both channels",
    )
    add(
        "--label",
        action="append",
        default=[],
        metavar="GLOB",
        help="files of the labels; with --bids also a folder in the tree, or desc-manual_dseg"
        " (default with --bids: *_dseg in derivatives/); without labels the list is one of images to segment",
    )
    add(
        "--bids",
        action="store_true",
        help="ROOT is a BIDS tree; its participants.tsv (unless there is a --table) and sessions tables are joined",
    )
    add("--no-label", action="store_true", help="with --bids: take no labels, a list of images to segment")
    add(
        "--structure",
        action="append",
        default=[],
        metavar="NAME=VALUE[,VALUE]",
        help="structure of a label value; background=VALUE is none",
    )
    add(
        "--structures",
        metavar="FILE",
        help="all structures: a datalist, Decathlon's dataset.json, BIDS' dseg.tsv, or an ITK-SNAP label file",
    )
    add(
        "--allow-other-values",
        action="store_true",
        help="label values that nobody named are background, and written as such",
    )
    add("--allow-missing-channels", action="store_true", help="keep cases that lack a channel; it becomes null")
    add("--skip-incomplete", action="store_true", help="leave out cases that lack a channel or the label")
    add("--exclude", action="append", default=[], metavar="CASE", help="leave out a case (repeatable)")
    add("--no-volumes", action="store_true", help="do not read the voxels; `droseg data check` does so later")


def _add_table(parser: argparse.ArgumentParser) -> None:
    """Add what says how tables are read."""
    add = parser.add_argument_group("table").add_argument
    add(
        "--table",
        action="append",
        default=[],
        metavar="FILE",
        help="CSV or TSV with a row per patient, or per patient and session (repeatable); with --bids in place of"
        " participants.tsv",
    )
    add(
        "--subject-column",
        metavar="COLUMN",
        help="of tables that have it; else participant_id, subject, patient_id ...",
    )
    add(
        "--session-column",
        metavar="COLUMN",
        help="of tables that have it; else session_id, session, ses or visit, if cases have sessions; none: join by"
        " subject alone",
    )
    add(
        "--where",
        action="append",
        default=[],
        type=_pair,
        metavar="COLUMN=VALUE",
        help="only these rows, of tables with this COLUMN",
    )
    add("--match-numbers", action="store_true", help="1, 01, 001 and 1.0 are the same subject or session")


def _add_groups(parser: argparse.ArgumentParser) -> None:
    """Add what makes the group axes."""
    add = parser.add_argument_group("groups").add_argument
    add(
        "--group-by",
        action="append",
        default=[],
        metavar="[AXIS=]COLUMN",
        help="group axis from a column of the table, or a wildcard of the globs (repeatable)",
    )
    add(
        "--group-by-header",
        action="append",
        default=[],
        metavar="[AXIS=][CHANNEL:]FIELD,...",
        help="group axes from the headers of the scans, such as slice_thickness,manufacturer (repeatable)",
    )
    add(
        "--bin",
        action="append",
        default=[],
        metavar="AXIS=EDGE,...",
        help="bins of a number: age=40,60 gives <40, 40-60 and >=60; an axis that no other option names is a column",
    )
    add(
        "--recode",
        action="append",
        default=[],
        metavar="AXIS:VALUE=GROUP",
        help="what a value stands for, such as diagnosis:1=control, or another spelling (repeatable)",
    )


def _pair(text: str) -> tuple[str, str]:
    """Return column and value of "COLUMN=VALUE"."""
    column, equals, value = text.partition("=")
    if not (column and equals):
        raise argparse.ArgumentTypeError(f"'{text}' is not COLUMN=VALUE, e.g. series=T2w")
    return column.strip(), value.strip()


def run(args: argparse.Namespace) -> int:
    """Build a datalist and print its groups; 1, and nothing is written, if there is an error."""
    from droseg.data import group_table, write_datalist
    from droseg.data.from_folders import Findings, build_datalist

    out = Path(args.out)
    request = _request(args, out)
    findings = Findings(lambda finding: _tell(finding, args.list_all))
    datalist = build_datalist(request, out, findings, progress=True)
    errors, warnings = (findings.count(kind) for kind in ("error", "warning"))
    counts = f"{errors} error{'s' * (errors != 1)}, {warnings} warning{'s' * (warnings != 1)}"
    if datalist is None:
        print(f"droseg: error: {counts}; {out} was not written. Correct what is listed above.", file=sys.stderr)
        return 1
    write_datalist(datalist, out)
    print(group_table(datalist))
    print(_counts(datalist))
    print(f"Wrote {out} ({counts}).")
    print(f"Next: {_next_command(datalist, out, [axis.name for axis in request.axes])}")
    return 0


def _tell(finding: Finding, everything: bool) -> None:
    """Print a finding: how things were read on stdout, what is wrong on stderr."""
    from droseg.data.from_folders.findings import shown

    if finding.severity == "note":
        print(shown(finding, everything), flush=True)
    else:
        print(f"droseg: {finding.severity}: {shown(finding, everything)}", file=sys.stderr, flush=True)


def _request(args: argparse.Namespace, out: Path) -> Request:
    """Return what the options ask for; an InputError says what cannot be understood."""
    from droseg.data.from_folders import Leniency, Request, Tables, parse_channels
    from droseg.errors import InputError

    if out.exists() and not args.overwrite:
        raise InputError(f"{out} exists; give --overwrite to replace it, or another --out.")
    if args.structure and args.structures:
        raise InputError("give --structure NAME=VALUE or --structures FILE, not both.")
    if args.no_label and not args.bids:
        raise InputError("--no-label is for --bids; without it, leave out --label.")
    if args.no_label and args.label:
        raise InputError("give --label or --no-label, not both.")
    if args.bids and len(args.label) > 1 and not all("{" in label for label in args.label):
        raise InputError("with --bids give one --label, or several globs with {subject}.")
    _check_table_options(args)
    if args.section in _NO_SECTIONS:
        raise InputError(f"--section {args.section}: a datalist uses this word for something else.")
    if args.allow_other_values and args.no_volumes:
        raise InputError(
            "--allow-other-values finds these values in the voxels, which --no-volumes does not read; leave out one of "
            "the two, or name the values: --structure background=3,4."
        )
    channels = tuple(parse_channels(args.image, args.bids))
    structures, background = _structures(args)
    return Request(
        root=Path(args.root),
        channels=channels,
        labels=tuple(args.label),
        bids=args.bids,
        unlabelled=args.no_label,
        tables=Tables(
            tuple(Path(path).expanduser() for path in args.table),
            args.subject_column,
            args.session_column,
            tuple(args.where),
            args.match_numbers,
        ),
        axes=_axes(args, [name for channel in channels for name in channel.names]),
        structures=structures,
        background=background,
        other_values=args.allow_other_values,
        allow=Leniency(args.allow_missing_channels, args.skip_incomplete, tuple(args.exclude)),
        section=args.section,
        volumes=not args.no_volumes,
    )


def _check_table_options(args: argparse.Namespace) -> None:
    """Refuse options that say how to read a table where there is none."""
    from droseg.errors import InputError

    columns = {"--subject-column": args.subject_column, "--session-column": args.session_column}
    others = {"--where": args.where, "--match-numbers": args.match_numbers}
    given = [option for option, value in (columns if args.bids else {**columns, **others}).items() if value]
    if given and not args.table:
        why = "; those of a BIDS tree are joined by participant_id and session_id" if args.bids else ""
        raise InputError(
            f"{', '.join(given)}: for a --table, and none is given{why}. Add --table FILE, or leave it out."
        )


_NO_SECTIONS = ("channels", "structures", "modality", "labels", "")


def _structures(args: argparse.Namespace) -> tuple[dict[str, tuple[int, ...]], tuple[int, ...]]:
    """Return the structures of --structure or --structures, and the label values that are none."""
    from droseg.data.from_folders import parse_background, parse_structures, read_background, read_structures

    if args.structures:
        return read_structures(Path(args.structures)), read_background(Path(args.structures))
    return parse_structures(args.structure), parse_background(args.structure)


def _axes(args: argparse.Namespace, channels: list[str]) -> tuple[Axis, ...]:
    """Return the group axes of --group-by, --group-by-header and --bin."""
    from droseg.data.from_folders import parse_axes

    return parse_axes(args.group_by, args.group_by_header, args.bin, channels, args.recode)


def _counts(datalist: Datalist) -> str:
    """Return how many cases, patients, and patients with several scans there are."""
    patients = [case.patient_id for cases in datalist.sections.values() for case in cases]
    several = sum(patients.count(patient) > 1 for patient in set(patients))
    text = f"{len(patients)} case{'s' * (len(patients) != 1)} of {len(set(patients))} patients"
    return f"{text}, {several} of them with several scans." if several else f"{text}, one scan each."


def _next_command(datalist: Datalist, out: Path, axes: Sequence[str]) -> str:
    """Return the command that a person most probably needs next."""
    section, cases = next(iter(datalist.sections.items()))
    if cases[0].label is None:
        return f"droseg predict {shlex.quote(str(out))} --section {section} --bundle BUNDLE --out DIR"
    if section != "training":
        return f"droseg data check {shlex.quote(str(out))}"
    stratify = "".join(f" --stratify {shlex.quote(axis)}" for axis in axes[:2])
    fractions = "training=0.7,validation=0.1,testing=0.2"
    return f"droseg data split {shlex.quote(str(out))} --fractions {fractions}{stratify}"
