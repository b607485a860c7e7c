"""Plans for overlapping regions, and for cases that lack a channel."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import yaml
from monai.bundle import ConfigParser

from droseg.cli import main

MakeDatalist = Callable[..., Path]
SMALL = ("epochs=1", "batches_per_epoch=1", "val_interval=1", "warmup_steps=1")


def plan(path: Path, out: Path) -> tuple[dict, dict]:
    assert main(["bundle", "new", str(out), "--datalist", str(path), "--memory-gb", "1"]) == 0
    train, inference = (yaml.safe_load((out / f"configs/{name}.yaml").read_text()) for name in ("train", "inference"))
    return train, inference


def flipped_axes(train: dict, mirror_axes: list[int]) -> list[int]:
    """Return the axis of each flip that MONAI makes of the augmentation."""
    items = [item for item in train["augmentation"] if item["_target_"] == "RandFlipd"]
    made = ConfigParser({"mirror_axes": mirror_axes, "flips": items}).get_parsed_content("flips")
    return [flip.flipper.spatial_axis for flip in made]


def test_regions_are_planned_trained_and_painted(make_datalist: MakeDatalist, tmp_path: Path) -> None:
    path = make_datalist(masked=True, shape=(48, 48, 40), spacing_mm=(1, 1, 1))
    content = json.loads(path.read_text())
    content["structures"] = {"whole": [1, 2], "core": 2}
    path.write_text(json.dumps(content))
    train, inference = plan(path, tmp_path / "mine")
    assert inference["structures"] == {"whole": [1, 2], "core": 2}
    assert inference["network_def"]["out_channels"] == "$len(@structures)"
    assert "region_values" in train["from_inference"]
    said = (tmp_path / "mine/configs/inference.yaml").read_text()
    assert "what a voxel gets that is in no smaller region: here whole 1, core 2; needed only" in said
    assert train["train"]["loss"]["_target_"].endswith("PerCaseDiceBCELoss")
    targets = [item["_target_"] for item in train["augmentation"]]
    assert flipped_axes(train, [0]) == [0]  # along the planned axis, not the followed bundle's three
    assert flipped_axes(train, [0, 1, 2]) == [0, 1, 2]  # an item each, so that they are drawn one by one, as there
    assert flipped_axes(train, []) == []
    assert "RandCropByLabelClassesd" not in targets
    metadata = json.loads((tmp_path / "mine/configs/metadata.json").read_text())
    assert metadata["network_data_format"]["outputs"]["pred"]["channel_def"] == {"0": "whole", "1": "core"}
    levels = [4] * len(inference["network_def"]["channels"])
    run = str(tmp_path / "run")
    assert main(["train", str(tmp_path / "mine"), "--out", run, f"network_def#channels={levels}", *SMALL]) == 0
    image = path.parent / "te_0_0.nii.gz"
    assert main(["predict", str(image), "--bundle", run, "--out", str(tmp_path / "out")]) == 0
    found = np.asarray(nib.load(tmp_path / "out/te_0_0_seg.nii.gz").dataobj)
    assert found.shape == (48, 48, 40)
    assert set(np.unique(found)) <= {0, 1, 2}


def test_regions_that_cross_are_asked_for_with_a_command_that_trains(
    make_datalist: MakeDatalist, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = make_datalist(masked=True, structures=("a", "b", "c"), shape=(48, 48, 40), spacing_mm=(1, 1, 1))
    content = json.loads(path.read_text())
    content["structures"] = {"A": [1, 2], "B": [2, 3]}
    path.write_text(json.dumps(content))
    _, inference = plan(path, tmp_path / "mine")
    assert inference["region_values"] is None
    for text in (tmp_path / "mine/configs/inference.yaml", tmp_path / "mine/docs/README.md"):
        assert "unclear for A, B" in text.read_text()
        assert not [name for name in ("WT", "TC", "ET") if f" {name} " in text.read_text()]
    printed = capsys.readouterr().out
    assert "note: structures: it is not clear which label value a voxel gets" in printed
    words = shlex.split(printed.splitlines()[-1])
    assert words[-1] == "region_values={A: 1, B: 3}"
    levels = [4] * len(inference["network_def"]["channels"])
    run = str(tmp_path / "run")
    line = ["train", str(tmp_path / "mine"), "--out", run, f"network_def#channels={levels}", *SMALL]
    with pytest.raises(SystemExit) as end:
        main(line)
    assert end.value.code == 1
    assert main([*line, words[-1]]) == 0
    written = yaml.safe_load((tmp_path / "run/configs/inference.yaml").read_text())
    assert written["region_values"] == {"A": 1, "B": 3}
    # A plan like that run, of the same regions, needs not be told again; of others it must.
    assert main(["bundle", "new", str(tmp_path / "again"), "--datalist", str(path), "--like", run]) == 0
    assert "region_values" not in capsys.readouterr().out.splitlines()[-1]
    again = yaml.safe_load((tmp_path / "again/configs/inference.yaml").read_text())
    assert again["region_values"] == {"A": 1, "B": 3}
    content["structures"] = {"A": [1, 2], "C": [2, 3]}
    path.write_text(json.dumps(content))
    assert main(["bundle", "new", str(tmp_path / "other"), "--datalist", str(path), "--like", run]) == 0
    assert shlex.split(capsys.readouterr().out.splitlines()[-1])[-1] == "region_values={A: 1, C: 3}"


def test_missing_channels_are_filled_and_dropped_in_training(make_datalist: MakeDatalist, tmp_path: Path) -> None:
    path = make_datalist(channels=("T1w", "T2w"), shape=(24, 24, 24), spacing_mm=(1, 1, 1))
    complete, _ = plan(path, tmp_path / "complete")
    content = json.loads(path.read_text())
    content["training"][0]["image"][1] = None
    content["testing"][0]["image"][0] = None
    path.write_text(json.dumps(content))
    train, inference = plan(path, tmp_path / "mine")
    assert inference["missing_channels"] == "zero"
    assert "missing_channels" in train["from_inference"]
    assert (complete["channel_dropout"], train["channel_dropout"]) == (0.0, 0.1)
    text = (tmp_path / "mine/configs/inference.yaml").read_text()
    assert "missing: T1w in 1, T2w in 1 of 12 cases" in text
    run = str(tmp_path / "run")
    levels = [4] * len(inference["network_def"]["channels"])
    assert main(["train", str(tmp_path / "mine"), "--out", run, f"network_def#channels={levels}", *SMALL]) == 0
