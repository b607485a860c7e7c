"""Which process writes: handlers ask for the role, not for their position in a list."""

from __future__ import annotations

import contextlib
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

T = TypeVar("T")


def rank() -> int:
    """Return this process's rank; 0 without torch.distributed."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def world_size() -> int:
    """Return the number of processes; 1 without torch.distributed."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def is_writer() -> bool:
    """Return whether this process writes files, logs and progress."""
    return rank() == 0


def agree(value: T) -> T:
    """Return rank 0's value on every rank."""
    if world_size() == 1:
        return value
    values = [value]
    dist.broadcast_object_list(values, src=0)
    return values[0]


def gather_losses(indices: list[int], losses: Tensor) -> tuple[list[int], list[float]]:
    """Return the (index, loss) pairs of all ranks, in rank order, the same on every rank.

    One small all-gather; the identical order keeps the loss histories of all ranks bit-identical.

    Args:
        indices: row of each loss.
        losses: shape (B,), on the device that this rank trains on.
    """
    values = losses.detach().float().cpu().tolist()
    if world_size() == 1:
        return indices, values
    gathered: list[tuple[list[int], list[float]] | None] = [None] * world_size()
    # NCCL sends objects by the current CUDA device, which is cuda:0 on every rank unless somebody has set it.
    with torch.cuda.device(losses.device) if losses.is_cuda else contextlib.nullcontext():
        dist.all_gather_object(gathered, (indices, values))
    pairs = [pair for pair in gathered if pair is not None]
    return [i for pair in pairs for i in pair[0]], [loss for pair in pairs for loss in pair[1]]
