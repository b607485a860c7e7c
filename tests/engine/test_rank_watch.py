"""A process that stands in C code, as NCCL's collectives do when a rank is gone, still ends with its reason."""

from __future__ import annotations

import ctypes
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

from droseg.engine.rank_watch import RankWatch


def stand_still() -> None:
    """Lock a mutex twice: unlike a sleep, no signal ends that, and Python's handlers never run."""
    mutex, libc = ctypes.create_string_buffer(256), ctypes.CDLL(None)
    libc.pthread_mutex_lock(mutex)
    libc.pthread_mutex_lock(mutex)


def in_child(work: Callable[[], None], sigterm_after_s: float | None = None) -> tuple[int, float]:
    """Return exit code and seconds of a forked process that does this work, killed after 20 s."""
    started, child = time.monotonic(), os.fork()
    if child == 0:
        try:
            signal.signal(signal.SIGTERM, lambda *_: None)  # as in a training: it only leaves a mark
            work()
        finally:
            os._exit(0)
    while time.monotonic() - started < 20:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status), time.monotonic() - started
        if sigterm_after_s is not None and time.monotonic() - started > sigterm_after_s:
            os.kill(child, signal.SIGTERM)
            sigterm_after_s = None
        time.sleep(0.02)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    raise TimeoutError("the process did not end")


def waiting_process(reason: Path, timeout_s: float, grace_s: float, waits: bool = True) -> Callable[[], None]:
    def work() -> None:
        watch = RankWatch(timeout_s, grace_s)
        watch.on_lost = lambda text: reason.write_text(text) and None
        if waits:
            watch.begin("losses of all ranks")
        stand_still()

    return work


def test_a_wait_that_is_too_long_ends_the_process_with_the_reason(tmp_path: Path) -> None:
    code, seconds = in_child(waiting_process(tmp_path / "reason", timeout_s=1.0, grace_s=100))
    assert code == 1
    assert 1.0 < seconds < 10
    assert "no answer from another process for" in (tmp_path / "reason").read_text()
    assert "losses of all ranks" in (tmp_path / "reason").read_text()


def test_a_wait_that_sigterm_does_not_end_ends_after_the_grace(tmp_path: Path) -> None:
    code, seconds = in_child(waiting_process(tmp_path / "reason", timeout_s=100, grace_s=1.0), sigterm_after_s=0.5)
    assert code == 1
    assert 1.5 < seconds < 10
    assert "told to end" in (tmp_path / "reason").read_text()


def test_waits_that_come_back_never_end_the_process() -> None:
    def work() -> None:
        watch = RankWatch(timeout_s=1.0, grace_s=1.0)
        watch.begin("a step")
        for _ in range(8):
            watch.begin("losses of all ranks")
            time.sleep(0.3)
            watch.end()
        watch.end()
        time.sleep(1.5)  # own work, for which nobody is waited for
        os._exit(7)

    assert in_child(work, sigterm_after_s=0.2)[0] == 7


def test_a_stopped_watch_ends_nothing() -> None:
    def work() -> None:
        watch = RankWatch(timeout_s=0.5, grace_s=0.5)
        watch.begin("losses of all ranks")
        watch.stop()
        time.sleep(2.0)
        os._exit(7)

    assert in_child(work)[0] == 7
