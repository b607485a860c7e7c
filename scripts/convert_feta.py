"""FeTA folder (fetal brains in BIDS layout) -> datalist with seven structures and groups.

    python scripts/convert_feta.py SOURCE --out datalist.json [--site Zurich]
    python scripts/convert_feta.py ZURICH VIENNA --site Zurich --site Vienna --out datalist.json

SOURCE holds `participants.tsv` and, for each subject, one T2w reconstruction with its label map:

    sub-001/anat/sub-001_rec-mial_T2w.nii.gz
    sub-001/anat/sub-001_rec-mial_dseg.nii.gz

participants.tsv has the columns participant_id, Pathology (Neurotypical, Pathological) and Gestational age (weeks).
The names of columns are read without regard to case, spaces and underscores. All cases are training cases:
`droseg data split` deals them out.

Groups:
- pathology: `neurotypical` or `pathological`;
- ga_weeks: gestational age in bins of completed weeks, 21-25, 26-30, 31-38;
- reconstruction: mial, irtk ..., from the file name;
- site: from --site, or a column `site` or `institution` of participants.tsv.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
from tqdm import tqdm

from convert_shared import Findings, add_arguments, finish, known, label_values, strange_values
from droseg.data import Case, Datalist
from droseg.data.csv_text import read_text
from droseg.data.form import strip_suffix
from droseg.data.from_folders.axes import UNKNOWN
from droseg.data.from_folders.findings import some
from droseg.errors import DrosegError, InputError
from droseg.keys import TRAINING
from fetal_atlases import ga_bin

# fetachallenge.github.io, "Data description": the order of the labels
STRUCTURES = {
    "external_csf": (1,),
    "grey_matter": (2,),
    "white_matter": (3,),
    "ventricles": (4,),
    "cerebellum": (5,),
    "deep_grey_matter": (6,),
    "brainstem": (7,),
}
IMAGE = re.compile(r"(?P<stem>sub-[A-Za-z0-9]+(?:_[a-z]+-[A-Za-z0-9]+)*)_T2w\.nii(?:\.gz)?")
RECONSTRUCTION = re.compile(r"_rec-(?P<name>[A-Za-z0-9]+)")
PATHOLOGIES = {"neurotypical": "neurotypical", "pathological": "pathological"}
WEEKS = (15.0, 45.0)  # outside, a number is no gestational age in weeks
LICENSE_LINES = (
    "FeTA may not be downloaded by a script: register at synapse.org and ask at syn25649159 (FeTA Challenge Dataset).",
    "Its owner is the University Children's Hospital Zurich; research and education only. The training data of the",
    "Medical University of Vienna were shared for the challenge of 2022 alone. Cite Payette et al. 2021, Scientific",
    "Data 8:167.",
)


def plain(name: str) -> str:
    """Return a column's name without case, spaces and underscores."""
    return re.sub(r"[\s_]+", "", name.lower())


def read_participants(source: Path, findings: Findings) -> dict[str, dict[str, str]]:
    """Return subject -> column (plain name) -> value; subjects in several rows become problems.

    Raises:
        InputError: if there is no participants.tsv, or a column of it is missing.
    """
    path = source / "participants.tsv"
    if not path.is_file():
        raise InputError(f"{path}: no such file; give the folder that holds it and the folders sub-001, sub-002 ...")
    table = read_text(path, lambda note: findings.warnings.append(f"{path}: {note}"), "one row per subject").fields
    columns = {plain(name): name for name in table.columns}
    missing = [name for name in ("participant_id", "Pathology", "Gestational age") if plain(name) not in columns]
    if missing:
        raise InputError(f"{path}: no column {', '.join(missing)}; those there: {', '.join(table.columns)}.")
    subjects = table[columns["participantid"]].map(_subject)
    for name in sorted(subjects[subjects.duplicated()].unique()):
        lines = some(map(str, table.index[subjects == name]))
        findings.problem(f"{path}: {name} in several rows (lines {lines}); keep one.", name)
    rows = pd.DataFrame({name: table[column] for name, column in columns.items()})
    return {name: rows.loc[index].to_dict() for index, name in subjects.drop_duplicates().items()}


def _subject(text: str) -> str:
    """Return the subject as its folder is called: the table may leave out "sub-"."""
    return text if text.startswith("sub-") else f"sub-{text}"


def find_images(source: Path, findings: Findings) -> list[tuple[str, Path, Path, str]]:
    """Return subject, image, label and reconstruction of each pair of files; what lacks its partner is a problem.

    Raises:
        InputError: if there is no folder of a subject.
    """
    folders = sorted(path for path in source.glob("sub-*") if path.is_dir())
    if not folders:
        raise InputError(f"{source}: no folder sub-001, sub-002 ...; give the folder that holds them.")
    found = []
    for folder in folders:
        subject, anat = folder.name, folder / "anat"
        files = sorted(anat.iterdir()) if anat.is_dir() else []
        images = [(path, match) for path in files if (match := IMAGE.fullmatch(path.name))]
        if not images:
            findings.problem(f"{anat}: no image sub-..._T2w.nii.gz; it holds {some(p.name for p in files)}.", subject)
        for image, match in images:
            names = [f"{match['stem']}_dseg{suffix}" for suffix in (".nii.gz", ".nii")]
            label = next((anat / name for name in names if (anat / name).is_file()), None)
            if label is None:
                findings.problem(f"{image}: no label map {names[0]} beside it.", subject)
                continue
            rec = RECONSTRUCTION.search(match["stem"])
            found.append((subject, image, label, rec["name"] if rec else UNKNOWN))
    return found


