"""Regions that overlap, against small label maps by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from monai.data import MetaTensor

from droseg.data.regions import (
    code_values,
    label_values,
    mask_of,
    plain_values,
    region_codes,
    shared_values,
    written_values,
)
from droseg.data.transforms import ClassesToLabelsd, LabelsToClassesd, LabelsToRegionsd, RegionsToLabelsd
from droseg.errors import BundleError
from droseg.metrics import case_metrics

TUMOR: dict[str, Any] = {"WT": [1, 2, 3], "TC": [1, 3], "ET": 3}
CROSSING = {"left": [1, 2], "right": [2, 3]}
LINE = torch.tensor([0.0, 1, 2, 3, 2, 0]).reshape(1, 6, 1, 1)


def regions_of(label: torch.Tensor, structures: dict[str, Any]) -> torch.Tensor:
    return LabelsToRegionsd("label", structures)({"label": label})["label"]


def labels_of(regions: torch.Tensor, structures: dict[str, Any], values: dict[str, int] | None = None) -> torch.Tensor:
    return RegionsToLabelsd("pred", structures, values)({"pred": regions})["pred"]


def test_each_region_gets_a_channel_of_all_its_values() -> None:
    regions = regions_of(LINE, TUMOR)
    assert regions.shape == (3, 6, 1, 1)
    assert regions.flatten(1).tolist() == [[0, 1, 1, 1, 1, 0], [0, 1, 0, 1, 0, 0], [0, 0, 0, 1, 0, 0]]


def test_regions_are_painted_from_the_largest_to_the_smallest() -> None:
    """By hand: edema where only WT is, necrosis where TC is without ET, and ET over all, also where WT has a hole."""
    wt, tc, et = [0, 1, 1, 1, 0, 0, 1], [0, 0, 1, 1, 1, 0, 0], [0, 0, 0, 1, 0, 1, 1]
    channels = torch.tensor([wt, tc, et], dtype=torch.float32).reshape(3, 7, 1, 1)
    assert labels_of(channels, TUMOR).flatten().tolist() == [0, 2, 1, 3, 1, 3, 3]
    shuffled = {"ET": 3, "WT": [1, 2, 3], "TC": [1, 3]}  # the order is that of the channels, not of the paint
    assert labels_of(channels[[2, 0, 1]], shuffled).flatten().tolist() == [0, 2, 1, 3, 1, 3, 3]


@pytest.mark.parametrize(
    ("structures", "values"),
    [
        (TUMOR, None),
        ({"ET": 3, "all": [3, 2, 1]}, {"all": 2}),
        ({"one": 3, "two": 1, "three": 2}, None),
        (CROSSING, {"left": 1, "right": 3}),
    ],
)
@given(seed=st.integers(0, 1000))
def test_to_regions_and_back_is_the_identity(structures: dict[str, Any], values: dict[str, int], seed: int) -> None:
    label = torch.from_numpy(np.random.default_rng(seed).integers(0, 4, (1, 4, 3, 2))).float()
    if len(structures) == 2 and "ET" in structures:
        label[label == 1] = 2  # two values that no region tells apart become the one that is written
    assert torch.equal(labels_of(regions_of(label, structures), structures, values), label)


def test_the_affine_goes_with_the_channels() -> None:
    affine = torch.diag(torch.tensor([1.0, 2.0, 3.0, 1.0], dtype=torch.float64))
    regions = regions_of(MetaTensor(LINE, affine=affine), TUMOR)
    assert isinstance(regions, MetaTensor)
    assert torch.equal(torch.as_tensor(regions.affine), affine)
    back = labels_of(regions, TUMOR)
    assert isinstance(back, MetaTensor)
    assert torch.equal(torch.as_tensor(back.affine), affine)


def test_values_that_no_structure_has_are_outside_of_all() -> None:
    assert regions_of(LINE, {"ET": 3}).flatten().tolist() == [0, 0, 0, 1, 0, 0]


def test_the_value_of_each_region_is_the_one_that_no_smaller_region_has() -> None:
    assert written_values(TUMOR) == {"WT": 2, "TC": 1, "ET": 3}
    assert written_values(TUMOR, {"WT": 2}) == {"WT": 2, "TC": 1, "ET": 3}


@pytest.mark.parametrize(
    ("structures", "unclear"),
    [
        (CROSSING, r"left \(1 or 2\), right \(2 or 3\).*\{left: 1, right: 3\}"),
        ({"whole": [1, 2], "a": 1, "b": 2}, r"whole \(1 or 2\)"),  # nothing of it is outside of the others
        ({"ET": 3, "all": [1, 2, 3]}, r"all \(1 or 2\)"),
    ],
)
def test_an_unclear_value_is_asked_for_in_one_line(structures: dict[str, Any], unclear: str) -> None:
    with pytest.raises(BundleError, match=unclear) as caught:
        RegionsToLabelsd("pred", structures)
    assert "\n" not in str(caught.value)
    assert "region_values" in str(caught.value)


@pytest.mark.parametrize(
    ("values", "found"),
    [
        ({"core": 1}, "no structure core"),
        ({"TC": 2}, "TC: 2 is no value of the region"),
        ({"WT": 1}, "WT is 1, which is a value of a smaller region inside it; take 2"),  # edema would become core
    ],
)
def test_region_values_that_fit_no_region_are_refused(values: dict[str, int], found: str) -> None:
    with pytest.raises(BundleError, match=found):
        written_values(TUMOR, values)


def test_another_number_of_channels_is_refused() -> None:
    with pytest.raises(ValueError, match="2 channels, but there are 3 regions"):
        labels_of(torch.zeros(2, 3, 3, 3), TUMOR)


def test_several_values_are_one_class_that_is_written_as_the_first() -> None:
    structures: dict[str, Any] = {"cortex": [5, 2], "stem": 7}
    label = torch.tensor([0.0, 2, 5, 7, 3]).reshape(1, 5, 1, 1)
    classes = LabelsToClassesd("label", structures)({"label": label})["label"]
    assert classes.flatten().tolist() == [0, 1, 1, 2, 0]
    written = ClassesToLabelsd("label", structures)({"label": classes})["label"]
    assert written.flatten().tolist() == [0, 5, 5, 7, 0]


def test_classes_that_share_a_value_are_refused_with_the_way_out() -> None:
    with pytest.raises(BundleError, match=r"WT and TC share the label value 1.*brats_mri"):
        LabelsToClassesd("label", TUMOR)


def test_structures_are_read_in_all_their_forms() -> None:
    assert label_values(TUMOR) == {"WT": (1, 2, 3), "TC": (1, 3), "ET": (3,)}
    assert plain_values({"a": (2,), "b": (1, 3)}) == {"a": 2, "b": [1, 3]}
    assert shared_values(TUMOR) == {1: ["WT", "TC"], 3: ["WT", "TC", "ET"]}
    assert shared_values({"a": 1, "b": [2, 3]}) == {}


@pytest.mark.parametrize(
    ("structures", "found"),
    [
        ({"a": 0}, "a is 0"),
        ({"a": []}, r"a is \[\]"),
        ({"a": "1"}, "a is '1'"),
        ({"a": [1, 2.5]}, r"a is \[1, 2.5\]"),
        ({"a": True}, "a is True"),
        ({"a": [1, 2], "b": [2, 1]}, r"a and b have the same label values \[2, 1\]"),
        ({}, r"structures is \{\}"),
        ([1, 2], r"structures is \[1, 2\]"),
    ],
)
def test_what_is_no_label_value_is_refused(structures: Any, found: str) -> None:
    with pytest.raises(BundleError, match=found):
        label_values(structures)


def test_codes_score_regions_as_their_own_masks_do() -> None:
    rng = np.random.default_rng(0)
    masks = [rng.random((3, 6, 5, 4)) < 0.4 for _ in range(2)]
    pred, label = (region_codes(list(each)) for each in masks)
    table = case_metrics(pred, label, code_values(["a", "b", "c"], pred, label), (1, 1, 2), metrics=["dice", "hd95_mm"])
    for index, row in enumerate(table.to_dict("records")):
        one = case_metrics(masks[0][index], masks[1][index], {1: "x"}, (1, 1, 2), metrics=["dice", "hd95_mm"])
        assert row["dice"] == one["dice"].item()
        assert row["hd95_mm"] == one["hd95_mm"].item()
    assert list(table["structure"]) == ["a", "b", "c"]
    np.testing.assert_array_equal(mask_of(np.array([0, 1, 2, 3]), (1, 3)), [False, True, False, True])
