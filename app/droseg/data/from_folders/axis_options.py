"""The options that make group axes: `--group-by`, `--group-by-header` and `--bin`."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace

from droseg.data import form
from droseg.data.from_folders.axes import Axis
from droseg.data.from_folders.bins import Bins
from droseg.data.from_folders.findings import some
from droseg.data.from_folders.headers import GRID_FIELDS, TAG_FIELDS, field_name
from droseg.errors import InputError


def parse_axes(
    columns: Sequence[str],
    headers: Sequence[str],
    bins: Sequence[str],
    channels: Sequence[str],
    recode: Sequence[str] = (),
) -> tuple[Axis, ...]:
    """Return the axes of all options, in their order.

    Args:
        columns: "diagnosis" or "AXIS=COLUMN" each.
        headers: "slice_thickness,manufacturer", "AXIS=FIELD" or "AXIS=CHANNEL:FIELD" each.
        bins: "age=40,60" each; an axis that is in neither of the others is a column.
        channels: the names that CHANNEL may be.
        recode: "diagnosis:1=control" each.

    Raises:
        InputError: if one cannot be understood, or an axis is there twice.
    """
    axes = [_of_column(text) for text in columns]
    axes += [_of_header(text.strip(), channels) for option in headers for text in option.split(",")]
    names = [axis.name for axis in axes]
    repeated = [name for name in dict.fromkeys(names) if names.count(name) > 1]
    if repeated:
        raise InputError(f"two group axes are called '{repeated[0]}'; rename one: AXIS={repeated[0]}.")
    for option in bins:
        name, equals, edges = (part.strip() for part in option.partition("="))
        if not (name and equals):
            raise InputError(f"--bin '{option}' is not AXIS=EDGE,..., such as age=40,60.")
        try:
            parsed = Bins.parse(edges)
        except ValueError as error:
            raise InputError(f"--bin {name}: {error}.") from error
        if name not in names:
            axes.append(_of_column(name))
            names.append(name)
        index = names.index(name)
        if axes[index].bins is not None:
            raise InputError(f"--bin {name} is given twice; give all edges at once.")
        axes[index] = replace(axes[index], bins=parsed)
    for option in recode:
        match = re.fullmatch(r"([^:=]+):([^=]+)=(.+)", option)
        if not match or match[1].strip() not in names:
            known = f"; the axes are {', '.join(names)}" if names else ""
            raise InputError(f"--recode '{option}' is not AXIS:VALUE=GROUP, such as diagnosis:1=control{known}.")
        index = names.index(match[1].strip())
        if axes[index].bins:
            raise InputError(f"--recode '{option}': the axis has bins already, by --bin.")
        axes[index] = replace(axes[index], recode={**axes[index].recode, match[2].strip(): match[3].strip()})
    for axis in axes:
        try:
            form.read_groups({axis.name: "any"})
        except ValueError as error:
            other = axis.name.removesuffix("_mm").removesuffix("_ml")
            other = other if other != axis.name else f"{axis.name}_group"
            raise InputError(f"{error}: {other}={axis.column or axis.header}.") from error
    return tuple(axes)


def _of_column(text: str) -> Axis:
    axis, equals, column = (part.strip() for part in text.partition("="))
    if not axis or (equals and not column):
        raise InputError(f"--group-by '{text}' is not COLUMN or AXIS=COLUMN.")
    return Axis(axis, column=column or axis)


def _of_header(text: str, channels: Sequence[str]) -> Axis:
    axis, _, source = (part.strip() for part in text.rpartition("="))
    channel, _, field = (part.strip() for part in source.rpartition(":"))
    if channel and channel not in channels:
        raise InputError(f"--group-by-header '{text}': no channel '{channel}'; they are {', '.join(channels)}.")
    known = field_name(field)
    if known is None:
        raise InputError(
            f"--group-by-header '{text}': no header field '{field}'; those known are "
            f"{some([*GRID_FIELDS, *TAG_FIELDS], 40)}."
        )
    return Axis(axis or field, header=known, channel=channel)
