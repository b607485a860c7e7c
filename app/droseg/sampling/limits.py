"""Guards against outliers in the loss history: a cap and a trim, fitted once per epoch."""

from __future__ import annotations

import math
from typing import Any

import numpy as np


class LossLimits:
    """What a single wrong label may do to the draws at most. Cases that were never visited are not limited.

    Args:
        cap: losses above this quantile of the visited cases count as that quantile, in (0, 1]; None: no cap.
        trim: the cases of this highest fraction of the visited losses get no weight at all, in [0, 1).
    Raises:
        ValueError: for a number outside its range.
    """

    def __init__(self, cap: float | None = None, trim: float = 0.0) -> None:
        if cap is not None and not 0.0 < cap <= 1.0:
            raise ValueError(f"cap is {cap}; it is a quantile of the losses, > 0 and <= 1.")
        if not 0.0 <= trim < 1.0:
            raise ValueError(f"trim is {trim}; it is the highest fraction of the losses, >= 0 and < 1.")
        self.cap, self.trim = cap, trim
        self.cap_loss = self.trim_loss = math.inf
        """Losses above these are capped, or trimmed; infinite before the first fit."""

    @property
    def active(self) -> bool:
        """Whether there is any limit."""
        return self.cap is not None or self.trim > 0.0

    def fit(self, visited_loss: np.ndarray) -> None:
        """Take the quantiles of these losses; O(N). Without any loss nothing is limited."""
        self.cap_loss = self.trim_loss = math.inf
        if len(visited_loss) == 0:
            return
        # An order statistic, no interpolation: of ten cases, trim 0.1 takes the one with the largest loss.
        if self.trim > 0.0:
            self.trim_loss = float(np.quantile(visited_loss, 1.0 - self.trim, method="inverted_cdf"))
        if self.cap is not None:
            self.cap_loss = float(np.quantile(visited_loss, self.cap, method="inverted_cdf"))

    def apply(self, loss: np.ndarray, visited: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the capped losses, shape (N,), and which cases keep any weight, shape (N,), bool."""
        capped = np.where(visited, np.minimum(loss, self.cap_loss), loss)
        return capped, ~(visited & (loss > self.trim_loss))

    def apply_one(self, loss: float, visited: bool) -> float | None:
        """Return the capped loss of one case; None if it is trimmed."""
        if not visited:
            return loss
        return None if loss > self.trim_loss else min(loss, self.cap_loss)

    def state_dict(self) -> dict[str, Any]:
        """Return the two limits."""
        return {"cap_loss": self.cap_loss, "trim_loss": self.trim_loss}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over two limits."""
        self.cap_loss, self.trim_loss = float(state["cap_loss"]), float(state["trim_loss"])
