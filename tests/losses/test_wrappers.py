"""Deep supervision against MONAI's, with MONAI's networks; and any loss applied to each case alone."""

from __future__ import annotations

from collections.abc import Callable

import monai.losses as monai
import numpy as np
import pytest
import torch
from monai.networks.nets import DynUNet, SegResNetDS

from droseg.losses import EachCaseLoss, PerCaseDeepSupervisionLoss, PerCaseDiceBCELoss, PerCaseDiceCELoss

DICE_CE = monai.DiceCELoss(include_background=False, to_onehot_y=True, softmax=True)


def pyramid(pred: torch.Tensor, levels: int = 3) -> list[torch.Tensor]:
    """Return unequal outputs on the grid of pred and on coarser ones."""
    return [pred] + [torch.nn.functional.avg_pool3d(pred, 2**level) * (level + 1) for level in range(1, levels)]


@pytest.mark.parametrize(
    "options", [{}, {"weight_mode": "same"}, {"weight_mode": "two"}, {"weights": [1.0, 0.2, 0.7, 9.0]}]
)
@pytest.mark.parametrize("levels", [1, 2, 3])
def test_the_batch_mean_is_monais_deep_supervision(options: dict, levels: int, classes: Callable):
    pred, label = classes(size=(8, 8, 12))
    outputs = pyramid(pred.requires_grad_(True), levels)
    loss = PerCaseDeepSupervisionLoss(PerCaseDiceCELoss(), **options)(outputs, label)
    monais = monai.DeepSupervisionLoss(DICE_CE, **options)(outputs, label.float())
    assert loss.shape == (3,)
    assert loss.mean().item() == pytest.approx(monais.item(), rel=1e-6)
    (ours,) = torch.autograd.grad(loss.mean(), pred, retain_graph=True)
    (expected,) = torch.autograd.grad(monais, pred)
    torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-6 * float(expected.abs().max()))


def test_six_levels_reach_the_smallest_weight_of_a_sixteenth(classes: Callable):
    pred, label = classes(size=(8, 8, 8))
    outputs = [pred] * 6
    loss = PerCaseDeepSupervisionLoss(PerCaseDiceCELoss())(outputs, label)
    assert float(loss.mean()) == pytest.approx(float(monai.DeepSupervisionLoss(DICE_CE)(outputs, label)), rel=1e-6)
    assert loss.tolist() == pytest.approx((2.0 * PerCaseDiceCELoss()(pred, label)).tolist(), rel=1e-6)


def test_each_value_is_the_loss_of_its_case_alone(classes: Callable):
    pred, label = classes(size=(8, 8, 8))
    loss = PerCaseDeepSupervisionLoss(PerCaseDiceCELoss())
    monais = monai.DeepSupervisionLoss(DICE_CE)
    alone = [float(monais(pyramid(pred[i : i + 1]), label[i : i + 1].float())) for i in range(3)]
    assert loss(pyramid(pred), label).tolist() == pytest.approx(alone, rel=1e-6)


