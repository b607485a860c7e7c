"""The largest patch, with the network for it, that the memory holds twice; then the batch size. As nnU-Net does."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from droseg.errors import InputError
from droseg.inference.memory import GIB
from droseg.plan.memory import CONTEXT_BYTES
from droseg.plan.topology import MIN_EDGE, Topology, find_topology

MIN_BATCH = 2
LARGEST = 256
"""A patch starts with the volume of a cube of this edge, at most (nnU-Net 2.8.1)."""
MOST_OF_DATA = 0.05
"""Of the voxels of the training set that one batch may hold, against overfitting (nnU-Net 2.8.1)."""

StepBytes = Callable[[Topology, int], int]
"""(network and patch, batch size) -> bytes of a training."""


@dataclass(frozen=True)
class Fit:
    """A network, its patch and its batch.

    Attributes:
        needed: bytes of a training, without a process' own.
        shrunk: whether the memory made the patch smaller than the median image, or the network shallower.
        limit: what bounds the batch size: "memory", "data", "cases" or "least" (more than the data allow).
    """

    topology: Topology
    batch_size: int
    needed: int
    shrunk: bool
    limit: str

    @property
    def patch(self) -> tuple[int, ...]:
        """Voxels per axis."""
        return self.topology.patch


def fit_patch(
    spacing_mm: Sequence[float],
    median_shape: Sequence[float],
    num_cases: int,
    num_voxels: float,
    memory: int,
    step_bytes: StepBytes,
) -> Fit:
    """Return what `ExperimentPlanner.get_plans_for_configuration` of nnU-Net 2.8.1 does, with a measured memory.

    Args:
        spacing_mm: of the resampled images.
        median_shape: of what is in them, in voxels.
        num_cases: for training.
        num_voxels: of all training cases together.
        memory: bytes.
        step_bytes: what a training takes.
    Raises:
        InputError: if the images are too small for a U-Net, or the memory for the smallest patch.
    """
    aspect = 1 / np.asarray(spacing_mm, dtype=float)
    start = np.minimum(np.rint(aspect * (LARGEST**3 / aspect.prod()) ** (1 / 3)), median_shape)
    topology = find_topology(spacing_mm, [int(edge) for edge in start])
    if not topology.strides:
        shown = " x ".join(f"{edge:.0f}" for edge in median_shape)
        raise InputError(
            f"the median training image has {shown} voxels at the target spacing; a U-Net halves an axis of "
            f"{2 * MIN_EDGE} voxels at least. Are the labels those of crops, or the spacings in the headers wrong?"
        )
    needed, first = step_bytes(topology, MIN_BATCH), topology
    while needed > memory:
        smaller = _smaller(topology, spacing_mm, median_shape)
        if smaller is None:
            shown = " x ".join(map(str, topology.patch))
            raise InputError(
                f"{(memory + CONTEXT_BYTES) / GIB:.2f} GB are too little: the smallest patch, {MIN_BATCH} x {shown} "
                f"voxels, takes {(needed + CONTEXT_BYTES) / GIB:.2f} GB to train. Give at least that by --memory-gb, "
                "free some memory, or use another machine."
            )
        topology = smaller
        needed = step_bytes(topology, MIN_BATCH)
    more = max(step_bytes(topology, 2 * MIN_BATCH) - needed, 1)
    limits = {
        "memory": MIN_BATCH + int((memory - needed) / more * MIN_BATCH),
        "data": round(num_voxels * MOST_OF_DATA / float(np.prod(topology.patch))),
        "cases": num_cases,
    }
    limit = min(limits, key=lambda name: limits[name])
    batch_size = max(limits[limit], MIN_BATCH)
    if limits[limit] < MIN_BATCH:
        limit = "least"
    return Fit(topology, batch_size, step_bytes(topology, batch_size), topology != first, limit)


def _smaller(topology: Topology, spacing_mm: Sequence[float], median_shape: Sequence[float]) -> Topology | None:
    """Return the next smaller patch with its network: less of the axis that covers most of the image; None if none."""
    shares = np.array(topology.patch) / np.asarray(median_shape, dtype=float)
    for axis in np.argsort(-shares, kind="stable"):
        patch = list(topology.patch)
        patch[axis] -= topology.divisor[axis]
        if patch[axis] < 2 * MIN_EDGE:
            continue
        # A smaller patch may be halved less often and then be cut more finely: 224 lies between 256 and 192.
        finer = find_topology(spacing_mm, patch).divisor[axis]
        patch[axis] = topology.patch[axis] - finer
        found = find_topology(spacing_mm, patch)
        if found.strides and np.prod(found.patch) < np.prod(topology.patch):
            return found
    return None
