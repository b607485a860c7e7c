"""`droseg hardest` on a run whose network and planted label errors are known."""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import torch
from monai.losses import DiceCELoss

from droseg.cli import main
from droseg.data import read_datalist
from droseg.hardest import measure_run, read_run
from droseg.hardest.measure import whole_volume


def sheet(run: Path) -> pd.DataFrame:
    return pd.read_csv(run / "hardest" / "hardest.csv").set_index("case_id")


def monai_losses(cohort: Path, weights: dict[str, torch.Tensor]) -> dict[str, float]:
    """Return case_id -> loss of the whole volume, by nibabel, a convolution and MONAI's loss."""
    losses = {}
    for case in read_datalist(cohort).section("training"):
        image = nib.load(case.images[0]).get_fdata()
        image = torch.tensor((image - image.mean()) / image.std(), dtype=torch.float32)[None, None]
        label = torch.tensor(nib.load(case.label).get_fdata())[None, None]
        logits = torch.nn.functional.conv3d(image, weights["weight"], weights["bias"])
        loss = DiceCELoss(include_background=False, to_onehot_y=True, softmax=True)(logits, label)
        losses[case.case_id] = float(loss)
    return losses


def keep_early(run: Path, cohort: Path, **stored: float | None) -> dict[str, float]:
    """Keep an early network that knows no posterior, and its losses, some of them others; return the true ones."""
    sure = torch.load(run / "models/model.pt", weights_only=True)
    weights = {name: value / 10 for name, value in sure.items()}
    weights["bias"][2] -= 100
    losses = monai_losses(cohort, weights)
    torch.save(weights, run / "models/model_early.pt")
    (run / "early_losses.json").write_text(json.dumps({"epoch": 3, "losses": {**losses, **stored}}))
    return losses


def test_wrong_labels_rank_first_and_are_flagged_with_the_reason(make_run, capsys):
    run = make_run()
    assert main(["hardest", str(run)]) == 0
    table = sheet(run)
    assert set(table.index[:2]) == {"erased", "moved"}
    assert table["rank"].tolist() == list(range(1, 11))
    assert table["flag"].dropna().to_dict() == dict.fromkeys(table.index[:2], "label looks wrong")
    assert "posterior is not labelled at all" in table.loc["erased", "flag_reason"]
    assert table.loc["erased", "flag_reason"].count("0.448 ml, labelled background") == 1  # 4 * 7 * 8 voxels of 2 mm3
    assert table.loc["right_0", ["loss", "flag_score"]].tolist() == pytest.approx([0, 0], abs=1e-3)
    assert table.loc["right_0", "anatomy"] == "rare"
    assert table.loc["right_0", "dice_mean"] == 1.0
    out = capsys.readouterr().out
    assert "2 labels that look wrong" in out
    assert str(run / "hardest" / "hardest.html") in out


def test_losses_are_those_of_monai_on_the_whole_volume(make_run):
    run = make_run()
    assert main(["hardest", str(run), "--top", "0"]) == 0
    weights = torch.load(run / "models/model.pt", weights_only=True)
    table = sheet(run)
    expected = monai_losses(run.parent / "cohort/datalist.json", weights)
    assert table["loss"].to_dict() == pytest.approx(expected, abs=2e-4)


def test_early_losses_rank_and_the_trained_network_flags(make_run, cohort, capsys):
    run = make_run(cohort)
    losses = keep_early(run, cohort)
    assert min(losses, key=losses.get) == "erased"  # it lacks what the early network does not know
    assert main(["hardest", str(run), "--top", "1"]) == 0
    out, early = capsys.readouterr().out, sheet(run)
    page = (run / "hardest/hardest.html").read_text()
    assert early["loss"].to_dict() == pytest.approx(losses, rel=1e-5)
    assert early.index[0] == "moved"
    assert early.index[-1] == "erased"
    assert set(early["ranked_by"]) == {"early loss, epoch 3"}
    assert set(early["flagged_by"]) == {"model.pt"}
    assert "(early loss: measured after epoch 3 of the training (model_early.pt)" in out
    assert "; Dice and flags: model.pt):" in out
    assert "ranked by early losses (model_early.pt after epoch 3); Dice, pictures and flags: model.pt<" in page
    assert "The network (model.pt) is sure of a class" in page

    assert main(["hardest", str(run), "--top", "1", "--by", "late"]) == 0
    late = sheet(run)
    assert set(late.index[:2]) == {"erased", "moved"}
    assert set(late["ranked_by"]) == {"late loss"}
    judged = [name for name in early if name.startswith(("flag", "dice", "disputed"))]
    pd.testing.assert_frame_equal(early[judged].sort_index(), late[judged].sort_index())
    assert set(late["flag"].dropna().index) == {"erased", "moved"}


