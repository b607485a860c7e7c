"""Names of subjects, sessions and series that tell nobody who was scanned, the same in every run."""

from __future__ import annotations

import itertools
import re
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Final

from droseg.data.convert.tree import Scan
from droseg.errors import InputError

Name = tuple[str, str, str]
"""Subject, session and series: the path of the file without its suffix."""

_NUMBERED: Final = re.compile(r"(sub|ses)-0*(\d+)")


def name_scans(
    scans: Sequence[Scan],
    stems: Mapping[str, str],
    known: Mapping[str, Sequence[Name]],
    keep_patient_ids: bool = False,
    who: Mapping[str, str] | None = None,
) -> dict[str, Name]:
    """Return key of a scan -> its name; series of earlier runs keep theirs, whatever else has come into the tree.

    New subjects are numbered in the order of their PatientIDs, sessions in that of their dates.

    Args:
        scans: to name.
        stems: key -> name for the series, if it was chosen by a name; others are called by their number.
        known: key -> names that earlier runs gave a series.
        keep_patient_ids: call subjects by PatientID.
        who: PatientID -> number that an earlier run gave the patient.
    Raises:
        InputError: if PatientIDs cannot be told apart as names, or an earlier run named subjects the other way.
    """
    subjects = _subjects(scans, known, keep_patient_ids, who or {})
    used: dict[str, set[str]] = defaultdict(set)
    for names in known.values():
        for subject, session, _ in names:
            used[subject].add(session)
    sessions: dict[tuple[str, str], str] = {}
    for scan in scans:
        for subject, session, _ in known.get(scan.key, ()):
            if subject == subjects[scan.patient]:
                sessions.setdefault((scan.patient, scan.study), session)
    for scan in sorted(scans, key=lambda scan: (scan.patient, scan.when, scan.study)):
        if (scan.patient, scan.study) not in sessions:
            taken = used[subjects[scan.patient]]
            sessions[scan.patient, scan.study] = _next_number("ses", taken, 1)
            taken.add(sessions[scan.patient, scan.study])
    return _series(scans, stems, known, lambda scan: (subjects[scan.patient], sessions[scan.patient, scan.study]))


def _subjects(
    scans: Sequence[Scan], known: Mapping[str, Sequence[Name]], keep_patient_ids: bool, who: Mapping[str, str]
) -> dict[str, str]:
    """Return what tells patients apart -> name of the subject."""
    taken = {subject for names in known.values() for subject, _, _ in names}
    before = {scan.patient: name[0] for scan in scans for name in known.get(scan.key, ())}
    patients = sorted({(scan.patient, scan.patient_id) for scan in scans})
    subjects = _safe_ids(patients) if keep_patient_ids else {}
    numbered = [bool(_NUMBERED.fullmatch(name)) for name in taken]
    if keep_patient_ids:  # an ID may look like a number; the series that are there already tell
        other = any(subjects[p] != name for p, name in before.items()) or (not before and numbered and all(numbered))
    else:
        other = not all(numbered)
    if other:
        done = "numbers" if keep_patient_ids else "PatientIDs"
        raise InputError(f"the output folder has subjects called by {done} already; choose another --out.")
    if keep_patient_ids:
        return subjects
    taken |= set(who.values())
    for patient, identity in patients:
        subjects[patient] = before.get(patient) or who.get(identity) or _next_number("sub", taken, 3)
        taken.add(subjects[patient])
    return subjects


def _safe_ids(patients: Sequence[tuple[str, str]]) -> dict[str, str]:
    subjects: dict[str, str] = {}
    by_name: dict[str, list[str]] = defaultdict(list)
    for patient, identity in patients:
        name = re.sub(r"[^A-Za-z0-9.+-]+", "-", identity).strip(".-") or "without-id"
        by_name[name.casefold()].append(identity)  # some file systems do not tell cases apart
        subjects[patient] = name
    alike = [identities for identities in by_name.values() if len(identities) > 1]
    if alike:
        listed = "; ".join(" and ".join(repr(identity) for identity in identities) for identities in alike)
        raise InputError(
            f"--keep-patient-ids: PatientIDs that give one name, or are of several issuers: {listed}; "
            "leave the option out (--mapping FILE says which number is who)."
        )
    return subjects


def _next_number(kind: str, taken: set[str], digits: int) -> str:
    numbers = [int(found[2]) for name in taken if (found := _NUMBERED.fullmatch(name)) and found[1] == kind]
    return f"{kind}-{max(numbers, default=0) + 1:0{digits}d}"


def _series(
    scans: Sequence[Scan],
    stems: Mapping[str, str],
    known: Mapping[str, Sequence[Name]],
    place: Callable[[Scan], tuple[str, str]],
) -> dict[str, Name]:
    parts: dict[tuple[str, str], list[Scan]] = defaultdict(list)
    for scan in scans:
        parts[scan.series.study_uid, scan.series.uid or str(scan.series.folder)].append(scan)
    volume = {scan.key: number for items in parts.values() for number, scan in enumerate(items, 1) if len(items) > 1}
    result: dict[str, Name] = {}
    taken = {name for names in known.values() for name in names}

    def base(scan: Scan) -> str:
        number = scan.series.number
        stem = stems.get(scan.key) or ("series" if number is None else f"series-{number:03d}")
        return f"{stem}_part-{volume[scan.key]}" if scan.key in volume else stem

    for scan in scans:
        again = [
            name
            for name in known.get(scan.key, ())
            if name[:2] == place(scan) and name[2].split("_run-")[0] == base(scan)
        ]
        if again:
            result[scan.key] = again[0]
    for scan in sorted(scans, key=lambda scan: (scan.series.number or 0, scan.series.uid, volume.get(scan.key, 0))):
        if scan.key in result:
            continue
        stem = base(scan)
        names = itertools.chain([stem], (f"{stem}_run-{run}" for run in itertools.count(2)))
        result[scan.key] = next(name for last in names if (name := (*place(scan), last)) not in taken)
        taken.add(result[scan.key])
    return result
