"""Structures by their label values: one each, or several; such regions may overlap or lie inside each other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from droseg.errors import BundleError

_FEW = 16
"""Up to so many regions, counting the codes is many times faster than sorting them."""
Structures = Mapping[str, int | Sequence[int]]
"""Name -> its value in label maps, or its values, e.g. of tumors `{"WT": [1, 2, 3], "TC": [1, 3], "ET": 3}`."""


def label_values(structures: Structures) -> dict[str, tuple[int, ...]]:
    """Return name -> its label values, in the order in which they are given.

    Raises:
        BundleError: if a structure has no values, or others than whole numbers above 0, or those of another one.
    """
    if not isinstance(structures, Mapping) or not structures:
        raise BundleError(f"structures is {structures}; expected {{name: label value, or a list of them}}.")
    values: dict[str, tuple[int, ...]] = {}
    for name, given in structures.items():
        several = tuple(given) if isinstance(given, Sequence) and not isinstance(given, str) else (given,)
        if not several or not all(_is_whole(value) and int(value) > 0 for value in several):
            raise BundleError(
                f"structures: {name} is {given!r}; expected a label value, or a list of them (whole numbers above 0)."
            )
        own = tuple(dict.fromkeys(int(value) for value in several))
        twin = next((other for other, those in values.items() if set(those) == set(own)), None)
        if twin is not None:
            raise BundleError(f"structures: {twin} and {name} have the same label values {list(own)}; leave one out.")
        values[name] = own
    return values


def plain_values(structures: Structures) -> dict[str, int | list[int]]:
    """Return name -> value, or a list of several, as JSON and YAML take them."""
    values = label_values(structures)
    return {name: those[0] if len(those) == 1 else list(those) for name, those in values.items()}


def shared_values(structures: Structures) -> dict[int, list[str]]:
    """Return the label values that several structures have -> their names; empty if structures exclude each other."""
    names: dict[int, list[str]] = {}
    for name, values in label_values(structures).items():
        for value in values:
            names.setdefault(value, []).append(name)
    return {value: those for value, those in names.items() if len(those) > 1}


def written_values(structures: Structures, region_values: Mapping[str, int] | None = None) -> dict[str, int]:
    """Return name -> the value that a voxel of the region, and of no smaller one inside it, has in a label map.

    Args:
        structures: the regions.
        region_values: name -> value, for regions of which the structures do not tell: where not exactly one of its
            values is in no smaller region inside it.

    Raises:
        BundleError: if `region_values` lacks such a region, or names another one or a value that is not the region's.
    """
    values, given = label_values(structures), dict(region_values or {})
    unknown = [name for name in given if name not in values]
    foreign = [f"{name}: {given[name]}" for name in values if name in given and given[name] not in values[name]]
    if unknown or foreign:
        found = f"no structure {', '.join(unknown)}" if unknown else f"{', '.join(foreign)} is no value of the region"
        raise BundleError(f"region_values: {found}; the structures are {plain_values(structures)}.")
    likely = unclear_regions(structures)
    written = {}
    for name, own in values.items():
        alone = _alone(own, values)
        if name in given and given[name] not in (alone or own):
            raise BundleError(
                f"region_values: {name} is {given[name]}, which is a value of a smaller region inside it; take "
                f"{' or '.join(map(str, alone))}."
            )
        written[name] = int(given[name] if name in given else likely[name] if name in likely else alone[0])
    unclear = [name for name in likely if name not in given]
    if unclear:
        may = {name: _alone(values[name], values) or values[name] for name in unclear}
        choices = ", ".join(f"{name} ({' or '.join(map(str, choice))})" for name, choice in may.items())
        example = ", ".join(f"{name}: {written[name]}" for name in unclear)
        raise BundleError(
            f"structures: it is not clear which label value a voxel gets that is in a region but in no smaller one "
            f"inside it: {choices}. Say it by region_values, for example '{{{example}}}'."
        )
    return written


def unclear_regions(structures: Structures) -> dict[str, int]:
    """Return the regions that `written_values` must be told of -> the likeliest of the values that each may have.

    It is the one that the fewest regions share; empty if the structures tell.
    """
    values = label_values(structures)
    return {
        name: min(_alone(own, values) or own, key=lambda value: sum(value in those for those in values.values()))
        for name, own in values.items()
        if len(_alone(own, values)) != 1
    }


def _alone(own: Sequence[int], values: Mapping[str, Sequence[int]]) -> list[int]:
    """Return the values of a region that are in no smaller region inside it."""
    inside = {value for those in values.values() if set(those) < set(own) for value in those}
    return [value for value in own if value not in inside]


def mask_of(labels: NDArray[Any], values: Sequence[int]) -> NDArray[np.bool_]:
    """Return where a label map has one of the values, same shape."""
    if len(values) == 1:
        return np.asarray(labels == values[0])
    return np.isin(labels, list(values))


def region_codes(masks: Sequence[NDArray[Any]] | NDArray[Any]) -> NDArray[np.int64]:
    """Return a map that tells all regions at once: bit r of a voxel says whether it is in region r, (H, W, D).

    Args:
        masks: of each region, (H, W, D), at most 62.
    """
    codes = np.zeros(np.shape(masks[0]), dtype=np.int64)
    for bit, mask in enumerate(masks):
        codes |= np.asarray(mask != 0, dtype=np.int64) << bit
    return codes


def code_values(names: Sequence[str], *codes: NDArray[np.int64]) -> dict[int | tuple[int, ...], str]:
    """Return the values of each region in maps of codes -> its name, as `droseg.metrics.case_metrics` takes them.

    A region that is in none of the maps has the value of its own bit.
    """
    present = [np.flatnonzero(np.bincount(each.ravel())) if len(names) <= _FEW else np.unique(each) for each in codes]
    found = sorted({int(code) for each in present for code in each})
    values: dict[int | tuple[int, ...], str] = {}
    for bit, name in enumerate(names):
        own = tuple(sorted({1 << bit, *(code for code in found if code >> bit & 1)}))
        values[own] = name
    return values


def _is_whole(value: Any) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool)
