"""Tries the loss of a training on one made-up patch, before anything is read, trained or replaced."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from droseg.errors import InputError

SIZE = 16
"""Edge of the patch, in voxels."""


def checked_loss(
    loss: Callable[[Any, Tensor], Tensor], structures: Mapping[str, int], device: torch.device | str = "cpu"
) -> Callable[[Any, Tensor], Tensor]:
    """Return the loss, if it gives one finite value per case for the structures of a bundle.

    Args:
        loss: (pred, label) -> (B,).
        structures: of the bundle; classes that exclude each other.
        device: of the training.
    Raises:
        InputError: in one line, with what the loss says itself.
    """
    name = f"train#loss ({type(loss).__name__})"
    if getattr(loss, "sigmoid", False):
        raise InputError(
            f"{name} is for overlapping regions (sigmoid), but a bundle trains structures that exclude each other: "
            f"{', '.join(structures)}. Choose a loss with softmax, e.g. PerCaseDiceCELoss; regions are for trainings "
            "written in Python (docs/robust_training.md)."
        )
    generator = torch.Generator().manual_seed(0)
    num_classes = len(structures) + 1
    pred = torch.randn(2, num_classes, *[SIZE] * 3, generator=generator).to(device)
    label = torch.randint(num_classes, (2, 1, *[SIZE] * 3), generator=generator).float().to(device)
    of = f"a patch of {num_classes} classes (background, {', '.join(structures)})"
    try:
        with torch.no_grad():
            values = loss(pred, label)
    except Exception as error:  # whatever a loss of any library raises
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise InputError(f"{name} cannot be computed for {of}: {reason}") from error
    if not isinstance(values, Tensor) or values.shape != (2,):
        found = tuple(values.shape) if isinstance(values, Tensor) else type(values).__name__
        raise InputError(
            f"{name} returned {found} for 2 cases; robust training needs one value per case, e.g. PerCaseDiceCELoss, "
            "or EachCaseLoss around a loss that is reduced to one number."
        )
    if not bool(torch.isfinite(values).all()):
        raise InputError(f"{name} is {values.tolist()} for {of}; it must be finite.")
    return loss
