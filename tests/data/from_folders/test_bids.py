"""A BIDS tree: suffixes, entities, sessions, derivatives, and its own tables and sidecars."""

from __future__ import annotations

import json

import pytest


@pytest.fixture
def tree(study):
    """Subjects 01 and 02 without sessions, 03 with two, each with T1w, T2w and a manual label."""
    for subject in ("01", "02", "03_ses-1", "03_ses-2"):
        folder = f"sub-{subject.replace('_', '/')}/anat/sub-{subject}"
        for suffix in ("T1w", "T2w"):
            study.image(f"{folder}_{suffix}.nii.gz")
        study.label(f"derivatives/manual/{folder}_dseg.nii.gz")
    (study.root / "participants.tsv").write_text(
        "participant_id\tage\tdiagnosis\nsub-01\t30\tMS\nsub-02\tn/a\tcontrol\nsub-03\t50\tn/a\n"
    )
    (study.root / "sub-03/sub-03_sessions.tsv").write_text("session_id\tage\tscore\nses-1\t51\t2\nses-2\t61\t4\n")
    return study


def test_images_labels_sessions_and_tables_are_found_by_their_names(tree):
    options = ["--bids", "--image", "T1w", "--image", "T2w", "--group-by", "diagnosis", "--bin", "age=40,60"]
    assert tree.new(*options, files=False) == 0
    first, last = tree.document["training"][0], tree.document["training"][-1]
    assert tree.document["channels"] == {"0": "T1w", "1": "T2w"}
    assert first["case_id"] == "sub-01"
    assert first["label"] == "study/derivatives/manual/sub-01/anat/sub-01_dseg.nii.gz"
    assert (last["case_id"], last["patient_id"]) == ("sub-03_ses-2", "sub-03")
    assert tree.groups("age") == {"sub-01": "<40", "sub-02": "unknown", "sub-03_ses-1": "40-60", "sub-03_ses-2": ">=60"}
    assert tree.groups("diagnosis")["sub-03_ses-1"] == "unknown"
    assert "participants.tsv: 3 rows" in tree.out
    assert "'age' from sub-*_sessions.tsv where it has a value, else from participants.tsv" in tree.out


def test_several_runs_are_named_and_chosen_by_an_option(tree):
    for run in (1, 2):
        tree.image(f"sub-01/anat/sub-01_run-{run}_T2w.nii.gz")
    (tree.root / "sub-01/anat/sub-01_T2w.nii.gz").unlink()
    assert tree.new("--bids", "--image", "T2w", files=False) == 1
    assert "they differ in 'run'; choose one for all cases, for example --image 'T2w=run-1_T2w'" in tree.err
    assert tree.new("--bids", "--image", "T2w=run-2_T2w", files=False) == 0
    assert tree.document["training"][0]["image"].endswith("sub-01_run-2_T2w.nii.gz")
    assert len(tree.document["training"]) == 4  # those who were scanned once have no run


def test_another_acquisition_is_not_taken_for_the_one_that_was_asked_for(tree):
    tree.image("sub-01/anat/sub-01_acq-fast_T2w.nii.gz")
    assert tree.new("--bids", "--image", "T2w=acq-fast_T2w", "--skip-incomplete", files=False) == 0
    assert [entry["case_id"] for entry in tree.document["training"]] == ["sub-01"]


def test_labels_in_several_derivatives_are_named_and_chosen_by_folder(tree):
    tree.label("derivatives/net/sub-01/anat/sub-01_dseg.nii.gz")
    assert tree.new("--bids", "--image", "T2w", files=False) == 1
    assert "choose one for all cases, for example --label derivatives/manual" in tree.err
    assert tree.new("--bids", "--image", "T2w", "--label", "derivatives/manual", files=False) == 0


def test_a_glob_overrides_the_labels_and_no_label_leaves_them_out(tree):
    glob = "derivatives/manual/**/sub-{subject}_ses-{session}_dseg.nii.gz"
    other = "derivatives/manual/sub-{subject}/anat/*_dseg.nii.gz"
    assert tree.new("--bids", "--image", "T2w", "--label", glob, "--label", other, files=False) == 0
    assert len(tree.document["training"]) == 4
    assert tree.new("--bids", "--image", "T2w", "--no-label", "--overwrite", files=False, structures=False) == 0
    assert "label" not in tree.document["testing"][0]


def test_cases_that_no_sessions_table_knows_are_counted_where_that_matters(tree):
    assert tree.new("--bids", "--image", "T2w", "--group-by", "score", files=False) == 0
    assert tree.groups("score") == {"sub-01": "unknown", "sub-02": "unknown", "sub-03_ses-1": "2", "sub-03_ses-2": "4"}
    assert "axis score: 2 cases without a row in sub-*_sessions.tsv, 'unknown'" in tree.err


