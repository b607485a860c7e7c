"""Cases in a child process, which can be ended: a case may hang, also in C code, or take the process down with it.

No thread and no signal handler of Python ends a C call that holds the interpreter's lock, and a process that reads from
a dead network share may not even end when it is killed; so the network, reading and writing live in a child that is
left behind and replaced.
"""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Pipe
from pathlib import Path
from typing import Any

from droseg.data.writing import OutputError
from droseg.errors import BundleError, DrosegError, InputError, WeightsError
from droseg.inference.inputs import InputCase
from droseg.inference.outputs import Model, Wanted
from droseg.inference.predictor import Predictor
from droseg.inference.record import CaseResult, source_names

ERRORS: dict[str, type[DrosegError]] = {
    error.__name__: error for error in (BundleError, DrosegError, InputError, OutputError, WeightsError)
}
END_S = 5.0
"""How long a killed child is waited for; one that hangs in a system call is left behind."""


@dataclass(frozen=True)
class Setup:
    """What the child needs to know."""

    bundle: str
    device: str
    options: Mapping[str, Any]
    out: Path
    wanted: Wanted
    overwrite: bool
    beside: bool
    debug: bool


@dataclass(frozen=True)
class Batch:
    """Cases for the child, one after the other or overlapping."""

    cases: tuple[InputCase, ...]
    beside: bool


@dataclass(frozen=True)
class Ready:
    """The child has loaded the network."""

    model: Model
    device: str


@dataclass(frozen=True)
class Stage:
    """A stage of a case begins; None: it ends."""

    case_id: str
    stage: str | None


@dataclass(frozen=True)
class Finished:
    """A batch is done."""


@dataclass(frozen=True)
class Fatal:
    """The child cannot go on, and why."""

    error: str
    text: str


@dataclass
class _Clock:
    """How long a case has been worked on."""

    stage: str | None = None
    since: float = 0.0
    spent: float = 0.0

    def turn(self, stage: str | None) -> None:
        now = time.monotonic()
        self.spent += now - self.since if self.stage is not None else 0.0
        self.stage, self.since = stage, now

    def left(self, limit: float) -> float:
        running = time.monotonic() - self.since if self.stage is not None else 0.0
        return limit - self.spent - running


