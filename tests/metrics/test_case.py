"""Case metrics against hand geometry, and what must not change them. Other implementations: test_agreement.py."""

import numpy as np
import pandas as pd
import pytest
import torch

from droseg.metrics import EVALUATION_METRICS, METRICS, case_metrics
from droseg.metrics.names import BETTI_ERRORS, DIAGONAL, VOLUMES

ANISOTROPIC = (0.7, 1.1, 3.0)
ALL_BUT_TUNNELS = (*EVALUATION_METRICS, "hd90_mm", "betti0_error")


def box(shape, *bounds):
    mask = np.zeros(shape, dtype=np.uint8)
    mask[tuple(slice(*b) for b in bounds)] = 1
    return mask


def one(pred, label, **options):
    return case_metrics(pred, label, {1: "organ"}, **options).iloc[0]


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


def test_identical_masks_are_perfect(make_blobs):
    label = make_blobs(0)
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


def test_a_structure_cut_by_the_border_has_surface_there():
    # A bar of 3 x 3 voxels along x, 2 mm each, that begins outside of the image: 4 voxels of it in the reference, 6 in
    # the prediction. The voxels on its axis are surface at x = 0, the border, and at its end; all others are anyway.
    label, pred = box((9, 5, 5), (0, 4), (1, 4), (1, 4)), box((9, 5, 5), (0, 6), (1, 4), (1, 4))
    num_label, num_pred = 4 * 8 + 2, 6 * 8 + 2
    row = one(pred, label, spacing_mm=(2.0, 1.0, 1.0))
    # 9 voxels are 4 mm beyond the reference's end, 8 are 2 mm beyond it, and its end's center lies 1 mm deep.
    assert row["hd_mm"] == row["hd95_mm"] == 4.0
    assert row["assd_mm"] == pytest.approx((9 * 4.0 + 8 * 2.0 + 1.0) / (num_label + num_pred))
    assert row["nsd"] == pytest.approx((num_label + num_pred - 17) / (num_label + num_pred))


def test_background_around_the_image_changes_nothing(make_blobs):
    pred, label = make_blobs(20), make_blobs(21)
    names = {1: "a", 2: "b", 3: "c"}
    padded = [np.pad(m, [(3, 0), (1, 5), (0, 2)]) for m in (pred, label)]
    expected = case_metrics(pred, label, names, ANISOTROPIC, metrics=EVALUATION_METRICS)
    found = case_metrics(*padded, names, ANISOTROPIC, metrics=EVALUATION_METRICS)
    pd.testing.assert_frame_equal(found, expected, rtol=1e-12)


def test_the_order_and_direction_of_the_axes_change_nothing(make_blobs):
    pred, label = make_blobs(22), make_blobs(23)
    names = {1: "a", 2: "b", 3: "c"}
    turned = [m.transpose(2, 0, 1)[:, ::-1] for m in (pred, label)]
    spacing_mm = (ANISOTROPIC[2], ANISOTROPIC[0], ANISOTROPIC[1])
    expected = case_metrics(pred, label, names, ANISOTROPIC, metrics=EVALUATION_METRICS)
    found = case_metrics(*turned, names, spacing_mm, metrics=EVALUATION_METRICS)
    pd.testing.assert_frame_equal(found, expected, rtol=1e-12)


def test_a_percentile_is_the_larger_of_the_two_directed_ones_not_pooled():
    # Reference: 11 voxels in a row; prediction: its first. Back: 0..10 mm; forth: 0 mm alone.
    label, pred = box((11, 1, 1), (0, 11), (0, 1), (0, 1)), box((11, 1, 1), (0, 1), (0, 1), (0, 1))
    row = one(pred, label, metrics=("hd90_mm", "hd25_mm", "hd99.5_mm", "hd_mm"))
    assert row["hd90_mm"] == pytest.approx(9.0)  # pooled, it would be 8.9
    assert row["hd25_mm"] == pytest.approx(2.5)
    assert row["hd99.5_mm"] == pytest.approx(9.95)
    assert row["hd_mm"] == 10.0


