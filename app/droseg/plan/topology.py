"""How deep a U-Net goes along each axis, and where its kernels are flat; as nnU-Net decides it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

MIN_EDGE = 4
"""Voxels that the bottleneck keeps along an axis (UNet_featuremap_min_edge_length of nnU-Net)."""
BASE_FEATURES, MAX_FEATURES = 32, 320


@dataclass(frozen=True)
class Topology:
    """Strides and kernel sizes of the levels of a U-Net.

    Attributes:
        strides: of each step down, (levels - 1, 3).
        kernels: of each level, (levels, 3); 1 along an axis whose voxels are still twice as thick as the thinnest.
        patch: the size that was asked for, rounded up to what the strides divide.
    """

    strides: tuple[tuple[int, ...], ...]
    kernels: tuple[tuple[int, ...], ...]
    patch: tuple[int, ...]

    @property
    def divisor(self) -> tuple[int, ...]:
        """By what a patch must be divisible along each axis."""
        return tuple(math.prod(stride[axis] for stride in self.strides) for axis in range(3))

    @property
    def features(self) -> tuple[int, ...]:
        """Feature maps of each level."""
        return tuple(min(MAX_FEATURES, BASE_FEATURES * 2**level) for level in range(len(self.kernels)))

    @property
    def flat(self) -> bool:
        """Whether some kernel is not 3 x 3 x 3."""
        return any(size != 3 for kernel in self.kernels for size in kernel)


def find_topology(spacing_mm: Sequence[float], patch: Sequence[int]) -> Topology:
    """Return the levels for a patch, as `get_pool_and_conv_props` of nnU-Net 2.8.1.

    An axis is halved as long as it has 2 x `MIN_EDGE` voxels and its voxels are less than twice as thick as the
    thinnest; a last axis alone only from 3 x `MIN_EDGE` on. Its kernels become 3 when it comes within that factor.
    """
    spacing, size = [float(edge) for edge in spacing_mm], [int(edge) for edge in patch]
    kernel, halvings = [1, 1, 1], [0, 0, 0]
    strides: list[tuple[int, ...]] = []
    kernels: list[tuple[int, ...]] = []
    while True:
        large = [axis for axis in range(3) if size[axis] >= 2 * MIN_EDGE]
        if not large:
            break
        thinnest = min(spacing[axis] for axis in large)
        halved = [axis for axis in large if spacing[axis] / thinnest < 2]
        if len(halved) == 1 and size[halved[0]] < 3 * MIN_EDGE:
            break
        kernel = [3 if old == 3 or edge / min(spacing) < 2 else 1 for old, edge in zip(kernel, spacing, strict=True)]
        kernels.append(tuple(kernel))
        strides.append(tuple(2 if axis in halved else 1 for axis in range(3)))
        for axis in halved:
            halvings[axis] += 1
            spacing[axis] *= 2
            size[axis] = math.ceil(size[axis] / 2)
    kernels.append((3, 3, 3))  # of the bottleneck, always
    rounded = tuple(math.ceil(edge / 2**n) * 2**n for edge, n in zip(patch, halvings, strict=True))
    return Topology(tuple(strides), tuple(kernels), rounded)


def network_config(topology: Topology, like: dict[str, Any]) -> dict[str, Any]:
    """Return `network_def`: MONAI's UNet, or its DynUNet where kernels differ between levels.

    Args:
        topology: the levels.
        like: `network_def` of the bundle that is followed; it says the numbers of channels, and of a UNet its residual
            units, normalization and so on.
    """
    shared: dict[str, Any] = {key: like[key] for key in ("spatial_dims", "in_channels", "out_channels") if key in like}
    strides = [_short(stride) for stride in topology.strides]
    if topology.flat and len(topology.kernels) >= 3:  # DynUNet has three levels at least
        return {
            "_target_": "DynUNet",
            **shared,
            "filters": list(topology.features),
            "strides": [1, *strides],
            "kernel_size": [_short(kernel) for kernel in topology.kernels],
            "upsample_kernel_size": strides,
            "norm_name": ["INSTANCE", {"affine": True}],
        }
    followed = like if like.get("_target_") == "UNet" else {}
    kept = {key: value for key, value in followed.items() if key not in (*shared, "_target_", "channels", "strides")}
    others = kept or {"num_res_units": 2, "norm": ["INSTANCE", {"affine": True}], "act": "LEAKYRELU"}
    return {"_target_": "UNet", **shared, "channels": list(topology.features), "strides": strides, **others}


def _short(sizes: Sequence[int]) -> int | list[int]:
    return sizes[0] if len(set(sizes)) == 1 else list(sizes)
