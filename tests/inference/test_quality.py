"""Flags: raised for what was planted, in words with the number and the training range, and for nothing else."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from droseg.data.statistics import measure_image
from droseg.errors import BundleError
from droseg.inference import Evidence, Flag, QualityRules
from droseg.inference.quality import FLAGS, THRESHOLDS, foreground_entropy, region_entropy

VALUES = {"anterior": 3, "posterior": 7}
SHAPE = (20, 20, 20)


def usual_labels() -> np.ndarray:
    labels = np.zeros(SHAPE, dtype=np.uint8)
    labels[5:10, 5:15, 5:15] = 3  # 500 voxels
    labels[10:15, 5:15, 5:15] = 7
    return labels


def usual_image(spacing_mm: tuple[float, float, float] = (1, 1, 1)) -> MetaTensor:
    array = torch.from_numpy(np.random.default_rng(0).uniform(1, 2, (1, *SHAPE)).astype(np.float32))
    return MetaTensor(array, affine=torch.diag(torch.tensor([*spacing_mm, 1.0], dtype=torch.float64)))


def usual_document() -> dict[str, Any]:
    """Return statistics of 50 cases that the usual case is in the middle of."""
    measures = measure_image(usual_image().numpy(), np.eye(4))
    around = {name: np.atleast_1d(getattr(measures, name)) for name in ("roughness", "balance", "background_share")}
    image = {name: {"min": (0.9 * v).tolist(), "max": (1.1 * v).tolist()} for name, v in around.items()}
    form = {
        "volume_ml": {"min": 0.4, "max": 0.6},
        "stray_share": {"min": 0.0, "max": 0.02},
        "border_share": {"min": 0.0, "max": 0.0},
    }
    return {
        "cases": 50,
        "volume_ml": {"anterior": {"absent": 0}, "posterior": {"absent": 2}},
        "structures": {"anterior": form, "posterior": form},
        "image": {**image, "spacing_mm": {"min": [1, 1, 1], "max": [1, 1, 1.5]}},
    }


def rules(folder: Path, quality: dict[str, Any] | None = None) -> QualityRules:
    (folder / "training_statistics.json").write_text(json.dumps(usual_document()))
    if quality is not None:
        (folder / "quality.json").write_text(json.dumps(quality))
    return QualityRules(folder, VALUES)


def sure(labels: np.ndarray) -> torch.Tensor:
    """Return probabilities of 1 for the labels."""
    return torch.from_numpy(np.stack([labels == value for value in (0, *VALUES.values())]).astype(np.float32))


def flags(
    checked: QualityRules,
    labels: np.ndarray | None = None,
    image: MetaTensor | None = None,
    probabilities: torch.Tensor | None = None,
    disagreement: float | None = None,
) -> list[Flag]:
    labels = usual_labels() if labels is None else labels
    probabilities = sure(labels) if probabilities is None else probabilities
    image = usual_image() if image is None else image
    return checked.flags(Evidence(image, labels, probabilities, (1.0, 1.0, 1.0), disagreement))


def test_a_usual_case_gets_no_flag(tmp_path: Path) -> None:
    assert flags(rules(tmp_path)) == []


def test_an_empty_structure_says_how_often_it_is_there(tmp_path: Path) -> None:
    labels = usual_labels()
    labels[labels == 3] = 0
    (flag,) = flags(rules(tmp_path), labels)
    assert (flag.name, flag.structure) == ("empty_structure", "anterior")
    assert flag.message == "structure anterior is empty; it is there in all 50 training cases"
    labels = usual_labels()
    labels[labels == 7] = 0
    assert str(flags(rules(tmp_path), labels)[0]).endswith("it is there in 48 of 50 training cases")


def test_volumes_outside_the_training_range_say_both(tmp_path: Path) -> None:
    labels = usual_labels()
    labels[7:10][labels[7:10] == 3] = 0  # 200 voxels are left
    (flag,) = flags(rules(tmp_path), labels)
    assert flag.name == "volume_low"
    assert flag.message == "anterior: 0.2 ml is less than in any of the 50 training cases (0.4 to 0.6 ml)"
    labels = usual_labels()
    labels[2:5, 5:15, 5:15] = 3
    (flag,) = flags(rules(tmp_path), labels)
    assert (flag.name, "0.8 ml is more than" in flag.message) == ("volume_high", True)


def test_pieces_count_by_the_share_apart_from_the_largest(tmp_path: Path) -> None:
    labels = usual_labels()
    labels[2, 2, 2] = 3  # one voxel of 501: no piece that anyone would mind
    assert flags(rules(tmp_path), labels) == []
    labels[1:3, 1:4, 1:6] = 3  # 30 voxels of 530: 5.7 %
    (flag,) = flags(rules(tmp_path), labels)
    assert (flag.name, flag.structure) == ("many_pieces", "anterior")
    assert "in 2 pieces, 5.7% of it apart from the largest (training cases: at most 2.0%)" in flag.message


def test_a_structure_at_the_edge_of_the_image_is_cut(tmp_path: Path) -> None:
    image = MetaTensor(usual_image().as_tensor()[:, 5:], affine=torch.eye(4))
    (flag,) = flags(rules(tmp_path), usual_labels()[5:], image)
    assert (flag.name, flag.structure) == ("cut_by_field_of_view", "anterior")
    assert "20.0% of it lies in the outermost voxels" in flag.message  # 1 of 5 layers


@pytest.mark.parametrize(("edge_mm", "flagged"), [(1.5, False), (1.6, False), (1.7, True), (5.0, True)])
def test_spacing_more_than_a_tenth_outside_is_flagged(tmp_path: Path, edge_mm: float, flagged: bool) -> None:
    labels = usual_labels() * 0  # volumes would change, too
    found = flags(rules(tmp_path), labels, usual_image((1, edge_mm, 1)))
    assert [flag.name for flag in found if flag.name == "spacing"] == ["spacing"] * flagged
    if edge_mm == 5.0:
        assert "voxels of 1 x 1 x 5 mm (finest edge first)" in found[-1].message
        assert "1 x 1 x 1-1.5 mm" in found[-1].message


def test_blur_another_contrast_and_padding_are_told_apart(tmp_path: Path) -> None:
    array = usual_image().as_tensor()
    blurred = torch.nn.functional.avg_pool3d(array, 3, 1, 1, count_include_pad=False)
    dark = array.clone()
    dark[:] = array**8
    padded = array.clone()
    padded[:, :4] = 0
    for changed, words in ((blurred, "less detail"), (dark, "contrast"), (padded, "more of it is empty")):
        found = flags(rules(tmp_path), image=MetaTensor(changed, affine=torch.eye(4)))
        assert {flag.name for flag in found} == {"intensity"}
        assert any(words in flag.message for flag in found), found


def test_the_scale_of_the_intensities_is_no_reason_for_a_flag(tmp_path: Path) -> None:
    image = MetaTensor(usual_image().as_tensor() * 5000 - 300, affine=torch.eye(4))
    assert flags(rules(tmp_path), image=image) == []


def test_entropy_has_its_closed_forms() -> None:
    columns = torch.tensor(
        [
            [0.5, 0.25, 0.25],  # 1.5 bits of log2(3)
            [1 / 3, 1 / 3, 1 / 3],  # 1
            [0.0, 1.0, 0.0],  # 0
            [0.95, 0.05, 0.0],  # clearly background: does not count
        ]
    ).T.reshape(3, 4, 1, 1)
    expected = (1.5 / np.log2(3) + 1 + 0) / 3
    assert foreground_entropy(columns) == pytest.approx(expected, rel=1e-5)
    assert foreground_entropy(columns[:, 3:]) is None


def test_entropy_of_regions_has_its_closed_forms() -> None:
    """Each region is yes or no by itself: log 2 at 1/2, and no background takes part."""
    assert region_entropy(torch.full((3, 4, 4, 4), 0.5)) == pytest.approx(1.0)
    assert region_entropy(torch.ones(3, 4, 4, 4)) == pytest.approx(0.0)
    assert region_entropy(torch.full((3, 4, 4, 4), 0.09)) is None  # nothing is inside
    two = torch.zeros(2, 1, 1, 2)
    two[:, 0, 0, 0] = torch.tensor([0.5, 1.0])  # the other voxel is outside of both, and does not count
    assert region_entropy(two) == pytest.approx(0.5)
    one = torch.full((1, 2, 2, 2), 0.8)
    assert region_entropy(one) == pytest.approx(-(0.8 * np.log2(0.8) + 0.2 * np.log2(0.2)))


def test_entropy_and_disagreement_are_flags_only_once_calibrated(tmp_path: Path) -> None:
    unsure = torch.full((3, *SHAPE), 1 / 3)
    assert flags(rules(tmp_path), probabilities=unsure, disagreement=0.9) == []
    checked = rules(tmp_path, {"thresholds": {"high_entropy": 0.4, "views_disagree": 0.2}})
    assert [flag.name for flag in flags(checked, probabilities=unsure, disagreement=0.9)] == [
        "high_entropy",
        "views_disagree",
    ]
    assert flags(checked, disagreement=0.2) == []


def test_a_calibrated_flag_says_how_often_it_was_right_and_others_claim_nothing(tmp_path: Path) -> None:
    counts = {"all": {"flagged": 18, "hits": 14}}
    quality = {"dice_below": 0.7, "thresholds": {"volume_low": 1.5}, "flags": {"volume_low": counts}}
    labels = usual_labels()
    labels[7:10][labels[7:10] == 3] = 0
    labels[labels == 7] = 0
    empty, low = flags(rules(tmp_path, quality), labels)
    assert low.message.endswith("; in the calibration 14 of 18 images flagged so had a Dice under 0.7")
    assert "calibration" not in empty.message


def test_a_calibrated_threshold_replaces_that_of_the_training_range(tmp_path: Path) -> None:
    labels = usual_labels()
    labels[7:10][labels[7:10] == 3] = 0  # half of the smallest: 2 times outside
    assert flags(rules(tmp_path, {"thresholds": {"volume_low": 2.1}}), labels) == []
    assert flags(rules(tmp_path, {"thresholds": {"volume_low": 1.9}}), labels) != []
    assert flags(rules(tmp_path, {"thresholds": {"volume_low": None}}), labels) == []


def test_the_most_serious_comes_first(tmp_path: Path) -> None:
    labels = usual_labels()
    labels[labels == 7] = 0
    labels[2:5, 5:15, 5:15] = 3
    found = flags(rules(tmp_path), labels, usual_image((1, 1, 1.7)))
    names = [flag.name for flag in found]
    assert names == sorted(names, key=FLAGS.index)
    assert names[0] == "empty_structure"
    assert names[-1] == "spacing"


def test_without_statistics_only_an_empty_structure_is_a_flag(tmp_path: Path) -> None:
    labels = usual_labels()
    labels[labels == 7] = 0
    labels[0, 0, 0] = 3
    found = flags(QualityRules(tmp_path, VALUES), labels, usual_image((9, 9, 9)), disagreement=1.0)
    assert [str(flag) for flag in found] == ["structure posterior is empty"]


@pytest.mark.parametrize("content", ["{", '{"thresholds": 3}', '{"thresholds": {"volume_low": "x"}}'])
def test_a_damaged_calibration_is_named(tmp_path: Path, content: str) -> None:
    (tmp_path / "quality.json").write_text(content)
    with pytest.raises(BundleError, match=r"quality\.json"):
        QualityRules(tmp_path, VALUES)


def test_every_flag_has_a_threshold_and_is_documented(project_root: Path) -> None:
    assert set(FLAGS) == set(THRESHOLDS)
    text = (project_root / "docs" / "quality_flags.md").read_text()
    assert [name for name in (*FLAGS, "out_of_domain") if f"`{name}`" not in text] == []
