"""What all per-case losses share: the checks at the door, float32, and the refusal of batch Dice."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn


class PerCaseLoss(nn.Module):
    """Gives one loss per case, shape (B,): what a loss history needs and MONAI's reduced losses do not give.

    Args:
        sigmoid: False: exclusive classes, softmax over the channels, label of class indices (B, 1, H, W, D).
            True: overlapping regions, a sigmoid for each channel, label (B, R, H, W, D) in [0, 1].
        batch: only False; the argument is there to say why (see `refuse_batch`).
    """

    def __init__(self, *, sigmoid: bool, batch: bool) -> None:
        super().__init__()
        refuse_batch(batch)
        self.sigmoid = sigmoid

    def forward(self, pred: Tensor, label: Tensor) -> Tensor:
        """Return the loss of each case, shape (B,), float32; it does not depend on the other cases of the batch.

        Args:
            pred: logits, shape (B, C, H, W, D) or (B, C, H, W), any floating type; C >= 2 unless `sigmoid`.
            label: class indices, shape (B, 1, H, W, D), or with `sigmoid` one channel per region, as `pred`.
        Raises:
            ValueError: if the shapes or the values of the label do not fit.
        """
        check_shapes(pred, label, self.sigmoid)
        pred, label = plain(pred).float(), plain(label)
        check_label_values(label, pred.shape[1], self.sigmoid)
        return self.case_values(pred, label.float())

    @abstractmethod
    def case_values(self, pred: Tensor, label: Tensor) -> Tensor:
        """Return the loss of each case, shape (B,), of a float32 pred and label that fit."""


def refuse_batch(batch: bool) -> None:
    """Return nothing.

    Raises:
        ValueError: if `batch` is set, with the reason.
    """
    if batch:
        raise ValueError(
            "batch=True sums intersections and volumes over all cases of a batch into one Dice, so no case has a "
            "value of its own: its share would change with its batch mates, and a loss history could not keep it. "
            "Leave batch=False."
        )


def plain(tensor: Tensor) -> Tensor:
    """Return the tensor without MONAI's metadata, which costs time in every operation and means nothing here."""
    return tensor.as_subclass(Tensor)


def include_background_or_default(include_background: bool | None, sigmoid: bool) -> bool:
    """Return whether channel 0 counts: by default not with softmax (it is the background), and yes with sigmoid."""
    return sigmoid if include_background is None else include_background


def class_weight_tensor(class_weight: Sequence[float] | Tensor | None) -> Tensor | None:
    """Return the weight of each channel, shape (C,), float32.

    Raises:
        ValueError: if the weights are no vector, negative, not finite or all 0.
    """
    if class_weight is None:
        return None
    weight = torch.as_tensor(class_weight, dtype=torch.float32).detach().clone()
    if weight.ndim != 1 or not bool(torch.isfinite(weight).all()) or bool((weight < 0).any()) or not bool(weight.any()):
        raise ValueError(
            f"class_weight is {weight.tolist()}; expected one finite number >= 0 for each channel of pred "
            "(the background included), at least one of them above 0."
        )
    return weight


def check_weight_count(weight: Tensor | None, num_channels: int) -> None:
    """Return nothing.

    Raises:
        ValueError: if there is not one weight for each channel of pred.
    """
    if weight is not None and len(weight) != num_channels:
        raise ValueError(
            f"class_weight has {len(weight)} values, pred has {num_channels} channels; give one weight for each "
            "channel, the background included even where it does not count."
        )


def check_shapes(pred: Any, label: Any, sigmoid: bool) -> None:
    """Return nothing.

    Raises:
        ValueError: if pred and label are not one batch on one grid.
    """
    if not isinstance(pred, Tensor):
        raise ValueError(
            f"pred is a {type(pred).__name__}, not a tensor; for the outputs of a deeply supervised network, wrap the "
            "loss in PerCaseDeepSupervisionLoss."
        )
    stacked = pred.ndim == label.ndim + 1
    least = 1 if sigmoid else 2
    channels = pred.shape[1] if sigmoid and pred.ndim > 1 else 1
    if pred.ndim < 3 or pred.shape[1] < least or label.shape != (pred.shape[0], channels, *pred.shape[2:]):
        expected = "(B, R, H, W, D) for both" if sigmoid else "(B, C >= 2, H, W, D) and (B, 1, H, W, D)"
        remedy = (
            "; for stacked outputs of a deeply supervised network use PerCaseDeepSupervisionLoss" if stacked else ""
        )
        raise ValueError(
            f"pred has shape {tuple(pred.shape)}, label {tuple(label.shape)}; expected {expected} on one grid{remedy}."
        )
    if pred.numel() == 0:
        raise ValueError(f"pred has shape {tuple(pred.shape)}; expected at least one case and one voxel.")


def check_label_values(label: Tensor, num_channels: int, sigmoid: bool) -> None:
    """Return nothing.

    Raises:
        ValueError: if the label holds a value that pred has no channel for. On a GPU such a label would end the process
            with a device-side assertion that names nothing.
    """
    highest = 1 if sigmoid else num_channels - 1
    low, high = (value.item() for value in torch.aminmax(label))
    whole = sigmoid or not label.is_floating_point() or torch.equal(label, label.trunc())
    if low >= 0 and high <= highest and whole:  # false for NaN
        return
    expected = (
        "values from 0 to 1" if sigmoid else f"whole numbers from 0 to {highest} ({num_channels} channels in pred)"
    )
    fits = [bool(((one >= 0) & (one <= highest) & (sigmoid | (one == one.trunc()))).all()) for one in label]
    raise ValueError(
        f"item {fits.index(False)} of the batch: the label holds values from {low:g} to {high:g}; expected {expected}. "
        "Map the label's values to channels, and resample labels by nearest neighbor only."
    )


def takes_sigmoid(loss: Any) -> bool | None:
    """Return whether the loss, or the first one inside it that tells, is for overlapping regions; None: unknown."""
    for module in loss.modules() if isinstance(loss, nn.Module) else [loss]:
        if isinstance(getattr(module, "sigmoid", None), bool):
            return bool(module.sigmoid)
    return None
