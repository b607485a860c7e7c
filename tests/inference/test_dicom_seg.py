"""DICOM SEG objects, read back by highdicom and pydicom: where they lie, what they refer to, whom they name."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from droseg.cli import main
from droseg.inference import Segmentation, find_inputs, predict_cases, read_image
from droseg.inference.dicom_seg import save_dicom_seg

pydicom = pytest.importorskip("pydicom", reason="skipped: pydicom is not installed")
hd = pytest.importorskip("highdicom", reason="skipped: highdicom is not installed")

MakeBundle = Callable[..., Path]
Save = Callable[..., Path]
WriteSeries = Callable[..., list[Any]]

SHAPE = (10, 9, 6)  # columns, rows, slices of `write_series`
SPACING_MM = [1.2, 2.5, 1.5]  # its spacing along right, front and up: nothing is interpolated
TELLING = {
    "PatientAddress": "Main Street 1",
    "PatientTelephoneNumbers": "555-0100",
    "PatientComments": "allergic",
    "PatientAge": "055Y",
    "PatientWeight": 70.5,
    "OtherPatientIDs": "X-1",
    "EthnicGroup": "none",
    "Occupation": "baker",
    "AdditionalPatientHistory": "surgery",
    "AdmittingDiagnosesDescription": "headache",
    "InstitutionName": "Hospital",
    "InstitutionAddress": "Hill 2",
    "OperatorsName": "Poe^Handler",
    "PerformingPhysicianName": "Poe^Performer",
    "NameOfPhysiciansReadingStudy": "Poe^Read",
    "StudyDescription": "MR of Jane Doe",
    "RequestedProcedureDescription": "MR of Jane Doe",
    "DeviceSerialNumber": "SN-99",
}
"""Of type 3 in DICOM PS3.3, or no part of a SEG at all: nothing needs them there."""


def planted() -> np.ndarray:
    """Return a label map (columns, rows, slices) without any symmetry; its first and last slice are empty."""
    label = np.zeros(SHAPE, np.uint8)
    label[1:5, 2:8, 1:4] = 3
    label[5:9, 1:4, 2:5] = 7
    label[2, 7, 4] = 7
    return label


def rescaled(index: int, dataset: Any) -> None:
    """Give a slice the intensities of the planted labels (0, 100, 200), stored with a slope of its own."""
    levels = np.select([planted() == 3, planted() == 7], [100, 200], 0)[:, :, index].T
    slope, intercept = (0.5, 0.25, 2.0)[index % 3], -50
    dataset.RescaleSlope, dataset.RescaleIntercept = slope, intercept
    dataset.PixelData = ((levels - intercept) / slope).astype("<i2").tobytes()


def image() -> np.ndarray:
    return np.select([planted() == 3, planted() == 7], [100.0, 200.0], 0.0).astype(np.float32)


def position(slices: list[Any], column: int, row: int, index: int) -> np.ndarray:
    """Return where a pixel lies, mm in LPS: DICOM PS3.3 equation C.7.6.2.1-1."""
    dataset = slices[index]
    along_row, along_column = np.array(dataset.ImageOrientationPatient, dtype=float).reshape(2, 3)
    between_rows, between_columns = map(float, dataset.PixelSpacing)
    start = np.array(dataset.ImagePositionPatient, dtype=float)
    return np.asarray(start + column * between_columns * along_row + row * between_rows * along_column)


def values_at_their_places(volume: Any, slices: list[Any]) -> np.ndarray:
    """Return a SEG's values at the pixels of the source slices, (columns, rows, slices); 0 outside of it."""
    to_index = np.linalg.inv(volume.affine)
    found = np.zeros(SHAPE, int)
    for place in np.ndindex(SHAPE):
        index = (to_index @ [*position(slices, *place), 1.0])[:3]
        nearest = np.rint(index).astype(int)
        np.testing.assert_allclose(index, nearest, atol=0.01)
        if all(0 <= at < size for at, size in zip(nearest, volume.shape, strict=True)):
            found[place] = volume.array[tuple(nearest)]
    return found


@pytest.fixture
def bundle(make_bundle: MakeBundle) -> Path:
    return make_bundle(image=image(), spacing_mm=SPACING_MM)


