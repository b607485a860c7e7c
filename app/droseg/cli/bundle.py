"""`droseg bundle`: a bundle planned from a data set."""

from __future__ import annotations

import argparse
import shlex
import sys
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from droseg.plan import Plan

DESCRIPTION = """\
Plan a bundle from the training cases of a datalist and from the memory at hand, as nnU-Net's published heuristics do:
spacing, normalization, patch, depth and width of the U-Net, batch size, steps. Each choice stands once in the
bundle's configs, with its reason as a comment."""
EPILOG = """\
examples:
  droseg bundle new bundles/mine --datalist datalist.json
  droseg bundle new bundles/mine --datalist datalist.json --memory-gb 24 --precision bf16   # for another machine's GPU
  droseg train bundles/mine --out runs/mine

Images are read, nothing is trained. What is not planned (loss, optimizer, objective, most of the augmentation) comes
from the bundle named by --like. No file of the bundle names a case; train.yaml says where the datalist lies, from the
current folder: train from here too, or give --datalist."""


def register(subparsers: Any) -> None:
    """Add the job to the command line."""
    parser = subparsers.add_parser("bundle", help="plan a bundle from a data set", description=__doc__)
    jobs = parser.add_subparsers(title="jobs", dest="bundle_job", metavar="JOB", required=True)
    new = jobs.add_parser(
        "new",
        help="plan a bundle for a datalist and the memory at hand",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    new.add_argument("out", metavar="OUT", help="folder of the new bundle")
    new.add_argument(
        "--datalist", metavar="FILE", required=True, help="the cases (JSON); its training section is measured"
    )
    new.add_argument("--data-root", metavar="DIR", help="folder that the datalist's relative paths start from")
    new.add_argument(
        "--like",
        metavar="BUNDLE",
        help="bundle that the rest is taken from (default: hippocampus_mri; for overlapping structures brats_mri)",
    )
    new.add_argument(
        "--memory-gb",
        metavar="G",
        type=float,
        help="memory of the training in GB of 2^30 bytes (default: what is free on the GPU; without one, half of the "
        "free RAM, 8 at most)",
    )
    new.add_argument(
        "--precision",
        choices=("auto", "bf16", "fp32"),
        default="auto",
        help="of the training; bf16 takes about half the memory (default auto: bf16 where this machine has it)",
    )
    new.add_argument(
        "--overwrite", action="store_true", help="replace a planned bundle that has not been trained in OUT"
    )
    new.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Plan a bundle, write it, and print the plan."""
    from droseg.data.datalist import parse_datalist
    from droseg.errors import InputError
    from droseg.plan import find_budget, make_plan, take_fingerprint, write_bundle
    from droseg.plan.card import memory_line
    from droseg.plan.template import read_template
    from droseg.plan.write import check_target

    out = Path(args.out)
    check_target(out, args.overwrite)
    budget = find_budget(args.memory_gb, args.precision)
    datalist, entries = parse_datalist(args.datalist, args.data_root)
    if not datalist.structures:
        raise InputError(f"{datalist.path}: no case has a label, so there is nothing to plan a segmentation from.")
    template = read_template(args.like, datalist.structures)
    fingerprint, warnings = take_fingerprint(datalist, entries, progress=True)
    for warning in warnings:  # said here only, for they name cases and files
        print(f"droseg: warning: {warning}", file=sys.stderr)
    root = None if args.data_root is None else Path(args.data_root)
    plan = make_plan(datalist, fingerprint, budget, template, data_root=root)
    write_bundle(plan, template, out)
    print(plan_table(plan))
    print(memory_line(plan))
    for note in plan.notes:
        print(f"note: {note}")
    print(f"Wrote {out}, like {template.folder.name} in all else. Next:")
    print(f"  {shlex.join(next_command(plan, out))}")
    return 0


def next_command(plan: Plan, out: Path) -> list[str]:
    """Return the words that train the bundle, with what the plan cannot say for the user."""
    from droseg.data.regions import unclear_regions
    from droseg.plan.text import flow

    words = ["droseg", "train", str(out), "--out", f"runs/{out.resolve().name}"]
    if any(choice.key == "region_values" and choice.value is None for choice in plan.choices):
        needed = unclear_regions(plan.datalist.structures)
        words += [f"region_values={flow(needed)}"] if needed else []
    return words


def plan_table(plan: Plan) -> str:
    """Return the plan as text: choice, value, reason; wrapped to the terminal, one choice below the other."""
    from droseg.plan.card import plan_rows

    rows = plan_rows(plan)
    width = max(len(key) for key, _, _ in rows)
    lines = [f"{'choice'.ljust(width)}  value\n{' ' * width}    reason"]
    for key, value, reason in rows:
        lines.append(f"{key.ljust(width)}  {value}")
        indent = " " * (width + 4)
        lines.append(textwrap.fill(reason, 118, initial_indent=indent, subsequent_indent=indent))
    return "\n".join(lines)
