"""Batch samplers that know groups: every group equally often, or the two-level robust distribution."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from droseg.sampling.divergences import check_beta, robust_risk
from droseg.sampling.group_part import GroupPart
from droseg.sampling.history import LossHistory
from droseg.sampling.recording import RecordingBatchSampler
from droseg.sampling.urn import Part, UniformPart, Urn

LINEAR_BELOW = 1e-6
"""Below this beta the risk of a group is taken as its mean loss: (1/beta) log mean exp would lose all digits."""


class GroupBatchSampler(RecordingBatchSampler):
    """Each batch is drawn from sum_g share_g * p(i | g): a mixture over groups, which may overlap.

    Without replacement the cases of a batch are drawn one after the other, the mixture renormalized over those left.

    Args:
        history, batch_size, num_batches, seed, rank, world_size: see `RecordingBatchSampler`.
        members: ascending case indices of each group; every case is in at least one.
        replacement: whether a case may occur more than once in a batch.
    Raises:
        ValueError: if a group is empty, a case is in none, or a batch without replacement is larger than the number of
            cases.
    """

    def __init__(
        self,
        history: LossHistory,
        members: Sequence[np.ndarray],
        batch_size: int = 2,
        num_batches: int = 100,
        replacement: bool = True,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        super().__init__(history, batch_size, num_batches, seed, rank, world_size)
        if not replacement and batch_size > len(history):
            raise ValueError(
                f"batch_size is {batch_size} but there are {len(history)} cases, and a batch is drawn without "
                "replacement; lower batch_size or set replacement to true."
            )
        self.members = [np.asarray(each, dtype=np.int32) for each in members]
        if any(len(each) == 0 for each in self.members):
            raise ValueError("a group has no cases; leave it out.")
        alone = np.setdiff1d(np.arange(len(history)), np.concatenate(self.members))
        if len(alone):
            raise ValueError(f"{history.case_ids[alone[0]]} is in no group; every case must be in at least one.")
        self.replacement = replacement
        self._counted = list(self.members)
        """Members of each group without the cases that the history has taken out."""
        self._parts: Sequence[Part] = []
        history.subscribe(self._follow)

    def _build(self) -> None:
        """Make the parts of the mixture from what counts; O(N)."""

    def _follow(self, changed: list[int] | None) -> None:
        if changed is None:
            counted = self.history.counted if self.history.excluded else None
            self._counted = self.members if counted is None else [each[counted[each]] for each in self.members]
            self._build()

    def log_shares(self) -> list[float]:
        """Return the log of each group's share of the draws, any scale."""
        return [0.0] * len(self.members)

    def draw_batch(self) -> tuple[list[int], list[float]]:
        """Draw one global batch, each time first a group and then a case of it."""
        return Urn(self._parts, self.log_shares()).draw(self.generator, self.batch_size, self.replacement)

    def shares(self) -> np.ndarray:
        """Return each group's share of the draws, shape (G,), sums to 1."""
        log_share = np.array(self.log_shares())
        log_share = np.where([len(each) > 0 for each in self._counted], log_share, -math.inf)
        share = np.exp(log_share - log_share.max())
        return np.asarray(share / share.sum())

    def probabilities(self) -> np.ndarray:
        """Return the probability of each case to be drawn next, shape (N,); O(N)."""
        result = np.zeros(len(self.history))
        for group, share in enumerate(self.shares()):
            result[self._counted[group]] += share * self._within(group)
        return result

    def _within(self, group: int) -> np.ndarray:
        """Return p(i | g) of the members of one group."""
        return np.full(len(self._counted[group]), 1.0 / max(1, len(self._counted[group])))


class GroupBalancedBatchSampler(GroupBatchSampler):
    """A group uniformly, then a case of it uniformly.

    With replacement (default) every group has the same share of the slots; without, the cases of a small group that
    are in the batch already cannot be drawn again, and the group has less.
    """

    def __init__(self, history: LossHistory, members: Sequence[np.ndarray], *args: Any, **kwargs: Any) -> None:
        super().__init__(history, members, *args, **kwargs)
        self._build()

    def _build(self) -> None:
        self._parts = [UniformPart(len(each), each) for each in self._counted]