def groups_of(subject: str, row: dict[str, str], where: Path, findings: Findings) -> dict[str, str]:
    """Return pathology and gestational age of a subject; what is not known gets a warning, what is wrong a problem."""
    groups = {}
    text = known(row["pathology"])
    groups["pathology"] = UNKNOWN if text == UNKNOWN else PATHOLOGIES.get(text.lower(), "")
    if not groups["pathology"]:
        findings.problem(
            f"{where}: {subject}: Pathology is '{text}'; Neurotypical or Pathological is expected.", subject
        )
    text = known(row["gestationalage"])
    groups["ga_weeks"] = UNKNOWN
    if text != UNKNOWN:
        try:
            weeks = float(text.replace(",", "."))
        except ValueError:
            weeks = -1.0
        if WEEKS[0] <= weeks <= WEEKS[1]:
            groups["ga_weeks"] = ga_bin(int(weeks))
        else:
            findings.problem(
                f"{where}: {subject}: Gestational age is '{text}'; a number of weeks is expected.", subject
            )
    unknown = [name for name, value in groups.items() if value == UNKNOWN]
    if unknown:
        findings.warnings.append(f"{where}: {subject}: {' and '.join(unknown)} not given, it gets '{UNKNOWN}'")
    return groups


def find_cases(source: Path, site: str | None, findings: Findings) -> list[Case]:
    """Return the cases of one folder; what is wrong is added to the findings."""
    rows = read_participants(source, findings)
    table = source / "participants.tsv"
    pairs = find_images(source, findings)
    subjects = {subject for subject, *_ in pairs}
    if others := sorted(set(rows) - {path.name for path in source.glob("sub-*")}):
        findings.warnings.append(f"{table}: {len(others)} rows without a folder: {some(others)}")
    groups: dict[str, dict[str, str]] = {}
    for subject in sorted(subjects):
        if subject not in rows:
            findings.problem(f"{table}: no row for {subject}; add one.", subject)
            continue
        groups[subject] = groups_of(subject, rows[subject], table, findings)
        named = site or next((rows[subject][name] for name in ("site", "institution") if name in rows[subject]), None)
        if named is not None:
            groups[subject]["site"] = known(named)
    cases = []
    for subject, image, label, reconstruction in tqdm(pairs, desc="label maps", unit="case", disable=None):
        check_label(label, subject, findings)
        several = sum(name == subject for name, *_ in pairs) > 1
        case_id = strip_suffix(image.name).removesuffix("_T2w") if several else subject
        axes = {**groups.get(subject, {}), "reconstruction": reconstruction}
        cases.append(Case(case_id, subject, (image,), label, axes))
    print(f"{source}: {len(subjects)} subjects, {len(cases)} reconstructions with a label map")
    return cases


def check_label(label: Path, subject: str, findings: Findings) -> None:
    """Add a problem where a label map cannot be read or has a value that is no structure."""
    try:
        strange = strange_values(label_values(label), range(len(STRUCTURES) + 1))
    except DrosegError as error:
        findings.problem(str(error), subject)
        return
    if strange:
        findings.problem(f"{label}: has the values {strange}; FeTA's labels are 1 to 7.", subject)


def build_datalist(
    sources: Sequence[Path], sites: Sequence[str], out: Path, skip_bad: bool, findings: Findings
) -> Datalist:
    """Return the datalist of one or several folders, all cases in the training section.

    Raises:
        InputError: with all problems, if there are any.
    """
    if sites and len(sites) != len(sources):
        raise InputError(f"{len(sources)} folders, but --site is given {len(sites)} times; give it once for each.")
    cases: list[Case] = []
    for index, source in enumerate(sources):
        cases += find_cases(source.expanduser().absolute(), sites[index] if sites else None, findings)
    for case_id in sorted({case.case_id for case in cases}):
        files = [str(case.images[0]) for case in cases if case.case_id == case_id]
        if len(files) > 1:
            findings.problem(f"{case_id}: {len(files)} images of this name ({', '.join(files)}); rename one.", case_id)
    bad = findings.bad_cases(skip_bad)
    kept = tuple(case for case in cases if case.patient_id not in bad and case.case_id not in bad)
    if not kept:
        raise InputError(f"{sources[0]}: no case is left.")
    if not any("site" in case.groups for case in kept):
        findings.warnings.append("no site is known, so there is no group axis 'site'; give --site, e.g. --site Zurich")
    return Datalist(out, ("T2w",), STRUCTURES, {TRAINING: kept})


def main(argv: Sequence[str] | None = None) -> int:
    """Convert the folders and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "source", type=Path, nargs="+", metavar="SOURCE", help="folder with participants.tsv, or one for each site"
    )
    parser.add_argument(
        "--site", action="append", default=[], metavar="NAME", help="site of a SOURCE, once for each, in their order"
    )
    add_arguments(parser)
    args = parser.parse_args(argv)
    return finish(
        args,
        lambda findings: build_datalist(args.source, args.site, args.out, args.skip_bad, findings),
        args.source[0] if len(args.source) == 1 else None,
        LICENSE_LINES,
    )


if __name__ == "__main__":
    sys.exit(main())
