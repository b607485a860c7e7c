"""A window that slides over an image, and its blended scores plane by plane: only the open planes are in memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import groupby

import torch
from monai.data.utils import compute_importance_map, dense_patch_slices
from monai.inferers import SlidingWindowInferer
from monai.utils import ensure_tuple_rep, fall_back_tuple
from torch import Tensor
from torch.nn.functional import pad

from droseg.inference.grid import slabs

Network = Callable[[Tensor], Tensor]
Window = tuple[slice, slice, slice]

FINISHED_VOXELS = 1 << 20
"""That are given away at a time: what follows makes several copies of them."""
REMEMBERED = 4
"""Values whose constant windows are answered from memory; an image has one background, and few other such places."""


@dataclass(frozen=True)
class SlidingWindow:
    """Scores of a whole image from a network that sees windows; the same numbers as MONAI's `SlidingWindowInferer`.

    MONAI's holds the scores of the whole image in float32, three times with the steps that follow. Here the planes
    that no later window touches are given away at once.

    Attributes:
        inferer: whose settings are used.
        overlap: of neighbors, as a fraction of the window, per axis.
        skip_constant: run the network once for all windows of one constant value (air, or a mask's background);
            what it says about them is the same every time, so that the scores are what they are without.
    """

    inferer: SlidingWindowInferer
    overlap: tuple[float, ...]
    skip_constant: bool = True

    @classmethod
    def of(
        cls, inferer: SlidingWindowInferer, overlap: float | None = None, skip_constant: bool = True
    ) -> SlidingWindow:
        """Return the window of an inferer; `overlap` in place of its own."""
        own = inferer.overlap if overlap is None else overlap
        axes = tuple(float(value) for value in ensure_tuple_rep(own, 3))
        return cls(inferer, axes, skip_constant)

    def with_overlap(self, at_most: float) -> SlidingWindow:
        """Return the window with no more overlap than this."""
        return replace(self, overlap=tuple(min(value, at_most) for value in self.overlap))

    def roi_size(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Return the window's size for an image of this shape, (3,)."""
        return tuple(int(size) for size in fall_back_tuple(self.inferer.roi_size, shape))

    def windows(self, shape: tuple[int, ...]) -> list[Window]:
        """Return where the windows lie, for an image that is at least as large as one; by their first plane."""
        roi = self.roi_size(shape)
        # The interval of MONAI's inferer.
        interval = [
            size if size == full else max(int(size * (1 - share)), 1)
            for size, full, share in zip(roi, shape, self.overlap, strict=True)
        ]
        return dense_patch_slices(shape, roi, interval)  # type: ignore[return-value]

    def sweep(
        self, image: Tensor, network: Network, *, batch: int, device: torch.device, stitch: torch.device
    ) -> Iterator[tuple[slice, Tensor]]:
        """Yield (planes of the first axis, scores (K, planes, w, d) float32 on `stitch`), from first to last.

        Args:
            image: (C, h, w, d), anywhere.
            network: windows (B, C, *roi) -> scores (B, K, *roi).
            batch: windows per call, at most.
            device: where the network runs.
            stitch: where the scores are blended.
        """
        shape = tuple(image.shape[1:])
        roi = self.roi_size(shape)
        before = [max(size - full, 0) // 2 for size, full in zip(roi, shape, strict=True)]
        padded = self._padded(image, roi, before)
        inner = tuple(slice(start, start + size) for start, size in zip(before, shape, strict=True))
        answer = _Answers(network, device, self.skip_constant)
        weight = compute_importance_map(
            roi, mode=self.inferer.mode, sigma_scale=self.inferer.sigma_scale, device=stitch, dtype=torch.float32
        )
        open_planes: _OpenPlanes | None = None
        full = tuple(padded.shape[1:])
        groups = [list(group) for _, group in groupby(self.windows(full), key=lambda window: window[0].start)]
        for number, group in enumerate(groups):
            for first in range(0, len(group), batch):
                part = group[first : first + batch]
                scores = answer(torch.stack([padded[(slice(None), *window)] for window in part])).to(stitch)
                if open_planes is None:
                    open_planes = _OpenPlanes(scores.shape[1], (roi[0], *full[1:]), stitch)
                for window, each in zip(part, scores, strict=True):
                    open_planes.add(window, each, weight)
            if open_planes is None:
                return
            start = group[0][0].start
            stop = groups[number + 1][0][0].start if number + 1 < len(groups) else full[0]
            inside = (slice(max(start, inner[0].start), min(stop, inner[0].stop)), inner[1], inner[2])
            for part_of in slabs(inside, FINISHED_VOXELS):
                planes = part_of[0]
                means = open_planes.means(slice(planes.start - start, planes.stop - start))
                yield slice(planes.start - before[0], planes.stop - before[0]), means[:, :, inner[1], inner[2]]
            open_planes.close(stop - start)

    def _padded(self, image: Tensor, roi: tuple[int, ...], before: list[int]) -> Tensor:
        """Return an image that is at least as large as the window, padded as the inferer pads."""
        amounts: list[int] = []
        for size, full, start in reversed(list(zip(roi, image.shape[1:], before, strict=True))):
            amounts += [start, max(size - full, 0) - start]
        if not any(amounts):
            return image
        mode = str(getattr(self.inferer.padding_mode, "value", self.inferer.padding_mode))
        options = {"value": self.inferer.cval} if mode == "constant" else {}
        return pad(image[None], amounts, mode=mode, **options)[0]


class _OpenPlanes:
    """Weighted sums of the planes that windows still touch."""

    def __init__(self, num_scores: int, shape: tuple[int, ...], device: torch.device) -> None:
        self._sums = torch.zeros((num_scores, *shape), device=device)
        self._weights = torch.zeros(shape, device=device)

    def add(self, window: Window, scores: Tensor, weight: Tensor) -> None:
        """Add a window; the first open plane is the first of the window."""
        self._sums[:, :, window[1], window[2]] += scores * weight
        self._weights[:, window[1], window[2]] += weight

    def means(self, planes: slice) -> Tensor:
        """Return the weighted means of some planes, counted from the first open one, (K, planes, w, d)."""
        return self._sums[:, planes] / self._weights[planes]

    def close(self, count: int) -> None:
        """Forget the first planes, and open as many behind the last."""
        for sums, axis in ((self._sums, 1), (self._weights, 0)):
            left = sums.shape[axis] - count
            # Plane by plane towards the front: no copy of all of them, and no overlap of source and target.
            for plane in range(left):
                sums.select(axis, plane).copy_(sums.select(axis, plane + count))
            sums.narrow(axis, left, count).zero_()


class _Answers:
    """A network that is asked once about all windows that hold one and the same value."""

    def __init__(self, network: Network, device: torch.device, skip_constant: bool) -> None:
        self._network = network
        self._device = device
        self._skip = skip_constant
        self._known: dict[tuple[float, ...], Tensor] = {}

    def __call__(self, windows: Tensor) -> Tensor:
        """Return the scores of windows (B, C, *roi), (B, K, *roi), on the network's device."""
        if not self._skip:
            return self._network(windows.to(self._device))
        values = [_constant(window) for window in windows]
        ask: list[int] = []
        for index, value in enumerate(values):
            new = value is None or (value not in self._known and value not in [values[i] for i in ask])
            ask += [index] if new else []
        answers: dict[int, Tensor] = {}
        if ask:
            chosen = windows if len(ask) == len(windows) else windows[ask]
            answers = dict(zip(ask, self._network(chosen.to(self._device)), strict=True))
        for index, value in enumerate(values):
            if value is not None and value not in self._known and len(self._known) < REMEMBERED:
                self._known[value] = answers[index].clone()
        if len(ask) == len(windows):
            return torch.stack([answers[index] for index in range(len(windows))])
        found = []
        for index, value in enumerate(values):
            twin = next((i for i in ask if values[i] == value), index) if value is not None else index
            found.append(answers[twin] if twin in answers else self._known[value])  # type: ignore[index]
        return torch.stack(found)


def _constant(window: Tensor) -> tuple[float, ...] | None:
    """Return the value of each channel of a window (C, *roi) if it has only one, else None."""
    flat = window.flatten(1)
    if not bool((flat[:, 0] == flat[:, -1]).all()):  # most windows: no need to look at all of it
        return None
    low, high = flat.aminmax(dim=1)
    return tuple(low.tolist()) if bool((low == high).all()) else None