class TwoLevelBatchSampler(GroupBatchSampler):
    """Cases by hardness inside groups, groups by their robust risk: q_i = sum_g w_g q(i | g).

    With R_g = (1/beta) log mean over the group exp(beta L) and R = (1/gamma) log sum_g pi_g exp(gamma R_g), q is the
    gradient of R by the losses: q(i | g) = exp(beta L_i) / sum over the group, w_g proportional to
    pi_g exp(gamma R_g). A draw costs O(G + log N), an update O(log N); both follow the history at once. Beside the
    history it keeps 7 bytes per case and axis, and 4 per case.

    Args:
        history, members: see `GroupBatchSampler`.
        prior: pi of each group, shape (G,), above 0, any scale.
        beta: robustness inside each group, >= 0; 0 draws its cases uniformly.
        gamma: robustness over the groups, >= 0; 0 draws group g with pi_g.
        args, kwargs: the rest of `GroupBatchSampler`.
    Raises:
        ValueError: for an argument outside its range.
    """

    def __init__(
        self,
        history: LossHistory,
        members: Sequence[np.ndarray],
        prior: Sequence[float] | np.ndarray,
        beta: float = 10.0,
        gamma: float = 10.0,
        *args: Any,
        **kwargs: Any,
    ) -> None:
        super().__init__(history, members, *args, **kwargs)
        weight = np.asarray(prior, dtype=np.float64)
        if weight.shape != (len(self.members),) or not np.isfinite(weight).all() or weight.min() <= 0.0:
            raise ValueError(f"prior is {weight.tolist()}; give one number > 0 for each of {len(self.members)} groups.")
        if not (math.isfinite(gamma) and gamma >= 0.0):
            raise ValueError(f"gamma is {gamma}; it must be a number >= 0 (0 draws the groups by their prior).")
        self._beta, self.gamma = check_beta(beta), float(gamma)
        self.log_prior = np.log(weight / weight.sum())
        self._linear = self._beta < LINEAR_BELOW
        self._owner, self._start = _groups_of_cases(self.members, len(history))
        self._build()

    @property
    def beta(self) -> float:
        """Robustness inside the groups."""
        return self._beta

    def _build(self) -> None:
        loss = self.history.loss
        self._groups = [GroupPart(each, loss, self._beta) for each in self._counted]
        self._log_size = [math.log(max(1, len(each))) for each in self._counted]
        self._parts = self._groups
        self._summed = loss.copy() if self._linear else np.empty(0)
        self._sum = self._sums()

    def _sums(self) -> np.ndarray:
        return np.array([self.history.loss[each].sum() for each in self._counted]) if self._linear else np.empty(0)

    def _follow(self, changed: list[int] | None) -> None:
        if changed is None:
            super()._follow(changed)
            return
        for index in changed:
            if index in self.history.excluded:
                continue
            loss = float(self.history.loss[index])
            for group in self._owner[self._start[index] : self._start[index + 1]]:
                self._groups[group].changed(index)
                if self._linear:
                    self._sum[group] += loss - self._summed[index]
            if self._linear:
                self._summed[index] = loss

    def start_epoch(self) -> None:
        """Take the sums of the losses anew, where they are used, so that rounding does not add up. O(N)."""
        self._sum = self._sums()

    def log_shares(self) -> list[float]:
        """Return log pi_g + gamma R_g of each group; O(G)."""
        if self._linear:
            scaled = [self.gamma * total / max(1, len(e)) for total, e in zip(self._sum, self._counted, strict=True)]
        else:
            # gamma / beta first: where the two are equal, the factor is exactly 1 and the draws are plain KL
            factor = self.gamma / self._beta
            scaled = [factor * (p.log_total - n) for p, n in zip(self._groups, self._log_size, strict=True)]
        return [float(prior + each) for prior, each in zip(self.log_prior, scaled, strict=True)]

    def _within(self, group: int) -> np.ndarray:
        return np.exp(self._beta * self.history.loss[self._counted[group]] - self._groups[group].log_total)

    def group_risks(self) -> np.ndarray:
        """Return R_g = (1/beta) log mean exp(beta L) of each group, shape (G,); the mean at beta = 0. O(N)."""
        return np.array(
            [robust_risk(self.history.loss[each], self._beta) if len(each) else -math.inf for each in self._counted]
        )

    def risk(self) -> float:
        """Return (1/gamma) log sum_g pi_g exp(gamma R_g); the mean by pi at gamma = 0. O(N)."""
        risks, prior = self.group_risks(), np.exp(self.log_prior)
        present = risks > -math.inf  # a group whose cases were all taken out has no risk
        risks, prior = risks[present], prior[present] / prior[present].sum()
        if self.gamma == 0.0:
            return float(prior @ risks)
        largest = float(risks.max())
        return largest + math.log1p(float(prior @ np.expm1(self.gamma * (risks - largest)))) / self.gamma

    def state_dict(self) -> dict[str, Any]:
        """Return the base's state and the running sums of the losses, which a new sum would round otherwise."""
        return {**super().state_dict(), "sum": torch.from_numpy(self._sum.copy())}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where a saved sampler was; load the history first."""
        super().load_state_dict(state)
        self._sum = state["sum"].numpy().copy()


def _groups_of_cases(members: Sequence[np.ndarray], num_cases: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the groups of all cases one after the other, and where those of each case begin, shape (N + 1,)."""
    cases = np.concatenate(members)
    owner = np.repeat(np.arange(len(members)), [len(each) for each in members])
    order = np.argsort(cases, kind="stable")
    smallest = np.min_scalar_type(len(members) - 1)
    return owner[order].astype(smallest), np.searchsorted(cases[order], np.arange(num_cases + 1)).astype(np.int32)
