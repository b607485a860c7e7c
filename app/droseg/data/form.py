"""The form of a datalist's values: what its JSON may say, as checked Python values. A ValueError says what is wrong."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from droseg.keys import CASE_ID, IMAGE, LABEL, PATIENT_ID

RESERVED_AXES = frozenset({"all", CASE_ID, PATIENT_ID, IMAGE, LABEL, "structure", "dice", "nsd", "section", "fold"})
"""Names that already mean something else in a table beside the group axes."""

BACKGROUND = "background"
"""Name, in `structures`, of the label values that belong to no structure."""

_STRUCTURES_FORM = 'an object from name to label value is expected, e.g. {"ventricles": 2, "brain": [1, 2]}'
_NIFTI_SUFFIXES = (".nii.gz", ".nii", ".mha", ".mhd", ".nrrd")


def read_channels(document: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the channel names in the order of their index."""
    value = document.get("channels", document.get("modality"))
    if isinstance(value, str):
        return (value,)
    if isinstance(value, list) and value and all(isinstance(name, str) for name in value):
        return tuple(value)
    expected = 'an object from index to name is expected, e.g. {"0": "T2w"}'
    if not isinstance(value, dict) or not value:
        found = "missing" if value is None else f"{value!r}"
        raise ValueError(f"`channels` is {found}; {expected}.")
    try:
        by_index = {int(index): str(name) for index, name in value.items()}
    except ValueError as error:
        raise ValueError(f"`channels` is {value!r}; {expected}.") from error
    if sorted(by_index) != list(range(len(by_index))):
        raise ValueError(f"`channels` has the indices {sorted(by_index)}; they must count from 0.")
    return tuple(by_index[index] for index in sorted(by_index))


def read_structures(document: Mapping[str, Any], required: bool) -> dict[str, tuple[int, ...]]:
    """Return name -> label values, without the background; both orientations of Decathlon's `labels` are read.

    The background is 0 alone, under whatever name, and all that is called `background`: see `read_background`.
    """
    if document.get("structures", document.get("labels")) is None and not required:
        return {}
    named = _named_values(document)
    background = _background_in(named)
    result: dict[str, tuple[int, ...]] = {}
    for name, numbers in named.items():
        if _is_background(name):
            continue
        if min(numbers) <= 0:
            raise ValueError(f"structure '{name}' has the label values {list(numbers)}; they must be > 0.")
        if name == "mean":
            raise ValueError("a structure cannot be called 'mean'; tables use that for their average.")
        if both := [number for number in numbers if number in background]:
            raise ValueError(f"label value {both[0]} is that of '{name}' and of the background; it can be one of them.")
        result[name] = numbers
    if not result:
        raise ValueError(f"`structures` names only the background; {_STRUCTURES_FORM}.")
    return result


def read_background(document: Mapping[str, Any]) -> tuple[int, ...]:
    """Return the label values that are no structure, increasing: 0, and those of a structure called `background`."""
    if document.get("structures", document.get("labels")) is None:
        return (0,)
    return _background_in(_named_values(document))


def _background_in(named: Mapping[str, tuple[int, ...]]) -> tuple[int, ...]:
    others = {number for name, numbers in named.items() if _is_background(name) for number in numbers}
    return tuple(sorted({0, *others}))


def _is_background(name: str) -> bool:
    return name.casefold() == BACKGROUND


