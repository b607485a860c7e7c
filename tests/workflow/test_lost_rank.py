"""A process of a training is killed, frozen or loses its machine: the others say so and end, any number goes on."""

from __future__ import annotations

import json
import os
import runpy
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from monai.bundle import run as monai_run

from droseg.bundles import shipped_bundles

RANKS = runpy.run_path(str(Path(__file__).with_name("test_ranks.py")))
CONFIGS = shipped_bundles()["hippocampus_mri"] / "configs"
OPTIONS = {**RANKS["TINY"], "batches_per_epoch": 3, "epochs": 5000, "objective": "hardness", "rank_timeout_s": 60}


def files(*more: str) -> list[str]:
    return [str(CONFIGS / f"{name}.yaml") for name in ("train", *more)]


def torchrun(cohort: Path, out: Path, *launch: str, **overrides: Any) -> list[str]:
    options = {"bundle_root": CONFIGS.parent, "datalist": cohort, "output_dir": out, **OPTIONS, **overrides}
    words = [word for key, value in options.items() for word in (f"--{key}", str(value))]
    line = [sys.executable, "-m", "torch.distributed.run", *launch, "-m", "monai.bundle", "run", "training"]
    return [*line, "--config_file", str(files("multi_gpu_train")), *words]


@contextmanager
def started(line: list[str], log: Path) -> Iterator[psutil.Popen]:
    """A torchrun that no process of outlives the test."""
    with log.open("w") as file:
        process = psutil.Popen(line, env=RANKS["environment"](), stdout=file, stderr=file)
        try:
            yield process
        finally:
            if process.poll() is None:
                for each in [*process.children(recursive=True), process]:
                    each.kill()
                process.wait()


def wait_for_checkpoint(out: Path, *processes: psutil.Popen) -> None:
    deadline = time.monotonic() + 180
    while not (out / "models/checkpoint.pt").is_file():
        assert time.monotonic() < deadline
        assert all(process.poll() is None for process in processes)
        time.sleep(0.05)


def process_of_rank(agent: psutil.Popen, rank: int) -> psutil.Process:
    return next(child for child in agent.children() if child.environ().get("RANK") == str(rank))


def status(out: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((out / "run.json").read_text())
    return content


def saved_step(out: Path) -> int:
    return int(torch.load(out / "models/checkpoint.pt", weights_only=True)["trainer"]["iteration"])


def check_ended(out: Path, log: Path, code: int, seconds: float, within_s: float) -> None:
    assert code not in (0, None)
    assert seconds < within_s
    text, run = log.read_text(), status(out)
    assert "droseg: error: rank" in text
    assert "Another process ended, hangs or cannot be reached" in text
    assert run["status"] == "failed"
    assert "LostRankError" in run["error"]
    assert "continues from the last checkpoint, with any number of processes that divides batch_size" in run["remedy"]


@pytest.mark.parametrize("lost", [1, pytest.param(0, marks=pytest.mark.slow)])
def test_when_a_rank_is_killed_the_other_says_so_and_one_process_goes_on(tmp_path: Path, lost: int) -> None:
    cohort, out, log = RANKS["write_cohort"](tmp_path / "cohort"), tmp_path / "run", tmp_path / "log"
    with started(torchrun(cohort, out, "--standalone", "--nproc_per_node=2"), log) as agent:
        wait_for_checkpoint(out, agent)
        process_of_rank(agent, lost).kill()
        began = time.monotonic()
        code = agent.wait(timeout=60)
    check_ended(out, log, code, time.monotonic() - began, within_s=40)
    step = saved_step(out)
    assert step >= 3
    epochs = step // 3 + 1
    options = {key: value for key, value in OPTIONS.items() if key != "rank_timeout_s"}
    folders = {"bundle_root": str(CONFIGS.parent), "datalist": str(cohort), "output_dir": str(out)}
    monai_run(run_id="training", config_file=files(), **folders, **{**options, "epochs": epochs})
    assert status(out)["status"] == "finished"
    assert status(out)["error"] is None
    assert saved_step(out) == 3 * epochs


def go_on_with_three(cohort: Path, out: Path, log: Path) -> None:
    step = saved_step(out)
    with started(torchrun(cohort, out, "--standalone", "--nproc_per_node=3", epochs=step // 3 + 1), log) as agent:
        assert agent.wait(timeout=180) == 0, log.read_text()[-3000:]
    assert f"(step {step})" in log.read_text()
    assert status(out)["status"] == "finished"


@pytest.mark.slow
def test_when_a_rank_is_frozen_the_other_ends_after_the_timeout(tmp_path: Path) -> None:
    cohort, out, log = RANKS["write_cohort"](tmp_path / "cohort"), tmp_path / "run", tmp_path / "log"
    line = torchrun(cohort, out, "--standalone", "--nproc_per_node=2", rank_timeout_s=5)
    with started(line, log) as agent:
        wait_for_checkpoint(out, agent)
        frozen = process_of_rank(agent, 1)
        frozen.send_signal(signal.SIGSTOP)
        began = time.monotonic()
        while status(out)["status"] == "running" and time.monotonic() - began < 40:
            time.sleep(0.1)
        seconds = time.monotonic() - began
        code = agent.wait(timeout=90)  # torchrun gives the frozen process 30 s after SIGTERM
    check_ended(out, log, code, seconds, within_s=5 + 20 + 10)
    go_on_with_three(cohort, out, tmp_path / "log3")


@pytest.mark.slow
def test_when_a_machine_is_lost_the_other_ends_and_three_processes_go_on(tmp_path: Path) -> None:
    """Two torchrun agents stand for two machines; one is killed with all its processes."""
    cohort, out, logs = RANKS["write_cohort"](tmp_path / "cohort"), tmp_path / "run", [tmp_path / "a", tmp_path / "b"]
    port = runpy.run_path(str(Path(__file__).with_name("forked_ranks.py")))["free_port"]()
    where = ("--nnodes=2", "--nproc_per_node=1", "--master_addr=127.0.0.1", f"--master_port={port}")
    lines = [torchrun(cohort, out, *where, f"--node_rank={node}") for node in range(2)]
    with started(lines[0], logs[0]) as first, started(lines[1], logs[1]) as second:
        wait_for_checkpoint(out, first, second)
        for each in [second, *second.children(recursive=True)]:
            os.kill(each.pid, signal.SIGKILL)
        began = time.monotonic()
        code = first.wait(timeout=60)
        seconds = time.monotonic() - began
    check_ended(out, logs[0], code, seconds, within_s=40)
    go_on_with_three(cohort, out, tmp_path / "log3")


@pytest.mark.slow
def test_the_error_of_another_rank_is_the_one_in_run_json(tmp_path: Path) -> None:
    """Rank 1 alone fails in its first step."""
    cohort, out, log = RANKS["write_cohort"](tmp_path / "cohort"), tmp_path / "run", tmp_path / "log"
    broken = "$@augmentation if rank() == 0 else [{}.__getitem__]"
    line = torchrun(cohort, out, "--standalone", "--nproc_per_node=2", **{"train#preprocessing#transforms": broken})
    done = subprocess.run(line, env=RANKS["environment"](), capture_output=True, text=True, timeout=180, check=False)
    log.write_text(done.stderr)
    assert done.returncode != 0
    assert status(out)["status"] == "failed"
    assert status(out)["error"].startswith("rank 1: RuntimeError: applying transform"), status(out)["error"]
