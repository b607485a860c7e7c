"""Batches of unequal cases, for exclusive classes and for overlapping regions."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

Batch = tuple[torch.Tensor, torch.Tensor]


def classes_batch(num_classes: int = 4, batch_size: int = 3, seed: int = 0, size: tuple = (5, 6, 7)) -> Batch:
    """Return logits and class indices: a case with all classes, one with few, one of background only, then again."""
    generator = torch.Generator().manual_seed(seed)
    pred = 3 * torch.randn(batch_size, num_classes, *size, generator=generator)
    label = torch.randint(num_classes, (batch_size, 1, *size), generator=generator)
    label[1::3] = label[1::3].clamp(max=1)
    label[2::3] = 0
    return pred, label


def regions_batch(num_regions: int = 3, batch_size: int = 3, seed: int = 0, size: tuple = (5, 6, 7)) -> Batch:
    """Return logits and overlapping 0/1 regions: a full case, one where a single region is not empty, an empty one."""
    generator = torch.Generator().manual_seed(seed)
    pred = 3 * torch.randn(batch_size, num_regions, *size, generator=generator)
    label = (torch.rand(batch_size, num_regions, *size, generator=generator) < 0.4).float()
    label[1::3, 1:] = 0
    label[2::3] = 0
    return pred, label


@pytest.fixture
def classes() -> Callable[..., Batch]:
    return classes_batch


@pytest.fixture
def regions() -> Callable[..., Batch]:
    return regions_batch
