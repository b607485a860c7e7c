"""Case metrics against a float64 brute force over all pairs of surface voxels, and against MONAI's functions."""

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from monai.metrics import (
    DiceMetric,
    compute_average_surface_distance,
    compute_hausdorff_distance,
    compute_surface_dice,
)
from scipy import ndimage
from scipy.spatial.distance import cdist

from droseg.metrics import METRICS, case_metrics

ANISOTROPIC = (0.7, 1.1, 3.0)
PERCENTILES = {"hd50_mm": 50, "hd90_mm": 90, "hd99.5_mm": 99.5}
AGREED = (*METRICS, *PERCENTILES)


def nearest_mm(points, others):
    """Distance of each point to the nearest of the others, from all pairs, in portions that fit into memory."""
    return np.concatenate([cdist(some, others).min(axis=1) for some in np.array_split(points, len(points) // 500 + 1)])


def brute_force(pred, label, spacing_mm, tolerance_mm):
    """Written down from the definitions."""
    pred, label = pred.astype(bool), label.astype(bool)
    points = [np.argwhere(m & ~ndimage.binary_erosion(m)) * np.asarray(spacing_mm, dtype=float) for m in (pred, label)]
    forth, back = nearest_mm(*points), nearest_mm(*reversed(points))
    both = np.concatenate([forth, back])
    percentiles = {name: max(np.percentile(forth, p), np.percentile(back, p)) for name, p in PERCENTILES.items()}
    return {
        "dice": 2 * (pred & label).sum() / (pred.sum() + label.sum()),
        "hd_mm": both.max(),
        "hd95_mm": max(np.percentile(forth, 95), np.percentile(back, 95)),
        "assd_mm": both.mean(),
        "nsd": (both <= tolerance_mm).mean(),
        **percentiles,
    }


def assert_agrees_with_brute_force(pred, label, values, spacing_mm, tolerance_mm):
    names = {value: str(value) for value in values}
    table = case_metrics(pred, label, names, spacing_mm, tolerance_mm, metrics=AGREED)
    for value, (_, row) in zip(values, table.iterrows(), strict=True):
        in_pred, in_label = pred == value, label == value
        if in_pred.any() and in_label.any():
            expected = brute_force(in_pred, in_label, spacing_mm, tolerance_mm)
            assert row[list(expected)].to_dict() == pytest.approx(expected, rel=1e-9)
        elif in_pred.any() or in_label.any():
            assert row["dice"] == row["nsd"] == 0.0
            assert row[[m for m in AGREED if m.endswith("_mm")]].isna().all()
        else:
            assert row[list(AGREED)].isna().all()


def monai_metrics(pred, label, num_structures, spacing_mm, tolerance_mm):
    one_hot = [torch.stack([torch.as_tensor(m == i) for i in range(num_structures + 1)])[None] for m in (pred, label)]
    percentiles = {"hd_mm": None, "hd95_mm": 95, **PERCENTILES}
    hausdorff = {
        name: compute_hausdorff_distance(*one_hot, percentile=p, spacing=spacing_mm)[0].numpy()
        for name, p in percentiles.items()
    }
    return {
        "dice": DiceMetric(include_background=False, reduction="none")(*one_hot)[0].numpy(),
        "assd_mm": compute_average_surface_distance(*one_hot, symmetric=True, spacing=spacing_mm)[0].numpy(),
        "nsd": compute_surface_dice(*one_hot, [tolerance_mm] * num_structures, spacing=spacing_mm)[0].numpy(),
        **hausdorff,
    }


def assert_agrees_with_monai(pred, label, num_structures, spacing_mm, tolerance_mm):
    names = {i: str(i) for i in range(1, num_structures + 1)}
    table = case_metrics(pred, label, names, spacing_mm, tolerance_mm, metrics=AGREED)
    expected = monai_metrics(pred, label, num_structures, spacing_mm, tolerance_mm)
    assert set(expected) == set(AGREED)
    for metric, values in expected.items():
        np.testing.assert_allclose(table[metric], values, rtol=1e-5, err_msg=metric)


@pytest.mark.parametrize("spacing_mm", [(1.0, 1.0, 1.0), ANISOTROPIC, (0.2, 5.0, 5.0)])
@pytest.mark.parametrize("seed", range(3))
def test_blobs_agree_with_a_float64_brute_force(make_blobs, seed, spacing_mm):
    assert_agrees_with_brute_force(make_blobs(seed), make_blobs(seed + 100), (1, 2, 3), spacing_mm, 1.5)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    seeds=st.tuples(st.integers(0, 10_000), st.integers(0, 10_000)),
    shape=st.one_of(
        st.tuples(*[st.integers(1, 14)] * 3),
        st.tuples(*[st.integers(1, 20)] * 2),
    ),
    smooth=st.floats(0.3, 3.0),
    spacing=st.tuples(*[st.floats(0.1, 8.0)] * 3),
    tolerance_mm=st.floats(0.05, 10.0),
)
def test_random_blobs_of_any_shape_agree_with_a_float64_brute_force(
    make_blobs, seeds, shape, smooth, spacing, tolerance_mm
):
    pred, label = (make_blobs(seed, shape, 2, smooth) for seed in seeds)
    tolerance_mm += 1e-3 * np.pi  # no distance of two voxels is within rounding of it
    assert_agrees_with_brute_force(pred, label, (1, 2), spacing[: len(shape)], tolerance_mm)


def test_far_structures_are_exact_too():
    label, pred = np.zeros((70, 40, 30), np.uint8), np.zeros((70, 40, 30), np.uint8)
    label[2:9, 3:9, 2:8] = 1
    pred[60:68, 30:38, 20:29] = 1
    assert_agrees_with_brute_force(pred, label, (1,), ANISOTROPIC, 1.0)


@pytest.mark.parametrize("seed", range(2))
def test_blobs_agree_with_monai(make_blobs, seed):
    pred, label = (make_blobs(s, (40, 36, 20), 4, smooth=4.0) for s in (seed, seed + 50))
    assert_agrees_with_monai(pred, label, 4, ANISOTROPIC, 2.0)


def load(path):
    import nibabel

    return np.asarray(nibabel.load(path).dataobj).astype(np.uint8)


def every_third_slice(paths):
    """Eight tissues at 0.8 x 0.8 x 2.4 mm, as a scan with thicker slices would show them."""
    return [load(path)[:, :, ::3] for path in paths]


@pytest.mark.real_data
@pytest.mark.parametrize("weeks", [(31, 34)])
def test_eight_tissues_of_fetal_brains_agree_with_monai(real_data, weeks):
    paths = [real_data / f"fetal_atlas/neurotypical/ga{week}/label.nii.gz" for week in weeks]
    label, pred = every_third_slice(paths)
    assert_agrees_with_monai(pred, label, 8, (0.8, 0.8, 2.4), 1.0)


@pytest.mark.real_data
@pytest.mark.parametrize("spacing_mm", [(0.8, 0.8, 2.4), (0.43, 0.43, 5.0)])
def test_tissues_of_fetal_brains_agree_with_a_float64_brute_force(real_data, spacing_mm):
    folders = (real_data / "fetal_atlas/neurotypical/ga30", real_data / "fetal_atlas/spina_bifida/ga25_operated")
    label, pred = every_third_slice([folder / "label.nii.gz" for folder in folders])
    # All but the largest tissues, whose pairs would take minutes.
    assert {2, 3, 6, 7, 8} <= set(np.unique(pred)) & set(np.unique(label))
    assert_agrees_with_brute_force(pred, label, (2, 3, 6, 7, 8), spacing_mm, 1.0001)


@pytest.mark.real_data
@pytest.mark.parametrize("other", [1, 7])
def test_hippocampi_agree_with_a_float64_brute_force(real_data, other):
    paths = sorted((real_data / "hippocampus/labels").glob("*.nii.gz"))
    labels = [load(path) for path in (paths[0], paths[other])]
    shape = np.min([m.shape for m in labels], axis=0)
    pred, label = (m[tuple(slice(size) for size in shape)] for m in labels)  # cut by the border of the image
    assert_agrees_with_brute_force(pred, label, (1, 2), (1.0, 0.6, 2.5), 1.7001)
