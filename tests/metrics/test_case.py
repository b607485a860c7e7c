"""Case metrics against hand geometry, a float64 brute force and MONAI's functions of the same definition."""

import numpy as np
import pandas as pd
import pytest
import torch
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


def box(shape, *bounds):
    mask = np.zeros(shape, dtype=np.uint8)
    mask[tuple(slice(*b) for b in bounds)] = 1
    return mask


def blobs(seed, shape=(24, 20, 14), num_structures=3, smooth=2.0):
    """A label map of touching blobs with speckles, some of them at the image border."""
    rng = np.random.default_rng(seed)
    fields = np.stack([ndimage.gaussian_filter(rng.normal(size=shape), smooth) for _ in range(num_structures + 1)])
    labels = fields.argmax(axis=0).astype(np.int16)
    speckle = rng.random(shape) < 0.01
    labels[speckle] = rng.integers(0, num_structures + 1, speckle.sum())
    return labels


def one(pred, label, **options):
    return case_metrics(pred, label, {1: "organ"}, **options).iloc[0]


def brute_force(pred, label, spacing_mm, tolerance_mm):
    """All pairs of surface voxels, written down from the definitions."""
    pred, label = pred.astype(bool), label.astype(bool)
    points = [np.argwhere(m & ~ndimage.binary_erosion(m)) * np.asarray(spacing_mm, dtype=float) for m in (pred, label)]
    pairs = cdist(*points)
    forth, back = pairs.min(axis=1), pairs.min(axis=0)
    both = np.concatenate([forth, back])
    return {
        "dice": 2 * (pred & label).sum() / (pred.sum() + label.sum()),
        "hd_mm": both.max(),
        "hd95_mm": max(np.percentile(forth, 95), np.percentile(back, 95)),
        "assd_mm": both.mean(),
        "nsd": (both <= tolerance_mm).mean(),
    }


def monai_metrics(pred, label, num_structures, spacing_mm, tolerance_mm):
    one_hot = [torch.stack([torch.as_tensor(m == i) for i in range(num_structures + 1)])[None] for m in (pred, label)]
    hausdorff = [compute_hausdorff_distance(*one_hot, percentile=p, spacing=spacing_mm)[0] for p in (None, 95)]
    return {
        "dice": DiceMetric(include_background=False, reduction="none")(*one_hot)[0].numpy(),
        "hd_mm": hausdorff[0].numpy(),
        "hd95_mm": hausdorff[1].numpy(),
        "assd_mm": compute_average_surface_distance(*one_hot, symmetric=True, spacing=spacing_mm)[0].numpy(),
        "nsd": compute_surface_dice(*one_hot, [tolerance_mm] * num_structures, spacing=spacing_mm)[0].numpy(),
    }


def test_distances_are_in_millimeters_not_voxels():
    label, pred = box((9, 9, 12), (3, 6), (3, 6), (2, 5)), box((9, 9, 12), (3, 6), (3, 6), (4, 7))
    row = one(pred, label, spacing_mm=(1, 1, 3))
    assert row["hd_mm"] == pytest.approx(6.0)  # moved by two 3 mm slices
    assert row["dice"] == pytest.approx(2 * 9 / (27 + 27))
    assert row["volume_ref_ml"] == pytest.approx(27 * 3 / 1000)


def test_single_voxels_have_the_distance_of_their_centers():
    label, pred = np.zeros((8, 8, 8), np.uint8), np.zeros((8, 8, 8), np.uint8)
    label[1, 1, 1] = pred[4, 5, 1] = 1
    row = one(pred, label, spacing_mm=(1.0, 1.0, 2.0), nsd_tolerance_mm=5.0)
    assert (row["hd_mm"], row["hd95_mm"], row["assd_mm"], row["nsd"]) == (5.0, 5.0, 5.0, 1.0)
    assert one(pred, label, nsd_tolerance_mm=4.99)["nsd"] == 0.0


