"""Phantoms as a BIDS 1.9 data set: images with sidecars, participants.tsv, label maps as derivatives."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

import numpy as np

from droseg import __version__
from droseg.data.datalist import PathLike
from droseg.data.phantoms.anatomy import ANATOMIES, STRUCTURES
from droseg.data.phantoms.files import check_arguments, make_files, write_nifti, write_text
from droseg.data.phantoms.people import SCANNERS, Person, plan_people, session_scans
from droseg.data.phantoms.scan import Scan, Weighting

MINIMUM_CASES: Final = 6
MINIMUM_SIZE: Final = 16
BIDS_VERSION: Final = "1.9.0"
DERIVATIVES: Final = Path("derivatives") / "labels"
NOT_KNOWN: Final = "n/a"  # BIDS' word for a missing value in a table
_README: Final = (
    "Generated brains, no patients. T1w and T2w of a session lie on one grid; some sessions have no T1w.\n"
    "The label maps are in derivatives/labels; derivatives/labels/dseg.tsv names their values.\n"
)


def generate_bids(
    out: PathLike, *, cases: int = 100, seed: int = 0, size: int = 64, workers: int = 1, progress: bool = False
) -> list[Person]:
    """Write a BIDS data set of phantoms and return who is in it.

    The same arguments give the same bytes, whatever the number of workers.

    Args:
        out: folder; gets `sub-NNN/ses-N/anat/`, `participants.tsv` and `derivatives/labels/`.
        cases: number of sessions; some people have two.
        seed: of everything random.
        size: voxels along the field of view of 128 mm, so 64 gives 2 mm.
        workers: processes to share the work.
        progress: show a progress bar on stderr.
    Raises:
        InputError: if an argument is out of range or the folder cannot be written.
    """
    check_arguments(cases=(cases, MINIMUM_CASES), size=(size, MINIMUM_SIZE), seed=(seed, 0))
    out = Path(out).expanduser().absolute()
    people = plan_people(cases, seed)
    jobs = [(person, session + 1, seed, size, out) for person in people for session in range(len(person.weightings))]
    make_files(_write_session, jobs, out, workers=workers, progress=progress)
    write_text(_README, out / "README")
    write_text(_participants(people), out / "participants.tsv")
    write_text(_json(_COLUMNS), out / "participants.json")
    generated_by = [{"Name": "droseg data phantoms", "Version": __version__}]
    description = {"Name": "droseg phantoms", "BIDSVersion": BIDS_VERSION, "DatasetType": "raw", "License": "CC0"}
    write_text(_json({**description, "GeneratedBy": generated_by}), out / "dataset_description.json")
    description |= {"Name": "Label maps of the droseg phantoms", "DatasetType": "derivative"}
    write_text(_json({**description, "GeneratedBy": generated_by}), out / DERIVATIVES / "dataset_description.json")
    rows = ["index\tname", "0\tbackground", *(f"{value}\t{name}" for name, value in STRUCTURES.items())]
    write_text("\n".join(rows) + "\n", out / DERIVATIVES / "dseg.tsv")
    return people


def subject(person: Person) -> str:
    """Return the participant_id."""
    return f"sub-{person.number:03d}"


_COLUMNS: Final = {
    "age": {"Description": "age of the participant", "Units": "year"},
    "sex": {"Description": "sex of the participant", "Levels": {"F": "female", "M": "male"}},
    "diagnosis": {"Description": "what the brain shows", "Levels": {name: name for name in ANATOMIES}},
    "site": {"Description": "where the participant was scanned"},
}


def _participants(people: list[Person]) -> str:
    """Return the text of participants.tsv."""
    rows = ["participant_id\tage\tsex\tdiagnosis\tsite"]
    for person in people:
        known = [NOT_KNOWN if value is None else str(value) for value in (person.age, person.sex)]
        rows.append("\t".join([subject(person), *known, person.anatomy, SCANNERS[person.protocol]["site"]]))
    return "\n".join(rows) + "\n"


def _json(content: dict[str, Any]) -> str:
    return json.dumps(content, indent=2) + "\n"


def _write_session(job: tuple[Person, int, int, int, Path]) -> None:
    person, session, seed, size, out = job
    folder = Path(subject(person)) / f"ses-{session}" / "anat"
    name = f"{subject(person)}_ses-{session}"
    scans = session_scans(person, session, seed, size)
    for weighting, scan in scans.items():
        write_nifti(scan.image, scan.affine, out / folder / f"{name}_{weighting}.nii.gz")
        write_text(_json(_sidecar(person, weighting, scan)), out / folder / f"{name}_{weighting}.json")
    label = scans["T2w"]
    write_nifti(label.label, label.affine, out / DERIVATIVES / folder / f"{name}_dseg.nii.gz")


def _sidecar(person: Person, weighting: Weighting, scan: Scan) -> dict[str, Any]:
    """Return what BIDS keeps of the scanner's header beside an image."""
    scanner = SCANNERS[person.protocol]
    return {
        "Modality": "MR",
        "Manufacturer": scanner["Manufacturer"],
        "ManufacturersModelName": scanner["ManufacturersModelName"],
        "MagneticFieldStrength": scanner["MagneticFieldStrength"],
        "MRAcquisitionType": "3D" if person.protocol == "isotropic" else "2D",
        "SliceThickness": round(float(np.linalg.norm(scan.affine[:3, :3], axis=0).max()), 4),
        "EchoTime": scanner["EchoTime"][weighting],
        "RepetitionTime": scanner["RepetitionTime"][weighting],
    }
