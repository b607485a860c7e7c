"""Dice, Tversky and generalized Dice of cases that lack structures, against closed forms."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from droseg.losses import PerCaseDiceCELoss, PerCaseDiceLoss, PerCaseGeneralizedDiceLoss, PerCaseTverskyLoss


def absent_structure(probability: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Return logits that give one region everywhere that probability, and a label of 1000 voxels without it."""
    logit = torch.logit(torch.tensor(probability, dtype=torch.float64)).float()
    return torch.full((1, 1, 10, 10, 10), float(logit), requires_grad=True), torch.zeros(1, 1, 10, 10, 10)


@pytest.mark.parametrize("probability", [0.5, 1e-3, 1e-6, 1e-8, 1e-10])
@pytest.mark.parametrize("smooth", [1e-5, 1.0, 100.0])
def test_an_absent_structure_costs_p_over_p_plus_smooth_and_hardly_has_a_gradient(probability: float, smooth: float):
    pred, label = absent_structure(probability)
    loss = PerCaseDiceLoss(sigmoid=True, smooth=smooth)(pred, label)
    (gradient,) = torch.autograd.grad(loss.sum(), pred)
    volume = 1000 * probability
    assert float(loss.detach()) == pytest.approx(volume / (volume + smooth), rel=1e-4, abs=1e-6)
    by_logit = probability * (1 - probability)  # derivative of the sigmoid
    assert float(gradient[0, 0, 0, 0, 0]) == pytest.approx(smooth / (volume + smooth) ** 2 * by_logit, rel=1e-4)


@pytest.mark.parametrize("alpha", [0.3, 0.5, 0.9])
def test_an_absent_structure_costs_tversky_likewise(alpha: float):
    pred, label = absent_structure(1e-3)
    loss = PerCaseTverskyLoss(alpha, 1 - alpha, sigmoid=True, smooth=1.0)(pred, label)
    assert float(loss.detach()) == pytest.approx(1 / (1 + 1 / alpha), rel=1e-5)


def uniform_guess(absent: bool) -> tuple[torch.Tensor, torch.Tensor]:
    label = torch.zeros(1, 1, 8, 8, 8)
    label[:, :, :4] = 1
    if not absent:
        label[:, :, 4:6] = 2
    return torch.zeros(1, 3, 8, 8, 8, requires_grad=True), label


def test_cross_entropy_teaches_what_dice_cannot():
    pred, label = uniform_guess(absent=True)
    (dice,) = torch.autograd.grad(PerCaseDiceLoss()(pred, label).sum(), pred)
    (both,) = torch.autograd.grad(PerCaseDiceCELoss(lambda_dice=0.0)(pred, label).sum(), pred)
    (only_absent,) = torch.autograd.grad(PerCaseDiceLoss(class_weight=[1.0, 0.0, 1.0])(pred, label).sum(), pred)
    assert only_absent.abs().max() < 1e-9
    assert dice.abs().max() > 1e-4  # of the structure that is there
    assert both[0, 2].min() > 1e-4  # pushes the absent structure down everywhere


def test_an_absent_structure_adds_its_share_to_a_case_unless_skipped():
    pred, label = uniform_guess(absent=True)
    present = 1 - 2 * (256 / 3) / (512 / 3 + 256)  # Dice of a third of all voxels with half of them
    assert PerCaseDiceLoss()(pred, label).tolist() == pytest.approx([(present + 1) / 2], rel=1e-5)
    for loss in (PerCaseDiceLoss(absent="skip"), PerCaseTverskyLoss(absent="skip")):
        assert loss(pred, label).tolist() == pytest.approx([present], rel=1e-5)


def test_skipping_changes_nothing_where_all_structures_are_present():
    pred, label = uniform_guess(absent=False)
    for kind in (PerCaseDiceLoss, PerCaseTverskyLoss, PerCaseDiceCELoss):
        assert kind(absent="skip")(pred, label).tolist() == pytest.approx(kind()(pred, label).tolist(), rel=1e-6)


