"""What a conversion will do: which series become which files, with which label values, before a voxel is read."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from droseg.data.convert.files import MAPPING_COLUMNS, read_marks, read_structures, read_table
from droseg.data.convert.names import Name, name_scans
from droseg.data.convert.segments import SegObject, structure_values
from droseg.data.convert.tree import Scan, Tree, read_trees
from droseg.data.walk import Skip
from droseg.errors import InputError

OPTION: Final = "--series-description"
Choice = tuple[str, re.Pattern[str]]
"""Name of the files (empty: by the number of the series), and the expression that chooses them."""


@dataclass(frozen=True)
class Item:
    """One series, the SEG objects that refer to it, and its name."""

    scan: Scan
    segs: tuple[SegObject, ...]
    name: Name

    @property
    def file(self) -> str:
        """The image, from the output folder."""
        return f"{'/'.join(self.name)}.nii.gz"

    @property
    def label_file(self) -> str:
        """The label map, from the output folder."""
        return f"{'/'.join(self.name)}_label.nii.gz"


@dataclass(frozen=True)
class Plan:
    """What will be done, and what will not.

    Attributes:
        structures: name of a segment -> label value in all cases.
        failures: where something is that should be converted and cannot be, and why.
        notes: what a person should know; nothing of it changes the exit code.
    """

    items: tuple[Item, ...]
    structures: Mapping[str, int]
    skips: tuple[Skip, ...]
    failures: tuple[tuple[str, str], ...]
    notes: tuple[str, ...]


def compile_choices(texts: Sequence[str]) -> list[Choice]:
    """Return what `[NAME=]REGEX` says; case does not count.

    Raises:
        InputError: if an expression cannot be compiled, or a name is given twice.
    """
    choices = []
    for text in texts:
        found = re.match(r"([A-Za-z0-9-]+)=(.*)", text, re.S)
        name, expression = (found[1], found[2]) if found else ("", text)
        try:
            choices.append((name, re.compile(expression, re.IGNORECASE)))
        except re.error as error:
            raise InputError(f"{OPTION} {expression!r}: {error}; give a regular expression.") from error
    twice = [name for name, count in Counter(name for name, _ in choices if name).items() if count > 1]
    if twice:
        raise InputError(f"{OPTION}: the name '{twice[0]}' is given twice; join the expressions with |.")
    return choices


def plan_conversion(
    folders: Sequence[Path],
    out: Path,
    *,
    choices: Sequence[Choice] = (),
    keep_patient_ids: bool = False,
    mapping: Path | None = None,
    progress: bool = False,
) -> Plan:
    """Return what converting some DICOM trees will do.

    Args:
        folders: DICOM trees.
        out: folder for the files; what earlier runs left there keeps its names and label values.
        choices: a series is converted if one of them matches its description; none: all series.
        keep_patient_ids: call subjects by PatientID, not by numbers.
        mapping: table of an earlier run that says which patient has which number, if there is one.
        progress: show progress bars on stderr once they have taken two seconds.
    Raises:
        InputError: if there is nothing to convert, or the arguments do not fit to what there is.
    """
    tree = read_trees(folders, out, progress)
    stems, skips = _chosen(tree.scans, choices)
    scans = [scan for scan in tree.scans if scan.key in stems]
    if choices and tree.scans and not scans:
        there = ", ".join(sorted({_text(scan) or "(none)" for scan in tree.scans})[:20])
        raise InputError(f"{OPTION}: no series matches; the descriptions are: {there}.")
    known = read_marks(out)
    rows = [] if mapping is None else read_table(mapping, MAPPING_COLUMNS)
    who = {row["patient_id"]: row["subject"] for row in rows if row["patient_id"]}
    names = name_scans(scans, stems, known, keep_patient_ids, who)
    segs, seg_skips, seg_failures = _assigned(tree, {scan.key for scan in scans})
    items = [Item(scan, tuple(segs.get(scan.key, ())), names[scan.key]) for scan in scans]
    items.sort(key=lambda item: item.name)
    cases = [{name: number for seg in item.segs for name, number in seg.numbers.items()} for item in items if item.segs]
    values, conflicts = structure_values(cases, read_structures(out))
    notes = [
        *_patient_notes(items),
        *_follow_up_notes(items, known, keep_patient_ids, who),
        *_choice_notes(items, choices),
        *_repeat_notes(items, stems),
    ]
    notes += [f"{seg.path}: {note}" for item in items for seg in item.segs for note in seg.notes]
    return Plan(
        items=tuple(items),
        structures=values,
        skips=(*tree.skips, *skips, *seg_skips),
        failures=(*tree.failures, *seg_failures),
        notes=(*notes, *conflicts),
    )


def _text(scan: Scan) -> str:
    return f"{scan.series.description} {scan.series.part}".strip()


def _chosen(scans: Sequence[Scan], choices: Sequence[Choice]) -> tuple[dict[str, str], list[Skip]]:
    """Return key -> name of the choice for each chosen series, and the rest."""
    if not choices:
        return {scan.key: "" for scan in scans}, []
    stems: dict[str, str] = {}
    skips = []
    for scan in scans:
        name = next((name for name, pattern in choices if pattern.search(_text(scan))), None)
        if name is None:
            skips.append(Skip(scan.series.label, scan.series.folder, f"not chosen by {OPTION}"))
        else:
            stems[scan.key] = name
    return stems, skips


def _assigned(tree: Tree, chosen: set[str]) -> tuple[dict[str, list[SegObject]], list[Skip], list[tuple[str, str]]]:
    """Return key of a series -> the SEG objects that refer to it, and those of no series that is converted."""
    found: dict[str, list[SegObject]] = defaultdict(list)
    skips: list[Skip] = []
    failures: list[tuple[str, str]] = []
    images = {tree.instances[path]: scan for scan in tree.scans for path in scan.series.files}
    of_series: dict[str, list[Scan]] = defaultdict(list)
    for scan in tree.scans:
        of_series[scan.series.uid].append(scan)
    for seg in tree.segs:
        keys = {images[image].key for image in seg.images if image in images}
        drawn_on = [scan for scan in tree.scans if scan.key in keys] if keys else []
        drawn_on = drawn_on or [scan for uid in dict.fromkeys(seg.series) for scan in of_series.get(uid, ())]
        for scan in drawn_on:
            if scan.key in chosen:
                found[scan.key].append(seg)
        if not drawn_on:
            wanted = "the series that it refers to is not among those that can be converted"
            failures.append((str(seg.path), f"a SEG object, but {wanted}; export that series, too"))
        elif not any(scan.key in chosen for scan in drawn_on):
            skips.append(Skip(seg.path.name, seg.path, f"a SEG object of a series that is not chosen by {OPTION}"))
    return found, skips, failures


def _follow_up_notes(
    items: Sequence[Item], known: Mapping[str, Sequence[Name]], keep_patient_ids: bool, who: Mapping[str, str]
) -> list[str]:
    """Return what nobody can know of new subjects beside earlier ones."""
    earlier = {subject for names in known.values() for subject, _, _ in names}
    new = {item.name[0] for item in items} - earlier
    if keep_patient_ids or who or not (earlier and new):
        return []
    return [
        f"{len(new)} new subject{'s' * (len(new) != 1)} beside {len(earlier)} of earlier runs: a patient of those who "
        "was scanned again is recognized only if the old studies are in the tree, too, or by --mapping FILE of that run"
    ]


def _patient_notes(items: Sequence[Item]) -> list[str]:
    """Return what makes it doubtful who is who; without a word that identifies somebody."""
    people: dict[str, set[tuple[str, str]]] = defaultdict(set)
    nameless = set()
    for item in items:
        people[item.name[0]].add(item.scan.birth)
        nameless |= set() if item.scan.patient_id else {item.name[0]}
    notes = [
        f"{subject}: one PatientID, but {len(births)} names or birth dates; it is taken for one patient"
        for subject, births in sorted(people.items())
        if len(births) > 1
    ]
    if nameless:
        shown = ", ".join(sorted(nameless)[:10])
        notes.append(
            f"no PatientID: {len(nameless)} subject{'s' * (len(nameless) != 1)} ({shown}); told apart by name, "
            "else by study: two studies of one patient may have become two subjects"
        )
    return notes


def _choice_notes(items: Sequence[Item], choices: Sequence[Choice]) -> list[str]:
    sessions = sorted({item.name[:2] for item in items})
    notes = []
    for name, pattern in choices:
        have = {item.name[:2] for item in items if pattern.search(_text(item.scan))}
        lack = ["/".join(session) for session in sessions if session not in have]
        if lack:
            more = f" and {len(lack) - 10} more" if len(lack) > 10 else ""
            called = f"'{name}' ({pattern.pattern!r})" if name else f"{pattern.pattern!r}"
            notes.append(
                f"{OPTION}: {len(lack)} of {len(sessions)} sessions have no series {called}: "
                f"{', '.join(lack[:10])}{more}"
            )
    return notes


def _repeat_notes(items: Sequence[Item], stems: Mapping[str, str]) -> list[str]:
    """Return which sessions have several series of one name that was asked for."""
    counts = Counter((*item.name[:2], stems[item.scan.key]) for item in items if stems[item.scan.key])
    return [
        f"{subject}/{session}: {count} series are '{stem}'; they are numbered by _run- or _part-"
        for (subject, session, stem), count in sorted(counts.items())
        if count > 1
    ]
