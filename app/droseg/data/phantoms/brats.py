"""Tumor phantoms in the public layout of BraTS 2023: four channels and a label map per time point of a patient."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from droseg.data.datalist import PathLike
from droseg.data.phantoms.files import check_arguments, make_files, write_nifti, write_text
from droseg.data.phantoms.tumor import (
    CHANNELS,
    Site,
    TumorType,
    grown,
    random_patient,
    scan_patient,
)

MINIMUM_CASES: Final = 6
MINIMUM_SIZE: Final = 32
"""Below, the voxels (7.5 mm) are thicker than the enhancing rim."""
_NO_ENHANCEMENT_SHARE: Final = 0.12
_SITE_SHARE: Final[dict[Site, float]] = {"B": 0.3, "C": 0.12}
_SCANNED_TWICE_EVERY: Final = 8


@dataclass(frozen=True)
class PlannedTumor:
    """What a case is to show; patient and time point with the seed fix everything random in it."""

    patient: int
    time_point: int
    tumor_type: TumorType
    site: Site

    @property
    def case_id(self) -> str:
        """The name of the case, of its folder and its files."""
        return f"BraTS-GLI-{self.patient:05d}-{self.time_point:03d}"


def plan_tumors(cases: int, seed: int) -> list[PlannedTumor]:
    """Return the cases: 12 % without enhancement, 12 % of site C, 30 % of site B, one patient in eight scanned twice.

    The shares are of the patients; each group has one patient at least.
    """
    rng = np.random.default_rng([seed, cases])
    patients = 0
    scans: list[tuple[int, int]] = []
    while len(scans) < cases:
        twice = patients % _SCANNED_TWICE_EVERY == 2 and len(scans) + 2 <= cases
        scans += [(patients, time_point) for time_point in range(1 + twice)]
        patients += 1
    without = max(1, round(_NO_ENHANCEMENT_SHARE * patients))
    types: list[TumorType] = ["no_enhancement" if index < without else "enhancing" for index in range(patients)]
    counts = {site: max(1, round(share * patients)) for site, share in _SITE_SHARE.items()}
    sites: list[Site] = [site for site, count in counts.items() for _ in range(count)]
    sites += ["A"] * (patients - len(sites))
    types = [types[index] for index in rng.permutation(patients)]
    sites = [sites[index] for index in rng.permutation(patients)]
    return [PlannedTumor(patient, time_point, types[patient], sites[patient]) for patient, time_point in scans]


def generate_brats(
    out: PathLike, *, cases: int = 100, seed: int = 0, size: int = 64, workers: int = 1, progress: bool = False
) -> list[PlannedTumor]:
    """Write tumor phantoms as `CASE/CASE-{t1n,t1c,t2w,t2f,seg}.nii.gz` with a `sites.csv`; return what they are.

    The same arguments give the same bytes, whatever the number of workers.

    Args:
        out: folder.
        cases: number of scans; some patients have two.
        seed: of everything random.
        size: voxels along the field of view of 240 mm; 240 gives the grid of BraTS.
        workers: processes to share the work.
        progress: show a progress bar on stderr.
    Raises:
        InputError: if an argument is out of range or the folder cannot be written.
    """
    check_arguments(cases=(cases, MINIMUM_CASES), size=(size, MINIMUM_SIZE), seed=(seed, 0))
    out = Path(out).expanduser().absolute()
    planned = plan_tumors(cases, seed)
    make_files(_write_case, [(case, seed, size, out) for case in planned], out, workers=workers, progress=progress)
    rows = ["case,site", *(f"{case.case_id},{case.site}" for case in planned)]
    write_text("\n".join(rows) + "\n", out / "sites.csv")
    return planned


def _write_case(job: tuple[PlannedTumor, int, int, Path]) -> None:
    case, seed, size, out = job
    individual, tumor = random_patient(np.random.default_rng([seed, case.patient]), case.tumor_type)
    rng = np.random.default_rng([seed, case.patient, case.time_point + 1])
    if case.time_point:
        tumor = grown(tumor, rng.uniform(1.1, 1.3))
    scan = scan_patient(rng, individual, tumor, case.site, size)
    for channel in CHANNELS:
        write_nifti(scan.images[channel], scan.affine, out / case.case_id / f"{case.case_id}-{channel}.nii.gz")
    write_nifti(scan.label, scan.affine, out / case.case_id / f"{case.case_id}-seg.nii.gz")
