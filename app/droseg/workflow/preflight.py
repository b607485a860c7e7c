"""What is checked before a training begins, so that it does not fail an hour later."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from droseg import keys
from droseg.data import Datalist
from droseg.data.channels import MissingChannels
from droseg.data.check import Problem, check_datalist, problem_table
from droseg.data.datalist import EntryProblem
from droseg.data.regions import Structures, label_values, plain_values
from droseg.errors import DatalistError, DrosegError, InputError
from droseg.metrics.axes import axis_columns


def check_output_folder(folder: Path, needed_bytes: int) -> None:
    """Make the folder; refuse if it cannot be written or its disk is too full.

    Raises:
        DrosegError: naming the folder, what is wrong with it, and what to do.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".droseg_write_test"):
            pass
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else str(error)
        raise DrosegError(f"{folder}: cannot write there ({reason}); give another folder by --out.") from error
    free = shutil.disk_usage(folder).free
    if free < needed_bytes:
        raise DrosegError(
            f"{folder}: {free / 1e9:.2f} GB are free, a training needs about {needed_bytes / 1e9:.2f} GB for its "
            "checkpoints and logs; free some space or give a folder on another disk by --out."
        )


def check_structures(
    datalist: Datalist, structures: Structures, channels: Sequence[str], overlapping: bool = False
) -> None:
    """Refuse a datalist that does not have the bundle's structures and channels.

    Args:
        datalist: of the training.
        structures: of the bundle.
        channels: of the bundle.
        overlapping: whether the bundle trains regions that may overlap.
    Raises:
        DatalistError: naming what each of the two has. BundleError: if a structure is no label value or list of them.
    """
    wanted = label_values(structures)
    declared = {name: values for name, values in datalist.structures.items() if values != (0,)}
    missing = [name for name in wanted if name not in declared]
    other = [
        f"{name} (datalist {', '.join(map(str, declared[name]))}, bundle {', '.join(map(str, values))})"
        for name, values in wanted.items()
        if name in declared and set(declared[name]) != set(values)
    ]
    if missing or other:
        found = f"it has no {', '.join(missing)}" if missing else f"other label values: {'; '.join(other)}"
        trainable = plain_values(declared if overlapping else _apart(declared)) if declared else {}
        override = "{" + ", ".join(f"{name}: {value}" for name, value in trainable.items()) + "}"
        raise DatalistError(
            f"{datalist.path}: {found}. The bundle segments {', '.join(wanted)}; the datalist declares "
            f"{', '.join(declared) or 'nothing'}. Train with: structures='{override}'"
        )
    if len(datalist.channels) != len(channels):
        raise DatalistError(
            f"{datalist.path}: {len(datalist.channels)} channels ({', '.join(datalist.channels)}), the bundle takes "
            f"{len(channels)} ({', '.join(channels)}). Train with: channels='[{', '.join(datalist.channels)}]'"
        )


