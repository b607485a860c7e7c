"""How much memory is free, what to try when there is too little, and how to tell that there was."""

from __future__ import annotations

import copy
import gc
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import psutil
import torch
from torch import Tensor, nn

from droseg.inference.reading import ImageError

GIB = 1 << 30
CGROUPS = (
    ("memory.max", "memory.current", "memory.stat", "inactive_file"),
    ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "memory/memory.stat", "total_inactive_file"),
)
SHORT_OF_TIME_OVERLAP = 0.25
"""Of the windows where a CPU takes over from a GPU: a third of the windows of an overlap of a half."""


@dataclass(frozen=True)
class Plan:
    """How one sweep over an image runs.

    Attributes:
        batch: windows at a time.
        device: where the network runs.
        stitch: where the windows' scores are blended.
        less_overlap: the windows overlap by `SHORT_OF_TIME_OVERLAP` at most.
    """

    batch: int
    device: torch.device
    stitch: torch.device
    less_overlap: bool = False

    def __str__(self) -> str:
        where = f"{self.device}" + (f", blended on {self.stitch}" if self.stitch != self.device else "")
        return f"{self.batch} window{'s' * (self.batch > 1)} at a time on {where}"


def plans(first: Plan) -> Iterator[Plan]:
    """Yield what to try: fewer windows at a time, blending beside the CPU, and at last all of it on the CPU."""
    plan = first
    yield plan
    while plan.batch > 1:
        plan = replace(plan, batch=plan.batch // 2)
        yield plan
    cpu = torch.device("cpu")
    if plan.stitch != cpu:
        plan = replace(plan, stitch=cpu)
        yield plan
    if plan.device != cpu:
        yield replace(plan, device=cpu, less_overlap=True)


class ImageTooLargeError(ImageError):
    """An image that does not fit into the memory that is free."""


def no_memory(shape: tuple[int, ...], why: str = "one window at a time on the CPU is too much") -> ImageTooLargeError:
    """Return the error of an image that does not fit, shape (h, w, d) in voxels."""
    return ImageTooLargeError(
        f"out of memory for {' x '.join(map(str, shape))} voxels ({why})",
        "crop the image, close other programs, or use a machine with more memory",
    )


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error says that memory ran out, on a GPU, in PyTorch or in Python."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError | ImageTooLargeError):
        return True
    text = str(error)
    # oneDNN says so in its own words when it cannot set up a convolution's scratch memory.
    return isinstance(error, RuntimeError) and any(
        words in text for words in ("can't allocate memory", "out of memory", "could not create a memory object")
    )


def release() -> None:
    """Give back what a failed attempt held; call it where its exception is gone, for that holds its tensors."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def free_bytes(device: torch.device) -> int:
    """Return how much memory a new allocation can take there, also inside a container with a limit."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        held = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(free + held)
    available = int(psutil.virtual_memory().available)
    left = _container_left(Path("/sys/fs/cgroup"))
    return available if left is None else min(available, left)


def _container_left(folder: Path) -> int | None:
    """Return how much a container's memory limit leaves, files that it would drop counted; None without a limit."""
    for limit, used, statistics, droppable in CGROUPS:
        try:
            most = (folder / limit).read_text().strip()
            if most == "max":
                return None
            lines = (line.split() for line in (folder / statistics).read_text().splitlines())
            cached = next((int(count) for name, count in lines if name == droppable), 0)
            return max(int(most) - int((folder / used).read_text()) + cached, 0)
        except (OSError, ValueError):
            continue
    return None


def window_needs(network: nn.Module, channels: int, roi_size: tuple[int, ...]) -> tuple[int, int] | None:
    """Return (bytes that one window takes inside the network, its channels of scores); None where it cannot be told.

    The bytes are twice the two largest outputs of its layers together: a layer's input, output and scratch memory, and
    a skip connection. Found on PyTorch's `meta` device, which computes shapes and no values.
    """
    sizes: list[int] = []

    def note(_module: nn.Module, _inputs: object, output: object) -> None:
        if isinstance(output, Tensor):
            sizes.append(output.numel() * 4)

    try:
        twin = copy.deepcopy(network).to("meta")
        for module in twin.modules():
            module._forward_pre_hooks.clear()  # a caller's hooks want values
            module._forward_hooks.clear()
            module.register_forward_hook(note)
        with torch.no_grad():
            scores = twin(torch.empty((1, channels, *roi_size), device="meta"))
    except (RuntimeError, NotImplementedError, TypeError, ValueError):  # a network that looks at values
        return None
    return (2 * sum(sorted(sizes)[-2:]), int(scores.shape[1])) if isinstance(scores, Tensor) else None
