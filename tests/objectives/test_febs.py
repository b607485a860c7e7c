"""Fair error-bound scaling against the formulas of the authors' code, computed directly."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from droseg.errors import InputError
from droseg.losses import PerCaseCrossEntropyLoss, PerCaseDeepSupervisionLoss, PerCaseDiceCELoss, PerCaseDiceLoss
from droseg.losses.scaled import scaled_scores
from droseg.objectives.febs import fair_scale

BATCH = [0, 3, 1, 5, 2]  # typical, rare, typical, rare, typical
LOSSES = [0.2, 0.9, 0.4, 0.7, 0.3]


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 3.0])
def test_the_scale_is_that_of_the_authors_code(objective_of, gamma: float):
    # Theirs: w = (min(D) / D)**gamma, then tanh(w), with D the loss of each group in the batch.
    objective = objective_of("febs", axes=["anatomy"], gamma=gamma)
    scale = objective.score_scale(BATCH, torch.tensor(LOSSES, dtype=torch.float64))
    rare, typical = (0.9 + 0.7) / 2, (0.2 + 0.4 + 0.3) / 3
    of = {"typical": math.tanh(1.0), "rare": math.tanh((typical / rare) ** gamma)}
    assert scale.tolist() == pytest.approx([of["typical"], of["rare"]] * 2 + [of["typical"]], rel=1e-12)
    assert set(objective.weights(BATCH, torch.tensor(LOSSES)).tolist()) == {1.0}
    np.testing.assert_allclose(
        fair_scale(np.array([0.31, 0.8, 1.7]), gamma), np.tanh((0.31 / np.array([0.31, 0.8, 1.7])) ** gamma)
    )


def logits_and_label(cases: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    pred = torch.randn(cases, 3, 4, 5, 3, generator=generator)
    return pred, torch.randint(3, (cases, 1, 4, 5, 3), generator=generator).float()


def test_a_case_alone_has_the_loss_of_the_authors_code():
    # Their Dice of one class: 1 - (2 sum(w p y) + 1e-5) / (sum((w p)^2) + sum(y^2) + 1e-5), the mean over all classes.
    pred, label = logits_and_label(3)
    ours, scale = PerCaseDiceLoss(include_background=True, squared_pred=True, smooth=1e-5), [0.7, 0.3, 0.05]
    with scaled_scores(ours, torch.tensor(scale)):
        values = ours(pred, label).tolist()
    for case, (value, w) in enumerate(zip(values, scale, strict=True)):
        score = w * torch.softmax(pred[case].double(), dim=0).numpy()
        dice = []
        for channel in range(3):
            y = (label[case, 0].numpy() == channel).astype(float)
            overlap, total = (score[channel] * y).sum(), (score[channel] ** 2).sum() + (y**2).sum()
            dice.append(1 - (2 * overlap + 1e-5) / (total + 1e-5))
        assert value == pytest.approx(np.mean(dice), rel=1e-5)


def test_cross_entropy_is_not_scaled_and_the_loss_is_itself_again_afterwards():
    pred, label = logits_and_label(2)
    loss, scale = PerCaseDiceCELoss(), torch.tensor([0.5, 0.9])
    plain = loss(pred, label)
    with scaled_scores(loss, scale):
        scaled = loss(pred, label)
    with scaled_scores(loss.dice, scale):
        dice = loss.dice(pred, label)
    torch.testing.assert_close(scaled, dice + PerCaseCrossEntropyLoss()(pred, label))
    assert (scaled > plain).all(), "smaller scores cost more"
    torch.testing.assert_close(loss(pred, label), plain, rtol=0, atol=0)
    with scaled_scores(loss, torch.ones(2)):
        torch.testing.assert_close(loss(pred, label), plain)


def test_the_smaller_the_scale_the_longer_a_group_pulls():
    # At a perfect prediction the plain Dice loss is 0 and has no gradient; that of scaled scores is neither.
    label = torch.ones(2, 1, 4, 4, 4)
    label[:, :, :2] = 0
    pred = (torch.cat([1 - label, label], dim=1) * 8 - 4).requires_grad_()
    loss = PerCaseDiceLoss(squared_pred=True)
    with scaled_scores(loss, torch.tensor([math.tanh(1.0), 0.3])):
        values = loss(pred, label)
    (gradient,) = torch.autograd.grad(values.sum(), pred)
    assert 0.01 < values[0].item() < values[1].item()
    assert 0.0 < float(gradient[0].abs().sum()) < float(gradient[1].abs().sum())


def test_it_reaches_the_dice_of_a_deeply_supervised_loss():
    pred, label = logits_and_label(2)
    loss = PerCaseDeepSupervisionLoss(PerCaseDiceLoss())
    plain = loss([pred], label)
    with scaled_scores(loss, torch.tensor([1.0, 0.5])):
        scaled = loss([pred], label)
    assert float(scaled[0]) == pytest.approx(float(plain[0]))
    assert float(scaled[1]) > float(plain[1])


def test_a_loss_without_an_overlap_term_is_refused():
    with (
        pytest.raises(InputError, match="PerCaseCrossEntropyLoss has no overlap term"),
        scaled_scores(PerCaseCrossEntropyLoss(), torch.ones(1)),
    ):
        pass


def test_a_group_that_the_batch_lacks_changes_nothing(objective_of):
    by_product, by_axis = objective_of("febs"), objective_of("febs", axes=["anatomy"])
    batch, losses = [0, 1, 5], torch.tensor([0.2, 0.4, 0.9])  # all of site x: two of four combinations are absent
    torch.testing.assert_close(by_product.score_scale(batch, losses), by_axis.score_scale(batch, losses))


@pytest.mark.parametrize("losses", [[0.0, 0.0, 0.0, 1.0, 0.0], [0.0] * 5, [1e-30, 1e30, 1.0, 1.0, 1.0]])
def test_the_scale_stays_between_0_and_1(objective_of, losses: list[float]):
    scale = objective_of("febs", axes=["anatomy"], gamma=30.0).score_scale(BATCH, torch.tensor(losses))
    assert 0.0 <= float(scale.min()) <= float(scale.max()) <= math.tanh(1.0) + 1e-6


def test_a_step_that_is_left_out_is_not_scaled(objective_of):
    objective = objective_of("febs", axes=["anatomy"])
    assert objective.score_scale(BATCH, torch.tensor([0.1, math.nan, 0.2, 0.3, 0.1])) is None


@pytest.mark.parametrize(
    ("options", "message"),
    [({"gamma": -1.0}, "gamma is -1.0"), ({"gamma": math.nan}, "gamma is nan"), ({"sampling": "x"}, "sampling is 'x'")],
)
def test_settings_outside_their_range_are_refused(objective_of, options: dict, message: str):
    with pytest.raises(InputError, match=f"objective febs: {message}"):
        objective_of("febs", axes=["anatomy"], **options)
