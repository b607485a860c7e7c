"""Overlap losses of each case: Dice, generalized Dice, Tversky; MONAI's own, with the batch kept apart."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import torch
from monai.losses import DiceLoss, GeneralizedDiceLoss, TverskyLoss
from torch import Tensor

from droseg.losses.base import (
    PerCaseLoss,
    check_weight_count,
    class_weight_tensor,
    include_background_or_default,
)

Absent = Literal["count", "skip"]


class PerCaseDiceLoss(PerCaseLoss):
    """Dice loss of each case, the mean over its structures; the batch mean equals MONAI's `DiceLoss`.

    A structure that is absent from the label costs P / (P + smooth), where P is the sum of its predicted
    probabilities (of their squares with `squared_pred`). Its gradient with respect to one voxel's probability
    is smooth / (P + smooth)^2. With the default smooth of 1e-5 voxels any trace of the structure costs 1 (0.999 at
    P = 0.01 voxels) without a gradient to speak of: 1e-5 at P = 1 voxel, 1e-11 at 1000. So the Dice term cannot teach
    the network that a structure is absent (cross entropy can), and it adds a constant 1 / S of S structures to the
    case: a history of such losses takes cases, or patches, that lack a structure for hard ones. `absent="skip"`
    leaves such structures out of the mean; a larger `smooth` (about the volume, in voxels, of a tolerable false
    positive) gives them a gradient. See Tilborghs et al. 2022, arXiv:2207.09521.

    Args:
        include_background: whether channel 0 counts; by default not with softmax, and yes with `sigmoid`, where no
            region is the background.
        squared_pred: squared denominator (Milletari et al. 2016).
        smooth: added to numerator and denominator, in voxels.
        sigmoid: overlapping regions instead of exclusive classes, see `PerCaseLoss`.
        class_weight: one weight per channel. The loss of each structure is multiplied by its weight; the sum is divided
            by the number of structures, not of weights, as in MONAI, and by itself as there where only one counts.
        absent: "count" as MONAI does; "skip" averages over the structures that the label of the case has, and gives 0
            to a case that has none.
        batch: only False.
    Raises:
        ValueError: if an option is unknown or `batch` is set.
    """

    def __init__(
        self,
        include_background: bool | None = None,
        squared_pred: bool = False,
        smooth: float = 1e-5,
        *,
        sigmoid: bool = False,
        class_weight: Sequence[float] | Tensor | None = None,
        absent: Absent = "count",
        batch: bool = False,
    ) -> None:
        super().__init__(sigmoid=sigmoid, batch=batch)
        check_absent(absent)
        background = include_background_or_default(include_background, sigmoid)
        self.weight, self.absent = class_weight_tensor(class_weight), absent
        self.loss = DiceLoss(
            include_background=background,
            to_onehot_y=not sigmoid,
            sigmoid=sigmoid,
            softmax=not sigmoid,
            squared_pred=squared_pred,
            reduction="none",
            smooth_nr=smooth,
            smooth_dr=smooth,
            weight=self.weight if background or self.weight is None else self.weight[1:],
        )

    def case_values(self, pred: Tensor, label: Tensor) -> Tensor:
        """Return the Dice loss of each case, shape (B,)."""
        check_weight_count(self.weight, pred.shape[1])
        values = self.loss(pred, label).flatten(1)
        return mean_over_structures(values, label, pred.shape[1], self.sigmoid, self.absent)


class PerCaseTverskyLoss(PerCaseLoss):
    """Tversky loss of each case, the mean over its structures; the batch mean equals MONAI's `TverskyLoss`.

    Salehi et al. 2017, arXiv:1706.05721. As in MONAI, class weights have no place in it: alpha and beta trade errors.
    A structure absent from the label costs P / (P + smooth / alpha) and has as little gradient as in `PerCaseDiceLoss`.

    Args:
        alpha, beta: weights of false positives and of false negatives; 0.5 and 0.5 is Dice.
        include_background, smooth, sigmoid, absent, batch: as of `PerCaseDiceLoss`.
    Raises:
        ValueError: if an option is unknown, alpha or beta negative, or `batch` set.
    """

    def __init__(
        self,
        alpha: float = 0.5,
        beta: float = 0.5,
        include_background: bool | None = None,
        smooth: float = 1e-5,
        *,
        sigmoid: bool = False,
        absent: Absent = "count",
        batch: bool = False,
    ) -> None:
        super().__init__(sigmoid=sigmoid, batch=batch)
        check_absent(absent)
        if alpha < 0 or beta < 0:
            raise ValueError(f"alpha is {alpha}, beta {beta}; the weights of the two errors must be >= 0.")
        self.absent = absent
        self.loss = TverskyLoss(
            include_background=include_background_or_default(include_background, sigmoid),
            to_onehot_y=not sigmoid,
            sigmoid=sigmoid,
            softmax=not sigmoid,
            alpha=alpha,
            beta=beta,
            reduction="none",
            smooth_nr=smooth,
            smooth_dr=smooth,
        )

    def case_values(self, pred: Tensor, label: Tensor) -> Tensor:
        """Return the Tversky loss of each case, shape (B,)."""
        return mean_over_structures(self.loss(pred, label), label, pred.shape[1], self.sigmoid, self.absent)


class PerCaseGeneralizedDiceLoss(PerCaseLoss):
    """Generalized Dice loss of each case; the batch mean equals MONAI's `GeneralizedDiceLoss`.

    Sudre et al. 2017, arXiv:1707.03237, as MONAI computes it: one Dice over all structures of the case, each weighted
    by its own volume g in that case. These are its class weights; others have no place in it. Two things to know before
    its values go into a history:

    - With w_type="square" (weights 1 / g^2) `smooth` is compared with 2 / g, not with a volume: when all structures
      have g = 1e5 voxels or more, the default 1e-5 outweighs the data and pulls the loss toward 0 (uniform guess of one
      structure that fills half of the volume: 0.46 at 32^3 voxels, 0.16 at 96^3, where Dice is 0.5 at both). Larger
      volumes then look easier; use a smooth of 1e-10, or w_type="simple".
    - An absent structure gets the largest weight among the present ones, so that its false positives count. A case
      without any counted structure has loss 0 and no gradient, whatever is predicted: it never looks hard.

    Args:
        include_background: whether channel 0 counts; by default not with softmax, and yes with `sigmoid`.
        w_type: weight of a structure of g voxels: "square" 1 / g^2, "simple" 1 / g, "uniform" 1.
        smooth: added to numerator and denominator, in weighted voxels.
        sigmoid, batch: as of `PerCaseDiceLoss`.
    Raises:
        ValueError: if an option is unknown or `batch` is set.
    """

    def __init__(
        self,
        include_background: bool | None = None,
        w_type: Literal["square", "simple", "uniform"] = "square",
        smooth: float = 1e-5,
        *,
        sigmoid: bool = False,
        batch: bool = False,
    ) -> None:
        super().__init__(sigmoid=sigmoid, batch=batch)
        self.loss = GeneralizedDiceLoss(
            include_background=include_background_or_default(include_background, sigmoid),
            to_onehot_y=not sigmoid,
            sigmoid=sigmoid,
            softmax=not sigmoid,
            w_type=w_type,
            reduction="none",
            smooth_nr=smooth,
            smooth_dr=smooth,
        )

    def case_values(self, pred: Tensor, label: Tensor) -> Tensor:
        """Return the generalized Dice loss of each case, shape (B,)."""
        return torch.as_tensor(self.loss(pred, label)).flatten()


def check_absent(absent: str) -> None:
    """Return nothing.

    Raises:
        ValueError: if `absent` is unknown.
    """
    if absent not in get_args(Absent):
        raise ValueError(f"absent is {absent!r}; choose one of {', '.join(get_args(Absent))}.")


def mean_over_structures(values: Tensor, label: Tensor, num_channels: int, sigmoid: bool, absent: Absent) -> Tensor:
    """Return the mean over the structures of each case, shape (B,).

    Args:
        values: shape (B, S), the last S channels of pred.
        label: as given to the loss.
        num_channels: of pred.
        sigmoid: whether the label has one channel per structure.
        absent: whether structures that the label lacks count.
    """
    if absent == "count":
        return values.mean(dim=1)
    present = structures_present(label, num_channels, sigmoid)[:, -values.shape[1] :].to(values.dtype)
    return (values * present).sum(dim=1) / present.sum(dim=1).clamp(min=1)


def structures_present(label: Tensor, num_channels: int, sigmoid: bool) -> Tensor:
    """Return which channels the label of each case has at least one voxel of, boolean, shape (B, C)."""
    if sigmoid:
        return (label > 0).flatten(2).any(dim=2)
    present = torch.zeros(len(label), num_channels, dtype=torch.bool, device=label.device)
    return present.scatter_(1, label.flatten(1).long(), True)
