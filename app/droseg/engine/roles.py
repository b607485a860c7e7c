"""What the processes of one training or evaluation do together: who writes, what all agree on, who was lost."""

from __future__ import annotations

import contextlib
import logging
import os
import time
from collections.abc import Iterator
from datetime import timedelta
from functools import reduce
from operator import or_
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from droseg.engine.rank_watch import RankWatch
from droseg.errors import DrosegError, InputError

T = TypeVar("T")

RANK_TIMEOUT_S = 1800.0
PATIENT_S = 24 * 3600.0
"""For what rank 0 does while the others wait, such as reading all cases; if it ends, gloo notices at once."""
GLOO_ENDS_S = 0.2
"""In which gloo's threads free the tensors of the last exchange. They need the interpreter's lock for it, and a
DistributedDataParallel that outlives the group would hold that lock while it waits for them (pytorch issue 56297)."""

_watch: RankWatch | None = None
_patient_group: Any = None


class LostRankError(DrosegError):
    """Another process of this training or evaluation ended, or does not answer."""


def rank() -> int:
    """Return this process's rank; 0 without torch.distributed."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def world_size() -> int:
    """Return the number of processes; 1 without torch.distributed."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def is_writer() -> bool:
    """Return whether this process writes files, logs and progress."""
    return rank() == 0


def own_backend(device: torch.device | str) -> str:
    """Return the backend of torch.distributed for this device."""
    return "nccl" if torch.device(device).type == "cuda" else "gloo"


def join_ranks(backend: str, timeout_s: float = RANK_TIMEOUT_S) -> None:
    """Start torch.distributed among the processes that torchrun started.

    Args:
        backend: nccl for GPUs, gloo for CPUs.
        timeout_s: longest wait for another process that does not end but does not answer either, in a step or for its
            share of a validation; one that ended is noticed at once.
    Raises:
        InputError: if torchrun did not start this process, or a number of seconds is not positive.
    """
    global _watch, _patient_group
    missing = [name for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
    if missing:
        raise InputError(
            f"several processes are asked for, but {', '.join(missing)} is not set: start them by "
            "`torchrun --standalone --nproc_per_node=2 -m monai.bundle run ...`, or leave the multi_gpu config out."
        )
    if not timeout_s > 0:
        raise InputError(f"rank_timeout_s is {timeout_s}; it must be a number of seconds > 0.")
    # Before NCCL's own watchdog aborts the process without a word, ours says what happened.
    dist.init_process_group(backend, timeout=timedelta(seconds=timeout_s + (60 if backend == "nccl" else 0)))
    _patient_group = dist.new_group(backend="gloo", timeout=timedelta(seconds=max(PATIENT_S, timeout_s)))
    _watch = RankWatch(timeout_s + 20)
    if not is_writer():
        logging.getLogger("droseg").setLevel(logging.ERROR)  # warnings are the same on all; rank 0 says them


def leave_ranks() -> None:
    """End what `join_ranks` started, if anything."""
    global _watch, _patient_group
    if _watch is not None:
        _watch.stop()
    _watch = _patient_group = None
    if dist.is_available() and dist.is_initialized():
        time.sleep(GLOO_ENDS_S)
        dist.destroy_process_group()


def rank_watch() -> RankWatch | None:
    """Return what watches the waits of this process for the others, if `join_ranks` started it."""
    return _watch


@contextlib.contextmanager
def together(what: str, watched: bool = True) -> Iterator[None]:
    """Watch work that needs the other processes.

    Args:
        what: said in the message if it fails.
        watched: whether a long wait ends the process, too.
    Raises:
        LostRankError: if one of them ended or did not answer in time.
    """
    watch = _watch if watched else None
    if watch is not None:
        watch.begin(what)
    try:
        yield
    except RuntimeError as error:
        if world_size() == 1 or not _is_from_backend(error):
            raise
        raise LostRankError(f"rank {rank()} of {world_size()} lost another process ({what})") from error
    finally:
        if watch is not None:
            watch.end()


def _is_from_backend(error: RuntimeError) -> bool:
    # gloo raises bare RuntimeErrors that name its source file; NCCL's are DistBackendError
    return isinstance(error, dist.DistError) or any(name in str(error) for name in ("/gloo/", "NCCL"))


def agree(value: T) -> T:
    """Return rank 0's value on every rank, however long rank 0 takes."""
    if world_size() == 1:
        return value
    values = [value]
    with together("what rank 0 decides", watched=False):
        dist.broadcast_object_list(values, src=0, group=_patient_group)
    return values[0]


def gather_objects(value: T) -> list[T]:
    """Return the values of all ranks, in rank order, the same on every rank."""
    if world_size() == 1:
        return [value]
    values: list[Any] = [None] * world_size()
    with together("results of all ranks"):
        dist.all_gather_object(values, value, group=_patient_group)
    return values


def gather_losses(indices: list[int], losses: Tensor, flags: int = 0) -> tuple[list[int], Tensor, int]:
    """Return the indices and losses of all ranks, in rank order, the same on every rank, and the bits any rank set.

    One small all-gather; the identical order keeps the loss histories of all ranks bit-identical.

    Args:
        indices: row of each loss.
        losses: shape (B,), B the same on every rank, on the device that this rank trains on.
        flags: bits that every rank must learn of in the same step.
    """
    if world_size() == 1:
        return indices, losses.detach(), flags
    # float64 holds every row number below 2**53
    row = torch.tensor([*map(float, indices), float(flags)], dtype=torch.float64, device=losses.device)
    own = torch.cat([row, losses.detach().to(torch.float64)])
    gathered = [torch.empty_like(own) for _ in range(world_size())]
    count = len(indices)
    with together("losses of all ranks"):
        dist.all_gather(gathered, own)
        table = torch.stack(gathered)
        rows = table[:, :count].reshape(-1).tolist()  # on a GPU, here is where it waits
    values = table[:, count + 1 :].reshape(-1).to(losses.dtype)
    agreed = reduce(or_, map(int, table[:, count].tolist()))
    return [int(index) for index in rows], values, agreed