def test_each_structure_has_its_own_tolerance():
    label, pred = box((9, 9, 9), (1, 3), (1, 3), (1, 3)), box((9, 9, 9), (2, 4), (1, 3), (1, 3))
    label[5:7, 5:7, 5:7] = pred[6:8, 5:7, 5:7] = 2
    table = case_metrics(pred, label, {1: "strict", 2: "lax"}, nsd_tolerance_mm={"lax": 1.0, "strict": 0.5})
    assert table["nsd"].tolist() == [0.5, 1.0]


def test_the_volume_error_has_a_sign():
    label, pred = box((9, 9, 9), (2, 6), (2, 6), (2, 6)), box((9, 9, 9), (2, 6), (2, 6), (2, 5))
    row = one(pred, label, spacing_mm=(1.0, 2.0, 3.0), metrics=("volume_error_ml",))
    assert row["volume_error_ml"] == pytest.approx(-16 * 6 / 1000)
    assert row["volume_error_ml"] == pytest.approx(row["volume_pred_ml"] - row["volume_ref_ml"])


def test_components_touch_by_corners():
    label, pred = np.zeros((6, 6, 6), np.uint8), np.zeros((6, 6, 6), np.uint8)
    label[0, 0, 0] = label[1, 1, 1] = label[5, 5, 5] = 1
    pred[0, 0, 0] = pred[2, 2, 2] = pred[5, 5, 5] = pred[5, 5, 0] = 1
    pred[1, 1, 1] = 2  # another structure does not connect
    row = one(pred, label, metrics=EVALUATION_METRICS)
    assert (row["num_components_ref"], row["num_components_pred"]) == (2.0, 4.0)


def test_both_masks_empty_is_undefined():
    row = one(np.zeros((4, 4, 4), int), np.zeros((4, 4, 4), int), metrics=ALL_BUT_TUNNELS)
    assert row[[*METRICS, "hd90_mm", "volume_error_ml", "betti0_error"]].isna().all()
    described = ["volume_ref_ml", "volume_pred_ml", "num_components_ref", "num_components_pred"]
    assert row[described].tolist() == [0.0] * 4


@pytest.mark.parametrize("missed", [True, False])
def test_one_mask_empty_scores_zero_and_has_no_distance(missed):
    empty, full = np.zeros((4, 4, 4), int), box((4, 4, 4), (1, 3), (1, 3), (1, 3))
    row = one(*(empty, full) if missed else (full, empty), metrics=ALL_BUT_TUNNELS)
    assert row["dice"] == row["nsd"] == 0.0
    assert row[["hd_mm", "hd90_mm", "hd95_mm", "assd_mm"]].isna().all()
    assert (row["volume_pred_ml"] == 0) == missed
    assert row["volume_error_ml"] == pytest.approx((-1 if missed else 1) * 8 / 1000)
    assert row["betti0_error"] == 1.0
    assert row["num_components_pred"] == (0.0 if missed else 1.0)


def test_a_tolerance_equal_to_a_float32_spacing_counts_as_within():
    label, pred = box((9, 9, 9), (3, 6), (3, 6), (3, 6)), box((9, 9, 9), (4, 7), (3, 6), (3, 6))
    spacing = (float(np.float32(0.8)),) * 3  # as a NIfTI header stores it: 0.800000011920929
    assert one(pred, label, spacing_mm=spacing, nsd_tolerance_mm=0.8)["nsd"] == 1.0


def test_swapping_prediction_and_reference_changes_only_the_volumes(make_blobs):
    pred, label = make_blobs(5), make_blobs(6)
    names = {1: "a", 2: "b", 3: "c"}
    forth, back = (case_metrics(*maps, names, ANISOTROPIC) for maps in ((pred, label), (label, pred)))
    pd.testing.assert_frame_equal(forth[list(METRICS)], back[list(METRICS)], rtol=1e-12)
    assert forth["volume_ref_ml"].tolist() == back["volume_pred_ml"].tolist()


