"""Components and Betti numbers against shapes known by heart, and against persistent homology by gudhi."""

import sys

import numpy as np
import pytest
from scipy import ndimage

from droseg.errors import DrosegError
from droseg.metrics import betti_numbers, case_metrics, count_components
from droseg.metrics.topology import count_cavities

BETTI = ("betti0_error", "betti1_error", "betti2_error")


def solid():
    mask = np.zeros((9, 9, 9), bool)
    mask[1:8, 1:8, 1:8] = True
    return mask


def hollow():
    mask = solid()
    mask[3:6, 3:6, 3:6] = False
    return mask


def drilled(*axes):
    """A solid with straight tunnels along these axes, all through its center: n of them make 2 n - 1 loops."""
    mask = solid()
    for axis in axes:
        np.moveaxis(mask, axis, 0)[:, 4, 4] = False
    return mask


def two_apart():
    mask = np.zeros((9, 9, 9), bool)
    mask[1:3, 1:3, 1:3] = mask[5:8, 5:8, 5:8] = True
    return mask


def chain_of_corners():
    mask = np.zeros((6, 6, 6), bool)
    mask[np.arange(6), np.arange(6), np.arange(6)] = True
    return mask


SHAPES = [
    (solid(), (1, 0, 0)),
    (hollow(), (1, 0, 1)),
    (drilled(0), (1, 1, 0)),
    (drilled(0, 1), (1, 3, 0)),
    (drilled(0, 1, 2), (1, 5, 0)),
    (two_apart(), (2, 0, 0)),
    (chain_of_corners(), (1, 0, 0)),
    (np.ones((3, 3, 3), bool), (1, 0, 0)),
    (np.zeros((3, 3, 3), bool), (0, 0, 0)),
]


@pytest.mark.parametrize(("mask", "expected"), SHAPES)
def test_shapes_have_the_betti_numbers_that_one_sees(mask, expected):
    pytest.importorskip("skimage", reason="skipped: scikit-image not installed")
    assert betti_numbers(mask) == expected


@pytest.mark.parametrize(("mask", "expected"), SHAPES)
def test_components_and_cavities_need_no_library(mask, expected):
    assert (count_components(mask), count_cavities(mask)) == (expected[0], expected[2])


def test_a_ring_in_the_plane_has_one_hole():
    ring = np.pad(np.ones((3, 3), bool), 2)
    ring[3, 3] = False
    assert betti_numbers(ring) == (1, 1)
    ring[2, 2] = False  # its neighbors still touch by a corner
    assert betti_numbers(ring) == (1, 1)


@pytest.mark.parametrize("seed", range(40))
def test_random_masks_agree_with_persistent_homology(seed):
    pytest.importorskip("skimage", reason="skipped: scikit-image not installed")
    gudhi = pytest.importorskip("gudhi", reason="skipped: gudhi not installed")
    rng = np.random.default_rng(seed)
    shape = (9, 8, 7)[: 2 + seed % 2]
    mask = ndimage.gaussian_filter(rng.normal(size=shape), rng.uniform(0, 1.2)) > 0.1 * rng.normal()
    cells = gudhi.CubicalComplex(top_dimensional_cells=np.where(np.pad(mask, 1), 0.0, 1.0))
    cells.compute_persistence()
    assert betti_numbers(mask) == tuple(cells.persistent_betti_numbers(0.0, 0.5)[: mask.ndim])


def test_betti_errors_are_differences_of_the_betti_numbers():
    pytest.importorskip("skimage", reason="skipped: scikit-image not installed")
    pred, label = (mask.astype(np.uint8) for mask in (drilled(0, 1), hollow()))
    table = case_metrics(pred, label, {1: "a"}, metrics=("num_components_pred", *BETTI))
    assert table[["num_components_pred", *BETTI]].iloc[0].tolist() == [1, 0, 3, 1]
    table = case_metrics(two_apart() * 0, hollow() * 1, {1: "a"}, metrics=BETTI)
    assert table[list(BETTI)].iloc[0].tolist() == [1, 0, 1]


def test_without_the_library_the_error_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "skimage", None)
    label = solid().astype(np.uint8)
    with pytest.raises(DrosegError, match=r"pip install 'droseg\[topology\]'"):
        case_metrics(label, label, {1: "a"}, metrics=("betti1_error",))
    assert case_metrics(label, label, {1: "a"}, metrics=("betti0_error",))["betti0_error"].item() == 0.0


def test_the_plane_has_no_cavities():
    label = np.ones((4, 4), np.uint8)
    with pytest.raises(ValueError, match="betti2_error counts cavities"):
        case_metrics(label, label, {1: "a"}, (1.0, 1.0), metrics=("betti2_error",))
    found = case_metrics(label, label, {1: "a"}, (1.0, 1.0), metrics=BETTI[:2])
    assert found[list(BETTI[:2])].iloc[0].tolist() == [0, 0]
