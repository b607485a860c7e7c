"""BraTS folder (2017 to 2024, gliomas) -> datalist with four channels, the regions WT, TC, ET, and groups.

    python scripts/convert_brats.py SOURCE --out datalist.json [--sites MAPPING.csv]

SOURCE holds one folder per case, itself or in HGG/ and LGG/, with NIfTI files (.nii.gz or .nii):

    BraTS 2023, 2024   BraTS-GLI-00000-000/BraTS-GLI-00000-000-{t1n,t1c,t2w,t2f,seg}.nii.gz
    BraTS 2021         BraTS2021_00000/BraTS2021_00000_{t1,t1ce,t2,flair,seg}.nii.gz
    BraTS 2017 to 2020 Brats18_CBICA_AAM_1/..., BraTS19_CBICA_AAB_1/..., BraTS20_Training_001/...

The enhancing tumor is 3 in 2023 and 2024, and 4 before; which one is found decides, and a mixture is refused. All time
points of a patient (-000, -001) get one patient_id. All cases are training cases: `droseg data split` deals them out.

Groups:
- enhancement: `present` or `absent`, from the label map;
- site: from the case name (CBICA, TCIA, TMC, 2013), or from --sites: a CSV with the columns `case` and `site`, BraTS'
  own name_mapping.csv (2018 to 2020; read without being asked where it lies in SOURCE), or the sheet
  BraTS2023_2017_GLI_Mapping saved as CSV;
- grade: HGG or LGG, from name_mapping.csv or the folders HGG/ and LGG/.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from brats_mapping import Mapping, read_mapping, site_of_name
from convert_shared import Findings, add_arguments, finish, label_values, strange_values
from droseg.data import Case, Datalist
from droseg.data.from_folders.axes import UNKNOWN
from droseg.data.from_folders.findings import some
from droseg.errors import DrosegError, InputError
from droseg.keys import TRAINING

CHANNELS = ("t1n", "t1c", "t2w", "t2f")
NAMES_BEFORE_2023 = {"t1n": "t1", "t1c": "t1ce", "t2w": "t2", "t2f": "flair"}
SUFFIXES = (".nii.gz", ".nii")
CASE_NAMES = (
    re.compile(r"(?P<patient>BraTS-[A-Za-z]+-\d+)-\d+"),
    re.compile(r"(?P<patient>BraTS2021_\d+)"),
    re.compile(r"(?P<patient>BraTS20_(Training|Validation)_\d+)"),
    re.compile(r"(?P<patient>Bra[tT][sS]1[789]_.+)_\d+"),
)
GRADES = ("HGG", "LGG")
NECROSIS, EDEMA = 1, 2
LICENSE_LINES = (
    "BraTS may not be downloaded by a script: register at synapse.org, join the challenge (2023: syn51156910) and fill",
    "out its data access form. Its data usage agreement asks to cite the papers that it lists (Baid et al. 2021,",
    "arXiv:2107.02314, among them); read it there, other years have their own.",
)


@dataclass(frozen=True)
class Found:
    """One case with all of its files; `values` are those of its label map."""

    case_id: str
    folder: Path
    images: tuple[Path, ...]
    label: Path
    values: frozenset[int]


def case_folders(source: Path, findings: Findings) -> list[Path]:
    """Return the folders of the cases; other folders are left out aloud.

    Raises:
        InputError: if there are none.
    """
    if not source.is_dir():
        raise InputError(f"{source}: no such folder; give the folder that holds the folders of the cases.")
    parents = [source / grade for grade in GRADES if (source / grade).is_dir()] or [source]
    folders = sorted(path for parent in parents for path in parent.iterdir() if path.is_dir())
    chosen = [path for path in folders if patient_of(path.name) is not None]
    if not chosen:
        inside = some(path.name for path in folders) or "no folder"
        raise InputError(
            f"{source}: no folder of a case such as BraTS-GLI-00000-000, BraTS2021_00000 or BraTS20_Training_001; "
            f"it holds {inside}. Give the folder that holds them."
        )
    findings.left_out += [f"{path}: its name is not that of a BraTS case" for path in folders if path not in chosen]
    return chosen


def patient_of(case_id: str) -> str | None:
    """Return the patient that a case name tells; None if it is none of BraTS."""
    matches = (pattern.fullmatch(case_id) for pattern in CASE_NAMES)
    return next((match["patient"] for match in matches if match), None)


def find_case(folder: Path, findings: Findings) -> Found | None:
    """Return a case, or None where it is not usable."""
    name = folder.name
    present = {path.name: path for path in sorted(folder.iterdir()) if not path.name.startswith(".")}

    def file_of(part: str) -> Path | None:
        names = [f"{name}-{part}", f"{name}_{NAMES_BEFORE_2023.get(part, part)}"]
        return next((present[n + s] for n in names for s in SUFFIXES if n + s in present), None)

    images = {channel: file_of(channel) for channel in CHANNELS}
    label = file_of("seg")
    missing = [channel for channel, path in images.items() if path is None]
    if label is None and not missing:
        images_used = {path for path in images.values() if path}
        others = [n for n, path in present.items() if path not in images_used and n.endswith(SUFFIXES)]
        if not others:  # as in BraTS' validation data
            findings.left_out.append(f"{folder}: no label map")
            return None
    if missing or label is None:
        lacking = missing + (["seg"] if label is None else [])
        found = some(present) or "nothing"
        findings.problem(f"{folder}: no file for {', '.join(lacking)}; it holds {found}. Add or rename it.", name)
        return None
    try:
        values = label_values(label)
    except DrosegError as error:
        findings.problem(str(error), name)
        return None
    if strange := strange_values(values, range(5)):
        findings.problem(f"{label}: has the values {strange}; BraTS' labels are 1, 2, 3 or 4.", name)
        return None
    paths = tuple(path for path in images.values() if path is not None)
    return Found(name, folder, paths, label, frozenset(int(value) for value in values if value))


def enhancing_value(cases: Sequence[Found], findings: Findings) -> int:
    """Return the value of the enhancing tumor, 3 or 4; a mixture becomes a problem of the whole data set."""
    three = [case.case_id for case in cases if 3 in case.values]
    four = [case.case_id for case in cases if 4 in case.values]
    both = sorted(set(three) & set(four))
    if both:
        findings.problem(
            f"labels 3 and 4 in one label map ({len(both)} cases: {some(both)}); in BraTS 2024 post-treatment, 4 is "
            "the resection cavity, which this converter does not know."
        )
    elif three and four:
        findings.problem(
            f"two label conventions: the enhancing tumor is 3 in {len(three)} cases ({some(three)}) and 4 in "
            f"{len(four)} ({some(four)}); convert the years apart, or relabel one."
        )
    if three or four:
        return 3 if three else 4
    value = 3 if any(case.case_id.startswith("BraTS-") for case in cases) else 4
    findings.warnings.append(f"no case has an enhancing tumor; by the names of the cases its value is {value}")
    return value


def groups_of(case: Found, enhancing: int, mapping: Mapping | None) -> dict[str, str]:
    """Return the groups of a case; `grade` and `site` only where there is a source for them."""
    groups = {"enhancement": "present" if enhancing in case.values else "absent"}
    site = mapping.sites.get(case.case_id) if mapping and mapping.sites else None
    if site := site or site_of_name(case.case_id):
        groups["site"] = site
    grade = mapping.grades.get(case.case_id) if mapping else None
    if grade is None and case.folder.parent.name in GRADES:
        grade = case.folder.parent.name
    if grade is not None:
        groups["grade"] = grade
    return groups


def fill_unknown(cases: list[Case], findings: Findings) -> None:
    """Give the cases without a site or grade, where others have one, the group `unknown`, with a warning."""
    for axis in ("site", "grade"):
        without = [case for case in cases if case.groups.get(axis, UNKNOWN) == UNKNOWN]
        if len(without) == len(cases):
            for case in without:
                case.groups.pop(axis, None)
            if axis == "site" or any(site_of_name(case.case_id) or "BraTS20_" in case.case_id for case in cases):
                findings.warnings.append(f"no {axis} is known, so there is no group axis '{axis}'{_HINTS[axis]}")
            continue
        for case in without:
            case.groups[axis] = UNKNOWN
        if without:
            names = some(case.case_id for case in without)
            findings.warnings.append(f"{axis} of {len(without)} cases is not known, they get '{UNKNOWN}': {names}")


_HINTS = {
    "site": "; since 2020 the names do not tell it, give --sites MAPPING.csv",
    "grade": "; it comes from name_mapping.csv or the folders HGG/ and LGG/",
}


def build_datalist(source: Path, out: Path, sites: Path | None, skip_bad: bool, findings: Findings) -> Datalist:
    """Return the datalist of the folder, all cases in the training section.

    Raises:
        InputError: with all problems, if there are any.
    """
    source = source.expanduser().absolute()
    folders = case_folders(source, findings)
    usual = source / "name_mapping.csv"
    if sites is None and usual.is_file():
        print(f"{usual}: read for site and grade")
        sites = usual
    mapping = None
    if sites is not None:
        mapping = read_mapping(sites, [folder.name for folder in folders], findings)
    bar = tqdm(folders, desc="label maps", unit="case", disable=None)
    found = [case for case in (find_case(folder, findings) for folder in bar) if case is not None]
    print(f"{source}: {len(folders)} case folders, {len(found)} with four channels and a label map")
    enhancing = enhancing_value(found, findings)
    bad = findings.bad_cases(skip_bad)
    cases = [_case(case, enhancing, mapping) for case in found if case.case_id not in bad]
    if not cases:
        raise InputError(f"{source}: no case with four channels and a label map.")
    fill_unknown(cases, findings)
    structures = {"WT": (NECROSIS, EDEMA, enhancing), "TC": (NECROSIS, enhancing), "ET": (enhancing,)}
    print(f"{len({case.patient_id for case in cases})} patients; the enhancing tumor has the label {enhancing}")
    return Datalist(out, CHANNELS, structures, {TRAINING: tuple(cases)})


def _case(case: Found, enhancing: int, mapping: Mapping | None) -> Case:
    patient = patient_of(case.case_id) or case.case_id
    return Case(case.case_id, patient, case.images, case.label, groups_of(case, enhancing, mapping))


def main(argv: Sequence[str] | None = None) -> int:
    """Convert the folder and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, metavar="SOURCE", help="folder with one folder per case")
    parser.add_argument("--sites", type=Path, metavar="CSV", help="table that tells the site (and grade) of each case")
    add_arguments(parser)
    args = parser.parse_args(argv)
    return finish(
        args,
        lambda findings: build_datalist(args.source, args.out, args.sites, args.skip_bad, findings),
        args.source,
        LICENSE_LINES,
    )


if __name__ == "__main__":
    sys.exit(main())