def test_regions_are_supervised_on_their_own_grids(regions: Callable):
    pred, label = regions(size=(8, 8, 8))

    def dice_bce(pred: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        return monai.DiceLoss(sigmoid=True)(pred, label) + torch.nn.BCEWithLogitsLoss()(pred, label)

    loss = PerCaseDeepSupervisionLoss(PerCaseDiceBCELoss())(pyramid(pred), label)
    assert float(loss.mean()) == pytest.approx(
        float(monai.DeepSupervisionLoss(dice_bce)(pyramid(pred), label)), rel=1e-6
    )


def test_the_stacked_outputs_of_dynunet_train_and_its_single_output_evaluates():
    network = DynUNet(
        3, 1, 3, [3] * 4, [1, 2, 2, 2], [2, 2, 2], filters=[4, 4, 4, 4], deep_supervision=True, deep_supr_num=2
    )
    image, label = torch.randn(2, 1, 16, 16, 16), torch.randint(3, (2, 1, 16, 16, 16))
    loss = PerCaseDeepSupervisionLoss(PerCaseDiceCELoss())
    stacked = network.train()(image)
    assert stacked.shape == (2, 3, 3, 16, 16, 16)
    monais = monai.DeepSupervisionLoss(DICE_CE)(list(torch.unbind(stacked, dim=1)), label.float())
    values = loss(stacked, label)
    assert values.shape == stacked.shape[:1]
    assert values.mean().item() == pytest.approx(monais.item(), rel=1e-6)
    values.mean().backward()
    assert all(head.conv.conv.weight.grad.abs().max() > 0 for head in network.deep_supervision_heads)
    with torch.no_grad():
        single = network.eval()(image)
    assert loss(single, label).tolist() == PerCaseDiceCELoss()(single, label).tolist()


def test_the_list_of_outputs_of_segresnetds_trains():
    network = SegResNetDS(3, 4, 1, 3, blocks_down=(1, 1, 1, 1), dsdepth=3).train()
    image, label = torch.randn(2, 1, 16, 16, 16), torch.randint(3, (2, 1, 16, 16, 16))
    outputs = network(image)
    assert [tuple(out.shape[2:]) for out in outputs] == [(16, 16, 16), (8, 8, 8), (4, 4, 4)]
    values = PerCaseDeepSupervisionLoss(PerCaseDiceCELoss())(outputs, label)
    monais = monai.DeepSupervisionLoss(DICE_CE)(outputs, label.float())
    assert values.mean().item() == pytest.approx(monais.item(), rel=1e-6)


def test_bfloat16_outputs_are_reduced_in_float32(classes: Callable):
    pred, label = classes(size=(8, 8, 8))
    loss = PerCaseDeepSupervisionLoss(PerCaseDiceCELoss())
    outputs = [out.bfloat16() for out in pyramid(pred)]
    assert loss(outputs, label).tolist() == loss([out.float() for out in outputs], label).tolist()
    squared = PerCaseDeepSupervisionLoss(lambda pred, _: pred.square().flatten(1).mean(dim=1))  # anyone's own loss
    assert squared(outputs, label).dtype == torch.float32


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: PerCaseDeepSupervisionLoss(PerCaseDiceCELoss(), "linear"), "weight_mode is 'linear'"),
        (lambda: PerCaseDeepSupervisionLoss(PerCaseDiceCELoss(), weights=[1.0, -1.0]), "must be >= 0"),
        (
            lambda: PerCaseDeepSupervisionLoss(EachCaseLoss(monai.DiceLoss(batch=True))),
            "no case has a value of its own",
        ),
        (lambda: PerCaseDeepSupervisionLoss(monai.DiceCELoss(batch=True)), "no case has a value of its own"),
        (lambda: EachCaseLoss(monai.GeneralizedDiceFocalLoss(batch=True)), "no case has a value of its own"),
    ],
)
def test_what_has_no_meaning_is_refused_when_it_is_built(build: Callable, message: str):
    with pytest.raises(ValueError, match=message):
        build()


def test_outputs_that_do_not_fit_are_refused(classes: Callable):
    pred, label = classes()
    loss = PerCaseDeepSupervisionLoss(PerCaseDiceCELoss())
    for wrong in ([], [pred, None], pred[0], pred[None, None]):
        with pytest.raises(ValueError, match=r"expected a list of \(B, C, h, w, d\)"):
            loss(wrong, label)
    with pytest.raises(ValueError, match="2 outputs, 1 weights"):  # MONAI would take other weights without a word
        PerCaseDeepSupervisionLoss(PerCaseDiceCELoss(), weights=[1.0])([pred, pred], label)
    with pytest.raises(ValueError, match=r"returned shape \(\) for a batch of 3"):
        PerCaseDeepSupervisionLoss(DICE_CE)([pred, pred], label)


def wasserstein() -> monai.GeneralizedWassersteinDiceLoss:
    distances = np.array([[0, 1, 1, 1], [1, 0, 0.5, 0.5], [1, 0.5, 0, 0.2], [1, 0.5, 0.2, 0]], dtype=np.float32)
    return monai.GeneralizedWassersteinDiceLoss(distances)


@pytest.mark.parametrize(
    "reduced",
    [
        DICE_CE,
        wasserstein(),
        monai.GeneralizedDiceFocalLoss(to_onehot_y=True, softmax=True),
        monai.HausdorffDTLoss(to_onehot_y=True, softmax=True),
    ],
)
def test_any_reduced_loss_has_a_value_for_each_case(reduced: torch.nn.Module, classes: Callable):
    pred, label = classes()
    label = label.float()
    loss = EachCaseLoss(reduced)(pred, label)
    assert loss.shape == (3,)
    assert float(loss.mean()) == pytest.approx(float(reduced(pred, label)), rel=1e-5)
    assert loss.tolist() == pytest.approx([float(reduced(p[None], y[None])) for p, y in zip(pred, label, strict=True)])


def test_ignored_voxels_are_left_to_monai_case_by_case(classes: Callable):
    pred, label = classes()
    unlabeled = label.float()
    unlabeled[1, 0, :2] = 255
    monais = monai.DiceLoss(to_onehot_y=True, softmax=True, ignore_index=255)
    cropped = monais(pred[1:2, :, 2:], label[1:2, :, 2:].float())
    assert float(EachCaseLoss(monais)(pred, unlabeled)[1]) == pytest.approx(float(cropped), rel=1e-5)


def test_a_loss_that_is_not_reduced_is_refused(classes: Callable):
    pred, label = classes()
    with pytest.raises(ValueError, match=r"expected one number \(reduction='mean'\)"):
        EachCaseLoss(monai.DiceLoss(reduction="none", to_onehot_y=True))(pred, label)
    with pytest.raises(ValueError, match="pred has 3 cases, label 2"):
        EachCaseLoss(DICE_CE)(pred, label[:2])
