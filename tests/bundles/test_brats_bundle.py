"""brats_mri from training to report on tumors of a few millimeters, each step by the command that people use."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from monai.bundle import ConfigWorkflow

from droseg.cli import main
from droseg.inference import Predictor
from droseg.workflow.config import load_config

REGIONS = {"WT": [1, 2, 3], "TC": [1, 3], "ET": 3}
CHANNELS = ("t1n", "t1c", "t2w", "t2f")
LEVELS = np.array([[100, 60, 80, 90], [100, 60, 90, 190], [100, 160, 150, 120], [100, 110, 170, 140]])
"""Intensity of each channel in brain, necrosis, edema and enhancing tumor."""
SHAPE = (22, 24, 20)
AFFINE = np.diag([-1.0, -1.0, 1.0, 1.0])
SMALL = (
    *("network_def#channels=[8,16]", "network_def#strides=[2]", "roi_size=[16,16,16]", "epochs=2"),
    *("batches_per_epoch=6", "val_interval=1", "early_epoch=1", "warmup_steps=2", "spacing_mm=[1,1,1]"),
    *("learning_rate=0.01", "device=cpu", "precision=fp32"),
)


def write_case(folder: Path, case_id: str, seed: int, enhancing: bool) -> dict[str, Any]:
    """Write a brain with a tumor of three shells: necrosis inside enhancement (or none) inside edema."""
    rng = np.random.default_rng(seed)
    place = np.stack(np.indices(SHAPE)).astype(float)
    middle = np.array(SHAPE) / 2
    brain = (((place.T - middle) / (middle - 2)) ** 2).sum(-1).T < 1
    radius = np.linalg.norm(place.T - middle - rng.uniform(-2, 2, 3), axis=-1).T
    label = np.select([radius < 2, radius < 3.5, radius < 6], [1, 3 if enhancing else 1, 2], 0).astype(np.uint8)
    label[~brain] = 0
    paths = []
    for name, levels in zip(CHANNELS, LEVELS, strict=True):
        image = (levels[label] + rng.normal(0, 5, SHAPE)) * brain
        paths.append(f"{case_id}-{name}.nii.gz")
        nib.save(nib.Nifti1Image(image.astype(np.float32), AFFINE), folder / paths[-1])
    nib.save(nib.Nifti1Image(label, AFFINE), folder / f"{case_id}-seg.nii.gz")
    groups = {"site": "B" if seed % 2 else "A", "enhancement": "present" if enhancing else "absent"}
    return {"case_id": case_id, "image": paths, "label": f"{case_id}-seg.nii.gz", "groups": groups}


@pytest.fixture(scope="module")
def datalist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return four training, two validation and two testing cases, one of each without enhancement."""
    folder = tmp_path_factory.mktemp("tumors")
    sections: dict[str, list[dict[str, Any]]] = {
        section: [write_case(folder, f"{section}_{i}", 10 * s + i, enhancing=i > 0) for i in range(count)]
        for s, (section, count) in enumerate((("training", 4), ("validation", 2), ("testing", 2)))
    }
    channels = {str(index): name for index, name in enumerate(CHANNELS)}
    path = folder / "datalist.json"
    path.write_text(json.dumps({"channels": channels, "structures": REGIONS, **sections}))
    return path


