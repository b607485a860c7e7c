"""How many cases and patients each section has of each group."""

from __future__ import annotations

from collections.abc import Sequence

from droseg.data.datalist import Datalist

NO_GROUP = "(none)"
"""Stands for the value of a case that has no group on an axis."""


def group_counts(datalist: Datalist, axes: Sequence[str] | None = None) -> dict[tuple[str, str], dict[str, int]]:
    """Return (axis, group) -> section -> number of cases; all axes if None, and first ("all", "all")."""
    sections = [name for name, cases in datalist.sections.items() if cases]
    counts = {("all", "all"): {name: len(datalist.sections[name]) for name in sections}}
    for axis in datalist.axes if axes is None else axes:
        values = [(name, case.groups.get(axis, NO_GROUP)) for name in sections for case in datalist.sections[name]]
        for group in sorted({value for _, value in values}):
            counts[axis, group] = {name: values.count((name, group)) for name in sections}
    return counts


def group_table(datalist: Datalist, axes: Sequence[str] | None = None) -> str:
    """Return the counts as aligned text, one row per group and one column per section."""
    counts = group_counts(datalist, axes)
    sections = list(counts["all", "all"])
    rows = [["axis", "group", *sections, "total"]]
    for (axis, group), by_section in counts.items():
        rows.append([axis, group, *(str(by_section[name]) for name in sections), str(sum(by_section.values()))])
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) if column < 2 else cell.rjust(width) for column, (cell, width) in enumerate(cells))
        for cells in (list(zip(row, widths, strict=True)) for row in rows)
    )


def empty_cells(datalist: Datalist, axes: Sequence[str] | None = None) -> list[str]:
    """Return "axis=group in section" for each section that has cases, but none of a group."""
    return [
        f"{axis}={group} in {section}"
        for (axis, group), by_section in group_counts(datalist, axes).items()
        for section, count in by_section.items()
        if count == 0
    ]
