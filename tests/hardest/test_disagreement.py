"""What counts as a dispute, on masks made by hand and against a plain distance transform of the whole volume."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from droseg.hardest.disagreement import find_disagreement

SPACING = np.array([1.0, 1.0, 3.0])


def box(x: slice, value: int = 1, shape: tuple[int, int, int] = (20, 10, 8)) -> np.ndarray:
    label = np.zeros(shape, np.uint8)
    label[x, 2:8, 2:6] = value
    return label


def disputed_ml(label, pred, probability=0.99, sure=0.9, band_mm=2.0, spacing=SPACING, classes=3) -> np.ndarray:
    confidence = np.full(pred.shape, probability, np.float32)
    found = find_disagreement(pred, confidence, label, np.ones(classes), spacing, band_mm)
    return found.sure_ml(np.full(classes, sure))


def test_all_of_a_structure_that_the_label_lacks_is_in_dispute():
    matrix = disputed_ml(np.zeros((20, 10, 8), np.uint8), box(slice(5, 10)))
    assert matrix[0, 1] == pytest.approx(5 * 6 * 4 * 3 / 1000)
    assert matrix.sum() == matrix[0, 1]


@pytest.mark.parametrize(("moved", "slabs"), [(0, 0), (1, 0), (2, 0), (3, 1), (5, 3)])
def test_only_what_lies_beyond_the_band_is_in_dispute(moved: int, slabs: int):
    # Label at 5..9, prediction `moved` voxels of 1 mm further: the slabs more than 2 mm from the label count.
    matrix = disputed_ml(box(slice(5, 10)), box(slice(5 + moved, 10 + moved)))
    assert matrix[0, 1] == pytest.approx(slabs * 6 * 4 * 3 / 1000)


def test_distance_is_in_millimeters():
    label, pred = box(slice(5, 10)), np.zeros((20, 10, 8), np.uint8)
    pred[5:10, 2:8, 3:7] = 1  # one slice of 3 mm higher
    assert disputed_ml(label, pred, band_mm=2.0)[0, 1] == pytest.approx(5 * 6 * 3 / 1000)
    assert disputed_ml(label, pred, band_mm=3.0)[0, 1] == 0


def test_the_matrix_is_labelled_by_predicted():
    matrix = disputed_ml(box(slice(5, 10), value=2), box(slice(5, 10), value=1))
    assert matrix[2, 1] == pytest.approx(0.36)
    assert matrix.sum() == matrix[2, 1]


@pytest.mark.parametrize(
    ("probability", "expected"), [(0.45, 0.0), (0.6, 0.0), (0.89, 0.0), (0.905, 0.36), (1.0, 0.36)]
)
def test_where_the_network_is_not_sure_nothing_is_in_dispute(probability: float, expected: float):
    matrix = disputed_ml(np.zeros((20, 10, 8), np.uint8), box(slice(5, 10)), probability=probability)
    assert matrix[0, 1] == pytest.approx(expected)


def test_volumes_are_those_of_the_label():
    found = find_disagreement(
        box(slice(0, 3)), np.ones((20, 10, 8)), box(slice(5, 10), value=2), np.ones(3), SPACING, 2
    )
    assert found.label_ml == pytest.approx([(1600 - 120) * 3 / 1000, 0, 0.36])


@pytest.mark.parametrize("seed", range(5))
def test_random_volumes_agree_with_distance_transforms_of_whole_volumes(seed: int):
    rng = np.random.default_rng(seed)
    spacing, band_mm = np.array([0.8, 1.1, 2.3]), 3.0
    noise = [ndimage.gaussian_filter(rng.normal(size=(4, 24, 20, 16)), (0, 2, 2, 1)) for _ in range(2)]
    label, pred = (n.argmax(axis=0).astype(np.uint8) for n in noise)
    probability = rng.uniform(0.25, 1, size=label.shape).astype(np.float32)
    sure = np.array([0.9, 0.7, 0.95, 0.52])
    expected = np.zeros((4, 4))
    for labelled in range(4):
        for predicted in range(4):
            far = ndimage.distance_transform_edt(label != predicted, sampling=spacing) > band_mm
            places = far & (label == labelled) & (pred == predicted) & (probability >= sure[predicted])
            expected[labelled, predicted] = places.sum() * spacing.prod() / 1000
    np.fill_diagonal(expected, 0)
    found = find_disagreement(pred, probability, label, np.ones(4), spacing, band_mm)
    assert expected.sum() > 0
    np.testing.assert_allclose(found.sure_ml(sure), expected)
