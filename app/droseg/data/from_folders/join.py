"""Which row of a table belongs to which case, by subject and session; what fits nowhere is listed."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence

from droseg.data.from_folders.findings import Findings, counted, some
from droseg.data.from_folders.ids import nearest, spoiled_by_spreadsheet, without_zeros
from droseg.data.from_folders.matching import FoundCase, Key
from droseg.data.from_folders.patterns import SESSION, SUBJECT, without_prefix
from droseg.data.from_folders.tables import Row, SubjectTable


def join_table(
    table: SubjectTable,
    cases: Sequence[FoundCase],
    used: Collection[str],
    findings: Findings,
    *,
    left_out: Sequence[FoundCase] = (),
    match_numbers: bool = False,
    complete: bool = True,
) -> dict[Key, Row]:
    """Return the row of each case that has one; rows and cases that fit nowhere become findings.

    Args:
        table: whose rows are wanted.
        cases: what they are joined to.
        used: the columns whose values are wanted; rows of one case may differ in others.
        findings: takes what does not fit.
        left_out: cases that are not wanted; their rows are no news.
        match_numbers: "1", "01" and "001" are the same, and so is "1.0".
        complete: whether each case should have a row.
    """
    as_joined = _without_zeros if match_numbers else _as_it_is
    rows: dict[Key, list[Row]] = defaultdict(list)
    for row in table.rows:
        session = without_prefix(row.session, SESSION) if table.by_session else ""
        rows[as_joined((without_prefix(row.subject, SUBJECT), session))].append(row)
    _find_repeated(table, rows, used, findings)
    wanted = {case.key: as_joined(_row_key(case, table)) for case in cases}
    if table.by_session:
        wanted |= _only_rows(table, wanted, rows, findings)
    if match_numbers:
        _find_confused(table, cases, wanted, findings)
    matched = {key: rows[row_key][0] for key, row_key in wanted.items() if row_key in rows}
    taken = {wanted[key] for key in matched} | {as_joined(_row_key(case, table)) for case in left_out}
    rows_left = {key: same for key, same in rows.items() if key not in taken}
    cases_left = {case: wanted[case.key] for case in cases if case.key not in matched}
    by_number = {} if match_numbers else _by_number(cases_left, rows_left)
    if by_number:
        items = [f"{same[0]}: {same[0].subject} = {_text(key)}" for (_, key), same in by_number.items()]
        text = f"{table.path}: {counted(len(items), 'row')} would fit but for leading zeros or a '.0', which a"
        findings.warning(f"{text} spreadsheet changes; if these are the same, add --match-numbers:", items)
        rows_left = {key: same for key, same in rows_left.items() if key not in {row for row, _ in by_number}}
        cases_left = {c: key for c, key in cases_left.items() if key not in {case for _, case in by_number}}
    if cases and table.rows and not matched and complete:
        text = f"{table.path}: no row fits any case; its subjects are {some((_text(key) for key in rows), 3)}, those of"
        text += f" the files {some((case.case_id for case in cases), 3)}. Correct the ids, or name another column by"
        findings.error(f"{text} --subject-column{' or --session-column (or none)' * table.by_session}.")
    _find_unmatched(table, rows_left, cases_left, findings, complete)
    return matched


def _as_it_is(key: Key) -> Key:
    return key


def _without_zeros(key: Key) -> Key:
    return without_zeros(key[0]), without_zeros(key[1])


def _row_key(case: FoundCase, table: SubjectTable) -> Key:
    """Return the subject and session of the row that a case should have."""
    return case.key if table.by_session else (case.key[0], "")


def _only_rows(
    table: SubjectTable, wanted: Mapping[Key, Key], rows: Mapping[Key, Sequence[Row]], findings: Findings
) -> dict[Key, Key]:
    """Return the row of each case without a session whose subject has only one."""
    of_subject: dict[str, list[Key]] = defaultdict(list)
    for key in rows:
        of_subject[key[0]].append(key)
    found = {
        case: of_subject[key[0]][0]
        for case, key in wanted.items()
        if not key[1] and key not in rows and len(of_subject[key[0]]) == 1
    }
    if found:
        text = f"{table.path}: {counted(len(found), 'case')} without a session joined to the only row of the subject."
        findings.note(text)
    return found


def _find_confused(
    table: SubjectTable, cases: Sequence[FoundCase], wanted: Mapping[Key, Key], findings: Findings
) -> None:
    """Report subjects or sessions of the files that are different, but not without their zeros."""
    same: dict[Key, dict[Key, str]] = defaultdict(dict)
    for case in cases:
        same[wanted[case.key]].setdefault(_row_key(case, table), case.case_id)
    items = [" and ".join(names.values()) for names in same.values() if len(names) > 1]
    if items:
        findings.error("--match-numbers makes different subjects or sessions of the files the same:", items)


def _text(key: Key) -> str:
    return ", session ".join(part for part in key if part)


def _find_repeated(
    table: SubjectTable, rows: Mapping[Key, Sequence[Row]], used: Collection[str], findings: Findings
) -> None:
    """Report rows of the same subject and session that disagree in a column that is wanted."""
    columns = [column for column in table.columns if column in used]
    items = []
    for key, same in rows.items():
        differing = [column for column in columns if len({row.values[column] for row in same}) > 1]
        if differing:
            column = differing[0]
            lines = ", ".join(f"line {row.line} '{row.values[column]}'" for row in same)
            items.append(f"{_text(key)}: {column} is {lines}")
    if items:
        text = f"{table.path}: {counted(len(items), 'subject')} with several rows that do not agree"
        ways = "correct the table, or choose rows by --where COLUMN=VALUE"
        if not table.by_session:
            ways += "; if they are different sessions, name the column by --session-column"
        findings.error(f"{text} ({ways}):", items)


def _by_number(
    cases: Mapping[FoundCase, Key], rows: Mapping[Key, Sequence[Row]]
) -> dict[tuple[Key, Key], Sequence[Row]]:
    """Return (key of a row, key of a case) -> rows, of those that are the same but for leading zeros."""
    of_number: dict[Key, list[Key]] = defaultdict(list)
    for key in rows:
        of_number[_without_zeros(key)].append(key)
    return {(row, key): rows[row] for key in cases.values() for row in of_number[_without_zeros(key)]}


def _find_unmatched(
    table: SubjectTable,
    rows: Mapping[Key, Sequence[Row]],
    cases: Mapping[FoundCase, Key],
    findings: Findings,
    complete: bool,
) -> None:
    """Report rows without files and cases without a row, each with what it may have been meant to be."""
    case_names = {_text(key): case.case_id for case, key in cases.items()}
    row_names = {_text((same[0].subject, same[0].session * table.by_session)): same[0] for same in rows.values()}
    items = []
    for name, row in row_names.items():
        remark = spoiled_by_spreadsheet(name)
        near = nearest(name, case_names)
        if near:
            remark = f"perhaps meant to be {case_names[near]}, which has no row?"
        items.append(f"{row}: {name}" + (f" ({remark})" if remark else ""))
    if items:
        findings.warning(f"{table.path}: {counted(len(items), 'row')} without files, not used:", items)
    if cases and complete:
        items = []
        for case, key in cases.items():
            near = nearest(_text(key), row_names)
            items.append(case.case_id + (f" (perhaps {row_names[near]}, '{near}'?)" if near else ""))
        text = f"{table.path}: {counted(len(items), 'case')} without a row, 'unknown' in the groups that come from it:"
        findings.warning(text, items)