def test_overlapping_regions_equal_their_masks(make_blobs):
    pred, label = make_blobs(7), make_blobs(8)
    regions = {(1, 2, 3): "WT", (1, 3): "TC", 3: "ET"}
    metrics = (*EVALUATION_METRICS, "hd90_mm", "betti0_error")
    table = case_metrics(pred, label, regions, ANISOTROPIC, {"WT": 1.0, "TC": 2.0, "ET": 0.0}, metrics)
    assert table["structure"].tolist() == ["WT", "TC", "ET"]
    for values, tolerance_mm, (_, row) in zip([(1, 2, 3), (1, 3), (3,)], (1, 2, 0), table.iterrows(), strict=True):
        masks = [np.isin(m, values).astype(int) for m in (pred, label)]
        expected = one(*masks, spacing_mm=ANISOTROPIC, nsd_tolerance_mm=tolerance_mm, metrics=metrics)
        pd.testing.assert_series_equal(row[1:], expected[1:], check_names=False)


def test_large_and_negative_label_values_are_label_values(make_blobs):
    pred, label = make_blobs(9).astype(np.int64), make_blobs(10).astype(np.int64)
    plain = case_metrics(pred, label, {1: "a", 2: "b", 3: "c"})
    codes = np.array([0, -7, 1_000_000, 3])
    pd.testing.assert_frame_equal(case_metrics(codes[pred], codes[label], {-7: "a", 1_000_000: "b", 3: "c"}), plain)


def test_tensors_and_whole_floats_equal_integer_arrays(make_blobs):
    pred, label = make_blobs(11), make_blobs(12)
    expected = case_metrics(pred, label, {1: "a"})
    as_tensor = torch.as_tensor(pred).float().requires_grad_()
    pd.testing.assert_frame_equal(case_metrics(as_tensor, label.astype(np.float32), {1: "a"}), expected)


def test_the_columns_are_the_contracts_unless_others_are_asked_for(make_blobs):
    pred, label = make_blobs(1), make_blobs(2)
    table = case_metrics(pred, label, {1: "a"})
    assert list(table.columns) == ["structure", *METRICS, "volume_ref_ml", "volume_pred_ml"]
    assert all(dtype.kind == "f" for dtype in table.drop(columns="structure").dtypes)
    table = case_metrics(pred, label, {1: "a"}, metrics=("hd95_mm", "num_components_pred", "hd99_mm", "hd9_mm", "dice"))
    assert list(table.columns) == [
        *("structure", "dice", "hd95_mm", "hd9_mm", "hd99_mm"),
        *("volume_ref_ml", "volume_pred_ml", "num_components_pred"),
    ]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"pred": np.zeros((4, 4, 5), int)}, r"\(4, 4, 5\).*\(4, 4, 4\)"),
        ({"pred": np.full((4, 4, 4), 0.5)}, "whole numbers"),
        ({"spacing_mm": (1.0, 1.0)}, "spacing_mm"),
        ({"spacing_mm": (1.0, 1.0, 0.0)}, "spacing_mm"),
        ({"pred": np.full((4, 4, 4), np.inf)}, "whole numbers"),
        ({"nsd_tolerance_mm": -1.0}, "nsd_tolerance_mm"),
        ({"nsd_tolerance_mm": {"a": float("nan")}}, "nsd_tolerance_mm"),
        ({"nsd_tolerance_mm": {"b": 1.0}}, "no value for a; it has b"),
        ({"metrics": ("dice", "hd99")}, "hd99"),
        ({"metrics": ("hd0_mm",)}, "hd0_mm"),
        ({"metrics": ("hd101_mm",)}, "hd101_mm"),
    ],
)
def test_unusable_input_is_refused(change, message):
    arguments = {"pred": np.zeros((4, 4, 4), int), "label": np.zeros((4, 4, 4), int), "structures": {1: "a"}}
    with pytest.raises(ValueError, match=message):
        case_metrics(**{**arguments, **change})


def test_batch_and_channel_axes_are_refused():
    with pytest.raises(ValueError, match="without batch or channel"):
        case_metrics(np.zeros((1, 1, 4, 4, 4), int), np.zeros((1, 1, 4, 4, 4), int), {1: "a"})


def test_the_page_of_the_metrics_defines_every_one(project_root):
    page = (project_root / "docs" / "metrics.md").read_text()
    for name in (*EVALUATION_METRICS, *BETTI_ERRORS, *VOLUMES, DIAGONAL, "hdP_mm"):
        assert f"`{name}`" in page, f"docs/metrics.md does not define {name}"
