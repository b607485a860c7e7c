"""What the network says about a whole image, with what memory there is."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from monai.inferers import Inferer
from torch import Tensor

from droseg.inference.finishing import Finishing
from droseg.inference.grid import Box
from droseg.inference.memory import (
    GIB,
    SHORT_OF_TIME_OVERLAP,
    Plan,
    free_bytes,
    is_out_of_memory,
    plans,
    release,
    window_needs,
)
from droseg.inference.reading import ImageError
from droseg.inference.views import Views
from droseg.inference.windows import Network, SlidingWindow

logger = logging.getLogger("droseg.inference")

EXACT_BYTES = 3 * GIB // 2
"""Probabilities that take more than this are kept in float16: labels differ where two are equal within 0.05 %."""
SHARE = 0.8
"""Of the free memory, what is planned with; the rest is for what is not foreseen."""


@dataclass(frozen=True)
class Scores:
    """What the network says about an image, on the network's grid.

    Attributes:
        values: (K, h, w, d) on the CPU: probabilities, float32 or float16, if the bundle's postprocessing can be
            split; else the network's scores, float32.
        foreground: the smallest box around all that is not background; None if all of it is.
        disagreement: of the views, mean over the foreground (over all where there is none); None for one view.
        less_overlap: the windows overlapped by less than the bundle says, for want of memory on the GPU.
    """

    values: Tensor
    foreground: Box | None
    disagreement: float | None
    less_overlap: bool


class Scorer:
    """Runs the views over an image; where memory is short, with fewer windows at a time, or beside the GPU.

    Args:
        views: the networks.
        window: that slides over the image.
        finishing: what is to become of the scores.
        batch: windows at a time, at most.
        device: where the networks are.
        channels: of the image.
        memory_gb: what one case may take, in GiB; None: what is free.
    """

    def __init__(
        self,
        views: Views,
        window: SlidingWindow | WholeImage,
        finishing: Finishing,
        *,
        batch: int,
        device: torch.device,
        channels: int,
        memory_gb: float | None = None,
    ) -> None:
        self.views = views
        self.window = window
        self.finishing = finishing
        self.device = device
        self.memory_gb = memory_gb
        self._channels = channels
        self._batch, self._stitch = batch, device
        self._needs: dict[tuple[int, ...], tuple[int, int] | None] = {}

    def __call__(self, image: Tensor, reserved_bytes: int = 0) -> Scores:
        """Return the scores of an image (C, h, w, d).

        Args:
            image: on the CPU.
            reserved_bytes: that the caller is going to need besides.

        Raises:
            ImageError: if memory does not suffice even for one window at a time on the CPU.
        """
        first = self._first_plan(image, reserved_bytes)
        for plan in plans(first):
            if plan != first:
                logger.warning("out of memory; trying again with %s", plan)
            try:
                scores = self._sweep(image, plan)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
            else:
                # A later image may be smaller, but most cases of a folder are alike.
                self._batch, self._stitch = plan.batch, plan.stitch if plan.device == self.device else self._stitch
                return scores
            finally:
                self._place(self.device)
            release()
        raise no_memory(tuple(image.shape[1:]))

    def _first_plan(self, image: Tensor, reserved_bytes: int) -> Plan:
        """Return the largest batch that should fit, by what one window takes inside the network.

        Raises:
            ImageError: if the probabilities themselves do not fit.
        """
        shape = tuple(image.shape[1:])
        roi = self.window.roi_size(shape)
        if roi not in self._needs:
            self._needs[roi] = window_needs(self.views.networks[0], self._channels, roi)
        needs = self._needs[roi]
        if needs is None:
            return Plan(self._batch, self.device, self._stitch)
        window_bytes, num_scores = needs
        free = self._free(self.device)
        open_bytes = 4 * (num_scores + 2) * max(roi[0], 1) * max(shape[1], roi[1]) * max(shape[2], roi[2])
        stitch = torch.device("cpu") if self.device.type == "cuda" and open_bytes > free // 2 else self._stitch
        on_cpu = self._free(torch.device("cpu"))
        least = 2 * num_scores * shape[0] * shape[1] * shape[2] + reserved_bytes
        least += open_bytes if stitch.type == "cpu" else 0
        if least > on_cpu:
            raise no_memory(shape, f"at least {least / GIB:.1f} GB are needed, {on_cpu / GIB:.1f} GB are free")
        left = free - (open_bytes if stitch == self.device else 0) - (least if self.device.type == "cpu" else 0)
        return Plan(max(min(self._batch, left // window_bytes), 1), self.device, stitch)

    def _free(self, device: torch.device) -> int:
        return int(SHARE * free_bytes(device) if self.memory_gb is None else self.memory_gb * GIB)

    def _place(self, device: torch.device) -> None:
        for network in self.views.networks:
            network.to(device)

    def _sweep(self, image: Tensor, plan: Plan) -> Scores:
        if plan.device != self.device:
            self._place(plan.device)
        window = self.window.with_overlap(SHORT_OF_TIME_OVERLAP) if plan.less_overlap else self.window
        several, splits = self.views.count > 1, self.finishing.splits
        values: Tensor | None = None
        box, apart = _BoundingBox(), _MeanOver()
        for planes, scores in window.sweep(image, self.views, batch=plan.batch, device=plan.device, stitch=plan.stitch):
            kept = scores[:-1] if several else scores
            kept = self.finishing.probabilities(kept) if splits else kept
            if values is None:
                values = torch.empty((len(kept), *image.shape[1:]), dtype=self._type(len(kept), image))
            values[:, planes] = kept
            inside = self.finishing.is_foreground(kept) if splits else kept.argmax(0) > 0
            box.add(inside, planes.start)
            if several:
                apart.add(scores[-1], inside)
        if values is None:
            raise ValueError("an image without voxels.")
        return Scores(values, box.box(), apart.mean() if several else None, window != self.window)

    def _type(self, num_scores: int, image: Tensor) -> torch.dtype:
        size = 4 * num_scores * image[0].numel()
        exact = size <= min(EXACT_BYTES, self._free(torch.device("cpu")) // 2)
        return torch.float32 if exact or not self.finishing.splits else torch.float16


@dataclass(frozen=True)
class WholeImage:
    """Any other inferer of a bundle than MONAI's plain sliding window: it runs as it is, over the whole image."""

    inferer: Inferer

    def with_overlap(self, at_most: float) -> WholeImage:
        """Return the same."""
        return self

    def roi_size(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Return the shape of the image: what is in memory at a time."""
        return shape

    def sweep(
        self, image: Tensor, network: Network, *, batch: int, device: torch.device, stitch: torch.device
    ) -> Iterator[tuple[slice, Tensor]]:
        """Yield all planes at once; see `SlidingWindow.sweep`."""
        scores: Any = self.inferer(image[None].to(device), network)
        yield slice(0, image.shape[1]), scores[0].float().to(stitch)


class _BoundingBox:
    def __init__(self) -> None:
        self._low: list[int] = []
        self._high: list[int] = []

    def add(self, inside: Tensor, first_plane: int) -> None:
        if not bool(inside.any()):
            return
        lows, highs = [], []
        for axis, start in enumerate((first_plane, 0, 0)):
            where = inside.any(dim=[other for other in range(3) if other != axis]).nonzero().flatten()  # type: ignore[call-overload]
            lows.append(start + int(where[0]))
            highs.append(start + int(where[-1]) + 1)
        self._low = list(map(min, self._low, lows)) if self._low else lows
        self._high = list(map(max, self._high, highs)) if self._high else highs

    def box(self) -> Box | None:
        if not self._low:
            return None
        return tuple(slice(low, high) for low, high in zip(self._low, self._high, strict=True))  # type: ignore[return-value]


class _MeanOver:
    """Mean of values over the foreground, and over all where there is none."""

    def __init__(self) -> None:
        self._sums = {"inside": 0.0, "all": 0.0}
        self._counts = {"inside": 0, "all": 0}

    def add(self, values: Tensor, inside: Tensor) -> None:
        for name, chosen in (("inside", values[inside]), ("all", values)):
            self._sums[name] += float(chosen.sum(dtype=torch.float64))
            self._counts[name] += chosen.numel()

    def mean(self) -> float:
        name = "inside" if self._counts["inside"] else "all"
        return self._sums[name] / max(self._counts[name], 1)


def no_memory(shape: tuple[int, ...], why: str = "one window at a time on the CPU is too much") -> ImageError:
    """Return the error of an image that does not fit, shape (h, w, d) in voxels."""
    return ImageError(
        f"out of memory for {' x '.join(map(str, shape))} voxels ({why})",
        "crop the image, close other programs, or use a machine with more memory",
    )
