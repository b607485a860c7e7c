"""What goes wrong with scans, done on purpose to good ones: so that a calibration sees cases that fail."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch
from monai.data import MetaTensor
from monai.transforms import (
    AdjustContrast,
    GibbsNoise,
    KSpaceSpikeNoise,
    RandBiasField,
    RandRicianNoise,
    RandSimulateLowResolution,
)
from torch import Tensor

from droseg.data.channels import present_channels, zero_missing

Box = tuple[slice, slice, slice]
"""Which part of the image's own grid is left, (H, W, D)."""


@dataclass(frozen=True)
class Degraded:
    """A degraded image and where it lies in the grid of the original."""

    image: MetaTensor
    box: Box


def degrade(image: MetaTensor, kind: str, rng: np.random.Generator) -> Degraded:
    """Return the image with one thing wrong with it, of a strength drawn from the kind's range.

    Args:
        image: (C, H, W, D), finite, with its affine; stays as it is.
        kind: of `KINDS`.
        rng: draws strength, place and noise.
    """
    present = present_channels(image)
    if kind == "cut":
        cut = _cut(image, rng)
        return Degraded(zero_missing(cut.image, present), cut.box)
    shape = image.shape[1:]
    changed = KINDS[kind](image.as_tensor().clone(), rng)
    box = (slice(0, shape[0]), slice(0, shape[1]), slice(0, shape[2]))
    degraded = MetaTensor(torch.as_tensor(changed).as_subclass(Tensor).float(), affine=image.affine)
    return Degraded(zero_missing(degraded, present), box)


def _noise(image: Tensor, rng: np.random.Generator) -> Tensor:
    """Return magnitude noise of 10 % to 100 % of the image's standard deviation."""
    std = float(rng.uniform(0.1, 1.0))
    transform = RandRicianNoise(prob=1.0, std=std, channel_wise=True, relative=True, sample_std=False)
    return _apply(transform.set_random_state(_seed(rng)), image)


def _bias_field(image: Tensor, rng: np.random.Generator) -> Tensor:
    """Return the image brighter here and darker there; the coefficients are those of exp(polynomial)."""
    strength = float(rng.uniform(0.1, 0.4))
    transform = RandBiasField(prob=1.0, degree=3, coeff_range=(-strength, strength))
    return _apply(transform.set_random_state(_seed(rng)), image)


def _ringing(image: Tensor, rng: np.random.Generator) -> Tensor:
    """Return the image without its high frequencies, in-plane and through-plane."""
    return _apply(GibbsNoise(alpha=float(rng.uniform(0.5, 0.9))), image)


def _spikes(image: Tensor, rng: np.random.Generator) -> Tensor:
    """Return the image with stripes of 0.3 to 2 standard deviations, as a spike in k-space makes them."""
    size = np.array(image.shape[1:])
    frequency = rng.integers(1, np.maximum(2, size // 4)) * rng.choice((-1, 1), 3)
    place = tuple(int(i) for i in np.clip(size // 2 + frequency, 0, size - 1))  # frequency 0 is in the center
    strength = float(rng.uniform(0.3, 2.0)) * float(image.std()) * float(size.prod())
    return _apply(KSpaceSpikeNoise(loc=place, k_intensity=float(np.log(strength))), image)


def _low_resolution(image: Tensor, rng: np.random.Generator) -> Tensor:
    """Return the image as if its voxels were 2 to 5 times as long on each axis."""
    zoom = float(1.0 / rng.uniform(2.0, 5.0))
    transform = RandSimulateLowResolution(prob=1.0, zoom_range=(zoom, zoom))
    return _apply(transform.set_random_state(_seed(rng)), image)


def _contrast(image: Tensor, rng: np.random.Generator) -> Tensor:
    """Return the image with another, sometimes an inverted contrast, as another sequence gives it."""
    gamma = float(np.exp(rng.uniform(np.log(1.5), np.log(4.0))) ** rng.choice((-1, 1)))
    return _apply(AdjustContrast(gamma=gamma, invert_image=bool(rng.random() < 0.5)), image)


def _cut(image: MetaTensor, rng: np.random.Generator) -> Degraded:
    """Return the image without 25 % to 50 % of one axis, at one of its ends."""
    axis, first = int(rng.integers(3)), bool(rng.integers(2))
    size = image.shape[1 + axis]
    kept = max(2, round(size * (1.0 - float(rng.uniform(0.25, 0.5)))))
    box = [slice(0, length) for length in image.shape[1:]]
    box[axis] = slice(size - kept, size) if first else slice(0, kept)
    affine = image.affine.clone()
    start = torch.tensor([part.start for part in box], dtype=affine.dtype)
    affine[:3, 3] += affine[:3, :3] @ start
    array = image.as_tensor()[:, box[0], box[1], box[2]].clone()
    return Degraded(MetaTensor(array, affine=affine), (box[0], box[1], box[2]))


def _apply(transform: Any, image: Tensor) -> Tensor:
    return torch.as_tensor(transform(image))


def _seed(rng: np.random.Generator) -> int:
    return int(rng.integers(2**31))


KINDS: Final[dict[str, Callable[[Tensor, np.random.Generator], Tensor]]] = {
    "noise": _noise,
    "bias_field": _bias_field,
    "ringing": _ringing,
    "spikes": _spikes,
    "low_resolution": _low_resolution,
    "contrast": _contrast,
}
ALL_KINDS: Final = (*KINDS, "cut")
