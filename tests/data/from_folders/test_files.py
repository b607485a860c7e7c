"""Which files make a case, and everything that may be wrong with them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from droseg.data import check_datalist, read_datalist

TWO = ("--image", "T1w={subject}_T1w.nii.gz", "--image", "T2w={subject}_T2w.nii.gz", "--label", "{subject}_seg.nii.gz")


def test_channels_and_label_of_a_subject_become_a_case(study):
    for subject in ("b", "a"):
        study.case(subject, channels=("T1w", "T2w"))
    assert study.new(*TWO, files=False) == 0
    document = study.document
    assert document["channels"] == {"0": "T1w", "1": "T2w"}
    assert document["structures"] == {"x": 1, "y": 2}
    assert document["training"][0] == {
        "case_id": "a",
        "image": ["study/a_T1w.nii.gz", "study/a_T2w.nii.gz"],
        "label": "study/a_seg.nii.gz",
    }
    assert [problem for problem in check_datalist(read_datalist(study.out_path)) if problem.severity == "error"] == []
    assert f"Next: droseg data split {study.out_path} --fractions" in study.out


def test_the_command_runs_as_a_process_and_keeps_what_is_there(study):
    study.case("a")
    command = [sys.executable, "-m", "droseg.cli", "data", "new", str(study.root), "--out", str(study.out_path)]
    command += ["--image", "{subject}_T2w.nii.gz", "--label", "{subject}_seg.nii.gz", "--structure", "both=1,2"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "is called T2w" in done.stdout  # a name that nobody gave is said
    assert study.document["structures"] == {"both": [1, 2]}
    again = subprocess.run(command, capture_output=True, text=True)
    assert again.returncode == 2
    assert "--overwrite" in again.stderr
    assert "Traceback" not in again.stderr


def test_without_labels_it_is_a_list_of_images_to_segment(study):
    study.image("a_T2w.nii.gz")
    assert study.new("--image", "T2w={subject}_T2w.nii.gz", files=False, structures=False) == 0
    assert study.document["testing"] == [{"case_id": "a", "image": "study/a_T2w.nii.gz"}]
    assert "Next: droseg predict" in study.out


def test_incomplete_cases_are_errors_skipped_or_null(study):
    for subject in ("a", "b", "c", "d"):
        study.case(subject, channels=("T1w", "T2w"))
    (study.root / "b_T1w.nii.gz").unlink()
    (study.root / "c_seg.nii.gz").rename(study.root / "z9_seg.nii.gz")
    assert study.new(*TWO, files=False) == 1
    assert "b: no T1w" in study.err
    assert study.err.count("c: no label") == 1
    assert "1 label without any image" in study.err
    assert "z9_seg.nii.gz" in study.err
    assert not study.out_path.exists()
    assert study.new(*TWO, "--skip-incomplete", files=False) == 0
    assert [entry["case_id"] for entry in study.document["training"]] == ["a", "d"]
    options = ["--allow-missing-channels", "--exclude", "c", "--overwrite"]
    assert study.new(*TWO, *options, files=False) == 0
    assert study.document["training"][1]["image"] == [None, "study/b_T2w.nii.gz"]
    assert study.err.count("b: no T1w") == 1
    assert "lack channel" not in study.err  # that is the same once more
    assert study.new(*TWO, "--exclude", "q", "--overwrite", files=False) == 1
    assert "no case is called q" in study.err


def test_the_same_file_for_two_channels_and_two_files_for_one_are_errors(study):
    study.case("a", channels=("T1w", "T2w"))
    study.image("a_run2_T2w.nii.gz")
    options = ["--image", "any={subject:[^_]+}_*w.nii.gz", "--image", "T2w={subject:[^_]+}_T2w.nii.gz"]
    assert study.new(*options, "--label", "{subject}_seg.nii.gz", files=False) == 1
    assert "a_T2w.nii.gz: any and T2w" in study.err
    assert "any: 1 case with more than one file" in study.err
    assert "a_run2_T2w.nii.gz" in study.err


def test_all_problems_are_said_in_one_run(study):
    for subject in ("a", "b", "c", "d"):
        study.case(subject, channels=("T1w", "T2w"))
    study.image("b_T1w.nii.gz", x_mm=5)  # moved against the other channel
    study.label("c_seg.nii.gz", values=(1, 7))
    (study.root / "d_T2w.nii.gz").write_bytes(b"")
    path = study.table("subject,age", "a,3", "b,ca. 4", "c,5", "c,6")
    options = ["--table", path, "--bin", "age=4,9", "--group-by", "dx", "--image", "FLAIR={subject}_FLAIR.nii.gz"]
    assert study.new(*TWO, *options, files=False) == 1
    for text in (
        "'{subject}_FLAIR.nii.gz' matches no image",
        "a: no FLAIR",
        "c: age is line 4 '5', line 5 '6'",
        "axis dx: no column 'dx'",
        "table.csv, line 3: 'ca. 4'",
        "b_T2w.nii.gz: its affine differs from that of b_T1w.nii.gz by up to 5 mm",
        "c_seg.nii.gz: 7 (1152 voxels)",
        "d_T2w.nii.gz: an empty file (0 bytes)",
        "no case in >=9",
        f"{study.out_path} was not written",
    ):
        assert text in study.err


def test_a_label_without_session_belongs_to_the_only_one_and_is_refused_for_two(study):
    study.image("a_s1_T2w.nii.gz")
    study.label("a_seg.nii.gz")
    options = ["--image", "T2w={subject}_{session}_T2w.nii.gz", "--label", "{subject}_seg.nii.gz"]
    assert study.new(*options, files=False) == 0
    assert "label: 1 file without a session taken for the only one" in study.out
    assert study.document["training"][0]["case_id"] == "a_s1"
    study.image("a_s2_T2w.nii.gz")
    assert study.new(*options, "--overwrite", files=False) == 1
    assert "a_seg.nii.gz: a has the sessions s1, s2" in study.err


def test_alternative_globs_of_one_channel_are_taken_together(study):
    study.case("a")
    study.image("other/b.nii.gz")
    study.label("b_seg.nii.gz")
    assert study.new("--image", "T2w=other/{subject}.nii.gz") == 0
    assert [entry["case_id"] for entry in study.document["training"]] == ["a", "b"]


def test_one_file_may_hold_all_channels(study):
    study.label("a_seg.nii.gz")
    image = nib.Nifti1Image(np.random.default_rng(0).normal(size=(24, 24, 24, 2)).astype(np.float32), np.eye(4))
    (study.root / "images").mkdir()
    nib.save(image, study.root / "images" / "a.nii.gz")
    options = ["--image", "T1w,T2w=images/{subject}.nii.gz", "--label", "{subject}_seg.nii.gz"]
    assert study.new(*options, files=False) == 0
    assert study.document["channels"] == {"0": "T1w", "1": "T2w"}
    assert study.document["training"][0]["image"] == "study/images/a.nii.gz"


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--image", "{subject}.nii.gz"], "what is this channel called?"),
        (["--image", "T2w=sub-*.nii.gz"], "no {subject} in it"),
        (["--image", "a/{subject}_T2w.nii.gz", "--image", "b/{subject}_T2w.nii.gz"], "two channels are called 'T2w'"),
        (["--image", "x={subject}", "--structure", "x"], "is not NAME=VALUE"),
        (["--image", "x={subject}", "--bin", "age=60,40"], "must be numbers that increase"),
        (["--image", "x={subject}", "--group-by", "dice"], "a name that the result tables use"),
        (["--image", "x={subject}", "--group-by-header", "thickness"], "those known are slice_thickness"),
        (["--image", "x={subject}", "--recode", "dx:1=a"], "is not AXIS:VALUE=GROUP"),
        (["--image", "x={subject}", "--no-label"], "--no-label is for --bids"),
    ],
)
def test_a_wrong_command_is_refused_before_anything_is_read(study, options, reason):
    assert study.new(*options, files=False, structures=False) == 2
    assert reason in study.err


@pytest.mark.real_data
def test_folders_of_dicom_series_are_images(study, real_data: Path):
    pytest.importorskip("pydicom")
    (study.root / "p1" / "session1").mkdir(parents=True)
    (study.root / "p1" / "session1" / "t1").symlink_to(real_data / "dicom" / "t1_post")
    (study.root / "p1" / "session1" / "notes").mkdir()
    (study.root / "p1" / "session1" / "notes" / "read.txt").write_text("no image")
    options = ["--image", "T1w={subject}/{session}/*", "--group-by-header", "manufacturer,slice_thickness"]
    assert study.new(*options, files=False, structures=False) == 0
    (entry,) = study.document["testing"]
    assert entry["image"] == "study/p1/session1/t1"
    assert entry["case_id"] == "p1_session1"
    assert entry["groups"]["manufacturer"] != "unknown"


@pytest.mark.parametrize("names", ["T1w,,T2w", "T1w,T1w", "T1w,", "T1w,label"])
def test_the_channels_of_one_file_have_each_a_name_of_its_own(study, names):
    study.case("a")
    options = ["--image", f"{names}={{subject}}_T2w.nii.gz", "--label", "{subject}_seg.nii.gz"]
    assert study.new(*options, files=False) == 2
    assert f"--image '{names}=" in study.err or "cannot be called 'label'" in study.err