@pytest.fixture
def predict(bundle: Path, tmp_path: Path) -> Callable[[Path], Any]:
    """Return a function that segments a DICOM folder, and reads the SEG that is there then."""

    def segment(folder: Path, model: Path = bundle) -> Any:
        cases = find_inputs([folder], tmp_path / "out").cases
        (result,) = predict_cases(cases, model, tmp_path / "out", dicom_seg=True)
        assert result.status == "ok", result.error
        assert f"{result.case_id}_seg.dcm" in result.files
        return hd.seg.segread(tmp_path / "out" / f"{result.case_id}_seg.dcm")

    return segment


NAMES = ["z", "b.dcm", "IM_10", "IM_9", "a.7", "0"]


def test_each_voxel_lies_where_the_source_slices_have_it(
    predict: Callable[[Path], Any], tmp_path: Path, write_series: WriteSeries
) -> None:
    slices = write_series(tmp_path / "scan", names=NAMES, edit=rescaled)
    assert "PatientBirthDate" not in slices[0]
    seg = predict(tmp_path / "scan")
    assert [str(item.SegmentLabel) for item in seg.SegmentSequence] == ["anterior", "posterior"]
    found = values_at_their_places(seg.get_volume(combine_segments=True), slices)
    np.testing.assert_array_equal(np.array([0, 3, 7])[found], planted())
    for number, value in ((1, 3), (2, 7)):
        alone = seg.get_volume(segment_numbers=[number], combine_segments=True)
        np.testing.assert_array_equal(values_at_their_places(alone, slices) == number, planted() == value)


def test_regions_inside_each_other_are_segments_that_overlap(tmp_path: Path, write_series: WriteSeries) -> None:
    slices = write_series(tmp_path / "scan", names=NAMES, edit=rescaled)
    affine = np.asarray(read_image([tmp_path / "scan"], 1).affine)
    structures = {"inner": 7, "whole": (3, 7)}
    sources = sorted((tmp_path / "scan").iterdir())
    save_dicom_seg(tmp_path / "seg.dcm", Segmentation(planted(), affine, (), {}), structures, sources)
    seg = hd.seg.segread(tmp_path / "seg.dcm")
    assert [str(item.SegmentLabel) for item in seg.SegmentSequence] == ["inner", "whole"]
    for number, values in ((1, [7]), (2, [3, 7])):
        alone = seg.get_volume(segment_numbers=[number], combine_segments=True)
        np.testing.assert_array_equal(values_at_their_places(alone, slices) == number, np.isin(planted(), values))
    assert len(pydicom.dcmread(tmp_path / "seg.dcm").PerFrameFunctionalGroupsSequence) == 3 + 4  # slices of each


def test_geometry_and_references_are_those_of_the_source_series(
    predict: Callable[[Path], Any], tmp_path: Path, write_series: WriteSeries
) -> None:
    slices = write_series(tmp_path / "scan", names=NAMES, edit=rescaled)
    predict(tmp_path / "scan")
    seg = pydicom.dcmread(tmp_path / "out" / "scan_seg.dcm")  # without highdicom
    for tag in ("StudyInstanceUID", "FrameOfReferenceUID", "Rows", "Columns"):
        assert seg[tag].value == slices[0][tag].value
    assert seg.SeriesInstanceUID != slices[0].SeriesInstanceUID
    assert seg.SOPInstanceUID not in {item.SOPInstanceUID for item in slices}
    (series,) = seg.ReferencedSeriesSequence
    assert series.SeriesInstanceUID == slices[0].SeriesInstanceUID
    referred = {item.ReferencedSOPInstanceUID for item in series.ReferencedInstanceSequence}
    assert referred == {item.SOPInstanceUID for item in slices}
    shared = seg.SharedFunctionalGroupsSequence[0]
    assert shared.PlaneOrientationSequence[0].ImageOrientationPatient == slices[0].ImageOrientationPatient
    assert shared.PixelMeasuresSequence[0].PixelSpacing == slices[0].PixelSpacing
    assert float(shared.PixelMeasuresSequence[0].SpacingBetweenSlices) == pytest.approx(2.5)
    shown = set()
    for frame, group in zip(seg.pixel_array, seg.PerFrameFunctionalGroupsSequence, strict=True):
        (source,) = group.DerivationImageSequence[0].SourceImageSequence
        index = [item.SOPInstanceUID for item in slices].index(source.ReferencedSOPInstanceUID)
        place = np.array(group.PlanePositionSequence[0].ImagePositionPatient, dtype=float)
        np.testing.assert_allclose(place, position(slices, 0, 0, index), atol=1e-4)
        number = group.SegmentIdentificationSequence[0].ReferencedSegmentNumber
        np.testing.assert_array_equal(frame.T == 1, planted()[:, :, index] == (3, 7)[number - 1])
        shown.add((number, index))
    assert shown == {(1, 1), (1, 2), (1, 3), (2, 2), (2, 3), (2, 4)}  # frames without a voxel are left out


