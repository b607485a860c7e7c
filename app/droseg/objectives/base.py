"""What every objective is: what it draws, what it weights, what state it keeps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor

from droseg.sampling import Draw, LossHistory, RecordingBatchSampler, ShuffledBatchSampler

ROBUSTNESS_KEYS: Final = ("beta", "rho", "alpha", "target_kl", "target_ess")
"""Keys of a training config of which one says how robust `hardness` is."""

HARDNESS_KEYS: Final = frozenset(
    (*ROBUSTNESS_KEYS, "divergence", "beta_warmup_epochs", "max_beta", "mix", "max_age", "cap", "trim")
    + ("importance_weighting", "replacement", "floor")
)
"""Keys of a training config that say how draws follow losses; each objective names those that it has."""

SHOWN_GROUPS = 8
"""Groups that `describe` names."""


@dataclass(frozen=True)
class Setting:
    """What every objective is built from: the cases, their groups, and how batches are made.

    Attributes:
        history: the stale losses.
        batch_size, num_batches, seed, rank, world_size: see `RecordingBatchSampler`.
        groups: axis -> value of each training case, in the order of the history.
        axes: group axes that the objective is to tell apart, at least one where it needs any.
    """

    history: LossHistory
    batch_size: int
    num_batches: int
    seed: int = 0
    rank: int = 0
    world_size: int = 1
    groups: Sequence[Mapping[str, str]] = ()
    axes: Sequence[str] = ()

    def shuffled(self, repeats: Sequence[int] | None = None) -> ShuffledBatchSampler:
        """Return the sampler of shuffled passes."""
        return ShuffledBatchSampler(
            self.history, self.batch_size, self.num_batches, self.seed, self.rank, self.world_size, repeats
        )


class Objective:
    """Makes some training cases count more than others, by how they are drawn and how their losses are weighted.

    What it draws: `sampler`. What it weights: `weights`, and for one of them `score_scale`. What state it keeps:
    `state_dict`. A subclass chooses the batch sampler and overrides what differs from plain averaging. In each step the
    trainer calls `begin_batch`, then `weights` and `score_scale` with the losses of the *global* batch (all ranks, in
    rank order, identical on each of them) before the backward pass, then `update` with the same; at the end of each
    epoch `epoch_completed`.
    """

    name = "objective"
    restart_epoch: int | None = None
    """Epoch after which it will ask for a new start of the network; None: it will not, or not any more."""
    scales_scores = False
    """Whether `score_scale` returns anything."""
    draws_by_loss = False
    """Whether the draws follow the losses, so that they can collapse on few cases or hardly differ from uniform."""
    uses: frozenset[str] = frozenset()
    """Which of `HARDNESS_KEYS` change anything."""
    warmup_epochs = 0
    """Epochs over which the robustness rises to its value."""
    groups: Any = None
    """The groups that it tells apart, see `droseg.objectives.groups`; None: none."""
    less_robust = ""
    """What to set, in the words of a training config, so that the draws lean less on the hard cases."""
    more_robust = ""
    """The same for more."""

    def __init__(self, history: LossHistory, sampler: RecordingBatchSampler) -> None:
        self.history, self.sampler = history, sampler
        self.settings: dict[str, Any] = {}
        """As they were given to `build_objective`, for `describe`."""
        sampler.keeps_pending = True
        self.current_draw: Draw | None = None
        self.wants_restart = False
        """Whether network, optimizer and schedule are to start anew before the next step; `RestartHandler` does it."""

    def describe(self) -> str:
        """Return in one line what runs, with the settings that were given and the groups it tells apart."""
        line = ", ".join([self.name, *(f"{key} {value}" for key, value in self.settings.items() if value is not None)])
        names = [] if self.groups is None else list(self.groups.names)
        more = [f"and {len(names) - SHOWN_GROUPS} more"] if len(names) > SHOWN_GROUPS else []
        shown = [*names[:SHOWN_GROUPS], *more]
        return f"{line}; groups: {', '.join(shown)}" if names else line

    @property
    def beta(self) -> float:
        """Robustness of the draws; 0 where they do not follow the losses."""
        return self.sampler.beta

    def begin_batch(self, indices: list[int]) -> Draw:
        """Return the draw that the batch with these case indices (of this rank) came from.

        Raises:
            RuntimeError: if the batch was not drawn by this objective's sampler, next in turn.
        """
        if not self.sampler.pending:
            raise RuntimeError(
                "a batch arrived that the objective's sampler did not draw; "
                "give the DataLoader batch_sampler=objective.sampler."
            )
        draw = self.sampler.pending.popleft()
        if set(indices) != set(self.sampler.share(draw)):
            raise RuntimeError(
                f"the batch holds the cases {indices}, but the draw in turn was "
                f"{[int(index) for index in self.sampler.share(draw)]}; the "
                "DataLoader must hand out every drawn case, in the order of the draws (in_order=True)."
            )
        self.current_draw = draw
        return draw

    def weights(self, indices: list[int], losses: Tensor) -> Tensor:
        """Return the weight of each loss of the global batch, shape (B,), without gradient; their loss is averaged."""
        return torch.ones_like(losses)

    def score_scale(self, indices: list[int], losses: Tensor) -> Tensor | None:
        """Return what multiplies the predicted scores of each item of the global batch in overlap terms, shape (B,).

        None: nothing, as for all objectives but fair error-bound scaling. If given, the step is made on the loss of the
        scaled scores; the history and `weights` keep to the plain one. `losses` are the overlap terms alone, if the
        loss of the training says what they are; else the whole losses.
        """
        return None

    def update(self, indices: list[int], losses: list[float]) -> None:
        """Feed the losses of one step (of all ranks) back."""
        self.history.update(indices, losses)

    def probabilities(self) -> Tensor:
        """Return the probability of each case to be drawn next, shape (N,), float64; O(N)."""
        return torch.from_numpy(np.asarray(self.sampler.probabilities(), dtype=np.float64))

    def risk(self) -> float:
        """Return the value that this objective minimizes, from the stale losses; O(N)."""
        return float(self.history.loss[self.history.counted].mean())

    def epoch_completed(self, epoch: int) -> dict[str, float]:
        """Do what costs O(N), after epoch `epoch` (from 1); return values worth logging."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        """Return all state as tensors and primitives."""
        return {"name": self.name, "history": self.history.state_dict(), "sampler": self.sampler.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a saved state of the same objective."""
        if state["name"] != self.name:
            raise ValueError(f"the saved state is of objective {state['name']}, this one is {self.name}.")
        self.history.load_state_dict(state["history"])
        self.sampler.load_state_dict(state["sampler"])

    def carry_over(self, state: dict[str, Any]) -> None:
        """Take over what a saved state of other cases, or of another objective, knows of the cases that remain."""
        self.history.load_state_dict(state["history"], carry_over=True)


def case_means(indices: list[int], losses: Tensor) -> dict[int, float]:
    """Return the mean loss of each case of a batch: patches, repeats and ranks count as one visit."""
    rows, values = np.asarray(indices), losses.detach().double().cpu().numpy()
    return {index: float(values[rows == index].mean()) for index in sorted({int(i) for i in indices})}
