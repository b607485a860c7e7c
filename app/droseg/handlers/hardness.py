"""Feeds the losses of each training step back to the objective, and says what that did to the draws."""

from __future__ import annotations

import logging
import math

import numpy as np
import torch
from ignite.engine import Engine, Events
from monai.engines import IterationEvents

from droseg import keys
from droseg.engine.trainer import batch_indices
from droseg.handlers.roles import gather_losses
from droseg.objectives import Objective
from droseg.sampling import effective_sample_size, robust_risk

logger = logging.getLogger(__name__)


class HardnessHandler:
    """After each loss: update the history on every rank. After each epoch: measure the draws and warn.

    Leaves in `engine.state.metrics`: `sampler/ess_fraction` (effective sample size / N), `sampler/max_probability`,
    `sampler/batch_share` (log of batch size times largest probability: above 0 the 1/B cap of drawing without
    replacement binds), `sampler/lag` (mean number of updates between a draw and its own), `history/mean_loss`,
    `history/robust_risk`, `history/unvisited`, and what the objective reports (beta, clipped weights).

    Args:
        objective: the one whose sampler feeds the trainer.
        collapse_fraction: an effective sample size below max(4 * batch size, this * N), but at most N / 4, is warned
            of as a collapse.
        no_effect_fraction: one above this * N, after every case was visited, is warned of too.
    """

    def __init__(self, objective: Objective, collapse_fraction: float = 0.05, no_effect_fraction: float = 0.98) -> None:
        self.objective = objective
        self.collapse_fraction, self.no_effect_fraction = collapse_fraction, no_effect_fraction
        self._lags: list[int] = []
        self._warned: set[str] = set()

    def attach(self, engine: Engine) -> None:
        """Attach to a `DROTrainer`."""
        engine.add_event_handler(IterationEvents.LOSS_COMPLETED, self.loss_completed)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self.epoch_completed)

    def loss_completed(self, engine: Engine) -> None:
        """Feed the batch's losses back; the batch is still collated at this event."""
        draw = self.objective.current_draw
        if draw is not None:
            self._lags.append(self.objective.history.num_updates - draw.num_updates)
        losses = engine.state.output[keys.CASE_LOSS]  # type: ignore[index, call-overload]
        self.objective.update(*gather_losses(batch_indices(engine.state.batch), losses))

    def epoch_completed(self, engine: Engine) -> None:
        """Log what the draws look like; O(N), once per epoch."""
        values = self.objective.epoch_completed()
        history, beta = self.objective.history, self.objective.beta
        probability = history.probabilities(beta)
        share = self.objective.sampler.batch_size * float(probability.max())
        loss = torch.from_numpy(history.loss)
        values |= {
            "ess_fraction": effective_sample_size(probability) / len(history),
            "max_probability": float(probability.max()),
            "batch_share": math.log(share),
            "lag": float(np.mean(self._lags)) if self._lags else 0.0,
        }
        engine.state.metrics.update({f"sampler/{name}": value for name, value in values.items()})
        engine.state.metrics.update(
            {
                "history/mean_loss": float(loss.mean()),
                "history/robust_risk": robust_risk(loss, beta),
                "history/unvisited": int((history.visits == 0).sum()),
            }
        )
        self._lags.clear()
        if self.objective.name != "erm":
            self._warn(values, share)

    def _warn(self, values: dict[str, float], share: float) -> None:
        history, batch_size = self.objective.history, self.objective.sampler.batch_size
        size = values["ess_fraction"] * len(history)
        if history.visits.min() == 0:
            return
        if size < min(max(4 * batch_size, self.collapse_fraction * len(history)), 0.25 * len(history)):
            hardest = history.case_ids[int(history.loss.argmax())]
            self._warn_once(
                "collapse",
                f"the draws collapse: effective sample size {size:.1f} of {len(history)} cases; the hardest is "
                f"{hardest}. Look at its label, or lower beta ({self.objective.beta:.3g}) or raise target_ess.",
            )
        elif values["ess_fraction"] > self.no_effect_fraction:
            self._warn_once(
                "no effect",
                f"hardness changes next to nothing: effective sample size {100 * values['ess_fraction']:.1f} % of the "
                f"cases at beta {self.objective.beta:.3g}. Raise beta, or set target_ess (e.g. 0.5).",
            )
        if share > 1.0 and not getattr(self.objective.sampler, "replacement", False):
            self._warn_once(
                "cap",
                f"batch size times largest probability is {share:.2f}: drawing without replacement caps the hardest "
                "case at one slot per batch. Lower the batch size or set replacement to true if that is not wanted.",
            )

    def _warn_once(self, kind: str, message: str) -> None:
        if kind not in self._warned:
            self._warned.add(kind)
            logger.warning(message)
