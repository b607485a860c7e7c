"""Training, prediction and evaluation of cases that lack a channel."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import yaml

from droseg.cli import main
from droseg.data import Case, Datalist, read_datalist, write_datalist

TINY: dict[str, Any] = {
    "channels": ["T1w", "T2w"],
    "network_def#channels": [4, 8],
    "network_def#strides": [2],
    "roi_size": [16, 16, 16],
    "epochs": 2,
    "batches_per_epoch": 4,
    "batch_size": 2,
    "val_interval": 1,
    "warmup_steps": 1,
    "early_epoch": 1,
    "refresh_interval": 1,
    "device": "$torch.device('cpu')",
    "precision": "fp32",
}
"""Overrides of bundles/hippocampus_mri/configs/train.yaml."""
LACKING = {"tr_0": 1, "tr_1": 1, "tr_2": 0, "va_0": 1, "te_0": 1, "te_1": 0}
"""case_id -> index of the channel that it lacks."""


def with_second_channel(case: Case) -> Case:
    """Return the case with an inverted copy of its image, without the channel that it shall lack."""
    (first,) = case.present_images
    image = nib.load(first)
    second = first.with_name(f"{case.case_id}_t2.nii.gz")
    nib.save(nib.Nifti1Image(300 - image.get_fdata().astype(np.float32), image.affine), second)
    both = (first, second)
    return replace(case, images=tuple(None if LACKING.get(case.case_id) == i else both[i] for i in range(2)))


@pytest.fixture
def incomplete(cohort: Path) -> Path:
    """Return the datalist of the cohort with two channels."""
    found = read_datalist(cohort)
    sections = {name: tuple(map(with_second_channel, cases)) for name, cases in found.sections.items()}
    path = cohort.with_name("two_channels.json")
    write_datalist(Datalist(path, ("T1w", "T2w"), found.structures, sections), path)
    return path


def train(datalist: Path, out: Path, *options: str, **overrides: Any) -> int:
    words = [f"{key}={json.dumps(value)}" for key, value in {**TINY, **overrides}.items()]
    line = ["train", "hippocampus_mri", "--datalist", str(datalist), "--out", str(out), *options, *words]
    try:
        return main(line)
    except SystemExit as end:
        return int(end.code or 0)


def test_incomplete_cases_are_refused_by_name_before_anything_starts(
    incomplete: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    document = json.loads(incomplete.read_text())
    turned = nib.load(incomplete.with_name("tr_4_t2.nii.gz")).as_reoriented(np.array([[0, -1], [1, 1], [2, 1]]))
    nib.save(turned, incomplete.with_name("tr_4_t2.nii.gz"))
    incomplete.write_text(json.dumps(document))
    assert train(incomplete, tmp_path / "run") == 1
    err = capsys.readouterr().err
    for case_id, channel in (("tr_0", "T2w"), ("tr_1", "T2w"), ("tr_2", "T1w"), ("va_0", "T2w")):
        assert any(case_id in line and f"no image of channel {channel}" in line for line in err.splitlines())
    assert "5 error(s)" in err
    assert "te_0" not in err, "testing cases do not take part"
    assert "the same voxels in another order" in err, "the grids are compared in the same run"
    assert "missing_channels=zero" in err
    assert not (tmp_path / "run" / "configs" / "train.yaml").exists()


def test_a_training_with_incomplete_cases_and_dropout_goes_from_start_to_scores(
    incomplete: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, out = tmp_path / "run", tmp_path / "seg"
    options = ("--objective", "hardness")
    assert train(incomplete, run, *options, missing_channels="zero", channel_dropout=0.3, num_workers=1) == 0
    assert "2 of 6 cases lack channel T2w (tr_0, tr_1)" in capsys.readouterr().out
    status = json.loads((run / "run.json").read_text())
    assert (status["status"], status["step"]) == ("finished", 8)
    assert json.loads((run / "training_statistics.json").read_text())["missing_channels"] == [1, 2]
    for name in ("train.yaml", "inference.yaml"):
        assert yaml.safe_load((run / "configs" / name).read_text())["missing_channels"] == "zero"
    early = json.loads((run / "early_losses.json").read_text())["losses"]
    assert sorted(early) == [f"tr_{i}" for i in range(6)]
    assert all(np.isfinite(loss) for loss in early.values())

    assert main(["hardest", str(run), "--device", "cpu", "--out", str(tmp_path / "hardest")]) == 0
    assert set(pd.read_csv(tmp_path / "hardest" / "hardest.csv")["case_id"]) == set(early)

    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "new_0000.nii.gz").write_bytes(incomplete.with_name("te_2.nii.gz").read_bytes())
    assert main(["predict", str(folder), "--bundle", str(run), "--out", str(out), "--device", "cpu"]) == 0
    (flag, *_) = json.loads((out / "new_seg.json").read_text())["flags"]
    assert flag["name"] == "missing_channel"
    assert (
        "2 of 6 training cases lacked it, channels were dropped from patches (channel_dropout 0.3)" in flag["message"]
    )

    scores = tmp_path / "scores"
    assert main(["evaluate", "--datalist", str(incomplete), "--bundle", str(run), "--out", str(scores)]) == 0
    table = pd.read_csv(scores / "case_metrics.csv")
    assert set(table["case_id"]) == {"te_0", "te_1", "te_2"}

    from monai.bundle import ConfigParser
    from monai.bundle import run as monai_run

    configs = [str(run / "configs" / name) for name in ("inference.yaml", "evaluate.yaml")]
    by_config = tmp_path / "by_config"
    monai_run(
        "evaluating", config_file=configs, bundle_root=str(run), datalist=str(incomplete), output_dir=str(by_config)
    )
    pd.testing.assert_frame_equal(pd.read_csv(by_config / "case_metrics.csv"), table, rtol=1e-6)

    parser = ConfigParser()
    parser.read_config([*configs, str(run / "configs" / "multi_gpu_evaluate.yaml")])
    parser["datalist"] = str(incomplete)
    assert [item["image"].count(None) for item in parser.get_parsed_content("dataset#data")] == [1, 1, 0]

    pictures = ["--datalist", str(incomplete), "--pred", str(scores / "predictions"), "--group-by", "anatomy"]
    assert main(["report", str(scores / "case_metrics.csv"), *pictures, "--out", str(tmp_path / "report")]) == 0
    assert "cannot be read" not in (tmp_path / "report" / "report.html").read_text()


def test_dropout_changes_what_is_learned_and_the_same_seed_repeats_it(incomplete: Path, tmp_path: Path) -> None:
    import torch

    def weights(name: str, **overrides: Any) -> dict[str, torch.Tensor]:
        assert train(incomplete, tmp_path / name, missing_channels="zero", **overrides) == 0
        return dict(torch.load(tmp_path / name / "models/model_last.pt", weights_only=True))

    without, dropped, again = weights("a"), weights("b", channel_dropout=0.5), weights("c", channel_dropout=0.5)
    assert any(not torch.equal(without[key], dropped[key]) for key in without)
    assert all(torch.equal(again[key], dropped[key]) for key in dropped)


def test_zero_without_anything_missing_is_warned_of_and_dropout_of_the_only_channel_refused(
    cohort: Path, incomplete: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = read_datalist(incomplete)
    sections = {"training": tuple(case for case in found.section("training") if None not in case.images)}
    write_datalist(replace(found, sections=sections), incomplete)
    assert train(incomplete, tmp_path / "a", missing_channels="zero", epochs=1) == 0
    assert "warning: missing_channels is zero, but no training case lacks a channel" in capsys.readouterr().out
    assert train(cohort, tmp_path / "b", channels=["T1w"], channel_dropout=0.1) == 2
    assert "channel_dropout is 0.1, but T1w is the only channel" in capsys.readouterr().err
    assert train(incomplete, tmp_path / "c", channel_dropout=1.5) == 2
    assert "channel_dropout is 1.5; it must be >= 0 and below 1" in capsys.readouterr().err
    assert train(incomplete, tmp_path / "d", missing_channels="mean") == 2
    assert "missing_channels is 'mean'; it must be one of error, zero" in capsys.readouterr().err
    assert train(incomplete, tmp_path / "e", channels=["T2w", "T1w"]) == 1
    assert "its channels are T1w, T2w, in another order than the bundle's (T2w, T1w)" in capsys.readouterr().err
