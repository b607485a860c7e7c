"""Overlapping regions in, label maps out: the network is known in closed form, so its regions are planted masks."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
import yaml
from monai.bundle import ConfigWorkflow

from droseg.cli import main
from droseg.data import Case
from droseg.inference import InputCase, Predictor, Segmentation, predict_cases
from droseg.inference.case_pictures import case_pictures
from droseg.inference.labelled_scores import ScoringPredictor, score_labelled
from droseg.report.pictures import overlay

AFFINE = np.array([[-1.0, 0, 0, 9], [0, 0, 1, -4], [0, -1, 0, 30], [0, 0, 0, 1]])  # left, inferior, anterior; 1 mm
NAMES = ("WT", "TC", "ET")
VALUES = {"WT": (1, 2, 3), "TC": (1, 3), "ET": (3,)}


def planted_regions() -> dict[str, np.ndarray]:
    """Return masks that a network may say and a tumor cannot have: a bit of ET is outside of TC, and of WT."""
    masks = {name: np.zeros((24, 20, 18), dtype=bool) for name in NAMES}
    masks["WT"][4:16, 4:14, 3:12] = True
    masks["TC"][6:12, 6:12, 5:10] = True
    masks["ET"][7:9, 7:11, 6:9] = True
    masks["ET"][14:18, 10, 8] = True
    return masks


def painted() -> np.ndarray:
    """Return the label map by hand, from the largest region to the smallest."""
    masks = planted_regions()
    label = np.zeros(masks["WT"].shape, dtype=np.uint8)
    label[masks["WT"]] = 2
    label[masks["TC"]] = 1
    label[masks["ET"]] = 3
    return label


def image_of(masks: dict[str, np.ndarray]) -> np.ndarray:
    """Return four channels, (C, H, W, D): 0 around a brain, 100 in it, 200 in the region that a channel shows."""
    brain = np.zeros((24, 20, 18), dtype=bool)
    brain[2:22, 2:18, 1:17] = True
    shown = [masks[name] for name in NAMES] + [np.zeros_like(brain)]
    channels = np.stack([100.0 * brain + 100.0 * (mask & brain) for mask in shown])
    channels[3, 3:8] *= 1.5  # not constant, as no scan is
    return channels.astype(np.float32)


@pytest.fixture
def bundle(tmp_path: Path, copy_bundle: Callable[[str, Path], Path]) -> Path:
    """Return brats_mri with a 1x1x1 convolution: region r is where channel r is brighter than the mean of the brain."""
    folder = copy_bundle("brats_mri", tmp_path / "run")
    path = folder / "configs/inference.yaml"
    config = yaml.safe_load(path.read_text())
    config["network_def"] = {
        "_target_": "torch.nn.Conv3d",
        "in_channels": "$len(@channels)",
        "out_channels": "$len(@structures)",
        "kernel_size": 1,
    }
    config["roi_size"] = [16, 16, 16]
    path.write_text(yaml.safe_dump(config, sort_keys=False))
    weight = torch.zeros(3, 4, 1, 1, 1)
    weight[[0, 1, 2], [0, 1, 2]] = 20.0
    torch.save({"weight": weight, "bias": torch.full((3,), -6.0)}, folder / "models/model.pt")
    return folder


@pytest.fixture
def scan(tmp_path: Path) -> Path:
    """Return a file of four channels."""
    path = tmp_path / "in" / "scan.nii.gz"
    path.parent.mkdir()
    nib.save(nib.Nifti1Image(np.moveaxis(image_of(planted_regions()), 0, -1), AFFINE), path)
    return path


def segmented(predictor: Predictor, scan: Path) -> Segmentation:
    return predictor.segment(predictor.prepare(predictor.read(scan)))


@pytest.mark.parametrize("options", [{}, {"mirror": True}, {"probabilities": True}])
def test_the_label_map_is_painted_from_the_regions(bundle: Path, scan: Path, options: dict[str, bool]) -> None:
    predictor = Predictor(bundle, **options)  # type: ignore[arg-type]
    assert predictor.structures == VALUES
    found = segmented(predictor, scan)
    np.testing.assert_array_equal(found.labels, painted())
    assert found.labels.dtype == np.uint8
    for name, values in VALUES.items():
        assert found.volumes_ml[name] == pytest.approx(np.isin(painted(), values).sum() / 1000)
    assert [flag.name for flag in found.flags] == []
    if options.get("probabilities"):
        assert found.probabilities is not None
        for channel, mask in zip(found.probabilities, planted_regions().values(), strict=True):
            np.testing.assert_array_equal(channel > 0.5, mask)  # before anything is painted over


def test_monai_run_writes_the_same_label_map_of_one_file_or_one_per_channel(
    bundle: Path, scan: Path, tmp_path: Path
) -> None:
    for index, channel in enumerate(image_of(planted_regions())):
        nib.save(nib.Nifti1Image(channel, AFFINE), scan.with_name(f"other_{index:04d}.nii.gz"))
    workflow = ConfigWorkflow(
        str(bundle / "configs/inference.yaml"),
        workflow_type="inference",
        bundle_root=str(bundle),
        dataset_dir=str(scan.parent),
        output_dir=str(tmp_path / "out"),
        device="cpu",
    )
    workflow.initialize()
    assert workflow.check_properties() == []
    workflow.run()
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["other_seg.nii.gz", "scan_seg.nii.gz"]
    for path in (tmp_path / "out").iterdir():
        written = nib.load(path)
        np.testing.assert_array_equal(np.asarray(written.dataobj), painted())
        np.testing.assert_allclose(written.affine, AFFINE)


def test_a_postprocessing_in_one_piece_gives_the_same(bundle: Path, scan: Path) -> None:
    path = bundle / "configs/inference.yaml"
    config = yaml.safe_load(path.read_text())
    steps = config["postprocessing"]["transforms"]
    steps.insert(1, {"_target_": "Lambdad", "keys": "pred", "func": "$lambda x: x"})  # cannot be split
    path.write_text(yaml.safe_dump(config, sort_keys=False))
    predictor = Predictor(bundle, mirror=True)
    found = segmented(predictor, scan)
    np.testing.assert_array_equal(found.labels, painted())
    assert found.flags == ()


def test_files_name_regions_and_no_background(bundle: Path, scan: Path, tmp_path: Path) -> None:
    predictor = Predictor(bundle, probabilities=True)
    out = tmp_path / "out"
    (result,) = predict_cases([InputCase("scan", (scan,))], predictor, out, overview=True, probabilities=True)
    assert result.status == "ok", result.error
    document = json.loads((out / "scan_seg.json").read_text())
    assert document["structures"] == {"WT": [1, 2, 3], "TC": [1, 3], "ET": 3}
    assert document["probabilities"] == ["WT", "TC", "ET"]
    stored = np.asarray(nib.load(out / "scan_prob.nii.gz").dataobj)
    assert stored.shape == (24, 20, 18, 3)
    np.testing.assert_array_equal(stored[..., 2] > 0.5, planted_regions()["ET"])
    assert "ET" in (out / "overview.html").read_text()


def test_regions_may_need_their_values_said(bundle: Path, scan: Path) -> None:
    path = bundle / "configs/inference.yaml"
    config = yaml.safe_load(path.read_text())
    config["structures"] = {"WT": [1, 2, 3, 4], "TC": [1, 3], "ET": 3}
    path.write_text(yaml.safe_dump(config, sort_keys=False))
    with pytest.raises(Exception, match=r"not clear .* WT \(2 or 4\)\. Say it by region_values"):
        Predictor(bundle)
    config["region_values"] = {"WT": 4}
    path.write_text(yaml.safe_dump(config, sort_keys=False))
    expected = painted()
    expected[expected == 2] = 4
    np.testing.assert_array_equal(segmented(Predictor(bundle), scan).labels, expected)


def test_labels_with_other_values_are_scored_by_what_they_mean(bundle: Path, scan: Path, tmp_path: Path) -> None:
    """The reference is what was painted, with BraTS' older value 4 for ET: its Dice is 1, and 2/3 without its half."""
    older = np.where(painted() == 3, 4, painted()).astype(np.uint8)
    label = tmp_path / "label.nii.gz"
    nib.save(nib.Nifti1Image(older, AFFINE), label)
    values = {"WT": (1, 2, 4), "TC": (1, 4), "ET": (4,)}
    scored = score_labelled(ScoringPredictor(bundle), [Case("a", "a", (scan,), label, {})], values, degraded=0)
    assert [case.dice for case in scored.cases] == [1.0]
    assert scored.problems == {}