def test_frames_of_an_enhanced_file_are_referred_to_by_their_number(
    predict: Callable[[Path], Any], tmp_path: Path, seeds: ModuleType, write_series: WriteSeries
) -> None:
    slices = write_series(tmp_path / "classic")
    order = [3, 0, 5, 1, 4, 2]
    enhanced = seeds.multiframe(image().transpose(2, 1, 0).astype(np.int16))
    enhanced.PerFrameFunctionalGroupsSequence = [enhanced.PerFrameFunctionalGroupsSequence[index] for index in order]
    enhanced.PixelData = image().transpose(2, 1, 0).astype("<i2")[order].tobytes()
    (tmp_path / "scan").mkdir()
    enhanced.save_as(tmp_path / "scan" / "0.dcm", enforce_file_format=True)
    seg = predict(tmp_path / "scan")
    found = values_at_their_places(seg.get_volume(combine_segments=True), slices)
    np.testing.assert_array_equal(np.array([0, 3, 7])[found], planted())
    for group in seg.PerFrameFunctionalGroupsSequence:
        (source,) = group.DerivationImageSequence[0].SourceImageSequence
        place = np.array(group.PlanePositionSequence[0].ImagePositionPatient, dtype=float)
        index = order[int(source.ReferencedFrameNumber) - 1]
        np.testing.assert_allclose(place, position(slices, 0, 0, index), atol=1e-4)


def test_nothing_of_the_patient_is_repeated_but_what_a_seg_must(
    predict: Callable[[Path], Any], tmp_path: Path, write_series: WriteSeries
) -> None:
    def tell(index: int, dataset: Any) -> None:
        rescaled(index, dataset)
        dataset.private_block(0x0011, "SECRETS", create=True).add_new(1, "LO", "Doe^Jane, room 7")

    must = {
        "PatientName": "Müller^Jörg",
        "PatientID": "P-4711",
        "PatientBirthDate": "19700131",
        "StudyDate": "20200101",
    }
    write_series(tmp_path / "scan", edit=tell, SpecificCharacterSet="ISO_IR 100", **must, **TELLING)
    seg = predict(tmp_path / "scan")
    assert {name: str(seg[name].value) for name in must} == must
    words = [word for text in (*map(str, TELLING.values()), "room 7", "Hospital") for word in text.split("^")]
    text = str(seg)
    assert not [word for word in words if word in text]
    of_the_patient = {element.keyword for element in seg if element.tag.group == 0x0010}
    assert of_the_patient == {"PatientName", "PatientID", "PatientBirthDate", "PatientSex"}
    assert not [element for element in seg if element.tag.is_private]
    sidecar = (tmp_path / "out" / "scan_seg.json").read_text() + (tmp_path / "out" / "predict.json").read_text()
    assert not [word for word in ("Müller", "M\\u00fcller", "P-4711", "19700131", "20200101") if word in sidecar]


def test_a_segmentation_without_any_structure_is_an_object_without_any_voxel(
    predict: Callable[..., Any], make_bundle: MakeBundle, tmp_path: Path, write_series: WriteSeries
) -> None:
    def faint(index: int, dataset: Any) -> None:
        dataset.PixelData = np.where(planted() > 0, 40, 0)[:, :, index].T.astype("<i2").tobytes()

    write_series(tmp_path / "scan", edit=faint)
    model = make_bundle("faint", image=np.where(planted() > 0, 40.0, 0.0), spacing_mm=SPACING_MM)
    seg = predict(tmp_path / "scan", model)
    assert [str(item.SegmentLabel) for item in seg.SegmentSequence] == ["anterior", "posterior"]
    assert not seg.get_volume(combine_segments=True).array.any()