def test_pictures_are_of_the_trained_network(make_run, cohort):
    run = make_run(cohort)
    keep_early(run, cohort)
    trained = read_run(run)
    assert np.array_equal(np.unique(whole_volume(trained, trained.cases[0]).pred), [0, 1, 2])
    (run / "models/model.pt").unlink()
    trained = read_run(run)
    assert np.array_equal(np.unique(whole_volume(trained, trained.cases[0]).pred), [0, 1])


def test_a_label_that_has_changed_and_a_case_without_stored_loss_are_ranked_by_the_early_network(
    make_run, cohort, capsys
):
    run = make_run(cohort)
    stored = keep_early(run, cohort, right_1=None)
    shutil.copyfile(cohort.parent / "right_0_label.nii.gz", cohort.parent / "moved_label.nii.gz")
    assert main(["hardest", str(run), "--top", "0"]) == 0
    assert "and ranked by the new ones: moved.\n" in capsys.readouterr().err
    table = sheet(run)
    expected = {**stored, "moved": stored["right_0"]}
    assert table["loss"].to_dict() == pytest.approx(expected, rel=1e-4)
    assert table["flag"].dropna().index.tolist() == ["erased"]


def test_without_a_trained_network_the_early_one_judges_and_this_is_said(make_run, cohort, capsys):
    run = make_run(cohort)
    losses = keep_early(run, cohort)
    (run / "models/model.pt").rename(run / "models/model_last.pt")
    assert main(["hardest", str(run), "--top", "0"]) == 0
    said, table = capsys.readouterr(), sheet(run)
    assert "model.pt: there is none yet; Dice, pictures and flags are those of model_early.pt" in said.err
    assert "Dice and flags: model_early.pt after epoch 3" in said.out
    assert "--by late" not in said.out
    assert set(table["flagged_by"]) == {"model_early.pt after epoch 3"}
    assert table["loss"].to_dict() == pytest.approx(losses, rel=1e-5)
    assert table["dice_posterior"].fillna(0).eq(0).all()

    assert main(["hardest", str(run), "--top", "0", "--last"]) == 0
    last = sheet(run)
    assert set(last["ranked_by"]) == {"late loss"}
    assert set(last["flagged_by"]) == {"model_last.pt"}
    assert set(last["flag"].dropna().index) == {"erased", "moved"}


def test_an_unsure_network_flags_nothing_and_ranks_the_same(make_run):
    run = make_run()
    weights = torch.load(run / "models/model.pt", weights_only=True)
    torch.save({name: value / 100 for name, value in weights.items()}, run / "models/model_last.pt")
    assert main(["hardest", str(run), "--last", "--top", "1"]) == 0
    table = sheet(run)
    assert table["flag"].isna().all()
    assert set(table.index[:2]) == {"erased", "moved"}
    assert "None of the 10 labels looks wrong" in (run / "hardest/hardest.html").read_text()


def test_a_network_that_knows_nothing_acquits_no_label(make_run, capsys):
    run = make_run()
    weights = torch.load(run / "models/model.pt", weights_only=True)
    torch.save({name: torch.zeros_like(value) for name, value in weights.items()}, run / "models/model_last.pt")
    assert main(["hardest", str(run), "--last", "--top", "1"]) == 0
    page, shown = (run / "hardest/hardest.html").read_text(), capsys.readouterr()
    assert "knows too little to judge labels by" in page
    assert "labels looks wrong" not in page
    assert "knows too little to judge labels by" in shown.err
    assert "See the notes above." in shown.out


def test_the_page_is_self_contained_and_shows_the_cases_it_says(make_run):
    run = make_run()
    assert main(["hardest", str(run), "--top", "3"]) == 0
    page = (run / "hardest/hardest.html").read_text()
    assert not re.findall(r"""(?:src|href)=["'](?!data:|#)""", page)
    by_score = sheet(run)["flag_score"].sort_values(ascending=False).index[:2].tolist()
    shown = re.findall(r'<div class="(case[^"]*)" id="case-([^"]+)"', page)
    assert [name for style, name in shown if "flagged" in style] == by_score
    assert len([name for style, name in shown if "flagged" not in style]) == 3
    assert page.count("<img") == 5 * 3 * 3
    assert "No loss curves: " in page


