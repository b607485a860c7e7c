"""Drawing one batch, case by case, from a mixture of weighted sets of cases."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence

import numpy as np
import torch

from droseg.sampling.tree import LogSumTree


class Part(ABC):
    """A weighted set of cases: one component of the mixture that a batch is drawn from."""

    @property
    @abstractmethod
    def log_total(self) -> float:
        """Log of the sum of the weights now in the urn; -inf if it is empty."""

    @abstractmethod
    def log_weight(self, index: int) -> float:
        """Return the log weight of a case; -inf if it does not belong here or has been taken out."""

    @abstractmethod
    def draw(self, generator: torch.Generator) -> int:
        """Draw one case with probability weight / total."""

    @abstractmethod
    def take(self, index: int) -> None:
        """Take a case out, whether it belongs here or not."""

    @abstractmethod
    def put_back(self) -> None:
        """Put every case back that was taken out."""


def position(members: np.ndarray, index: int) -> int | None:
    """Return where a case stands among ascending members, None if it is none of them; O(log n), without an index."""
    place = int(members.searchsorted(members.dtype.type(index)))  # of another type, numpy would copy all members
    return place if place < len(members) and members[place] == index else None


class TreePart(Part):
    """All cases with weights of their own, in a tree with one leaf for each: O(log N)."""

    def __init__(self, tree: LogSumTree) -> None:
        self.tree = tree
        self._taken: dict[int, float] = {}

    @property
    def log_total(self) -> float:
        """Log of the sum of the weights."""
        return self.tree.log_total

    def log_weight(self, index: int) -> float:
        """Return the log weight of a case."""
        return self.tree.log_weight(index)

    def draw(self, generator: torch.Generator) -> int:
        """Draw one case."""
        return self.tree.draw(generator)

    def take(self, index: int) -> None:
        """Take a case out."""
        if index not in self._taken:
            self._taken[index] = self.tree.log_weight(index)
            self.tree.set(index, -math.inf)

    def put_back(self) -> None:
        """Put all cases back."""
        for index, log_weight in self._taken.items():
            self.tree.set(index, log_weight)
        self._taken.clear()


class UniformPart(Part):
    """Cases of equal weight, without a tree: a number is drawn again while it belongs to a case already taken.

    Args:
        size: number of cases.
        members: which, ascending; None: those from 0 to size - 1.
    """

    def __init__(self, size: int, members: np.ndarray | None = None) -> None:
        self._size, self._members = size, members
        self._taken: set[int] = set()

    @property
    def log_total(self) -> float:
        """Log of the number of cases left."""
        left = self._size - len(self._taken)
        return math.log(left) if left else -math.inf

    def log_weight(self, index: int) -> float:
        """Return 0, or -inf."""
        return 0.0 if self._has(index) and index not in self._taken else -math.inf

    def _has(self, index: int) -> bool:
        return index < self._size if self._members is None else position(self._members, index) is not None

    def draw(self, generator: torch.Generator) -> int:
        """Draw one case."""
        if 2 * len(self._taken) > self._size:  # few are left: name them instead of trying
            left = [case for case in self._cases() if case not in self._taken]
            return left[int(torch.randint(len(left), (), generator=generator))]
        while True:
            row = int(torch.randint(self._size, (), generator=generator))
            index = row if self._members is None else int(self._members[row])
            if index not in self._taken:
                return index

    def _cases(self) -> Sequence[int]:
        return range(self._size) if self._members is None else [int(case) for case in self._members]

    def take(self, index: int) -> None:
        """Take a case out."""
        if self._has(index):
            self._taken.add(index)

    def put_back(self) -> None:
        """Put all cases back."""
        self._taken.clear()


class Urn:
    """The mixture p_i = sum_k share_k * p_k(i) of several parts; built anew for each batch.

    Without replacement it is drawn from sequentially, p renormalized over the cases left (Plackett-Luce), exactly: the
    next part is chosen with probability share_k times the mass that is left in it.

    Args:
        parts: the components.
        log_share: log of the share of each, any scale.
    """

    def __init__(self, parts: Sequence[Part], log_share: Sequence[float]) -> None:
        self.parts = parts
        totals = [part.log_total for part in parts]
        # A part without any weight has no share.
        self._scale = [
            share - total if total > -math.inf else -math.inf for share, total in zip(log_share, totals, strict=True)
        ]
        self._log_norm = _log_sum([s for s, total in zip(log_share, totals, strict=True) if total > -math.inf])

    @property
    def empty(self) -> bool:
        """Whether no case has any weight."""
        return self._log_norm == -math.inf

    def draw(
        self, generator: torch.Generator, count: int, replacement: bool, first: Sequence[int] = ()
    ) -> tuple[list[int], list[float]]:
        """Return a batch of `count` cases, and the probability p of each with the urn full.

        Without replacement, cases that have weight may be fewer than `count`: the batch is then shorter.

        Args:
            generator: of the draws.
            count: size of the batch.
            replacement: whether a case may occur more than once.
            first: cases that are in the batch already.
        """
        indices = list(first)
        probability = [self.probability(index) for index in first]
        if not replacement:
            self._take(first)
        while len(indices) < count:
            part = self._choose_part(generator)
            if part is None:
                break
            index = part.draw(generator)
            indices.append(index)
            probability.append(self.probability(index))
            if not replacement and len(indices) < count:
                self._take([index])
        for part in self.parts:
            part.put_back()
        return indices, probability

    def _take(self, indices: Sequence[int]) -> None:
        for index in indices:
            for part in self.parts:
                part.take(index)

    def probability(self, index: int) -> float:
        """Return p of a case that has not been taken out."""
        terms = [
            scale + part.log_weight(index)
            for part, scale in zip(self.parts, self._scale, strict=True)
            if scale > -math.inf
        ]
        return min(1.0, math.exp(_log_sum(terms) - self._log_norm))

    def _choose_part(self, generator: torch.Generator) -> Part | None:
        if len(self.parts) == 1:
            return self.parts[0] if self.parts[0].log_total > -math.inf and not self.empty else None
        mass = [part.log_total + scale for part, scale in zip(self.parts, self._scale, strict=True)]
        largest = max(mass)
        if largest == -math.inf:
            return None
        weights = [math.exp(each - largest) for each in mass]
        uniform = float(torch.rand((), generator=generator, dtype=torch.float64)) * sum(weights)
        for part, weight in zip(self.parts, weights, strict=True):
            uniform -= weight
            if uniform < 0.0:
                return part
        return self.parts[weights.index(max(weights))]  # rounding left the number at the very end


def _log_sum(terms: Sequence[float]) -> float:
    largest = max(terms, default=-math.inf)
    if largest == -math.inf:
        return -math.inf
    return largest + math.log(sum(math.exp(term - largest) for term in terms))
