"""DICOM SEG objects become label maps on the grid of their series, with one value per name in all cases."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pandas as pd
import pytest

from droseg.cli import main
from droseg.data.convert.segments import structure_values
from droseg.data.dicom_stack import folder_series
from droseg.inference.dicom_seg import save_dicom_seg
from droseg.inference.predictor import Segmentation

pydicom = pytest.importorskip("pydicom", reason="skipped: pydicom is not installed")
hd = pytest.importorskip("highdicom", reason="skipped: highdicom is not installed")

SHAPE = (10, 9, 8)  # columns, rows, slices
WriteSeries = Callable[..., list[Any]]


@pytest.fixture
def write_series(write_series: WriteSeries) -> WriteSeries:
    """Return a function that writes an oblique series with the tags that a SEG repeats, and gives its data sets."""

    def complete(_: int, dataset: Any) -> None:
        dataset.SliceThickness = 2.5
        for name in ("PatientBirthDate", "PatientSex", "StudyDate", "StudyTime", "StudyID", "AccessionNumber"):
            dataset.setdefault(name, "")
        dataset.ReferringPhysicianName = dataset.PositionReferenceIndicator = ""

    def write(folder: Path, uid: str = "1.2.3.4", **tags: Any) -> list[Any]:
        return write_series(folder, SHAPE[2], edit=complete, uid=uid, **tags)

    return write


def planted() -> np.ndarray:
    """Return a label map without any symmetry; slices 0, 3, 5 and 7 are empty, slice 6 has one voxel."""
    label = np.zeros(SHAPE, np.uint8)
    label[1:5, 2:8, 1:3] = 1
    label[5:9, 1:4, 2] = 2
    label[3:5, 0, 4] = 2
    label[2, 7, 6] = 3
    return label


def write_seg(
    path: Path,
    slices: list[Any],
    label: np.ndarray,
    names: Mapping[int, str],
    masks: Mapping[int, np.ndarray] | None = None,
    kind: str = "BINARY",
) -> Path:
    """Write a SEG of the values of `label`, (columns, rows, slices), or of `masks`, in the order of `slices`."""
    masks = masks or {number: label == number for number in names}
    pixels = np.stack([masks[number].transpose(2, 1, 0) for number in names], axis=-1).astype(np.uint8)
    if kind != "BINARY":
        pixels = label.transpose(2, 1, 0)
    descriptions = [
        hd.seg.SegmentDescription(
            segment_number=place,
            segment_label=name,
            segmented_property_category=pydicom.sr.codedict.codes.SCT.AnatomicalStructure,
            segmented_property_type=pydicom.sr.codedict.codes.SCT.Brain,
            algorithm_type="MANUAL",
        )
        for place, name in enumerate(names.values(), start=1)
    ]
    seg = hd.seg.Segmentation(
        source_images=slices,
        pixel_array=pixels,
        segmentation_type=kind,
        segment_descriptions=descriptions,
        series_instance_uid=hd.UID(),
        series_number=99,
        sop_instance_uid=hd.UID(),
        instance_number=1,
        manufacturer="x",
        manufacturer_model_name="x",
        software_versions="1",
        device_serial_number="0",
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    seg.save_as(path)
    return path


def convert(*arguments: object) -> int:
    return main(["data", "convert", *map(str, arguments)])


def labels_of(out: Path, name: str = "sub-001/ses-1/series-003") -> np.ndarray:
    image, label = nib.load(out / f"{name}.nii.gz"), nib.load(out / f"{name}_label.nii.gz")
    np.testing.assert_allclose(label.affine, image.affine)
    assert label.get_data_dtype() == np.uint8
    return np.asarray(label.dataobj)


THREE = {1: "brain", 2: "ventricles", 3: "lesion"}


def test_a_seg_that_droseg_writes_gives_the_same_voxels_back(
    tmp_path: Path, write_series: WriteSeries, capsys: pytest.CaptureFixture[str]
) -> None:
    write_series(tmp_path / "tree" / "mr")
    (series,) = folder_series(tmp_path / "tree" / "mr")
    values = np.array([0, 4, 9, 2], np.uint8)  # of the label map; segments are numbered 1 to 3
    segmentation = Segmentation(values[planted()], np.array(series.affine), (), {})
    structures = {"brain": 4, "ventricles": 9, "lesion": 2}
    save_dicom_seg(tmp_path / "tree" / "seg.dcm", segmentation, structures, series.files)
    assert convert(tmp_path / "tree", "--out", tmp_path / "out") == 0
    np.testing.assert_array_equal(labels_of(tmp_path / "out"), planted())
    structures = {"brain": 1, "ventricles": 2, "lesion": 3}
    assert json.loads((tmp_path / "out" / "structures.json").read_text()) == {"structures": structures}
    printed = capsys.readouterr().out
    assert "--structure brain=1 --structure ventricles=2 --structure lesion=3" in printed
    (row,) = pd.read_csv(tmp_path / "out" / "scans.tsv", sep="\t").to_dict("records")
    assert row["label_file"] == "sub-001/ses-1/series-003_label.nii.gz"


@pytest.mark.parametrize("order", ["up", "down", "mixed"])
@pytest.mark.parametrize("kind", ["BINARY", "LABELMAP"])
def test_the_order_of_frames_and_slices_without_a_frame_do_not_matter(
    tmp_path: Path, write_series: WriteSeries, order: str, kind: str
) -> None:
    slices = write_series(tmp_path / "tree" / "mr")
    turned = {"up": range(8), "down": range(7, -1, -1), "mixed": [3, 0, 7, 5, 1, 6, 2, 4]}[order]
    path = write_seg(
        tmp_path / "tree" / "seg", [slices[i] for i in turned], planted()[:, :, list(turned)], THREE, kind=kind
    )
    if kind == "BINARY":  # only the slices that are not empty: 2 of 1, 2 of 2, 1 of 3
        assert pydicom.dcmread(path).NumberOfFrames == 5
    assert convert(tmp_path / "tree", "--out", tmp_path / "out") == 0
    np.testing.assert_array_equal(labels_of(tmp_path / "out"), planted())


def test_every_second_slice_and_turned_planes_lie_where_their_geometry_says(
    tmp_path: Path, write_series: WriteSeries
) -> None:
    slices = write_series(tmp_path / "tree" / "mr")
    label = np.zeros(SHAPE, np.uint8)
    label[1:4, 2:8, 2], label[6:9, 0:3, 4] = 1, 1
    path = write_seg(tmp_path / "tree" / "seg", slices, label, {1: "brain"})
    dataset = pydicom.dcmread(path)
    # Each plane read from its last row on: the origin moves there, and the columns run the other way.
    (shared,), frames = dataset.SharedFunctionalGroupsSequence, dataset.PerFrameFunctionalGroupsSequence
    orientation = shared.PlaneOrientationSequence[0].ImageOrientationPatient
    column = np.array(orientation[3:], dtype=float)
    shared.PlaneOrientationSequence[0].ImageOrientationPatient = [*orientation[:3], *(-column).tolist()]
    assert len(frames) == 2
    for frame in frames:
        start = np.array(frame.PlanePositionSequence[0].ImagePositionPatient, dtype=float)
        frame.PlanePositionSequence[0].ImagePositionPatient = (start + 8 * 1.5 * column).round(9).tolist()
    pixels = dataset.pixel_array[:, ::-1]
    dataset.PixelData = pydicom.pixels.pack_bits(pixels.ravel())
    dataset.save_as(path)
    assert convert(tmp_path / "tree", "--out", tmp_path / "out") == 0
    np.testing.assert_array_equal(labels_of(tmp_path / "out"), label)


def overlapping() -> dict[int, np.ndarray]:
    masks = {number: planted() == number for number in THREE}
    masks[2] = masks[2].copy()
    masks[2][1:3, 2:4, 1] = True  # 4 voxels of 1
    return masks


def test_overlapping_segments_are_refused_by_name_or_ordered(
    tmp_path: Path, write_series: WriteSeries, capsys: pytest.CaptureFixture[str]
) -> None:
    slices = write_series(tmp_path / "tree" / "mr")
    write_seg(tmp_path / "tree" / "seg", slices, planted(), THREE, overlapping())
    assert convert(tmp_path / "tree", "--out", tmp_path / "out") == 1
    printed = capsys.readouterr()
    assert "'brain' and 'ventricles' in 4 voxels" in printed.err
    assert "but no label map" in printed.out
    assert not list((tmp_path / "out").rglob("*_label.nii.gz"))
    assert convert(tmp_path / "tree", "--out", tmp_path / "out", "--seg-order", "brain,lesion") == 1
    assert convert(tmp_path / "tree", "--out", tmp_path / "out", "--seg-order", "ventricles,brain") == 0
    expected = planted()
    expected[1:3, 2:4, 1] = 2
    np.testing.assert_array_equal(labels_of(tmp_path / "out"), expected)
    assert convert(tmp_path / "tree", "--out", tmp_path / "two", "--seg-order", "brain,ventricles") == 0
    np.testing.assert_array_equal(labels_of(tmp_path / "two"), planted())


def test_a_name_has_one_value_in_all_cases_also_where_segments_are_missing(
    tmp_path: Path, write_series: WriteSeries, capsys: pytest.CaptureFixture[str]
) -> None:
    for number, names in enumerate([{2: "ventricles", 3: "lesion"}, THREE, {3: "lesion"}], start=1):
        tags = {"PatientID": str(number), "StudyInstanceUID": f"8.{number}"}
        slices = write_series(tmp_path / "tree" / f"{number}", f"1.{number}", **tags)
        write_seg(tmp_path / "tree" / f"{number}" / "seg", slices, planted(), names)
    assert convert(tmp_path / "tree", "--out", tmp_path / "out") == 0
    printed = capsys.readouterr().err
    assert "segment 'lesion' has the number 1 in 1 case and 2 in 1 case; its label value is 3 in all cases" in printed
    for number, left_out in ((1, [1]), (2, []), (3, [1, 2])):
        expected = np.where(np.isin(planted(), left_out), 0, planted())
        np.testing.assert_array_equal(labels_of(tmp_path / "out", f"sub-00{number}/ses-1/series-003"), expected)
    # A later case brings a name whose number is taken, and what was written keeps its values.
    slices = write_series(tmp_path / "late" / "mr", "1.9", PatientID="9", StudyInstanceUID="8.9")
    write_seg(tmp_path / "late" / "seg", slices, planted(), {3: "tumor"})
    assert convert(tmp_path / "late", "--out", tmp_path / "out") == 0
    assert set(np.unique(labels_of(tmp_path / "out", "sub-004/ses-1/series-003"))) == {0, 4}
    structures = json.loads((tmp_path / "out" / "structures.json").read_text())["structures"]
    assert structures == {"brain": 1, "ventricles": 2, "lesion": 3, "tumor": 4}
    assert convert(tmp_path / "tree", "--out", tmp_path / "out") == 0
    assert "0 series written, 3 there already" in capsys.readouterr().out


def test_values_do_not_depend_on_the_order_of_the_cases_and_alike_names_are_said() -> None:
    cases = [{"b": 1, "c": 2}, {"a": 1, "b": 2, "c": 3}, {"d": 1}, {"D ": 2}]
    values, conflicts = structure_values(cases)
    assert values == {"a": 1, "b": 2, "c": 3, "d": 4, "D ": 5}
    assert structure_values(cases[::-1]) == (values, conflicts)
    assert any("'d' and 'D ' are spelled alike" in line for line in conflicts)
    assert structure_values([{"x": 7}, {"y": 2}])[0] == {"x": 7, "y": 2}


def off_grid(path: Path) -> None:
    dataset = pydicom.dcmread(path)
    for frame in dataset.PerFrameFunctionalGroupsSequence:
        position = frame.PlanePositionSequence[0]
        position.ImagePositionPatient = [float(value) + 0.5 for value in position.ImagePositionPatient]
    dataset.save_as(path)


def beside(path: Path) -> None:
    dataset = pydicom.dcmread(path)
    row = np.array(dataset.SharedFunctionalGroupsSequence[0].PlaneOrientationSequence[0].ImageOrientationPatient[:3])
    for frame in dataset.PerFrameFunctionalGroupsSequence:
        position = frame.PlanePositionSequence[0]
        moved = np.array(position.ImagePositionPatient, dtype=float) + 3 * 1.2 * row.astype(float)
        position.ImagePositionPatient = moved.round(9).tolist()
    dataset.save_as(path)


def other_series(path: Path) -> None:
    dataset = pydicom.dcmread(path)
    (referenced,) = dataset.ReferencedSeriesSequence
    referenced.SeriesInstanceUID = "7.7"
    del referenced.ReferencedInstanceSequence
    for frame in dataset.PerFrameFunctionalGroupsSequence:
        del frame.DerivationImageSequence
    dataset.save_as(path)


def fractional(path: Path) -> None:
    dataset = pydicom.dcmread(path)
    dataset.SegmentationType = "FRACTIONAL"
    dataset.save_as(path)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (off_grid, "not on the grid of its series"),
        (beside, "of its voxels lie outside of the series"),
        (other_series, "the series that it refers to is not among those"),
        (fractional, "of type FRACTIONAL"),
        (cut, "damaged SEG object"),
    ],
)
def test_a_seg_that_does_not_fit_is_one_line_and_its_series_is_converted(
    tmp_path: Path,
    write_series: WriteSeries,
    capsys: pytest.CaptureFixture[str],
    edit: Callable[[Path], None],
    message: str,
) -> None:
    slices = write_series(tmp_path / "tree" / "mr")
    edit(write_seg(tmp_path / "tree" / "seg", slices, planted(), THREE))
    assert convert(tmp_path / "tree", "--out", tmp_path / "out") == 1
    errors = [line for line in capsys.readouterr().err.splitlines() if "error:" in line]
    assert len(errors) == 1
    assert message in errors[0]
    assert (tmp_path / "out" / "sub-001" / "ses-1" / "series-003.nii.gz").is_file()
    assert not list((tmp_path / "out").rglob("*_label.nii.gz"))


def test_objects_of_one_structure_each_are_joined_and_two_of_the_same_are_refused(
    tmp_path: Path, write_series: WriteSeries, capsys: pytest.CaptureFixture[str]
) -> None:
    slices = write_series(tmp_path / "tree" / "mr")
    for number, name in THREE.items():
        write_seg(tmp_path / "tree" / name, slices, planted(), {number: name})
    assert convert(tmp_path / "tree", "--out", tmp_path / "out") == 0
    structures = json.loads((tmp_path / "out" / "structures.json").read_text())["structures"]
    expected = np.zeros_like(planted())
    for number, name in THREE.items():
        expected[planted() == number] = structures[name]
    assert len(set(structures.values())) == 3
    np.testing.assert_array_equal(labels_of(tmp_path / "out"), expected)
    write_seg(tmp_path / "tree" / "second", slices, planted(), {1: "brain"})
    capsys.readouterr()
    assert convert(tmp_path / "tree", "--out", tmp_path / "two") == 1
    assert "'brain' is also a segment of" in capsys.readouterr().err


def test_a_name_that_tells_the_patient_or_is_missing_is_replaced_by_its_number(
    tmp_path: Path, write_series: WriteSeries, capsys: pytest.CaptureFixture[str]
) -> None:
    slices = write_series(tmp_path / "tree" / "mr")
    write_seg(tmp_path / "tree" / "seg", slices, planted(), {1: "brain", 2: "lesion of Jane"})
    assert convert(tmp_path / "tree", "--out", tmp_path / "out") == 0
    assert "it is called 'segment_2'" in capsys.readouterr().err
    assert "Jane" not in (tmp_path / "out" / "structures.json").read_text()


def test_an_order_for_some_cases_leaves_the_finished_maps_of_others_as_they_are(
    tmp_path: Path, write_series: WriteSeries, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, uid, masks in (("a", "1.2.3.4", None), ("b", "1.2.3.5", overlapping())):
        slices = write_series(tmp_path / "tree" / name, uid, PatientID=name)
        write_seg(tmp_path / "tree" / name / "seg", slices, planted(), THREE, masks)
    assert convert(tmp_path / "tree", "--out", tmp_path / "out") == 1
    (tmp_path / "out" / "structures.json").unlink()
    assert convert(tmp_path / "tree", "--out", tmp_path / "out", "--seg-order", "ventricles,brain") == 0
    assert "1 problem" not in capsys.readouterr().out.splitlines()[-1]
    assert len(list((tmp_path / "out").rglob("*_label.nii.gz"))) == 2
    assert (tmp_path / "out" / "structures.json").is_file()
