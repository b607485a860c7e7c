"""What the network says about a whole image, with what memory there is."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import torch
from monai.inferers import Inferer
from torch import Tensor

from droseg.inference.finishing import Finishing
from droseg.inference.memory import (
    GIB,
    SHORT_OF_TIME_OVERLAP,
    Plan,
    free_bytes,
    is_out_of_memory,
    no_memory,
    plans,
    release,
    window_needs,
)
from droseg.inference.native import EVIDENCE_BYTES
from droseg.inference.views import Views
from droseg.inference.windows import Network, SlidingWindow

T = TypeVar("T", bound="Taker")

logger = logging.getLogger("droseg.inference")

SHARE = 0.8
"""Of the free memory, what is planned with; the rest is for what is not foreseen."""


class Taker(Protocol):
    """What the scores go to, plane by plane."""

    def add(self, planes: slice, scores: Tensor, apart: Tensor | None = None) -> None:
        """Take scores (K, planes, w, d), and the disagreement of the views (planes, w, d) if there are several."""


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

    def __call__(self, image: Tensor, start: Callable[[], T], reserved_bytes: int = 0) -> tuple[T, bool]:
        """Return what took the scores of an image (C, h, w, d), and whether windows overlapped less than they should.

        Args:
            image: on the CPU.
            start: makes what takes the scores; called anew for each attempt.
            reserved_bytes: that it needs.

        Raises:
            ImageTooLargeError: if memory does not suffice even for one window at a time on the CPU.
        """
        first = self._first_plan(image, reserved_bytes)
        for plan in plans(first):
            if plan != first:
                logger.warning("out of memory; trying again with %s", plan)
            try:
                taker = start()
                self._sweep(image, plan, taker)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
            else:
                # A later image may be smaller, but most cases of a folder are alike.
                self._batch, self._stitch = plan.batch, plan.stitch if plan.device == self.device else self._stitch
                return taker, plan.less_overlap
            finally:
                self._place(self.device)
            taker = None  # type: ignore[assignment]
            release()
        raise no_memory(tuple(image.shape[1:]))

    def _first_plan(self, image: Tensor, reserved_bytes: int) -> Plan:
        """Return the largest batch that should fit, by what one window takes inside the network.

        Raises:
            ImageTooLargeError: if the probabilities themselves do not fit.
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
        evidence = 4 * num_scores * shape[0] * shape[1] * shape[2]
        least = min(evidence, EVIDENCE_BYTES) if self.finishing.splits else evidence
        least += reserved_bytes + (open_bytes if stitch.type == "cpu" else 0)
        if least > on_cpu:
            raise no_memory(shape, f"at least {least / GIB:.1f} GB are needed, {on_cpu / GIB:.1f} GB are free")
        left = free - (open_bytes if stitch == self.device else 0) - (least if self.device.type == "cpu" else 0)
        return Plan(max(min(self._batch, left // window_bytes), 1), self.device, stitch)

    def _free(self, device: torch.device) -> int:
        return int(SHARE * free_bytes(device) if self.memory_gb is None else self.memory_gb * GIB)

    def _place(self, device: torch.device) -> None:
        for network in self.views.networks:
            network.to(device)

    def _sweep(self, image: Tensor, plan: Plan, taker: Taker) -> None:
        if plan.device != self.device:
            self._place(plan.device)
        window = self.window.with_overlap(SHORT_OF_TIME_OVERLAP) if plan.less_overlap else self.window
        for planes, scores in window.sweep(image, self.views, batch=plan.batch, device=plan.device, stitch=plan.stitch):
            if self.views.count > 1:
                taker.add(planes, scores[:-1], scores[-1])
            else:
                taker.add(planes, scores)


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