class Supervisor:
    """Process cases in a child, with a limit of time for each; a case that ends the child costs only itself.

    Args:
        setup: for the child.
        case_timeout_s: of work on one case (reading, segmenting, writing), not of waiting.
        on_ready: called once, when the network is loaded for the first time.
        on_result: called with the result of each case.
        on_stage: called with a case_id and what begins with it, or None when that ends.
    """

    def __init__(
        self,
        setup: Setup,
        case_timeout_s: float,
        *,
        on_ready: Callable[[Ready], None],
        on_result: Callable[[CaseResult], None],
        on_stage: Callable[[str, str | None], None],
    ) -> None:
        self._setup = setup
        self._limit = case_timeout_s
        self._on_ready = on_ready
        self._on_result = on_result
        self._on_stage = on_stage
        self._child: _Child | None = None
        self._was_ready = False

    def run(self, cases: Sequence[InputCase]) -> None:
        """Process the cases.

        Raises:
            DrosegError: if the bundle cannot be loaded, or if the folder takes no file.
        """
        rest = list(cases)
        try:
            self._start()
            while rest:
                rest = self._run_batch(rest, beside=self._setup.beside)
        finally:
            self._stop()

    def _run_batch(self, cases: Sequence[InputCase], beside: bool) -> list[InputCase]:
        """Return the cases that are left after the batch was ended by a hanging or crashing case."""
        child = self._start()
        child.send(Batch(tuple(cases), beside))
        left = {case.case_id: case for case in cases}
        clocks: dict[str, _Clock] = {}
        while True:
            waits = [clock.left(self._limit) for clock in clocks.values() if clock.stage is not None]
            message = child.receive(min(waits, default=None))
            if message is None:
                if any(clock.stage and clock.left(self._limit) <= 0 for clock in clocks.values()):
                    self._stop()
                    return self._after_end(None, left, clocks)
            elif isinstance(message, _Ended):
                self._stop()
                return self._after_end(message, left, clocks)
            elif isinstance(message, Stage):
                clocks.setdefault(message.case_id, _Clock()).turn(message.stage)
                self._on_stage(message.case_id, message.stage)
            elif isinstance(message, CaseResult):
                clocks.pop(message.case_id, None)
                left.pop(message.case_id, None)
                self._on_result(message)
            elif isinstance(message, Finished):
                return []
            elif isinstance(message, Fatal):
                raise ERRORS.get(message.error, DrosegError)(message.text)

    def _after_end(
        self, ended: _Ended | None, left: dict[str, InputCase], clocks: Mapping[str, _Clock]
    ) -> list[InputCase]:
        """Return the cases that are left after the child crashed, or was ended because of the time (None).

        Of several cases at work any may be to blame: a reader that hangs in C code also keeps the network of the case
        before it waiting. Who it was shows when each of them is alone.
        """
        at_work = [left[name] for name, clock in clocks.items() if clock.stage is not None]
        if ended is not None and not at_work:
            raise DrosegError(f"the process that segments has ended ({ended.how}); the same command goes on from here.")
        rest = [case for case in left.values() if case not in at_work]
        if len(at_work) == 1:
            clock = clocks[at_work[0].case_id]
            self._fail(at_work[0], *(self._timeout(clock) if ended is None else _crash(ended, clock)), clock)
        else:
            for case in at_work:
                self._run_batch([case], beside=False)
        return rest

    def _timeout(self, clock: _Clock) -> tuple[str, str]:
        return (
            f"still {clock.stage} after {self._limit:g} s, so it was ended",
            "check the file and the disk or network that it is on, or give more time with --case-timeout",
        )

    def _fail(self, case: InputCase, error: str, remedy: str, clock: _Clock) -> None:
        clock.turn(None)
        images = source_names(case.images)
        seconds = round(clock.spent, 3)
        self._on_result(CaseResult(case.case_id, images, "failed", seconds, error=error, remedy=remedy))

    def _start(self) -> _Child:
        """Return a child that has loaded the network."""
        if self._child is not None:
            return self._child
        self._child = child = _Child()
        child.send(self._setup)
        message = child.receive(None)
        if isinstance(message, Fatal):
            raise ERRORS.get(message.error, DrosegError)(message.text)
        if not isinstance(message, Ready):
            how = message.how if isinstance(message, _Ended) else "unexpectedly"
            raise DrosegError(f"the process that segments has ended while loading the bundle ({how}).")
        if not self._was_ready:
            self._was_ready = True
            self._on_ready(message)
        return child

    def _stop(self) -> None:
        if self._child is not None:
            self._child.end()
            self._child = None


@dataclass(frozen=True)
class _Ended:
    how: str


class _Child:
    """A process of `droseg.inference.worker`, started afresh: a fork would inherit threads and the GPU's state."""

    def __init__(self) -> None:
        self._connection, theirs = Pipe()
        descriptor = theirs.fileno()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "droseg.inference.worker", str(descriptor)],
            pass_fds=[descriptor],
            stdin=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C reaches the parent alone
        )
        theirs.close()

    def send(self, message: Any) -> None:
        """Send a message; that the child has ended shows when an answer is asked for."""
        with contextlib.suppress(OSError):
            self._connection.send(message)

    def receive(self, timeout_s: float | None) -> Any:
        """Return the next message, `_Ended` if there will be none, or None after the time."""
        try:
            if not self._connection.poll(None if timeout_s is None else max(timeout_s, 0.0)):
                return None
            return self._connection.recv()
        except (EOFError, ConnectionError):
            return _Ended(self._how())

    def end(self) -> None:
        """Kill the child, whatever it is doing; what it was writing is left half-written under a temporary name."""
        with contextlib.suppress(OSError):
            self._connection.close()
        self._process.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(END_S)

    def _how(self) -> str:
        try:
            code = self._process.wait(END_S)
        except subprocess.TimeoutExpired:
            return "it stopped answering"
        if code >= 0:
            return f"exit code {code}"
        name = signal.Signals(-code).name
        return f"{name}: out of memory, or ended from outside" if -code == signal.SIGKILL else name


def _crash(ended: _Ended, clock: _Clock) -> tuple[str, str]:
    return (
        f"the process that worked on it has ended while {clock.stage} ({ended.how})",
        "check the file with another program; if memory was short, use a machine with more",
    )


def model_of(predictor: Predictor) -> Model:
    """Return what a predictor is."""
    return Model(predictor.folder, predictor.fingerprint, predictor.structures, predictor.overlapping)
