"""A process that waits for the others longer than they can need ends with a message, whatever the backend does."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable

POLL_S = 0.5
GRACE_S = 22.0
"""After SIGTERM; torchrun sends it to all processes when one has ended, and SIGKILL 30 s later."""


class RankWatch:
    """Ends this process when a wait for the other processes does not come back, from a thread of its own.

    gloo raises a Python error when a process is lost. NCCL's collectives do not come back at all: the interpreter
    stands in the driver, cannot run a signal handler, and is aborted by a C++ thread or killed. This thread says before
    that what happened.

    Args:
        timeout_s: longest wait for the others.
        grace_s: longest wait after SIGTERM.
    """

    def __init__(self, timeout_s: float, grace_s: float = GRACE_S) -> None:
        self.timeout_s, self.grace_s = timeout_s, grace_s
        self.on_lost: Callable[[str], None] | None = None
        """Called with the reason before the process ends; it is to say so, in `run.json` too."""
        self._waits: list[tuple[float, str]] = []
        self._terminated_at: float | None = None
        self._stopped = threading.Event()
        # The interpreter writes the number of each signal here even while the main thread stands in C code.
        self._signals, self._sender = socket.socketpair()
        self._signals.setblocking(False)
        self._sender.setblocking(False)
        with contextlib.suppress(ValueError):  # not the main thread: no signals arrive here either
            signal.set_wakeup_fd(self._sender.fileno(), warn_on_full_buffer=False)
        threading.Thread(target=self._watch, name="rank-watch", daemon=True).start()

    def begin(self, what: str) -> None:
        """Note that this process begins to wait for the others."""
        self._waits.append((time.monotonic(), what))

    def end(self) -> None:
        """Note that they answered; a wait around this one starts anew."""
        self._waits.pop()
        if self._waits:
            self._waits[-1] = (time.monotonic(), self._waits[-1][1])

    def stop(self) -> None:
        """End the watch."""
        self._stopped.set()
        with contextlib.suppress(ValueError):
            signal.set_wakeup_fd(-1)

    def _watch(self) -> None:
        while not self._stopped.wait(POLL_S):
            self._read_signals()
            reason = self._reason()
            if reason is not None:
                try:
                    if self.on_lost is not None:
                        self.on_lost(reason)
                    else:
                        print(f"droseg: error: {reason}", file=sys.stderr)
                finally:
                    leave(1)

    def _read_signals(self) -> None:
        with contextlib.suppress(OSError):  # nothing there to read
            if signal.SIGTERM in self._signals.recv(4096) and self._terminated_at is None:
                self._terminated_at = time.monotonic()

    def _reason(self) -> str | None:
        waits = self._waits[-1:]  # one read: the main thread appends and pops meanwhile
        if not waits:
            return None
        now, (since, what) = time.monotonic(), waits[0]
        if now - since > self.timeout_s:
            return f"no answer from another process for {now - since:.0f} s ({what})"
        if self._terminated_at is not None and now - max(since, self._terminated_at) > self.grace_s:
            return f"told to end, and no answer from another process ({what})"
        return None


def leave(exit_code: int) -> None:
    """End the process at once: what tidies up at the usual end may wait for the lost process."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(exit_code)
