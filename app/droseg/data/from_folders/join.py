"""Which row of a table belongs to which case, by subject and session; what fits nowhere is listed."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence

from droseg.data.from_folders.findings import Findings, counted, some
from droseg.data.from_folders.ids import nearest, spoiled_by_spreadsheet, without_zeros
from droseg.data.from_folders.matching import FoundCase, Key
from droseg.data.from_folders.patterns import SESSION, SUBJECT, without_prefix
from droseg.data.from_folders.tables import MISSING, Row, SubjectTable


def join_table(
    table: SubjectTable,
    cases: Sequence[FoundCase],
    used: Collection[str],
    findings: Findings,
    *,
    match_numbers: bool = False,
    complete: bool = True,
) -> dict[Key, Row]:
    """Return the row of each case that has one; rows and cases that fit nowhere become findings.

    Args:
        table: whose rows are wanted.
        cases: what they are joined to.
        used: the columns whose values are wanted; rows of one case may differ in others.
        findings: takes what does not fit.
        match_numbers: "1", "01" and "001" are the same, and so is "1.0".
        complete: whether each case should have a row.
    """
    rows: dict[Key, list[Row]] = defaultdict(list)
    for row in table.rows:
        session = without_prefix(row.session, SESSION) if table.by_session else ""
        rows[without_prefix(row.subject, SUBJECT), session].append(row)
    _find_repeated(table, rows, used, findings)
    wanted = {case.key: case.key if table.by_session else (case.key[0], "") for case in cases}
    matched = {key: rows[row_key][0] for key, row_key in wanted.items() if row_key in rows}
    taken = {wanted[key] for key in matched}
    cases_left = [case for case in cases if case.key not in matched]
    rows_left = [key for key in rows if key not in taken]
    by_number = _by_number(cases_left, wanted, rows_left, table, findings if match_numbers else None)
    if by_number:
        items = [f"{rows[row_key][0]}: {_text(row_key)} = {_text(wanted[key])}" for key, row_key in by_number.items()]
        if match_numbers:
            findings.note(f"{table.name}: {counted(len(items), 'row')} matched without regard to leading zeros:", items)
            matched |= {key: rows[row_key][0] for key, row_key in by_number.items()}
        else:
            text = f"{table.name}: {counted(len(items), 'row')} would match but for leading zeros or a '.0', which a"
            text += " spreadsheet changes; if these are the same, add --match-numbers:"
            findings.warning(text, items)
        taken |= set(by_number.values())
    rows_left = [key for key in rows_left if key not in taken]
    cases_left = [case for case in cases_left if case.key not in by_number]
    if cases and table.rows and not matched:
        text = f"{table.path}: no row fits any case; its subjects are {some((_text(key) for key in rows), 3)}, those of"
        text += f" the files {some((case.case_id for case in cases), 3)}. Correct the ids, or name another column by"
        findings.error(f"{text} --subject-column{' or --session-column' * table.by_session}.")
    _find_unmatched(table, {key: rows[key] for key in rows_left}, cases_left, wanted, findings, complete)
    return matched


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
    cases: Sequence[FoundCase],
    wanted: Mapping[Key, Key],
    rows: Sequence[Key],
    table: SubjectTable,
    findings: Findings | None,
) -> dict[Key, Key]:
    """Return case -> row of those that are the same but for leading zeros; ambiguous ones are left out, and said."""

    def squeezed(key: Key) -> Key:
        return without_zeros(key[0]), without_zeros(key[1])

    found: dict[Key, list[Key]] = defaultdict(list)
    for row_key in rows:
        found[squeezed(row_key)].append(row_key)
    of_number: dict[Key, set[Key]] = defaultdict(set)
    for case in cases:
        of_number[squeezed(wanted[case.key])].add(wanted[case.key])
    result, unclear = {}, []
    for case in cases:
        number = squeezed(wanted[case.key])
        if len(found[number]) == 1 and len(of_number[number]) == 1:
            result[case.key] = found[number][0]
        elif found[number]:
            unclear.append(f"{case.case_id}: {', '.join(_text(key) for key in found[number])}")
    if unclear and findings is not None:
        findings.error(f"{table.path}: without leading zeros several subjects are the same:", unclear)
    return result


def _find_unmatched(
    table: SubjectTable,
    rows: Mapping[Key, Sequence[Row]],
    cases: Sequence[FoundCase],
    wanted: Mapping[Key, Key],
    findings: Findings,
    complete: bool,
) -> None:
    """Report rows without files and cases without a row, each with what it may have been meant to be."""
    case_names = {_text(wanted[case.key]): case.case_id for case in cases}
    row_names = {_text(key): same[0] for key, same in rows.items() if key[0].lower() not in MISSING}
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
        for case in cases:
            near = nearest(_text(wanted[case.key]), row_names)
            items.append(case.case_id + (f" (perhaps {row_names[near]}, '{near}'?)" if near else ""))
        text = f"{table.path}: {counted(len(items), 'case')} without a row, 'unknown' in the groups that come from it:"
        findings.warning(text, items)
