"""Scores of predictions on disk: names, grids, missing and unreadable files, metrics beyond the contract's."""

import dataclasses
import subprocess
import sys

import nibabel as nib
import numpy as np
import pandas as pd
import pytest

from droseg.errors import DrosegError
from droseg.metrics import METRICS, case_metrics
from droseg.report import score_cases, score_section
from droseg.report.read import read_cases
from droseg.report.score import _run, on_reference_grid


def load(path):
    image = nib.load(path)
    return np.asarray(image.dataobj), image.affine


def test_scores_equal_case_metrics_with_the_spacing_of_the_file(cohort, tmp_path):
    labels, affine = load(tmp_path / "labels/c0.nii.gz")
    pred = np.roll(labels, 2, axis=2)
    nib.save(nib.Nifti1Image(pred, affine), tmp_path / "pred/c0_seg.nii.gz")
    table = score_cases(cohort, "testing", tmp_path / "pred")
    expected = case_metrics(pred, labels, {1: "anterior", 5: "posterior"}, (1.0, 1.0, 3.0))
    pd.testing.assert_frame_equal(table.iloc[:2][expected.columns].reset_index(drop=True), expected)
    assert list(table.columns) == [
        *("case_id", "patient_id", "structure", *METRICS, "volume_ref_ml", "volume_pred_ml"),
        *("anatomy", "diagonal_mm"),
    ]
    assert table["diagonal_mm"].tolist() == pytest.approx([np.linalg.norm([20, 18, 36])] * 8)
    assert (table.iloc[2:][["dice", "nsd"]] == 1).all(axis=None)


@pytest.mark.parametrize("name", ["c0.nii.gz", "c0.nii", "c0_seg.nii"])
def test_predictions_are_found_by_case_id(cohort, tmp_path, name):
    labels, affine = load(tmp_path / "pred/c0_seg.nii.gz")
    (tmp_path / "pred/c0_seg.nii.gz").unlink()
    nib.save(nib.Nifti1Image(labels, affine), tmp_path / "pred" / name)
    assert score_section(cohort, "testing", tmp_path / "pred").missing == []


@pytest.mark.parametrize("axes", ["LPS", "PSR", "IAL"])
def test_axis_order_and_direction_of_a_prediction_do_not_matter(cohort, tmp_path, axes):
    labels, affine = load(tmp_path / "labels/c1.nii.gz")
    image = nib.Nifti1Image(labels, affine)
    turned = image.as_reoriented(nib.orientations.axcodes2ornt(axes))
    found = on_reference_grid(np.asarray(turned.dataobj), turned.affine, labels.shape, affine)
    np.testing.assert_array_equal(found, labels)


def test_a_prediction_on_another_grid_is_refused_and_the_others_go_on(cohort, tmp_path):
    labels, _ = load(tmp_path / "labels/c2.nii.gz")
    nib.save(nib.Nifti1Image(labels[:, :, ::2].copy(), np.diag([1, 1, 6, 1])), tmp_path / "pred/c2_seg.nii.gz")
    scores = score_section(cohort, "testing", tmp_path / "pred")
    assert set(scores.cases["case_id"]) == {"c0", "c1", "c3"}
    problem = scores.problems["c2"]
    assert "(20, 18, 6) of 1 x 1 x 6 mm" in problem
    assert "(20, 18, 12) of 1 x 1 x 3 mm" in problem


def test_a_shifted_origin_is_another_grid(cohort, tmp_path):
    labels, affine = load(tmp_path / "labels/c2.nii.gz")
    affine = affine.copy()
    affine[0, 3] += 1.0
    nib.save(nib.Nifti1Image(labels, affine), tmp_path / "pred/c2_seg.nii.gz")
    assert "c2" in score_section(cohort, "testing", tmp_path / "pred").problems


def test_rounding_in_the_header_is_the_same_grid(cohort, tmp_path):
    labels, affine = load(tmp_path / "labels/c2.nii.gz")
    nib.save(nib.Nifti1Image(labels, affine + 1e-5), tmp_path / "pred/c2_seg.nii.gz")
    assert not score_section(cohort, "testing", tmp_path / "pred").problems


def test_missing_predictions_are_listed_and_scored_only_on_request(cohort, tmp_path):
    (tmp_path / "pred/c3_seg.nii.gz").unlink()
    left_out = score_section(cohort, "testing", tmp_path / "pred")
    assert left_out.missing == ["c3"]
    assert "c3" not in set(left_out.cases["case_id"])
    counted = score_section(cohort, "testing", tmp_path / "pred", missing_as_failure=True)
    rows = counted.cases[counted.cases["case_id"] == "c3"]
    assert rows["dice"].tolist() == [0.0, 0.0]
    assert rows["hd_mm"].isna().all()
    assert (rows["volume_ref_ml"] > 0).all()


