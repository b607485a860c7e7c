"""What every per-case loss refuses, and how it says so."""

from __future__ import annotations

import pytest
import torch

from droseg import losses

SOFTMAX = [
    losses.PerCaseDiceLoss,
    losses.PerCaseDiceCELoss,
    losses.PerCaseDiceFocalLoss,
    losses.PerCaseGeneralizedDiceLoss,
    losses.PerCaseTverskyLoss,
    losses.PerCaseFocalLoss,
    losses.PerCaseCrossEntropyLoss,
]


@pytest.mark.parametrize("kind", [*SOFTMAX, losses.PerCaseDiceBCELoss])
def test_batch_dice_is_refused_with_the_reason(kind: type):
    with pytest.raises(ValueError, match=r"no case has a value of its own.*batch=False"):
        kind(batch=True)


@pytest.mark.parametrize("kind", SOFTMAX)
@pytest.mark.parametrize(
    ("pred_shape", "label_shape"),
    [
        ((2, 1, 4, 4, 4), (2, 1, 4, 4, 4)),
        ((2, 3, 4, 4, 4), (2, 3, 4, 4, 4)),
        ((2, 3, 4, 4, 4), (2, 1, 4, 4, 5)),
        ((2, 3, 4, 4, 4), (1, 1, 4, 4, 4)),
        ((2, 3, 4, 4, 4), (2, 4, 4, 4)),
        ((2, 3), (2, 1)),
    ],
)
def test_shapes_that_do_not_fit_are_refused(kind: type, pred_shape: tuple, label_shape: tuple):
    with pytest.raises(ValueError, match=r"pred has shape.*expected.*\(B, 1, H, W, D\)"):
        kind()(torch.zeros(pred_shape), torch.zeros(label_shape))


@pytest.mark.parametrize("label_shape", [(2, 1, 4, 4, 4), (2, 4, 4, 4, 4), (2, 3, 4, 4, 5), (3, 4, 4, 4)])
def test_regions_need_one_label_channel_each(label_shape: tuple):
    with pytest.raises(ValueError, match=r"pred has shape.*\(B, R, H, W, D\) for both"):
        losses.PerCaseDiceBCELoss()(torch.zeros(2, 3, 4, 4, 4), torch.zeros(label_shape))


@pytest.mark.parametrize("shape", [(0, 3, 4, 4, 4), (2, 3, 0, 4, 4)])
def test_a_batch_without_cases_or_voxels_is_refused(shape: tuple):
    with pytest.raises(ValueError, match="at least one case and one voxel"):
        losses.PerCaseDiceLoss()(torch.zeros(shape), torch.zeros(shape[0], 1, *shape[2:]))


def test_outputs_of_a_deeply_supervised_network_point_to_the_wrapper():
    pred, label = torch.zeros(2, 3, 4, 4, 4), torch.zeros(2, 1, 4, 4, 4)
    with pytest.raises(ValueError, match=r"pred is a list.*PerCaseDeepSupervisionLoss"):
        losses.PerCaseDiceLoss()([pred, pred], label)
    with pytest.raises(ValueError, match=r"PerCaseDeepSupervisionLoss"):
        losses.PerCaseDiceLoss()(torch.stack([pred, pred], dim=1), label)


@pytest.mark.parametrize("value", [3, 255, -1, 0.5, float("nan")])
def test_a_label_without_a_channel_for_it_is_refused_and_its_item_named(value: float):
    label = torch.zeros(3, 1, 4, 4, 4)
    label[1, 0, 0, 0, 0] = value
    with pytest.raises(ValueError, match=r"item 1 of the batch.*expected whole numbers from 0 to 2"):
        losses.PerCaseDiceCELoss()(torch.zeros(3, 3, 4, 4, 4), label)


@pytest.mark.parametrize("value", [2, -1, float("nan")])
def test_regions_outside_of_0_and_1_are_refused(value: float):
    label = torch.zeros(2, 3, 4, 4, 4)
    label[1, 2, 0, 0, 0] = value
    with pytest.raises(ValueError, match=r"item 1 of the batch.*expected values from 0 to 1"):
        losses.PerCaseDiceBCELoss()(torch.zeros(2, 3, 4, 4, 4), label)


@pytest.mark.parametrize(
    "weight", [[1.0, -1.0, 1.0], [0.0, 0.0], [1.0, float("nan")], [1.0, float("inf")], [[1.0]], 2.0]
)
@pytest.mark.parametrize("kind", [losses.PerCaseDiceLoss, losses.PerCaseDiceCELoss, losses.PerCaseFocalLoss])
def test_class_weights_without_a_meaning_are_refused(kind: type, weight: list):
    with pytest.raises(ValueError, match=r"class_weight is .*one finite number >= 0 for each channel"):
        kind(class_weight=weight)


@pytest.mark.parametrize(
    "kind",
    [losses.PerCaseDiceLoss, losses.PerCaseDiceCELoss, losses.PerCaseFocalLoss, losses.PerCaseCrossEntropyLoss],
)
def test_class_weights_of_another_number_of_channels_are_refused(kind: type):
    with pytest.raises(ValueError, match="class_weight has 2 values, pred has 3 channels"):
        kind(class_weight=[1.0, 2.0])(torch.zeros(2, 3, 4, 4, 4), torch.zeros(2, 1, 4, 4, 4))


def test_the_losses_hold_no_state_for_a_checkpoint_but_weights_the_user_gave():
    assert losses.PerCaseDiceCELoss().state_dict() == {}
