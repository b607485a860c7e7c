"""Where the files of a channel or of the labels come from: globs with named wildcards, or a BIDS tree."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from droseg.data.from_folders.findings import Findings, counted, some
from droseg.data.from_folders.patterns import SESSION, Pattern, Scan, Tree


@dataclass(frozen=True)
class Source:
    """The files of one channel, or the labels.

    Attributes:
        name: of the channel; "label" for the labels.
        scans: its files, each with its subject and session.
        choose: says how to choose among several files of one case.
    """

    name: str
    scans: tuple[Scan, ...]
    choose: Callable[[Sequence[Path]], str]


def glob_source(name: str, patterns: Sequence[Pattern], tree: Tree, findings: Findings) -> Source:
    """Return the files that match any of the globs of a channel; what does not fit becomes a finding."""
    scans: dict[Path, Scan] = {}
    for pattern in patterns:
        found, unclear, others = pattern.scans(tree)
        if unclear:
            text = f"{name}: '{pattern.text}' can be read in more than one way, or across folders, for"
            text += f" {counted(len(unclear), 'file')}:"
            findings.error(text, unclear)
        elif not found:
            findings.error(f"{name}: '{pattern.text}' matches no image; {pattern.why_nothing(tree)}.")
        if others:
            kinds = some(sorted({Path(other).suffix or Path(other).name for other in others}))
            findings.note(
                f"{name}: {counted(len(others), 'file')} that match are no images ({kinds}) and are left out."
            )
        findings.note(f"{name}: {counted(len(found), 'image')} by '{pattern.text}'.")
        scans.update({scan.path: scan for scan in found})
    return Source(name, tuple(scans.values()), lambda paths: _narrower(paths, patterns))


def _narrower(paths: Sequence[Path], patterns: Sequence[Pattern]) -> str:
    """Return what to do about several files of one case."""
    if all(path.is_file() and path.suffix.lower() in ("", ".dcm", ".ima") for path in paths):
        return "if they are the slices of one DICOM series, give its folder in place of its files"
    if not any(SESSION in pattern.names for pattern in patterns):
        return "if they are several sessions, write {session} where the session stands; else narrow the glob"
    return "narrow the glob until it matches one of them"
