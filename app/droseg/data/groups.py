"""How many cases and patients each section and fold has of each group, and of each combination of groups."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Mapping, Sequence

from droseg.data.datalist import Case, Datalist

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
    return _aligned(rows, 2)


def _aligned(rows: Sequence[Sequence[str]], names: int) -> str:
    """Return rows as text: the first `names` columns to the left, the numbers to the right."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if column < names else cell.rjust(width) for column, (cell, width) in enumerate(cells)
        )
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


Cell = tuple[str, ...]
"""One group on each of several axes."""


def cells(datalist: Datalist, axes: Sequence[str]) -> dict[Cell, dict[str, list[Case]]]:
    """Return combination of groups -> section, or "fold 0" and so on where cases have a fold, -> cases.

    All combinations that occur, in order, each with all parts; the cases of one patient may be in several.
    """
    found: dict[Cell, dict[str, list[Case]]] = defaultdict(lambda: defaultdict(list))
    parts: dict[tuple[int, int], str] = {}
    for place, (section, cases) in enumerate(datalist.sections.items()):
        for case in cases:
            part = section if case.fold is None else f"fold {case.fold}"
            parts[place, -1 if case.fold is None else case.fold] = part
            found[tuple(case.groups.get(axis, NO_GROUP) for axis in axes)][part].append(case)
    ordered = list(dict.fromkeys(parts[place] for place in sorted(parts)))
    return {cell: {part: found[cell][part] for part in ordered} for cell in sorted(found)}


def cell_table(datalist: Datalist, axes: Sequence[str]) -> str:
    """Return patients per cell as aligned text, a row per combination of groups and a column per section or fold.

    Where a cell has more cases than patients, their number stands in parentheses behind.
    """
    table = cells(datalist, axes)
    parts = list(next(iter(table.values()), {}))
    rows = [[*axes, *parts, "total"]]
    for cell, by_part in table.items():
        everyone = [case for part in parts for case in by_part[part]]
        rows.append([*cell, *(_count(by_part[part]) for part in parts), _count(everyone)])
    if axes:
        whole = [[case for by_part in table.values() for case in by_part[part]] for part in parts]
        rows.append(["all", *[""] * (len(axes) - 1), *map(_count, whole), _count([c for part in whole for c in part])])
    return _aligned(rows, len(axes))


def _count(cases: Sequence[Case]) -> str:
    patients = len({case.patient_id for case in cases})
    return str(patients) if patients == len(cases) else f"{patients} ({len(cases)})"


def cell_name(axes: Sequence[str], cell: Cell) -> str:
    """Return "anatomy=rare, site=b"."""
    return ", ".join(f"{axis}={group}" for axis, group in zip(axes, cell, strict=True))


def thin_cells(datalist: Datalist, axes: Sequence[str], folds: int | None = None) -> list[str]:
    """Return a line for each combination of groups that a section or fold lacks, or that does not occur at all.

    Args:
        datalist: after the split.
        axes: whose combinations are looked at.
        folds: number of folds; a group with fewer patients than folds is said to be so.
    """
    table = cells(datalist, axes)
    lines = []
    for cell, by_part in table.items():
        lacking = [part for part, cases in by_part.items() if not cases]
        if not lacking:
            continue
        patients = {case.patient_id for part, cases in by_part.items() if part.startswith("fold ") for case in cases}
        few = (
            f" ({len(patients)} patient{'s' * (len(patients) != 1)} for {folds} folds)"
            if folds and 0 < len(patients) < folds
            else ""
        )
        lines.append(f"no case with {cell_name(axes, cell)} in {_listed(lacking)}{few}")
    if len(axes) > 1:
        values = [sorted({cell[place] for cell in table}) for place in range(len(axes))]
        never = [cell for cell in itertools.product(*values) if cell not in table]
        if never:
            shown = "; ".join(cell_name(axes, cell) for cell in never[:5])
            more = f" and {len(never) - 5} more" if len(never) > 5 else ""
            lines.append(f"{len(never)} combinations of groups do not occur at all: {shown}{more}")
    return lines


def _listed(parts: Sequence[str]) -> str:
    """Return "training and folds 0, 2": folds are named together."""
    folds = [part.removeprefix("fold ") for part in parts if part.startswith("fold ")]
    others = [part for part in parts if not part.startswith("fold ")]
    if folds:
        others.append(f"fold{'s' * (len(folds) > 1)} {', '.join(folds)}")
    return " and ".join(others)


def patients_in_several_groups(datalist: Datalist, axes: Sequence[str]) -> dict[str, Mapping[str, Sequence[str]]]:
    """Return axis -> patient -> groups, of the patients whose scans are in more than one group of that axis."""
    result: dict[str, Mapping[str, Sequence[str]]] = {}
    for axis in axes:
        groups: dict[str, set[str]] = defaultdict(set)
        for case in itertools.chain(*datalist.sections.values()):
            groups[case.patient_id].add(case.groups.get(axis, NO_GROUP))
        several = {patient: sorted(values) for patient, values in groups.items() if len(values) > 1}
        if several:
            result[axis] = several
    return result
