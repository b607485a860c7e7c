"""The overlap term of a loss, alone or of scaled scores: what fair error-bound scaling looks at and changes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from monai.losses import DiceLoss, GeneralizedDiceLoss, TverskyLoss
from torch import Tensor, nn

from droseg.errors import InputError
from droseg.losses.overlap import PerCaseDiceLoss, PerCaseGeneralizedDiceLoss, PerCaseTverskyLoss
from droseg.losses.wrappers import outputs_of


@contextmanager
def scaled_scores(loss: Any, scale: Tensor) -> Iterator[None]:
    """Multiply the predicted scores of each case by a number in all overlap terms of a loss, while inside.

    The scores are the probabilities after softmax or sigmoid. Cross entropy and focal terms stay as they are.

    Args:
        loss: a loss of this package, or one that holds MONAI's Dice, generalized Dice or Tversky loss.
        scale: of each case, shape (B,).
    Raises:
        InputError: if the loss has no overlap term.
    """
    modules = loss.modules() if isinstance(loss, nn.Module) else ()
    terms: list[Any] = [each for each in modules if isinstance(each, (DiceLoss, GeneralizedDiceLoss, TverskyLoss))]
    if not terms:
        raise InputError(
            f"{type(loss).__name__} has no overlap term whose scores could be scaled; use one with Dice, "
            "e.g. PerCaseDiceCELoss."
        )

    def times_scale(scores: Tensor) -> Tensor:
        return scores * scale.to(scores).reshape(-1, *[1] * (scores.ndim - 1))

    before = [each.other_act for each in terms]
    for each in terms:
        each.other_act = times_scale  # MONAI applies it to what softmax or sigmoid has given
    try:
        yield
    finally:
        for each, own in zip(terms, before, strict=True):
            each.other_act = own


@torch.no_grad()
def overlap_losses(loss: Any, pred: Any, label: Tensor) -> Tensor | None:
    """Return the first overlap term of a loss for each case, without weights of terms, shape (B,), without gradient.

    Args:
        loss: of this package; None comes back for others, which do not say what their terms are.
        pred: logits, or the outputs of a deeply supervised network, of which the finest counts.
        label: as the loss wants it.
    """
    modules = loss.modules() if isinstance(loss, nn.Module) else ()
    kinds = (PerCaseDiceLoss, PerCaseGeneralizedDiceLoss, PerCaseTverskyLoss)
    term = next((each for each in modules if isinstance(each, kinds)), None)
    if term is None:
        return None
    values: Tensor = term(outputs_of(pred, label)[0], label)
    return values
