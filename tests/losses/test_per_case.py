"""The per-case loss against MONAI's reduced one."""

from __future__ import annotations

import pytest
import torch
from monai.losses import DiceCELoss

from droseg.losses import PerCaseDiceCELoss


def random_batch(num_classes: int, batch_size: int = 3, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    pred = 3 * torch.randn(batch_size, num_classes, 5, 6, 7, generator=generator)
    label = torch.randint(num_classes, (batch_size, 1, 5, 6, 7), generator=generator)
    return pred, label


@pytest.mark.parametrize("num_classes", [2, 3, 9])
@pytest.mark.parametrize("options", [{}, {"include_background": True}, {"squared_pred": True}, {"lambda_ce": 0.5}])
def test_the_batch_mean_is_monais_dice_ce(num_classes: int, options: dict):
    pred, label = random_batch(num_classes)
    monai = DiceCELoss(**{"include_background": False, **options}, to_onehot_y=True, softmax=True)
    loss = PerCaseDiceCELoss(**options)(pred, label)
    assert loss.shape == (3,)
    assert float(loss.mean()) == pytest.approx(float(monai(pred, label.float())), rel=1e-6)


def test_each_value_is_the_loss_of_its_case_alone():
    pred, label = random_batch(4)
    monai = DiceCELoss(include_background=False, to_onehot_y=True, softmax=True)
    alone = [float(monai(pred[i : i + 1], label[i : i + 1])) for i in range(3)]
    assert PerCaseDiceCELoss()(pred, label).tolist() == pytest.approx(alone, rel=1e-6)
    assert len({round(value, 4) for value in alone}) == 3


def test_the_gradient_of_one_value_reaches_its_case_only():
    pred, label = random_batch(3)
    pred.requires_grad_(True)
    PerCaseDiceCELoss()(pred, label)[1].backward()
    reached = pred.grad.abs().flatten(1).sum(dim=1)
    assert reached[1] > 0
    assert reached[[0, 2]].tolist() == [0, 0]


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


def test_half_precision_logits_are_reduced_in_single_precision():
    pred, label = random_batch(3)
    loss = PerCaseDiceCELoss()(pred.bfloat16(), label)
    assert loss.dtype == torch.float32
    assert loss.tolist() == pytest.approx(PerCaseDiceCELoss()(pred.bfloat16().float(), label).tolist())


@pytest.mark.parametrize(
    ("pred_shape", "label_shape"),
    [
        ((2, 1, 4, 4, 4), (2, 1, 4, 4, 4)),
        ((2, 3, 4, 4, 4), (2, 3, 4, 4, 4)),
        ((2, 3, 4, 4, 4), (2, 1, 4, 4, 5)),
        ((2, 3, 4, 4, 4), (1, 1, 4, 4, 4)),
        ((2, 3, 4, 4, 4), (2, 4, 4, 4)),
    ],
)
def test_shapes_that_do_not_fit_are_refused(pred_shape: tuple, label_shape: tuple):
    with pytest.raises(ValueError, match=r"pred has shape.*expected"):
        PerCaseDiceCELoss()(torch.zeros(pred_shape), torch.zeros(label_shape))
