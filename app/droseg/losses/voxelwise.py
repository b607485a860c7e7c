"""Voxelwise losses of each case: cross entropy and focal."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from monai.losses import FocalLoss
from torch import Tensor
from torch.nn import functional

from droseg.losses.base import PerCaseLoss, check_weight_count, class_weight_tensor


class PerCaseCrossEntropyLoss(PerCaseLoss):
    """Cross entropy of each case, the mean over its voxels; the batch mean equals torch's.

    With softmax that is `nn.CrossEntropyLoss`, with `sigmoid` `nn.BCEWithLogitsLoss`, the mean over voxels and regions.

    Args:
        sigmoid: overlapping regions instead of exclusive classes, see `PerCaseLoss`.
        class_weight: one weight per channel. With softmax, as torch does it for this case alone: the weighted sum over
            the voxels is divided by the sum W of their weights. Torch divides by the sum over the whole batch, so its
            value is the mean of the cases *weighted by W*, where one case's loss depends on its batch mates; the plain
            mean of ours differs from it, and a case of which no voxel has a weight gets 0 (torch: NaN when alone). With
            `sigmoid` it multiplies the voxels inside a region (`pos_weight`), and the batch mean stays torch's.
        label_smoothing: as of `nn.CrossEntropyLoss`, only for exclusive classes.
        batch: only False.
    Raises:
        ValueError: if label_smoothing is outside [0, 1] or given for regions, or `batch` is set.
    """

    def __init__(
        self,
        *,
        sigmoid: bool = False,
        class_weight: Sequence[float] | Tensor | None = None,
        label_smoothing: float = 0.0,
        batch: bool = False,
    ) -> None:
        super().__init__(sigmoid=sigmoid, batch=batch)
        if not 0 <= label_smoothing <= 1 or (sigmoid and label_smoothing > 0):
            raise ValueError(
                f"label_smoothing is {label_smoothing}; it must be in [0, 1], and 0 for regions (sigmoid=True), where "
                "cross entropy has no classes to spread a label over."
            )
        self.weight, self.label_smoothing = class_weight_tensor(class_weight), label_smoothing

    def case_values(self, pred: Tensor, label: Tensor) -> Tensor:
        """Return the cross entropy of each case, shape (B,)."""
        check_weight_count(self.weight, pred.shape[1])
        weight = None if self.weight is None else self.weight.to(pred)
        if self.sigmoid:
            positive = None if weight is None else weight.view(-1, *[1] * (pred.ndim - 2))
            binary = functional.binary_cross_entropy_with_logits(pred, label, pos_weight=positive, reduction="none")
            return binary.flatten(1).mean(dim=1)
        index = label[:, 0].long()
        voxels = functional.cross_entropy(
            pred, index, weight=weight, reduction="none", label_smoothing=self.label_smoothing
        ).flatten(1)
        if weight is None:
            return voxels.mean(dim=1)
        total = weight[index].flatten(1).sum(dim=1)
        return voxels.sum(dim=1) / total.clamp(min=torch.finfo(total.dtype).tiny)


class PerCaseFocalLoss(PerCaseLoss):
    """Focal loss of each case, the mean over its voxels and channels; the batch mean equals MONAI's `FocalLoss`.

    Lin et al. 2017, arXiv:1708.02002, eq. 4 and 5. With softmax only the channel of the true class is not 0, so that
    the mean over C channels is 1 / C of the mean over voxels.

    Args:
        gamma: exponent of (1 - p) of the true class; 0 is cross entropy.
        alpha: weight of the foreground against 1 - alpha of the background, or one weight per counted channel.
        include_background: whether channel 0 counts; False only with `sigmoid` or `one_vs_rest`.
        one_vs_rest: for exclusive classes: each class against the others by a sigmoid (MONAI's default, and its only
            way in `DiceFocalLoss`) instead of softmax.
        sigmoid: overlapping regions instead of exclusive classes, see `PerCaseLoss`.
        class_weight: one weight per channel. The values of each channel are multiplied by its weight; the sum is
            divided by the number of voxels and channels, not by the weights, so the batch mean stays MONAI's.
        batch: only False.
    Raises:
        ValueError: if the options do not fit together (each message says why) or `batch` is set.
    """

    def __init__(
        self,
        gamma: float = 2.0,
        alpha: float | Sequence[float] | None = None,
        include_background: bool = True,
        *,
        one_vs_rest: bool = False,
        sigmoid: bool = False,
        class_weight: Sequence[float] | Tensor | None = None,
        batch: bool = False,
    ) -> None:
        super().__init__(sigmoid=sigmoid, batch=batch)
        softmax = not (sigmoid or one_vs_rest)
        if softmax and not include_background:
            raise ValueError(
                "include_background=False drops channel 0 before the softmax in MONAI's FocalLoss: false positives in "
                "the background then cost nothing, and with two classes the loss is always 0. Keep the background "
                "(lower its class_weight if it dominates), or set one_vs_rest=True."
            )
        if gamma < 0 or (softmax and 0 < gamma < 1):
            raise ValueError(
                f"gamma is {gamma}; it must be >= 0, and with softmax 0 or >= 1: in between, MONAI's gradient is NaN "
                "where the true class has probability 1."
            )
        self.weight = class_weight_tensor(class_weight)
        self.loss = FocalLoss(
            include_background=include_background,
            to_onehot_y=not sigmoid,
            gamma=gamma,
            alpha=alpha,
            weight=self.weight if include_background or self.weight is None else self.weight[1:],
            reduction="none",
            use_softmax=softmax,
        )

    def case_values(self, pred: Tensor, label: Tensor) -> Tensor:
        """Return the focal loss of each case, shape (B,)."""
        check_weight_count(self.weight, pred.shape[1])
        return torch.as_tensor(self.loss(pred, label)).flatten(1).mean(dim=1)
