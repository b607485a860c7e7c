"""Losses with one value per case, shape (B,): what a loss history needs and MONAI's reduced losses do not give."""

from __future__ import annotations

import torch
from monai.losses import DiceLoss
from torch import Tensor, nn


class PerCaseDiceCELoss(nn.Module):
    """Dice plus cross entropy of each case; the mean over the batch equals MONAI's `DiceCELoss`.

    Batch Dice (one Dice over the whole batch) has no per-case value, so it is not offered.

    Args:
        include_background: whether class 0 counts in the Dice term.
        squared_pred: squared denominator of the Dice term (Milletari et al. 2016).
        lambda_dice, lambda_ce: weights of the two terms.
        smooth: added to numerator and denominator of Dice.
    """

    def __init__(
        self,
        include_background: bool = False,
        squared_pred: bool = False,
        lambda_dice: float = 1.0,
        lambda_ce: float = 1.0,
        smooth: float = 1e-5,
    ) -> None:
        super().__init__()
        self.dice = DiceLoss(
            include_background=include_background,
            to_onehot_y=True,
            softmax=True,
            squared_pred=squared_pred,
            reduction="none",
            smooth_nr=smooth,
            smooth_dr=smooth,
        )
        self.cross_entropy = nn.CrossEntropyLoss(reduction="none")
        self.lambda_dice, self.lambda_ce = lambda_dice, lambda_ce

    def forward(self, pred: Tensor, label: Tensor) -> Tensor:
        """Return the loss of each case, shape (B,).

        Args:
            pred: logits, shape (B, C, H, W, D), C >= 2.
            label: class indices, shape (B, 1, H, W, D).
        Raises:
            ValueError: if the shapes do not fit.
        """
        if pred.shape[1] < 2 or label.shape != (pred.shape[0], 1, *pred.shape[2:]):
            raise ValueError(
                f"pred has shape {tuple(pred.shape)}, label {tuple(label.shape)}; "
                "expected (B, C >= 2, H, W, D) and (B, 1, H, W, D) on one grid."
            )
        pred, label = pred.float(), label.float()
        dice = self.dice(pred, label).flatten(1).mean(dim=1)
        cross_entropy = self.cross_entropy(pred, label[:, 0].long()).flatten(1).mean(dim=1)
        return torch.as_tensor(self.lambda_dice * dice + self.lambda_ce * cross_entropy)
