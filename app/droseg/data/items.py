"""Cases as the items of a MONAI dataset."""

from __future__ import annotations

from typing import Any

from droseg import keys
from droseg.data.datalist import Case, Datalist
from droseg.errors import DatalistError


def case_item(case: Case, index: int) -> dict[str, Any]:
    """Return one item: image path (or one per channel), label path if there is one, case_id and row."""
    images = [str(path) for path in case.images]
    item: dict[str, Any] = {
        keys.IMAGE: images if len(images) > 1 else images[0],
        keys.CASE_ID: case.case_id,
        keys.INDEX: index,
    }
    if case.label is not None:
        item[keys.LABEL] = str(case.label)
    return item


def section_items(datalist: Datalist, section: str) -> list[dict[str, Any]]:
    """Return the items of a section; empty if there is no such section."""
    return [case_item(case, index) for index, case in enumerate(datalist.sections.get(section, ()))]


def reference_items(datalist: Datalist, section: str) -> list[dict[str, Any]]:
    """Return the items of a section with the label under `"reference"`, which no preprocessing touches.

    Raises:
        DatalistError: if the section is not there, or a case of it has no label.
    """
    cases = datalist.section(section)
    missing = [case.case_id for case in cases if case.label is None]
    if missing:
        raise DatalistError(f"{datalist.path}: {section}: no label for {', '.join(missing[:10])}; nothing to score by.")
    items = [case_item(case, index) for index, case in enumerate(cases)]
    for item in items:
        item[keys.REFERENCE] = item.pop(keys.LABEL)
    return items
