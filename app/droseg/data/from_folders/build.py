"""From folders and tables to a datalist: finds the files, joins the tables, makes the groups, reads the volumes."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from droseg.data.check import NO_LABEL, Problem, check_datalist, missing_channels
from droseg.data.datalist import Case, Datalist
from droseg.data.from_folders import bids
from droseg.data.from_folders.axes import Axis, JoinedTable, Values, column_values, groups_on, header_values
from droseg.data.from_folders.bids_tables import BIDS_SESSIONS, bids_tables
from droseg.data.from_folders.channels import ChannelOption
from droseg.data.from_folders.findings import Findings, counted, some
from droseg.data.from_folders.headers import header_fields
from droseg.data.from_folders.join import join_table
from droseg.data.from_folders.matching import FoundCase, Key, Leniency, match_cases
from droseg.data.from_folders.patterns import Pattern, Tree
from droseg.data.from_folders.sources import Source, glob_source
from droseg.data.from_folders.structures import (
    LabelValues,
    Structures,
    ask_for_structures,
    check_occurrence,
    read_label_values,
)
from droseg.data.from_folders.tables import SubjectTable, find_unused, read_table
from droseg.data.scanner import Tags
from droseg.data.volumes import VolumeError
from droseg.errors import DatalistError


@dataclass(frozen=True)
class Tables:
    """The tables that a person gives, and how their rows are known."""

    paths: tuple[Path, ...] = ()
    subject_column: str | None = None
    session_column: str | None = None
    where: tuple[tuple[str, str], ...] = ()
    match_numbers: bool = False


@dataclass(frozen=True)
class Request:
    """What a person asks for.

    Attributes:
        root: folder that globs start from, or a BIDS tree.
        labels: globs of the labels; of a BIDS tree also a folder, or the entities of the file names.
        unlabelled: images to be segmented, also where a BIDS tree has labels.
        structures: empty if nobody named them.
        background: label values that are no structure.
        other_values: whether all label values that nobody named are background, too.
        section: of the datalist; default: training, or testing without labels.
        volumes: whether to read the voxels, as `droseg data check` does.
    """

    root: Path
    channels: tuple[ChannelOption, ...]
    labels: tuple[str, ...] = ()
    bids: bool = False
    unlabelled: bool = False
    tables: Tables = field(default_factory=Tables)
    axes: tuple[Axis, ...] = ()
    structures: Structures = field(default_factory=dict)
    background: tuple[int, ...] = (0,)
    other_values: bool = False
    allow: Leniency = field(default_factory=Leniency)
    section: str | None = None
    volumes: bool = True


def build_datalist(request: Request, out: Path, findings: Findings, progress: bool = False) -> Datalist | None:
    """Return the datalist that a person asks for; None if there is an error among the findings.

    Args:
        request: what is wanted.
        out: where it is going to be written.
        findings: takes all that is wrong or worth knowing; every check is made whatever the others found.
        progress: show progress bars on stderr.

    Raises:
        InputError: if a glob cannot be understood.
        DatalistError: if there is no such folder.
    """
    root = Path(os.path.abspath(request.root.expanduser()))
    if not root.is_dir():
        found = "not a folder" if root.exists() else "no such folder"
        raise DatalistError(f"{root}: {found}; give the one that holds the images.")
    sources, labels = _sources(request, root, findings)
    cases, left_out = match_cases(sources, labels, request.allow, findings)
    groups = _groups(request, root, cases, left_out, findings)
    names = tuple(name for channel in request.channels for name in channel.names)
    section = request.section or ("testing" if labels is None else "training")
    datalist = Datalist(
        Path(os.path.abspath(out)),
        names,
        request.structures,
        {section: tuple(_entry(case, groups[case.key]) for case in cases)},
        request.background,
    )
    if labels is not None:
        datalist = _named_structures(request, datalist, root, findings, progress)
    _check(datalist, findings, request.volumes, progress)
    if not cases:
        findings.error(f"{root}: no case.")
    return None if findings.count("error") else replace(datalist, structures=request.structures)


def _sources(request: Request, root: Path, findings: Findings) -> tuple[list[Source], Source | None]:
    """Return the files of each channel, and of the labels."""
    tree = Tree()
    for channel in request.channels:
        if channel.derived and not request.bids:
            findings.note(f"--image '{channel.globs[0]}' is called {channel.names[0]}; NAME=GLOB gives another name.")
    if request.bids:
        wanted = [(", ".join(c.names), bids.query(c.globs[0])) for c in request.channels]
        sources = [bids.image_source(name, query, root, tree, findings) for name, query in wanted]
    else:
        patterns = [(", ".join(c.names), [Pattern(glob, root) for glob in c.globs]) for c in request.channels]
        sources = [glob_source(name, globs, tree, findings) for name, globs in patterns]
    if request.unlabelled or not (request.labels or request.bids):
        findings.note("no labels asked for: a list of images to be segmented.")
        return sources, None
    globs = [label for label in request.labels if "{" in label]
    if globs or not request.bids:
        return sources, glob_source("label", [Pattern(label, root) for label in request.labels], tree, findings)
    return sources, bids.label_source(next(iter(request.labels), None), root, tree, findings)


def _groups(
    request: Request, root: Path, cases: Sequence[FoundCase], left_out: Sequence[FoundCase], findings: Findings
) -> dict[Key, dict[str, str]]:
    """Return the groups of each case on all axes."""
    used = {axis.column for axis in request.axes if axis.column}
    tables = _joined(request, root, cases, left_out, used, findings)
    unread = not set(request.tables.paths) <= {joined.table.path for joined in tables}
    headers = _Headers(request, root, findings)
    groups: dict[Key, dict[str, str]] = {case.key: {} for case in cases}
    of_first: list[Axis] = []
    for axis in request.axes:
        values: Values | None
        if axis.header:
            values = header_values(axis, cases, headers.fields, findings)
            of_first += [axis] * (not axis.channel)
        else:
            values = column_values(axis, cases, tables, findings, unread)
        if values is not None:
            for key, group in groups_on(axis, cases, values, findings).items():
                groups[key][axis.name] = group
    if of_first and len(request.channels) > 1:
        first, last = (request.channels[index].names[0] for index in (0, -1))
        text = f"axis {some(axis.name for axis in of_first)}: from the first channel"
        other = f"{of_first[0].name}={last}:{of_first[0].header}"
        findings.note(f"{text}, {first} (--group-by-header {other} takes it from {last}).")
    return groups


def _joined(
    request: Request,
    root: Path,
    cases: Sequence[FoundCase],
    left_out: Sequence[FoundCase],
    used: set[str],
    findings: Findings,
) -> list[JoinedTable]:
    """Return the tables that were given, and those of a BIDS tree, joined to the cases."""
    asked = request.tables
    found = _tables(request, root, any(case.session for case in cases), findings)
    joined = []
    for table in found:
        # Of a BIDS tree only the subjects that were scanned several times need a table of sessions.
        complete = table.path.name != BIDS_SESSIONS
        rows = join_table(
            table,
            cases,
            used,
            findings,
            left_out=left_out,
            match_numbers=asked.match_numbers,
            complete=complete,
        )
        joined.append(JoinedTable(table, rows, complete))
    return joined


def _tables(request: Request, root: Path, use_sessions: bool, findings: Findings) -> list[SubjectTable]:
    """Return the tables that were given, and those of a BIDS tree; a column that none of them has is an error."""
    asked = request.tables
    found: list[SubjectTable] = []
    for path in asked.paths:
        table = read_table(
            path,
            findings,
            subject_column=asked.subject_column,
            session_column=asked.session_column,
            where=asked.where,
            use_sessions=use_sessions,
        )
        found += [table] if table else []
    all_read = len(found) == len(asked.paths)  # one that cannot be read may have the columns
    if all_read:
        find_unused(found, asked.subject_column, "--subject-column", findings)
        find_unused(found, asked.session_column, "--session-column", findings)
    if request.bids:
        found += bids_tables(root, findings, given=asked.paths, where=asked.where)
    if all_read:
        for column in dict.fromkeys(column for column, _ in asked.where):
            find_unused(found, column, "--where", findings)
    if all_read and not found and (asked.where or asked.match_numbers):
        findings.error(f"{root}: no table for --where or --match-numbers; give --table FILE, or leave them out.")
    return found


class _Headers:
    """The header fields of each image, read once."""

    def __init__(self, request: Request, root: Path, findings: Findings) -> None:
        self._names = [name for channel in request.channels for name in channel.names]
        self._root = root if request.bids else None
        self._findings = findings
        self._known: dict[Path, Tags] = {}

    def fields(self, case: FoundCase, channel: str) -> Tags:
        """Return the header fields of a case's channel, or of the first channel that it has."""
        images = case.images
        if channel:
            images = (images[self._names.index(channel)],) if len(images) > 1 else images
        image = next((image for image in images if image is not None), None)
        if image is None:
            return {}
        if image not in self._known:
            sidecars = bids.sidecars(image, self._root) if self._root else None
            try:
                self._known[image] = header_fields(image, sidecars)
            except VolumeError as error:
                self._findings.error(f"{case.case_id}: {error}")
                self._known[image] = {}
        return self._known[image]


