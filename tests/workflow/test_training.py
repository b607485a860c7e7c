from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import torch

from droseg.cli import main
from droseg.data import read_datalist

TINY: dict[str, Any] = {
    "network_def#channels": [4, 8],
    "network_def#strides": [2],
    "roi_size": [16, 16, 16],
    "epochs": 2,
    "batches_per_epoch": 3,
    "batch_size": 2,
    "val_interval": 1,
    "warmup_steps": 1,
    "device": "$torch.device('cpu')",
    "precision": "fp32",
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


def test_a_training_leaves_a_complete_bundle(cohort: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert train(cohort, run, "--objective", "hardness", "--target-ess", "0.6") == 0
    for name in (
        "LICENSE",
        "configs/metadata.json",
        "configs/train.yaml",
        "configs/inference.yaml",
        "configs/evaluate.yaml",
        "configs/logging.conf",
        "docs/README.md",
        "models/model.pt",
        "models/model_last.pt",
        "models/checkpoint.pt",
        "training_statistics.json",
    ):
        assert (run / name).is_file(), name
    assert status(run)["status"] == "finished"
    assert status(run)["step"] == 6
    assert len(list((run / "tensorboard").glob("events*"))) == 1
    weights = torch.load(run / "models/model.pt", weights_only=True)
    assert all(isinstance(value, torch.Tensor) for value in weights.values())
    volumes = json.loads((run / "training_statistics.json").read_text())["volume_ml"]
    assert volumes["anterior"]["median"] == pytest.approx(6 * 6 * 5 * 1.5 / 1000, rel=1e-3)
    card = (run / "docs/README.md").read_text()
    assert "None yet: `droseg report CASES.csv --model-card` puts them here." in card
    assert "Worst group by mean Dice" not in card, "the shipped card's results are of other weights"


def test_other_spacing_and_fewer_structures_go_with_the_run(cohort: Path, tmp_path: Path) -> None:
    run, out, scores = tmp_path / "run", tmp_path / "seg", tmp_path / "scores"
    assert train(cohort, run, structures={"posterior": 2}, spacing_mm=[1.25, 1.25, 1.25]) == 0
    assert (run / "models/model.pt").is_file()
    metadata = json.loads((run / "configs/metadata.json").read_text())
    assert metadata["network_data_format"]["outputs"]["pred"]["channel_def"] == {"0": "background", "1": "posterior"}
    image = read_datalist(cohort).section("testing")[0].images[0]
    assert main(["predict", str(image), "--bundle", str(run), "--out", str(out)]) == 0
    result, source = nib.load(out / f"{image.name.removesuffix('.nii.gz')}_seg.nii.gz"), nib.load(image)
    assert result.shape == source.shape
    assert np.allclose(result.affine, source.affine)
    assert set(np.unique(result.get_fdata())) <= {0, 2}  # the original value, not the class index
    assert main(["evaluate", "--datalist", str(cohort), "--bundle", str(run), "--out", str(scores)]) == 0
    table = pd.read_csv(scores / "case_metrics.csv")
    assert set(table["structure"]) == {"posterior"}
    assert len(table) == 3


def test_evaluate_yaml_and_the_command_give_one_table(cohort: Path, tmp_path: Path) -> None:
    from monai.bundle import run as monai_run

    run = tmp_path / "run"
    assert train(cohort, run) == 0
    assert main(["evaluate", "--datalist", str(cohort), "--bundle", str(run), "--out", str(tmp_path / "a")]) == 0
    configs = [str(run / "configs" / name) for name in ("inference.yaml", "evaluate.yaml")]
    monai_run(
        "evaluating", config_file=configs, bundle_root=str(run), datalist=str(cohort), output_dir=str(tmp_path / "b")
    )
    # What the bundle's own evaluation left is also a folder of predictions.
    again = ["--pred", str(tmp_path / "b"), "--structures", "anterior", "posterior", "--out", str(tmp_path / "c")]
    assert main(["evaluate", "--datalist", str(cohort), *again]) == 0
    tables = [pd.read_csv(tmp_path / name / "case_metrics.csv") for name in ("a", "b", "c")]
    for table in tables[1:]:
        pd.testing.assert_frame_equal(table, tables[0], rtol=1e-6)
    maps = [tmp_path / "a/predictions/te_0_seg.nii.gz", tmp_path / "b/te_0_seg.nii.gz"]
    assert np.array_equal(*(nib.load(path).get_fdata() for path in maps))


def test_the_same_command_twice_says_finished_and_more_epochs_continue(
    cohort: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    assert train(cohort, run) == 0
    before = (run / "models/checkpoint.pt").stat().st_mtime_ns
    assert train(cohort, run) == 0
    assert "this run is finished (2 epochs)" in capsys.readouterr().out
    assert (run / "models/checkpoint.pt").stat().st_mtime_ns == before
    assert train(cohort, run, epochs=3) == 0
    assert "continues after epoch 2 of 3 (step 6)" in capsys.readouterr().out
    assert status(run)["epoch"] == 3


def test_another_setting_is_refused_with_the_difference(
    cohort: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    assert train(cohort, run) == 0
    assert train(cohort, run, learning_rate=0.5) == 1
    message = capsys.readouterr().err
    assert "learning_rate: 0.001 -> 0.5" in message
    assert "--restart" in message
    assert train(cohort, run, "--restart", learning_rate=0.5) == 0
    assert status(run)["epoch"] == 2


def test_a_killed_training_continues_from_its_last_checkpoint(cohort: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    line = [
        sys.executable,
        "-m",
        "droseg.cli",
        "train",
        "hippocampus_mri",
        "--datalist",
        str(cohort),
        "--out",
        str(run),
    ]
    with subprocess.Popen([*line, *words(epochs=400)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        deadline = time.monotonic() + 120
        while not (run / "models/checkpoint.pt").is_file() and time.monotonic() < deadline:
            time.sleep(0.05)
        os.kill(process.pid, signal.SIGKILL)
    assert status(run)["status"] == "running"
    saved = (
        torch.load(run / "models/checkpoint.pt", weights_only=True)["trainer"]["iteration"] // TINY["batches_per_epoch"]
    )
    done = subprocess.run([*line, *words(epochs=saved + 1)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert f"continues after epoch {saved} of {saved + 1}" in done.stdout
    assert status(run)["status"] == "finished"
    assert status(run)["epoch"] == saved + 1


def test_bad_cases_are_all_listed_and_training_does_not_start(
    cohort: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cases = read_datalist(cohort).section("training")
    cases[0].images[0].unlink()
    truncated = cases[1].images[0]
    truncated.write_bytes(truncated.read_bytes()[:200])
    label = nib.load(cases[2].label)
    nib.save(nib.Nifti1Image(np.asarray(label.dataobj)[:-2], label.affine), cases[2].label)
    image = nib.load(cases[3].images[0])
    voxels = image.get_fdata().astype(np.float32)
    voxels[3, 3, 3] = np.nan
    nib.save(nib.Nifti1Image(voxels, image.affine), cases[3].images[0])
    assert train(cohort, tmp_path / "run") == 1
    message = capsys.readouterr().err
    assert "training does not start, 4 error(s)" in message
    for case in cases[:4]:
        assert case.case_id in message
    assert "Traceback" not in message
    assert not (tmp_path / "run/models").exists()


@pytest.mark.skipif(os.geteuid() == 0, reason="skipped: root may write everywhere")
def test_an_unwritable_folder_is_said_before_training(
    cohort: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "closed"
    folder.mkdir(mode=0o500)
    assert train(cohort, folder / "run") == 1
    assert "cannot write there" in capsys.readouterr().err


def test_a_file_in_place_of_the_folder_is_said_before_training(
    cohort: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "run").write_text("not a folder")
    assert train(cohort, tmp_path / "run") == 1
    assert "cannot write there" in capsys.readouterr().err


def test_a_full_disk_is_said_before_training(cohort: Path, tmp_path: Path) -> None:
    from droseg.errors import DrosegError
    from droseg.workflow.preflight import check_output_folder

    with pytest.raises(DrosegError, match="GB are free, a training needs about"):
        check_output_folder(tmp_path / "run", needed_bytes=1 << 60)


def test_structures_that_the_datalist_lacks_are_named_with_the_remedy(
    cohort: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(cohort, tmp_path / "run", structures={"cerebellum": 3}) == 1
    message = capsys.readouterr().err
    assert "it has no cerebellum" in message
    assert "structures='{anterior: 1, posterior: 2}'" in message


def test_a_shipped_bundle_without_weights_says_how_to_train_one(
    cohort: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image = read_datalist(cohort).section("testing")[0].images[0]
    assert main(["predict", str(image), "--bundle", "fetal_brain_mri", "--out", str(tmp_path / "seg")]) == 3
    assert "droseg train fetal_brain_mri" in capsys.readouterr().err


def test_init_from_starts_with_the_weights_of_another_run(cohort: Path, tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    assert train(cohort, first) == 0
    still = {"learning_rate": 0.0, "optimizer#weight_decay": 0.0}
    assert train(cohort, second, "--init-from", str(first), **still) == 0
    weights = [torch.load(run / "models/model.pt", weights_only=True) for run in (first, second)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_without_validation_cases_the_last_epoch_is_taken(cohort: Path, tmp_path: Path) -> None:
    content = json.loads(cohort.read_text())
    del content["validation"]
    cohort.write_text(json.dumps(content))
    assert train(cohort, tmp_path / "run") == 0
    assert status(tmp_path / "run")["selected_by"] == "last"
    best, last = (
        torch.load(tmp_path / "run/models" / name, weights_only=True) for name in ("model.pt", "model_last.pt")
    )
    assert all(torch.equal(best[name], last[name]) for name in best)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--objective", "magic"], "objective is 'magic'; choose one of erm, hardness"),
        (["--objective", "hardness", "--beta", "-1"], "beta is -1.0; it must be"),
        (["--objective", "hardness", "--target-ess", "2"], "target_ess is 2.0; it is a fraction"),
        (["--group-by", "anatomi"], "no case has the group axis anatomi; the axes are: anatomy"),
        (["learning_rate=fast"], "the config cannot be built: TypeError"),
    ],
)
def test_a_setting_out_of_its_range_is_one_clear_line(
    cohort: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], message: str
) -> None:
    assert train(cohort, tmp_path / "run", *options) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error
    assert train(cohort, tmp_path / "run", "device=cpu", "learning_rate=1e-3") == 0  # the mistake left nothing behind


def test_restart_with_a_mistake_loses_nothing(cohort: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert train(cohort, run) == 0
    assert train(tmp_path / "missing.json", run, "--restart") == 1
    assert (run / "models/model.pt").is_file()
    assert status(run)["status"] == "finished"


def test_a_beta_given_by_hand_stays(cohort: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    # A target that is taken out besides is no second number.
    assert train(cohort, run, "--objective", "hardness", "--beta", "30", "target_ess=null") == 0
    assert "objective: hardness (kl), beta 30\n" in capsys.readouterr().out
    state = torch.load(run / "models/checkpoint.pt", weights_only=True)["objective"]
    assert int(state["history"]["visits"].min()) > 0  # else a target would not have been solved for either
    assert state["sampler"]["beta"] == 30.0
    assert train(cohort, tmp_path / "solved", "--objective", "hardness") == 0
    line = "objective: hardness (kl), beta solved for an effective sample size of 0.5 N"
    assert f"{line}\n" in capsys.readouterr().out
    solved = torch.load(tmp_path / "solved/models/checkpoint.pt", weights_only=True)["objective"]["sampler"]["beta"]
    assert solved not in (10.0, 30.0)


def test_restart_with_a_setting_that_cannot_be_built_loses_nothing(cohort: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert train(cohort, run) == 0
    assert train(cohort, run, "--restart", precision="fp8") == 2
    assert (run / "models/model.pt").is_file()


def test_a_damaged_status_file_hides_neither_run_nor_refusal(
    cohort: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    assert train(cohort, run) == 0
    (run / "run.json").write_text("{")
    assert train(cohort, run, learning_rate=0.5) == 1
    assert "learning_rate: 0.001 -> 0.5" in capsys.readouterr().err
    assert train(cohort, run, "--restart", learning_rate=0.5) == 0
    assert "continues after" not in capsys.readouterr().out


def test_the_last_epoch_is_validated_whatever_the_interval(cohort: Path, tmp_path: Path) -> None:
    assert train(cohort, tmp_path / "run", val_interval=5) == 0
    assert status(tmp_path / "run")["selected_by"] == "val_dice/worst_group"
    assert status(tmp_path / "run")["best"] is not None


def test_entries_of_the_wrong_form_and_bad_files_are_listed_together(
    cohort: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content = json.loads(cohort.read_text())
    content["training"][0]["image"] = 5
    cohort.write_text(json.dumps(content))
    read_case = json.loads(cohort.read_text())["training"][1]
    (cohort.parent / read_case["image"]).unlink()
    assert train(cohort, tmp_path / "run") == 1
    message = capsys.readouterr().err
    assert "2 error(s)" in message
    assert "tr_0" in message
    assert "tr_1" in message


def test_a_patch_that_the_strides_do_not_divide_is_said_with_one_that_fits(
    cohort: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(cohort, tmp_path / "run", roi_size=[15, 16, 16]) == 2
    assert "multiples of 2, for example [16, 16, 16]" in capsys.readouterr().err


def test_debug_shows_the_traceback_and_the_next_call_does_not(cohort: Path, tmp_path: Path) -> None:
    line = ["train", "hippocampus_mri", "--datalist", str(cohort), "--out", str(tmp_path / "run"), *words()]
    with pytest.raises(RuntimeError, match="Failed to evaluate"):
        main(["--debug", *line, "learning_rate=fast"])
    with pytest.raises(SystemExit, match="2"):
        main([*line, "learning_rate=fast"])


def test_a_loss_of_regions_in_a_bundle_of_classes_is_one_line_before_anything_is_read(cohort, tmp_path, capsys):
    (cohort.parent / "tr_0.nii.gz").write_bytes(b"no image")  # would be an error of its own
    assert train(cohort, tmp_path / "run", "train#loss#_target_=droseg.losses.PerCaseDiceBCELoss") == 2
    error = capsys.readouterr().err
    assert "train#loss (PerCaseDiceBCELoss): sigmoid; label_transforms (LabelsToClassesd)" in error
    assert "tr_0" not in error
    assert error.count("droseg: error:") == 1


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        ("train#loss#class_weight=[1,2]", "class_weight has 2 values, pred has 3 channels"),
        ("train#loss={_target_: DiceCELoss, to_onehot_y: true}", "returned () for 2 cases"),
        ("train#loss={_target_: DiceCELoss, to_onehot_y: false}", "DiceCELoss) cannot be computed for a patch of 3"),
    ],
)
def test_a_loss_that_does_not_fit_is_one_line_before_anything_is_replaced(cohort, tmp_path, capsys, loss, message):
    run = tmp_path / "run"
    (run / "models").mkdir(parents=True)
    (run / "models/model.pt").write_bytes(b"of an earlier run")
    assert train(cohort, run, "--restart", loss) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error
    assert error.count("droseg: error: train#loss (") == 1
    assert (run / "models/model.pt").read_bytes() == b"of an earlier run"


def test_what_the_loss_refuses_in_a_step_is_one_line_and_in_run_json(cohort, tmp_path, capsys):
    # As if the labels were not mapped to classes.
    assert (
        train(cohort, tmp_path / "run", "label_transforms=[{_target_: ShiftIntensityd, keys: label, offset: 9.0}]") == 2
    )
    error = capsys.readouterr().err
    assert "step 1 (" in error
    assert "the label holds values from 9 to" in error
    assert "Traceback" not in error
    assert "terminating due to exception" not in error
    assert status(tmp_path / "run")["status"] == "failed"
    assert status(tmp_path / "run")["remedy"].startswith("Mend that, then run the command again")
