"""The groups of each case: from the columns of tables, from wildcards, and from the headers of the scans."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from droseg.data.from_folders.bins import Bins, all_numbers, as_number
from droseg.data.from_folders.findings import Findings, counted, some
from droseg.data.from_folders.headers import as_group
from droseg.data.from_folders.matching import FoundCase, Key
from droseg.data.from_folders.tables import MISSING, Row, SubjectTable, closest_column

UNKNOWN: Final = "unknown"
"""The group of a case of which nobody knows the value."""

_MANY_GROUPS: Final = 12
"""More groups than this of numbers were probably meant to be binned."""


@dataclass(frozen=True)
class Axis:
    """One group axis and where it comes from: a column (or wildcard), or a header field.

    Attributes:
        channel: whose header is read; empty for the first channel that the case has.
        bins: None for values as they stand.
        recode: value -> the group that it stands for.
    """

    name: str
    column: str = ""
    header: str = ""
    channel: str = ""
    bins: Bins | None = None
    recode: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class JoinedTable:
    """A table, and the row of each case that has one.

    Attributes:
        complete: whether each case should have one; if so, those without have been reported.
    """

    table: SubjectTable
    rows: Mapping[Key, Row]
    complete: bool = True


@dataclass
class Values:
    """The value of each case on an axis, as text, and where each stands.

    Attributes:
        of_case: without the cases of which nobody knows the value.
        places: of each value: "participants.tsv, line 3", or the case.
        missing: the cases whose value is blank or n/a, with the place of that.
        without_row: the cases that have no row at all.
    """

    of_case: dict[Key, str] = field(default_factory=dict)
    places: dict[Key, str] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)
    without_row: list[str] = field(default_factory=list)
    comma_is_decimal: bool = False


def column_values(
    axis: Axis, cases: Sequence[FoundCase], tables: Sequence[JoinedTable], findings: Findings, unread: bool = False
) -> Values | None:
    """Return the values of a column; None, and a finding, if it is not there or in more than one place.

    Where a table is `unread`, which has been said, a column that is nowhere may be in that one.

    Of BIDS' own tables the one by session precedes `participants.tsv`; so does the first of two `tables` of which one
    is by session and the other by subject.
    """
    having = [joined for joined in tables if axis.column in joined.table.columns]
    wildcard = any(axis.column in case.fields for case in cases)
    places = [joined.table.name for joined in having] + ["the globs"] * wildcard
    if not places and unread:
        return None
    if not places:
        findings.error(_no_column(axis, cases, tables))
        return None
    repeated = [joined for joined in having if joined.table.columns.count(axis.column) > 1]
    if repeated:
        findings.error(f"{repeated[0].table.path}: several columns '{axis.column}'; rename them.")
        return None
    having.sort(key=lambda joined: not joined.table.by_session)
    kinds = [joined.table.by_session for joined in having]
    if (wildcard and having) or len(set(kinds)) < len(kinds):
        findings.error(f"axis {axis.name}: '{axis.column}' is in {' and in '.join(places)}; rename one of them.")
        return None
    if len(having) > 1:
        text = f"axis {axis.name}: '{axis.column}' from {having[0].table.name} where it has a value,"
        findings.note(f"{text} else from {having[1].table.name}.")
    values = Values(comma_is_decimal=all(joined.table.comma_is_decimal for joined in having) and bool(having))
    for case in cases:
        if wildcard:
            found = [(case.fields.get(axis.column, ""), case.case_id)]
        else:
            rows = [joined.rows[case.key] for joined in having if case.key in joined.rows]
            found = [(row.values[axis.column], str(row)) for row in rows]
        text, place = next(((t, p) for t, p in found if t.lower() not in MISSING), ("", ""))
        if text:
            values.of_case[case.key], values.places[case.key] = text, place
        elif found:
            values.missing.append(f"{case.case_id}: {found[-1][1]}")
        else:
            values.without_row.append(case.case_id)
    if values.without_row and not any(joined.complete for joined in having):
        text = f"axis {axis.name}: {counted(len(values.without_row), 'case')} without a row in {places[0]}, 'unknown':"
        findings.warning(text, values.without_row)
    return values


def _no_column(axis: Axis, cases: Sequence[FoundCase], tables: Sequence[JoinedTable]) -> str:
    """Return what to say about a column that is nowhere."""
    for joined in tables:
        near = closest_column(axis.column, joined.table.columns)
        if near:
            text = f"{joined.table.path}: no column '{axis.column}', but '{near}' (upper and lower case count)"
            return f"{text}; give --group-by '{axis.name}={near}'."
    if tables:
        columns = dict.fromkeys(column for joined in tables for column in joined.table.columns if column)
        names = " and ".join(joined.table.name for joined in tables)
        return f"axis {axis.name}: no column '{axis.column}' in {names}; the columns are {some(columns, 30)}."
    wildcards = sorted({name for case in cases for name in case.fields})
    named = f"no table is given, and the wildcards are {some(wildcards)}" if wildcards else "no table is given"
    return f"axis {axis.name}: where is '{axis.column}'? {named}; name the table by --table FILE."


def header_values(
    axis: Axis,
    cases: Sequence[FoundCase],
    fields_of: Callable[[FoundCase, str], Mapping[str, float | str]],
    findings: Findings,
) -> Values | None:
    """Return what the headers of the scans say; None, and a finding, if none says anything.

    Args:
        axis: which field, of which channel.
        cases: whose scans.
        fields_of: returns the header fields of a case's channel.
        findings: takes what could not be read.
    """
    values = Values()
    there: Counter[str] = Counter()
    rounded: dict[str, None] = {}
    for case in cases:
        fields = fields_of(case, axis.channel)
        there.update(fields)
        value = fields.get(axis.header)
        if value is None or (isinstance(value, str) and value.strip().lower() in MISSING):
            values.missing.append(case.case_id)
            continue
        group = as_group(axis.header, value)
        if not isinstance(value, str) and axis.bins is not None:
            group = f"{value:.9g}"
        elif not isinstance(value, str) and float(group) != value:
            rounded[f"{value:g} to {group}"] = None
        values.of_case[case.key], values.places[case.key] = group, case.case_id
    if cases and not values.of_case:
        text = f"axis {axis.name}: no image has '{axis.header}' in its header or sidecar"
        findings.error(f"{text}; fields that are there: {some(there, 30) or 'none'}.")
        return None
    if rounded:
        findings.note(f"axis {axis.name}: rounded {some(rounded)}; --bin {axis.name}=EDGES makes other groups.")
    return values


def groups_on(axis: Axis, cases: Sequence[FoundCase], values: Values, findings: Findings) -> dict[Key, str]:
    """Return the group of each case on an axis, 'unknown' where there is no value."""
    if values.missing:
        text = f"axis {axis.name}: {counted(len(values.missing), 'case')} with a blank or n/a, 'unknown' as a group:"
        findings.warning(text, values.missing)
    if axis.bins is None:
        groups = {key: axis.recode.get(text, text) for key, text in values.of_case.items()}
        unused = [value for value in axis.recode if value not in values.of_case.values()]
        if unused:
            text = f"axis {axis.name}: no case has {some(unused)}, which --recode names"
            findings.warning(f"{text}; the values are {some(dict.fromkeys(values.of_case.values()), 20)}.")
        _find_doubtful_groups(axis, list(groups.values()), findings)
    else:
        groups = _binned(axis, axis.bins, values, findings)
    return {case.key: groups.get(case.key, UNKNOWN) for case in cases}


def _binned(axis: Axis, bins: Bins, values: Values, findings: Findings) -> dict[Key, str]:
    groups, wrong, commas = {}, [], False
    for key, text in values.of_case.items():
        number = as_number(text, values.comma_is_decimal)
        if number is None:
            wrong.append(f"{values.places[key]}: '{text}'")
            commas |= "," in text
        else:
            groups[key] = bins.name_of(number)
    if wrong:
        text = f"axis {axis.name}: {counted(len(wrong), 'value is no number', 'values are no numbers')}, so --bin"
        text += " cannot place them; correct them, or leave them blank"
        text += "; a decimal comma is read only in a table separated by semicolons or tabs" * commas
        findings.error(f"{text}:", dict.fromkeys(wrong))
    empty = [name for name in bins.names if name not in groups.values()]
    if empty:
        numbers = [n for text in values.of_case.values() if (n := as_number(text, values.comma_is_decimal)) is not None]
        span = f"; the values go from {min(numbers):g} to {max(numbers):g}" if numbers else ""
        findings.warning(f"axis {axis.name}: no case in {', '.join(empty)}{span}. Correct --bin if that is not meant.")
    findings.note(f"axis {axis.name}: bins {', '.join(bins.names)}; a value on an edge is in the upper bin.")
    return groups


def _find_doubtful_groups(axis: Axis, groups: Sequence[str], findings: Findings) -> None:
    """Report groups that differ only in spelling, and numbers that nobody binned."""
    counts = Counter(groups)
    alike: dict[str, list[str]] = defaultdict(list)
    for group in sorted(counts):
        number = as_number(group, comma_is_decimal=True)
        alike["".join(group.casefold().split()) if number is None else f"{number:g}"].append(group)
    several = [same for same in alike.values() if len(same) > 1]
    items = []
    for same in several:
        listed = " and ".join(f"'{group}' ({counted(counts[group], 'case')})" for group in same)
        most = max(same, key=lambda group: counts[group])
        ways = " ".join(f"--recode '{axis.name}:{group}={most}'" for group in same if group != most)
        items.append(f"{listed}: {ways}")
    if items:
        text = f"axis {axis.name}: groups that differ only in spelling stay apart; if they are one, add --recode:"
        findings.warning(text, items)
    if len(counts) > _MANY_GROUPS and all_numbers(list(counts)):
        text = f"axis {axis.name}: {len(counts)} different numbers are as many groups; give edges such as"
        numbers = sorted(as_number(group, comma_is_decimal=True) or 0.0 for group in counts)
        third = len(numbers) // 3
        findings.warning(f"{text} --bin {axis.name}={numbers[third]:g},{numbers[2 * third]:g}.")
