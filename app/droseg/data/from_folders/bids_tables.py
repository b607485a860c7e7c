"""The tables of a BIDS tree: `participants.tsv`, and `sub-*/sub-*_sessions.tsv` taken together."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

from droseg.data.csv_text import read_text
from droseg.data.from_folders.findings import Findings, counted
from droseg.data.from_folders.tables import Row, SubjectTable, kept_rows, read_table, unknown_column
from droseg.errors import InputError

PARTICIPANTS: Final = "participants.tsv"
BIDS_SESSIONS: Final = "sub-*_sessions.tsv"
"""Stands for the name of all sessions tables together."""


def bids_tables(
    root: Path, findings: Findings, *, given: Sequence[Path] = (), where: Sequence[tuple[str, str]] = ()
) -> list[SubjectTable]:
    """Return the tables of a BIDS tree that are there.

    Args:
        root: of the tree.
        findings: takes what is wrong, and how the tables were read.
        given: tables that a person gives, which stand in for `participants.tsv`.
        where: only rows with this (column, value), of a table that has the column.
    """
    found = []
    participants = root / PARTICIPANTS
    if given:
        if participants.is_file() and not any(path.exists() and path.samefile(participants) for path in given):
            findings.note(f"{participants}: not read, since --table is given; add it as another --table to join it.")
    elif participants.is_file():
        table = read_table(participants, findings, subject_column="participant_id", where=where, use_sessions=False)
        found += [table] if table else []
    else:
        findings.note(f"{root}: no {PARTICIPANTS}.")
    sessions = _sessions(root, where, findings)
    return found + ([sessions] if sessions else [])


def _sessions(root: Path, where: Sequence[tuple[str, str]], findings: Findings) -> SubjectTable | None:
    """Return the rows of all sessions tables as one; None if there is none."""
    rows: list[Row] = []
    columns: dict[str, None] = {}
    paths = sorted(root.glob("sub-*/sub-*_sessions.tsv"))
    for path in paths:
        try:
            text = read_text(path, lambda note, path=path: findings.note(f"{path}: {note}."), "one row per session")  # type: ignore[misc]
        except InputError as error:
            findings.error(str(error))
            continue
        if "session_id" not in text.header:
            findings.error(unknown_column("session_id", path, text.header, "the table"))
            continue
        columns |= dict.fromkeys(text.header)
        for line, values in text.rows():
            rows.append(Row(path, line, path.parent.name, values["session_id"], values))
    if not rows:
        return None
    findings.note(f"{root}/sub-*/sub-*_sessions.tsv: {counted(len(rows), 'row')}, joined by subject and session_id.")
    filled = [Row(r.path, r.line, r.subject, r.session, {**dict.fromkeys(columns, ""), **r.values}) for r in rows]
    path = root / BIDS_SESSIONS
    kept = kept_rows(filled, where, path, tuple(columns), findings)
    return SubjectTable(path, tuple(columns), tuple(kept), True, comma_is_decimal=True)
