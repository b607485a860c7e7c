"""A bundle's `postprocessing` on a memory budget: what works voxel by voxel runs on a few planes at a time."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import takewhile
from typing import Any, Literal

import torch
from monai.transforms import Activationsd, AsDiscreted, CastToTyped, EnsureTyped, Invertd, MapLabelValued, SaveImaged
from torch import Tensor

from droseg.keys import PRED

VOXELWISE = (Activationsd, AsDiscreted, MapLabelValued, CastToTyped, EnsureTyped)
"""MONAI's transforms whose value at a voxel depends on the channels there and on nothing else."""


class Finishing:
    """The transforms of `postprocessing` on both sides of its `Invertd`.

    `SaveImaged` is left out. The list can be split if all before `Invertd`, and at least an `AsDiscreted` right after
    it, is voxel by voxel: in `VOXELWISE`, or with an attribute `voxelwise = True` (say, one that makes a label map of
    overlapping regions). Then `before` runs on planes of the network's grid, `Invertd` is done by affines, `after`
    runs on planes of the image's own grid, and `last` on the whole label map. Else `whole` runs as it stands.

    Attributes:
        splits: whether the list can be split.
        activation: the one that an `Activationsd` before the argmax names; None if none does.
    """

    def __init__(self, transforms: Sequence[Any]) -> None:
        self.whole = [transform for transform in transforms if not isinstance(transform, SaveImaged)]
        places = [index for index, each in enumerate(self.whole) if isinstance(each, Invertd)]
        where = places[0] if len(places) == 1 else len(self.whole)
        self.before, rest = self.whole[:where], self.whole[where + 1 :]
        self.after = list(takewhile(_voxelwise, rest))
        self.last = rest[len(self.after) :]
        self.splits = (
            len(places) == 1
            and tuple(self.whole[where].keys) == (PRED,)
            and not any(self.whole[where].nearest_interp)
            and not any(map(callable, self.whole[where].post_func))
            and all(map(_voxelwise, self.before))
            and bool(self.after)
            and isinstance(self.after[0], AsDiscreted)
        )
        self.activation = _activation(self.whole)

    def probabilities(self, scores: Tensor) -> Tensor:
        """Return what the transforms before `Invertd` make of scores (K, h, w, d)."""
        return _run(self.before, scores)

    def is_foreground(self, probabilities: Tensor) -> Tensor:
        """Return where the discrete classes are not the background, (h, w, d)."""
        return (_run(self.after[:1], probabilities) != 0).any(dim=0)

    def labels(self, probabilities: Tensor) -> Tensor:
        """Return the label values of probabilities (K, h, w, d) on the image's grid, (1, h, w, d)."""
        return _run(self.after, probabilities)

    def background(self, num_scores: int) -> float:
        """Return the label value of a voxel that is surely background."""
        surely = torch.zeros((num_scores, 1, 1, 1))
        if self.activation == "softmax":
            surely[0] = 1.0
        return float(self.labels(surely).flatten()[0])


def _voxelwise(transform: Any) -> bool:
    if isinstance(transform, Activationsd) and any(map(callable, transform.other)):
        return False
    return isinstance(transform, VOXELWISE) or bool(getattr(transform, "voxelwise", False))


def _run(transforms: Sequence[Any], values: Tensor) -> Tensor:
    item: dict[Any, Any] = {PRED: values}
    for transform in transforms:
        item = transform(item)
    found = item[PRED]
    return found.as_tensor() if hasattr(found, "as_tensor") else torch.as_tensor(found)


def _activation(transforms: Sequence[Any]) -> Literal["softmax", "sigmoid"] | None:
    for transform in transforms:
        if isinstance(transform, Activationsd):
            if any(transform.softmax):
                return "softmax"
            return "sigmoid" if any(transform.sigmoid) else None
    return None
