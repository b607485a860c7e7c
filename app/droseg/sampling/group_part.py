"""The hard cases of one group: a component of a mixture that costs 6 bytes per member."""

from __future__ import annotations

import math

import numpy as np
import torch

from droseg.sampling.tree import LogSumTree
from droseg.sampling.urn import Part, position

BLOCK = 16
"""Members whose weights are summed up into one leaf: the tree has 1 byte per member, not 16."""


class GroupPart(Part):
    """Members of a group with the weights exp(beta * loss), drawn exactly in O(log n).

    The losses are read where the history keeps them. The tree holds the sum of each block of members, and a draw goes
    on inside the block by a small tree of its own, so that no weight is too small to be drawn.

    Args:
        members: ascending case indices, (n,), kept as they are.
        loss: stale losses of all cases, (N,), kept as they are; `changed` follows them.
        beta: robustness inside the group, >= 0.
    """

    def __init__(self, members: np.ndarray, loss: np.ndarray, beta: float) -> None:
        self.members, self._loss, self._beta = members, loss, beta
        self._taken: set[int] = set()  # positions
        log_weight = beta * loss[members]
        padded = np.full(max(1, -(-len(members) // BLOCK)) * BLOCK, -math.inf)
        padded[: len(members)] = log_weight
        self._tree = LogSumTree(np.logaddexp.reduce(padded.reshape(-1, BLOCK), axis=1))

    @property
    def log_total(self) -> float:
        """Log of the sum of the weights."""
        return self._tree.log_total

    def log_weight(self, index: int) -> float:
        """Return the log weight of a case."""
        place = position(self.members, index)
        return -math.inf if place is None or place in self._taken else self._beta * float(self._loss[index])

    def draw(self, generator: torch.Generator) -> int:
        """Draw one case."""
        block = self._tree.draw(generator)
        return int(self.members[BLOCK * block + LogSumTree(self._weights(block)).draw(generator)])

    def take(self, index: int) -> None:
        """Take a case out."""
        place = position(self.members, index)
        if place is not None and place not in self._taken:
            self._taken.add(place)
            self._sum(place // BLOCK)

    def put_back(self) -> None:
        """Put all cases back."""
        blocks = {place // BLOCK for place in self._taken}
        self._taken.clear()
        for block in blocks:
            self._sum(block)

    def changed(self, index: int) -> None:
        """Follow a loss that has changed."""
        place = position(self.members, index)
        if place is not None:
            self._sum(place // BLOCK)

    def _weights(self, block: int) -> np.ndarray:
        start = BLOCK * block
        weights = self._beta * self._loss[self.members[start : start + BLOCK]]
        for place in self._taken:
            if place // BLOCK == block:
                weights[place - start] = -math.inf
        return np.asarray(weights)

    def _sum(self, block: int) -> None:
        self._tree.set(block, float(np.logaddexp.reduce(self._weights(block))))
