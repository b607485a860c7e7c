"""Feeds the losses of each training step back to the objective, and says what that did to the draws."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterator

import numpy as np
from ignite.engine import Events
from monai.engines import IterationEvents

from droseg.engine.trainer import DROTrainer
from droseg.objectives import Objective
from droseg.sampling import CVaR, effective_sample_size

logger = logging.getLogger(__name__)

REARM_EPOCHS = 3
"""A warning is given again if its reason comes back after it was gone for so many epochs."""


class HardnessHandler:
    """After each loss: update the history on every rank. After each epoch: measure the draws and warn.

    Leaves in `engine.state.metrics`: `sampler/ess_fraction` (effective sample size / N), `sampler/max_probability`,
    `sampler/batch_share` (log of batch size times largest probability: above 0 the 1/B cap of drawing without
    replacement binds), `sampler/lag` and `sampler/max_lag` (number of updates between a draw and its own, mean and
    largest), `sampler/underflow` (cases whose probability is 0 in floating point), `sampler/epoch_s` (seconds of all
    O(N) work of the epoch: this one, the start of the epoch, and refits in between), `history/mean_loss`,
    `history/robust_risk`, `history/cvar_10` (mean of the worst 10 %), `history/unvisited`, and what the objective
    reports (beta, clipped weights).

    Args:
        objective: the one whose sampler feeds the trainer.
        collapse_fraction: an effective sample size below max(4 * batch size, this * N), but at most N / 4, is warned
            of as a collapse, unless it is cases without a loss that come first.
        no_effect_fraction: one above this * N, after every case was visited and beta is warm, is warned of too.
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
        self._clear_epochs: dict[str, int] = {}
        """Kind of a warning that was given -> epochs for which its reason has been gone."""

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
        top = int(probability.argmax())
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
        sampler = self.objective.sampler
        values["epoch_s"] = time.perf_counter() - started + sampler.whole_pass_s
        sampler.whole_pass_s = 0.0
        engine.state.metrics.update({f"sampler/{name}": value for name, value in values.items()})
        engine.state.metrics.update({f"history/{name}": value for name, value in losses.items()})
        lags.clear()
        if self.objective.draws_by_loss:
            self._warn(dict(self._findings(values, share, top, engine.state.epoch)))

    def _warn(self, found: dict[str, str]) -> None:
        for kind in list(self._clear_epochs):
            self._clear_epochs[kind] = 0 if kind in found else self._clear_epochs[kind] + 1
            if self._clear_epochs[kind] >= REARM_EPOCHS:
                del self._clear_epochs[kind]
        for kind, message in found.items():
            self._warn_once(kind, message)

    def _findings(self, values: dict[str, float], share: float, top: int, epoch: int) -> Iterator[tuple[str, str]]:
        """Yield what is wrong with the draws: its kind, and what to say of it."""
        objective, history = self.objective, self.objective.history
        size = values["ess_fraction"] * len(history)
        if values.get("underflow"):
            yield (
                "underflow",
                f"{values['underflow']:.0f} cases have a probability below the smallest floating-point number at beta "
                f"{objective.beta:.3g}: they will not be drawn again. Lower beta, or set mix or max_age.",
            )
        unvisited = np.flatnonzero((history.visits == 0) & history.counted)
        if len(unvisited) and epoch >= self._epochs_to_visit():
            names = ", ".join(history.case_ids[index] for index in unvisited[:5])
            yield (
                "unvisited",
                f"{len(unvisited)} of {len(history)} cases have no loss after {epoch} epochs: {names}. They are never "
                "drawn, or their loss is never finite: look at their images and labels, or set max_age.",
            )
        if size < self._collapse_size() and history.visits[top]:
            capped = "cap" not in objective.uses or objective.settings.get("cap")
            yield (
                "collapse",
                f"the draws collapse: effective sample size {size:.1f} of {len(history)} cases; the hardest is "
                f"{history.case_ids[top]}. Look at its label (droseg hardest RUN), or {objective.less_robust}"
                + ("." if capped else "; cap (e.g. 0.95) limits what a single label can do."),
            )
        if len(unvisited):
            return
        if values["ess_fraction"] > self.no_effect_fraction and epoch >= objective.warmup_epochs:
            yield (
                "no effect",
                f"hardness changes next to nothing: effective sample size {100 * values['ess_fraction']:.1f} % of the "
                f"cases. To change that, {objective.more_robust}.",
            )
        if share > 1.0 and not self._replaces():
            yield (
                "cap",
                f"batch size times largest probability is {share:.2f}: drawing without replacement caps the hardest "
                "case at one slot per batch. Lower the batch size or set replacement to true if that is not wanted.",
            )

    def _collapse_size(self) -> float:
        """Return the effective sample size below which the draws have collapsed."""
        num_cases = len(self.objective.history)
        return min(max(4 * self.objective.sampler.batch_size, self.collapse_fraction * num_cases), 0.25 * num_cases)

    def _epochs_to_visit(self) -> int:
        """Return after how many epochs even uniform draws have left no case out, but for one training in 150."""
        sampler, num_cases = self.objective.sampler, len(self.objective.history)
        return math.ceil(num_cases * (math.log(num_cases) + 5.0) / (sampler.batch_size * sampler.num_batches))

    def _warn_once(self, kind: str, message: str) -> None:
        """Warn, unless this was said and its reason has lasted since."""
        if kind not in self._clear_epochs:
            self._clear_epochs[kind] = 0
            logger.warning(message)