def _apart(declared: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    """Return the structures that exclude each other, in their order; of those that overlap the smallest ones."""
    kept: dict[str, tuple[int, ...]] = {}
    for name in sorted(declared, key=lambda each: len(declared[each])):
        if not any(set(declared[name]) & set(values) for values in kept.values()):
            kept[name] = declared[name]
    return {name: values for name, values in declared.items() if name in kept}


def check_axes(datalist: Datalist, axes: Sequence[str] | None) -> None:
    """Refuse group axes that no case of the datalist has.

    Raises:
        InputError: naming the axes that there are.
    """
    unknown = [axis for axis in axis_columns(axes or (), datalist.axes) if axis not in datalist.axes]
    if unknown:
        found = ", ".join(datalist.axes) or "none"
        raise InputError(f"{datalist.path}: no case has the group axis {', '.join(unknown)}; the axes are: {found}.")


def check_shares(batch_size: int, num_cases: int, ranks: int) -> None:
    """Refuse a global batch that the processes cannot share, or more processes than training cases.

    Raises:
        InputError: with the numbers that fit.
    """
    start = "(--nproc_per_node x --nnodes of torchrun)"
    if ranks > num_cases:
        raise InputError(f"{ranks} processes, but only {num_cases} training cases: start {num_cases} at most {start}.")
    if batch_size % ranks:
        sizes = sorted({batch_size // ranks * ranks, -(-batch_size // ranks) * ranks} - {0})
        numbers = [number for number in range(1, min(batch_size, num_cases) + 1) if batch_size % number == 0]
        raise InputError(
            f"batch_size is {batch_size} over all processes, which {ranks} of them cannot share evenly: set batch_size "
            f"to {' or '.join(map(str, sizes))}, or start {', '.join(map(str, numbers))} {start}."
        )


def check_roi_size(roi_size: Sequence[int], strides: Sequence[int | Sequence[int]] | None) -> None:
    """Refuse a patch that the network's strides do not divide: the skip connections would not meet.

    Args:
        roi_size: voxels per axis.
        strides: of the network's levels, one for all axes or one per axis; None, or an expression: nothing is known.
    Raises:
        InputError: with the nearest sizes that fit.
    """
    steps = _steps(strides, len(roi_size))
    if any(int(size) % step or int(size) < step for size, step in zip(roi_size, steps, strict=True)):
        nearest = [max(step, round(int(size) / step) * step) for size, step in zip(roi_size, steps, strict=True)]
        multiples = str(steps[0]) if len(set(steps)) == 1 else " x ".join(map(str, steps))
        raise InputError(
            f"roi_size is {list(roi_size)}; the network's strides need multiples of {multiples}, for example {nearest}."
        )


def _steps(strides: Any, axes: int) -> list[int]:
    """Return by what the sizes of a patch must be divisible, per axis; ones if the strides are not plain numbers."""
    steps = [1] * axes
    for stride in strides if isinstance(strides, list | tuple) else ():
        per_axis = list(stride) if isinstance(stride, list | tuple) else [stride] * axes
        if len(per_axis) != axes or not all(isinstance(number, int) for number in per_axis):
            return [1] * axes
        steps = [step * number for step, number in zip(steps, per_axis, strict=True)]
    return steps


def check_channels(datalist: Datalist, channels: Sequence[str], missing: MissingChannels, dropout: float) -> list[str]:
    """Return the warnings about missing channels, and how the training deals with them.

    Raises:
        DatalistError: if the datalist has the bundle's channels in another order.
        InputError: if the only channel shall be dropped.
    """
    if datalist.channels != tuple(channels) and set(datalist.channels) == set(channels):
        raise DatalistError(
            f"{datalist.path}: its channels are {', '.join(datalist.channels)}, in another order than the bundle's "
            f"({', '.join(channels)}). Train with: channels='[{', '.join(datalist.channels)}]'"
        )
    if dropout and len(channels) == 1:
        raise InputError(f"channel_dropout is {dropout}, but {channels[0]} is the only channel; set it to 0.")
    cases = datalist.sections.get(keys.TRAINING, ())
    if missing == "zero" and not dropout and not any(None in case.images for case in cases) and len(channels) > 1:
        return [
            "missing_channels is zero, but no training case lacks a channel and channel_dropout is 0: the network will "
            "not learn to do without one. Set channel_dropout, for example 0.1."
        ]
    return []


def check_cases(
    datalist: Datalist,
    entries: Sequence[EntryProblem] = (),
    read: bool = True,
    missing_channels: MissingChannels = "error",
) -> list[str]:
    """Read every training and validation case; return the warnings.

    Args:
        datalist: the usable cases.
        entries: what is wrong with the others, from `parse_datalist`.
        read: whether to read the volumes.
        missing_channels: whether a case may lack a channel.
    Raises:
        DatalistError: with a table of all errors, by case, or if there is no training case.
    """
    problems = [Problem("error", entry.section, entry.case_id, entry.message) for entry in entries]
    sections = [name for name in (keys.TRAINING, keys.VALIDATION) if datalist.sections.get(name)]
    incomplete = _incomplete(datalist, sections) if missing_channels == "error" else []
    problems += incomplete
    if read and sections:
        problems += check_datalist(datalist, sections, progress=True)
    errors = [problem for problem in problems if problem.severity == "error"]
    if errors:
        fill = (
            "\nTo train on cases that lack a channel, filled with zeros: missing_channels=zero; and for a network that "
            "does without any channel, also channel_dropout=0.1."
        ) * bool(incomplete)
        raise DatalistError(
            f"{datalist.path}: training does not start, {len(errors)} error(s):\n{problem_table(errors)}\n"
            f"Mend these files or take the cases out of the datalist.{fill}"
        )
    datalist.section(keys.TRAINING)
    return [f"{problem.section}: {problem.message}" for problem in problems if problem.severity == "warning"]


def _incomplete(datalist: Datalist, sections: Sequence[str]) -> list[Problem]:
    """Return an error for each case that lacks a channel."""
    return [
        Problem("error", section, case.case_id, f"no image of channel {', '.join(lacking)}.")
        for section in sections
        for case in datalist.sections[section]
        if (lacking := case.missing_channels(datalist.channels))
    ]
