"""Runs that are continued, under other circumstances or after their end, by the commands that people type."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from monai.transforms import Compose, Lambda

from droseg.bundles import shipped_bundles
from droseg.cli import main
from droseg.engine.run_folder import RunFolder
from droseg.handlers import read_audit
from droseg.workflow.training import _describe, remedy_for

TINY: dict[str, Any] = {
    "network_def#channels": [4, 8],
    "network_def#strides": [2],
    "network_def#dropout": 0.1,
    "roi_size": [16, 16, 16],
    "epochs": 2,
    "batches_per_epoch": 3,
    "batch_size": 2,
    "val_interval": 1,
    "warmup_steps": 1,
    "device": "$torch.device('cpu')",
    "precision": "fp32",
    "check_data": False,
}


def train(cohort: Path, out: Path, *options: str, **overrides: Any) -> int:
    words = [f"{key}={json.dumps(value)}" for key, value in {**TINY, **overrides}.items()]
    try:
        return main(["train", "hippocampus_mri", "--datalist", str(cohort), "--out", str(out), *options, *words])
    except SystemExit as end:
        return int(end.code or 0)


def load(run: Path) -> dict[str, Any]:
    content: dict[str, Any] = torch.load(run / "models/checkpoint.pt", weights_only=True)
    return content


def without_first_case(cohort: Path) -> None:
    content = json.loads(cohort.read_text())
    del content["training"][0]
    cohort.write_text(json.dumps(content))


def test_a_changed_datalist_is_refused_and_its_remaining_cases_carried_over_on_demand(
    cohort: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    assert train(cohort, run, "--objective", "hardness") == 0
    before = load(run)["objective"]["history"]
    without_first_case(cohort)
    assert train(cohort, run, "--objective", "hardness", epochs=3) == 1
    message = capsys.readouterr().err
    assert f"the content of {cohort} has changed" in message
    assert "carry_over_history=true" in message
    assert train(cohort, run, "--objective", "hardness", epochs=3, carry_over_history=True) == 0
    after = load(run)["objective"]["history"]
    assert after["case_ids"] == before["case_ids"][1:]
    assert after["num_updates"] == 9
    assert int(after["visits"].sum()) == int(before["visits"][1:].sum()) + 6
    assert set(read_audit(run)["case_id"]) == set(before["case_ids"])
    assert train(cohort, run, "--objective", "hardness", epochs=4) == 0, "from now on these are the run's cases"


def test_weights_and_history_of_another_run_go_together_on_demand(
    cohort: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    assert train(cohort, first) == 0
    without_first_case(cohort)
    more = ["--init-from", str(first)]
    assert train(cohort, second, *more, carry_over_history=True) == 0
    visits = [load(run)["objective"]["history"]["visits"] for run in (first, second)]
    assert int(visits[1].sum()) == int(visits[0][1:].sum()) + 12
    assert train(cohort, second, *more, epochs=3) == 0
    assert "init_from is ignored" in capsys.readouterr().out
    assert train(cohort, tmp_path / "third", carry_over_history=True) == 2
    assert "init_from (None) is no run folder" in capsys.readouterr().err


def test_workers_within_the_lag_and_a_sparse_checkpoint_train(
    cohort: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sparse = {"checkpoint_interval": 2, "checkpoint_minutes": None, "audit": False}
    assert train(cohort, tmp_path / "run", num_workers=1, max_lag=1, **sparse) == 0
    assert not (tmp_path / "run/audit.bin").exists()
    assert train(cohort, tmp_path / "other", num_workers=2, max_lag=1) == 2
    assert "num_workers is 2 and max_lag 1" in capsys.readouterr().err


def test_a_run_that_was_killed_is_not_said_to_run_once_somebody_looks(cohort: Path, tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run")
    assert train(cohort, run.path) == 0
    run.write_status(status="running")  # as SIGKILL leaves it
    assert train(cohort, run.path, learning_rate=0.5) == 1
    assert run.status()["status"] == "interrupted"
    assert "run the same command again" in run.status()["remedy"]


def too_much_by_torch() -> None:
    torch.empty(2**58)


def too_much_by_numpy() -> None:
    np.empty(2**58)


def too_much_on_a_gpu() -> None:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")


def too_much_for_cudnn() -> None:
    raise RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED")


def too_much_in_a_transform() -> None:
    try:
        too_much_by_torch()
    except RuntimeError as error:
        raise RuntimeError("applying transform <monai.transforms...>") from error


@pytest.mark.parametrize(
    "allocate", [too_much_by_torch, too_much_by_numpy, too_much_on_a_gpu, too_much_for_cudnn, too_much_in_a_transform]
)
def test_out_of_memory_names_the_keys_to_lower(allocate: Any) -> None:
    with pytest.raises(BaseException) as caught:
        allocate()
    assert "lower batch_size or roi_size" in remedy_for(caught.value)


def test_what_a_transform_raised_is_said_with_its_cause() -> None:
    def fail(image: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes.\nmore")

    with pytest.raises(RuntimeError, match="applying transform") as caught:
        Compose([Compose([Lambda(fail)])])(torch.zeros(1))
    allocator = "DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes."
    assert _describe(caught.value).endswith(f"Lambda: RuntimeError: {allocator}")
    assert _describe(ValueError("a\nb")) == "ValueError: a"


def test_another_error_does_not_blame_the_memory() -> None:
    assert "memory" not in remedy_for(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))


def test_out_of_memory_in_training_is_said_with_the_remedy(
    cohort: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    greedy = [{"_target_": "Lambdad", "keys": "image", "func": "$lambda image: torch.empty(2**58)"}]
    assert train(cohort, tmp_path / "run", augmentation=greedy) == 1
    assert "lower batch_size or roi_size" in capsys.readouterr().err
    status = RunFolder(tmp_path / "run").status()
    assert status["status"] == "failed"
    assert "lower batch_size or roi_size" in status["remedy"]


@pytest.mark.slow
@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_bundle_that_is_killed_again_and_again_trains_what_it_would_have(
    cohort: Path, tmp_path: Path, num_workers: int
) -> None:
    options = {**TINY, "epochs": 4, "batches_per_epoch": 25, "checkpoint_minutes": 0.002, "num_workers": num_workers}
    config = shipped_bundles()["hippocampus_mri"] / "configs"
    files = str([str(config / f"{name}.yaml") for name in ("train", "hardness")])

    def start(out: Path) -> subprocess.Popen:
        words = [word for key, value in options.items() for word in (f"--{key}", str(value))]
        line = [sys.executable, "-m", "monai.bundle", "run", "training", "--config_file", files, *words]
        return subprocess.Popen(
            [*line, "--datalist", str(cohort), "--output_dir", str(out)],
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def wait(process: subprocess.Popen) -> int:
        errors = process.communicate(timeout=300)[1]
        assert process.returncode in (0, 143, -signal.SIGKILL, -signal.SIGTERM), errors
        return int(process.returncode)

    whole, part = tmp_path / "whole", RunFolder(tmp_path / "part")
    assert wait(start(whole)) == 0
    chance = random.Random(num_workers)
    for number in (signal.SIGKILL, signal.SIGTERM, signal.SIGKILL, signal.SIGKILL):
        process, before = start(part.path), part.checkpoint.stat().st_mtime_ns if part.checkpoint.exists() else 0
        while not part.checkpoint.exists() or part.checkpoint.stat().st_mtime_ns == before:
            assert process.poll() is None, process.communicate()[1]
            time.sleep(0.001)
        time.sleep(chance.uniform(0.0, 0.3))
        os.killpg(process.pid, number)
        assert wait(process) == (143 if number == signal.SIGTERM else -number)
        assert part.status()["status"] == ("interrupted" if number == signal.SIGTERM else "running")
    process = start(part.path)
    while part.status()["status"] != "interrupted":  # it has locked the folder, and checks the data
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGTERM)
    assert wait(process) in (143, -signal.SIGTERM)
    assert part.status()["status"] == "interrupted"
    assert wait(start(part.path)) == 0
    pd.testing.assert_frame_equal(read_audit(part), read_audit(whole), check_exact=True)
    for name in ("model.pt", "model_last.pt"):
        weights = [torch.load(run / "models" / name, weights_only=True) for run in (whole, part.path)]
        assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0]), name
