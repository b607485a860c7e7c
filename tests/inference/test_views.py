"""Averages over mirrored views and networks, compared with ones worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from droseg.inference.views import Views


def network(seed: int, num_classes: int = 3) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        layers = nn.Sequential(nn.Conv3d(1, 5, 3, padding=1), nn.ReLU(), nn.Conv3d(5, num_classes, 3, padding=1))
        for parameter in layers.parameters():
            nn.init.normal_(parameter, std=0.7)
    return layers.eval()


class Says(nn.Module):
    """Gives the same scores everywhere."""

    def __init__(self, *scores: float) -> None:
        super().__init__()
        self.scores = torch.tensor(scores)

    def forward(self, windows: Tensor) -> Tensor:
        return self.scores.view(1, -1, 1, 1, 1).expand(len(windows), -1, *windows.shape[2:]).clone()


WINDOWS = torch.randn(2, 1, 7, 6, 5, generator=torch.Generator().manual_seed(3))


@torch.no_grad()
def test_one_view_is_the_network_itself() -> None:
    assert torch.equal(Views([network(0)])(WINDOWS), network(0)(WINDOWS))


@torch.no_grad()
@pytest.mark.parametrize("axes", [(0,), (1, 2), (0, 1, 2)])
def test_mirrored_views_are_averaged_in_probability_space(axes: tuple[int, ...]) -> None:
    net = network(0)
    mean, count = torch.zeros(2, 3, 7, 6, 5), 0
    for bits in range(2 ** len(axes)):
        flip = [axis + 2 for place, axis in enumerate(axes) if bits >> place & 1]
        mean += net(WINDOWS.flip(flip)).softmax(1).flip(flip)
        count += 1
    found = Views([net], axes)(WINDOWS)
    torch.testing.assert_close(found[:, :-1].softmax(1), mean / count, rtol=1e-5, atol=1e-6)


@torch.no_grad()
def test_overlapping_regions_are_averaged_one_by_one() -> None:
    found = Views([network(0), network(1)], activation="sigmoid")(WINDOWS)
    mean = (network(0)(WINDOWS).sigmoid() + network(1)(WINDOWS).sigmoid()) / 2
    torch.testing.assert_close(found[:, :-1].sigmoid(), mean, rtol=1e-5, atol=1e-6)


@torch.no_grad()
@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
def test_equal_networks_say_what_one_says_and_agree(activation: str) -> None:
    found = Views([network(0)] * 3, activation=activation)(WINDOWS)  # type: ignore[arg-type]
    act = torch.softmax if activation == "softmax" else lambda scores, _: torch.sigmoid(scores)
    torch.testing.assert_close(act(found[:, :-1], 1), act(network(0)(WINDOWS), 1), rtol=1e-5, atol=1e-6)
    assert found[:, -1].abs().max() < 1e-5


@torch.no_grad()
def test_disagreement_is_1_for_certain_opposites_and_known_in_between() -> None:
    sure = Views([Says(50.0, 0.0, 0.0), Says(0.0, 50.0, 0.0)])(WINDOWS)[:, -1]
    torch.testing.assert_close(sure, torch.ones_like(sure))
    # Two networks, p = 0.9 and 0.5: by hand, H(0.7) - (H(0.9) + H(0.5)) / 2, in units of log 2.
    logit = math.log(0.9 / 0.1)
    by_hand = _bits(0.7) - (_bits(0.9) + _bits(0.5)) / 2
    for views in (Views([Says(logit, 0.0), Says(0.0, 0.0)]), Views([Says(logit), Says(0.0)], activation="sigmoid")):
        assert float(views(WINDOWS)[0, -1, 0, 0, 0]) == pytest.approx(by_hand, abs=1e-6)


def _bits(p: float) -> float:
    return -p * math.log2(p) - (1 - p) * math.log2(1 - p)


@torch.no_grad()
def test_impossible_classes_stay_impossible_without_nan() -> None:
    found = Views([Says(300.0, 0.0, -300.0), Says(250.0, 0.0, -300.0)])(WINDOWS)
    assert bool(torch.isfinite(found).all())
    assert float(found[:, :-1].softmax(1)[0, 0, 0, 0, 0]) == pytest.approx(1.0)
