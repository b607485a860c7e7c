"""Sums of an overlap and a voxelwise loss of each case: Dice with cross entropy, binary cross entropy or focal."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

from torch import Tensor
from torch.nn import functional

from droseg.losses.base import PerCaseLoss, include_background_or_default
from droseg.losses.overlap import Absent, PerCaseDiceLoss
from droseg.losses.voxelwise import PerCaseCrossEntropyLoss, PerCaseFocalLoss


class PerCaseDiceCELoss(PerCaseLoss):
    """Dice plus cross entropy of each case; the mean over the batch equals MONAI's `DiceCELoss`.

    With `sigmoid` and several regions, MONAI's `DiceCELoss` takes a *softmax* cross entropy over the regions, with
    their 0/1 channels as if they were class probabilities: voxels outside of all regions add nothing, and where k
    regions overlap the best possible answer costs k log k. This class gives the same values and warns;
    `PerCaseDiceBCELoss` is what regions need. (With one region MONAI takes binary cross entropy, and so do we.)

    Args:
        include_background: whether channel 0 counts in the Dice term; by default only with `sigmoid`.
        squared_pred: squared denominator of the Dice term (Milletari et al. 2016).
        lambda_dice, lambda_ce: weights of the two terms.
        smooth: added to numerator and denominator of Dice, in voxels.
        sigmoid: overlapping regions instead of exclusive classes, see `PerCaseLoss`.
        class_weight: one weight per channel, used in both terms. Cross entropy is normalized by the weights of the case
            alone, so that with weights each value is MONAI's loss of that case alone, but their plain mean is not
            MONAI's loss of the batch (see `PerCaseCrossEntropyLoss`); Dice is not normalized (see `PerCaseDiceLoss`).
        label_smoothing: of the cross entropy, only for exclusive classes.
        absent: what a structure that the label lacks costs in the Dice term, see `PerCaseDiceLoss`.
        batch: only False.
    Raises:
        ValueError: if an option is unknown, a lambda negative, or `batch` set.
    """

    def __init__(
        self,
        include_background: bool | None = None,
        squared_pred: bool = False,
        lambda_dice: float = 1.0,
        lambda_ce: float = 1.0,
        smooth: float = 1e-5,
        *,
        sigmoid: bool = False,
        class_weight: Sequence[float] | Tensor | None = None,
        label_smoothing: float = 0.0,
        absent: Absent = "count",
        batch: bool = False,
    ) -> None:
        super().__init__(sigmoid=sigmoid, batch=batch)
        check_lambdas(lambda_dice=lambda_dice, lambda_ce=lambda_ce)
        self.dice = PerCaseDiceLoss(
            include_background, squared_pred, smooth, sigmoid=sigmoid, class_weight=class_weight, absent=absent
        )
        self.cross_entropy = PerCaseCrossEntropyLoss(
            sigmoid=sigmoid, class_weight=class_weight, label_smoothing=label_smoothing
        )
        self.lambda_dice, self.lambda_ce = lambda_dice, lambda_ce

    def case_values(self, pred: Tensor, label: Tensor) -> Tensor:
        """Return Dice plus cross entropy of each case, shape (B,)."""
        dice = self.dice.case_values(pred, label)
        if self.sigmoid and pred.shape[1] > 1:
            cross_entropy = self._softmax_over_regions(pred, label)
        else:
            cross_entropy = self.cross_entropy.case_values(pred, label)
        return self.lambda_dice * dice + self.lambda_ce * cross_entropy

    def _softmax_over_regions(self, pred: Tensor, label: Tensor) -> Tensor:
        warnings.warn(
            "Dice + CE of several regions is MONAI's, a softmax cross entropy, which is wrong where regions overlap; "
            "use PerCaseDiceBCELoss.",
            stacklevel=2,
        )
        weight = None if self.cross_entropy.weight is None else self.cross_entropy.weight.to(pred)
        return functional.cross_entropy(pred, label, weight=weight, reduction="none").flatten(1).mean(dim=1)


class PerCaseDiceBCELoss(PerCaseLoss):
    """Dice plus binary cross entropy of each case, for overlapping regions.

    The batch mean equals MONAI's `DiceLoss(sigmoid=True)` plus torch's `BCEWithLogitsLoss`, the loss that
    nnU-Net trains regions with; for one region it is MONAI's `DiceCELoss`.

    Args:
        squared_pred, lambda_dice, smooth, absent, batch: as of `PerCaseDiceCELoss`.
        lambda_bce: weight of the cross entropy.
        class_weight: one weight per region: of its Dice loss, and in cross entropy of the voxels inside it
            (`pos_weight`). The batch mean stays that of MONAI and torch.
    Raises:
        ValueError: if an option is unknown, a lambda negative, or `batch` set.
    """

    def __init__(
        self,
        squared_pred: bool = False,
        lambda_dice: float = 1.0,
        lambda_bce: float = 1.0,
        smooth: float = 1e-5,
        *,
        class_weight: Sequence[float] | Tensor | None = None,
        absent: Absent = "count",
        batch: bool = False,
    ) -> None:
        super().__init__(sigmoid=True, batch=batch)
        check_lambdas(lambda_dice=lambda_dice, lambda_bce=lambda_bce)
        self.dice = PerCaseDiceLoss(True, squared_pred, smooth, sigmoid=True, class_weight=class_weight, absent=absent)
        self.cross_entropy = PerCaseCrossEntropyLoss(sigmoid=True, class_weight=class_weight)
        self.lambda_dice, self.lambda_bce = lambda_dice, lambda_bce

    def case_values(self, pred: Tensor, label: Tensor) -> Tensor:
        """Return Dice plus binary cross entropy of each case, shape (B,)."""
        cross_entropy = self.cross_entropy.case_values(pred, label)
        return self.lambda_dice * self.dice.case_values(pred, label) + self.lambda_bce * cross_entropy


class PerCaseDiceFocalLoss(PerCaseLoss):
    """Dice plus focal loss of each case; the mean over the batch equals MONAI's `DiceFocalLoss`.

    As there, the focal term takes each class against the rest by a sigmoid, also where the Dice term takes softmax.

    Args:
        include_background: whether channel 0 counts, in both terms; by default only with `sigmoid`.
        squared_pred: squared denominator of the Dice term (Milletari et al. 2016).
        gamma, alpha: of the focal term, see `PerCaseFocalLoss`.
        lambda_dice, lambda_focal: weights of the two terms.
        smooth: added to numerator and denominator of Dice, in voxels.
        sigmoid: overlapping regions instead of exclusive classes, see `PerCaseLoss`.
        class_weight: one weight per channel, used in both terms; neither is normalized by it, so the batch mean
            stays MONAI's.
        absent: what a structure that the label lacks costs in the Dice term, see `PerCaseDiceLoss`.
        batch: only False.
    Raises:
        ValueError: if an option is unknown, a lambda negative, or `batch` set.
    """

    def __init__(
        self,
        include_background: bool | None = None,
        squared_pred: bool = False,
        gamma: float = 2.0,
        alpha: float | None = None,
        lambda_dice: float = 1.0,
        lambda_focal: float = 1.0,
        smooth: float = 1e-5,
        *,
        sigmoid: bool = False,
        class_weight: Sequence[float] | Tensor | None = None,
        absent: Absent = "count",
        batch: bool = False,
    ) -> None:
        super().__init__(sigmoid=sigmoid, batch=batch)
        check_lambdas(lambda_dice=lambda_dice, lambda_focal=lambda_focal)
        background = include_background_or_default(include_background, sigmoid)
        self.dice = PerCaseDiceLoss(
            background, squared_pred, smooth, sigmoid=sigmoid, class_weight=class_weight, absent=absent
        )
        self.focal = PerCaseFocalLoss(
            gamma, alpha, background, one_vs_rest=not sigmoid, sigmoid=sigmoid, class_weight=class_weight
        )
        self.lambda_dice, self.lambda_focal = lambda_dice, lambda_focal

    def case_values(self, pred: Tensor, label: Tensor) -> Tensor:
        """Return Dice plus focal loss of each case, shape (B,)."""
        focal = self.focal.case_values(pred, label)
        return self.lambda_dice * self.dice.case_values(pred, label) + self.lambda_focal * focal


def check_lambdas(**lambdas: float) -> None:
    """Return nothing.

    Raises:
        ValueError: if a weight of a term is negative.
    """
    for name, value in lambdas.items():
        if not value >= 0:
            raise ValueError(f"{name} is {value}; it must be >= 0.")
