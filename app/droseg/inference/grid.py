"""From one voxel grid to another by linear interpolation, a few planes at a time.

MONAI's resampling holds a coordinate triple and every channel in float64 for the whole target grid: 10 GB for the
scores of 9 classes on 512 x 512 x 400 voxels. Here it is one slab of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import grid_sample

Box = tuple[slice, slice, slice]

SLAB_VOXELS = 1 << 18
"""Of the target, at a time: 2 MB per channel, which the allocator uses again; larger ones are slower."""


def resample(source: Tensor, to_source: NDArray[np.float64], shape: Sequence[int]) -> Tensor:
    """Return `source` (K, h, w, d) on another grid, (K, *shape), float32; beyond its border its border values hold.

    Args:
        source: on its own grid.
        to_source: voxel index of the target -> voxel index of the source, (4, 4).
        shape: of the target, (3,).
    """
    target = torch.empty((len(source), *shape), dtype=torch.float32)
    for box in slabs(whole(shape)):
        target[(slice(None), *box)] = resample_box(source, to_source, box)
    return target


def resample_box(source: Tensor, to_source: NDArray[np.float64], box: Box) -> Tensor:
    """Return `source` in a box of the target grid, (K, *box), interpolated in float64 and given as float32."""
    if any(part.stop <= part.start for part in box):
        return torch.empty((len(source), *(part.stop - part.start for part in box)))
    axes = target_axes(to_source)
    return _general(source, to_source, box) if axes is None else _separable(source, to_source, box, axes)


def target_axes(to_source: NDArray[np.float64]) -> tuple[int, int, int] | None:
    """Return the target's axis that runs along each of the source's; None if the grids are oblique to each other."""
    matrix = np.abs(to_source[:3, :3])
    axes = matrix.argmax(axis=1)
    others = matrix.copy()
    others[np.arange(3), axes] = 0.0
    # Affines of files are float32: what is left of a rotation by it moves no voxel of a grid by a thousandth.
    if sorted(axes) != [0, 1, 2] or (others > 1e-6 * matrix.max(axis=1, keepdims=True)).any():
        return None
    return int(axes[0]), int(axes[1]), int(axes[2])


def _separable(source: Tensor, to_source: NDArray[np.float64], box: Box, axes: tuple[int, int, int]) -> Tensor:
    """Interpolate along one axis after the other: faster than `grid_sample`, and less rounding."""
    lines = []
    for axis, along in enumerate(axes):
        index = torch.arange(box[along].start, box[along].stop, dtype=torch.float64)
        place = index * float(to_source[axis, along]) + float(to_source[axis, 3])
        lines.append(place.clamp_(0.0, float(source.shape[1 + axis] - 1)))
    inside = (slice(int(line.min()), int(line.max().ceil()) + 1) for line in lines)
    found = source[(slice(None), *inside)].to(torch.float64)
    for axis in (2, 1, 0):  # the last pass, over the most values, copies whole planes
        place = lines[axis] - int(lines[axis].min())
        low = place.floor().long()
        fraction = (place - low).view([-1 if k == axis + 1 else 1 for k in range(4)])
        first = found.index_select(axis + 1, low)
        if bool((fraction != 0).any()):
            second = found.index_select(axis + 1, (low + 1).clamp_(max=found.shape[axis + 1] - 1))
            first.lerp_(second, fraction.expand_as(first))
        found = first
    order = [axes.index(axis) + 1 for axis in range(3)]
    return found.permute(0, *order).float()


def _general(source: Tensor, to_source: NDArray[np.float64], box: Box) -> Tensor:
    positions = _positions(to_source, box, source.shape[1:])
    first = positions.flatten(0, 2).amin(0).floor().long().tolist()
    last = positions.flatten(0, 2).amax(0).ceil().long().tolist()
    part = source[(slice(None), *(slice(a, b + 1) for a, b in zip(first, last, strict=True)))].to(torch.float64)
    scale = 2.0 / torch.tensor([max(size - 1, 1) for size in part.shape[1:]], dtype=torch.float64)
    positions.sub_(torch.tensor(first, dtype=torch.float64)).mul_(scale).sub_(1.0)  # in place: the largest tensor here
    # grid_sample names the axes from the last to the first.
    found = grid_sample(
        part[None], positions.flip(-1)[None], mode="bilinear", padding_mode="border", align_corners=True
    )
    return found[0].float()


def whole(shape: Sequence[int]) -> Box:
    """Return the box of a whole grid."""
    return (slice(0, shape[0]), slice(0, shape[1]), slice(0, shape[2]))


def slabs(box: Box, voxels: int = SLAB_VOXELS) -> Iterator[Box]:
    """Yield the box in slabs along its first axis, of about so many voxels and at least one plane."""
    plane = max((box[1].stop - box[1].start) * (box[2].stop - box[2].start), 1)
    step = max(voxels // plane, 1)
    for start in range(box[0].start, box[0].stop, step):
        yield (slice(start, min(start + step, box[0].stop)), box[1], box[2])


def reach(box: Box, source_shape: Sequence[int], to_source: NDArray[np.float64], shape: Sequence[int]) -> Box:
    """Return the smallest box of the target grid outside which no voxel is interpolated from inside `box`.

    Args:
        box: of the source grid.
        source_shape: of the source grid; where the box touches its border, it reaches beyond it, as the border does.
        to_source: voxel index of the target -> voxel index of the source, (4, 4).
        shape: of the target, (3,).
    """
    far = 4.0 * float(np.abs(np.linalg.inv(to_source)).max() * max(*source_shape, *shape) + 1.0)
    edges = [
        (-far if part.start <= 0 else part.start - 1.0, far + size if part.stop >= size else float(part.stop))
        for part, size in zip(box, source_shape, strict=True)
    ]
    corners = np.array(np.meshgrid(*edges, indexing="ij")).reshape(3, -1)
    moved = (np.linalg.inv(to_source) @ np.vstack([corners, np.ones(corners.shape[1])]))[:3]
    margin = 1e-6  # of rounding
    starts = np.clip(np.floor(moved.min(axis=1) - margin), 0, shape).astype(int)
    stops = np.clip(np.ceil(moved.max(axis=1) + margin) + 1, starts, shape).astype(int)
    return tuple(slice(int(a), int(b)) for a, b in zip(starts, stops, strict=True))  # type: ignore[return-value]


def _positions(to_source: NDArray[np.float64], box: Box, size: Sequence[int]) -> Tensor:
    """Return where the voxels of a box lie in the source, in its voxels and inside its border, (*box, 3)."""
    matrix = torch.as_tensor(to_source, dtype=torch.float64)
    extent = tuple(part.stop - part.start for part in box)
    positions = torch.empty((*extent, 3), dtype=torch.float64)
    index = [torch.arange(part.start, part.stop, dtype=torch.float64) for part in box]
    for axis in range(3):
        along = [index[k] * matrix[axis, k] for k in range(3)]
        value = along[0][:, None, None] + along[1][None, :, None] + along[2][None, None, :] + matrix[axis, 3]
        positions[..., axis] = value.clamp_(0.0, float(size[axis] - 1))
    return positions
