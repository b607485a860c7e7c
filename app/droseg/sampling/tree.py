"""A sum tree in the log domain: draws and updates in O(log N), exact for weights of any size."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch


def _log_add(a: float, b: float) -> float:
    high, low = (a, b) if a >= b else (b, a)
    return high if low == -math.inf else high + math.log1p(math.exp(low - high))


class LogSumTree:
    """N weights exp(log_weight), of which one is drawn or changed in O(log N).

    Every node holds the log of the sum of its two children, computed anew from them at each change, so nothing
    drifts and no weight overflows or is rounded away, however far apart the log weights lie. The layout is the
    bottom-up segment tree of 2 N numbers (root 1, leaves N to 2 N - 1): 16 bytes per case.
    """

    def __init__(self, log_weight: np.ndarray) -> None:
        """Build the tree in O(N); `log_weight` has shape (N,), finite or -inf (never drawn)."""
        self._size = len(log_weight)
        if self._size == 0:
            raise ValueError("there is nothing to draw from: the list of weights is empty.")
        nodes = np.full(2 * self._size, -math.inf)
        nodes[self._size :] = log_weight
        start = 1 << max(self._size.bit_length() - 1, 0)
        while start:
            stop = min(2 * start, self._size)
            if stop > start:
                nodes[start:stop] = np.logaddexp(nodes[2 * start : 2 * stop : 2], nodes[2 * start + 1 : 2 * stop : 2])
            start //= 2
        self._nodes: Any = nodes.data  # a memoryview: plain floats, several times faster than the array
        self._depth = self._size.bit_length()

    def __len__(self) -> int:
        return self._size

    @property
    def nbytes(self) -> int:
        """Memory of the tree in bytes."""
        return int(self._nodes.nbytes)

    @property
    def log_total(self) -> float:
        """Log of the sum of all weights."""
        return float(self._nodes[1])

    def log_weight(self, index: int) -> float:
        """Return the log weight of one case."""
        return float(self._nodes[self._size + index])

    def set(self, index: int, log_weight: float) -> None:
        """Change the log weight of one case; -inf takes it out of the draws."""
        nodes, node = self._nodes, self._size + index
        nodes[node] = log_weight
        node >>= 1
        while node:
            nodes[node] = _log_add(nodes[2 * node], nodes[2 * node + 1])
            node >>= 1

    def draw(self, generator: torch.Generator) -> int:
        """Draw one index with probability weight / sum of the weights.

        Each level of the tree takes a uniform number of its own, so the probability of a case may lie far below the
        resolution 2**-53 of one number; the odds at a single level are resolved down to that.
        """
        nodes, size = self._nodes, self._size
        uniforms = torch.rand(self._depth, generator=generator, dtype=torch.float64).tolist()
        node, level = 1, 0
        while node < size:
            left, right = nodes[2 * node], nodes[2 * node + 1]
            # P(left) = 1 / (1 + exp(right - left)); the branch on the sign keeps exp() from overflowing.
            difference = right - left
            if difference > 0:
                odds = math.exp(-difference)
                go_left = uniforms[level] * (1 + odds) < odds
            else:
                go_left = uniforms[level] * (1 + math.exp(difference)) < 1
            node = 2 * node + (0 if go_left else 1)
            level += 1
        return node - size