def test_identical_masks_are_perfect():
    label = blobs(0)
    table = case_metrics(label, label, {1: "a", 2: "b", 3: "c"}, ANISOTROPIC)
    assert (table[["dice", "nsd"]] == 1).all(axis=None)
    assert (table[["hd_mm", "hd95_mm", "assd_mm"]] == 0).all(axis=None)
    assert (table["volume_ref_ml"] == table["volume_pred_ml"]).all()


def test_the_image_border_is_surface():
    label = np.ones((6, 6, 6), np.uint8)  # fills the image: its only surface is the border of the image
    pred = label.copy()
    pred[0] = 0
    row = one(pred, label)
    assert row["hd_mm"] == 1.0  # the inner face of the prediction is one voxel from the border plane
    assert np.isfinite(row["assd_mm"])


def test_both_masks_empty_is_undefined():
    row = one(np.zeros((4, 4, 4), int), np.zeros((4, 4, 4), int))
    assert row[list(METRICS)].isna().all()
    assert row["volume_ref_ml"] == row["volume_pred_ml"] == 0.0


@pytest.mark.parametrize("missed", [True, False])
def test_one_mask_empty_scores_zero_and_has_no_distance(missed):
    empty, full = np.zeros((4, 4, 4), int), box((4, 4, 4), (1, 3), (1, 3), (1, 3))
    row = one(empty, full) if missed else one(full, empty)
    assert row["dice"] == row["nsd"] == 0.0
    assert row[["hd_mm", "hd95_mm", "assd_mm"]].isna().all()
    assert (row["volume_pred_ml"] == 0) == missed


@pytest.mark.parametrize("spacing_mm", [(1.0, 1.0, 1.0), ANISOTROPIC, (0.2, 5.0, 5.0)])
@pytest.mark.parametrize("seed", range(4))
def test_agrees_with_a_float64_brute_force(seed, spacing_mm):
    pred, label = blobs(seed), blobs(seed + 100)
    table = case_metrics(pred, label, {1: "a", 2: "b", 3: "c"}, spacing_mm, nsd_tolerance_mm=1.5)
    for value, (_, row) in enumerate(table.iterrows(), start=1):
        expected = brute_force(pred == value, label == value, spacing_mm, 1.5)
        assert row[list(expected)].to_dict() == pytest.approx(expected, rel=1e-9)


def test_far_structures_are_exact_too():
    label, pred = np.zeros((70, 40, 30), np.uint8), np.zeros((70, 40, 30), np.uint8)
    label[2:9, 3:9, 2:8] = 1
    pred[60:68, 30:38, 20:29] = 1
    expected = brute_force(pred, label, ANISOTROPIC, 1.0)
    assert one(pred, label, spacing_mm=ANISOTROPIC)[list(expected)].to_dict() == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("seed", range(3))
def test_agrees_with_monai(seed):
    pred, label = blobs(seed, (40, 36, 20), 4, smooth=4.0), blobs(seed + 50, (40, 36, 20), 4, smooth=4.0)
    table = case_metrics(pred, label, {i: str(i) for i in range(1, 5)}, ANISOTROPIC, nsd_tolerance_mm=2.0)
    for metric, expected in monai_metrics(pred, label, 4, ANISOTROPIC, 2.0).items():
        np.testing.assert_allclose(table[metric], expected, rtol=1e-5)


def test_a_tolerance_equal_to_a_float32_spacing_counts_as_within():
    label, pred = box((9, 9, 9), (3, 6), (3, 6), (3, 6)), box((9, 9, 9), (4, 7), (3, 6), (3, 6))
    spacing = (float(np.float32(0.8)),) * 3  # as a NIfTI header stores it: 0.800000011920929
    assert one(pred, label, spacing_mm=spacing, nsd_tolerance_mm=0.8)["nsd"] == 1.0


