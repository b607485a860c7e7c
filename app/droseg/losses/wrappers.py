"""Per-case losses made of other losses: deep supervision, and any loss applied to each case alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, get_args

import torch
from monai.losses import DeepSupervisionLoss
from torch import Tensor, nn

from droseg.losses.base import plain, refuse_batch

WeightMode = Literal["exp", "same", "two"]


class PerCaseDeepSupervisionLoss(nn.Module):
    """Weighted sum of a per-case loss over the outputs of a deeply supervised network, shape (B,).

    The batch mean equals MONAI's `DeepSupervisionLoss` of MONAI's reduced loss. Labels are taken to the grid of a
    coarser output by nearest neighbor, as there; a small structure can vanish on the way (see `absent` of
    `PerCaseDiceLoss`).

    The weights are not normalized, as in MONAI (three outputs, "exp": 1 + 0.5 + 0.25), and a network gives one output
    in evaluation: the loss of a case in training is on another scale than its loss in evaluation, so that a history
    must not mix the two. A scale of k on the losses acts as k * beta.

    Args:
        loss: (pred, label) -> (B,), e.g. `PerCaseDiceCELoss()`.
        weight_mode: "exp" 1, 1/2, 1/4, ... (at least 1/16); "same" 1; "two" 1, 1/2, 1/2, ...
        weights: one weight per output, the finest first, instead of `weight_mode`; at least as many as outputs.
    Raises:
        ValueError: if `weight_mode` is unknown, a weight negative, or the loss sums over the batch.
    """

    def __init__(
        self,
        loss: Callable[[Tensor, Tensor], Tensor],
        weight_mode: WeightMode = "exp",
        weights: Sequence[float] | None = None,
    ) -> None:
        super().__init__()
        refuse_batch_inside(loss)
        if weight_mode not in get_args(WeightMode):  # MONAI takes it for "same"
            raise ValueError(f"weight_mode is {weight_mode!r}; choose one of {', '.join(get_args(WeightMode))}.")
        if weights is not None and not all(weight >= 0 for weight in weights):
            raise ValueError(f"weights are {list(weights)}; they must be >= 0.")
        levels = None if weights is None else list(weights)
        self.supervision = DeepSupervisionLoss(loss, weight_mode, levels)  # type: ignore[arg-type]

    def forward(self, pred: Tensor | Sequence[Tensor], label: Tensor) -> Tensor:
        """Return the loss of each case, shape (B,).

        Args:
            pred: the outputs, the finest first: a list of (B, C, h, w, d), or one tensor (B, outputs, C, H, W, D) as
                MONAI's DynUNet stacks them; or the single output (B, C, H, W, D) of a network in evaluation.
            label: shape (B, 1, H, W, D), or (B, R, H, W, D) for regions.
        Raises:
            ValueError: if there is no output, fewer weights than outputs, or the loss gives no value per case.
        """
        outputs = outputs_of(pred, label)
        label = plain(label).float()  # nearest neighbor wants a floating type
        if len(outputs) == 1 and isinstance(pred, Tensor):
            return self._level(outputs[0], label)
        given = self.supervision.weights
        if given is not None and len(given) < len(outputs):  # MONAI falls back to weight_mode
            raise ValueError(f"{len(outputs)} outputs, {len(given)} weights; give one weight for each output.")
        weights = self.supervision.get_weights(levels=len(outputs))
        levels = [weight * self._level(out, label) for weight, out in zip(weights, outputs, strict=True)]
        return torch.stack(levels).sum(dim=0)

    def _level(self, pred: Tensor, label: Tensor) -> Tensor:
        values: Tensor = self.supervision.get_loss(plain(pred).float(), label)
        if values.shape != label.shape[:1]:
            raise ValueError(
                f"the loss returned shape {tuple(values.shape)} for a batch of {len(label)}; deep supervision needs "
                "one value per case, e.g. PerCaseDiceCELoss, or EachCaseLoss around a reduced loss."
            )
        return values


class EachCaseLoss(nn.Module):
    """Any reduced loss, applied to each case alone, shape (B,): the way to use one that has no per-case form here.

    E.g. `EachCaseLoss(monai.losses.GeneralizedWassersteinDiceLoss(distances))`, `HausdorffDTLoss`, or a loss with
    `ignore_index`. It costs one call per case. The batch mean equals the loss of the whole batch where that is a
    plain mean over cases; where it is normalized over the batch (class weights of cross entropy, `ignore_index`), each
    value is the loss of its case alone and the batch value is not their mean.

    Args:
        loss: (pred, label) -> one number, for a batch of one.
    Raises:
        ValueError: if the loss sums over the batch (`batch=True`).
    """

    def __init__(self, loss: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        refuse_batch_inside(loss)
        self.loss = loss

    def forward(self, pred: Tensor, label: Tensor) -> Tensor:
        """Return the loss of each case, shape (B,), float32.

        Args:
            pred: shape (B, ...), any floating type.
            label: shape (B, ...), as the loss wants it.
        Raises:
            ValueError: if the batch sizes differ or the loss returns more than one number.
        """
        if len(pred) != len(label) or len(pred) == 0:
            raise ValueError(f"pred has {len(pred)} cases, label {len(label)}; expected the same number, at least 1.")
        pred, label = plain(pred).float(), plain(label)
        values = [self.loss(pred[row : row + 1], label[row : row + 1]) for row in range(len(pred))]
        if values[0].numel() != 1:
            raise ValueError(
                f"the loss gave shape {tuple(values[0].shape)} for one case; expected one number (reduction='mean')."
            )
        return torch.stack([value.reshape(()).float() for value in values])


def refuse_batch_inside(loss: Callable[[Tensor, Tensor], Tensor]) -> None:
    """Return nothing.

    Raises:
        ValueError: if the loss, or a loss inside it, sums over the batch.
    """
    for module in loss.modules() if isinstance(loss, nn.Module) else [loss]:
        refuse_batch(getattr(module, "batch", False) is True)


def outputs_of(pred: Tensor | Sequence[Tensor], label: Tensor) -> list[Tensor]:
    """Return the outputs of a network, the finest first.

    Raises:
        ValueError: if pred is neither a list of tensors nor a tensor with the axes of the label, or one more.
    """
    if isinstance(pred, Tensor) and pred.ndim in (label.ndim, label.ndim + 1):
        return [pred] if pred.ndim == label.ndim else list(pred.unbind(dim=1))
    if isinstance(pred, (list, tuple)) and pred and all(isinstance(out, Tensor) for out in pred):
        return list(pred)
    found = tuple(pred.shape) if isinstance(pred, Tensor) else f"{type(pred).__name__} of {len(pred)}"
    raise ValueError(
        f"pred is {found}, label has shape {tuple(label.shape)}; expected a list of (B, C, h, w, d), or one tensor "
        "(B, outputs, C, H, W, D) or (B, C, H, W, D)."
    )
