"""`droseg data phantoms`: a synthetic cohort, in the layout of droseg or in one that real data come in."""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from droseg.data.phantoms.people import Person

LAYOUTS = {
    "datalist": "images/, labels/ and their datalist.json (default)",
    "bids": "a BIDS tree with participants.tsv and the labels as derivatives",
    "brats": "brain tumors in four channels, as BraTS 2023 publishes them",
    "dicom": "DICOM series as scanners export them, with DICOM SEG",
}


def register(jobs: argparse._SubParsersAction) -> None:
    """Add this job to `droseg data`."""
    parser = jobs.add_parser(
        "phantoms",
        help="write a synthetic cohort with known subgroups, as datalist, BIDS, BraTS or DICOM",
        description="Write a cohort of generated 3D brains: anatomies typical, enlarged_ventricles (14 % of training) "
        "and absent_cerebellum (6 %), protocols isotropic and thick_slice, and its datalist.json. Other layouts have "
        "no datalist: they are what `droseg data new` and the converters start from.",
    )
    parser.add_argument("out", metavar="OUT", help="folder to write")
    parser.add_argument(
        "--layout",
        choices=list(LAYOUTS),
        default="datalist",
        help="; ".join(f"{name}: {text}" for name, text in LAYOUTS.items()),
    )
    parser.add_argument("--cases", type=int, default=100, metavar="N", help="number of scans, at least 6 (default 100)")
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="of everything random (default 0)")
    parser.add_argument(
        "--size",
        type=int,
        default=64,
        metavar="V",
        help="voxels along 128 mm (default 64, so 2 mm); brats: along 240 mm, where 240 gives its grid of 1 mm",
    )
    parser.add_argument(
        "--workers", type=int, default=1, metavar="W", help="processes (default 1); the files do not depend on it"
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Generate a cohort and print what is in it."""
    options = {"cases": args.cases, "seed": args.seed, "size": args.size, "workers": args.workers, "progress": True}
    {"datalist": _datalist, "bids": _bids, "brats": _brats, "dicom": _dicom}[args.layout](args.out, options)
    return 0


def _datalist(out: str, options: dict[str, Any]) -> None:
    from droseg.data import group_table, read_datalist
    from droseg.data.phantoms import generate_phantoms

    path = generate_phantoms(out, **options)
    print(group_table(read_datalist(path)))
    print(f"Wrote {options['cases']} cases and {path}")


def _bids(out: str, options: dict[str, Any]) -> None:
    from droseg.data.phantoms.bids import generate_bids

    people = generate_bids(out, **options)
    _print_people(people)
    print(f"Wrote {out}/participants.tsv, images in {out}/sub-*/ses-*/anat, labels in {out}/derivatives/labels.")


def _brats(out: str, options: dict[str, Any]) -> None:
    from droseg.data.phantoms.brats import generate_brats

    planned = generate_brats(out, **options)
    _print_counts("site", (case.site for case in planned))
    _print_counts("tumor", (case.tumor_type for case in planned))
    patients = len({case.patient for case in planned})
    print(f"Wrote {len(planned)} scans of {patients} patients and {out}/sites.csv. Next:")
    print(f"  python scripts/convert_brats.py {out} --sites {out}/sites.csv --out {out}/all.json")
    print(
        f"  droseg data split {out}/all.json --fractions training=0.6,validation=0.1,testing=0.3 --stratify site "
        f"--stratify enhancement --out {out}/datalist.json"
    )


def _dicom(out: str, options: dict[str, Any]) -> None:
    from droseg.data.phantoms.dicom import generate_dicom

    people = generate_dicom(out, **options)
    _print_people(people)
    print(f"Wrote {out}/PATIENT/STUDY/SERIES/*.dcm: a localizer, T2w, T1w and a DICOM SEG of the labels per study.")


def _print_people(people: list[Person]) -> None:
    from droseg.data.phantoms.people import SCANNERS

    _print_counts("diagnosis", (person.anatomy for person in people))
    _print_counts("site", (SCANNERS[person.protocol]["site"] for person in people))
    sessions = [weightings for person in people for weightings in person.weightings]
    twice = sum(len(person.weightings) > 1 for person in people)
    without = sum("T1w" not in weightings for weightings in sessions)
    print(f"{len(people)} people, {twice} scanned twice; {len(sessions)} sessions, {without} without T1w")


def _print_counts(axis: str, groups: Iterable[str]) -> None:
    counts: Sequence[tuple[str, int]] = sorted(Counter(groups).items())
    print(f"{axis}: " + ", ".join(f"{group} {count}" for group, count in counts))
