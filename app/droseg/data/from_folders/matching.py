"""Which files make up a case: channels and label of the same subject and session."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from droseg.data.from_folders.findings import Findings, counted, some
from droseg.data.from_folders.ids import nearest
from droseg.data.from_folders.patterns import SESSION, SUBJECT, Scan
from droseg.data.from_folders.sources import Source

Key = tuple[str, str]
"""Subject and session without "sub-" and "ses-"."""


@dataclass(frozen=True)
class FoundCase:
    """The files of one case.

    Attributes:
        subject: as the first channel's path has it, with "sub-" if that is there; `session` the same with "ses-".
        images: one per channel; None where the case lacks it.
        fields: the values of the wildcards by name, subject and session included.
    """

    key: Key
    subject: str
    session: str
    images: tuple[Path | None, ...]
    label: Path | None
    fields: dict[str, str] = field(default_factory=dict, compare=False)

    @property
    def case_id(self) -> str:
        """The subject, and the session if there is one: sub-01_ses-1."""
        return "_".join(part for part in (self.subject, self.session) if part)


@dataclass(frozen=True)
class Leniency:
    """What a person allows.

    Attributes:
        missing_channels: a case may lack channels, but not all.
        skip_incomplete: a case that lacks a channel or its label is left out.
        exclude: case_ids that are left out.
    """

    missing_channels: bool = False
    skip_incomplete: bool = False
    exclude: Collection[str] = ()


def match_cases(
    channels: Sequence[Source], labels: Source | None, allow: Leniency, findings: Findings
) -> tuple[list[FoundCase], list[FoundCase]]:
    """Return the cases of all channels, sorted, and those left out; whatever does not fit together becomes a finding.

    Args:
        channels: the files of each channel, in their order.
        labels: the files of the labels; None for images that are to be segmented.
        allow: what may be missing.
        findings: takes what is wrong.
    """
    sources = [*channels, *([labels] if labels else [])]
    _find_shared_files(sources, findings)
    sessions = _sessions(channels)
    by_source = [_by_key(source, sessions, findings) for source in sources]
    keys = sorted({key for scans in by_source[: len(channels)] for key in scans})
    found = [_case(key, by_source[: len(channels)], by_source[-1] if labels else {}, findings) for key in keys]
    cases = _without_excluded(found, allow.exclude, findings)
    _find_repeated_ids(cases, findings)
    cases = _complete(cases, channels, by_source, labels is not None, allow, findings)
    if labels:
        left = [scan.path for key, scan in by_source[-1].items() if key not in set(keys)]
        if left:
            names = [
                f"{path}{_perhaps(key, keys)}" for key, path in zip(_keys_of(by_source[-1], left), left, strict=True)
            ]
            findings.warning(f"{counted(len(left), 'label')} without any image, left out:", names)
    return cases, [case for case in found if case not in cases]


def _keys_of(scans: Mapping[Key, Scan], paths: Sequence[Path]) -> list[Key]:
    return [key for key, scan in scans.items() if scan.path in paths]


def _perhaps(key: Key, others: Collection[Key]) -> str:
    """Return a remark on the key that this one may have been meant to be."""
    names = {"_".join(part for part in other if part): other for other in others}
    near = nearest("_".join(part for part in key if part), names)
    return f" (perhaps meant to be {near}?)" if near else ""


def _find_shared_files(sources: Sequence[Source], findings: Findings) -> None:
    used: dict[Path, list[str]] = defaultdict(list)
    for source in sources:
        for scan in source.scans:
            used[scan.path].append(source.name)
    shared = [f"{path}: {' and '.join(names)}" for path, names in used.items() if len(names) > 1]
    if shared:
        text = (
            f"{counted(len(shared), 'file')} matched for more than one channel, or for the label too; narrow the globs:"
        )
        findings.error(text, shared)


def _sessions(channels: Sequence[Source]) -> dict[str, set[str]]:
    """Return subject -> its sessions, of the channels that name any."""
    found: dict[str, set[str]] = defaultdict(set)
    for source in channels:
        for scan in source.scans:
            if scan.session:
                found[scan.key[0]].add(scan.key[1])
    return found


def _by_key(source: Source, sessions: Mapping[str, set[str]], findings: Findings) -> dict[Key, Scan]:
    """Return the one file of each case.

    A file that names no session belongs to the only one that its subject has.
    """
    found: dict[Key, list[Scan]] = defaultdict(list)
    of_only, several = [], []
    for scan in source.scans:
        subject, session = scan.key
        known = sorted(sessions.get(subject, ()))
        if not session and len(known) == 1:
            of_only.append(scan.path)
            session = known[0]
        elif not session and known:
            several.append(f"{scan.path}: {scan.subject} has the sessions {', '.join(known)}")
            continue
        found[subject, session].append(scan)
    if of_only:
        text = (
            f"{source.name}: {counted(len(of_only), 'file')} without a session taken for the only one of the subject."
        )
        findings.note(text)
    if several:
        text = f"{source.name}: {counted(len(several), 'file')} without a session fit more than one case"
        findings.error(f"{text}; write {{session}} in the glob:", several)
    repeated = {key: scans for key, scans in found.items() if len(scans) > 1}
    if repeated:
        items = [f"{_shown(scans[0])}: {', '.join(str(s.path) for s in scans)}" for scans in repeated.values()]
        hint = source.choose([scan.path for scan in next(iter(repeated.values()))])
        text = f"{source.name}: {counted(len(repeated), 'case')} with more than one file; {hint}:"
        findings.error(text, items)
    return {key: scans[0] for key, scans in found.items()}


def _shown(scan: Scan) -> str:
    return "_".join(part for part in (scan.subject, scan.session) if part)


def _case(
    key: Key, channels: Sequence[Mapping[Key, Scan]], labels: Mapping[Key, Scan], findings: Findings
) -> FoundCase:
    """Return the case of one key; wildcards that differ between its files become a finding."""
    scans = [channel.get(key) for channel in channels]
    label = labels.get(key)
    present = [scan for scan in [*scans, label] if scan is not None]
    first = next(scan for scan in scans if scan is not None)
    # A first channel whose glob names no session has got the only one of the subject.
    session = next((scan.session for scan in present if scan.session), "")
    fields: dict[str, str] = {}
    for scan in present:
        for name, value in scan.fields.items():
            if fields.setdefault(name, value) != value:
                text = f"the files of a case differ in {{{name}}}; move them, or write * in place of {{{name}}}:"
                findings.error(text, [f"{_shown(first)}: {fields[name]} and {value} ({scan.path})"])
    fields |= {SUBJECT: first.subject} | ({SESSION: session} if session else {})
    images = tuple(None if scan is None else scan.path for scan in scans)
    return FoundCase(key, first.subject, session, images, label.path if label else None, fields)


def _without_excluded(cases: Sequence[FoundCase], exclude: Collection[str], findings: Findings) -> list[FoundCase]:
    unknown = [name for name in exclude if name not in {case.case_id for case in cases}]
    if unknown:
        text = f"--exclude: no case is called {some(unknown)}; they are called {some([c.case_id for c in cases], 3)}."
        findings.error(text)
    left_out = [case.case_id for case in cases if case.case_id in exclude]
    if left_out:
        findings.note(f"left out as asked: {some(left_out, 20)}.")
    return [case for case in cases if case.case_id not in exclude]


def _find_repeated_ids(cases: Sequence[FoundCase], findings: Findings) -> None:
    by_id: dict[str, list[FoundCase]] = defaultdict(list)
    for case in cases:
        by_id[case.case_id].append(case)
    items = [
        f"{name}: {' and '.join(str(next(p for p in case.images if p)) for case in same)}"
        for name, same in by_id.items()
        if len(same) > 1
    ]
    if items:
        findings.error("different subjects or sessions give the same case name; rename the files:", items)


def _complete(
    cases: Sequence[FoundCase],
    channels: Sequence[Source],
    by_source: Sequence[Mapping[Key, Scan]],
    needs_label: bool,
    allow: Leniency,
    findings: Findings,
) -> list[FoundCase]:
    """Return the cases that may stay; those that lack a channel or a label become a finding."""
    lacking: dict[str, list[str]] = {}
    whole_keys = {case.key for case in cases if _is_whole(case, needs_label)}
    for case in cases:
        names = [source.name for source, image in zip(channels, case.images, strict=True) if image is None]
        if needs_label and case.label is None:
            names.append("label")
        for name in names:
            index = [*(source.name for source in channels), "label"].index(name)
            # One that has what this case lacks, and lacks what this one has, may be the same under another name.
            others = [key for key in by_source[index] if key not in whole_keys]
            lacking.setdefault(case.case_id, []).append(name + _perhaps(case.key, others))
    if not lacking:
        return list(cases)
    items = {case_id: f"{case_id}: no {', no '.join(names)}" for case_id, names in lacking.items()}
    if allow.skip_incomplete:
        text = f"{counted(len(items), 'case')} without a label or with a missing channel, left out:"
        findings.warning(text, items.values())
        return [case for case in cases if case.case_id not in lacking]
    unlabelled = {case.case_id for case in cases if needs_label and case.label is None}
    of_channels = {case.case_id for case in cases if None in case.images}
    if of_channels and allow.missing_channels:
        text = f"{counted(len(of_channels), 'case')} with a missing channel, written as null:"
        findings.warning(text, [item for case_id, item in items.items() if case_id in of_channels])
        of_channels = set()
    refused = [item for case_id, item in items.items() if case_id in of_channels | unlabelled]
    if refused:
        ways = "--exclude CASE or --skip-incomplete leaves them out"
        ways += "; --allow-missing-channels keeps those that lack a channel" * bool(of_channels and len(channels) > 1)
        findings.error(f"{counted(len(refused), 'case')} without a label or with a missing channel ({ways}):", refused)
    return list(cases)


def _is_whole(case: FoundCase, needs_label: bool) -> bool:
    return None not in case.images and not (needs_label and case.label is None)
