"""Cross entropy and focal: what class weights do to one case and to a batch, and which options are refused."""

from __future__ import annotations

from collections.abc import Callable

import monai.losses as monai
import pytest
import torch
from torch import nn

from droseg.losses import PerCaseCrossEntropyLoss, PerCaseDiceFocalLoss, PerCaseFocalLoss

WEIGHT = torch.tensor([0.2, 1.0, 3.0, 0.0])


@pytest.mark.parametrize("label_smoothing", [0.0, 0.2])
def test_torchs_weighted_cross_entropy_is_the_mean_of_ours_weighted_by_the_cases_own_weights(
    label_smoothing: float, classes: Callable
):
    pred, label = classes()
    ours = PerCaseCrossEntropyLoss(class_weight=WEIGHT, label_smoothing=label_smoothing)(pred, label)
    torchs = nn.CrossEntropyLoss(weight=WEIGHT, label_smoothing=label_smoothing)(pred, label[:, 0])
    total = WEIGHT[label].flatten(1).sum(dim=1)
    assert float((ours * total).sum() / total.sum()) == pytest.approx(float(torchs), rel=1e-6)
    assert abs(float(ours.mean()) - float(torchs)) > 0.01  # so the plain mean is another number


@pytest.mark.parametrize("label_smoothing", [0.0, 0.2])
def test_weighted_cross_entropy_of_each_case_is_torchs_of_the_case_alone(label_smoothing: float, classes: Callable):
    pred, label = classes()
    torchs = nn.CrossEntropyLoss(weight=WEIGHT, label_smoothing=label_smoothing)
    alone = [float(torchs(pred[i : i + 1], label[i : i + 1, 0])) for i in range(3)]
    ours = PerCaseCrossEntropyLoss(class_weight=WEIGHT, label_smoothing=label_smoothing)(pred, label)
    assert ours.tolist() == pytest.approx(alone, rel=1e-6)


def test_the_scale_of_class_weights_is_divided_out_of_cross_entropy_and_not_of_focal(classes: Callable):
    pred, label = classes()
    for kind, factor in ((PerCaseCrossEntropyLoss, 1.0), (PerCaseFocalLoss, 10.0)):
        once, tenfold = (kind(class_weight=scale * WEIGHT)(pred, label) for scale in (1, 10))
        assert tenfold.tolist() == pytest.approx((factor * once).tolist(), rel=1e-5)


def test_a_case_of_which_no_voxel_has_a_weight_costs_nothing_and_is_no_nan():
    label = torch.full((1, 1, 4, 4, 4), 3)
    pred = torch.randn(1, 4, 4, 4, 4, requires_grad=True)
    loss = PerCaseCrossEntropyLoss(class_weight=WEIGHT)(pred, label)
    loss.sum().backward()
    assert loss.tolist() == [0.0]
    assert float(pred.grad.abs().max()) == 0.0
    assert torch.isnan(nn.CrossEntropyLoss(weight=WEIGHT)(pred, label[:, 0]))


def test_focal_with_gamma_0_is_cross_entropy_over_the_number_of_classes(classes: Callable):
    pred, label = classes(5)
    focal, cross_entropy = PerCaseFocalLoss(gamma=0.0)(pred, label), PerCaseCrossEntropyLoss()(pred, label)
    assert (5 * focal).tolist() == pytest.approx(cross_entropy.tolist(), rel=1e-5)


def test_softmax_focal_without_background_is_refused_since_monais_is_0_for_two_classes(classes: Callable):
    pred, label = classes(2)
    monais = monai.FocalLoss(include_background=False, to_onehot_y=True, use_softmax=True)
    assert float(monais(pred, label)) == 0.0
    with pytest.raises(ValueError, match=r"false positives in the background.*one_vs_rest=True"):
        PerCaseFocalLoss(include_background=False)
    assert (PerCaseFocalLoss(include_background=False, one_vs_rest=True)(pred, label) > 0).all()


def test_softmax_focal_with_gamma_below_1_is_refused_since_monais_gradient_is_nan():
    pred = torch.zeros(1, 2, 2, 2, 2)
    pred[:, 0] = 30.0  # probability 1 in float32
    pred.requires_grad_(True)
    label = torch.zeros(1, 1, 2, 2, 2)
    monai.FocalLoss(to_onehot_y=True, use_softmax=True, gamma=0.5)(pred, label).backward()
    assert torch.isnan(pred.grad).any()
    with pytest.raises(ValueError, match=r"gamma is 0\.5.*NaN"):
        PerCaseFocalLoss(gamma=0.5)
    with pytest.raises(ValueError, match=r"gamma is -1"):
        PerCaseDiceFocalLoss(gamma=-1.0)


@pytest.mark.parametrize("options", [{"label_smoothing": 1.5}, {"label_smoothing": 0.1, "sigmoid": True}])
def test_label_smoothing_without_a_meaning_is_refused(options: dict):
    with pytest.raises(ValueError, match="label_smoothing is"):
        PerCaseCrossEntropyLoss(**options)
