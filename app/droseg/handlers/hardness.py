"""Feeds the losses of each training step back to the objective, and says what that did to the draws."""

from __future__ import annotations

import logging
import math
import time

import numpy as np
from ignite.engine import Events
from monai.engines import IterationEvents

from droseg.engine.trainer import DROTrainer
from droseg.objectives import Objective
from droseg.sampling import CVaR, effective_sample_size

logger = logging.getLogger(__name__)


class HardnessHandler:
    """After each loss: update the history on every rank. After each epoch: measure the draws and warn.

    Leaves in `engine.state.metrics`: `sampler/ess_fraction` (effective sample size / N), `sampler/max_probability`,
    `sampler/batch_share` (log of batch size times largest probability: above 0 the 1/B cap of drawing without
    replacement binds), `sampler/lag` and `sampler/max_lag` (number of updates between a draw and its own, mean and
    largest), `sampler/underflow` (cases whose probability is 0 in floating point), `sampler/epoch_s` (what this
    O(N) work itself takes), `history/mean_loss`, `history/robust_risk`, `history/cvar_10` (mean of the worst 10 %),
    `history/unvisited`, and what the objective reports (beta, clipped weights).

    Args:
        objective: the one whose sampler feeds the trainer.
        collapse_fraction: an effective sample size below max(4 * batch size, this * N), but at most N / 4, is warned
            of as a collapse.
        no_effect_fraction: one above this * N, after every case was visited, is warned of too.
        tail: fraction of the cases that the logged CVaR takes.
    """

    def __init__(
        self,
        objective: Objective,
        collapse_fraction: float = 0.05,
        no_effect_fraction: float = 0.98,
        tail: float = 0.1,
    ) -> None:
        self.objective, self.tail = objective, tail
        self.collapse_fraction, self.no_effect_fraction = collapse_fraction, no_effect_fraction
        self._warned: set[str] = set()

    def attach(self, engine: DROTrainer) -> None:
        """Attach to a `DROTrainer`."""
        engine.state.draw_lags = []  # of this epoch so far
        engine.state_dict_user_keys.append("draw_lags")
        engine.add_event_handler(Events.STARTED, self.started)
        engine.add_event_handler(IterationEvents.LOSS_COMPLETED, self.loss_completed)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self.epoch_completed)

    def started(self, engine: DROTrainer) -> None:
        """Warn of a global batch, over all ranks, that leaves the draws hardly a choice."""
        batch_size, num_cases = self.objective.sampler.batch_size, len(self.objective.history)
        if self.objective.draws_by_loss and not self._replaces() and batch_size > num_cases / 4:
            self._warn_once(
                "batch size",
                f"batch_size is {batch_size} over all ranks, {100 * batch_size / num_cases:.0f} % of the {num_cases} "
                f"training cases. Drawn without replacement, no case fills more than 1/{batch_size} of the slots, so "
                "the draws come near to uniform ones whatever the losses. Lower batch_size to "
                f"{max(1, num_cases // 4)} or less, or set replacement to true.",
            )

    def _replaces(self) -> bool:
        return bool(getattr(self.objective.sampler, "replacement", False))

    def loss_completed(self, engine: DROTrainer) -> None:
        """Feed the batch's losses back; the batch is still collated at this event."""
        draw = self.objective.current_draw
        if draw is not None:
            engine.state.draw_lags.append(self.objective.history.num_updates - draw.num_updates)
        self.objective.update(*engine.step_losses)

    def epoch_completed(self, engine: DROTrainer) -> None:
        """Log what the draws look like; O(N), once per epoch."""
        started = time.perf_counter()
        values = self.objective.epoch_completed(engine.state.epoch)
        history, lags = self.objective.history, getattr(engine.state, "draw_lags", [])
        probability = self.objective.probabilities()
        share = self.objective.sampler.batch_size * float(probability.max())
        values |= {
            "ess_fraction": effective_sample_size(probability) / len(history),
            "max_probability": float(probability.max()),
            "batch_share": math.log(share),
            "lag": float(np.mean(lags)) if lags else 0.0,
            "max_lag": float(max(lags, default=0)),
        }
        losses = {
            "mean_loss": float(history.loss[history.counted].mean()),
            "robust_risk": self.objective.risk(),
            f"cvar_{100 * self.tail:g}": CVaR(self.tail).risk(history.loss[history.counted]),
            "unvisited": int(((history.visits == 0) & history.counted).sum()),
        }
        values["epoch_s"] = time.perf_counter() - started
        engine.state.metrics.update({f"sampler/{name}": value for name, value in values.items()})
        engine.state.metrics.update({f"history/{name}": value for name, value in losses.items()})
        lags.clear()
        if self.objective.draws_by_loss:
            self._warn(values, share)

    def _warn(self, values: dict[str, float], share: float) -> None:
        history, batch_size = self.objective.history, self.objective.sampler.batch_size
        size = values["ess_fraction"] * len(history)
        if values.get("underflow"):
            self._warn_once(
                "underflow",
                f"{values['underflow']:.0f} cases have a probability below the smallest floating-point number at beta "
                f"{self.objective.beta:.3g}: they will not be drawn again. Lower beta, or set mix or max_age.",
            )
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
        if share > 1.0 and not self._replaces():
            self._warn_once(
                "cap",
                f"batch size times largest probability is {share:.2f}: drawing without replacement caps the hardest "
                "case at one slot per batch. Lower the batch size or set replacement to true if that is not wanted.",
            )

    def _warn_once(self, kind: str, message: str) -> None:
        if kind not in self._warned:
            self._warned.add(kind)
            logger.warning(message)