@pytest.mark.parametrize(("value", "code"), [(3, 0), (4, 2)])
def test_evaluate_wants_the_values_that_the_bundle_writes(
    value: int, code: int, bundle: Path, scan: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    nib.save(
        nib.Nifti1Image(np.where(painted() == 3, value, painted()).astype(np.uint8), AFFINE), tmp_path / "l.nii.gz"
    )
    datalist = tmp_path / "datalist.json"
    structures = {"WT": [1, 2, value], "TC": [1, value], "ET": value}
    case = {"case_id": "a", "image": str(scan), "label": "l.nii.gz"}
    channels = ["T1n", "T1c", "T2w", "FLAIR"]
    datalist.write_text(json.dumps({"channels": channels, "structures": structures, "testing": [case]}))
    line = ["evaluate", "--datalist", str(datalist), "--bundle", str(bundle), "--out", str(tmp_path / "out")]
    assert main(line) == code
    if code:
        error = capsys.readouterr().err
        assert "WT (1, 2, 3 and 1, 2, 4); TC (1, 3 and 1, 4); ET (3 and 4)" in error
        assert error.count("\n") == 1
    else:
        assert set(_column(tmp_path / "out/case_metrics.csv", "dice")) == {"1"}


def _column(path: Path, name: str) -> list[str]:
    header, *rows = (line.split(",") for line in path.read_text().splitlines())
    return [row[header.index(name)] for row in rows]


def test_the_inner_region_gives_the_tint_and_all_give_contours() -> None:
    """By hand: two squares inside each other, colors pure red and pure blue on black."""
    labels = np.zeros((20, 20), dtype=np.uint8)
    labels[2:18, 2:18] = 1
    labels[6:14, 6:14] = 2
    structures: dict[str, Sequence[int]] = {"inner": [2], "outer": [1, 2]}
    rgb = overlay(np.zeros((20, 20), np.float32), labels, structures, {"inner": "#ff0000", "outer": "#0000ff"}, "")
    assert rgb[4, 4].tolist() == [0, 0, 81]  # 0.32 of 255
    assert rgb[9, 9].tolist() == [81, 0, 0]
    assert rgb[2, 9].tolist()[2] > 190  # the contour of the outer one
    assert rgb[6, 9].tolist()[0] > 190
    assert rgb[0, 0].tolist() == [0, 0, 0]


def test_case_pictures_show_a_map_of_regions() -> None:
    structures: dict[str, Any] = {"WT": [1, 2, 3], "TC": [1, 3], "ET": 3}
    pictures = case_pictures(image_of(planted_regions()), painted(), AFFINE, structures)
    assert [caption.split(",")[0] for caption, _ in pictures] == ["axial", "coronal", "sagittal"]