def test_skipping_is_decided_for_each_case_and_region(regions: Callable):
    pred, label = regions(3, size=(6, 6, 6))  # all regions, only the first, none
    each = torch.stack(
        [PerCaseDiceLoss(sigmoid=True)(pred[:, r : r + 1], label[:, r : r + 1]) for r in range(3)], dim=1
    )
    expected = [float(each[0].mean()), float(each[1, 0]), 0.0]
    assert PerCaseDiceLoss(sigmoid=True, absent="skip")(pred, label).tolist() == pytest.approx(expected, rel=1e-6)


def test_weights_stay_with_their_structures_when_others_are_skipped():
    pred, label = uniform_guess(absent=True)
    present = float(PerCaseDiceLoss(absent="skip")(pred, label).detach())
    weighted = PerCaseDiceLoss(absent="skip", class_weight=[7.0, 3.0, 5.0])(pred, label)
    assert float(weighted.detach()) == pytest.approx(3 * present, rel=1e-6)


def test_dice_is_not_divided_by_the_class_weights(classes: Callable):
    pred, label = classes()
    once = PerCaseDiceLoss(class_weight=[1.0, 2.0, 3.0, 4.0])(pred, label)
    tenfold = PerCaseDiceLoss(class_weight=[10.0, 20.0, 30.0, 40.0])(pred, label)
    assert tenfold.tolist() == pytest.approx((10 * once).tolist(), rel=1e-6)


def test_generalized_dice_never_finds_a_case_without_structures_hard():
    label = torch.zeros(1, 1, 8, 8, 8)
    pred = torch.zeros(1, 2, 8, 8, 8)
    pred[:, 1] = 5.0  # a false positive everywhere
    pred.requires_grad_(True)
    loss = PerCaseGeneralizedDiceLoss()(pred, label)
    loss.sum().backward()
    assert loss.tolist() == [0.0]
    assert float(pred.grad.abs().max()) == 0.0
    assert PerCaseDiceLoss()(pred, label).tolist() == pytest.approx([1.0])


@pytest.mark.parametrize(("size", "squared"), [(32, 0.462), (96, 0.156)])
def test_the_default_smooth_makes_large_volumes_easy_for_generalized_dice(size: int, squared: float):
    label = torch.zeros(1, 1, size, size, size)
    label[:, :, : size // 2] = 1
    pred = torch.zeros(1, 2, size, size, size)
    assert float(PerCaseGeneralizedDiceLoss()(pred, label)) == pytest.approx(squared, abs=5e-4)
    for loss in (PerCaseGeneralizedDiceLoss(smooth=1e-10), PerCaseGeneralizedDiceLoss(w_type="simple")):
        assert float(loss(pred, label)) == pytest.approx(0.5, abs=1e-3)


def test_generalized_dice_weighs_structures_by_their_inverse_squared_volume():
    label = torch.zeros(1, 1, 4, 4, 4)
    label[:, :, :2] = 1  # 32 voxels
    label[:, :, 2, 0] = 2  # 4 voxels
    pred = torch.zeros(1, 3, 4, 4, 4)  # a third each
    weight = torch.tensor([1 / 32**2, 1 / 4**2])
    overlap, total = torch.tensor([32 / 3, 4 / 3]), torch.tensor([64 / 3 + 32, 64 / 3 + 4])
    expected = 1 - 2 * (weight * overlap).sum() / (weight * total).sum()
    assert float(PerCaseGeneralizedDiceLoss(smooth=1e-10)(pred, label)) == pytest.approx(float(expected), rel=1e-5)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: PerCaseDiceLoss(absent="ignore"), r"absent is 'ignore'; choose one of count, skip"),
        (lambda: PerCaseTverskyLoss(alpha=-0.1), r"alpha is -0\.1.*>= 0"),
        (lambda: PerCaseGeneralizedDiceLoss(w_type="cubic"), "cubic"),
    ],
)
def test_unknown_options_are_refused(build: Callable, message: str):
    with pytest.raises(ValueError, match=message):
        build()