@pytest.fixture(scope="module")
def run(datalist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a training of seconds."""
    out = tmp_path_factory.mktemp("trained") / "run"
    line = ["train", "brats_mri", "--overlay", "phantoms", "--datalist", str(datalist), "--out", str(out), *SMALL]
    assert main(line) == 0
    return out


@pytest.fixture(scope="module")
def evaluation(run: Path, datalist: Path) -> Path:
    """Return the folder of `droseg evaluate --bundle` of the testing cases."""
    out = run.with_name("evaluation")
    assert main(["evaluate", "--datalist", str(datalist), "--bundle", str(run), "--out", str(out)]) == 0
    return out


def array(path: Path) -> np.ndarray:
    return np.asarray(nib.load(path).dataobj)


def dice(pred: np.ndarray, label: np.ndarray) -> float:
    size = int(pred.sum() + label.sum())
    return 2 * int((pred & label).sum()) / size if size else float("nan")


def test_the_run_is_a_bundle_of_regions(run: Path, datalist: Path) -> None:
    status = json.loads((run / "run.json").read_text())
    assert (status["status"], status["structures"]) == ("finished", REGIONS)
    outputs = json.loads((run / "configs/metadata.json").read_text())["network_data_format"]["outputs"]["pred"]
    assert outputs["channel_def"] == {"0": "WT", "1": "TC", "2": "ET"}
    assert load_config([run / "configs/inference.yaml"])["structures"] == REGIONS
    assert Predictor(run).structures == {"WT": (1, 2, 3), "TC": (1, 3), "ET": (3,)}
    statistics = json.loads((run / "training_statistics.json").read_text())
    labels = [array(datalist.with_name(f"training_{i}-seg.nii.gz")) for i in range(4)]
    for name, values in REGIONS.items():
        volumes_ml = [np.isin(label, values).sum() / 1000 for label in labels]
        assert statistics["volume_ml"][name]["max"] == pytest.approx(max(volumes_ml), rel=1e-5)
        assert statistics["volume_ml"][name]["absent"] == volumes_ml.count(0)
    assert statistics["volume_ml"]["ET"]["absent"] == 1


def test_a_finished_training_says_so(run: Path, datalist: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = ["train", "brats_mri", "--overlay", "phantoms", "--datalist", str(datalist), "--out", str(run), *SMALL]
    with pytest.raises(SystemExit) as ended:
        main(line)
    assert not ended.value.code
    assert "this run is finished" in capsys.readouterr().out


def test_each_region_is_scored_as_its_masks_are(evaluation: Path, datalist: Path) -> None:
    table = pd.read_csv(evaluation / "case_metrics.csv").set_index(["case_id", "structure"])
    assert set(table.index) == {(f"testing_{i}", name) for i in range(2) for name in REGIONS}
    for case_id, name in table.index:
        pred = array(evaluation / "predictions" / f"{case_id}_seg.nii.gz")
        label = array(datalist.with_name(f"{case_id}-seg.nii.gz"))
        assert set(np.unique(pred)) <= {0, 1, 2, 3}
        masks = np.isin(pred, REGIONS[name]), np.isin(label, REGIONS[name])
        np.testing.assert_allclose(table.loc[(case_id, name), "dice"], dice(*masks), rtol=1e-9)
        assert table.loc[(case_id, name), "volume_ref_ml"] == pytest.approx(masks[1].sum() / 1000)
        assert table.loc[(case_id, name), "volume_pred_ml"] == pytest.approx(masks[0].sum() / 1000)
    assert table.loc[("testing_0", "ET"), "volume_ref_ml"] == 0


def test_the_report_shows_the_regions(evaluation: Path, datalist: Path) -> None:
    out = evaluation.with_name("report")
    line = ["report", str(evaluation / "case_metrics.csv"), "--group-by", "enhancement", "--datalist", str(datalist)]
    assert main([*line, "--pred", str(evaluation / "predictions"), "--out", str(out)]) == 0
    page = (out / "report.html").read_text()
    assert page.count("data:image/png;base64,") >= 6  # image, reference and prediction of both cases
    subgroups = pd.read_csv(out / "subgroups.csv")
    assert set(REGIONS) <= set(subgroups["structure"])


def test_the_hardest_cases_have_a_dice_for_each_region(run: Path) -> None:
    assert main(["hardest", str(run)]) == 0
    table = pd.read_csv(run / "hardest/hardest.csv")
    assert list(table["rank"]) == [1, 2, 3, 4]
    assert {"dice_WT", "dice_TC", "dice_ET"} <= set(table.columns)
    assert table["loss"].notna().all()
    assert "data:image/jpeg;base64," in (run / "hardest/hardest.html").read_text()


def test_the_flags_are_calibrated(run: Path, datalist: Path) -> None:
    assert main(["calibrate", str(run), "--datalist", str(datalist), "--degraded", "1"]) == 0
    quality = json.loads((run / "quality.json").read_text())
    assert quality["thresholds"]
    assert quality["cases"]["all"]["n"] == 4  # two, and each once degraded


def test_cases_that_lack_a_channel_go_from_training_to_scores(datalist: Path, tmp_path: Path) -> None:
    content = json.loads(datalist.read_text())
    for section in ("training", "validation", "testing"):
        content[section][1]["image"][1] = None
    incomplete = datalist.with_name("incomplete.json")
    incomplete.write_text(json.dumps(content))
    run, out = tmp_path / "run", tmp_path / "scores"
    line = ["train", "brats_mri", "--overlay", "phantoms", "--datalist", str(incomplete), "--out", str(run), *SMALL]
    assert main([*line, "epochs=1", "missing_channels=zero", "channel_dropout=0.1"]) == 0
    assert main(["evaluate", "--datalist", str(incomplete), "--bundle", str(run), "--out", str(out)]) == 0
    assert len(pd.read_csv(out / "case_metrics.csv")) == 2 * len(REGIONS)
    flags = json.loads((out / "predictions/testing_1_seg.json").read_text())["flags"]
    said = [flag["message"] for flag in flags if flag["name"] == "missing_channel"]
    assert len(said) == 1
    assert said[0].startswith("channel T1c is missing")


def test_monais_inference_fills_the_channel_that_a_case_lacks(run: Path, datalist: Path, tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    for index in (0, 2, 3):
        shutil.copy(datalist.with_name(f"testing_1-{CHANNELS[index]}.nii.gz"), folder / f"x_{index:04d}.nii.gz")
    options = {"bundle_root": str(run), "dataset_dir": str(folder), "output_dir": str(tmp_path / "out")}
    workflow = ConfigWorkflow(
        str(run / "configs/inference.yaml"), workflow_type="inference", missing_channels="zero", **options
    )
    workflow.initialize()
    workflow.run()
    workflow.finalize()
    written = array(tmp_path / "out/x_seg.nii.gz")
    paths = [None if index == 1 else folder / f"x_{index:04d}.nii.gz" for index in range(4)]
    expected, _ = Predictor(run, missing_channels="zero", force=True)(paths)
    np.testing.assert_array_equal(written, np.asarray(expected.dataobj))
