"""Cases as the items of a MONAI dataset."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

from droseg import keys
from droseg.data.channels import MissingChannels
from droseg.data.datalist import Case, Datalist
from droseg.errors import DatalistError

Item = TypeVar("Item")


def case_item(case: Case, index: int) -> dict[str, Any]:
    """Return one item: image path (or one per channel, None if missing), label path if any, case_id and row."""
    images = [None if path is None else str(path) for path in case.images]
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


def own_share(items: Sequence[Item], rank: int, world_size: int) -> list[Item]:
    """Return the items that this process evaluates: every `world_size`-th, from `rank` on.

    With fewer items than processes the last processes get one that another has too, since MONAI's evaluator skips an
    empty data set and the others would wait for it forever; `CaseMetricsHandler` counts each case once.
    """
    if rank >= len(items) > 0:
        return [items[rank % len(items)]]
    return list(items[rank::world_size])


def reference_items(
    datalist: Datalist, section: str, missing_channels: MissingChannels = "error"
) -> list[dict[str, Any]]:
    """Return the items of a section with the label under `"reference"`, which no preprocessing touches.

    Raises:
        DatalistError: if the section is not there, or a case of it has no label, or lacks a channel where that is an
            error.
    """
    cases = datalist.section(section)
    incomplete = [case.case_id for case in cases if None in case.images]
    if incomplete and missing_channels == "error":
        raise DatalistError(
            f"{datalist.path}: {section}: {', '.join(incomplete)} lack channels, which only a bundle fills "
            "that was trained with missing_channels: zero."
        )
    missing = [case.case_id for case in cases if case.label is None]
    if missing:
        raise DatalistError(f"{datalist.path}: {section}: no label for {', '.join(missing[:10])}; nothing to score by.")
    items = [case_item(case, index) for index, case in enumerate(cases)]
    for item in items:
        item[keys.REFERENCE] = item.pop(keys.LABEL)
    return items
