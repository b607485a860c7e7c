"""What is said when one process of a training fails or is lost, by those that remain."""

from __future__ import annotations

import contextlib
import json
import signal
import sys
import time
from pathlib import Path

from droseg.engine.rank_watch import leave
from droseg.engine.roles import gather_objects, is_writer, rank, rank_watch
from droseg.engine.run_folder import FAILED, RUNNING, RunFolder, replace_text
from droseg.errors import DrosegError

NOTE_WAIT_S = 2.0
"""For the note of a rank that failed by an error of its own: it writes it before its connections close."""


def watch_ranks(run: RunFolder) -> None:
    """Let this process end with a word in `run.json` when a wait for the other ranks does not come back."""
    watch = rank_watch()
    if watch is not None:
        watch.on_lost = lambda reason: say_lost(run, reason)


def check_same_start(run: RunFolder, step: int) -> None:
    """Refuse to train where the ranks have not all loaded the same state, as without a disk that they share.

    Raises:
        DrosegError: on every rank, naming those that are at another step than rank 0.
    """
    steps = gather_objects(step)
    others = [str(rank) for rank, found in enumerate(steps) if found != steps[0]]
    if others:
        raise DrosegError(
            f"rank 0 continues at step {steps[0]}, but rank {', '.join(others)} at {steps[int(others[0])]}: it found "
            f"another {run.checkpoint}, or none. The run folder must be on a disk that all machines share."
        )


def leave_note(run: RunFolder, error: str, remedy: str) -> None:
    """Write down why this rank fails, for rank 0 to say: it only sees that somebody is gone."""
    with contextlib.suppress(OSError):
        replace_text(_note(run, rank()), json.dumps({"rank": rank(), "error": error, "remedy": remedy}))


def remove_notes(run: RunFolder) -> None:
    """Remove what ranks of a former start left."""
    for path in run.path.glob(_note(run, "*").name):
        path.unlink(missing_ok=True)


def end_without_rank(run: RunFolder, reason: str) -> None:
    """Say that a rank was lost, in `run.json` too, and end this process at once; it does not return."""
    with contextlib.suppress(ValueError):  # not the main thread
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # torchrun's, for we end anyway
    try:
        say_lost(run, reason)
    finally:
        leave(1)


def say_lost(run: RunFolder, reason: str) -> None:
    """Print why the training ends; rank 0, or whoever remains without it, writes `run.json`."""
    error, remedy = f"LostRankError: {reason}", _remedy(run)
    note = _first_note(run)
    if note is not None:
        error, remedy = f"rank {note['rank']}: {note['error']}", str(note["remedy"])
    print(f"droseg: error: rank {rank()} ends. {error}\n{remedy}", file=sys.stderr, flush=True)
    with contextlib.suppress(OSError):
        if not is_writer():
            time.sleep(NOTE_WAIT_S + 1)  # rank 0 goes first, if it is there
            if run.status().get("status") != RUNNING:
                return
        run.write_status(status=FAILED, error=error[:500], remedy=remedy)
        remove_notes(run)


def _remedy(run: RunFolder) -> str:
    saved = "continues from the last checkpoint" if run.checkpoint.is_file() else "starts again (no checkpoint yet)"
    return (
        "Another process ended, hangs or cannot be reached; what it said stands above, and one that was killed without "
        "a word often ran out of memory (every process keeps all training cases). The same command "
        f"{saved}, with any number of processes that divides batch_size."
    )


def _note(run: RunFolder, of_rank: int | str) -> Path:
    return run.path / f".rank{of_rank}_error.json"


def _first_note(run: RunFolder) -> dict[str, str] | None:
    deadline = time.monotonic() + NOTE_WAIT_S
    while True:
        for path in sorted(run.path.glob(_note(run, "*").name)):
            with contextlib.suppress(OSError, ValueError):
                content: dict[str, str] = json.loads(path.read_text())
                return content
        if time.monotonic() > deadline:
            return None
        time.sleep(0.1)