def test_headers_that_scanners_and_anonymizers_leave_untidy_are_enough(
    predict: Callable[[Path], Any], tmp_path: Path, write_series: WriteSeries
) -> None:
    def untidy(index: int, dataset: Any) -> None:
        rescaled(index, dataset)
        del dataset.SliceThickness
        del dataset.SeriesNumber
        dataset.PatientSex = "female"
        if index == 4:
            dataset.ImageOrientationPatient[0] = 0.96000001

    slices = write_series(tmp_path / "scan", edit=untidy)
    seg = predict(tmp_path / "scan")
    found = values_at_their_places(seg.get_volume(combine_segments=True), slices)
    np.testing.assert_array_equal(np.array([0, 3, 7])[found], planted())
    assert seg.PatientSex == ""


@pytest.mark.parametrize(
    ("edit", "found"),
    [
        (lambda dataset: delattr(dataset, "FrameOfReferenceUID"), "it has no FrameOfReferenceUID"),
        (lambda dataset: setattr(dataset, "PatientBirthDate", "around 1980"), "around 1980"),
    ],
    ids=["no frame of reference", "not a date"],
)
def test_a_series_that_no_seg_can_refer_to_fails_in_one_line_and_leaves_nothing(
    bundle: Path,
    tmp_path: Path,
    write_series: WriteSeries,
    capsys: pytest.CaptureFixture[str],
    edit: Callable[[Any], None],
    found: str,
) -> None:
    def spoil(index: int, dataset: Any) -> None:
        rescaled(index, dataset)
        edit(dataset)

    write_series(tmp_path / "scan", edit=spoil)
    command = ["predict", str(tmp_path / "scan"), "--bundle", str(bundle), "--out", str(tmp_path / "out")]
    assert main([*command, "--no-overview", "--dicom-seg"]) == 1
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "scan: failed" in line]
    assert f"{tmp_path / 'scan'}: no DICOM SEG can refer to this series" in line
    assert found in line
    assert "leave out --dicom-seg" in line
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["predict.json", "volumes.csv"]
    assert main([*command, "--no-overview"]) == 0


def test_nifti_input_gets_none_and_a_lost_object_is_made_again(
    bundle: Path, tmp_path: Path, save: Save, write_series: WriteSeries
) -> None:
    write_series(tmp_path / "in" / "scan", edit=rescaled)
    save(tmp_path / "in" / "plain.nii.gz", image(), np.diag([1.2, 1.5, 2.5, 1.0]))
    cases, out = find_inputs([tmp_path / "in"], tmp_path / "out").cases, tmp_path / "out"
    results = {result.case_id: result for result in predict_cases(cases, bundle, out, dicom_seg=True)}
    assert {name: result.status for name, result in results.items()} == {"plain": "ok", "scan": "ok"}
    assert [path.name for path in out.glob("*.dcm")] == ["scan_seg.dcm"]
    assert set(results["plain"].files) == {"plain_seg.nii.gz", "plain_seg.json"}
    (out / "scan_seg.dcm").unlink()
    again = {result.case_id: result for result in predict_cases(cases, bundle, out, dicom_seg=True)}
    assert {name: result.reused for name, result in again.items()} == {"plain": True, "scan": False}
    assert (out / "scan_seg.dcm").is_file()


WITHOUT_HIGHDICOM = """
import sys

class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "highdicom":
            raise ModuleNotFoundError("No module named 'highdicom'", name=name)

sys.meta_path.insert(0, Missing())
from droseg.cli import main
sys.exit(main(sys.argv[1:]))
"""


def test_without_highdicom_one_line_says_so_before_the_first_case(
    bundle: Path, tmp_path: Path, write_series: WriteSeries
) -> None:
    write_series(tmp_path / "scan", edit=rescaled)
    command = ["predict", str(tmp_path / "scan"), "--bundle", str(bundle), "--out", str(tmp_path / "out")]
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_HIGHDICOM, *command, "--dicom-seg"], capture_output=True, text=True
    )
    assert done.returncode == 2
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("droseg: error")]
    assert "highdicom, which is missing; pip install 'droseg[dicom-seg]'" in line
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.glob("out/*_seg*"))
