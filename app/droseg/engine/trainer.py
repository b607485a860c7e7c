"""The trainer of distributionally robust optimization: MONAI's, with one loss per case kept."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import torch
from ignite.engine import Engine, Events
from monai.data.utils import set_rnd
from monai.engines import SupervisedTrainer
from torch import Tensor

from droseg import keys
from droseg.errors import DrosegError
from droseg.objectives import Objective

logger = logging.getLogger(__name__)


class DROTrainer(SupervisedTrainer):
    """MONAI's `SupervisedTrainer` for a per-case loss and an objective.

    MONAI reduces the loss to a scalar before any handler sees it. Here the loss function returns one value per
    case, shape (B,); the values are left in `engine.state.output["case_loss"]`, multiplied by the objective's
    importance weights (`"case_weight"`), and only then averaged by MONAI's own iteration, which is unchanged.

    A loss that is not finite ends the training before its step: one such gradient makes every weight NaN.

    Args:
        loss_function: (pred, label) -> (B,).
        objective: its `sampler` must be the `batch_sampler` of `train_data_loader`; the data set's items carry
            their row as `"index"`.
        kwargs: of `SupervisedTrainer`.
    """

    def __init__(
        self, *, loss_function: Callable[[Tensor, Tensor], Tensor], objective: Objective, **kwargs: Any
    ) -> None:
        self.case_loss_function, self.objective = loss_function, objective
        super().__init__(loss_function=self._weighted_case_loss, decollate=kwargs.pop("decollate", False), **kwargs)
        self.add_event_handler(Events.EPOCH_STARTED, self._seed_transforms)
        self.add_event_handler(Events.ITERATION_STARTED, self._begin_batch)

    def run(self) -> None:  # type: ignore[override]
        """Train up to `max_epochs`; after the last epoch there is nothing to do, where ignite would start over."""
        if self.state.epoch and self.state.epoch >= (self.state.max_epochs or 0):
            logger.info("all %d epochs are done; nothing to train.", self.state.epoch)
            return
        super().run()

    def _seed_transforms(self) -> None:
        """Seed the random transforms anew from torch's generator, as workers are seeded that start with an epoch.

        Without workers the transforms live on in this process, with states that no checkpoint holds; torch's generator
        is in the checkpoint, so that a resumed training sees the augmentations of an uninterrupted one.
        """
        seed = int(torch.randint(2**31, ()).item())
        if getattr(self.data_loader, "num_workers", None) == 0:
            set_rnd(self.data_loader.dataset, seed + self.objective.sampler.rank)  # type: ignore[union-attr]

    @staticmethod
    def _begin_batch(engine: Engine) -> None:
        engine.objective.begin_batch(batch_indices(engine.state.batch))  # type: ignore[attr-defined]

    def _weighted_case_loss(self, pred: Tensor, label: Tensor) -> Tensor:
        case_loss = self.case_loss_function(pred, label)
        if case_loss.shape != pred.shape[:1]:
            raise ValueError(
                f"the loss function returned shape {tuple(case_loss.shape)} for a batch of {pred.shape[0]}; "
                "robust training needs one loss per case, e.g. droseg.losses.PerCaseDiceCELoss."
            )
        indices = batch_indices(self.state.batch)
        self._check_finite(case_loss.detach(), indices)
        weight = self.objective.weights(indices, case_loss.detach())
        self.state.output[keys.CASE_LOSS] = case_loss.detach()
        self.state.output[keys.CASE_WEIGHT] = weight
        return weight * case_loss

    def _check_finite(self, case_loss: Tensor, indices: list[int]) -> None:
        finite = torch.isfinite(case_loss).tolist()
        if all(finite) or self.scaler is not None:  # a gradient scaler leaves such steps out by itself
            return
        names = self.objective.history.case_ids
        bad = sorted({names[index] for index, good in zip(indices, finite, strict=True) if not good})
        raise DrosegError(
            f"step {self.state.iteration}: the loss of {', '.join(bad)} is not finite. Training stops, since one such "
            "step would make every weight of the network NaN. Look at the image and label of the case; if both are "
            "sound, lower learning_rate and start over."
        )


def batch_indices(batch: Any) -> list[int]:
    """Return the row of each item of a collated batch; a case with several patches occurs several times.

    Raises:
        KeyError: if the items carry no `"index"`.
    """
    if keys.INDEX not in batch:
        raise KeyError(f"the batch has no {keys.INDEX!r}; give every item of the training data its row.")
    return [int(index) for index in batch[keys.INDEX]]
