"""The planted label errors have the size that they say, in mm of the world, however the label is stored."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from scipy.spatial import KDTree

PROJECT = Path(__file__).resolve().parents[2]
# Stored as x to the left, z, y with voxels of 1 x 3 x 2 mm.
AFFINE = np.array([[-1.0, 0, 0, 20], [0, 0, 2, -10], [0, 3, 0, 5], [0, 0, 0, 1]])


@pytest.fixture
def errors(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(PROJECT / "scripts"))
    return importlib.import_module("label_errors")


@pytest.fixture
def label() -> np.ndarray:
    label = np.zeros((30, 20, 24), np.uint8)
    label[8:20, 6:14, 6:18] = 1
    label[11:15, 8:11, 9:13] = 2
    return label


def world(mask: np.ndarray) -> np.ndarray:
    return np.argwhere(mask) @ AFFINE[:3, :3].T + AFFINE[:3, 3]


def test_a_shift_moves_every_structure_by_the_vector(errors: ModuleType, label: np.ndarray):
    moved = errors.shift(label, AFFINE, (2.0, -4.0, 6.0))
    for value in (1, 2):
        assert world(moved == value).mean(axis=0) - world(label == value).mean(axis=0) == pytest.approx([2, -4, 6])
        assert (moved == value).sum() == (label == value).sum()


@pytest.mark.parametrize(("letter", "axis"), [("L", 0), ("A", 1), ("S", 2)])
def test_turning_mirrors_one_axis_of_the_world(errors: ModuleType, label: np.ndarray, letter: str, axis: int):
    turned = errors.turn(label, AFFINE, letter)
    grid = world(np.ones(label.shape, bool))
    middle = (grid.min(axis=0) + grid.max(axis=0)) / 2
    expected = world(label == 2).mean(axis=0)
    expected[axis] = 2 * middle[axis] - expected[axis]
    assert world(turned == 2).mean(axis=0) == pytest.approx(expected)


def test_what_is_unfinished_is_missing_above(errors: ModuleType, label: np.ndarray):
    unfinished = errors.leave_unfinished(label, AFFINE, 0.5)
    gone, kept = world((label > 0) & (unfinished == 0)), world(unfinished > 0)
    assert gone[:, 2].min() > kept[:, 2].max()
    assert len(gone) == pytest.approx(0.5 * (label > 0).sum(), rel=0.01)


def test_the_left_part_of_a_structure_is_erased(errors: ModuleType, label: np.ndarray):
    partly = errors.erase_part(label, AFFINE, 2, 0.25)
    gone, kept = world((label == 2) & (partly == 0)), world(partly == 2)
    assert gone[:, 0].max() < kept[:, 0].min()
    assert len(gone) == 0.25 * (label == 2).sum()
    assert not (errors.erase_part(label, AFFINE, 2, 1.0) == 2).any()


def test_a_grown_structure_holds_what_lies_within_that_distance(errors: ModuleType, label: np.ndarray):
    grown = errors.grow(label, AFFINE, 2, 3.5)
    inside, everywhere = world(label == 2), world(np.ones(label.shape, bool))
    distance = KDTree(inside).query(everywhere)[0]
    assert np.array_equal((grown == 2).ravel(), distance <= 3.5)
    assert np.array_equal(grown[grown != 2], label[grown != 2])


def test_a_shrunk_structure_lacks_what_lies_within_that_distance_of_others(errors: ModuleType, label: np.ndarray):
    shrunk = errors.shrink(label, AFFINE, 1, 3.5)
    outside, everywhere = world(label != 1), world(np.ones(label.shape, bool))
    distance = KDTree(outside).query(everywhere)[0].reshape(label.shape)
    assert np.array_equal(shrunk == 1, (label == 1) & (distance > 3.5))
    assert {0, 2} == set(np.unique(shrunk[(label == 1) & (shrunk != 1)]))


def test_another_case_stays_where_it_lies_in_the_world(errors: ModuleType, label: np.ndarray):
    to = np.diag([2.0, 2.0, 2.0, 1.0])
    to[:3, 3] = (-12, -12, 0)
    moved = errors.from_other_case((30, 30, 30), to, label, AFFINE)
    center = np.argwhere(moved == 1).mean(axis=0) @ to[:3, :3].T + to[:3, 3]
    assert center == pytest.approx(world(label == 1).mean(axis=0), abs=1.0)


def test_names_are_confused_as_said(errors: ModuleType, label: np.ndarray):
    assert np.array_equal(errors.swap(label, 1, 2) == 1, label == 2)
    assert np.array_equal(errors.merge(label, 2, 1) == 1, label > 0)
    assert np.array_equal(errors.erase(label, 1) == 0, label < 2)


def test_the_changed_volume_is_in_ml(errors: ModuleType, label: np.ndarray):
    assert errors.changed_ml(label, errors.erase(label, 2), AFFINE) == pytest.approx(4 * 3 * 4 * 6 / 1000)


def test_a_written_label_is_read_back(errors: ModuleType, label: np.ndarray, tmp_path: Path):
    errors.write_label(tmp_path / "new" / "label.nii.gz", label, AFFINE)
    found, affine = errors.read_label(tmp_path / "new" / "label.nii.gz")
    assert np.array_equal(found, label)
    assert np.allclose(affine, AFFINE)
