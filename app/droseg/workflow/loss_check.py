"""Tries the loss of a training on one made-up patch, before anything is read, trained or replaced."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from droseg.data.regions import Structures
from droseg.errors import InputError
from droseg.losses.base import takes_sigmoid

SIZE = 16
"""Edge of the patch, in voxels."""


def checked_loss(
    loss: Callable[[Any, Tensor], Tensor], structures: Structures, device: torch.device | str = "cpu"
) -> Callable[[Any, Tensor], Tensor]:
    """Return the loss, if it gives one finite value per case for the structures of a bundle.

    Args:
        loss: (pred, label) -> (B,); with an attribute `sigmoid` that is true, for channels of overlapping regions.
        structures: of the bundle.
        device: of the training.
    Raises:
        InputError: in one line, with what the loss says itself.
    """
    name = f"train#loss ({type(loss).__name__})"
    generator = torch.Generator().manual_seed(0)
    size, names = [SIZE] * 3, ", ".join(structures)
    if takes_sigmoid(loss):
        num_channels, of = len(structures), f"a patch of {len(structures)} overlapping regions ({names})"
        label = torch.randint(2, (2, num_channels, *size), generator=generator).float().to(device)
    else:
        num_channels = len(structures) + 1
        of = f"a patch of {num_channels} classes (background, {names})"
        label = torch.randint(num_channels, (2, 1, *size), generator=generator).float().to(device)
    pred = torch.randn(2, num_channels, *size, generator=generator).to(device)
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
