"""The sliding window, compared with MONAI's, and the windows that it need not look at twice."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.inferers import SlidingWindowInferer
from torch import Tensor, nn

from droseg.inference.windows import SlidingWindow

CPU = torch.device("cpu")


class Network(nn.Module):
    """Looks at neighbors and at the mean of its window, as instance normalization does; counts what it is shown."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv3d(1, 6, 3, padding=1), nn.InstanceNorm3d(6), nn.ReLU(), nn.Conv3d(6, 4, 1))
        self.seen = 0

    def forward(self, windows: Tensor) -> Tensor:
        self.seen += len(windows)
        return self.layers(windows + windows.mean(dim=(2, 3, 4), keepdim=True))


def swept(window: SlidingWindow, image: Tensor, network: nn.Module, batch: int = 3) -> Tensor:
    """Return all planes; each comes once, in order."""
    parts, next_plane = [], 0
    for planes, scores in window.sweep(image, network, batch=batch, device=CPU, stitch=CPU):
        assert planes.start == next_plane
        next_plane = planes.stop
        parts.append(scores)
    return torch.cat(parts, dim=1)


@pytest.mark.parametrize("shape", [(37, 22, 19), (16, 40, 12), (9, 7, 30), (16, 12, 12), (3, 4, 5)])
@pytest.mark.parametrize(
    "options",
    [
        {"overlap": 0.5, "mode": "gaussian"},
        {"overlap": (0.25, 0.6, 0.0), "mode": "constant", "padding_mode": "replicate"},
        {"overlap": 0.8, "mode": "gaussian", "sigma_scale": 0.2, "cval": 2.0},
    ],
)
@torch.no_grad()
def test_scores_are_those_of_monais_inferer(
    shape: tuple[int, int, int], options: dict, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("droseg.inference.windows.FINISHED_VOXELS", 800)  # several parts per row of windows
    inferer = SlidingWindowInferer(roi_size=(16, 12, 12), sw_batch_size=3, **options)
    network, image = Network().eval(), torch.randn(1, *shape)
    truth = inferer(image[None], network)[0]
    torch.testing.assert_close(swept(SlidingWindow.of(inferer), image, network), truth, rtol=1e-5, atol=1e-5)


def head_in_air(value: float = -0.7) -> Tensor:
    image = torch.full((1, 60, 44, 40), value)
    image[:, 22:40, 14:30, 12:25] = torch.randn(18, 16, 13)
    return image


@torch.no_grad()
def test_windows_of_air_are_looked_at_once_and_change_nothing() -> None:
    inferer = SlidingWindowInferer(roi_size=(12, 12, 12), sw_batch_size=4, overlap=0.5, mode="gaussian")
    network, image = Network().eval(), head_in_air()
    every = swept(SlidingWindow.of(inferer, skip_constant=False), image, network)
    all_windows, network.seen = network.seen, 0
    found = swept(SlidingWindow.of(inferer), image, network)
    torch.testing.assert_close(found, every, rtol=1e-5, atol=1e-5)
    windows = SlidingWindow.of(inferer).windows((60, 44, 40))
    of_tissue = sum(bool((image[(slice(None), *w)] != image[0, 0, 0, 0]).any()) for w in windows)
    assert all_windows == len(windows)
    assert network.seen == of_tissue + 1
    assert of_tissue < all_windows / 3


@torch.no_grad()
def test_two_values_are_never_mistaken_for_each_other() -> None:
    inferer = SlidingWindowInferer(roi_size=(8, 8, 8), sw_batch_size=4, overlap=0.25, mode="gaussian")
    image = torch.cat([torch.full((1, 16, 8, 8), float(value)) for value in range(12)], dim=1)
    network = Network().eval()
    every = swept(SlidingWindow.of(inferer, skip_constant=False), image, network)
    torch.testing.assert_close(swept(SlidingWindow.of(inferer), image, network), every, rtol=1e-5, atol=1e-5)
    assert len(np.unique(every[:, ::16, 4, 4].numpy().round(3), axis=1).T) == 12


def test_less_overlap_is_a_limit_per_axis() -> None:
    window = SlidingWindow.of(SlidingWindowInferer(roi_size=(8, 8, 8), overlap=(0.5, 0.1, 0.25)))
    assert window.with_overlap(0.25).overlap == (0.25, 0.1, 0.25)
