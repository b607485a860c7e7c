from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from monai.bundle import ConfigParser, ConfigWorkflow

from droseg.bundles import shipped_bundles
from droseg.data.phantoms import generate_phantoms
from droseg.workflow.config import config_files, load_config, walk

TINY: dict[str, Any] = {
    "network_def#channels": [4, 8],
    "network_def#strides": [2],
    "spacing_mm": [4.0, 4.0, 4.0],
    "roi_size": [16, 16, 16],
    "epochs": 1,
    "batches_per_epoch": 2,
    "batch_size": 2,
    "val_interval": 1,
    "warmup_steps": 1,
    "device": "$torch.device('cpu')",
    "precision": "fp32",
}
STRUCTURES = {
    "hippocampus_mri": {"anterior": 1, "posterior": 2},
    "fetal_brain_mri": {"outer_csf": 1, "cortical_gm": 2, "white_matter": 3},
    "brats_mri": {"whole": [1, 2, 3], "core": [1, 3], "one": 1},
}
OWN_NAMES = ("hippocampus_mri", "brats_mri")
"""Bundles whose structures the phantoms do not have by name."""


@pytest.fixture(scope="module")
def phantoms(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return generate_phantoms(tmp_path_factory.mktemp("phantoms"), cases=8, seed=0, size=32)


def workflow(name: str, datalist: Path, out: Path, *overlays: str, **overrides: Any) -> ConfigWorkflow:
    """A shipped bundle's training on phantoms; some take their structures for their own, brats_mri one channel."""
    configs = shipped_bundles()[name] / "configs"
    content = json.loads(datalist.read_text())
    if name in OWN_NAMES:
        content["structures"] = {**STRUCTURES[name], **{f"other_{value}": value for value in range(3, 8)}}
        datalist = datalist.with_name(f"{name}.json")
        datalist.write_text(json.dumps(content))
    options = {"structures": STRUCTURES[name], **TINY, **overrides}
    if name == "brats_mri":
        options |= {"channels": ["T2w"], "cache_rate": 1.0, "num_workers": 0}
    files = [str(configs / f"{file}.yaml") for file in ("train", *overlays)]
    return ConfigWorkflow(files, datalist=str(datalist), output_dir=str(out), workflow_type="train", **options)


@pytest.mark.parametrize("name", sorted(STRUCTURES))
@pytest.mark.parametrize("overlay", [None, "hardness"])
def test_a_bundle_trains_one_epoch_with_all_properties(
    name: str, overlay: str | None, phantoms: Path, tmp_path: Path
) -> None:
    training = workflow(name, phantoms, tmp_path / "run", *([overlay] if overlay else []))
    training.initialize()
    assert training.check_properties() == []
    training.run()
    training.finalize()
    status = json.loads((tmp_path / "run/run.json").read_text())
    assert status["status"] == "finished"
    assert status["objective"] == (overlay or "erm")


@pytest.mark.parametrize("name", sorted(STRUCTURES))
def test_erm_and_dro_differ_by_one_overlay_that_touches_the_objective_only(name: str) -> None:
    overlay = load_config([shipped_bundles()[name] / "configs/hardness.yaml"])
    assert set(overlay) <= {"objective", "beta", "target_ess", "momentum", "importance_weighting"}
    assert overlay["objective"] == "hardness"


def test_the_twins_start_from_the_same_weights(phantoms: Path, tmp_path: Path) -> None:
    weights = []
    for overlays in ([], ["hardness"]):
        still = {"learning_rate": 0.0, "optimizer#weight_decay": 0.0}
        run = tmp_path / f"run{len(overlays)}"
        training = workflow("fetal_brain_mri", phantoms, run, *overlays, **still)
        training.initialize()
        training.run()
        weights.append(torch.load(run / "models/model.pt", weights_only=True))
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])


def test_the_phantom_overlay_fits_the_phantoms(phantoms: Path, tmp_path: Path) -> None:
    budget = {"epochs": 1, "batches_per_epoch": 1, "val_interval": 1, "roi_size": [16, 16, 16]}
    configs = shipped_bundles()["fetal_brain_mri"] / "configs"
    files = [str(configs / name) for name in ("train.yaml", "phantoms.yaml")]
    training = ConfigWorkflow(files, datalist=str(phantoms), output_dir=str(tmp_path / "run"), **budget)
    training.initialize()
    training.run()
    resolved = load_config([tmp_path / "run/configs/inference.yaml"])
    assert len(resolved["structures"]) == 7
    assert resolved["network_def"]["channels"] == [16, 32, 64, 128]


@pytest.mark.parametrize("name", sorted(STRUCTURES))
def test_every_expression_is_one_short_call_and_no_path_is_absolute(name: str) -> None:
    for file in config_files(shipped_bundles()[name] / "configs"):
        for key, value in walk(ConfigParser.load_config_file(str(file))):
            if isinstance(value, str):
                assert not value.startswith("/"), f"{file.name} {key}"
                assert not value.startswith("$") or len(value) <= 80, f"{file.name} {key}: {len(value)} characters"


@pytest.mark.slow  # tests/workflow/test_ranks.py and test_lost_rank.py start the overlays by default
def test_the_multi_gpu_overlay_trains_on_two_processes(phantoms: Path, tmp_path: Path) -> None:
    configs = shipped_bundles()["fetal_brain_mri"] / "configs"
    files = [str(configs / f"{name}.yaml") for name in ("train", "hardness", "multi_gpu_train")]
    options = {"structures": STRUCTURES["fetal_brain_mri"], **TINY, "batch_size": 4, "datalist": str(phantoms)}
    options |= {"output_dir": str(tmp_path / "run")}
    words = [word for key, value in options.items() for word in (f"--{key}", str(value))]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "-m"]
    line = [*torchrun, "monai.bundle", "run", "training", "--config_file", str(files), *words]
    done = subprocess.run(line, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("checkpoint rule:") == 1  # one process speaks and writes
    assert len(list((tmp_path / "run/tensorboard").glob("events*"))) == 1
    weights = torch.load(tmp_path / "run/models/model.pt", weights_only=True)
    assert not any(key.startswith("module.") for key in weights)
    again = subprocess.run(line, capture_output=True, text=True, timeout=120, check=False)
    assert again.returncode == 0  # both processes end, though only one of them has looked into the folder
    assert "this run is finished" in again.stdout
