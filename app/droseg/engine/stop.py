"""SIGTERM, as schedulers, `docker stop` and spot machines send it: a checkpoint first, then the end."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from typing import Any

from droseg.engine.roles import is_writer
from droseg.engine.run_folder import INTERRUPTED, RunFolder
from droseg.engine.trainer import DROTrainer

EXIT_CODE = 143
"""128 + SIGTERM, as a shell reports a process that ended by it."""
CONTINUE = "run the same command again to continue."


class StopRequested(SystemExit):
    """The training stopped because it was asked to; its state is saved."""

    def __init__(self, step: int) -> None:
        super().__init__(EXIT_CODE)
        self.step = step

    def __str__(self) -> str:
        return f"stopped by SIGTERM after step {self.step}, which a checkpoint holds"


@contextlib.contextmanager
def stops_at_sigterm(trainer: DROTrainer, run: RunFolder) -> Iterator[None]:
    """Ask the trainer to stop at SIGTERM; a second SIGTERM ends the process at once.

    Outside of the main thread, where Python delivers no signals, nothing is changed.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    owner = os.getpid()

    def handle(*_: Any) -> None:
        if os.getpid() != owner or trainer.stop_requested:
            if os.getpid() == owner and is_writer():
                with contextlib.suppress(OSError):
                    run.write_status(status=INTERRUPTED, error="ended by a second SIGTERM", remedy=CONTINUE)
            os._exit(EXIT_CODE)
        trainer.stop_requested = True
        if is_writer():  # print() may be what the signal has interrupted
            os.write(2, b"SIGTERM: writes a checkpoint, then the training ends; a second SIGTERM ends it at once.\n")

    previous = signal.signal(signal.SIGTERM, handle)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL if previous is None else previous)
