"""Trainings that are killed: a real process, SIGKILL or SIGTERM at any moment, and the uninterrupted run to compare."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

import droseg
from droseg.engine.run_folder import RunFolder
from droseg.handlers import read_audit

SCRIPT = Path(__file__).with_name("run_server.py")
DEADLINE_S = 120


class Server:
    """Starts trainings in processes of their own; see `run_server.py`."""

    def __init__(self, log: Path) -> None:
        path = os.pathsep.join([str(Path(droseg.__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
        environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
        if Path("/sys/class/net/lo").exists():
            environment["GLOO_SOCKET_IFNAME"] = "lo"  # the host's own name need not resolve in a container
        self.log = log
        self.running: set[int] = set()
        self.process = subprocess.Popen(
            [sys.executable, str(SCRIPT)], env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert self._read() == "ready"

    def _read(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def _write(self, line: str) -> str:
        assert self.process.stdin is not None
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()
        return self._read()

    def start(self, folder: Path, **options: Any) -> int:
        """Return the id of a process that trains in this folder."""
        if not self.running:
            self.log.unlink(missing_ok=True)
        pid = int(self._write(json.dumps({"folder": str(folder), "log": str(self.log), **options})))
        self.running.add(pid)
        return pid

    def wait(self, pid: int) -> int:
        """Return the exit code; that of a signal is negative."""
        self.running.discard(pid)
        return int(self._write(f"wait {pid}"))

    def run(self, folder: Path, **options: Any) -> None:
        """Train to the end."""
        assert self.wait(self.start(folder, **options)) == 0, self.log.read_text()


@pytest.fixture
def server(shared_server: Server) -> Iterator[Server]:
    yield shared_server
    for pid in list(shared_server.running):  # of a test that failed
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        shared_server.wait(pid)


@pytest.fixture(scope="module")
def shared_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = Server(tmp_path_factory.mktemp("server") / "log")
    yield server
    server.process.kill()


@pytest.fixture(scope="module")
def uninterrupted(shared_server: Server, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., RunFolder]:
    """Return a function that gives the folder of an uninterrupted run with these options."""
    done: dict[str, RunFolder] = {}

    def run(**options: Any) -> RunFolder:
        key = json.dumps(options, sort_keys=True)
        if key not in done:
            done[key] = RunFolder(tmp_path_factory.mktemp("whole"))
            shared_server.run(done[key].path, **options)
        return done[key]

    return run


def load(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = torch.load(path, weights_only=True)
    return content


def flat(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Yield everything in a nested state; a tensor as its hash."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield from flat(item, f"{name}.{key}")
    elif isinstance(value, (list, tuple)):
        for index, item in enumerate(value):
            yield from flat(item, f"{name}.{index}")
    elif isinstance(value, torch.Tensor):
        yield name, (tuple(value.shape), hashlib.sha256(value.contiguous().numpy().tobytes()).hexdigest())
    else:
        yield name, repr(value)


def assert_same_runs(one: RunFolder, other: RunFolder) -> None:
    """Everything that was trained, bit for bit: draws, probabilities, losses, networks, optimizer, generators."""
    pd.testing.assert_frame_equal(read_audit(one), read_audit(other), check_exact=True)
    for name in ("best_model", "last_model", "checkpoint"):
        first, second = (dict(flat(load(getattr(run, name)))) for run in (one, other))
        assert {key: second.get(key) for key in first} == first, name
        assert len(first) == len(second)
    keys = ("status", "epoch", "step", "loss", "best", "best_epoch")
    assert [one.status()[key] for key in keys] == [other.status()[key] for key in keys]


def until(condition: Callable[[], bool]) -> None:
    """Wait for it."""
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.0005)


def kill(server: Server, pid: int) -> None:
    os.kill(pid, signal.SIGKILL)
    assert server.wait(pid) == -signal.SIGKILL, "it ended before it could be killed"


def kill_after(server: Server, folder: Path, writes: int, delay_s: float, **options: Any) -> int:
    """Continue a training and kill it some time after so many checkpoints; return the step that the last one holds."""
    file = RunFolder(folder).checkpoint
    pid = server.start(folder, **options)
    for _ in range(writes):
        before = file.stat().st_mtime_ns if file.exists() else 0
        until(lambda seen=before: file.exists() and file.stat().st_mtime_ns != seen)
    time.sleep(delay_s)
    kill(server, pid)
    return int(load(file)["trainer"]["iteration"])


OPTIONS: dict[str, Any] = {"epochs": 3, "num_batches": 12, "minutes": 0.0005, "importance_weighting": True}
"""Checkpoints every 30 ms: what was trained since is lost at a kill, and must come back the same."""
PACED: dict[str, Any] = {**OPTIONS, "num_batches": 24, "step_s": 0.01}
"""Steps of 10 ms or more: three kills come before the end, however fast the machine is."""


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_run_killed_at_random_moments_is_the_uninterrupted_one(server, uninterrupted, tmp_path, num_workers):
    options = {**PACED, "num_workers": num_workers}
    chance, steps = random.Random(num_workers), []
    for _ in range(3):
        steps.append(kill_after(server, tmp_path, chance.randint(1, 4), chance.uniform(0.0, 0.06), **options))
    server.run(tmp_path, **options)
    assert_same_runs(uninterrupted(**options), RunFolder(tmp_path))
    assert steps == sorted(steps)
    assert steps[-1] < 72


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        {"objective": "erm"},
        {"objective": "erm", "num_workers": 2},
        {"momentum": 0.5, "mix": 0.1, "cap": 0.9, "max_age": 2.0, "num_workers": 2, "max_lag": 4},
        {"divergence": "chi2", "target_ess": 0.5, "mix": 0.1, "replacement": True},
        {"objective": "group_dro", "groups": [{"site": "ab"[index % 2]} for index in range(8)], "num_workers": 1},
    ],
)
def test_many_kills_change_nothing(server, uninterrupted, tmp_path, options):
    options = {**PACED, "epochs": 15, **options}
    chance, kills, steps = random.Random(str(options)), 0, [0]
    while steps[-1] < 0.8 * 15 * 24:
        steps.append(kill_after(server, tmp_path, chance.randint(1, 5), chance.uniform(0.0, 0.15), **options))
        kills += 1
    server.run(tmp_path, **options)
    assert_same_runs(uninterrupted(**options), RunFolder(tmp_path))
    assert kills >= 8


def partials(folder: Path) -> list[Path]:
    return list(folder.glob("models/.*.partial"))


def test_a_kill_while_a_checkpoint_is_written_leaves_the_one_before(server, uninterrupted, tmp_path):
    options = {**OPTIONS, "epochs": 2, "num_batches": 4, "minutes": 0, "ballast_mb": 60}
    file, saved_steps = RunFolder(tmp_path).checkpoint, []
    for _ in range(2):
        pid = server.start(tmp_path, **options)
        before = file.stat().st_mtime_ns if file.exists() else 0
        until(lambda seen=before: file.exists() and file.stat().st_mtime_ns != seen)
        until(lambda: any(file.stat().st_size > 5e6 for file in partials(tmp_path)))
        kill(server, pid)
        (partial,) = partials(tmp_path)
        assert partial.stat().st_size < file.stat().st_size, "killed in the middle of it"
        saved_steps.append(load(file)["trainer"]["iteration"])
    server.run(tmp_path, **options)
    assert_same_runs(uninterrupted(**options), RunFolder(tmp_path))
    assert 0 < saved_steps[0] < saved_steps[1]
    assert not partials(tmp_path), "what the kills left is removed"


def terminate(server: Server, pid: int, whole_group: bool = False) -> None:
    (os.killpg if whole_group else os.kill)(pid, signal.SIGTERM)
    assert server.wait(pid) == 143, server.log.read_text()


@pytest.mark.parametrize("num_workers", [0, 2])
def test_sigterm_saves_the_step_and_exits_143(server, uninterrupted, tmp_path, num_workers):
    options = {**OPTIONS, "minutes": None, "num_workers": num_workers}
    run = RunFolder(tmp_path)
    for _ in range(2):
        pid = server.start(tmp_path, **options)
        before = run.status().get("step", 0)
        until(lambda seen=before: run.status().get("step", 0) > seen and run.status()["status"] == "running")
        terminate(server, pid, whole_group=True)  # as a scheduler does: the data-loading workers get it, too
        status = run.status()
        assert status["status"] == "interrupted"
        assert "run the same command again" in status["remedy"]
        assert load(run.checkpoint)["trainer"]["iteration"] == status["step"]
        assert f"after step {status['step']}" in status["error"]
        assert len(read_audit(run)) == 2 * status["step"]
    server.run(tmp_path, **options)
    assert_same_runs(uninterrupted(**options), run)


def test_sigterm_in_a_validation_leaves_it_to_be_made_up_for(server, uninterrupted, tmp_path):
    options = {**OPTIONS, "epochs": 2, "minutes": None, "interval": 2}
    for epoch in (1, 2):  # of an epoch that writes no checkpoint otherwise, and of the last one
        pid = server.start(tmp_path, **options, validation_case_s=0.3)
        until((tmp_path / f"validating_{epoch}").exists)
        terminate(server, pid)
        saved = load(RunFolder(tmp_path).checkpoint)
        assert (saved["trainer"]["iteration"], saved["owes_epoch_end"]) == (12 * epoch, True)
    server.run(tmp_path, **options)
    assert_same_runs(uninterrupted(**options), RunFolder(tmp_path))


def test_a_kill_in_a_validation_loses_no_step(server, uninterrupted, tmp_path):
    options = {**OPTIONS, "epochs": 2, "minutes": None}
    pid = server.start(tmp_path, **options, validation_case_s=0.3)
    until((tmp_path / "validating_2").exists)
    until(lambda: load(RunFolder(tmp_path).checkpoint)["trainer"]["iteration"] == 24)
    kill(server, pid)
    server.run(tmp_path, **options)
    assert_same_runs(uninterrupted(**options), RunFolder(tmp_path))


@pytest.mark.slow
def test_sigterm_in_a_refresh_of_the_history_leaves_it_to_be_made_up_for(server, uninterrupted, tmp_path):
    options = {**OPTIONS, "epochs": 2, "minutes": None}
    pid = server.start(tmp_path, **options, refresh_case_s=0.3)
    until((tmp_path / "refreshing").exists)
    terminate(server, pid)
    saved = load(RunFolder(tmp_path).checkpoint)
    assert (saved["trainer"]["iteration"], saved["owes_epoch_end"]) == (12, True)
    server.run(tmp_path, **options, refresh_case_s=0.0)
    assert_same_runs(uninterrupted(**options, refresh_case_s=0.0), RunFolder(tmp_path))


def test_a_second_sigterm_ends_the_run_at_once(server, tmp_path):
    pid = server.start(tmp_path, **OPTIONS, validation_case_s=60.0)
    until((tmp_path / "validating_1").exists)
    os.kill(pid, signal.SIGTERM)
    until(lambda: "a second SIGTERM ends it at once" in server.log.read_text())
    started = time.monotonic()
    terminate(server, pid)
    assert time.monotonic() - started < 30
    assert RunFolder(tmp_path).status()["status"] == "interrupted"


def test_no_second_training_starts_in_a_folder(server, tmp_path):
    first = server.start(tmp_path, **OPTIONS, validation_case_s=60.0)
    until((tmp_path / "validating_1").exists)
    status = RunFolder(tmp_path).status_file.read_bytes()
    assert server.wait(server.start(tmp_path, **OPTIONS)) == 1
    assert f"process {first} on" in server.log.read_text()
    assert RunFolder(tmp_path).status_file.read_bytes() == status
    kill(server, first)
    server.run(tmp_path, **{**OPTIONS, "epochs": 1})  # a killed one holds no lock


@pytest.mark.slow
def test_two_ranks_that_are_killed_train_what_they_would_have(server, tmp_path):
    options = {**OPTIONS, "batch_size": 4, "num_workers": 1}
    whole, part = RunFolder(tmp_path / "whole"), RunFolder(tmp_path / "part")
    chance, steps = random.Random(0), []
    for _ in range(5):
        before = part.checkpoint.stat().st_mtime_ns if part.checkpoint.exists() else 0
        pids = start_ranks(server, tmp_path, part.path, **options)
        until(lambda seen=before: part.checkpoint.exists() and part.checkpoint.stat().st_mtime_ns != seen)
        time.sleep(chance.uniform(0.0, 0.1))
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
        assert [server.wait(pid) for pid in pids] == [-signal.SIGKILL] * 2
        steps.append(load(part.checkpoint)["trainer"]["iteration"])
    for run in (whole, part):
        assert [server.wait(pid) for pid in start_ranks(server, tmp_path, run.path, **options)] == [0, 0]
    assert_same_runs(whole, part)
    assert steps == sorted(steps)
    assert any(step % 12 for step in steps), "checkpoints within epochs, on which the ranks agree by the clock of one"


def start_ranks(server: Server, meeting: Path, folder: Path, **options: Any) -> list[int]:
    meet = f"file://{meeting}/meet{time.monotonic_ns()}"
    return [server.start(folder, ranks=(rank, 2), meet=meet, **options) for rank in (0, 1)]


@pytest.mark.parametrize("signaled", [pytest.param(0, marks=pytest.mark.slow), 1])
def test_two_ranks_stop_after_the_same_step_and_any_number_continues(server, tmp_path, signaled):
    options = {**OPTIONS, "minutes": None, "batch_size": 4, "num_batches": 20}
    folder, whole = tmp_path / "run", tmp_path / "whole"
    run = RunFolder(folder)
    pids = start_ranks(server, tmp_path, folder, **options)
    until(lambda: run.status().get("step", 0) > 0)
    os.kill(pids[signaled], signal.SIGTERM)
    assert [server.wait(pid) for pid in pids] == [143, 143], server.log.read_text()
    saved = load(run.checkpoint)
    assert run.status()["status"] == "interrupted"
    assert 20 <= saved["trainer"]["iteration"] < 60
    assert len(saved["rng"]) == 2
    shutil.copytree(folder, tmp_path / "alone")
    for path in (folder, whole):
        assert [server.wait(pid) for pid in start_ranks(server, tmp_path, path, **options)] == [0, 0]
    assert_same_runs(RunFolder(whole), run)
    server.run(tmp_path / "alone", **options)
    assert RunFolder(tmp_path / "alone").status()["step"] == 60