def test_swapping_prediction_and_reference_changes_only_the_volumes():
    pred, label = blobs(5), blobs(6)
    names = {1: "a", 2: "b", 3: "c"}
    forth, back = (case_metrics(*maps, names, ANISOTROPIC) for maps in ((pred, label), (label, pred)))
    pd.testing.assert_frame_equal(forth[list(METRICS)], back[list(METRICS)], rtol=1e-12)
    assert forth["volume_ref_ml"].tolist() == back["volume_pred_ml"].tolist()


def test_overlapping_regions_equal_their_masks():
    pred, label = blobs(7), blobs(8)
    regions = {(1, 2, 3): "whole", (1, 3): "core", 3: "enhancing"}
    table = case_metrics(pred, label, regions, ANISOTROPIC)
    assert table["structure"].tolist() == ["whole", "core", "enhancing"]
    for values, (_, row) in zip([(1, 2, 3), (1, 3), (3,)], table.iterrows(), strict=True):
        expected = one(np.isin(pred, values).astype(int), np.isin(label, values).astype(int), spacing_mm=ANISOTROPIC)
        pd.testing.assert_series_equal(row[list(METRICS)], expected[list(METRICS)], check_names=False)


def test_large_and_negative_label_values_are_label_values():
    pred, label = blobs(9).astype(np.int64), blobs(10).astype(np.int64)
    plain = case_metrics(pred, label, {1: "a", 2: "b", 3: "c"})
    codes = np.array([0, -7, 1_000_000, 3])
    pd.testing.assert_frame_equal(case_metrics(codes[pred], codes[label], {-7: "a", 1_000_000: "b", 3: "c"}), plain)


def test_tensors_and_whole_floats_equal_integer_arrays():
    pred, label = blobs(11), blobs(12)
    expected = case_metrics(pred, label, {1: "a"})
    as_tensor = torch.as_tensor(pred).float().requires_grad_()
    pd.testing.assert_frame_equal(case_metrics(as_tensor, label.astype(np.float32), {1: "a"}), expected)


def test_a_subset_of_metrics_leaves_the_other_columns_out():
    table = case_metrics(blobs(1), blobs(2), {1: "a"}, metrics=("hd95_mm", "dice"))
    assert list(table.columns) == ["structure", "dice", "hd95_mm", "volume_ref_ml", "volume_pred_ml"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"pred": np.zeros((4, 4, 5), int)}, r"\(4, 4, 5\).*\(4, 4, 4\)"),
        ({"pred": np.full((4, 4, 4), 0.5)}, "whole numbers"),
        ({"spacing_mm": (1.0, 1.0)}, "spacing_mm"),
        ({"spacing_mm": (1.0, 1.0, 0.0)}, "spacing_mm"),
        ({"nsd_tolerance_mm": -1.0}, "nsd_tolerance_mm"),
        ({"metrics": ("dice", "hd99")}, "hd99"),
    ],
)
def test_unusable_input_is_refused(change, message):
    arguments = {"pred": np.zeros((4, 4, 4), int), "label": np.zeros((4, 4, 4), int), "structures": {1: "a"}}
    with pytest.raises(ValueError, match=message):
        case_metrics(**{**arguments, **change})


def test_batch_and_channel_axes_are_refused():
    with pytest.raises(ValueError, match="without batch or channel"):
        case_metrics(np.zeros((1, 1, 4, 4, 4), int), np.zeros((1, 1, 4, 4, 4), int), {1: "a"})


@pytest.mark.real_data
def test_eight_tissues_of_a_fetal_brain_agree_with_monai(real_data):
    import nibabel

    paths = [real_data / f"fetal_atlas/neurotypical/ga{week}/label.nii.gz" for week in (34, 35)]
    label, pred = (np.asarray(nibabel.load(p).dataobj).astype(np.uint8) for p in paths)
    table = case_metrics(pred, label, {i: str(i) for i in range(1, 9)}, (0.8, 0.8, 0.8))
    for metric, expected in monai_metrics(pred, label, 8, (0.8, 0.8, 0.8), 1.0).items():
        np.testing.assert_allclose(table[metric], expected, rtol=1e-5)
