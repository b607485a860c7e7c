"""Tables of subjects: CSV, TSV or semicolons, with the quirks of spreadsheets, one row per subject or session."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from droseg.data.csv_text import TextTable, read_text
from droseg.data.from_folders.findings import Findings, counted, some
from droseg.errors import InputError

SUBJECT_COLUMNS: Final = ("participant_id", "subject", "subject_id", "patient_id", "patient", "sub")
SESSION_COLUMNS: Final = ("session_id", "session", "ses", "visit")
NO_COLUMN: Final = "none"
"""Given as the session column: rows are about subjects, though a column is called as if they were not."""
MISSING: Final = frozenset({"", "n/a", "na", "nan", "null", "#n/a", "#nv", "<na>"})
"""What stands for no value, in lower case: BIDS, R, pandas and Excel (also the German one)."""


@dataclass(frozen=True)
class Row:
    """One row of a table.

    Attributes:
        line: of the file, from 1.
        session: empty where the table names none.
        values: column -> text, surrounding blanks removed.
    """

    path: Path
    line: int
    subject: str
    session: str
    values: Mapping[str, str]

    def __str__(self) -> str:
        return f"{self.path.name}, line {self.line}"


@dataclass(frozen=True)
class SubjectTable:
    """A table whose rows are known by subject, or by subject and session.

    Attributes:
        by_session: whether a row is about one session.
        comma_is_decimal: whether a number may be written 0,87, since another sign separates the fields.
    """

    path: Path
    columns: tuple[str, ...]
    rows: tuple[Row, ...]
    by_session: bool
    comma_is_decimal: bool

    @property
    def name(self) -> str:
        """What to call it in a message."""
        return self.path.name


def read_table(
    path: Path,
    findings: Findings,
    *,
    subject_column: str | None = None,
    session_column: str | None = None,
    where: Sequence[tuple[str, str]] = (),
    use_sessions: bool = True,
) -> SubjectTable | None:
    """Return a table of subjects; None if it cannot be used, which is then a finding.

    Args:
        path: of the file.
        findings: takes what is wrong, and how the table was read.
        subject_column: if the table has it; else, and by default, the one of `SUBJECT_COLUMNS` that is there.
        session_column: the same of `SESSION_COLUMNS`, if any; "none": do not look for one.
        where: only rows with this (column, value), if the table has the column; several values of one: any of them.
        use_sessions: whether the cases have sessions; if not, a session column is looked for only if it is named.
    """
    try:
        text = read_text(path, lambda note: findings.note(f"{path}: {note}."), "one row per subject")
    except InputError as error:
        findings.error(str(error))
        return None
    errors = findings.count("error")
    subject = _column(text, subject_column, SUBJECT_COLUMNS, "--subject-column", findings, needed=True)
    session: str | None = None
    if (session_column or use_sessions) and (session_column != NO_COLUMN or NO_COLUMN in text.header):
        usual = SESSION_COLUMNS if use_sessions else ()
        session = _column(text, session_column, usual, "--session-column", findings, needed=False)
    if subject is None or findings.count("error") > errors:
        return None
    rows = []
    for line, fields in text.rows():
        values = {column: _plain(field) for column, field in fields.items()}
        rows.append(Row(path, line, values[subject], _named(values[session]) if session else "", values))
    rows = kept_rows(rows, where, path, text.header, findings)
    _find_blank_ids(rows, subject, session, findings)
    rows = [row for row in rows if row.subject.lower() not in MISSING]
    joined = f"column '{subject}'" + (f" and session column '{session}'" if session else "")
    findings.note(f"{path}: {counted(len(rows), 'row')}, joined by subject {joined}.")
    return SubjectTable(path, tuple(text.header), tuple(rows), session is not None, text.comma_is_decimal)


def find_unused(tables: Sequence[SubjectTable], column: str | None, option: str, findings: Findings) -> None:
    """Report a column that an option names and that no table has."""
    if column and column != NO_COLUMN and tables and not any(column in table.columns for table in tables):
        for table in tables:
            findings.error(unknown_column(column, table.path, table.columns, option))


def closest_column(name: str, columns: Sequence[str]) -> str | None:
    """Return the column that differs only in case, blanks, hyphens and underscores; None if there is none."""
    return next((column for column in columns if _squeezed(column) == _squeezed(name)), None)


def unknown_column(name: str, path: Path, columns: Sequence[str], option: str) -> str:
    """Return what to say about a column that is not there."""
    columns = [column for column in columns if column]
    near = closest_column(name, columns)
    hint = (
        f"it has '{near}' (upper and lower case, blanks and underscores count)"
        if near
        else f"it has {some(columns, 30)}"
    )
    return f"{path}: no column '{name}'; {hint}. Correct {option}."


def _squeezed(name: str) -> str:
    return re.sub(r"[\s_\-]+", "", name.casefold())


def _plain(text: str) -> str:
    """Return a field without what Excel puts around an id to keep its zeros: ="001" or '001."""
    if match := re.fullmatch(r'="(.*)"', text):
        return match[1].strip()
    return text[1:] if re.fullmatch(r"'\d+", text) else text


def _named(session: str) -> str:
    return "" if session.lower() in MISSING else session


def _column(
    text: TextTable, named: str | None, usual: Sequence[str], option: str, findings: Findings, needed: bool
) -> str | None:
    """Return the column that was named, or else the usual one that is there."""
    columns = list(text.header)
    found = [named] if named in columns else [column for column in columns if column.casefold() in usual]
    if named is not None and named not in columns and (closest_column(named, columns) or (needed and not found)):
        findings.error(unknown_column(named, text.path, columns, option))
        return None
    if len(found) > 1 or any(columns.count(column) > 1 for column in found):
        findings.error(f"{text.path}: which column names it, {' or '.join(found)}? Say so by {option}.")
        return None
    if not found and needed:
        usual_names = ", ".join(usual)
        there = some([column for column in columns if column], 30)
        findings.error(f"{text.path}: no column {usual_names}; it has {there}. Name the subjects' one by {option}.")
    return found[0] if found else None


def kept_rows(
    rows: Sequence[Row], where: Sequence[tuple[str, str]], path: Path, columns: Sequence[str], findings: Findings
) -> list[Row]:
    """Return the rows that a person wants, by those conditions whose column the table has."""
    wanted: dict[str, list[str]] = {}
    for column, value in where:
        wanted.setdefault(column, []).append(value)
    kept = list(rows)
    for column, values in wanted.items():
        if column not in columns:
            if closest_column(column, columns):
                findings.error(unknown_column(column, path, columns, "--where"))
            else:
                findings.note(f"{path}: no column '{column}', so --where {column}=... does not choose among its rows.")
            continue
        there = sorted({row.values[column] for row in kept})
        kept = [row for row in kept if row.values[column] in values]
        if not kept:
            findings.error(f"{path}: no row with {column} = {' or '.join(values)}; values there: {some(there, 20)}.")
    return kept


def _find_blank_ids(rows: Sequence[Row], subject: str, session: str | None, findings: Findings) -> None:
    blank = [str(row) for row in rows if row.subject.lower() in MISSING]
    if blank:
        findings.warning(f"{counted(len(blank), 'row')} with no subject in column '{subject}', left out:", blank)
    if session:
        blank = [str(row) for row in rows if not row.session and row.subject.lower() not in MISSING]
        if blank:
            text = (
                f"{counted(len(blank), 'row')} with no session in column '{session}', which fit only cases without one:"
            )
            findings.warning(text, blank)
