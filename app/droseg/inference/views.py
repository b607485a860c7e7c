"""Several looks at one window, mirrored or by several networks, averaged in probability space."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Sequence
from itertools import chain, combinations
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import logsigmoid

Activation = Literal["softmax", "sigmoid"]


class Views:
    """Scores of windows: the mean probability over all views, as scores again, so that blending is the same as for one.

    The softmax (or sigmoid) of the scores is the arithmetic mean of the views' probabilities. For one view they are
    the network's own scores, for any number of equal views up to a constant per voxel, which no softmax sees.

    Args:
        networks: the same network with several weights, in evaluation mode.
        mirror_axes: of the window; all 2^n combinations of flips are views.
        activation: what turns scores into probabilities.
        half: run the networks in this type; None: float32.
    """

    def __init__(
        self,
        networks: Sequence[nn.Module],
        mirror_axes: Sequence[int] = (),
        activation: Activation = "softmax",
        half: torch.dtype | None = None,
    ) -> None:
        self.networks = tuple(networks)
        combined = (combinations(mirror_axes, count) for count in range(len(mirror_axes) + 1))
        self.flips = [tuple(axis + 2 for axis in axes) for axes in chain.from_iterable(combined)]
        self.activation = activation
        self.half = half

    @property
    def count(self) -> int:
        """How many views there are of each window."""
        return len(self.networks) * len(self.flips)

    def __call__(self, windows: Tensor) -> Tensor:
        """Return scores (B, K, *roi) of windows (B, C, *roi), float32; with several views one channel more.

        That channel is their disagreement, 0 to 1: the entropy of the mean probability minus the mean entropy (the
        Jensen-Shannon divergence of the views), divided by its largest possible value.
        """
        if self.count == 1:
            return self._scores(self.networks[0], windows, ())
        mean, entropy = None, None
        for network in self.networks:
            for flip in self.flips:
                log_p = self._log_probabilities(self._scores(network, windows, flip))
                own = _entropy(log_p)
                mean = log_p if mean is None else torch.logaddexp(mean, log_p)
                entropy = own if entropy is None else entropy + own
        if mean is None or entropy is None:
            raise ValueError("no network was given.")
        mean -= math.log(self.count)
        most = math.log(min(self.count, mean.shape[1]))
        disagreement = ((_entropy(mean) - entropy / self.count) / most).clamp_(0.0, 1.0)
        if self.activation == "sigmoid":
            mean = mean[:, 0] - mean[:, 1]  # log-odds
            disagreement = disagreement.mean(dim=2)  # of the regions
        return torch.cat([mean, disagreement], dim=1)

    def _scores(self, network: nn.Module, windows: Tensor, flip: tuple[int, ...]) -> Tensor:
        given = windows.flip(flip) if flip else windows
        if self.half is not None and given.device.type == "cpu":
            given = given.contiguous(memory_format=torch.channels_last_3d)
        device = given.device.type
        with torch.autocast(device, self.half) if self.half is not None else contextlib.nullcontext():
            scores: Tensor = network(given)
        return scores.float().flip(flip) if flip else scores.float()

    def _log_probabilities(self, scores: Tensor) -> Tensor:
        """Return log-probabilities with the choices on axis 1: the classes, or for a sigmoid yes and no per region."""
        if self.activation == "softmax":
            return scores.log_softmax(dim=1)
        return torch.stack([logsigmoid(scores), logsigmoid(-scores)], dim=1)


def _entropy(log_p: Tensor) -> Tensor:
    """Return the entropy over axis 1 in nats, which keeps a length of 1."""
    return -(log_p.exp() * log_p).sum(dim=1, keepdim=True)
