"""The trainer of distributionally robust optimization: MONAI's, with one loss per case kept."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ignite.engine import Engine, Events
from monai.engines import SupervisedTrainer
from torch import Tensor

from droseg import keys
from droseg.objectives import Objective


class DROTrainer(SupervisedTrainer):
    """MONAI's `SupervisedTrainer` for a per-case loss and an objective.

    MONAI reduces the loss to a scalar before any handler sees it. Here the loss function returns one value per
    case, shape (B,); the values are left in `engine.state.output["case_loss"]`, multiplied by the objective's
    importance weights (`"case_weight"`), and only then averaged by MONAI's own iteration, which is unchanged.

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
        self.add_event_handler(Events.ITERATION_STARTED, self._begin_batch)

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
        weight = self.objective.weights(batch_indices(self.state.batch), case_loss.detach())
        self.state.output[keys.CASE_LOSS] = case_loss.detach()
        self.state.output[keys.CASE_WEIGHT] = weight
        return weight * case_loss


def batch_indices(batch: Any) -> list[int]:
    """Return the row of each item of a collated batch; a case with several patches occurs several times.

    Raises:
        KeyError: if the items carry no `"index"`.
    """
    if keys.INDEX not in batch:
        raise KeyError(f"the batch has no {keys.INDEX!r}; give every item of the training data its row.")
    return [int(index) for index in batch[keys.INDEX]]