def test_pictures_go_through_what_is_in_dispute(make_run):
    trained = read_run(make_run())
    index, case = next((i, c) for i, c in enumerate(trained.cases) if c.case_id == "erased")
    volume = whole_volume(trained, case, index)
    disputed = volume.disputed(np.full(3, 0.9))
    expected = np.zeros_like(disputed)
    expected[4:8, 5:12, 3:11] = True  # the posterior at 12..15 of 20, stored from right to left
    assert np.array_equal(disputed, expected)


def test_a_case_that_cannot_be_read_is_named_and_the_others_are_ranked(make_run, cohort, capsys):
    datalist = read_datalist(cohort)
    broken, empty = datalist.section("training")[2], datalist.section("training")[3]
    broken.images[0].write_bytes(b"no image")
    voxels = np.full((20, 18, 14), np.nan, np.float32)
    nib.save(nib.Nifti1Image(voxels, np.diag([-1.0, 1.0, 2.0, 1.0])), empty.images[0])
    run = make_run(cohort)
    assert main(["hardest", str(run)]) == 1
    error = capsys.readouterr().err
    assert f"{broken.case_id}: not measured: " in error
    assert f"{empty.case_id}: not measured: its loss is nan" in error
    assert "Traceback" not in error
    table = sheet(run)
    assert table["rank"].notna().sum() == 8
    assert set(table.index[:2]) == {"erased", "moved"}
    assert "Not measured" in (run / "hardest/hardest.html").read_text()


def test_a_run_without_checkpoint_and_audit_says_what_is_missing(make_run, capsys):
    run = make_run()
    assert main(["hardest", str(run)]) == 0
    error = capsys.readouterr().err
    assert "no stale losses" in error
    assert "No loss curves" in error
    assert sheet(run)[["stale_loss", "visits", "draw_share"]].isna().all().all()


def test_another_content_of_the_datalist_is_said(make_run, capsys):
    run = make_run()
    (run / "run.json").write_text(json.dumps({"datalist_sha256": "0" * 64}))
    assert main(["hardest", str(run)]) == 0
    assert "is not what the run was trained with" in capsys.readouterr().err


def test_a_moved_data_set_is_found_by_its_new_place(make_run, cohort, tmp_path, capsys):
    run = make_run(cohort)
    cohort.parent.rename(tmp_path / "elsewhere")
    assert main(["hardest", str(run)]) == 1
    assert "no such file" in capsys.readouterr().err
    line = [
        "hardest",
        str(run),
        "--datalist",
        str(tmp_path / "elsewhere/datalist.json"),
        "--out",
        str(tmp_path / "out"),
    ]
    assert main(line) == 0
    assert (tmp_path / "out/hardest.csv").is_file()
    assert not (run / "hardest").exists()


@pytest.mark.parametrize(
    ("prepare", "options", "code", "message"),
    [
        (
            lambda run: (run / "configs/train.yaml").unlink(),
            [],
            1,
            "it has no configs/train.yaml; give the folder of a",
        ),
        (lambda run: (run / "models/model.pt").unlink(), [], 3, "does not exist"),
        (
            lambda run: (run / "models/model.pt").rename(run / "models/model_last.pt"),
            [],
            1,
            "--last takes model_last.pt",
        ),
        (lambda run: (run / "configs/train.yaml").write_text("a: ["), [], 1, "cannot be read"),
        (lambda run: None, ["--top", "-1"], 2, "--top is -1"),
        (lambda run: None, ["--by", "early"], 2, "early_losses.json: there are no early losses (early_epoch of the"),
        (
            lambda run: None,
            ["--device", "quantum"],
            2,
            "device quantum: there is no such device; use cpu",
        ),
        (lambda run: None, ["--datalist", "missing.json"], 1, "no such file"),
    ],
)
def test_bad_input_is_one_clear_line(make_run, capsys, prepare, options, code, message):
    run = make_run()
    prepare(run)
    assert main(["hardest", str(run), *options]) == code
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error
    assert not (run / "hardest").exists()


def test_no_such_folder_is_said(tmp_path, capsys):
    assert main(["hardest", str(tmp_path / "nowhere")]) == 1
    assert "there is no such folder; give the folder of a training" in capsys.readouterr().err


@pytest.mark.skipif(os.geteuid() == 0, reason="skipped: root may write everywhere")
def test_a_read_only_run_needs_another_place(make_run, capsys):
    run = make_run()
    run.chmod(0o500)
    assert main(["hardest", str(run)]) == 2
    assert "choose another place by --out" in capsys.readouterr().err


