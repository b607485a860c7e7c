"""Every per-case loss against MONAI's and torch's own reduced losses: values, gradients, independence of the batch."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import monai.losses as monai
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.data import MetaTensor
from torch import Tensor, nn

from droseg import losses

WEIGHT = [0.5, 2.0, 1.0, 4.0]  # of four classes; regions take the last three
EXCLUSIVE = {"to_onehot_y": True, "softmax": True}


def torch_cross_entropy(pred: Tensor, label: Tensor) -> Tensor:
    return nn.CrossEntropyLoss(label_smoothing=0.1)(pred, label[:, 0].long())


def dice_and_bce(pred: Tensor, label: Tensor) -> Tensor:
    pos_weight = torch.tensor(WEIGHT[1:]).view(-1, *[1] * (pred.ndim - 2))
    dice = monai.DiceLoss(sigmoid=True, weight=torch.tensor(WEIGHT[1:]))
    return 0.7 * dice(pred, label) + 0.3 * nn.BCEWithLogitsLoss(pos_weight=pos_weight)(pred, label)


class Pair(NamedTuple):
    """A per-case loss and the reduced one that its batch mean must equal."""

    ours: nn.Module
    reduced: Callable[[Tensor, Tensor], Tensor]
    regions: bool = False


PAIRS: dict[str, Pair] = {
    "dice": Pair(losses.PerCaseDiceLoss(), monai.DiceLoss(**EXCLUSIVE, include_background=False)),
    "dice with background, squared": Pair(
        losses.PerCaseDiceLoss(include_background=True, squared_pred=True),
        monai.DiceLoss(**EXCLUSIVE, squared_pred=True),
    ),
    "dice, weighted": Pair(
        losses.PerCaseDiceLoss(class_weight=WEIGHT),
        monai.DiceLoss(**EXCLUSIVE, include_background=False, weight=torch.tensor(WEIGHT[1:])),
    ),
    "dice, smooth 1": Pair(
        losses.PerCaseDiceLoss(smooth=1.0),
        monai.DiceLoss(**EXCLUSIVE, include_background=False, smooth_nr=1.0, smooth_dr=1.0),
    ),
    "dice of regions": Pair(losses.PerCaseDiceLoss(sigmoid=True), monai.DiceLoss(sigmoid=True), True),
    "dice of regions, weighted": Pair(
        losses.PerCaseDiceLoss(sigmoid=True, class_weight=WEIGHT[1:]),
        monai.DiceLoss(sigmoid=True, weight=torch.tensor(WEIGHT[1:])),
        True,
    ),
    "dice + ce": Pair(losses.PerCaseDiceCELoss(), monai.DiceCELoss(**EXCLUSIVE, include_background=False)),
    "dice + ce, every option": Pair(
        losses.PerCaseDiceCELoss(True, True, 0.3, 0.7, 1e-3, label_smoothing=0.1),
        monai.DiceCELoss(
            **EXCLUSIVE,
            squared_pred=True,
            lambda_dice=0.3,
            lambda_ce=0.7,
            smooth_nr=1e-3,
            smooth_dr=1e-3,
            label_smoothing=0.1,
        ),
    ),
    "dice + ce of regions": Pair(losses.PerCaseDiceCELoss(sigmoid=True), monai.DiceCELoss(sigmoid=True), True),
    "dice + ce of regions, weighted": Pair(
        losses.PerCaseDiceCELoss(sigmoid=True, class_weight=WEIGHT[1:]),
        monai.DiceCELoss(sigmoid=True, weight=torch.tensor(WEIGHT[1:])),
        True,
    ),
    "dice + bce of regions, weighted": Pair(
        losses.PerCaseDiceBCELoss(lambda_dice=0.7, lambda_bce=0.3, class_weight=WEIGHT[1:]), dice_and_bce, True
    ),
    "dice + focal": Pair(losses.PerCaseDiceFocalLoss(), monai.DiceFocalLoss(**EXCLUSIVE, include_background=False)),
    "dice + focal, weighted": Pair(
        losses.PerCaseDiceFocalLoss(gamma=1.5, alpha=0.3, lambda_focal=3.0, class_weight=WEIGHT),
        monai.DiceFocalLoss(
            **EXCLUSIVE,
            include_background=False,
            gamma=1.5,
            alpha=0.3,
            lambda_focal=3.0,
            weight=torch.tensor(WEIGHT[1:]),
        ),
    ),
    "dice + focal of regions": Pair(losses.PerCaseDiceFocalLoss(sigmoid=True), monai.DiceFocalLoss(sigmoid=True), True),
    "generalized dice": Pair(
        losses.PerCaseGeneralizedDiceLoss(), monai.GeneralizedDiceLoss(**EXCLUSIVE, include_background=False)
    ),
    "generalized dice, simple": Pair(
        losses.PerCaseGeneralizedDiceLoss(True, "simple"), monai.GeneralizedDiceLoss(**EXCLUSIVE, w_type="simple")
    ),
    "generalized dice of regions": Pair(
        losses.PerCaseGeneralizedDiceLoss(sigmoid=True), monai.GeneralizedDiceLoss(sigmoid=True), True
    ),
    "tversky": Pair(
        losses.PerCaseTverskyLoss(0.3, 0.7),
        monai.TverskyLoss(**EXCLUSIVE, include_background=False, alpha=0.3, beta=0.7),
    ),
    "tversky of regions": Pair(
        losses.PerCaseTverskyLoss(0.3, 0.7, sigmoid=True), monai.TverskyLoss(sigmoid=True, alpha=0.3, beta=0.7), True
    ),
    "focal": Pair(losses.PerCaseFocalLoss(), monai.FocalLoss(to_onehot_y=True, use_softmax=True)),
    "focal, weighted": Pair(
        losses.PerCaseFocalLoss(1.0, 0.75, class_weight=WEIGHT),
        monai.FocalLoss(to_onehot_y=True, use_softmax=True, gamma=1.0, alpha=0.75, weight=WEIGHT),
    ),
    "focal, one against the rest": Pair(
        losses.PerCaseFocalLoss(0.5, [0.2, 0.3, 0.5], include_background=False, one_vs_rest=True),
        monai.FocalLoss(include_background=False, to_onehot_y=True, gamma=0.5, alpha=[0.2, 0.3, 0.5]),
    ),
    "focal of regions": Pair(losses.PerCaseFocalLoss(sigmoid=True, alpha=0.25), monai.FocalLoss(alpha=0.25), True),
    "cross entropy": Pair(losses.PerCaseCrossEntropyLoss(label_smoothing=0.1), torch_cross_entropy),
    "cross entropy of regions": Pair(losses.PerCaseCrossEntropyLoss(sigmoid=True), nn.BCEWithLogitsLoss(), True),
}
# Weighted cross entropy is normalized over the batch: values of single cases agree, the plain mean does not.
WEIGHTED_CE = Pair(
    losses.PerCaseDiceCELoss(class_weight=WEIGHT),
    monai.DiceCELoss(**EXCLUSIVE, include_background=False, weight=torch.tensor(WEIGHT)),
)
pytestmark = pytest.mark.filterwarnings("ignore:Dice . CE of several regions")


@pytest.fixture(params=[*PAIRS, "dice + ce, weighted"])
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def pair(name: str) -> Pair:
    return PAIRS.get(name, WEIGHTED_CE)


@pytest.fixture
def batch(pair: Pair, classes: Callable, regions: Callable) -> tuple[Tensor, Tensor]:
    return regions() if pair.regions else classes()


@pytest.mark.parametrize("name", PAIRS)
def test_the_batch_mean_is_the_reduced_loss(pair: Pair, batch: tuple[Tensor, Tensor]):
    pred, label = batch
    loss = pair.ours(pred, label)
    assert loss.shape == (3,)
    assert loss.dtype == torch.float32
    assert float(loss.mean()) == pytest.approx(float(pair.reduced(pred, label.float())), rel=1e-6)


@pytest.mark.parametrize("name", PAIRS)
def test_the_gradient_of_the_batch_mean_is_that_of_the_reduced_loss(pair: Pair, batch: tuple[Tensor, Tensor]):
    pred, label = batch
    pred.requires_grad_(True)
    (ours,) = torch.autograd.grad(pair.ours(pred, label).mean(), pred)
    (reduced,) = torch.autograd.grad(pair.reduced(pred, label.float()), pred)
    assert float(reduced.abs().max()) > 0
    torch.testing.assert_close(ours, reduced, rtol=1e-5, atol=1e-6 * float(reduced.abs().max()))


def test_each_value_is_the_reduced_loss_of_its_case_alone(pair: Pair, batch: tuple[Tensor, Tensor]):
    pred, label = batch
    alone = [float(pair.reduced(pred[i : i + 1], label[i : i + 1].float())) for i in range(3)]
    assert pair.ours(pred, label).tolist() == pytest.approx(alone, rel=1e-6, abs=1e-7)


def test_a_value_does_not_depend_on_the_batch_mates(pair: Pair, batch: tuple[Tensor, Tensor]):
    pred, label = batch
    alone = torch.cat([pair.ours(pred[i : i + 1], label[i : i + 1]) for i in range(3)])
    assert pair.ours(pred, label).tolist() == pytest.approx(alone.tolist(), rel=1e-6, abs=1e-7)
    order = [2, 0, 1]
    assert pair.ours(pred[order], label[order]).tolist() == pytest.approx(alone[order].tolist(), rel=1e-6, abs=1e-7)


def test_the_gradient_of_one_value_reaches_its_case_only(pair: Pair, batch: tuple[Tensor, Tensor]):
    pred, label = batch
    pred.requires_grad_(True)
    pair.ours(pred, label)[1].backward()
    reached = pred.grad.abs().flatten(1).sum(dim=1)
    assert reached[1] > 0
    assert reached[[0, 2]].tolist() == [0, 0]


def test_bfloat16_logits_are_reduced_in_float32(pair: Pair, batch: tuple[Tensor, Tensor]):
    pred, label = batch
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = pair.ours(pred.bfloat16(), label)
    assert loss.dtype == torch.float32
    assert loss.tolist() == pytest.approx(pair.ours(pred.bfloat16().float(), label).tolist(), rel=1e-6)


@pytest.mark.parametrize("confidence", [30.0, 1e4])
@pytest.mark.parametrize("right", [True, False])
def test_confident_logits_give_finite_losses_and_gradients(
    pair: Pair, batch: tuple[Tensor, Tensor], confidence: float, right: bool
):
    pred, label = batch
    index = torch.arange(pred.shape[1]).view(1, -1, 1, 1, 1)
    truth = label.bool() if pair.regions else label == index
    pred = torch.where(truth == right, confidence, -confidence).requires_grad_(True)
    loss = pair.ours(pred, label)
    loss.sum().backward()
    assert torch.isfinite(loss).all()
    assert torch.isfinite(pred.grad).all()


def test_the_dtype_and_metadata_of_the_label_do_not_matter(pair: Pair, batch: tuple[Tensor, Tensor]):
    pred, label = batch
    expected = pair.ours(pred, label).tolist()
    for other in (label.float(), label.to(torch.uint8), MetaTensor(label.float())):
        loss = pair.ours(MetaTensor(pred), other)
        assert type(loss) is Tensor
        assert loss.tolist() == expected


@settings(max_examples=60, deadline=None)
@given(
    name=st.sampled_from(list(PAIRS)),
    batch_size=st.integers(1, 4),
    size=st.lists(st.integers(1, 6), min_size=2, max_size=3).map(tuple),
    seed=st.integers(0, 2**31),
)
def test_the_batch_mean_is_the_reduced_loss_for_any_shape(name: str, batch_size: int, size: tuple, seed: int):
    pair = PAIRS[name]
    generator = torch.Generator().manual_seed(seed)
    channels = 3 if pair.regions else 4
    pred = 5 * torch.randn(batch_size, channels, *size, generator=generator)
    label = torch.randint(
        2 if pair.regions else 4, (batch_size, channels if pair.regions else 1, *size), generator=generator
    ).float()
    loss = pair.ours(pred, label)
    assert float(loss.mean()) == pytest.approx(float(pair.reduced(pred, label)), rel=1e-6, abs=1e-6)


@pytest.mark.parametrize("name", ["dice", "dice + ce, every option", "dice + bce of regions, weighted", "focal"])
def test_the_agreement_holds_for_volumes_of_a_training_patch(pair: Pair, classes: Callable, regions: Callable):
    pred, label = (regions if pair.regions else classes)(batch_size=2, size=(64, 64, 64))
    assert float(pair.ours(pred, label).mean()) == pytest.approx(float(pair.reduced(pred, label.float())), rel=1e-6)
