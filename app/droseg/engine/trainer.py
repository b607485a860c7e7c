"""The trainer of distributionally robust optimization: MONAI's, with one loss per case kept."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from typing import Any, Literal

from ignite.engine import Engine, EventEnum, Events
from monai.engines import IterationEvents, SupervisedTrainer
from torch import Tensor

from droseg import keys
from droseg.data import LagBoundedDataLoader
from droseg.engine.roles import gather_losses, rank, together
from droseg.errors import DrosegError, InputError
from droseg.losses.scaled import overlap_losses, scaled_scores
from droseg.objectives import Objective

logger = logging.getLogger(__name__)

NONFINITE_STEPS = 3
"""Steps that are left out for one case before it is taken out of the draws."""
LARGEST_SHARE = 0.2
"""Share of the cases that may be taken out (one always): if more are, it is the training and not the cases."""

STOP, CHECKPOINT = 1, 2
"""What a process can ask of all ranks, as bits."""


class CheckpointEvents(EventEnum):
    """What checkpoints and those who write or take long tell each other."""

    CHECKPOINT_STARTED = "checkpoint_started"  # ignite tells events apart by this name, also from its own
    """Before the state is saved: whoever writes a file of its own brings it up to this step, for a kill may follow."""
    BETWEEN_CASES = "between_cases"
    """Fired between the cases of long work at the end of an epoch: the training may be stopped there."""


class DROTrainer(SupervisedTrainer):
    """MONAI's `SupervisedTrainer` for a per-case loss and an objective.

    MONAI reduces the loss to a scalar before any handler sees it. Here the loss function returns one value per
    case, shape (B,); the values are left in `engine.state.output["case_loss"]`, multiplied by the objective's
    importance weights (`"case_weight"`), and only then averaged by MONAI's own iteration, which is unchanged.

    A loss that is not finite ends the training before its step, since one such gradient makes every weight of the
    network NaN; or the step is left out (`on_nonfinite="skip"`), the cases named, and their stale losses stay. A case
    whose loss is never finite would keep its high initial one and fill the batches, so after three such steps it is
    taken out of the draws. Which cases are out is part of the history and its checkpoint; `engine.state.steps_left_out`
    counts the steps.

    Args:
        loss_function: (pred, label) -> (B,).
        objective: its `sampler` must be the `batch_sampler` of `train_data_loader`; the data set's items carry
            their row as `"index"`.
        on_nonfinite: "stop" or "skip".
        kwargs: of `SupervisedTrainer`.
    """

    def __init__(
        self,
        *,
        loss_function: Callable[[Tensor, Tensor], Tensor],
        objective: Objective,
        on_nonfinite: Literal["stop", "skip"] = "stop",
        **kwargs: Any,
    ) -> None:
        if on_nonfinite not in ("stop", "skip"):
            raise ValueError(f"on_nonfinite is {on_nonfinite!r}; choose stop or skip.")
        self.case_loss_function, self.objective, self.on_nonfinite = loss_function, objective, on_nonfinite
        self.step_losses: tuple[list[int], list[float]] = ([], [])
        """Case indices and losses of the last global batch, in rank order, the same on every rank."""
        self.stop_requested = self.stop_agreed = False
        """Whether this process was asked to stop; whether all ranks know of it, after a step."""
        self.checkpoint_requested = self.checkpoint_agreed = False
        """Whether this process wants a checkpoint after the step; whether all ranks know of it."""
        self.owes_epoch_end = False
        """Whether the state was saved after the last step of an epoch and before what its end brings."""
        self._skips_step = False
        kwargs["event_names"] = [*(kwargs.get("event_names") or ()), CheckpointEvents]
        super().__init__(loss_function=self._weighted_case_loss, decollate=kwargs.pop("decollate", False), **kwargs)
        self.state.steps_left_out = 0
        self.state_dict_user_keys.append("steps_left_out")
        self.add_event_handler(Events.ITERATION_STARTED, self._begin_batch)
        self.add_event_handler(IterationEvents.BACKWARD_COMPLETED, self._drop_gradients)

    def run(self) -> None:  # type: ignore[override]
        """Train up to `max_epochs`; after the last epoch there is nothing to do, where ignite would start over.

        If the end of an epoch is owed (its validation, say), it is made up for first.
        """
        done = bool(self.state.epoch) and self.state.epoch >= (self.state.max_epochs or 0)
        if done and not self.owes_epoch_end:
            logger.info("all %d epochs are done; nothing to train.", self.state.epoch)
        elif done:
            self.fire_event(Events.STARTED)
            self._end_owed_epoch()
            self.fire_event(Events.COMPLETED)
        else:
            try:
                with self.add_event_handler(Events.STARTED, self._end_owed_epoch):  # the last: all others are attached
                    super().run()
            finally:
                if isinstance(self.data_loader, LagBoundedDataLoader):
                    self.data_loader.end_workers()

    def _end_owed_epoch(self) -> None:
        if self.owes_epoch_end:
            self.owes_epoch_end = False
            self.fire_event(Events.EPOCH_COMPLETED)

    def _iteration(self, engine: Any, batchdata: Any) -> dict[Any, Any]:
        with together(f"step {self.state.iteration}", watched=False):  # the backward pass of several processes
            return super()._iteration(engine, batchdata)

    @staticmethod
    def _begin_batch(engine: Engine) -> None:
        engine.objective.begin_batch(batch_indices(engine.state.batch))  # type: ignore[attr-defined]

    def _weighted_case_loss(self, pred: Any, label: Tensor) -> Tensor:
        own = batch_indices(self.state.batch)
        case_loss = self._case_loss(pred, label, own)
        requests = STOP * self.stop_requested + CHECKPOINT * self.checkpoint_requested
        indices, losses, agreed = gather_losses(own, case_loss, requests)
        self.stop_agreed, self.checkpoint_agreed = bool(agreed & STOP), bool(agreed & CHECKPOINT)
        self.step_losses = (indices, losses.tolist())
        self._check_finite()
        weight = self.objective.weights(indices, losses)
        scale = self._score_scale(pred, label, own, losses)
        mine = slice(rank() * len(own), (rank() + 1) * len(own))
        self.state.output[keys.CASE_LOSS] = case_loss.detach()
        self.state.output[keys.CASE_WEIGHT] = weight[mine]
        if scale is not None:
            with scaled_scores(self.case_loss_function, scale[mine]):
                case_loss = self.case_loss_function(pred, label)
        return weight[mine] * case_loss

    def _score_scale(self, pred: Any, label: Tensor, own: list[int], losses: Tensor) -> Tensor | None:
        """Return the objective's scale of the scores of each item of the global batch, shape (B,), if it has one."""
        if not self.objective.scales_scores:
            return None
        overlap = overlap_losses(self.case_loss_function, pred, label)
        if overlap is not None:
            losses = gather_losses(own, overlap, 0)[1]
        return self.objective.score_scale(self.step_losses[0], losses)

    def _case_loss(self, pred: Any, label: Tensor, own: list[int]) -> Tensor:
        """Return the loss of each item, shape (B,); what the loss refuses is said with the cases."""
        try:
            case_loss = self.case_loss_function(pred, label)
        except (ValueError, AssertionError) as error:  # MONAI's losses assert
            names = ", ".join(self.objective.history.case_ids[index] for index in own)
            loss = type(self.case_loss_function).__name__
            raise InputError(f"step {self.state.iteration} ({names}): the loss {loss}: {error}") from error
        if case_loss.shape != label.shape[:1]:
            raise InputError(
                f"the loss function returned shape {tuple(case_loss.shape)} for a batch of {label.shape[0]}; "
                "robust training needs one loss per case, e.g. droseg.losses.PerCaseDiceCELoss."
            )
        return case_loss

    def _check_finite(self) -> None:
        """Stop, or mark the step to be left out: the same on every rank, since all know all losses."""
        bad = sorted({index for index, loss in zip(*self.step_losses, strict=True) if not math.isfinite(loss)})
        self._skips_step = bool(bad)
        if not bad or (self._scales_gradients() and self.on_nonfinite != "skip"):
            return
        names = ", ".join(self.objective.history.case_ids[index] for index in bad)
        if self.on_nonfinite != "skip":
            raise DrosegError(
                f"step {self.state.iteration}: the loss of {names} is not finite. Training stops, since one such "
                "step would make every weight of the network NaN. Look at the image and label of the case; if both "
                "are sound, lower learning_rate and start over, or set on_nonfinite to skip."
            )
        logger.warning("step %d is left out: the loss of %s is not finite.", self.state.iteration, names)
        self.state.steps_left_out += 1
        for index in bad:
            if self.objective.history.count_failure(index) == NONFINITE_STEPS:
                self._exclude(index)

    def _exclude(self, index: int) -> None:
        """Take a case out of the draws; stop if too many are."""
        history, batch_size = self.objective.history, self.objective.sampler.batch_size
        history.exclude(index)
        num_excluded = len(history.excluded)
        most = min(max(1, int(LARGEST_SHARE * len(history))), len(history) - batch_size)
        if num_excluded > most:
            names = ", ".join(history.case_ids[each] for each in sorted(history.excluded)[:5])
            raise DrosegError(
                f"step {self.state.iteration}: the losses of {num_excluded} of {len(history)} cases were not finite "
                f"in {NONFINITE_STEPS} steps each ({names}); training stops, for too few are left. Look at their "
                "images and labels; if these are sound, lower learning_rate. Then start over by --restart."
            )
        logger.warning(
            "%s is taken out of the draws: its loss was not finite in %d steps. Look at its image and label; when they "
            "are mended, start over by --restart.",
            history.case_ids[index],
            NONFINITE_STEPS,
        )

    def _scales_gradients(self) -> bool:
        """Return whether a gradient scaler is at work, which leaves such steps out by itself; without CUDA none is."""
        return self.scaler is not None and self.scaler.is_enabled()

    @staticmethod
    def _drop_gradients(engine: Engine) -> None:
        if engine._skips_step and not engine._scales_gradients():  # type: ignore[attr-defined]
            engine.optimizer.zero_grad(set_to_none=True)  # type: ignore[attr-defined]


def batch_indices(batch: Any) -> list[int]:
    """Return the row of each item of a collated batch; a case with several patches occurs several times.

    Raises:
        KeyError: if the items carry no `"index"`.
    """
    if keys.INDEX not in batch:
        raise KeyError(f"the batch has no {keys.INDEX!r}; give every item of the training data its row.")
    return [int(index) for index in batch[keys.INDEX]]
