"""The phantom cohort: which cases it has, and their files."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from droseg.data.datalist import Case, Datalist, PathLike, write_datalist
from droseg.data.phantoms.anatomy import ANATOMIES, STRUCTURES, Anatomy
from droseg.data.phantoms.files import check_arguments, make_files, write_nifti
from droseg.data.phantoms.scan import PROTOCOLS, Protocol, random_scan
from droseg.keys import TESTING, TRAINING, VALIDATION

MINIMUM_CASES: Final = 6
MINIMUM_SIZE: Final = 16
_TRAINING_SHARE: Final[dict[Anatomy, float]] = {"enlarged_ventricles": 0.14, "absent_cerebellum": 0.06}


@dataclass(frozen=True)
class PlannedCase:
    """What a case is to show; `index` with the seed fixes everything random in it."""

    index: int
    section: str
    anatomy: Anatomy
    protocol: Protocol

    @property
    def case_id(self) -> str:
        """The name of the case and of its files."""
        return f"phantom_{self.index:03d}"


def section_sizes(cases: int) -> dict[str, int]:
    """Return the number of cases in each section.

    Training has 60 %. Testing has the same number of each anatomy: 30 % of the first 100 cases, later 20 % if that is
    more. Validation has the rest. So 100 cases give 60, 10 and 30; 130 give 78, 22 and 30.
    """
    training = round(0.6 * cases)
    testing = len(ANATOMIES) * max(1, round(max(0.3 * min(cases, 100), 0.2 * cases) / len(ANATOMIES)))
    validation = max(1, cases - training - testing)
    return {TRAINING: cases - testing - validation, VALIDATION: validation, TESTING: testing}


def plan_cohort(cases: int, seed: int) -> list[PlannedCase]:
    """Return the cases of a cohort: rare anatomies are 14 % and 6 % of the training section, equal parts elsewhere.

    About a third of each anatomy in the training section is `thick_slice`, and half in the other sections.
    """
    rng = np.random.default_rng([seed, cases])
    planned: list[PlannedCase] = []
    for section, size in section_sizes(cases).items():
        if section == TRAINING:
            rare = {anatomy: max(int(size > 2), round(share * size)) for anatomy, share in _TRAINING_SHARE.items()}
            counts: dict[Anatomy, int] = {"typical": size - sum(rare.values()), **rare}
        else:
            counts = {anatomy: (size + 2 - rank) // len(ANATOMIES) for rank, anatomy in enumerate(ANATOMIES)}
        every = 3 if section == TRAINING else 2
        kinds = [
            # Each anatomy starts elsewhere in the cycle, so that small cohorts have both protocols too.
            (anatomy, PROTOCOLS[int((number + rank) % every == every - 1)])
            for rank, (anatomy, count) in enumerate(counts.items())
            for number in range(count)
        ]
        for kind in rng.permutation(len(kinds)):
            planned.append(PlannedCase(len(planned), section, *kinds[kind]))
    return planned


def generate_phantoms(
    out: PathLike, *, cases: int = 100, seed: int = 0, size: int = 64, workers: int = 1, progress: bool = False
) -> Path:
    """Write a cohort with known subgroups and return the path of its datalist.json.

    The same arguments give the same bytes, whatever the number of workers. See `section_sizes` and `plan_cohort` for
    the numbers, `random_individual` for the anatomies and `random_scan` for the protocols.

    Args:
        out: folder; gets `images/`, `labels/` and, last, `datalist.json`.
        cases: number of cases in all sections.
        seed: of everything random.
        size: voxels along the field of view of 128 mm, so 64 gives 2 mm.
        workers: processes to share the work.
        progress: show a progress bar on stderr.
    Raises:
        InputError: if an argument is out of range or the folder cannot be written.
    """
    check_arguments(cases=(cases, MINIMUM_CASES), size=(size, MINIMUM_SIZE), seed=(seed, 0))
    out = Path(out).expanduser().absolute()
    planned = plan_cohort(cases, seed)
    jobs = [(case, seed, size, out) for case in planned]
    make_files(_write_case, jobs, out, workers=workers, progress=progress)
    datalist = Datalist(
        path=out / "datalist.json",
        channels=("T2w",),
        structures={name: (value,) for name, value in STRUCTURES.items()},
        sections={
            section: tuple(_listed(case, out) for case in planned if case.section == section)
            for section in (TRAINING, VALIDATION, TESTING)
        },
    )
    write_datalist(datalist, datalist.path)
    return datalist.path


def _write_case(job: tuple[PlannedCase, int, int, Path]) -> None:
    case, seed, size, out = job
    rng = np.random.default_rng([seed, case.index])
    scan = random_scan(rng, case.anatomy, case.protocol, size)
    write_nifti(scan.image, scan.affine, out / "images" / f"{case.case_id}.nii.gz")
    write_nifti(scan.label, scan.affine, out / "labels" / f"{case.case_id}.nii.gz")


def _listed(case: PlannedCase, out: Path) -> Case:
    return Case(
        case_id=case.case_id,
        patient_id=case.case_id,
        images=(out / "images" / f"{case.case_id}.nii.gz",),
        label=out / "labels" / f"{case.case_id}.nii.gz",
        groups={"anatomy": case.anatomy, "protocol": case.protocol},
    )