def _entry(case: FoundCase, groups: Mapping[str, str]) -> Case:
    return Case(case.case_id, case.subject, case.images, case.label, dict(groups))


def _named_structures(request: Request, datalist: Datalist, root: Path, findings: Findings, progress: bool) -> Datalist:
    """Return the datalist with the structures by which its labels can be checked; asks for them if there are none."""
    labels = [case.label for cases in datalist.sections.values() for case in cases if case.label is not None]
    if request.structures and not request.volumes:
        return datalist
    if not labels:  # which has been said
        return replace(datalist, structures=request.structures or {"any": (1,)})
    found = read_label_values(labels, progress)
    occurring = {value for values in found.values() for value in values}
    if not request.structures:
        ask_for_structures(found, findings, sorted(root.glob("**/*dseg.tsv")) if request.bids else [])
        return replace(datalist, structures={"any": tuple(sorted(occurring)) or (1,)})
    check_occurrence(request.structures, found, findings)
    named = {*request.background, *(value for values in request.structures.values() for value in values)}
    _tell_other_values(request, named, found, findings)
    others = tuple(sorted(occurring - named))
    if request.other_values:
        return replace(datalist, background=tuple(sorted({*request.background, *others})))
    return replace(datalist, structures={**request.structures, **({"others": others} if others else {})})