TINY = {
    "network_def#channels": [4, 8],
    "network_def#strides": [2],
    "roi_size": [8, 8, 8],
    "epochs": 2,
    "batches_per_epoch": 3,
    "batch_size": 2,
    "val_interval": 1,
    "warmup_steps": 1,
    "precision": "fp32",
    "device": "$torch.device('cpu')",
}


def train(cohort: Path, run: Path, **settings: object) -> None:
    line = ["train", "hippocampus_mri", "--datalist", str(cohort), "--out", str(run)]
    assert main([*line, *(f"{key}={json.dumps(value)}" for key, value in {**TINY, **settings}.items())]) == 0


def test_after_a_real_training_that_refreshed_the_stale_losses_are_the_whole_volume_ones(make_run, cohort, tmp_path):
    # The handler and the sheet measure by different code; the training is that of the command line.
    run = tmp_path / "trained"
    train(cohort, run, objective="hardness", refresh_interval=1)
    assert main(["hardest", str(run), "--top", "2"]) == 0
    table = sheet(run)
    assert table["stale_loss"].to_numpy() == pytest.approx(table["loss"].to_numpy(), rel=1e-4)
    assert table["visits"].sum() == 12
    assert table["draw_share"].sum() == pytest.approx(1)
    page = (run / "hardest/hardest.html").read_text()
    assert page.count("<circle") == table["visits"][table.index[:2]].sum()


def test_a_wrong_label_is_found_by_the_early_losses_of_a_real_training(cohort, tmp_path, capsys):
    run = tmp_path / "run"
    settings = {"roi_size": [16, 16, 8], "batches_per_epoch": 60, "learning_rate": 0.02, "warmup_steps": 10}
    train(cohort, run, **settings, epochs=3, early_epoch=2)
    stored = json.loads((run / "early_losses.json").read_text())
    assert main(["hardest", str(run), "--top", "1"]) == 0
    out = capsys.readouterr().out
    assert "(early loss: measured after epoch 2 of the training (model_early.pt)" in out
    table = sheet(run)
    assert set(table.index[:2]) == {"erased", "moved"}
    assert table["loss"].to_dict() == pytest.approx(stored["losses"], rel=1e-5)
    assert set(table["flag"].dropna().index) == {"erased", "moved"}
    assert set(table["ranked_by"]) == {"early loss, epoch 2"}
    assert set(table["flagged_by"]) == {"model.pt after epoch 3"}
    page = (run / "hardest/hardest.html").read_text()
    assert "early losses (model_early.pt after epoch 2); Dice, pictures and flags: model.pt after epoch 3" in page
    assert "early loss: measured after epoch 2 of the training" in page

    measured = {m.case_id: m.early_loss for m in measure_run(read_run(run, by="early"))}
    assert measured == pytest.approx(stored["losses"], rel=1e-3)  # by other code than that of the training

    assert main(["hardest", str(run), "--top", "0", "--by", "late"]) == 0
    late = sheet(run)
    assert set(late["ranked_by"]) == {"late loss"}
    assert late["loss"].to_dict() != pytest.approx(stored["losses"], rel=1e-3)
    assert late["flag_score"].to_dict() == table["flag_score"].to_dict()
    assert (
        "by late losses; Dice, pictures and flags: model.pt after epoch 3" in (run / "hardest/hardest.html").read_text()
    )

    shutil.copyfile(cohort.parent / "right_0_label.nii.gz", cohort.parent / "moved_label.nii.gz")
    assert main(["hardest", str(run), "--top", "0"]) == 0
    assert "and ranked by the new ones: moved." in capsys.readouterr().err
    mended = sheet(run)
    assert mended["loss"].idxmax() == "erased"
    others = mended.index.difference(["moved"])
    assert mended.loc[others, "loss"].to_dict() == pytest.approx(table.loc[others, "loss"].to_dict())
    corrected = cohort.with_name("corrected.json")
    corrected.write_text(cohort.read_text() + "\n")
    assert main(["hardest", str(run), "--top", "0", "--datalist", str(corrected)]) == 0
    assert "the early network measures its cases anew" in capsys.readouterr().err
    again = sheet(run)
    assert again["loss"].idxmax() == "erased"
    assert again.loc["moved", "loss"] == pytest.approx(again.loc["right_0", "loss"], rel=1e-3)
