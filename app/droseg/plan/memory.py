"""What a training step takes, found by running it on PyTorch's meta device, which knows shapes and no values."""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from droseg.losses.base import PerCaseLoss
from droseg.plan.topology import Topology

WORKSPACE = 1.45
"""What is reserved for each byte of tensors: scratch memory of convolutions, and gaps between blocks.

The most of 12 trainings on an H200 (torch 2.11, fp32 and bf16, `scripts/bench_plan_memory.py`): 1.06 to 1.45.
"""
CONTEXT_BYTES = 690_000_000
"""Of a process that uses CUDA, or PyTorch with its libraries in RAM, without a tensor."""
OF_WEIGHTS = 16
"""Bytes per parameter in float32: itself, its gradient and the two moments of AdamW."""


class LiveBytes(TorchDispatchMode):
    """Adds up the storages that operations make while it is on, until they are freed.

    Attributes:
        peak: the largest sum so far, in bytes.
    """

    def __init__(self) -> None:
        super().__init__()
        self._sizes: dict[int, int] = {}
        self._now = self.peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation and count the new storages among its results."""
        out = func(*args, **(kwargs or {}))
        for each in tree_iter(out):
            if isinstance(each, Tensor):
                self._count(each.untyped_storage())
        self.peak = max(self.peak, self._now)
        return out

    def _count(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key not in self._sizes:
            self._sizes[key] = storage.nbytes()
            self._now += storage.nbytes()
            weakref.finalize(storage, self._free, key)

    def _free(self, key: int) -> None:
        self._now -= self._sizes.pop(key, 0)


def step_bytes(
    network: nn.Module, channels: int, patch: Sequence[int], batch_size: int, bf16: bool, loss: PerCaseLoss
) -> int:
    """Return the peak of tensors of a forward and backward pass: activations, gradients, and what the loss makes.

    In bf16 the network computes in bfloat16 and the loss in float32, as `AutocastInferer` has it.

    Args:
        network: on the meta device; it is left in another data type.
        channels: of the image.
        patch: voxels per axis.
        batch_size: patches.
        bf16: whether the network computes in bfloat16.
        loss: logits (B, C, H, W, D) and label -> (B,).
    """
    dtype = torch.bfloat16 if bf16 else torch.float32
    network = network.to(dtype=dtype, memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
    image = torch.empty((batch_size, channels, *patch), dtype=dtype, device="meta")
    with LiveBytes() as live:
        logits = network(image.contiguous(memory_format=torch.channels_last_3d)).float()
        label = torch.zeros((batch_size, logits.shape[1] if loss.sigmoid else 1, *patch), device="meta")
        # The checks of its `forward` want values, which nothing has here.
        loss.case_values(logits, label).mean().backward()
    return live.peak


def weight_bytes(network: nn.Module, bf16: bool) -> int:
    """Return what weights, gradients and AdamW's moments take."""
    parameters = sum(parameter.numel() for parameter in network.parameters())
    return parameters * (OF_WEIGHTS + 2 * bf16)  # autocast keeps a copy of the weights in bfloat16


class StepMemory:
    """Memory of trainings with AdamW of one family of networks; each network is measured once.

    For one network the peak of a step is proportional to the voxels of patch and batch (to 1 %, which a test checks).

    Args:
        make: strides and kernels of a topology -> its network on the meta device.
        channels: of the image.
        bf16: whether the network computes in bfloat16.
        loss: of the training.
    """

    def __init__(self, make: Callable[[Topology], nn.Module], channels: int, bf16: bool, loss: PerCaseLoss) -> None:
        self._make, self._channels, self._bf16, self._loss = make, channels, bf16, loss
        self._found: dict[tuple[object, object], tuple[int, float]] = {}

    def __call__(self, topology: Topology, batch_size: int) -> int:
        """Return the bytes of a training, without `CONTEXT_BYTES`."""
        voxels = math.prod(topology.patch)
        key = topology.strides, topology.kernels
        if key not in self._found:
            network = self._make(topology)
            step = step_bytes(network, self._channels, topology.patch, 2, self._bf16, self._loss)
            self._found[key] = weight_bytes(network, self._bf16), step / (2 * voxels)
        weights, per_voxel = self._found[key]
        return int(WORKSPACE * (weights + per_voxel * batch_size * voxels))
