"""DICOM series are read where their tags put them, whatever the files are called, or refused with the reason."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from droseg.errors import InputError
from droseg.inference import DicomSeries, FoundInputs, ImageError, find_inputs, inputs_table, read_image
from droseg.inference.reading import image_checksum

WriteSeries = Callable[..., list[Any]]


def stacked(slices: list[Any]) -> np.ndarray:
    return np.stack([dataset.pixel_array.T for dataset in slices], axis=-1)


def found_in(folder: Path, **options: Any) -> FoundInputs:
    return find_inputs([folder], folder.parent / "out", **options)


def refusal(folder: Path) -> str:
    (case,) = found_in(folder).cases
    with pytest.raises(ImageError) as caught:
        read_image(case.images, 1)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_an_oblique_series_lies_where_its_tags_say_however_its_files_are_called(
    tmp_path: Path, write_series: WriteSeries, affine_by_hand: Callable[..., np.ndarray]
) -> None:
    slices = write_series(tmp_path / "scan", names=["z", "b.dcm", "IM_10", "IM_9", "a.7", "0"])
    image = read_image([tmp_path / "scan"], 1)
    np.testing.assert_allclose(image.affine.numpy(), affine_by_hand(slices), atol=1e-5)
    np.testing.assert_array_equal(image.numpy()[0], stacked(slices))
    assert np.linalg.norm(image.affine.numpy()[:3, 2]) == pytest.approx(2.5)  # its SliceThickness is 9


def test_the_grid_is_that_of_itk(tmp_path: Path, write_series: WriteSeries) -> None:
    itk = pytest.importorskip("itk", reason="skipped: ITK is not installed")
    write_series(tmp_path / "scan", names=["5", "3", "1", "2", "0", "4"])
    names = itk.GDCMSeriesFileNames.New()
    names.SetDirectory(str(tmp_path / "scan"))
    second = itk.imread(list(names.GetFileNames(next(iter(names.GetSeriesUIDs())))))
    image = read_image([tmp_path / "scan"], 1)
    np.testing.assert_array_equal(image.numpy()[0], np.asarray(second).T)
    for index in ([0, 0, 0], [9, 0, 0], [0, 8, 0], [0, 0, 5]):
        point = np.array(second.TransformIndexToPhysicalPoint(index)) * [-1, -1, 1]
        np.testing.assert_allclose((image.affine.numpy() @ [*index, 1])[:3], point, atol=1e-3)


def test_slices_in_the_reverse_order_of_their_numbers_give_the_same_volume(
    tmp_path: Path, write_series: WriteSeries
) -> None:
    def number_backwards(index: int, dataset: Any) -> None:
        dataset.InstanceNumber = 100 - index

    slices = write_series(tmp_path / "scan", edit=number_backwards)
    np.testing.assert_array_equal(read_image([tmp_path / "scan"], 1).numpy()[0], stacked(slices))


def test_each_slice_is_scaled_by_its_own_slope(tmp_path: Path, write_series: WriteSeries) -> None:
    def scale(index: int, dataset: Any) -> None:
        dataset.RescaleSlope, dataset.RescaleIntercept = 0.5 + index, -7

    slices = write_series(tmp_path / "scan", edit=scale)
    expected = stacked(slices) * (0.5 + np.arange(6)) - 7
    np.testing.assert_allclose(read_image([tmp_path / "scan"], 1).numpy()[0], expected, rtol=1e-6)


def test_a_missing_slice_is_refused_and_the_gap_named(tmp_path: Path, write_series: WriteSeries) -> None:
    write_series(tmp_path / "scan", count=8)
    (tmp_path / "scan" / "IM0003").unlink()
    message = refusal(tmp_path / "scan")
    assert "5.00 mm between IM0002 and IM0004, 2.50 mm elsewhere (1 slice missing?)" in message


@pytest.mark.parametrize("damage", ["empty", "cut_header", "cut_pixels", "no_suffix_empty"])
def test_a_damaged_slice_at_the_end_of_the_stack_is_never_left_out_silently(
    tmp_path: Path, write_series: WriteSeries, damage: str
) -> None:
    suffix = "" if damage == "no_suffix_empty" else ".dcm"
    write_series(tmp_path / "scan", count=7, names=[f"{index}{suffix}" for index in range(7)])
    last = tmp_path / "scan" / f"6{suffix}"
    keep = {"empty": 0, "no_suffix_empty": 0, "cut_header": 500, "cut_pixels": last.stat().st_size - 20}[damage]
    last.write_bytes(last.read_bytes()[:keep])
    failures = []
    for case in found_in(tmp_path / "scan").cases:
        try:
            read_image(case.images, 1)
        except ImageError as error:
            failures.append(str(error))
    (message,) = failures
    assert last.name in message


def test_a_sheared_stack_is_refused_with_its_angle(tmp_path: Path, write_series: WriteSeries) -> None:
    def tilt(index: int, dataset: Any) -> None:
        row = np.array(dataset.ImageOrientationPatient[:3], dtype=float)
        shift = np.tan(np.radians(15)) * 2.5 * index * row
        dataset.ImagePositionPatient = (np.array(dataset.ImagePositionPatient, dtype=float) + shift).round(6).tolist()

    write_series(tmp_path / "scan", edit=tilt)
    assert "sheared by 15.0 degrees" in refusal(tmp_path / "scan")


def test_a_slice_that_is_shifted_within_its_plane_is_refused(tmp_path: Path, write_series: WriteSeries) -> None:
    def shift(index: int, dataset: Any) -> None:
        if index == 2:
            column = 3 * np.array(dataset.ImageOrientationPatient[3:], dtype=float)
            moved = np.array(dataset.ImagePositionPatient, dtype=float) + column
            dataset.ImagePositionPatient = moved.round(6).tolist()

    write_series(tmp_path / "scan", edit=shift)
    assert "shifted against each other within their planes (IM0002)" in refusal(tmp_path / "scan")


@pytest.mark.parametrize("tag", ["ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing"])
def test_a_slice_without_geometry_is_named(tmp_path: Path, write_series: WriteSeries, tag: str) -> None:
    write_series(tmp_path / "scan", edit=lambda index, dataset: index == 4 and delattr(dataset, tag))
    assert f"IM0004 has no usable {tag}" in refusal(tmp_path / "scan")


def test_copies_of_slices_do_not_count(tmp_path: Path, write_series: WriteSeries) -> None:
    slices = write_series(tmp_path / "scan")
    for index in (0, 3):
        shutil.copy(tmp_path / "scan" / f"IM{index:04d}", tmp_path / "scan" / f"copy{index}")
    np.testing.assert_array_equal(read_image([tmp_path / "scan"], 1).numpy()[0], stacked(slices))


def test_two_images_at_one_place_that_no_tag_tells_apart_are_refused(tmp_path: Path, write_series: WriteSeries) -> None:
    def repeat(index: int, dataset: Any) -> None:
        if index == 5:
            dataset.ImagePositionPatient = other[4].ImagePositionPatient

    other = write_series(tmp_path / "other")
    write_series(tmp_path / "scan", edit=repeat)
    assert "6 images at 5 places; no tag tells them apart" in refusal(tmp_path / "scan")


def test_interleaved_echoes_become_a_volume_each(tmp_path: Path, write_series: WriteSeries) -> None:
    early = write_series(tmp_path / "scan", names=[f"{2 * i}" for i in range(6)], EchoTime=4.6)

    def rename(index: int, dataset: Any) -> None:
        dataset.SOPInstanceUID += ".2"

    late = write_series(tmp_path / "scan", names=[f"{2 * i + 1}" for i in range(6)], EchoTime=13.8, seed=1, edit=rename)
    cases = found_in(tmp_path / "scan").cases
    assert [case.case_id for case in cases] == ["scan_3_T2_oblique_EchoTime_4.6", "scan_3_T2_oblique_EchoTime_13.8"]
    for case, slices in zip(cases, (early, late), strict=True):
        np.testing.assert_array_equal(read_image(case.images, 1).numpy()[0], stacked(slices))


def test_an_enhanced_multi_frame_file_is_read_like_the_classic_series(
    tmp_path: Path, seeds: ModuleType, write_series: WriteSeries, affine_by_hand: Callable[..., np.ndarray]
) -> None:
    slices = write_series(tmp_path / "classic")
    order = [3, 0, 5, 1, 4, 2]
    stack = np.stack([dataset.pixel_array for dataset in slices])
    enhanced = seeds.multiframe(stack)
    enhanced.PerFrameFunctionalGroupsSequence = [enhanced.PerFrameFunctionalGroupsSequence[index] for index in order]
    enhanced.PixelData = stack[order].tobytes()
    enhanced.save_as(tmp_path / "enhanced", enforce_file_format=True)
    (case,) = find_inputs([tmp_path / "enhanced"], tmp_path / "out").cases
    found, expected = read_image(case.images, 1), read_image([tmp_path / "classic"], 1)
    np.testing.assert_array_equal(found.numpy(), expected.numpy())
    np.testing.assert_allclose(found.affine.numpy(), affine_by_hand(slices), atol=1e-5)
    assert isinstance(case.images[0], DicomSeries)
    assert case.images[0].files == (tmp_path / "enhanced",)


def test_compressed_pixels_are_those_that_were_compressed(
    tmp_path: Path, seeds: ModuleType, write_series: WriteSeries
) -> None:
    pytest.importorskip("itk", reason="skipped: ITK is not installed")
    import pydicom

    slices = write_series(tmp_path / "plain")
    encoded = []
    for index, dataset in enumerate(slices):
        larger = seeds.dicom_slice(index, np.kron(dataset.pixel_array, np.ones((4, 4), np.int16)))
        (tmp_path / "j2k").mkdir(exist_ok=True)
        seeds.write_j2k(tmp_path / "j2k" / f"{index}.dcm", larger)
        written = pydicom.dcmread(tmp_path / "j2k" / f"{index}.dcm")
        assert written.file_meta.TransferSyntaxUID.is_compressed
        encoded.append(next(iter(pydicom.encaps.generate_frames(written.PixelData, number_of_frames=1))))
    enhanced = seeds.multiframe(np.stack([np.kron(d.pixel_array, np.ones((4, 4), np.int16)) for d in slices]))
    enhanced.file_meta.TransferSyntaxUID = written.file_meta.TransferSyntaxUID
    enhanced.PixelData = pydicom.encaps.encapsulate(encoded)
    enhanced["PixelData"].VR = "OB"
    enhanced["PixelData"].is_undefined_length = True
    (tmp_path / "j2k_frames").mkdir()
    enhanced.save_as(tmp_path / "j2k_frames" / "0.dcm", enforce_file_format=True)
    for folder in ("j2k", "j2k_frames"):
        image = read_image([tmp_path / folder], 1).numpy()[0]
        np.testing.assert_array_equal(image, np.kron(stacked(slices), np.ones((4, 4, 1))))


def test_what_is_no_mr_volume_is_skipped_with_the_reason(tmp_path: Path, write_series: WriteSeries) -> None:
    study = tmp_path / "study"
    write_series(study / "mixed", names=[f"a{i}" for i in range(6)])
    write_series(study / "mixed", names=[f"b{i}" for i in range(6)], uid="1.2.4", SeriesNumber=4, seed=1)
    write_series(study / "loc", uid="1.2.5", ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])
    write_series(study / "few", count=3, uid="1.2.6")
    write_series(study / "ct", uid="1.2.7", Modality="CT")
    write_series(study / "sr", count=1, uid="1.2.8", Modality="SR")
    write_series(study / "shot", uid="1.2.9", SOPClassUID="1.2.840.10008.5.1.4.1.1.7")

    def turn(index: int, dataset: Any) -> None:
        dataset.ImageOrientationPatient = [[1, 0, 0, 0, 1, 0], [0, 1, 0, 0, 0, -1], [1, 0, 0, 0, 0, -1]][index % 3]

    write_series(study / "three_planes", uid="1.2.10", edit=turn)
    (study / "report.pdf").write_bytes(b"%PDF-1.7")
    (study / ".DS_Store").write_bytes(b"x")
    found = found_in(study)
    assert [case.case_id for case in found.cases] == ["mixed_3_T2_oblique", "mixed_4_T2_oblique"]
    reasons = {item.path.name: item.reason for item in found.skipped}
    assert reasons == {
        "loc": "a localizer",
        "few": "3 slices, fewer than 5",
        "ct": "modality CT, not MR",
        "IM0000": "modality SR, not MR",
        "shot": "a secondary capture, such as a screenshot",
        "three_planes": "slices of several orientations, a localizer?",
        "report.pdf": "not an image (.pdf)",
        ".DS_Store": "hidden or of the system",
    }
    assert [read_image(case.images, 1).shape for case in found.cases] == [(1, 10, 9, 6)] * 2


def test_a_study_without_any_mr_volume_ends_with_code_2_and_says_what_there_was(
    tmp_path: Path, write_series: WriteSeries
) -> None:
    write_series(tmp_path / "study" / "ct", Modality="CT")
    with pytest.raises(InputError, match="found and skipped: 1 x modality CT, not MR") as caught:
        found_in(tmp_path / "study")
    assert caught.value.exit_code == 2


def test_files_of_a_series_given_by_path_stand_for_the_whole_series(tmp_path: Path, write_series: WriteSeries) -> None:
    slices = write_series(tmp_path / "scan")
    write_series(tmp_path / "scan", names=[f"other{i}" for i in range(6)], uid="1.2.4", seed=1)
    given = [tmp_path / "scan" / "IM0004", tmp_path / "scan" / "IM0001"]
    (case,) = find_inputs(given, tmp_path / "out").cases
    np.testing.assert_array_equal(read_image(case.images, 1).numpy()[0], stacked(slices))


def test_a_dicomdir_stands_for_the_folder_that_it_lies_in(tmp_path: Path, write_series: WriteSeries) -> None:
    from pydicom.fileset import FileSet

    told = {"StudyDate": "20200101", "StudyTime": "120000", "StudyID": "1", "SeriesNumber": 3}
    write_series(tmp_path / "scan", **told)
    fileset = FileSet()
    for path in (tmp_path / "scan").iterdir():
        fileset.add(path)
    fileset.write(tmp_path / "disc")
    (case,) = find_inputs([tmp_path / "disc" / "DICOMDIR"], tmp_path / "out").cases
    np.testing.assert_array_equal(read_image(case.images, 1).numpy(), read_image([tmp_path / "scan"], 1).numpy())
    found = found_in(tmp_path / "disc")
    assert len(found.cases) == 1
    assert [item.reason[:8] for item in found.skipped] == ["DICOMDIR"]


def test_names_of_cases_say_nothing_about_the_patient(tmp_path: Path, write_series: WriteSeries) -> None:
    for patient in ("DOE_JANE_19700131", "p4711_b"):
        for name in ("SE01", "SE02"):
            write_series(
                tmp_path / "in" / patient / name,
                uid=f"1.2.{len(patient)}.{name[-1]}",
                PatientBirthDate="19700131",
                SeriesDescription="T1 Doe" if name == "SE01" else "T2 <ax>/..",
            )
    write_series(tmp_path / "in" / "Jane Doe", names=list("abcdef"), uid="1.9.1", SeriesDescription="T2 <ax>/..")
    names = [case.case_id for case in found_in(tmp_path / "in").cases]
    assert len(set(names)) == 5
    for name in names:
        assert not any(word in name.lower() for word in ("doe", "jane", "4711", "1970"))
        assert name.replace("_", "").isalnum()
    assert names == [case.case_id for case in found_in(tmp_path / "in").cases]
    assert "3_T2_ax" in names


@pytest.fixture
def two_studies(tmp_path: Path, write_series: WriteSeries) -> Path:
    """Return a folder of two studies: the first with T1 and T2, the second with T1 only."""
    study = tmp_path / "in"
    for number, name in ((1, "T1 mprage"), (2, "T2 tse")):
        write_series(
            study / "a" / str(number), uid=f"1.1.{number}", SeriesNumber=number, SeriesDescription=name, seed=number
        )
    write_series(study / "b" / "1", uid="2.1.1", StudyInstanceUID="2.1", SeriesDescription="T1 mprage")
    return study


def test_expressions_choose_one_series_per_channel_in_each_study(two_studies: Path) -> None:
    found = found_in(two_studies, num_channels=2, series_description=("t2", "^t1"))
    whole, failing = found.cases
    t1, t2 = (read_image([two_studies / "a" / name], 1).numpy()[0] for name in "12")
    np.testing.assert_array_equal(read_image(whole.images, 2).numpy(), np.stack([t2, t1]))
    with pytest.raises(ImageError, match="no series matches --series-description 't2'; there are series 3 'T1 mprage'"):
        read_image(failing.images, 2)
    assert (whole.case_id, failing.case_id) == ("a", "1")


def test_one_expression_chooses_series_for_one_channel_and_the_rest_is_skipped(two_studies: Path) -> None:
    found = found_in(two_studies, series_description=["mprage"])
    assert [str(case.images[0]) for case in found.cases] == [
        f"{two_studies / 'a' / '1'} [series 1 'T1 mprage']",
        f"{two_studies / 'b' / '1'} [series 3 'T1 mprage']",
    ]
    assert [(item.name, item.reason) for item in found.skipped] == [
        ("series 2 'T2 tse'", "not chosen by --series-description")
    ]


@pytest.mark.parametrize(
    ("expressions", "message"),
    [
        ((), r"2 MR series \(series 1 'T1 mprage', series 2 'T2 tse'\), but the network takes 2 channels"),
        (("t", "t2"), "2 series match --series-description 't' "),
    ],
)
def test_a_study_whose_channels_are_not_clear_is_one_failing_case(
    two_studies: Path, expressions: tuple[str, ...], message: str
) -> None:
    found = found_in(two_studies / "a", num_channels=2, series_description=expressions)
    (case,) = found.cases
    with pytest.raises(ImageError, match=message):
        read_image(case.images, 2)


@pytest.mark.parametrize(
    ("expressions", "message"), [(("a", "b"), "given 2 times, but the network takes 1"), (("(",), "regular expression")]
)
def test_expressions_that_cannot_be_used_are_refused_at_once(
    two_studies: Path, expressions: tuple[str, ...], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        found_in(two_studies, series_description=expressions)


def test_the_checksum_tells_the_echoes_of_one_file_apart(tmp_path: Path, seeds: ModuleType) -> None:
    from pydicom.dataset import Dataset

    stack = np.random.default_rng(0).integers(0, 999, (12, 9, 10)).astype(np.int16)
    enhanced = seeds.multiframe(stack)
    groups = enhanced.PerFrameFunctionalGroupsSequence
    for index, group in enumerate(groups):
        group.PlanePositionSequence = groups[index % 6].PlanePositionSequence
        echo = Dataset()
        echo.EffectiveEchoTime = 5.0 if index < 6 else 90.0
        group.MREchoSequence = [echo]
    enhanced.save_as(tmp_path / "0.dcm", enforce_file_format=True)
    first, second = find_inputs([tmp_path / "0.dcm"], tmp_path / "out").cases
    np.testing.assert_array_equal(read_image(second.images, 1).numpy()[0], np.moveaxis(stack[6:], 0, -1).swapaxes(0, 1))
    assert image_checksum(first.images) != image_checksum(second.images)


def test_the_list_shows_every_case_with_its_grid_and_what_is_skipped(two_studies: Path) -> None:
    (two_studies / "bad.nii").write_bytes(b"%PDF")
    (two_studies / "notes.txt").write_text("x")
    table = inputs_table(found_in(two_studies))
    assert "DICOM  series 2 'T2 tse'" in table
    assert "10 x 9 x 6  1.2 x 1.5 x 2.5" in table
    assert "not an image that can be read" in table
    assert "notes.txt  not an image (.txt)" in table
    assert table.endswith("4 cases, 1 skipped")


@pytest.mark.real_data
def test_the_real_series_are_found_and_lie_where_itk_puts_them(real_data: Path, tmp_path: Path) -> None:
    pytest.importorskip("pydicom", reason="skipped: pydicom is not installed")
    itk = pytest.importorskip("itk", reason="skipped: ITK is not installed")
    cases = find_inputs([real_data / "dicom"], tmp_path).cases
    assert sorted(case.case_id for case in cases) == ["hippocampus_crop", "t1_post"]
    for case in cases:
        image = read_image(case.images, 1)
        names = itk.GDCMSeriesFileNames.New()
        names.SetDirectory(str(real_data / "dicom" / case.case_id))
        second = itk.imread(list(names.GetFileNames(next(iter(names.GetSeriesUIDs())))))
        np.testing.assert_array_equal(image.numpy()[0], np.asarray(second).T)
        last = [size - 1 for size in image.shape[1:]]
        for index in ([0, 0, 0], last):
            point = np.array(second.TransformIndexToPhysicalPoint(index)) * [-1, -1, 1]
            np.testing.assert_allclose((image.affine.numpy() @ [*index, 1])[:3], point, atol=0.05)


def test_a_tag_of_several_lines_is_said_in_one(tmp_path: Path, write_series: WriteSeries) -> None:
    write_series(tmp_path / "in", Modality="C\nT\x1b[31m")
    with pytest.raises(InputError, match=r"modality C T \[31M, not MR") as caught:
        found_in(tmp_path / "in")
    assert str(caught.value).isprintable()