def test_a_table_that_is_given_replaces_the_one_of_the_tree(tree):
    typed = tree.table("participant_id\tage\tdiagnosis", "sub-01\t30\tcontrol", "sub-02\t1\tMS", "sub-03\t5\tMS")
    options = ["--bids", "--image", "T2w", "--group-by", "diagnosis"]
    assert tree.new(*options, "--table", typed, files=False) == 0
    assert list(tree.groups("diagnosis").values()) == ["control", "MS", "MS", "MS"]
    assert "participants.tsv: not read, since --table is given" in tree.out
    assert "sub-*_sessions.tsv: 2 rows" in tree.out


def test_the_table_of_the_tree_given_by_another_path_is_read_once(tree, monkeypatch):
    monkeypatch.chdir(tree.root.parent)
    table = "study/participants.tsv"
    assert tree.new("--bids", "--image", "T2w", "--group-by", "diagnosis", "--table", table, files=False) == 0
    assert tree.out.count("participants.tsv: 3 rows") == 1
    assert "not read" not in tree.out


def test_conditions_concern_the_tables_of_the_tree(tree):
    options = ["--bids", "--image", "T2w", "--group-by", "diagnosis", "--group-by", "score"]
    assert tree.new(*options, "--where", "diagnosis=MS", "--where", "score=4", files=False) == 0
    assert tree.groups("diagnosis")["sub-01"] == "MS"
    assert tree.groups("diagnosis")["sub-02"] == "unknown"
    assert tree.groups("score") == {"sub-01": "unknown", "sub-02": "unknown", "sub-03_ses-1": "unknown"} | {
        "sub-03_ses-2": "4"
    }
    assert tree.new(*options, "--where", "dose=4", "--overwrite", files=False) == 1
    assert "participants.tsv: no column 'dose'" in tree.err
    assert tree.new(*options, "--subject-column", "age", "--overwrite", files=False) == 2
    assert "joined by participant_id" in tree.err


def test_numbers_without_any_table_are_refused(tree):
    (tree.root / "participants.tsv").unlink()
    (tree.root / "sub-03/sub-03_sessions.tsv").unlink()
    assert tree.new("--bids", "--image", "T2w", "--match-numbers", files=False) == 1
    assert "no table for --where or --match-numbers" in tree.err


def test_sidecars_are_inherited_from_above_and_overridden_below(tree):
    (tree.root / "T2w.json").write_text(json.dumps({"Manufacturer": "GE", "MagneticFieldStrength": 3}))
    (tree.root / "T1w.json").write_text(json.dumps({"Manufacturer": "Other"}))
    below = tree.root / "sub-03/ses-1/anat/sub-03_ses-1_T2w.json"
    below.write_text(json.dumps({"Manufacturer": "Philips"}))
    options = ["--bids", "--image", "T2w", "--group-by-header", "manufacturer,MagneticFieldStrength"]
    assert tree.new(*options, files=False) == 0
    assert list(tree.groups("manufacturer").values()) == ["GE", "GE", "Philips", "GE"]
    assert set(tree.groups("MagneticFieldStrength").values()) == {"3"}


def test_structures_of_the_tree_are_pointed_out(tree):
    path = tree.root / "derivatives/manual/dseg.tsv"
    path.write_text("index\tname\n1\tx\n2\ty\n")
    assert tree.new("--bids", "--image", "T2w", files=False, structures=False) == 1
    assert f"--structures {path}" in tree.err
    assert tree.new("--bids", "--image", "T2w", "--structures", path, files=False, structures=False) == 0
    assert tree.document["structures"] == {"x": 1, "y": 2}


def test_a_file_in_the_folder_of_another_subject_is_an_error(tree):
    tree.image("sub-01/anat/sub-09_T2w.nii.gz")
    assert tree.new("--bids", "--image", "T2w", files=False) == 1
    assert "sub-01/anat/sub-09_T2w.nii.gz: lies in sub-01" in tree.err


def test_a_suffix_that_is_nowhere_says_which_are(tree):
    assert tree.new("--bids", "--image", "FLAIR", files=False) == 1
    assert "suffixes there: T1w, T2w" in tree.err
    assert tree.new("--bids", "--image", "sub-{subject}/T2w.nii.gz", files=False) == 2
    assert "--bids takes the suffix of file names" in tree.err


def test_a_folder_that_is_no_bids_tree_says_so(study):
    study.case("a")
    assert study.new("--bids", "--image", "T2w", files=False) == 1
    assert "no folder sub-* with files, so no BIDS tree; in it are: a_T2w.nii.gz, a_seg.nii.gz" in study.err
