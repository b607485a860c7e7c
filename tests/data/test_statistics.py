"""Ranges of the training cases: sizes in mm along the patient's axes, forms of structures, intensities by any scale."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage

from droseg.data import Case
from droseg.data.statistics import measure_image, measure_structures, training_statistics

# Array axes: up (3 mm), then to the left (1 mm), then to the front (2 mm).
SLA = np.array([[0, -1.0, 0, 9], [0, 0, 2, -4], [3, 0, 0, 1], [0, 0, 0, 1.0]])


def noise(shape: tuple[int, ...] = (1, 4, 5, 6), seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(1, 2, shape).astype(np.float32)


def test_sizes_are_in_mm_along_right_front_and_up_however_the_file_is_stored() -> None:
    measures = measure_image(noise(), SLA)
    assert measures.spacing_mm == (1.0, 2.0, 3.0)
    assert measures.extent_mm == (5 * 1.0, 6 * 2.0, 4 * 3.0)


def test_the_foreground_of_a_masked_image_is_a_box_in_mm() -> None:
    image = np.zeros((1, 10, 10, 10), dtype=np.float32)
    image[0, 2:5, 1:9, 4:8] = noise((3, 8, 4))
    measures = measure_image(image, SLA)
    assert measures.foreground_mm == (8 * 1.0, 4 * 2.0, 3 * 3.0)
    assert measures.background_share == pytest.approx(1 - 3 * 8 * 4 / 1000)


def test_a_ramp_is_balanced_and_its_square_is_not() -> None:
    ramp = np.linspace(0, 1, 10_000).reshape(1, 20, 20, 25)
    assert measure_image(ramp, np.eye(4)).balance[0] == pytest.approx(0.5, abs=0.003)
    # Foreground is the square above 0.005; of the ramp above a, quantile q is a + (1 - a) q.
    low, middle, high = ((0.005**0.5 + (1 - 0.005**0.5) * q) ** 2 for q in (0.01, 0.5, 0.99))
    expected = (high - middle) / (high - low)
    assert measure_image(ramp**2, np.eye(4)).balance[0] == pytest.approx(expected, abs=0.003)


def test_roughness_is_the_step_between_neighbors_over_the_interquartile_range() -> None:
    board = np.indices((6, 6, 6)).sum(axis=0) % 2 * 10.0 + 10.0  # each neighbor differs by 10, as do the quartiles
    board[0, 0, 0] = 0  # the background
    assert measure_image(board[None], np.eye(4)).roughness[0] == pytest.approx(1.0)


def test_sharpness_is_that_of_white_noise_and_zero_for_an_interpolated_image() -> None:
    white = np.random.default_rng(0).normal(100, 1, (1, 30, 30, 30))
    # |N(0, 6)| over |N(0, 2)|: x[i-1] - 2 x[i] + x[i+1] has variance 1 + 4 + 1.
    assert measure_image(white, np.eye(4)).sharpness[0] == pytest.approx(3**0.5, rel=0.02)
    coarse = ndimage.zoom(white[0, :8, :8, :8], 4, order=1)[None]
    assert measure_image(coarse, np.eye(4)).sharpness[0] < 0.01


@pytest.mark.parametrize("scale", [1e-3, 400.0])
def test_no_measure_depends_on_the_scale_that_a_converter_chose(scale: float) -> None:
    image = noise((2, 12, 12, 12))
    first, second = measure_image(image, SLA), measure_image(image * scale + 7 * scale, SLA)
    assert second.background_share == pytest.approx(first.background_share)
    np.testing.assert_allclose(second.balance, first.balance, rtol=1e-4)
    np.testing.assert_allclose(second.roughness, first.roughness, rtol=1e-4)


def test_a_constant_channel_has_no_balance() -> None:
    measures = measure_image(np.stack([noise()[0], np.ones((4, 5, 6), np.float32)]), SLA)
    assert np.isfinite(measures.balance[0])
    assert np.isnan(measures.balance[1])
    assert np.isnan(measures.roughness[1])


def test_pieces_strays_and_border_are_counted_by_hand() -> None:
    labels = np.zeros((9, 9, 9), dtype=np.uint8)
    labels[3:5, 3:5, 3:5] = 2  # 8 voxels
    labels[5, 5, 5] = 2  # touches by a corner: the same piece
    labels[8, 0:2, 4] = 2  # 2 voxels in the outermost layer
    labels[0, 0, 0] = 1
    measures = measure_structures(labels, SLA, {"one": 1, "two": 2, "three": 3})
    two = measures["two"]
    assert (two.volume_ml, two.pieces) == (pytest.approx(11 * 6 / 1000), 2)
    assert two.stray_share == pytest.approx(2 / 11)
    assert two.border_share == pytest.approx(2 / 11)
    assert measures["one"].border_share == 1.0
    assert measures["three"].volume_ml == 0
    assert np.isnan(measures["three"].pieces)


def test_a_structure_as_long_as_the_image_touches_the_border_at_both_ends() -> None:
    labels = np.zeros((7, 5, 5), dtype=np.uint8)
    labels[:, 2, 2] = 1
    assert measure_structures(labels, np.eye(4), {"rod": 1})["rod"].border_share == pytest.approx(2 / 7)


def make_cases(folder: Path, sizes: list[int]) -> list[Case]:
    """Write images of (4, 5, 6) voxels with `size` voxels of value 3 in a row, stored S, L, A."""
    cases = []
    for index, size in enumerate(sizes):
        label = np.zeros((4, 5, 6), dtype=np.uint8)
        label[1, 1, :size] = 3
        name = f"secret_name_{index}"
        nib.save(nib.Nifti1Image(noise(seed=index)[0], SLA), folder / f"{name}.nii")
        nib.save(nib.Nifti1Image(label, SLA), folder / f"{name}_label.nii")
        cases.append(Case(name, f"person_{index}", (folder / f"{name}.nii",), folder / f"{name}_label.nii", {}))
    return cases


def test_statistics_keep_what_older_readers_know_and_add_what_the_flags_need(tmp_path: Path) -> None:
    statistics = json.loads(json.dumps(training_statistics(make_cases(tmp_path, [2, 0, 4]), {"a": 3, "never": 9})))
    assert statistics["cases"] == 3
    assert statistics["volume_ml"]["a"] == pytest.approx(
        {"min": 0, "p5": 0.0012, "median": 0.012, "p95": 0.0228, "max": 0.024, "absent": 1}
    )
    assert statistics["extent_mm"]["max"] == [12, 5, 12]  # in the order of the file
    forms = statistics["structures"]["a"]
    assert (forms["volume_ml"]["min"], forms["volume_ml"]["max"]) == (0.012, 0.024)  # where it is there
    assert forms["border_share"]["max"] == pytest.approx(0.5)
    assert statistics["structures"]["never"]["volume_ml"] is None
    assert statistics["image"]["extent_mm"]["median"] == [5, 12, 12]
    assert statistics["image"]["spacing_mm"]["median"] == [1, 2, 3]


def test_statistics_name_no_one(tmp_path: Path) -> None:
    text = json.dumps(training_statistics(make_cases(tmp_path, [2, 3]), {"a": 3}))
    assert "secret_name" not in text
    assert "person" not in text
    assert "NaN" not in text


def test_regions_are_measured_over_all_their_values():
    labels = np.zeros((8, 6, 5), np.uint8)
    labels[1:4, 1:3, 1:3] = 2  # 12 voxels
    labels[4:6, 1:3, 1:3] = 1  # 8, beside them: one piece
    labels[7, 5, 4] = 3  # apart, at the edge
    measures = measure_structures(
        labels, np.diag([1.0, 2.0, 5.0, 1.0]), {"WT": [1, 2, 3], "TC": [1, 3], "none": [7, 9]}
    )
    assert measures["WT"].volume_ml == pytest.approx(21 * 0.01)
    assert (measures["WT"].pieces, measures["WT"].stray_share) == (2, pytest.approx(1 / 21))
    assert measures["WT"].border_share == pytest.approx(1 / 21)
    assert (measures["TC"].volume_ml, measures["TC"].stray_share) == (pytest.approx(0.09), pytest.approx(1 / 9))
    assert measures["none"].volume_ml == 0
