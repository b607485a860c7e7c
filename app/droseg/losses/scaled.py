"""Overlap losses of scaled scores: what fair error-bound scaling does to a Dice loss."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from monai.losses import DiceLoss, GeneralizedDiceLoss, TverskyLoss
from torch import Tensor, nn

from droseg.errors import InputError


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
