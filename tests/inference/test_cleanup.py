"""Keeping the largest piece, compared with masks built by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from droseg.errors import BundleError
from droseg.inference.cleanup import KeepLargestComponentd, smaller_pieces

STRUCTURES = {"anterior": 3, "posterior": 700}


def label_map() -> np.ndarray:
    label = np.zeros((14, 12, 10), dtype=np.int32)
    label[1:6, 1:6, 1:6] = 3
    label[6, 6, 6] = 3  # touches at a corner: the same piece
    label[9:11, 9:11, 8] = 3  # a second one
    label[12, 1:4, 1] = 700
    label[12, 6:11, 1] = 700  # the larger one
    return label


def test_only_the_largest_piece_of_the_named_structure_stays() -> None:
    label = label_map()
    affine = torch.diag(torch.tensor([1.0, 2.0, 3.0, 1.0]))
    pred = MetaTensor(torch.from_numpy(label[None].copy()).float(), affine=affine)
    cleaned = KeepLargestComponentd("pred", STRUCTURES, ["anterior"])({"pred": pred})["pred"]
    expected = label.copy()
    expected[9:11, 9:11, 8] = 0
    np.testing.assert_array_equal(cleaned[0].numpy(), expected)
    np.testing.assert_array_equal(pred[0].numpy(), label)  # the input stays
    assert torch.equal(cleaned.affine, pred.affine)
    both = KeepLargestComponentd("pred", STRUCTURES, list(STRUCTURES))({"pred": pred})["pred"]
    expected[12, 1:4, 1] = 0
    np.testing.assert_array_equal(both[0].numpy(), expected)


def test_no_piece_and_one_piece_are_left_alone() -> None:
    assert not smaller_pieces(np.zeros((4, 5, 6), dtype=bool)).any()
    one = np.zeros((4, 5, 6), dtype=bool)
    one[1:3, 2, 2] = True
    assert not smaller_pieces(one).any()


def test_an_unknown_structure_is_named() -> None:
    with pytest.raises(BundleError, match=r"keep_largest names liver.* anterior, posterior"):
        KeepLargestComponentd("pred", STRUCTURES, ["liver"])


def test_what_is_left_of_a_region_becomes_the_region_around_it() -> None:
    """By hand: a core of necrosis (1) and enhancement (3) in edema (2), a small core apart, a whole tumor apart."""
    label = np.zeros((20, 6, 6), dtype=np.int32)
    label[1:11, 1:5, 1:5] = 2
    label[2:5, 2:4, 2:4] = 1
    label[3, 2:4, 2:4] = 3
    label[8, 2, 2] = 3  # a second core in the same edema
    label[15:17, 2, 2] = 2
    label[17, 2, 2] = 3  # a second tumor
    structures = {"WT": [1, 2, 3], "TC": [1, 3], "ET": 3}
    pred = torch.from_numpy(label[None].copy()).float()
    core = KeepLargestComponentd("pred", structures, ["TC"])({"pred": pred})["pred"][0].numpy()
    expected = label.copy()
    expected[8, 2, 2] = expected[17, 2, 2] = 2
    np.testing.assert_array_equal(core, expected)
    both = KeepLargestComponentd("pred", structures, ["WT", "TC"])({"pred": pred})["pred"][0].numpy()
    expected[15:18, 2, 2] = 0
    np.testing.assert_array_equal(both, expected)
    enhancing = KeepLargestComponentd("pred", structures, ["ET"])({"pred": pred})["pred"][0].numpy()
    assert (enhancing[8, 2, 2], enhancing[17, 2, 2]) == (1, 1)  # the smallest region around ET is TC
    with pytest.raises(BundleError, match="region_values"):
        KeepLargestComponentd("pred", {"all": [1, 2, 3], "ET": 3}, ["ET"])
