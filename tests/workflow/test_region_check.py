"""Bundles whose parts do not fit each other are refused in one line, before anything is read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from droseg.bundles import shipped_bundles
from droseg.data import Datalist
from droseg.errors import BundleError, DatalistError, InputError
from droseg.losses import EachCaseLoss, PerCaseDeepSupervisionLoss, PerCaseDiceBCELoss, PerCaseDiceCELoss
from droseg.workflow import checked_loss
from droseg.workflow.config import load_config
from droseg.workflow.loss_check import takes_sigmoid
from droseg.workflow.preflight import check_structures
from droseg.workflow.region_check import check_regions, trains_regions

TUMOR: dict[str, Any] = {"WT": [1, 2, 3], "TC": [1, 3], "ET": 3}
SIGMOID, SOFTMAX = PerCaseDiceBCELoss(), PerCaseDiceCELoss()
TO_CLASSES = {"_target_": "droseg.data.transforms.LabelsToClassesd", "keys": "label", "structures": "@structures"}


def check(bundle: str, loss: Any, structures: Any = None, channels: int | None = None, **overrides: Any) -> None:
    configs = shipped_bundles()[bundle] / "configs"
    config = load_config([configs / "train.yaml"], overrides)
    check_regions(config, structures or config["structures"], configs / "inference.yaml", loss, channels)


def test_the_shipped_bundles_fit() -> None:
    check("brats_mri", SIGMOID, channels=3)
    check("hippocampus_mri", SOFTMAX, channels=3)
    check("hippocampus_mri", SOFTMAX, {"whole": [1, 2]}, channels=2)  # several values that nothing shares
    check("brats_mri", SIGMOID, {"a": 1, "b": 2}, channels=2)  # regions need not overlap


@pytest.mark.parametrize(
    ("bundle", "loss", "overrides", "found"),
    [
        ("brats_mri", SOFTMAX, {}, r"softmax.*train#loss \(PerCaseDiceCELoss\)|PerCaseDiceCELoss\): softmax"),
        ("brats_mri", SIGMOID, {"label_transforms": [TO_CLASSES]}, r"label_transforms \(LabelsToClassesd\): softmax"),
        ("hippocampus_mri", SIGMOID, {}, r"train#loss \(PerCaseDiceBCELoss\): sigmoid; label_transforms"),
        (
            "brats_mri",
            SIGMOID,
            {"validate#postprocessing": {"_target_": "AsDiscreted", "keys": "pred", "argmax": True}},
            r"validate#postprocessing \(argmax\): softmax",
        ),
    ],
)
def test_parts_of_both_kinds_are_named(bundle: str, loss: Any, overrides: dict[str, Any], found: str) -> None:
    with pytest.raises(InputError, match=found) as caught:
        check(bundle, loss, **overrides)
    assert "\n" not in str(caught.value)


def test_structures_that_overlap_need_a_sigmoid() -> None:
    with pytest.raises(BundleError, match="WT and TC share the label value 1"):
        check("hippocampus_mri", SOFTMAX, TUMOR)


def test_the_number_of_scores_must_be_that_of_the_regions() -> None:
    with pytest.raises(InputError, match=r"out_channels is 4, but there are 3 regions .*set it to 3"):
        check("brats_mri", SIGMOID, channels=4)
    with pytest.raises(InputError, match=r"out_channels is 2, but there are background and 2 structures.*\+ 1"):
        check("hippocampus_mri", SOFTMAX, channels=2)


def test_regions_without_a_clear_value_are_refused_before_the_training() -> None:
    crossing = {"left": [1, 2], "right": [2, 3]}
    with pytest.raises(BundleError, match="region_values"):
        check("brats_mri", SIGMOID, crossing)
    check("brats_mri", SIGMOID, crossing, region_values={"left": 1, "right": 3})


@pytest.mark.parametrize("bundle", sorted(shipped_bundles()))
def test_a_config_says_whether_it_trains_regions(bundle: str) -> None:
    config = load_config([shipped_bundles()[bundle] / "configs/train.yaml"])
    assert trains_regions(config) == (bundle == "brats_mri")


def test_a_loss_of_regions_is_tried_on_channels_of_regions() -> None:
    assert checked_loss(SIGMOID, TUMOR) is SIGMOID
    with pytest.raises(InputError, match=r"class_weight has 2 values, pred has 3 channels") as caught:
        checked_loss(PerCaseDiceBCELoss(class_weight=[1, 2]), TUMOR)
    assert "a patch of 3 overlapping regions (WT, TC, ET)" in str(caught.value)


def test_what_a_loss_takes_is_read_through_what_wraps_it() -> None:
    from monai.losses import DiceLoss

    assert takes_sigmoid(PerCaseDeepSupervisionLoss(SIGMOID)) is True
    assert takes_sigmoid(EachCaseLoss(DiceLoss(sigmoid=True))) is True
    assert takes_sigmoid(EachCaseLoss(DiceLoss(softmax=True))) is False
    assert takes_sigmoid(torch.nn.L1Loss()) is None


def datalist(structures: dict[str, tuple[int, ...]]) -> Datalist:
    return Datalist(Path("d.json"), ("T1",), structures, {})


def test_a_datalist_must_have_all_values_of_a_region_in_any_order() -> None:
    declared = {"WT": (3, 2, 1), "TC": (1, 3), "ET": (3,), "other": (9,)}
    check_structures(datalist(declared), TUMOR, ["T1"], overlapping=True)
    with pytest.raises(DatalistError, match=r"WT \(datalist 1, 2, bundle 1, 2, 3\)") as caught:
        check_structures(datalist({**declared, "WT": (1, 2)}), TUMOR, ["T1"], overlapping=True)
    assert "structures='{WT: [1, 2], TC: [1, 3], ET: 3, other: 9}'" in str(caught.value)


def test_what_a_bundle_of_classes_is_offered_does_not_overlap() -> None:
    declared = {"WT": (1, 2, 3), "TC": (1, 3), "ET": (3,), "pair": (7, 8)}
    with pytest.raises(DatalistError, match=r"structures='\{ET: 3, pair: \[7, 8\]\}'"):
        check_structures(datalist(declared), {"anterior": 1}, ["T1"])
