"""The memory that a training may take, and on what."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass

import torch

from droseg.engine.precision import Precision, has_fast_bf16
from droseg.errors import InputError
from droseg.inference.memory import GIB, free_bytes
from droseg.plan.memory import CONTEXT_BYTES

RAM_SHARE = 0.5
"""Of the free RAM, where a CPU trains; the rest is for the volumes in memory and for everything else."""
CPU_CAP = 8 * GIB
"""nnU-Net's own target. With a larger patch a CPU would take minutes for a step."""


@dataclass(frozen=True)
class Budget:
    """What is at hand.

    Attributes:
        memory: bytes for weights, activations and scratch memory of a training.
        source: where that number comes from, in words.
        bf16: whether the network is taken to compute in bfloat16.
        precision_source: why, in words.
        gpu: whether the training is taken to run on one.
        ram: free bytes of RAM.
        cores: CPU cores of this machine.
        memory_given: whether the memory was said, maybe that of another machine.
        precision_given: whether the precision was said.
    """

    memory: int
    source: str
    bf16: bool
    precision_source: str
    gpu: bool
    ram: int
    cores: int
    memory_given: bool = False
    precision_given: bool = False


def find_budget(memory_gb: float | None = None, precision: Precision = "auto") -> Budget:
    """Return the memory at hand: as given, else what is free on the GPU, else a share of the free RAM.

    Args:
        memory_gb: GiB (2^30 bytes) for the training as a whole.
        precision: of the training; auto: bf16 if the device of this machine has it in hardware.
    Raises:
        InputError: if `memory_gb` is not positive, or not finite.
    """
    if memory_gb is not None and not (memory_gb > 0 and math.isfinite(memory_gb)):
        raise InputError(f"--memory-gb is {memory_gb:g}; it must be > 0, and finite.")
    gpu = torch.cuda.is_available()
    device = torch.device("cuda" if gpu else "cpu")
    ram = free_bytes(torch.device("cpu"))
    name = torch.cuda.get_device_name(device) if gpu else "CPU"
    if memory_gb is not None:
        total, source = int(memory_gb * GIB), f"--memory-gb {memory_gb:g}"
    elif gpu:
        total = free_bytes(device)
        source = f"{total / GIB:.1f} GB are free on the GPU ({name})"
    else:
        total = int(min(ram * RAM_SHARE, CPU_CAP))
        source = f"no GPU here: half of the {ram / GIB:.1f} GB of free RAM, at most {CPU_CAP / GIB:.0f} GB"
    if precision == "auto":
        bf16 = has_fast_bf16(device)
        said = f"{name} {'has' if bf16 else 'has no'} bf16 in hardware"
    else:
        bf16, said = precision == "bf16", f"--precision {precision}"
    # What a scheduler or a container leaves to this process; Linux alone can say.
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    given = memory_gb is not None, precision != "auto"
    return Budget(total - CONTEXT_BYTES, source, bf16, said, gpu, ram, cores, *given)
