"""Dice + CE, Dice + BCE and Dice + focal: what right, wrong and overlapping answers cost, by hand."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable

import monai.losses as monai
import pytest
import torch

from droseg.losses import PerCaseDiceBCELoss, PerCaseDiceCELoss, PerCaseDiceFocalLoss


@pytest.mark.parametrize("num_classes", [2, 3, 9])
@pytest.mark.parametrize("options", [{}, {"include_background": True}, {"squared_pred": True}, {"lambda_ce": 0.5}])
def test_the_batch_mean_is_monais_dice_ce_for_any_number_of_classes(num_classes: int, options: dict, classes: Callable):
    pred, label = classes(num_classes)
    reduced = monai.DiceCELoss(**{"include_background": False, **options}, to_onehot_y=True, softmax=True)
    assert float(PerCaseDiceCELoss(**options)(pred, label).mean()) == pytest.approx(
        float(reduced(pred, label.float())), rel=1e-6
    )


def test_a_right_prediction_costs_nothing_and_a_missed_structure_does():
    label = torch.zeros(1, 1, 4, 4, 4)
    label[..., :2] = 1
    right = 100 * torch.cat([label == 0, label == 1], dim=1).float()
    assert PerCaseDiceCELoss()(right, label).tolist() == pytest.approx([0.0], abs=1e-6)
    missed = torch.zeros(1, 2, 4, 4, 4)
    missed[:, 0] = 20.0
    assert PerCaseDiceCELoss()(missed, label).tolist() == pytest.approx([1.0 + 10.0], rel=1e-3)  # Dice 0; CE 20 / 2


def test_a_structure_absent_from_label_and_prediction_is_finite():
    label = torch.zeros(2, 1, 4, 4, 4)
    pred = torch.zeros(2, 3, 4, 4, 4)
    pred[:, 0] = 200.0
    assert PerCaseDiceCELoss()(pred, label).tolist() == pytest.approx([0.0, 0.0], abs=1e-6)


def overlapping_regions() -> tuple[torch.Tensor, torch.Tensor]:
    """Return a right prediction of two regions, the second inside the first, as in tumor and its core."""
    label = torch.zeros(1, 2, 4, 4, 4)
    label[:, 0, :2] = 1
    label[:, 1, :1] = 1
    return 100 * (2 * label - 1), label


def test_a_right_prediction_of_overlapping_regions_costs_nothing_with_binary_cross_entropy():
    assert PerCaseDiceBCELoss()(*overlapping_regions()).tolist() == pytest.approx([0.0], abs=1e-6)


def test_dice_ce_of_overlapping_regions_is_monais_and_says_what_is_wrong_with_it():
    pred, label = overlapping_regions()
    with pytest.warns(UserWarning, match="use PerCaseDiceBCELoss"):
        loss = PerCaseDiceCELoss(sigmoid=True)(pred, label)
    assert float(loss) == pytest.approx(float(monai.DiceCELoss(sigmoid=True)(pred, label)), rel=1e-6)
    assert float(loss) == pytest.approx(2 * math.log(2) / 4, rel=1e-5)  # k log k, k = 2, in a quarter of the volume


def test_one_region_takes_binary_cross_entropy_in_both_without_a_warning(regions: Callable):
    pred, label = regions(1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        dice_ce = PerCaseDiceCELoss(sigmoid=True, class_weight=[3.0])(pred, label)
    monais = monai.DiceCELoss(sigmoid=True, weight=torch.tensor([3.0]))
    assert float(dice_ce.mean()) == pytest.approx(float(monais(pred, label)), rel=1e-6)
    assert dice_ce.tolist() == pytest.approx(PerCaseDiceBCELoss(class_weight=[3.0])(pred, label).tolist(), rel=1e-6)


def test_the_background_counts_in_dice_by_default_only_for_regions(classes: Callable, regions: Callable):
    pred, label = classes()
    by_default = PerCaseDiceFocalLoss()(pred, label)
    assert by_default.tolist() == PerCaseDiceFocalLoss(False)(pred, label).tolist()
    assert by_default.tolist() != PerCaseDiceFocalLoss(True)(pred, label).tolist()
    pred, label = regions()
    by_default = PerCaseDiceFocalLoss(sigmoid=True)(pred, label)
    assert by_default.tolist() == PerCaseDiceFocalLoss(True, sigmoid=True)(pred, label).tolist()


@pytest.mark.parametrize(
    "build",
    [
        lambda: PerCaseDiceCELoss(lambda_ce=-1.0),
        lambda: PerCaseDiceBCELoss(lambda_bce=-1.0),
        lambda: PerCaseDiceFocalLoss(lambda_dice=float("nan")),
    ],
)
def test_negative_weights_of_terms_are_refused(build: Callable):
    with pytest.raises(ValueError, match=r"lambda_\w+ is .*must be >= 0"):
        build()