def _named_values(document: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Return name -> label values as the document has them, without an entry that is 0 alone."""
    value = document.get("structures", document.get("labels"))
    if not isinstance(value, dict) or not value:
        found = "missing" if value is None else f"{value!r}"
        raise ValueError(f"`structures` is {found}; {_STRUCTURES_FORM}.")
    value_first = all(_is_integer_text(key) for key in value)
    result: dict[str, tuple[int, ...]] = {}
    for key, item in value.items():
        name, values = (item, key) if value_first else (key, item)
        try:
            numbers = tuple(_label_value(number) for number in (values if isinstance(values, list) else [values]))
        except ValueError as error:
            raise ValueError(f"structure '{name}': {error}; {_STRUCTURES_FORM}.") from error
        if not isinstance(name, str) or not name or not numbers:
            raise ValueError(f"`structures` has {key!r}: {item!r}; {_STRUCTURES_FORM}.")
        if numbers == (0,):  # the background is everything else, under whatever name
            continue
        result[name] = result.get(name, ()) + numbers
    return result


def _is_integer_text(text: str) -> bool:
    return text.strip().lstrip("-").isdigit()


def _label_value(value: Any) -> int:
    """Return one label value as an int; a bool, a fraction or a word is a ValueError."""
    if isinstance(value, str) and _is_integer_text(value):
        return int(value)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not float(value).is_integer():
        raise ValueError(f"label value {value!r} is not an integer")
    return int(value)


def read_case_id(entry: Mapping[str, Any], images: Sequence[Path | None]) -> str:
    """Return the case_id: as given, else the name of the one image file without its suffix."""
    if CASE_ID in entry:
        case_id = read_text(entry[CASE_ID], CASE_ID)
    elif len(images) == 1 and images[0] is not None:
        case_id = strip_suffix(images[0].name)
    else:
        raise ValueError("case_id is missing")
    if case_id in (".", "..") or any(character in case_id for character in "/\\\0\n\r"):
        raise ValueError(f"case_id {case_id!r} cannot be part of a file name; leave out slashes and line breaks")
    return case_id


def strip_suffix(name: str) -> str:
    """Return a file name without the suffix of its image format: "a.b.nii.gz" gives "a.b"."""
    for suffix in _NIFTI_SUFFIXES:
        if name.lower().endswith(suffix) and len(name) > len(suffix):
            return name[: -len(suffix)]
    return name


def read_text(value: Any, key: str) -> str:
    """Return a non-empty text; a whole number is one too, so that `"case_id": 17` works."""
    if isinstance(value, bool) or not isinstance(value, (str, int)) or str(value).strip() == "":
        raise ValueError(f"{key} is {value!r}; a non-empty text is expected")
    return str(value)


def _absolute(value: Any, key: str, root: Path) -> Path:
    if not isinstance(value, str) or not value:
        raise ValueError(f"{key} is {value!r}; a path is expected")
    return Path(os.path.normpath(root / Path(value).expanduser()))


def read_images(value: Any, root: Path) -> tuple[Path | None, ...]:
    """Return the absolute paths of the channels of a case; None for a channel that it lacks."""
    if value is None:
        raise ValueError("image is missing; give a path, or a list with one path (or null) per channel")
    if isinstance(value, list):
        if not value:
            raise ValueError("image is an empty list; give one path per channel")
        if all(item is None for item in value):
            raise ValueError("image has no path: every channel is null; give at least one, or take the case out")
        return tuple(None if item is None else _absolute(item, IMAGE, root) for item in value)
    return (_absolute(value, IMAGE, root),)


def read_label(value: Any, root: Path) -> Path | None:
    """Return the absolute path of the label; None where there is none."""
    return None if value is None else _absolute(value, LABEL, root)


def read_groups(value: Any) -> dict[str, str]:
    """Return axis -> value as text; an axis whose value is null is left out."""
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise ValueError(f"groups is {value!r}; an object from axis to value is expected")
    result = {}
    for axis, group in value.items():
        if not axis or axis in RESERVED_AXES or axis.endswith(("_mm", "_ml")):
            raise ValueError(f"group axis '{axis}' is a name that the result tables use; choose another")
        if group is None:
            continue
        if not isinstance(group, (str, int, float, bool)) or str(group) == "":
            raise ValueError(f"group '{axis}' is {group!r}; a text or a number is expected")
        result[axis] = str(group)
    return result


def read_fold(value: Any) -> int | None:
    """Return the number of the cross-validation fold."""
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise ValueError(f"fold is {value!r}; an integer from 0 is expected")
    return value
