"""Empirical risk minimization: the plain mean over the training cases."""

from __future__ import annotations

from droseg.objectives.base import Objective, Setting


class ERM(Objective):
    """Shuffled passes, all weights 1. It keeps the loss history too, so that its hardest cases can be looked at."""

    name = "erm"

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting.history, setting.shuffled())
