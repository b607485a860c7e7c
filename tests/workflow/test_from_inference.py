"""A train.yaml that takes what training and inference share from the inference.yaml beside it."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from droseg.cli import main
from droseg.errors import BundleError
from droseg.hardest.source import read_run
from droseg.inference.shared_choices import with_shared
from droseg.workflow.config import load_config

SHARED = ("channels", "structures", "spacing_mm", "roi_size", "sw_overlap", "network_def", "deterministic_transforms")
TINY: dict[str, Any] = {
    "network_def#channels": [4, 8],
    "network_def#strides": [2],
    "roi_size": [16, 16, 16],
    "epochs": 1,
    "batches_per_epoch": 2,
    "batch_size": 2,
    "val_interval": 1,
    "warmup_steps": 1,
    "device": "$torch.device('cpu')",
    "precision": "fp32",
}


@pytest.fixture
def bundle(tmp_path: Path, copy_bundle: Callable[[str, Path], Path]) -> Path:
    """Return hippocampus_mri with a train.yaml that repeats nothing."""
    folder = copy_bundle("hippocampus_mri", tmp_path / "bundle")
    path = folder / "configs/train.yaml"
    train = yaml.safe_load(path.read_text())
    kept = {key: value for key, value in train.items() if key not in SHARED}
    kept |= {"from_inference": list(SHARED), "network_def": {}}
    path.write_text(yaml.safe_dump(kept, sort_keys=False))
    return folder


def words(**overrides: Any) -> list[str]:
    return [f"{key}={json.dumps(value)}" for key, value in {**TINY, **overrides}.items()]


def train(bundle: Path, *options: str, **overrides: Any) -> int:
    try:
        return main(["train", str(bundle), *options, *words(**overrides)])
    except SystemExit as end:
        return int(end.code or 0)


def configs(run: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    return load_config([run / "configs/train.yaml"]), load_config([run / "configs/inference.yaml"])


def test_a_config_without_the_key_stays_as_it_is(project_root: Path) -> None:
    folder = project_root / "bundles/hippocampus_mri/configs"
    config = load_config([folder / "train.yaml"])
    assert with_shared(config, folder) == config


def test_it_gives_what_a_complete_train_yaml_gives(bundle: Path, project_root: Path) -> None:
    complete = load_config([project_root / "bundles/hippocampus_mri/configs/train.yaml"])
    assert with_shared(load_config([bundle / "configs/train.yaml"]), bundle / "configs") == complete


def test_overrides_win_whole_values_and_parts_of_components(bundle: Path) -> None:
    raw = load_config([bundle / "configs/train.yaml"])
    raw["structures"] = {"posterior": 2}
    raw["network_def"] = {"channels": [4, 8], "norm": "BATCH"}
    found = with_shared(raw, bundle / "configs")
    assert found["structures"] == {"posterior": 2}
    assert found["network_def"]["_target_"] == "UNet"
    assert (found["network_def"]["channels"], found["network_def"]["norm"]) == ([4, 8], "BATCH")
    assert found["network_def"]["num_res_units"] == 2
    raw["network_def"] = {"_target_": "SegResNet"}
    assert with_shared(raw, bundle / "configs")["network_def"] == {"_target_": "SegResNet"}


@pytest.mark.parametrize("overlay", [None, "hardness"])
def test_monai_alone_trains_it_from_a_foreign_folder(
    bundle: Path, cohort: Path, tmp_path: Path, overlay: str | None
) -> None:
    files = [str(bundle / "configs" / f"{name}.yaml") for name in ("train", overlay) if name]
    run = tmp_path / "run"
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    options = {**TINY, "datalist": str(cohort), "output_dir": str(run)}
    line = [sys.executable, "-m", "monai.bundle", "run", "training", "--config_file", str(files)]
    line += [word for key, value in options.items() for word in (f"--{key}", str(value))]
    done = subprocess.run(line, capture_output=True, text=True, cwd=elsewhere, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert not list(elsewhere.iterdir())
    written, inference = configs(run)
    assert "from_inference" not in written
    for key in SHARED:
        assert written[key] == inference[key], key
    assert written["network_def"]["channels"] == [4, 8]
    assert written["roi_size"] == [16, 16, 16]
    assert written["objective"] == (overlay or "erm")


def test_a_run_is_finished_continued_and_told_apart(
    bundle: Path, cohort: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    options = ["--datalist", str(cohort), "--out", str(run)]
    assert train(bundle, *options) == 0
    assert train(bundle, *options) == 0
    assert "this run is finished" in capsys.readouterr().out
    assert train(bundle, *options, epochs=2) == 0
    assert "continues after epoch 1 of 2" in capsys.readouterr().out
    assert main(["train", str(run), "epochs=3"]) == 0  # the run folder is complete, and a bundle itself
    capsys.readouterr()
    assert train(bundle, *options, epochs=3, spacing_mm=[2.0, 2.0, 2.0]) == 1
    assert "spacing_mm" in capsys.readouterr().err
    path = bundle / "configs/inference.yaml"
    path.write_text(re.sub(r"sw_overlap: .*", "sw_overlap: 0.25", path.read_text()))
    assert train(bundle, *options, epochs=3) == 1
    assert "sw_overlap: 0.5 -> 0.25" in capsys.readouterr().err


def test_hardest_reads_the_run_of_such_a_train_yaml(bundle: Path, cohort: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert train(bundle, "--datalist", str(cohort), "--out", str(run), early_epoch=1) == 0
    found = read_run(run, by="late", device="cpu", datalist=cohort)
    assert found.structures == ("anterior", "posterior")


@pytest.mark.parametrize("by_monai", [False, True])
def test_without_inference_yaml_it_says_so(
    bundle: Path, cohort: Path, tmp_path: Path, by_monai: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    (bundle / "configs/inference.yaml").unlink()
    if by_monai:
        from monai.bundle import run as monai_run

        options = {key: value for key, value in TINY.items() if "#" not in key}
        with pytest.raises(SystemExit) as end:
            monai_run(
                "training",
                config_file=str(bundle / "configs/train.yaml"),
                datalist=str(cohort),
                output_dir=str(tmp_path / "run"),
                **options,
            )
        assert end.value.code == 1
    else:
        assert train(bundle, "--datalist", str(cohort), "--out", str(tmp_path / "run")) == 1
    assert "inference.yaml" in capsys.readouterr().err
    assert not (tmp_path / "run/configs").exists()


def test_every_name_that_inference_yaml_lacks_is_said(bundle: Path) -> None:
    path = bundle / "configs/train.yaml"
    path.write_text(path.read_text().replace("- channels\n", "- channels\n- nowhere\n- nothing\n"))
    with pytest.raises(BundleError, match=r"it has no nowhere, nothing, which train\.yaml takes from it"):
        with_shared(load_config([path]), bundle / "configs")
    path.write_text(re.sub(r"from_inference:\n(- .*\n)+", "from_inference: channels\n", path.read_text()))
    with pytest.raises(BundleError, match="a list of keys"):
        with_shared(load_config([path]), bundle / "configs")


def test_a_part_of_a_value_that_is_not_there_names_the_file_to_change(
    bundle: Path, cohort: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = ["train", str(bundle), "--datalist", str(cohort), "--out", str(tmp_path / "run"), "structures#posterior=3"]
    assert main(line) == 2
    error = capsys.readouterr().err
    assert f"takes structures from {bundle / 'configs/inference.yaml'}" in error
    assert main([*line[:-1], "network_def#chanels=[4]"]) == 2
    assert "there is no key network_def#chanels: did you mean network_def#channels?" in capsys.readouterr().err
