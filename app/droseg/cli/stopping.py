"""Ending a job on request: SIGTERM and a closed terminal do what Ctrl-C does, and the exit code says which it was."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator
from types import FrameType

THREAD_PREFIX = "droseg-"
"""Of the threads of `droseg.inference.pipeline`, which `--help` does not import."""


class Stopped(KeyboardInterrupt):
    """The process was asked to end by a signal."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.signal = number


@contextlib.contextmanager
def stoppable() -> Iterator[None]:
    """Raise `Stopped` in the block on SIGTERM (docker stop, a queue's time limit) and SIGHUP (a closed terminal)."""
    numbers = [signal.SIGTERM, signal.SIGHUP]
    if threading.current_thread() is not threading.main_thread():  # only there Python takes signals
        numbers = []
    before = {number: signal.getsignal(number) for number in numbers}

    def on_signal(number: int, _: FrameType | None) -> None:
        signal.signal(number, signal.SIG_IGN)  # a second one must not disturb the clearing up
        raise Stopped(number)

    for number, handler in before.items():
        if handler is signal.SIG_DFL:  # nohup ignores SIGHUP: leave it so
            signal.signal(number, on_signal)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def stop(error: KeyboardInterrupt, message: str) -> int:
    """Say that the job was stopped, and return the exit code; a thread that hangs is left behind with the process."""
    number = error.signal if isinstance(error, Stopped) else signal.SIGINT
    print(f"droseg: stopped by {signal.Signals(number).name}; {message}.", file=sys.stderr, flush=True)
    if any(thread.name.startswith(THREAD_PREFIX) for thread in threading.enumerate()):
        sys.stdout.flush()
        os._exit(128 + number)  # it is in C code, which Python's own exit would crash in
    return 128 + number
