"""When to validate."""

from __future__ import annotations

from ignite.engine import Engine, Events
from monai.handlers import ValidationHandler


class FinalValidationHandler(ValidationHandler):
    """MONAI's `ValidationHandler`, which also validates after the last epoch.

    Otherwise the last epochs of a run whose length is no multiple of the interval could never be selected, and a
    short run would not be validated at all.
    """

    def attach(self, engine: Engine) -> None:
        """Attach to the trainer."""
        due = Events.EPOCH_COMPLETED(event_filter=self._is_due)
        engine.add_event_handler(due, self)

    def _is_due(self, engine: Engine, epoch: int) -> bool:
        return epoch % self.interval == 0 or epoch == engine.state.max_epochs
