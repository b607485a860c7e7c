"""The last known loss of every training case: what the hardness-weighted draws are made from."""

from __future__ import annotations

import logging
import math
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from droseg.errors import DrosegError
from droseg.sampling.divergences import LARGEST, check_beta

logger = logging.getLogger(__name__)

HEADROOM = 0.25
"""How far above the largest loss the cases without one are lifted, as a fraction of it."""

Indices = Sequence[int] | np.ndarray | Tensor
Losses = Sequence[float] | np.ndarray | Tensor


class HistoryMismatchError(DrosegError):
    """A saved history belongs to other training cases."""


class LossHistory:
    """Stale losses of N cases: s <- m s + (1 - m) L_new, Fidon et al. 2022, arXiv:2001.02658, algorithm 1.

    Args:
        case_ids: one unique name per case; the position is the case's index everywhere else.
        initial_loss: stale loss of a case that was never visited. Above typical first losses (Dice plus cross
            entropy of an untrained network is about 2 to 3), so that every case is drawn early.
        momentum: m in [0, 1); larger smooths the noise of random patches.
        blend_initial: whether the first visit mixes in `initial_loss`, as the published formula says. With a
            momentum the least visited cases then look hardest for many visits; False takes the first loss as it is.
        unvisited_first: whether a case without a loss always counts as harder than every visited one. Otherwise one
            case whose loss stays above `initial_loss` (a wrong label) can keep the others from ever being drawn.
    Raises:
        ValueError: if `case_ids` is empty or repeats a name, or `momentum` is outside [0, 1).
    """

    def __init__(
        self,
        case_ids: Sequence[str],
        initial_loss: float = 4.0,
        momentum: float = 0.0,
        *,
        blend_initial: bool = True,
        unvisited_first: bool = False,
    ) -> None:
        self.case_ids = tuple(str(case_id) for case_id in case_ids)
        if not self.case_ids:
            raise ValueError("case_ids is empty; a loss history needs at least one case.")
        if len(set(self.case_ids)) != len(self.case_ids):
            repeated = sorted(case_id for case_id, times in Counter(self.case_ids).items() if times > 1)
            raise ValueError(f"case_ids repeat {repeated[:5]}; every case needs a name of its own.")
        if not 0.0 <= momentum < 1.0:
            raise ValueError(f"momentum is {momentum}; it must be >= 0 and < 1 (0 keeps the newest loss only).")
        if not abs(initial_loss) <= LARGEST:
            raise ValueError(f"initial_loss is {initial_loss}; it must be a finite number.")
        self.initial_loss, self.momentum = float(initial_loss), float(momentum)
        self.blend_initial, self.unvisited_first = blend_initial, unvisited_first
        self.unvisited_loss = self.initial_loss
        """What a case without a loss counts as; the first loss above it raises it, with `unvisited_first`."""
        self._any_unknown = True
        self.loss = np.full(len(self.case_ids), self.initial_loss)
        self.visits = np.zeros(len(self.case_ids), dtype=np.uint32)
        self.last_update = np.zeros(len(self.case_ids), dtype=np.uint32)
        self.num_updates = 0
        self.excluded: set[int] = set()
        """Cases that no sampler draws any more."""
        self.failures: dict[int, int] = {}
        """Index of a case -> steps that were left out because of it."""
        self._listeners: list[Callable[[list[int] | None], None]] = []
        # MONAI's ThreadDataLoader draws batches in a thread of its own while the training updates losses.
        self.lock = threading.RLock()

    def __len__(self) -> int:
        return len(self.case_ids)

    @property
    def nbytes(self) -> int:
        """Memory of losses, visits and last updates: 16 bytes per case."""
        return int(self.loss.nbytes + self.visits.nbytes + self.last_update.nbytes)

    @property
    def age(self) -> np.ndarray:
        """Updates since each case was last visited (or since the start), shape (N,)."""
        return self.num_updates - self.last_update.astype(np.int64)

    def subscribe(self, listener: Callable[[list[int] | None], None]) -> None:
        """Call `listener(indices)` after each change; None means that every case may have changed."""
        self._listeners.append(listener)

    def update(self, indices: Indices, losses: Losses) -> list[int]:
        """Put new losses in; return the indices that changed.

        Several losses of one case (patches, replacement, ranks) are averaged first: one visit, one momentum step.
        A case whose loss is not finite, or beyond 1e100, keeps its previous one and is named in a warning.

        Raises:
            ValueError: if the lengths differ or an index is no whole number.
            IndexError: if an index is outside the history.
        """
        collected = self._collect(indices, losses)
        with self.lock:
            self.num_updates += 1
            changed = [index for index, values in collected.items() if self._visit(index, sum(values) / len(values))]
            self._notify(changed)
        return changed

    def _notify(self, changed: list[int]) -> None:
        everything = self.unvisited_first and self._raise_unvisited(changed)
        for listener in self._listeners:
            listener(None if everything else changed)

    def _raise_unvisited(self, changed: list[int]) -> bool:
        """Lift the cases without a loss above the changed ones; return whether any was lifted. O(N), a few times."""
        top = max((float(self.loss[index]) for index in changed), default=-math.inf)
        if not self._any_unknown or top < self.unvisited_loss:
            return False
        unknown = self._unknown()
        self._any_unknown = bool(unknown.any())
        if not self._any_unknown:
            return False
        # With room above, so that losses that rise slowly do not lift them in every step.
        self.unvisited_loss = min(top + max(HEADROOM * abs(top), 1e-3), LARGEST)
        self.loss[unknown] = self.unvisited_loss
        return True

    def _unknown(self) -> np.ndarray:
        """Return which cases have no loss, shape (N,): never visited, nor measured by `replace`."""
        return np.asarray((self.visits == 0) & (self.loss == self.unvisited_loss))

    def _collect(self, indices: Indices, losses: Losses) -> dict[int, list[float]]:
        index_list = [_whole(index) for index in _to_list(indices)]
        loss_list = [float(loss) for loss in _to_list(losses)]
        if len(index_list) != len(loss_list):
            raise ValueError(f"{len(index_list)} indices but {len(loss_list)} losses; give one loss per index.")
        collected: dict[int, list[float]] = {}
        for index, loss in zip(index_list, loss_list, strict=True):
            if not 0 <= index < len(self):
                raise IndexError(f"index {index} is outside the history of {len(self)} cases.")
            collected.setdefault(index, []).append(loss)
        return collected

    def _is_finite(self, index: int, loss: float) -> bool:
        if abs(loss) <= LARGEST:  # False for NaN too
            return True
        known = f"its previous loss {self.loss[index]:.4g} stays" if self.visits[index] else "it has none yet"
        logger.warning("%s: loss is %s; %s.", self.case_ids[index], loss, known)
        return False

    def _visit(self, index: int, loss: float) -> bool:
        if not self._is_finite(index, loss):
            return False
        stale = float(self.loss[index])
        if self.visits[index] == 0 and stale == self.unvisited_loss:  # a constant of ours, not a measurement
            stale = self.initial_loss if self.blend_initial else loss
        self.loss[index] = self.momentum * stale + (1.0 - self.momentum) * loss
        self.visits[index] += 1
        self.last_update[index] = self.num_updates
        return True

    def replace(self, indices: Indices, losses: Losses) -> list[int]:
        """Put in measurements that are no visits, such as whole volumes without augmentation; return what changed.

        The loss is taken as it is, without momentum; age and visit count stay, since nothing was trained.

        Raises:
            ValueError, IndexError: as `update`.
        """
        collected = self._collect(indices, losses)
        with self.lock:
            changed = []
            for index, values in collected.items():
                loss = sum(values) / len(values)
                if self._is_finite(index, loss):
                    self.loss[index] = loss
                    changed.append(index)
            self._notify(changed)
        return changed

    def count_failure(self, index: int) -> int:
        """Note that a step was left out because of this case; return how many were."""
        self.failures[index] = self.failures.get(index, 0) + 1
        return self.failures[index]

    def exclude(self, index: int) -> None:
        """Take a case out of all draws from now on; its loss stays as it is. O(N)."""
        with self.lock:
            self.excluded.add(index)
            for listener in self._listeners:
                listener(None)

    @property
    def counted(self) -> np.ndarray:
        """Which cases were not taken out, shape (N,), bool; O(N)."""
        result = np.ones(len(self), dtype=bool)
        result[sorted(self.excluded)] = False
        return result

    @property
    def all_visited(self) -> bool:
        """Whether every case that was not taken out has been visited; O(N)."""
        return bool((self.visits > 0)[self.counted].all())

    def probabilities(self, beta: float) -> Tensor:
        """Return softmax(beta * stale loss), shape (N,), float64: the probability of drawing each case."""
        return hardness_probabilities(torch.from_numpy(self.loss), beta)

    def state_dict(self) -> dict[str, Any]:
        """Return tensors and primitives only, so that `torch.load(weights_only=True)` reads them."""
        return {
            "case_ids": list(self.case_ids),
            "excluded": sorted(self.excluded),
            "failures": dict(self.failures),
            "loss": torch.from_numpy(self.loss.copy()),
            "visits": torch.from_numpy(self.visits.astype(np.int64)),
            "last_update": torch.from_numpy(self.last_update.astype(np.int64)),
            "num_updates": self.num_updates,
            "unvisited_loss": self.unvisited_loss,
        }

    def load_state_dict(self, state: dict[str, Any], carry_over: bool = False) -> None:
        """Take over a saved history.

        Args:
            state: of `state_dict`.
            carry_over: whether a history of other cases is taken over for the cases that remain; new cases count as
                those that were never visited, and those that are gone are forgotten. Cases that were taken out are
                drawn again, for their files may have been mended.
        Raises:
            HistoryMismatchError: if it was made from other cases or another order of them, without `carry_over`.
        """
        saved = {case_id: row for row, case_id in enumerate(state["case_ids"])}
        if tuple(saved) != self.case_ids and not carry_over:
            gone, new = sorted(set(saved) - set(self.case_ids)), sorted(set(self.case_ids) - set(saved))
            detail = f"gone: {gone[:5]}, new: {new[:5]}" if gone or new else "the same cases in another order"
            raise HistoryMismatchError(
                f"the saved loss history has {len(saved)} cases, the training list {len(self)} ({detail}). "
                "Train with the datalist that the run was started with, or into a new folder; "
                "carry_over_history takes over the cases that remain."
            )
        kept = [index for index, case_id in enumerate(self.case_ids) if case_id in saved]
        rows = torch.tensor([saved[self.case_ids[index]] for index in kept], dtype=torch.long)
        with self.lock:
            self.excluded = set() if carry_over else set(state.get("excluded", ()))
            self.failures = {} if carry_over else dict(state.get("failures", {}))
            for own, name in ((self.loss, "loss"), (self.visits, "visits"), (self.last_update, "last_update")):
                own[kept] = state[name][rows].numpy()
            self.num_updates = int(state["num_updates"])
            self.unvisited_loss = float(state.get("unvisited_loss", self.initial_loss))
            self._any_unknown = True
            if carry_over:
                unknown = self._unknown()
                unknown[np.setdiff1d(np.arange(len(self)), kept)] = True
                self.unvisited_loss = max(self.unvisited_loss, self.initial_loss)
                self.loss[unknown] = self.unvisited_loss
            for listener in self._listeners:
                listener(None)
        if len(kept) < len(self) or len(saved) > len(kept):
            logger.warning(
                "loss history: %d cases taken over, %d new ones, %d gone.",
                len(kept),
                len(self) - len(kept),
                len(saved) - len(kept),
            )


def hardness_probabilities(stale_loss: Tensor, beta: float) -> Tensor:
    """Return the probability of drawing each case: softmax(beta * loss), Fidon et al. 2022, arXiv:2001.02658.

    Args:
        stale_loss: last known loss of each case, shape (N,).
        beta: robustness, >= 0; 0 samples uniformly, larger favors hard cases.
    Raises:
        ValueError: if beta is negative or not finite.
    """
    check_beta(beta)
    loss = stale_loss.to(torch.float64)
    return torch.softmax(beta * (loss - loss.max()), dim=0)


def _to_list(values: Any) -> list[Any]:
    if isinstance(values, Tensor):
        return values.detach().cpu().reshape(-1).tolist()
    plain = [value.item() if isinstance(value, Tensor) else value for value in values]
    return np.asarray(plain).ravel().tolist()


def _whole(index: Any) -> int:
    if index != int(index):
        raise ValueError(f"index {index} is no whole number; give rows of the history.")
    return int(index)
