"""From planes of scores on the network's grid to a label map on the image's own, while the planes come in."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from numpy.typing import DTypeLike, NDArray
from torch import Tensor

from droseg.errors import BundleError
from droseg.inference.finishing import Finishing
from droseg.inference.grid import Box, reach, resample_box, slabs, target_axes

EVIDENCE_BYTES = 3 << 29
"""The probabilities that quality flags are made from are thinned out until they take no more than 1.5 GiB."""


class NativeGrid:
    """The label map of one image; only those planes are in memory that later ones are interpolated with.

    Args:
        finishing: a postprocessing that can be split.
        to_source: voxel index of the image -> voxel index of the network's grid, (4, 4).
        source_shape: of the network's grid.
        shape: of the image.
        dtype: of the label map.
        probabilities: keep them, too, on the image's grid.

    Attributes:
        labels: (H, W, D); complete when the last plane was added.
        probabilities: (K, H, W, D) float16, or None.
        evidence: probabilities on the network's grid, every `step`-th voxel of each axis, (K, h, w, d) float32.
        step: 1 unless the grid is very large.
        disagreement: mean over the foreground, over all where there is none; None if it was never given.
    """

    def __init__(
        self,
        finishing: Finishing,
        to_source: NDArray[np.float64],
        source_shape: tuple[int, ...],
        shape: tuple[int, ...],
        dtype: DTypeLike,
        probabilities: bool,
    ) -> None:
        self.labels: NDArray[Any] = np.zeros(shape, dtype)
        self.probabilities: NDArray[Any] | None = None
        self.evidence = torch.empty(0)
        self.step = 1
        self._finishing, self._to_source = finishing, to_source
        self._source_shape, self._shape = source_shape, shape
        self._wanted = probabilities
        axes = target_axes(to_source)
        self._axis = None if axes is None else axes[0]
        self._places = self._plane_places()
        self._made = 0
        self._first = 0
        self._kept: Tensor | None = None
        self._inside = torch.empty(0)
        self._apart = _MeanOver()

    @property
    def disagreement(self) -> float | None:
        """Mean of the views' disagreement."""
        return self._apart.mean()

    def add(self, planes: slice, scores: Tensor, apart: Tensor | None = None) -> None:
        """Take the next planes of the network's grid, from the first to the last, and make what can be made of them.

        Args:
            planes: of the network's grid, along its first axis.
            scores: (K, planes, w, d), on any device.
            apart: disagreement of the views, (planes, w, d).
        """
        values = self._finishing.probabilities(scores)
        inside = self._finishing.is_foreground(values)
        if apart is not None:
            self._apart.add(apart, inside)
        values, inside = values.cpu(), inside.cpu()
        if self._kept is None:
            self._start(len(values))
            self._kept, self._inside = values, inside
        else:
            self._kept = torch.cat([self._kept, values], dim=1)
            self._inside = torch.cat([self._inside, inside])
        chosen = range(-planes.start % self.step, planes.stop - planes.start, self.step)
        if chosen:
            first = (planes.start + chosen[0]) // self.step
            thin = values[:, chosen[0] :: self.step, :: self.step, :: self.step]
            self.evidence[:, first : first + len(chosen)] = thin
        self._make(planes.stop)

    def _start(self, num_scores: int) -> None:
        while 4 * num_scores * math.prod(-(-size // self.step) for size in self._source_shape) > EVIDENCE_BYTES:
            self.step += 1
        self.evidence = torch.empty((num_scores, *(-(-size // self.step) for size in self._source_shape)))
        self.labels[...] = round(self._finishing.background(num_scores))
        if self._wanted:
            self.probabilities = np.empty((num_scores, *self._shape), np.float16)

    def _plane_places(self) -> NDArray[np.float64]:
        """Return where the image's planes across the network's first axis lie on it, in ascending order."""
        if self._axis is None:
            return np.zeros(1)  # oblique to each other: all at once, at the end
        index = np.arange(self._shape[self._axis])
        places = index * self._to_source[0, self._axis] + self._to_source[0, 3]
        return np.sort(places.clip(0, self._source_shape[0] - 1))

    def _make(self, stop: int) -> None:
        """Make the image's planes that lie between planes up to `stop`, and let go of what no later one needs."""
        last = stop == self._source_shape[0]
        if self._axis is None:
            ready = len(self._places) if last else 0
        else:
            ready = len(self._places) if last else int(np.searchsorted(self._places, stop - 1, side="right"))
        if ready > self._made:
            self._interpolate(self._planes(self._made, ready))
            self._made = ready
        if self._axis is not None and self._made < len(self._places) and self._kept is not None:
            needed = max(math.floor(self._places[self._made]), self._first)
            needed = min(needed, stop - 1)
            self._kept = self._kept[:, needed - self._first :].clone()
            self._inside = self._inside[needed - self._first :].clone()
            self._first = needed

    def _planes(self, start: int, stop: int) -> Box:
        """Return the box of the image's planes, numbered by where they lie."""
        box = [slice(0, size) for size in self._shape]
        if self._axis is not None:
            size = self._shape[self._axis]
            ascends = self._to_source[0, self._axis] > 0
            box[self._axis] = slice(start, stop) if ascends else slice(size - stop, size - start)
        return box[0], box[1], box[2]

    def _interpolate(self, box: Box) -> None:
        if self._kept is None:
            return
        shift = np.eye(4)
        shift[0, 3] = -self._first
        to_kept = shift @ self._to_source
        # Where all neighbors on the network's grid are background, so is what lies between them: the means of
        # vectors that are largest in one component, or below a threshold, are so, too.
        if self.probabilities is None:
            around = bounding_box(self._inside)
            if around is None:
                return
            box = _common(box, reach(around, self._inside.shape, to_kept, self._shape))
        for slab in slabs(box):
            found = resample_box(self._kept, to_kept, slab)
            if found.numel() == 0:
                continue
            if self.probabilities is not None:
                self.probabilities[(slice(None), *slab)] = found.numpy()
            self.labels[slab] = integers(self._finishing.labels(found), tuple(found.shape[1:]))


class WholeGrid:
    """The scores of the network as they are, for a postprocessing that runs in one piece; float32.

    Attributes:
        scores: (K, h, w, d) on the CPU.
        disagreement: as `NativeGrid`; the foreground is where the first score is not the largest, of overlapping
            regions where any score is above 0.
    """

    def __init__(self, source_shape: tuple[int, ...], overlapping: bool = False) -> None:
        self._overlapping = overlapping
        self.scores = torch.empty(0)
        self._shape = source_shape
        self._apart = _MeanOver()

    @property
    def disagreement(self) -> float | None:
        """Mean of the views' disagreement."""
        return self._apart.mean()

    def add(self, planes: slice, scores: Tensor, apart: Tensor | None = None) -> None:
        """Take the next planes; see `NativeGrid.add`."""
        if planes.start == 0:
            self.scores = torch.empty((len(scores), *self._shape))
        self.scores[:, planes] = scores.cpu()
        if apart is not None:
            self._apart.add(apart, (scores > 0).any(0) if self._overlapping else scores.argmax(0) > 0)


def integers(pred: Any, shape: tuple[int, ...]) -> NDArray[Any]:
    """Return label values (1, *shape), floats that are whole numbers, as an array (*shape).

    Raises:
        BundleError: if it has another shape.
    """
    if tuple(pred.shape) != (1, *shape):
        raise BundleError(
            f"configs/inference.yaml: postprocessing gives shape {tuple(pred.shape)} for {shape} voxels; "
            "it must invert the preprocessing and give one label value per voxel."
        )
    return np.rint(np.asarray(pred.cpu())[0])


def bounding_box(inside: Tensor) -> Box | None:
    """Return the smallest box around what is true in a mask (h, w, d); None if nothing is."""
    sides = []
    for axis in range(3):
        others = tuple(other for other in range(3) if other != axis)
        where = inside.any(dim=others).nonzero().flatten()
        if not len(where):
            return None
        sides.append(slice(int(where[0]), int(where[-1]) + 1))
    return sides[0], sides[1], sides[2]


def _common(first: Box, second: Box) -> Box:
    sides = [slice(max(a.start, b.start), min(a.stop, b.stop)) for a, b in zip(first, second, strict=True)]
    sides = [slice(side.start, max(side.start, side.stop)) for side in sides]
    return sides[0], sides[1], sides[2]


class _MeanOver:
    """Mean of values over the foreground, and over all where there is none."""

    def __init__(self) -> None:
        self._sums = {"inside": 0.0, "all": 0.0}
        self._counts = {"inside": 0, "all": 0}

    def add(self, values: Tensor, inside: Tensor) -> None:
        for name, chosen in (("inside", values[inside]), ("all", values)):
            self._sums[name] += float(chosen.sum(dtype=torch.float64))
            self._counts[name] += chosen.numel()

    def mean(self) -> float | None:
        name = "inside" if self._counts["inside"] else "all"
        return self._sums[name] / self._counts[name] if self._counts[name] else None
