"""What a plan says of the label map that overlapping regions are painted into."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from droseg.data.regions import plain_values, unclear_regions, written_values
from droseg.errors import BundleError
from droseg.plan.template import Template

KEY = "region_values"
Values = dict[str, tuple[int, ...]]
Row = tuple[str, dict[str, int] | None, str, Literal["inference"]]


def region_choices(structures: Values, template: Template) -> list[Row]:
    """Return (key, value, reason, place) of `region_values`; nothing if the followed bundle does not train regions.

    Where the structures do not tell, it is the user's to say: null, but after a bundle of the same structures.
    """
    if not template.regions or KEY not in template.inference_config:
        return []
    followed = template.inference_config
    said = followed[KEY] if followed["structures"] == plain_values(structures) else None
    unclear = ", ".join(unclear_regions(structures))
    if unclear:
        why = f"; {'as in the followed bundle' if said else 'needed'}, for it is unclear for {unclear}"
    else:
        painted = ", ".join(f"{name} {value}" for name, value in written_values(structures).items())
        why = f": here {painted}; needed only if that is unclear"
    return [(KEY, said, f"what a voxel gets that is in no smaller region{why}", "inference")]


def region_notes(structures: Values, rows: Sequence[Row]) -> list[str]:
    """Return what the training would say of regions that cross each other; none if `rows` are enough."""
    for _, said, _, _ in rows:
        try:
            written_values(structures, said)
        except BundleError as error:
            return [str(error)]
    return []