def test_damaged_and_fractional_files_are_problems_of_their_case(cohort, tmp_path):
    path = tmp_path / "pred/c0_seg.nii.gz"
    path.write_bytes(path.read_bytes()[:60])
    labels, affine = load(tmp_path / "labels/c1.nii.gz")
    nib.save(nib.Nifti1Image(labels * np.float32(0.3), affine), tmp_path / "pred/c1_seg.nii.gz")
    scores = score_section(cohort, "testing", tmp_path / "pred")
    assert set(scores.problems) == {"c0", "c1"}
    assert "cannot be read" in scores.problems["c0"]
    assert "not whole numbers" in scores.problems["c1"]


def test_score_cases_raises_and_names_every_case_that_has_no_score(cohort, tmp_path):
    for case_id in ("c1", "c3"):
        (tmp_path / f"pred/{case_id}_seg.nii.gz").unlink()
    with pytest.raises(DrosegError, match=r"(?s)2 cases.*c1: no prediction.*c3: no prediction"):
        score_cases(cohort, "testing", tmp_path / "pred")


def test_undeclared_label_values_are_pointed_out(cohort, tmp_path):
    labels, affine = load(tmp_path / "labels/c0.nii.gz")
    labels = np.where(labels == 5, 2, labels).astype(np.uint8)
    nib.save(nib.Nifti1Image(labels, affine), tmp_path / "pred/c0_seg.nii.gz")
    assert "(2)" in score_section(cohort, "testing", tmp_path / "pred").warnings[0]
    assert score_section(dataclasses.replace(cohort, background=(0, 2)), "testing", tmp_path / "pred").warnings == []


def test_only_the_named_structures_are_scored(cohort, tmp_path):
    table = score_cases(cohort, "testing", tmp_path / "pred", structures=["posterior"])
    assert set(table["structure"]) == {"posterior"}
    with pytest.raises(DrosegError, match=r"no structure lesion.*anterior, posterior"):
        score_cases(cohort, "testing", tmp_path / "pred", structures=["lesion"])


def test_two_workers_give_the_same_table(cohort, tmp_path):
    one, two = (score_cases(cohort, "testing", tmp_path / "pred", workers=n) for n in (1, 2))
    pd.testing.assert_frame_equal(one, two)


def test_further_metrics_stand_to_the_right_of_the_axes_and_are_none(cohort, tmp_path):
    labels, affine = load(tmp_path / "labels/c1.nii.gz")
    nib.save(nib.Nifti1Image(np.roll(labels, 1, axis=0), affine), tmp_path / "pred/c1_seg.nii.gz")
    extra = ("volume_error_ml", "num_components_pred", "hd90_mm", "betti0_error")
    table = score_cases(cohort, "testing", tmp_path / "pred", extra_metrics=extra)
    contract = ["case_id", "patient_id", "structure", *METRICS, "volume_ref_ml", "volume_pred_ml", "anatomy"]
    further = ["hd90_mm", "volume_error_ml", "num_components_pred", "betti0_error", "diagonal_mm"]
    assert list(table.columns) == [*contract, *further]
    path = tmp_path / "case_metrics.csv"
    table.to_csv(path, index=False, float_format="%.10g")
    read = read_cases([path])
    assert [c for c in read.columns if not pd.api.types.is_float_dtype(read[c].dtype)] == [*contract[:3], "anatomy"]
    assert read["hd90_mm"].tolist() == pytest.approx(table["hd90_mm"].tolist())


def test_each_structure_can_have_its_own_tolerance(cohort, tmp_path):
    for i in range(4):
        labels, affine = load(tmp_path / f"labels/c{i}.nii.gz")
        nib.save(nib.Nifti1Image(np.roll(labels, 1, axis=0), affine), tmp_path / f"pred/c{i}_seg.nii.gz")
    table = score_cases(cohort, "testing", tmp_path / "pred", nsd_tolerance_mm={"anterior": 0.5, "posterior": 1.0})
    assert (table[table["structure"] == "posterior"]["nsd"] == 1).all()
    assert (table[table["structure"] == "anterior"]["nsd"] < 1).all()
    with pytest.raises(DrosegError, match="no value for posterior"):
        score_cases(cohort, "testing", tmp_path / "pred", nsd_tolerance_mm={"anterior": 0.5})


