"""Every choice of a planned bundle, with its reason in numbers of the data set."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from torch import nn

from droseg.data import Datalist
from droseg.data.regions import plain_values
from droseg.inference.memory import GIB
from droseg.plan.budget import Budget
from droseg.plan.channels import missing_channel_choices
from droseg.plan.fingerprint import Fingerprint
from droseg.plan.memory import CONTEXT_BYTES, StepMemory
from droseg.plan.patch import Fit, fit_patch
from droseg.plan.regions import region_choices, region_notes
from droseg.plan.sampling import augmentation_choices
from droseg.plan.schedule import MOST_WORKERS, schedule_choices
from droseg.plan.sides import mirror_axes
from droseg.plan.spacing import ANISOTROPY, resampled, target_spacing, thick_axes
from droseg.plan.template import Template
from droseg.plan.topology import Topology, network_config

OF_PATHS = ("dataset_dir", "datalist", "data_root")
"""Choices that say where the data lie."""
WITHIN = {
    "normalization": "deterministic_transforms",
    **dict.fromkeys(("crop", "rotate_range", "scale_range", "translate_range"), "augmentation"),
    "first_epochs": "rivals#jtt",
}
"""Choices that are no keys of a config -> the key that they stand in."""
MASKED_BOX = 0.75
"""Below this share of the image, what is not 0 counts as cut out by a mask (nnU-Net 2.8.1)."""
MANY_WINDOWS = 64
LOW_RESOLUTION = 0.25
"""Share of the median image below which nnU-Net 2.8.1 adds a network at low resolution."""
Place = Literal["inference", "train"]


@dataclass(frozen=True)
class Choice:
    """One setting.

    Attributes:
        key: of the config, or a name for what stands `WITHIN` another key.
        value: as the config takes it.
        reason: one sentence, with the numbers that it rests on.
        place: which config says it; inference.yaml's are those of the training, too.
    """

    key: str
    value: Any
    reason: str
    place: Place


@dataclass(frozen=True)
class Plan:
    """All choices, and what they rest on.

    Attributes:
        choices: in the order in which the configs say them.
        notes: what the user should look at.
        masked: whether images are normalized over the voxels that are not 0.
        uniform_crop: whether patches are cut anywhere; else each structure is the center of as many.
    """

    choices: tuple[Choice, ...]
    fit: Fit
    fingerprint: Fingerprint
    budget: Budget
    datalist: Datalist
    masked: bool
    notes: tuple[str, ...] = field(default=())

    def __getitem__(self, key: str) -> Any:
        """Return the value of a choice."""
        return next(choice.value for choice in self.choices if choice.key == key)

    def reason(self, key: str) -> str:
        """Return the reason of a choice."""
        return next(choice.reason for choice in self.choices if choice.key == key)

    def of(self, place: Place) -> list[Choice]:
        """Return the choices that one config says."""
        return [choice for choice in self.choices if choice.place == place]


def make_plan(
    datalist: Datalist,
    fingerprint: Fingerprint,
    budget: Budget,
    template: Template,
    *,
    data_root: Path | None = None,
) -> Plan:
    """Return the choices for a data set and the memory at hand.

    Args:
        datalist: with the cases of all sections.
        fingerprint: of the training cases.
        budget: memory and machine.
        template: the bundle that is followed.
        data_root: folder that the datalist's relative paths start from, if not its own.
    Raises:
        InputError: if the images are too small, or the memory.
    """
    spacing, spacing_reason = target_spacing(fingerprint)
    shapes, boxes = (resampled(fingerprint, spacing, what) for what in ("shape", "box"))
    structures = plain_values(datalist.structures)
    like, channels = template.inference_config["network_def"], list(datalist.channels)

    def network(topology: Topology) -> nn.Module:
        return template.network(network_config(topology, like), channels, structures)

    step = StepMemory(network, len(channels), budget.bf16, template.loss())
    seen = boxes if template.crops_foreground else shapes  # what patches are cut from
    median = np.median(boxes, axis=0)
    fit = fit_patch(
        spacing, median.tolist(), len(fingerprint.cases), float(boxes.prod(axis=1).sum()), budget.memory, step
    )
    missing = [Choice(*row) for row in missing_channel_choices(datalist, template)]
    regions = region_choices(datalist.structures, template)
    box_share = float(np.median(fingerprint.per_case("box").prod(axis=1) / fingerprint.per_case("shape").prod(axis=1)))
    masked = box_share < MASKED_BOX
    choices = [
        Choice("channels", channels, f"of {datalist.path.name}", "inference"),
        Choice("structures", structures, _structures_reason(fingerprint), "inference"),
        *(Choice(*row) for row in regions),
        Choice("spacing_mm", list(spacing), spacing_reason, "inference"),
        Choice("roi_size", list(fit.patch), _patch_reason(fit, shapes, boxes, budget), "inference"),
        *_window_choices(fit, shapes),
        *missing,
        Choice("mirror_axes", *mirror_axes(list(structures)), "inference"),
        Choice("keep_largest", [], "not planned: no structure loses its smaller pieces", "inference"),
        Choice("network_def", network_config(fit.topology, like), _network_reason(fit, spacing), "inference"),
        Choice("normalization", "nonzero" if masked else "all", _normalization(fingerprint, box_share), "inference"),
        *(Choice(key, value, reason, "train") for key, value, reason in _paths(datalist, data_root)),
        *(
            Choice(key, value, reason, "train")
            for key, value, reason in schedule_choices(datalist, fingerprint, budget, fit, shapes, seen)
        ),
        *(
            Choice(key, value, reason, "train")
            for key, value, reason in augmentation_choices(fingerprint, fit, np.median(seen, axis=0), template.regions)
        ),
    ]
    notes = [*region_notes(datalist.structures, regions), *_notes(fingerprint, fit, budget, shapes, len(structures))]
    if template.regions and max(median / np.array(fit.patch)) > 2:
        notes.append("patches are small and cut anywhere, since a case may lack every region; many will hold none.")
    return Plan(tuple(choices), fit, fingerprint, budget, datalist, masked, tuple(notes))


def _structures_reason(fingerprint: Fingerprint) -> str:
    sizes = "; ".join(f"{name} {size_text(fingerprint, name)}" for name in fingerprint.structures)
    return f"name: value in label maps, of the datalist; median volumes: {sizes}"


def size_text(fingerprint: Fingerprint, structure: str) -> str:
    """Return the median volume of a structure, and in how many cases it is absent."""
    absent = fingerprint.absent(structure)
    without = f", absent in {absent} of {len(fingerprint.cases)}" if absent else ""
    return f"{fingerprint.median_ml(structure):.3g} ml{without}"


def _patch_reason(fit: Fit, shapes: Any, boxes: Any, budget: Budget) -> str:
    median = np.median(boxes, axis=0)
    image = "the median image" if np.array_equal(shapes, boxes) else "what is not 0 in the median image"
    divisor = fit.topology.divisor
    multiples = str(divisor[0]) if len(set(divisor)) == 1 else " x ".join(map(str, divisor))
    shown = " x ".join(f"{edge:g}" for edge in median)
    taken = f"{(fit.needed + CONTEXT_BYTES) / GIB:.1f} GB for {fit.batch_size} of them, estimated"
    if fit.shrunk:
        room = (budget.memory + CONTEXT_BYTES) / GIB
        why = f"the largest of which 2 fit into {room:.1f} GB; {image} has {shown}"
    elif all(edge >= int(size) for edge, size in zip(fit.patch, median, strict=True)):
        why = f"holds {image}, {shown}"
    else:
        why = f"a volume of 256^3 at most, as nnU-Net; {image} has {shown}"
    return f"voxels; multiples of {multiples}, the product of the strides; {why} ({taken})"


def _window_choices(fit: Fit, shapes: Any) -> list[Choice]:
    """Return how windows slide over an image."""
    patch, median = np.array(fit.patch), np.median(shapes, axis=0)

    def windows(overlap: float) -> int:
        return int((np.ceil(np.maximum(median - patch, 0) / np.maximum(patch * (1 - overlap), 1)) + 1).prod())

    overlap, why = 0.5, "as nnU-Net"
    if windows(overlap) > MANY_WINDOWS:
        overlap, why = 0.25, f"not 0.5 as nnU-Net: that would be {windows(0.5)} windows"
    count = windows(overlap)
    said = f"{why}; {count} window{'s' * (count > 1)} for the median image of {' x '.join(f'{e:.0f}' for e in median)}"
    at_once = min(4, fit.batch_size)
    return [
        Choice("sw_overlap", overlap, said, "inference"),
        Choice(
            "sw_batch_size", at_once, "windows at a time; a training step holds as many, with gradients", "inference"
        ),
    ]


def _network_reason(fit: Fit, spacing: tuple[float, float, float]) -> str:
    topology = fit.topology
    edges = [edge // divisor for edge, divisor in zip(fit.patch, topology.divisor, strict=True)]
    depth = f"{len(topology.kernels)} levels: the patch is halved down to {' x '.join(map(str, edges))} voxels"
    if topology.flat:
        ratio = max(spacing) / min(spacing)
        return (
            f"{depth}; voxels are {ratio:.3g} times as long as wide, so kernels stay flat and the thick axis whole "
            "until the others have caught up (as nnU-Net); kernels differ between levels, hence DynUNet"
        )
    return f"{depth}, an axis as long as it has 8 (as nnU-Net); features double from 32 up to 320"


def _normalization(fingerprint: Fingerprint, box_share: float) -> str:
    zeros = float(np.median(fingerprint.per_case("zero_share")))
    medians = [case.intensity[0] for case in fingerprint.cases if case.intensity and case.intensity[0] is not None]
    scale = (
        f"; medians of the structures' intensity go from {min(medians):.3g} to {max(medians):.3g}" if medians else ""
    )
    if box_share < MASKED_BOX:
        start = (
            f"over voxels that are not 0: images are masked, {100 * zeros:.0f} % of them is exactly 0 and what is not "
            f"lies in {100 * box_share:.0f} % of the volume (limit 75 %, as nnU-Net)"
        )
    else:
        start = (
            f"over all voxels: no mask, what is not exactly 0 spans {100 * box_share:.0f} % of the volume "
            "(limit 75 %, as nnU-Net)"
        )
    return f"zero mean, unit variance {start}{scale}"


def _paths(datalist: Datalist, data_root: Path | None) -> list[tuple[str, Any, str]]:
    """Return where the data lie, from the current folder: configs hold no absolute paths."""
    start = "null: the datalist's own" if data_root is None else "as given to `droseg bundle new`"
    # The name as Python text without what MONAI reads as a reference.
    name = repr("/" + datalist.path.name).replace("@", r"\x40").replace("#", r"\x23")
    where = "where the datalist of the plan lies, from the folder it was planned in; --dataset_dir gives another"
    return [
        ("dataset_dir", os.path.relpath(datalist.path.parent), where),
        ("datalist", f"$@dataset_dir + {name}", "the plan's; `droseg train --datalist` gives another"),
        (
            "data_root",
            None if data_root is None else os.path.relpath(data_root),
            f"folder that relative paths in the datalist start from; {start}",
        ),
    ]


def _notes(fingerprint: Fingerprint, fit: Fit, budget: Budget, shapes: Any, num_structures: int) -> list[str]:
    notes = []
    thick = thick_axes(fingerprint)
    if len(thick) > 1:
        counts = ", ".join(f"{axis} in {count}" for axis, count in thick.items())
        notes.append(
            f"slices are thick ({ANISOTROPY:g} times and more) along different axes: {counts} cases. One grid serves "
            "them badly; a plan for each orientation may do better."
        )
    for name in fingerprint.structures:
        if fingerprint.absent(name) > len(fingerprint.cases) / 2:
            notes.append(f"{name} is in {len(fingerprint.cases) - fingerprint.absent(name)} training cases only.")
    share = float(np.prod(fit.patch) / np.median(shapes, axis=0).prod())
    if fit.shrunk and share < LOW_RESOLUTION:
        notes.append(
            f"a patch holds {100 * share:.0f} % of the median image: below 25 %, nnU-Net would also train a network at "
            "low resolution, which is not planned here. More memory or a coarser spacing_mm gives more context."
        )
    largest = float(shapes.prod(axis=1).max())
    scores = largest * 4 * (len(fingerprint.channels) + 2 * (num_structures + 1) + 1)
    if budget.gpu and scores > budget.memory:
        notes.append(
            f"the largest training image, resampled, has {largest:.3g} voxels: scores of a whole one take "
            f"{scores / GIB:.1f} GB, more than the budget; validation may run out of memory. Crop such images."
        )
    if not budget.gpu:
        notes.append("no GPU here: how long a step takes on this CPU is seen by a first epochs=1 batches_per_epoch=5.")
    if not budget.gpu and budget.memory_given:
        notes.append(
            "num_workers and cache_rate are for this machine; on another one, with a GPU, set "
            f"num_workers={MOST_WORKERS}."
        )
    if fit.limit == "least":
        notes.append("even 2 patches hold more than 5 % of the training voxels: few data; expect overfitting.")
    return notes
