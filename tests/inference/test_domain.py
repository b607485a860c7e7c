"""Images that a network cannot know are refused, in words, and others are not."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from droseg.errors import BundleError
from droseg.inference import OutOfDomainError, Predictor, QualityRules

CROPS = {"min": [32, 40, 26], "max": [42, 58, 47]}  # mm: left-right, back-front, down-up
SPACING = {"min": [1, 1, 1], "max": [1, 1, 1.2]}
SOME = {"extent_mm": CROPS, "spacing_mm": SPACING, "background_share": {"min": 0.0, "max": 0.01}}
MASKED = {
    "foreground_mm": {"min": [20, 20, 20], "max": [30, 30, 30]},
    "background_share": {"min": 0.5, "max": 0.8},
}


def rules(folder: Path, image: dict[str, Any] | None = None, **others: Any) -> QualityRules:
    document = {"cases": 120, "image": SOME if image is None else image, **others}
    (folder / "training_statistics.json").write_text(json.dumps(document))
    return QualityRules(folder, {"anterior": 1, "posterior": 2})


def scan(
    shape: tuple[int, int, int], spacing_mm: tuple[float, float, float] = (1, 1, 1), axes: str = "RAS"
) -> MetaTensor:
    """Return noise of a shape and spacing given along right, front and up, but stored in another order of axes."""
    array = np.random.default_rng(0).uniform(1, 2, shape).astype(np.float32)
    image = nib.Nifti1Image(array, np.diag([*spacing_mm, 1.0]))
    turned = nib.orientations.ornt_transform(
        nib.orientations.axcodes2ornt("RAS"), nib.orientations.axcodes2ornt(tuple(axes))
    )
    stored = image.as_reoriented(turned)
    return MetaTensor(torch.from_numpy(stored.get_fdata(dtype=np.float32).copy())[None], affine=stored.affine)


def test_a_whole_head_is_refused_with_what_was_found_and_what_is_expected(tmp_path: Path) -> None:
    with pytest.raises(OutOfDomainError) as caught:
        rules(tmp_path).check_domain(scan((110, 110, 90), (2, 2, 2)))
    assert "field of view of 220 x 220 x 180 mm" in caught.value.found
    assert "32-42 x 40-58 x 26-47 mm with anterior, posterior" in caught.value.found
    assert "crop the image" in caught.value.remedy
    assert "--force" in caught.value.remedy
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("axes", ["RAS", "LPS", "SLA", "PIR"])
def test_the_order_of_the_axes_in_the_file_decides_nothing(tmp_path: Path, axes: str) -> None:
    checked = rules(tmp_path, {"extent_mm": {"min": [20, 40, 80], "max": [20, 40, 80]}})
    checked.check_domain(scan((20, 40, 80), axes=axes))
    with pytest.raises(OutOfDomainError):
        checked.check_domain(scan((80, 40, 20), axes=axes))


def test_the_margin_is_half_as_much_again(tmp_path: Path) -> None:
    checked = rules(tmp_path)
    checked.check_domain(scan((63, 50, 36)))  # 1.5 x 42
    checked.check_domain(scan((40, 50, 18)))  # 26 / 1.5 = 17.3
    with pytest.raises(OutOfDomainError, match="crop the image"):
        checked.check_domain(scan((64, 50, 36)))
    with pytest.raises(OutOfDomainError, match="give an image of all of that region"):
        checked.check_domain(scan((40, 50, 17)))


def test_a_file_of_an_older_version_still_refuses_a_whole_head(tmp_path: Path) -> None:
    document = {"cases": 9, "extent_mm": CROPS, "spacing_mm": {"min": [1, 1, 1], "max": [1, 1, 1]}}
    (tmp_path / "training_statistics.json").write_text(json.dumps(document))
    checked = QualityRules(tmp_path, {"a": 1})
    checked.check_domain(scan((40, 36, 50)))  # in any order of axes: those of old files had one each
    with pytest.raises(OutOfDomainError, match="220"):
        checked.check_domain(scan((110, 110, 90), (2, 2, 2)))


def test_a_bundle_without_statistics_refuses_constant_images_only(tmp_path: Path) -> None:
    checked = QualityRules(tmp_path, {"a": 1})
    checked.check_domain(scan((200, 3, 3)))
    with pytest.raises(OutOfDomainError, match="no contrast: all voxels are 7"):
        checked.check_domain(MetaTensor(torch.full((1, 9, 9, 9), 7.0), affine=torch.eye(4)))


def test_a_constant_channel_is_named(tmp_path: Path) -> None:
    image = torch.cat([torch.rand(1, 9, 9, 9), torch.zeros(1, 9, 9, 9)])
    with pytest.raises(OutOfDomainError, match="channel 1 has no contrast"):
        QualityRules(tmp_path, {"a": 1}).check_domain(MetaTensor(image, affine=torch.eye(4)))


def test_voxels_three_times_as_coarse_as_any_in_training_are_refused(tmp_path: Path) -> None:
    checked = rules(tmp_path)
    checked.check_domain(scan((40, 50, 10), (1, 1, 3.59)))
    with pytest.raises(OutOfDomainError, match=r"voxels of 1 x 1 x 3.61 mm.*at most 1.2 mm"):
        checked.check_domain(scan((40, 50, 10), (1, 1, 3.61)))


def test_a_network_of_masked_brains_refuses_an_unmasked_head_and_not_a_padded_one(tmp_path: Path) -> None:
    checked = rules(tmp_path, MASKED)
    padded = torch.zeros(1, 99, 80, 70)
    padded[:, 30:55, 30:55, 30:55] = scan((25, 25, 25))
    checked.check_domain(MetaTensor(padded, affine=torch.eye(4)))
    with pytest.raises(OutOfDomainError, match="mask the image"):
        checked.check_domain(scan((25, 25, 25)))
    padded[:, :50, :50, :50] = scan((50, 50, 50))
    with pytest.raises(OutOfDomainError, match="tissue in a box of 55 x 55 x 55 mm"):
        checked.check_domain(MetaTensor(padded, affine=torch.eye(4)))


@pytest.mark.parametrize("content", ["{", "[1]"])
def test_damaged_statistics_are_named(tmp_path: Path, content: str) -> None:
    (tmp_path / "training_statistics.json").write_text(content)
    with pytest.raises(BundleError, match=r"training_statistics\.json"):
        QualityRules(tmp_path, {"a": 1})


def test_force_segments_what_is_refused(make_bundle: Callable[..., Path], plant: Callable[..., Any]) -> None:
    bundle, (image, label) = make_bundle(), plant()
    (bundle / "training_statistics.json").write_text(json.dumps({"cases": 5, "image": {"extent_mm": CROPS}}))
    small = (image[None], np.eye(4))  # 24 x 20 x 16 mm
    with pytest.raises(OutOfDomainError):
        Predictor(bundle)(small)
    segmentation, _ = Predictor(bundle, force=True)(small)
    np.testing.assert_array_equal(np.asanyarray(segmentation.dataobj), label)
