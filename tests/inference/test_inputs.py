from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from droseg.errors import InputError
from droseg.inference import DicomSeries, ImageError, ImageSource, find_inputs, image_items, read_image

Save = Callable[..., Path]


def touch(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")


def dicom(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"\0" * 128 + b"DICM")


def names(inputs: list[Path], out: Path) -> dict[str, ImageSource]:
    return {case.case_id: case.images[0] for case in find_inputs(inputs, out).cases}


def test_a_folder_gives_the_nifti_files_and_dicom_series_in_it_and_below(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    touch(folder / "b.nii", folder / "a.nii.gz", folder / "._a.nii.gz", folder / "notes.txt", folder / "deep" / "c.nii")
    dicom(folder / "series" / "IM0001")
    found = names([folder], tmp_path / "out")
    series = found.pop("series")
    assert found == {"a": folder / "a.nii.gz", "b": folder / "b.nii", "c": folder / "deep" / "c.nii"}
    assert isinstance(series, DicomSeries)
    assert series.folder == folder / "series"


def test_results_in_the_input_folder_are_not_segmented_again(tmp_path: Path) -> None:
    touch(tmp_path / "a.nii.gz", tmp_path / "a_seg.nii.gz")
    assert list(names([tmp_path], tmp_path)) == ["a"]


def test_a_dot_in_a_name_stays(tmp_path: Path) -> None:
    touch(tmp_path / "sub-1.2_T1w.nii.gz")
    assert list(names([tmp_path / "sub-1.2_T1w.nii.gz"], tmp_path / "out")) == ["sub-1.2_T1w"]


def test_equal_file_names_of_two_folders_get_the_folders_in_front(tmp_path: Path) -> None:
    paths = [tmp_path / "a" / "anat" / "T1.nii", tmp_path / "b" / "anat" / "T1.nii", tmp_path / "b" / "T2.nii"]
    touch(*paths)
    assert list(names(paths, tmp_path / "out")) == ["a_anat_T1", "b_anat_T1", "T2"]


def test_compressed_and_plain_of_one_name_keep_their_suffix(tmp_path: Path) -> None:
    touch(tmp_path / "x.nii", tmp_path / "x.nii.gz")
    assert sorted(names([tmp_path], tmp_path / "out")) == ["x.nii", "x.nii.gz"]


def test_the_same_file_given_twice_is_one_case(tmp_path: Path) -> None:
    touch(tmp_path / "x.nii")
    assert len(find_inputs([tmp_path, tmp_path / "x.nii"], tmp_path / "out").cases) == 1


def test_no_image_at_all_ends_with_code_2(tmp_path: Path) -> None:
    for given in ([tmp_path], [tmp_path / "nothing.nii"]):
        with pytest.raises(InputError, match="no image to segment") as caught:
            find_inputs(given, tmp_path / "out")
        assert caught.value.exit_code == 2


def test_one_missing_path_among_others_stays_a_case(tmp_path: Path) -> None:
    touch(tmp_path / "x.nii")
    assert list(names([tmp_path / "x.nii", tmp_path / "gone.nii"], tmp_path / "out")) == ["x", "gone"]


def test_a_datalist_gives_the_cases_of_its_section(tmp_path: Path, save: Save) -> None:
    save(tmp_path / "scan.nii.gz", np.zeros((3, 3, 3), dtype=np.float32))
    entry = {"case_id": "patient_7", "image": "scan.nii.gz"}
    datalist = tmp_path / "datalist.json"
    datalist.write_text(json.dumps({"channels": {"0": "T1w"}, "structures": {"a": 1}, "testing": [entry]}))
    cases = find_inputs([datalist], tmp_path / "out", section="testing").cases
    assert [(case.case_id, case.images) for case in cases] == [("patient_7", (tmp_path / "scan.nii.gz",))]
    with pytest.raises(InputError, match=r"needs --section; it has testing \(1 cases\)"):
        find_inputs([datalist], tmp_path / "out")


def test_an_entry_that_cannot_be_used_fails_alone(tmp_path: Path, save: Save) -> None:
    save(tmp_path / "scan.nii.gz", np.zeros((3, 3, 3), dtype=np.float32))
    entries = [
        {"case_id": "good", "image": "scan.nii.gz"},
        {"case_id": "../../escaped", "image": "scan.nii.gz"},
        {"case_id": "two", "image": ["scan.nii.gz", "scan.nii.gz"]},
    ]
    document = {"channels": {"0": "T1w"}, "structures": {"a": 1}, "testing": entries, "validation": [{"image": 3}]}
    datalist = tmp_path / "datalist.json"
    datalist.write_text(json.dumps(document))
    good, *bad = find_inputs([datalist], tmp_path / "out", section="testing").cases
    assert (good.case_id, good.images) == ("good", (tmp_path / "scan.nii.gz",))
    assert [case.case_id for case in bad] == ["escaped", "two"]
    for case, words in zip(bad, ("cannot be part of a file name", "2 image paths"), strict=True):
        with pytest.raises(ImageError, match=words):
            read_image(case.images, 1)


def test_a_link_to_nothing_is_a_case_that_fails_and_no_skipped_file(tmp_path: Path) -> None:
    touch(tmp_path / "in" / "a.nii")
    for name in ("b.nii.gz", "IM0001", "notes.txt"):
        (tmp_path / "in" / name).symlink_to(tmp_path / "gone" / name)
    found = find_inputs([tmp_path / "in"], tmp_path / "out")
    assert [case.case_id for case in found.cases] == ["IM0001", "a", "b"]
    assert [item.name for item in found.skipped] == ["notes.txt"]


def test_two_cases_of_one_name_are_refused_before_any_is_written(tmp_path: Path) -> None:
    touch(tmp_path / "x.nii")
    datalist = tmp_path / "datalist.json"
    entry = {"case_id": "x", "image": "other.nii"}
    datalist.write_text(json.dumps({"channels": {"0": "T1w"}, "structures": {"a": 1}, "testing": [entry]}))
    with pytest.raises(InputError, match="one file"):
        find_inputs([datalist, tmp_path / "x.nii"], tmp_path / "out", section="testing")


def test_a_monai_dataset_refuses_a_folder_without_images(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no \.nii"):
        image_items(tmp_path)
