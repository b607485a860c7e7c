"""Trainings on a CUDA device: the same first losses as on the CPU, bf16, NCCL, running on, and too little memory."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import droseg
from droseg.bundles import shipped_bundles
from droseg.cli import main
from droseg.data.volumes import read_volume
from droseg.handlers.audit import read_audit
from droseg.inference import Predictor

pytestmark = pytest.mark.gpu
TINY: dict[str, Any] = {
    "network_def#channels": [4, 8],
    "network_def#strides": [2],
    "roi_size": [16, 16, 16],
    "epochs": 2,
    "batches_per_epoch": 4,
    "batch_size": 2,
    "val_interval": 1,
    "warmup_steps": 1,
}
"""Overrides of bundles/hippocampus_mri/configs/train.yaml."""


def words(**overrides: Any) -> list[str]:
    return [f"{key}={json.dumps(value)}" for key, value in {**TINY, **overrides}.items()]


def train(cohort: Path, out: Path, *options: str, **overrides: Any) -> int:
    line = ["train", "hippocampus_mri", "--datalist", str(cohort), "--out", str(out), *options]
    try:
        return main([*line, *words(**overrides)])
    except SystemExit as end:
        return int(end.code or 0)


def status(run: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((run / "run.json").read_text())
    return content


def test_a_training_takes_the_gpu_by_itself_and_its_network_predicts_there(cohort: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    torch.cuda.reset_peak_memory_stats()
    assert train(cohort, run, "--objective", "hardness") == 0
    assert torch.cuda.max_memory_allocated() > 0
    assert status(run)["status"] == "finished"
    image = cohort.parent / "te_0.nii.gz"
    on_gpu, _ = Predictor(run, device="cuda", precision="fp32")(image)
    on_cpu, _ = Predictor(run, device="cpu")(image)
    assert on_gpu.shape == read_volume(image).array.shape[1:]
    assert np.mean(np.asanyarray(on_gpu.dataobj) == np.asanyarray(on_cpu.dataobj)) > 0.999


@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 2e-3), ("bf16", 3e-2)])
def test_the_first_losses_are_those_of_the_cpu(cohort: Path, tmp_path: Path, precision: str, tolerance: float) -> None:
    frozen = {"learning_rate": 0.0, "optimizer#weight_decay": 0.0, "epochs": 1}
    losses = []
    for name in ("cpu", "cuda"):
        run = tmp_path / name
        chosen = "fp32" if name == "cpu" else precision
        assert train(cohort, run, device=f"$torch.device('{name}')", precision=chosen, **frozen) == 0
        losses.append(read_audit(run))
    assert losses[0]["case_id"].tolist() == losses[1]["case_id"].tolist()
    np.testing.assert_allclose(losses[0]["loss"], losses[1]["loss"], rtol=tolerance)


def test_a_training_runs_on_from_its_checkpoint(cohort: Path, tmp_path: Path) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert train(cohort, whole, precision="fp32", epochs=3) == 0
    assert train(cohort, parts, precision="fp32", epochs=2) == 0
    assert train(cohort, parts, precision="fp32", epochs=3) == 0
    trails = [read_audit(run) for run in (whole, parts)]
    assert trails[0]["case_id"].tolist() == trails[1]["case_id"].tolist()
    # cuDNN's sums have no fixed order, and the learning rate's schedule knows how many epochs there are.
    np.testing.assert_allclose(trails[0]["loss"], trails[1]["loss"], rtol=0.1)
    assert len(trails[1]) == 3 * 4 * 2


def test_too_little_memory_is_one_line_with_a_remedy(
    cohort: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction(60e6 / total)
    try:
        run = tmp_path / "run"
        assert train(cohort, run, roi_size=[128, 128, 128]) == 1
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
        torch.cuda.empty_cache()
    said = capfd.readouterr().err
    assert "droseg: error: OutOfMemoryError: CUDA out of memory" in said
    assert "lower batch_size or roi_size" in said
    assert "Traceback" not in said
    assert status(run)["status"] == "failed"


def test_torchrun_joins_by_nccl(cohort: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    configs = shipped_bundles()["hippocampus_mri"] / "configs"
    files = [str(configs / name) for name in ("train.yaml", "hardness.yaml", "multi_gpu_train.yaml")]
    line = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=1"]
    line += ["-m", "monai.bundle", "run", "training", "--config_file", json.dumps(files)]
    options = {**TINY, "datalist": str(cohort), "output_dir": str(run)}
    for key, value in options.items():
        line += [f"--{key}", value if isinstance(value, str) else json.dumps(value)]
    path = os.pathsep.join([str(Path(droseg.__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(line, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert status(run)["status"] == "finished"
    assert len(read_audit(run)) == 2 * 4 * 2