def _tell_other_values(request: Request, named: Collection[int], found: LabelValues, findings: Findings) -> None:
    """Report the values that nobody named, with their files and voxels."""
    items = []
    for path, values in found.items():
        others = [f"{value} ({counted(voxels, 'voxel')})" for value, voxels in values.items() if value not in named]
        items += [f"{path}: {', '.join(others)}"] if others else []
    if not items:
        return
    text = f"{counted(len(items), 'label')} with values that no structure names"
    if request.other_values:
        findings.warning(f"{text}; they count as background:", items)
    else:
        ways = "name them by --structure (background=VALUE if they are none; --allow-other-values: all), or correct"
        ways += " the labels"
        findings.error(f"{text}; {ways}:", items)


def _check(datalist: Datalist, findings: Findings, volumes: bool, progress: bool) -> None:
    """Report every problem of the volumes and groups, as `droseg data check` finds them.

    Labels and channels that cases lack have been reported.
    """
    known = list(missing_channels(datalist))
    for section, cases in datalist.sections.items():
        known += [Problem("error", section, case.case_id, NO_LABEL) for case in cases if case.label is None]
    problems = [p for p in check_datalist(datalist, None if volumes else [], progress) if p not in known]
    for severity in ("error", "warning"):
        items = [": ".join(filter(None, (p.case_id, p.message))) for p in problems if p.severity == severity]
        if items:
            findings.add(severity, f"{counted(len(items), 'problem')} of volumes and groups:", items)