def test_overlapping_regions_of_a_datalist_are_scored_as_unions(cohort, tmp_path):
    regions = {"whole": (1, 5), "core": (5,)}
    labels, affine = load(tmp_path / "labels/c0.nii.gz")
    pred = np.where(labels == 5, 1, labels).astype(np.uint8)  # the core is missed, the whole is right
    nib.save(nib.Nifti1Image(pred, affine), tmp_path / "pred/c0_seg.nii.gz")
    table = score_cases(dataclasses.replace(cohort, structures=regions), "testing", tmp_path / "pred")
    assert table[table["case_id"] == "c0"]["dice"].tolist() == [1.0, 0.0]


def test_two_files_of_one_case_are_refused_and_named(cohort, tmp_path):
    labels, affine = load(tmp_path / "images/c1.nii.gz")
    nib.save(nib.Nifti1Image(labels, affine), tmp_path / "pred/c1.nii.gz")  # the image beside its segmentation
    scores = score_section(cohort, "testing", tmp_path / "pred")
    assert set(scores.cases["case_id"]) == {"c0", "c2", "c3"}
    assert "c1.nii.gz and c1_seg.nii.gz" in scores.problems["c1"]


def test_a_header_and_its_voxels_are_one_file(cohort, tmp_path):
    labels, affine = load(tmp_path / "pred/c1_seg.nii.gz")
    (tmp_path / "pred/c1_seg.nii.gz").unlink()
    nib.save(nib.Nifti1Pair(labels, affine), tmp_path / "pred/c1.hdr")
    assert {"c1.hdr", "c1.img"} <= {path.name for path in (tmp_path / "pred").iterdir()}
    assert not score_section(cohort, "testing", tmp_path / "pred").problems


def test_a_case_whose_id_ends_in_seg_keeps_its_file(cohort, tmp_path):
    twin = dataclasses.replace(cohort.section("testing")[0], case_id="c1_seg")
    both = dataclasses.replace(cohort, sections={"testing": (*cohort.section("testing"), twin)})
    scores = score_section(both, "testing", tmp_path / "pred")
    assert scores.missing == ["c1"]
    assert scores.cases.groupby("case_id")["dice"].min()["c1_seg"] < 1  # scored against its own reference, c0's


def test_label_maps_of_no_case_are_told_from_those_of_other_sections(cohort, tmp_path):
    cases = cohort.section("testing")
    split = dataclasses.replace(cohort, sections={"testing": cases[:2], "training": cases[2:]})
    (tmp_path / "pred/c1_seg.nii.gz").rename(tmp_path / "pred/c1_prediction.nii.gz")
    scores = score_section(split, "testing", tmp_path / "pred")
    assert (scores.missing, scores.strangers) == (["c1"], ["c1_prediction.nii.gz"])


def test_a_case_without_label_is_a_problem_of_its_own(cohort, tmp_path):
    cases = cohort.section("testing")
    unlabelled = (dataclasses.replace(cases[0], label=None), *cases[1:])
    done = []
    scores = score_section(
        dataclasses.replace(cohort, sections={"testing": unlabelled}), "testing", tmp_path / "pred", on_case=done.append
    )
    assert list(scores.problems) == ["c0"]
    assert sorted(done) == ["c0", "c1", "c2", "c3"]


def test_options_are_checked_before_the_first_case(cohort, tmp_path, monkeypatch):
    for metric in ("hd99", "dicee"):
        with pytest.raises(DrosegError, match=f"unknown metrics .*{metric}"):
            score_section(cohort, "testing", tmp_path / "pred", extra_metrics=(metric,))
    monkeypatch.setitem(sys.modules, "skimage", None)
    with pytest.raises(DrosegError, match=r"droseg\[topology\]"):
        score_section(cohort, "testing", tmp_path / "pred", extra_metrics=("betti1_error",))
    cases = [dataclasses.replace(case, groups={"hd90_mm": "near"}) for case in cohort.section("testing")]
    with pytest.raises(DrosegError, match="group axis hd90_mm has the name of a metric"):
        score_section(dataclasses.replace(cohort, sections={"testing": tuple(cases)}), "testing", tmp_path / "pred")


def test_a_killed_worker_costs_its_case_and_no_traceback(cohort, tmp_path, monkeypatch):
    (tmp_path / "dying.py").write_text("import os\ndef score(label, pred):\n    os._exit(9)\n")
    monkeypatch.syspath_prepend(tmp_path)
    import dying

    jobs = [(case, case.label, None) for case in cohort.section("testing")[:2]]
    results = list(_run(dying.score, jobs, workers=2))
    assert [job for job, _ in results] == jobs
    assert all("fewer --workers" in score.problem for _, score in results)


def test_a_worker_imports_no_deep_learning():
    code = "import droseg.metrics.files, sys; print(*{'torch', 'monai', 'matplotlib'} & set(sys.modules))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == ""
