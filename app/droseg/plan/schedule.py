"""Budget of a training: steps, epochs, validation, workers, volumes in memory, and what selects the network."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from droseg.data import Datalist
from droseg.inference.memory import GIB
from droseg.keys import TRAINING, VALIDATION
from droseg.plan.budget import Budget
from droseg.plan.fingerprint import Fingerprint
from droseg.plan.patch import Fit

PASSES = 200
"""Times that a training sees each voxel: 170 in bundles/hippocampus_mri (60 x 60 steps of 4 patches, 120 cases), 260 in
bundles/fetal_brain_mri (100 x 100 steps of 2 patches, 17 cases)."""
FEWEST_STEPS, MOST_STEPS = 2_500, 250_000  # the latter is nnU-Net's, for any data set
EPOCHS = 100
MOST_BATCHES = 250  # per epoch, as nnU-Net
WARMUP = 0.02
CACHE_SHARE = 0.5
"""Of the free RAM, for volumes that stay in memory; half as much where a CPU trains in the same RAM."""
MOST_WORKERS = 8
SMALL_GROUP = 5
Row = tuple[str, Any, str]


def schedule_choices(
    datalist: Datalist,
    fingerprint: Fingerprint,
    budget: Budget,
    fit: Fit,
    shapes: NDArray[np.float64],
    seen: NDArray[np.float64],
) -> list[Row]:
    """Return (key, value, reason) of the training's budget.

    Args:
        datalist: with the sections that are trained and validated.
        fingerprint: of the training cases.
        budget: the machine.
        fit: patch and batch.
        shapes: of the training images on the target grid, (N, 3); they are kept in memory whole.
        seen: of what patches are cut from, (N, 3); less where the training crops to what is not 0.
    """
    voxels = float(seen.prod(axis=1).sum())
    of_batch = fit.batch_size * float(np.prod(fit.patch))
    wanted = PASSES * voxels / of_batch
    within = min(max(wanted, FEWEST_STEPS), MOST_STEPS)
    batches = min(math.ceil(within / EPOCHS), MOST_BATCHES)
    epochs = math.ceil(within / batches)
    steps = epochs * batches
    times = steps * of_batch / voxels
    inside = "" if np.array_equal(seen, shapes) else ", in the box around what is not 0,"
    if wanted < FEWEST_STEPS:
        why = f", the fewest for a network that learns from nothing ({PASSES} times would be {wanted:.0f})"
    else:
        why = f"; {PASSES} times are the measure of the shipped bundles, nnU-Net makes 250000 steps of any data"
    cases = f"{len(fingerprint.cases)} training cases{inside}"
    said = f"{steps} steps in all: each voxel of the {cases} is seen {times:.0f} times{why}"
    return [
        *(
            [("precision", "bf16" if budget.bf16 else "fp32", budget.precision_source)]
            if budget.precision_given
            else []
        ),
        ("epochs", epochs, said),
        ("batches_per_epoch", batches, f"a hundredth of the steps, {MOST_BATCHES} at most (nnU-Net's)"),
        ("batch_size", fit.batch_size, _batch_reason(fit, fingerprint, budget)),
        (
            "val_interval",
            _val_interval(epochs),
            f"epochs; {math.ceil(epochs / _val_interval(epochs))} validations; the last one is validated always",
        ),
        ("warmup_steps", max(50, round(WARMUP * steps)), f"2 % of {steps} steps, 50 at least"),
        ("first_epochs", max(1, round(epochs / 5)), "of ERM, a fifth of the epochs; then anew from the first network"),
        _workers(budget),
        _cache(datalist, fingerprint, budget, float(np.median(shapes.prod(axis=1)))),
        *_groups(datalist),
    ]


def _val_interval(epochs: int) -> int:
    return max(1, round(epochs / 20))


def _batch_reason(fit: Fit, fingerprint: Fingerprint, budget: Budget) -> str:
    why = {
        "memory": "as many patches as the memory holds",
        "data": "5 % of the training voxels, as nnU-Net; the memory would hold more",
        "cases": f"all {len(fingerprint.cases)} training cases; no case is twice in a batch",
        "least": "the least, though it is more than 5 % of the training voxels",
    }[fit.limit]
    return f"over all ranks; {why}"


def _workers(budget: Budget) -> Row:
    if not budget.gpu:
        return "num_workers", 0, "processes that prepare batches; none, the CPU is busy with the network"
    count = max(0, min(budget.cores - 1, MOST_WORKERS))
    return "num_workers", count, f"processes that prepare batches; {budget.cores} cores here, {MOST_WORKERS} at most"


def _cache(datalist: Datalist, fingerprint: Fingerprint, budget: Budget, volume: float) -> Row:
    cases = len(datalist.section(TRAINING)) + len(datalist.sections.get(VALIDATION, ()))
    needed = cases * volume * 4 * (len(fingerprint.channels) + 1)
    share = CACHE_SHARE if budget.gpu else CACHE_SHARE / 2
    room = budget.ram * share
    rate = min(1.0, int(100 * room / needed) / 100)
    sizes = f"{cases} take {needed / GIB:.2g} GB, {budget.ram / GIB:.0f} GB of RAM are free"
    said = f"share of the volumes that stay in memory: {sizes}"
    return "cache_rate", rate, said + ("" if rate == 1 else "; the others are read anew each time")


def _groups(datalist: Datalist) -> list[Row]:
    """Return what selects `model.pt`, and the axes of its groups."""
    cases = datalist.sections.get(VALIDATION, ())
    if not cases:
        said = "the last network: no validation section, so nothing can be selected; `droseg data split` makes one"
        return [("select", "last", said), ("group_axes", None, "null: all of the datalist")]
    sizes = {axis: Counter(case.groups[axis] for case in cases if axis in case.groups) for axis in datalist.axes}
    axes = [axis for axis, groups in sizes.items() if 0 < 2 * len(groups) <= len(cases)]
    left_out = [axis for axis in sizes if axis not in axes]
    without = f"; not {', '.join(left_out)}: more groups than half of the validation cases, or none" if left_out else ""
    if not axes:
        said = f"mean Dice of the {len(cases)} validation cases{without or '; they have no groups'}; or: last"
        return [("select", "val_dice/all", said), ("group_axes", None, "null: all of the datalist")]
    smallest = min(((count, f"{axis}={group}") for axis in axes for group, count in sizes[axis].items()))
    few = f", fewer than {SMALL_GROUP}: its mean is noisy" if smallest[0] < SMALL_GROUP else ""
    said = f"axes of the worst group; the smallest of them in validation is {smallest[1]} ({smallest[0]} cases{few})"
    return [
        ("select", "val_dice/worst_group", "validation metric of model.pt, larger is better; or: last, val_dice/all"),
        ("group_axes", axes, said + without),
    ]
