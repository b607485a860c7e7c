"""Checking a datalist: every problem in one run."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from monai.transforms import LoadImaged
from numpy.typing import NDArray

from droseg.cli import data as command
from droseg.data import Problem, check_datalist, problem_table, read_datalist
from droseg.errors import DatalistError

SHAPE = (6, 7, 8)


def affine_at(x: float = 0.0) -> NDArray[np.float64]:
    affine = np.diag([2.0, 2.0, 3.0, 1.0])
    affine[0, 3] = x
    return affine


def save(path: Path, array: NDArray[Any], affine: NDArray[np.float64] | None = None) -> None:
    nib.save(nib.Nifti1Image(array, affine_at() if affine is None else affine), path)


class Folder:
    """A folder with a datalist of good cases, which a test then spoils."""

    def __init__(self, root: Path, channels: int = 1) -> None:
        self.root = root
        self.document: dict[str, Any] = {
            "channels": {str(i): f"c{i}" for i in range(channels)},
            "structures": {"x": 1, "y": [1, 5]},
        }

    def add(self, section: str, case_id: str, **changes: Any) -> None:
        rng = np.random.default_rng(len(case_id))
        label = np.zeros(SHAPE, np.uint8)
        label[2:4, 2:4, 2:4] = 1
        label[3, 3, 3] = 5
        count = len(self.document["channels"])
        images = [f"{case_id}_{i}.nii.gz" for i in range(count)]
        for image in images:
            save(self.root / image, rng.normal(size=SHAPE).astype(np.float32))
        save(self.root / f"{case_id}_label.nii.gz", label)
        entry = {"case_id": case_id, "image": images[0] if count == 1 else images, "label": f"{case_id}_label.nii.gz"}
        self.document.setdefault(section, []).append({**entry, **changes})

    def write(self) -> Path:
        path = self.root / "datalist.json"
        path.write_text(json.dumps(self.document))
        return path

    def problems(self) -> list[Problem]:
        return check_datalist(read_datalist(self.write()))

    def errors(self) -> list[str]:
        return [p.message for p in self.problems() if p.severity == "error"]

    def warnings(self) -> list[str]:
        return [p.message for p in self.problems() if p.severity == "warning"]


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    result = Folder(tmp_path)
    for number in range(6):
        result.add("training", f"good{number}", groups={"anatomy": "typical"})
    return result


def test_a_good_list_has_no_problem(folder: Folder) -> None:
    assert folder.problems() == []
    assert problem_table([]) == "0 errors, 0 warnings"


def test_every_bad_file_is_listed_in_one_run(folder: Folder) -> None:
    spoil: dict[str, Callable[[Path, Path], None]] = {
        "missing": lambda image, label: image.unlink(),
        "truncated": lambda image, label: image.write_bytes(image.read_bytes()[:-200]),
        "empty": lambda image, label: image.write_bytes(b""),
        "text": lambda image, label: image.write_text("not an image"),
        "nan": lambda image, label: save(image, np.full(SHAPE, np.nan, np.float32)),
        "no_label": lambda image, label: label.unlink(),
        "shape": lambda image, label: save(label, np.ones((6, 7, 9), np.uint8)),
        "flat": lambda image, label: save(image, np.ones((6, 7), np.float32)),
    }
    for name, damage in spoil.items():
        folder.add("training", name)
        damage(folder.root / f"{name}_0.nii.gz", folder.root / f"{name}_label.nii.gz")
    found = {p.case_id: p.message for p in folder.problems() if p.severity == "error"}
    assert set(found) == set(spoil)
    assert "no such file" in found["missing"]
    assert "truncated" in found["truncated"]
    assert "0 bytes" in found["empty"]
    assert "not an image" in found["text"]
    assert "336 of 336 voxels are NaN" in found["nan"]
    assert "no_label_label.nii.gz: no such file" in found["no_label"]
    assert "(6, 7, 9)" in found["shape"]
    assert "(6, 7, 8)" in found["shape"]
    assert "(6, 7)" in found["flat"]


@pytest.mark.parametrize("size", [30, 100, 200, 300])
def test_a_file_truncated_anywhere_is_found(folder: Folder, size: int) -> None:
    path = folder.root / "good0_0.nii.gz"
    path.write_bytes(path.read_bytes()[:size])
    assert len(folder.errors()) == 1


@pytest.mark.parametrize(("shift_mm", "errors"), [(0.0, 0), (0.05, 0), (0.2, 1), (4.0, 1)])
def test_a_label_may_lie_off_by_rounding_but_not_by_a_part_of_a_voxel(
    folder: Folder, shift_mm: float, errors: int
) -> None:
    save(folder.root / "good0_label.nii.gz", np.ones(SHAPE, np.uint8), affine_at(shift_mm))
    assert len(folder.errors()) == errors


def test_a_rotated_label_is_found_though_its_origin_agrees(folder: Folder) -> None:
    affine = affine_at()
    affine[:3, :3] = affine[:3, :3][:, [1, 0, 2]]
    save(folder.root / "good0_label.nii.gz", np.ones(SHAPE, np.uint8), affine)
    assert "affine differs" in folder.errors()[0]


def test_channels_on_different_grids_are_found(tmp_path: Path) -> None:
    folder = Folder(tmp_path, channels=2)
    for case_id in ("a", "b", "c"):
        folder.add("training", case_id)
    save(tmp_path / "a_1.nii.gz", np.ones((6, 7, 9), np.float32) * np.arange(9, dtype=np.float32))
    save(tmp_path / "b_1.nii.gz", np.random.default_rng(0).normal(size=SHAPE), affine_at(5.0))
    first, second = folder.errors()
    assert "channel" in first
    assert "(6, 7, 9)" in first
    assert "up to 5 mm" in second


@pytest.mark.parametrize("shift_mm", [0.0, 1e-9, 1e-6, 0.05, 5.0])
def test_channels_pass_exactly_where_the_reader_of_a_training_stacks_them(tmp_path: Path, shift_mm: float) -> None:
    folder = Folder(tmp_path, channels=2)
    folder.add("training", "a")
    save(tmp_path / "a_1.nii.gz", np.random.default_rng(0).normal(size=SHAPE), affine_at(shift_mm))
    try:
        LoadImaged(keys="image")({"image": [str(tmp_path / f"a_{i}.nii.gz") for i in range(2)]})
    except RuntimeError:
        (error,) = folder.errors()
        assert "a_1.nii.gz: its affine differs from that of a_0.nii.gz" in error
        assert ("copy that affine into its header" in error) == (shift_mm < 1)
    else:
        assert folder.errors() == []


def test_a_file_with_another_number_of_channels_is_found(folder: Folder) -> None:
    save(folder.root / "good0_0.nii.gz", np.random.default_rng(0).normal(size=(*SHAPE, 3)))
    assert "3 channel(s) found, 1 declared" in folder.errors()[0]


def test_one_file_may_hold_all_channels(tmp_path: Path) -> None:
    folder = Folder(tmp_path, channels=2)
    folder.add("training", "a", image="a_0.nii.gz")
    save(tmp_path / "a_0.nii.gz", np.random.default_rng(0).normal(size=(*SHAPE, 2)))
    assert folder.errors() == []


def test_undeclared_fractional_and_negative_label_values_are_named_with_their_voxels(folder: Folder) -> None:
    label = np.zeros(SHAPE, np.float32)
    label[0, 0, :3] = 7
    label[0, 1, :2] = -1
    label[1] = 1
    save(folder.root / "good0_label.nii.gz", label)
    save(folder.root / "good1_label.nii.gz", label + 0.5 * (label == 1))
    undeclared = folder.errors()
    assert "-1 (2 voxels), 7 (3 voxels)" in undeclared[0]
    assert "declared are [1, 5]" in undeclared[0]
    assert "56 voxels have values that are not integers (1.5)" in undeclared[1]
    assert "`droseg data regrid` keeps the values of labels" in undeclared[1]


def test_the_remedy_for_undeclared_values_can_be_followed_as_it_is_printed(folder: Folder) -> None:
    label = np.ones(SHAPE, np.int16)
    label[0, 0, :2] = (3, -1)
    save(folder.root / "good0_label.nii.gz", label)
    (error,) = folder.errors()
    assert '"background": [-1, 0, 3]' in error
    folder.document["structures"]["background"] = [-1, 0, 3]
    assert folder.problems() == []
    save(folder.root / "good0_label.nii.gz", np.full(SHAPE, 3, np.uint8))
    assert "empty, there is no structure in it" in folder.warnings()[0]


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.float32, np.float64])
def test_label_values_are_found_in_any_data_type(folder: Folder, dtype: Any) -> None:
    label = np.ones(SHAPE, dtype)
    label[0, 0, 0] = 3
    save(folder.root / "good0_label.nii.gz", label)
    assert "3 (1 voxels)" in folder.errors()[0]


def test_an_empty_label_and_a_constant_image_are_warnings(folder: Folder) -> None:
    save(folder.root / "good0_label.nii.gz", np.zeros(SHAPE, np.uint8))
    save(folder.root / "good1_0.nii.gz", np.ones(SHAPE, np.float32))
    assert folder.errors() == []
    assert len([text for text in folder.warnings() if "empty" in text or "every voxel is 1" in text]) == 2


def test_a_header_without_orientation_is_a_warning(folder: Folder) -> None:
    image = nib.Nifti1Image(np.random.default_rng(0).normal(size=SHAPE).astype(np.float32), None)
    image.header.set_zooms((2, 2, 3))
    nib.save(image, folder.root / "good0_0.nii.gz")
    assert any("sform and qform code 0" in text for text in folder.warnings())


def test_training_needs_labels_and_testing_does_not(folder: Folder) -> None:
    folder.add("training", "unlabelled", label=None)
    folder.add("testing", "new", label=None)
    assert [p.case_id for p in folder.problems() if p.severity == "error"] == ["unlabelled"]


def test_duplicates_and_leaks_between_sections_are_errors(folder: Folder) -> None:
    folder.add("training", "good0")
    folder.add("training", "a", patient_id="p")
    folder.add("testing", "b", patient_id="p")
    folder.add("testing", "c", image="a_0.nii.gz")
    texts = "\n".join(folder.errors())
    assert "occurs 2 times" in texts
    assert "patient 'p' is in more than one section" in texts
    assert "a_0.nii.gz is used by the cases a, c" in texts


def test_a_patient_in_two_folds_is_an_error(folder: Folder) -> None:
    folder.add("training", "a", patient_id="p", fold=0)
    folder.add("training", "b", patient_id="p", fold=1)
    assert any("folds [0, 1]" in text for text in folder.errors())


def test_missing_groups_and_small_groups_are_warnings(folder: Folder) -> None:
    folder.add("training", "rare", groups={"anatomy": "rare"})
    folder.add("training", "plain")
    texts = folder.warnings()
    assert folder.errors() == []
    assert any("1 of 8 cases have no group 'anatomy' (plain)" in text for text in texts)
    assert any("anatomy=rare has fewer than 5 patients: 1 in training" in text for text in texts)
    assert not any("typical" in text for text in texts)


def test_many_scans_of_one_patient_are_still_a_small_group(tmp_path: Path) -> None:
    folder = Folder(tmp_path)
    for number in range(6):
        folder.add("training", f"scan{number}", patient_id="one", groups={"site": "a"})
    assert any("1 in training" in text for text in folder.warnings())


def test_the_table_aligns_its_columns_and_puts_errors_first() -> None:
    table = problem_table([Problem("warning", "training", "", "w"), Problem("error", "testing", "case_17", "e")])
    head, first, second, count = table.splitlines()
    assert first.startswith("error")
    assert second.startswith("warning")
    assert head.index("problem") == first.rindex("e") == second.rindex("w")
    assert count == "1 error, 1 warning"


def check_command(*arguments: str) -> int:
    import argparse

    parser = argparse.ArgumentParser()
    command.register(parser.add_subparsers())
    args = parser.parse_args(["data", "check", *arguments])
    return int(args.run(args))


def test_the_command_prints_a_table_and_fails_on_errors_only(
    folder: Folder, capsys: pytest.CaptureFixture[str]
) -> None:
    assert check_command(str(folder.write())) == 0
    assert "6 cases read in training" in capsys.readouterr().out
    (folder.root / "good3_0.nii.gz").unlink()
    folder.document["training"].append({"case_id": "half"})
    assert check_command(str(folder.write())) == 1
    out = capsys.readouterr().out
    assert "good3_0.nii.gz: no such file" in out
    assert "half" in out  # an entry of the wrong form keeps no other from being read
    assert "2 errors, 0 warnings" in out


def test_only_the_section_that_is_asked_for_is_read(folder: Folder) -> None:
    folder.add("testing", "gone")
    (folder.root / "gone_0.nii.gz").unlink()
    path = str(folder.write())
    assert check_command(path, "--section", "training") == 0
    assert check_command(path, "--section", "testing") == 1
    with pytest.raises(DatalistError, match="no section 'validation'"):
        check_command(path, "--section", "validation")


def test_data_root_moves_the_folder(folder: Folder, tmp_path_factory: pytest.TempPathFactory) -> None:
    elsewhere = tmp_path_factory.mktemp("lists") / "datalist.json"
    elsewhere.write_text(folder.write().read_text())
    assert check_command(str(elsewhere)) == 1
    assert check_command(str(elsewhere), "--data-root", str(folder.root)) == 0


@pytest.mark.real_data
def test_real_mri_has_no_error(real_data: Path, tmp_path: Path) -> None:
    entries = []
    for name in ("hippocampus_003", "hippocampus_006"):
        entries.append({"case_id": name, "image": f"images/{name}.nii.gz", "label": f"labels/{name}.nii.gz"})
    document = {"channels": {"0": "T1w"}, "structures": {"anterior": 1, "posterior": 2}, "training": entries}
    (tmp_path / "d.json").write_text(json.dumps(document))
    problems = check_datalist(read_datalist(tmp_path / "d.json", real_data / "hippocampus"))
    assert [p for p in problems if p.severity == "error"] == []


@pytest.mark.real_data
def test_a_dicom_series_folder_is_read(real_data: Path, tmp_path: Path) -> None:
    pytest.importorskip("itk")
    document = {"channels": {"0": "T1w"}, "testing": [{"case_id": "t1", "image": str(real_data / "dicom/t1_post")}]}
    (tmp_path / "d.json").write_text(json.dumps(document))
    assert check_datalist(read_datalist(tmp_path / "d.json")) == []
