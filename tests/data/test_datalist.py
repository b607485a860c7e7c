"""Reading and writing datalists."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from droseg.data import Case, Datalist, read_datalist, write_datalist
from droseg.data.datalist import parse_datalist
from droseg.errors import DatalistError


def document(**changes: Any) -> dict[str, Any]:
    """Return a small valid datalist; a change of None takes a key out."""
    result: dict[str, Any] = {
        "channels": {"0": "T2w"},
        "structures": {"cerebellum": 5, "brain": [1, 5]},
        "training": [
            {
                "case_id": "a",
                "patient_id": "p1",
                "image": "images/a.nii.gz",
                "label": "labels/a.nii.gz",
                "groups": {"anatomy": "typical", "site": 3},
                "fold": 1,
            }
        ],
        "testing": [{"case_id": "b", "image": "images/b.nii.gz"}],
    }
    result.update(changes)
    return {key: value for key, value in result.items() if value is not None}


def save(path: Path, content: dict[str, Any]) -> Path:
    path.write_text(json.dumps(content))
    return path


def test_paths_are_relative_to_the_file(tmp_path: Path) -> None:
    datalist = read_datalist(save(tmp_path / "datalist.json", document()))
    case = datalist.section("training")[0]
    assert case.images == (tmp_path / "images/a.nii.gz",)
    assert case.label == tmp_path / "labels/a.nii.gz"
    assert datalist.channels == ("T2w",)
    assert datalist.structures == {"cerebellum": (5,), "brain": (1, 5)}
    assert case.groups == {"anatomy": "typical", "site": "3"}
    assert datalist.axes == ("anatomy", "site")
    assert case.fold == 1
    assert datalist.section("testing")[0].label is None


def test_data_root_replaces_the_folder_of_the_file(tmp_path: Path) -> None:
    root = tmp_path / "elsewhere"
    root.mkdir()
    datalist = read_datalist(save(tmp_path / "datalist.json", document()), data_root=root)
    assert datalist.section("training")[0].images == (root / "images/a.nii.gz",)


def test_absolute_paths_stay(tmp_path: Path) -> None:
    entry = {"case_id": "a", "image": "/somewhere/a.nii.gz"}
    datalist = read_datalist(save(tmp_path / "d.json", document(training=[entry])), data_root=tmp_path)
    assert datalist.section("training")[0].images == (Path("/somewhere/a.nii.gz"),)


def test_only_image_and_label_become_paths(tmp_path: Path) -> None:
    (tmp_path / "typical").touch()  # MONAI's loader would expand a field of this value
    (tmp_path / "p1").touch()
    case = read_datalist(save(tmp_path / "d.json", document())).section("training")[0]
    assert (case.patient_id, case.groups["anatomy"]) == ("p1", "typical")


def test_patient_is_the_case_by_default(tmp_path: Path) -> None:
    assert read_datalist(save(tmp_path / "d.json", document())).section("testing")[0].patient_id == "b"


@pytest.mark.parametrize(
    "labels", [{"0": "background", "1": "x"}, {"background": 0, "x": 1}, {"background": "0", "x": "1"}]
)
def test_both_orientations_of_decathlon_labels_are_read(tmp_path: Path, labels: dict[str, Any]) -> None:
    content = document(channels=None, structures=None, modality={"0": "MRI"}, labels=labels)
    datalist = read_datalist(save(tmp_path / "dataset.json", content))
    assert datalist.structures == {"x": (1,)}
    assert datalist.channels == ("MRI",)


def test_a_decathlon_dataset_json_is_read_as_it_is(tmp_path: Path) -> None:
    content = {
        "name": "Hippocampus",
        "tensorImageSize": "3D",
        "modality": {"0": "MRI"},
        "labels": {"0": "background", "1": "Anterior", "2": "Posterior"},
        "numTraining": 1,
        "training": [{"image": "./imagesTr/hippocampus_367.nii.gz", "label": "./labelsTr/hippocampus_367.nii.gz"}],
        "test": ["./imagesTs/hippocampus_267.nii.gz"],
    }
    datalist = read_datalist(save(tmp_path / "dataset.json", content))
    assert datalist.section("training")[0].case_id == "hippocampus_367"
    assert datalist.section("training")[0].images == (tmp_path / "imagesTr/hippocampus_367.nii.gz",)
    assert datalist.section("testing")[0].case_id == "hippocampus_267"


def test_one_image_per_channel(tmp_path: Path) -> None:
    content = document(channels={"1": "T1w", "0": "T2w"}, training=[{"case_id": "a", "image": ["t2.nii", "t1.nii"]}])
    datalist = read_datalist(save(tmp_path / "d.json", content))
    assert datalist.channels == ("T2w", "T1w")
    assert datalist.section("training")[0].images == (tmp_path / "t2.nii", tmp_path / "t1.nii")


def test_broken_json_is_named_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "d.json"
    path.write_text('{\n  "channels": {"0": "T2w"},\n  "training": [,]\n}')
    with pytest.raises(DatalistError, match=r"d\.json, line 3"):
        read_datalist(path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DatalistError, match=r"nothing\.json: no such file"):
        read_datalist(tmp_path / "nothing.json")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"channels": None}, "`channels` is missing"),
        ({"channels": {"1": "T2w"}}, "must count from 0"),
        ({"structures": None}, "`structures` is missing"),
        ({"structures": {"x": "one"}}, "structure 'x'"),
        ({"structures": {"x": 1.5}}, "structure 'x'"),
        ({"structures": {"x": [0, 1]}}, "must be > 0"),
        ({"structures": {"background": 0}}, "only the background"),
        ({"structures": {"background": [0, 1, 2]}}, "only the background"),
        ({"structures": {"background": [0, 1], "x": [2, 1]}}, "label value 1 is that of 'x' and of the background"),
        ({"training": {"a": 1}}, "`training` is a dict"),
        ({"training": [], "testing": []}, "no cases"),
        ({"training": None, "testing": None}, "no section"),
    ],
)
def test_an_unusable_file_says_what_is_wrong(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(DatalistError, match=message):
        read_datalist(save(tmp_path / "d.json", document(**changes)))


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"image": ["a", "b"]}, "case_id is missing"),
        ({"case_id": "a"}, "image is missing"),
        ({"case_id": "a/b", "image": "x"}, "slashes"),
        ({"case_id": "a", "image": 3}, "image is 3"),
        ({"case_id": "a", "image": []}, "empty list"),
        ({"case_id": "a", "image": "x", "label": ["x"]}, "label is"),
        ({"case_id": "a", "image": "x", "groups": ["x"]}, "groups is"),
        ({"case_id": "a", "image": "x", "groups": {"anatomy": ["x"]}}, "group 'anatomy'"),
        ({"case_id": "a", "image": "x", "groups": {"structure": "x"}}, "result tables use"),
        ({"case_id": "a", "image": "x", "fold": "one"}, "fold is 'one'"),
        ({"case_id": "a", "image": ["x", "y"]}, "2 image paths, but 1 channel"),
        (17, "is a int"),
    ],
)
def test_an_entry_of_the_wrong_form_is_named(tmp_path: Path, entry: Any, message: str) -> None:
    with pytest.raises(DatalistError, match=message):
        read_datalist(save(tmp_path / "d.json", document(training=[entry])))


def test_every_entry_of_the_wrong_form_is_listed_in_one_run(tmp_path: Path) -> None:
    bad = [{"case_id": f"bad{i}"} for i in range(3)]
    path = save(tmp_path / "d.json", document(training=bad))
    with pytest.raises(DatalistError) as caught:
        read_datalist(path)
    assert all(f"bad{i}" in str(caught.value) for i in range(3))
    datalist, problems = parse_datalist(path)
    assert [problem.case_id for problem in problems] == ["bad0", "bad1", "bad2"]
    assert datalist.section("testing")[0].case_id == "b"


def test_duplicate_case_ids_are_left_to_the_check(tmp_path: Path) -> None:
    entry = {"case_id": "a", "image": "a.nii.gz"}
    assert len(read_datalist(save(tmp_path / "d.json", document(training=[entry, entry]))).section("training")) == 2


def test_a_missing_section_names_those_that_are_there(tmp_path: Path) -> None:
    datalist = read_datalist(save(tmp_path / "d.json", document()))
    with pytest.raises(DatalistError, match=r"no section 'validation'.*training \(1\), testing \(1\)"):
        datalist.section("validation")


def test_writing_and_reading_again_changes_nothing(tmp_path: Path) -> None:
    first = read_datalist(save(tmp_path / "d.json", document()))
    write_datalist(first, tmp_path / "again.json")
    second = read_datalist(tmp_path / "again.json")
    assert (second.channels, second.structures, second.sections) == (first.channels, first.structures, first.sections)
    assert '"images/a.nii.gz"' in (tmp_path / "again.json").read_text()


@pytest.mark.parametrize(
    ("structures", "background"),
    [
        ({"x": 5}, (0,)),
        ({"Clear Label": 0, "x": 5}, (0,)),
        ({"background": [0, 1, 2], "x": 5}, (0, 1, 2)),
        ({"x": 5, "Background": [-1, 3]}, (-1, 0, 3)),
        ({"0": "background", "2": "background", "5": "x"}, (0, 2)),
    ],
)
def test_the_background_may_have_more_values_than_0(tmp_path: Path, structures: Any, background: tuple[int]) -> None:
    first = read_datalist(save(tmp_path / "d.json", document(structures=structures)))
    assert (first.structures, first.background) == ({"x": (5,)}, background)
    write_datalist(first, tmp_path / "d.json")
    assert read_datalist(tmp_path / "d.json") == first


def test_a_list_written_for_a_data_root_holds_no_absolute_path(tmp_path: Path) -> None:
    first = read_datalist(save(tmp_path / "d.json", document()))
    write_datalist(first, tmp_path / "lists" / "frozen.json", data_root=tmp_path)
    assert str(tmp_path) not in (tmp_path / "lists" / "frozen.json").read_text()
    assert read_datalist(tmp_path / "lists" / "frozen.json", data_root=tmp_path).sections == first.sections


def test_paths_outside_the_folder_are_written_absolute(tmp_path: Path) -> None:
    first = read_datalist(save(tmp_path / "d.json", document()))
    write_datalist(first, tmp_path / "lists" / "d.json")
    assert read_datalist(tmp_path / "lists" / "d.json").sections == first.sections


def test_a_list_without_structures_can_be_read_again(tmp_path: Path) -> None:
    case = Case("a", "a", (tmp_path / "a.nii.gz",), None, {})
    path = tmp_path / "datalist.json"
    write_datalist(Datalist(path, ("T2w",), {}, {"testing": (case,)}), path)
    assert read_datalist(path).structures == {}
