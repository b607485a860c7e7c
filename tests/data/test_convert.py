"""DICOM trees become NIfTI where their tags put them, under names that tell nobody who was scanned."""

from __future__ import annotations

import gzip
import importlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pandas as pd
import pytest

from droseg.cli import main
from droseg.data.convert.files import small

pydicom = pytest.importorskip("pydicom", reason="skipped: pydicom is not installed")

WriteSeries = Callable[..., list[Any]]


@pytest.fixture
def write_series(write_series: WriteSeries) -> WriteSeries:
    """Return a function that writes an oblique series of 10 x 9 x `count` voxels, files not in the order of slices."""

    def write(folder: Path, uid: str = "1.2.3.4", count: int = 6, edit: Any = None, **tags: Any) -> list[Any]:
        names = [f"IM{(index * 5) % count:04d}{uid}" for index in range(count)]
        return write_series(folder, count, names, edit, seed=len(uid), uid=uid, **tags)

    return write


def convert(*arguments: object) -> int:
    return main(["data", "convert", *map(str, arguments)])


def files_of(out: Path) -> list[str]:
    return sorted(path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file())


def table_of(out: Path) -> pd.DataFrame:
    return pd.read_csv(out / "scans.tsv", sep="\t", na_values="n/a", keep_default_na=False)


def test_an_oblique_series_lies_where_its_tags_say(
    tmp_path: Path, write_series: WriteSeries, affine_by_hand: Callable[..., np.ndarray]
) -> None:
    slices = write_series(tmp_path / "scan")
    assert convert(tmp_path / "scan", "--out", tmp_path / "out") == 0
    image = nib.load(tmp_path / "out" / "sub-001" / "ses-1" / "series-003.nii.gz")
    np.testing.assert_allclose(image.affine, affine_by_hand(slices), atol=1e-5)
    np.testing.assert_allclose(image.get_qform(), affine_by_hand(slices), atol=1e-5)
    np.testing.assert_array_equal(image.get_fdata(), np.stack([item.pixel_array.T for item in slices], axis=-1))
    assert image.get_data_dtype() == np.int16
    assert (int(image.header["sform_code"]), image.header.get_xyzt_units()[0]) == (1, "mm")


def test_itk_reads_the_same_volume_from_the_slices_and_from_the_result(
    tmp_path: Path, write_series: WriteSeries
) -> None:
    itk = pytest.importorskip("itk", reason="skipped: ITK is not installed")
    write_series(tmp_path / "scan")
    assert convert(tmp_path / "scan", "--out", tmp_path / "out") == 0
    _same_by_itk(itk, tmp_path / "scan", tmp_path / "out" / "sub-001" / "ses-1" / "series-003.nii.gz")


def _same_by_itk(itk: Any, folder: Path, result: Path) -> None:
    names = itk.GDCMSeriesFileNames.New()
    names.SetDirectory(str(folder))
    uid = next(iter(names.GetSeriesUIDs()))
    slices, converted = itk.imread(list(names.GetFileNames(uid))), itk.imread(str(result))
    np.testing.assert_array_equal(np.asarray(slices), np.asarray(converted))
    size = np.array(np.asarray(slices).shape)[::-1] - 1
    for corner in np.ndindex(2, 2, 2):
        index = [int(value) for value in size * corner]
        first, second = (image.TransformIndexToPhysicalPoint(index) for image in (slices, converted))
        np.testing.assert_allclose(np.array(first), np.array(second), atol=2e-3)


def test_slope_and_intercept_are_applied_per_slice(tmp_path: Path, write_series: WriteSeries) -> None:
    def scale(index: int, dataset: Any) -> None:
        dataset.RescaleSlope, dataset.RescaleIntercept = 0.5 + index, -7

    slices = write_series(tmp_path / "scan", edit=scale)
    assert convert(tmp_path / "scan", "--out", tmp_path / "out") == 0
    image = nib.load(tmp_path / "out" / "sub-001" / "ses-1" / "series-003.nii.gz")
    stored = np.stack([item.pixel_array.T for item in slices], axis=-1)
    np.testing.assert_allclose(image.get_fdata(), stored * (0.5 + np.arange(6)) - 7, rtol=1e-6)
    assert image.get_data_dtype() == np.float32


@pytest.mark.parametrize(
    ("values", "dtype"),
    [
        ([0, 255], np.uint8),
        ([-1, 255], np.int16),
        ([0, 40000], np.uint16),
        ([-1, 40000], np.int32),
        ([0.5, 1], np.float32),
        ([-1024.0, 3.0], np.int16),
    ],
)
def test_values_are_kept_in_the_smallest_type_that_holds_them(values: list[float], dtype: type) -> None:
    found = small(np.array(values))
    assert found.dtype == dtype
    np.testing.assert_array_equal(found, values)


# ---- nobody is named

STRUCTURAL = (
    *("SpecificCharacterSet", "SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID", "Modality"),
    *("Rows", "Columns", "ImageType", "PhotometricInterpretation", "FrameOfReferenceUID"),
)
FIXED = (
    *("Manufacturer", "ManufacturerModelName", "SoftwareVersions", "ReceiveCoilName", "ScanningSequence"),
    *("SequenceVariant", "SequenceName", "PulseSequenceName", "MRAcquisitionType"),
)
TEXTS = {"PN": "Zebulon^Katz", "DA": "19610203", "DT": "19610203101112", "TM": "101112.777", "CS": "KATZ"}
TEXTS |= dict.fromkeys(("AE", "LO", "LT", "SH", "ST", "UC", "UT"), "for Zebulon 19610203 QX77")
SECRETS = (b"zebulon", b"katz", b"19610203", b"qx77", b"101112")


def fill_every_text(index: int, dataset: Any) -> None:
    """Put names, dates and IDs into every tag of the standard that holds text, except those that may leave."""
    for tag, (vr, _, _, retired, keyword) in pydicom.datadict.DicomDictionary.items():
        group = tag >> 16
        if vr in TEXTS and not retired and group > 2 and keyword not in (*STRUCTURAL, *FIXED):
            dataset.add_new(tag, vr, TEXTS[vr])
    dataset.SeriesDescription = "T1 for Dr. Katz"
    dataset.PatientID, dataset.PatientName = "QX77", "Zebulon^Katz"


def test_names_dates_and_ids_of_every_other_tag_stay_in_the_dicom_files(
    tmp_path: Path, write_series: WriteSeries, capsys: pytest.CaptureFixture[str]
) -> None:
    slices = write_series(
        tmp_path / "tree", edit=fill_every_text, Manufacturer="ACME", ReceiveCoilName="Coil of Zebulon"
    )
    assert sum(b"Zebulon" in str(element.value).encode() for element in slices[0]) > 100
    assert convert(tmp_path / "tree", "--out", tmp_path / "out") == 0
    printed = capsys.readouterr()
    contents = [printed.out.encode(), printed.err.encode()]
    for name in files_of(tmp_path / "out"):
        raw = (tmp_path / "out" / name).read_bytes()
        contents += [name.encode(), gzip.decompress(raw)[:352] if name.endswith(".gz") else raw]
    assert any(b"ACME" in content for content in contents)
    for secret in SECRETS:
        assert not [content for content in contents if secret in content.lower()]


def test_list_shows_descriptions_and_writes_nothing(
    tmp_path: Path, write_series: WriteSeries, capsys: pytest.CaptureFixture[str]
) -> None:
    write_series(tmp_path / "tree" / "a", SeriesDescription="T1 MPRAGE")
    write_series(tmp_path / "tree" / "b", uid="1.2.3.5", ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])
    assert convert(tmp_path / "tree", "--out", tmp_path / "out", "--list") == 0
    printed = capsys.readouterr().out
    assert "sub-001/ses-1/series-003.nii.gz  10 x 9 x 6  1.2 x 1.5 x 2.5" in printed
    assert "'T1 MPRAGE'" in printed
    assert "a localizer" in printed
    assert not (tmp_path / "out").exists()


# ---- several patients


@pytest.fixture
def ward(tmp_path: Path, write_series: WriteSeries) -> Path:
    """Return a tree of two patients; B is scanned twice, first T1 and T2, later T1, in folders that say nothing."""
    tree = tmp_path / "ward"
    write_series(tree / "x", "1.1", PatientID="B", StudyInstanceUID="9.2", StudyDate="20200301", SeriesDescription="T1")
    write_series(tree / "x", "1.2", PatientID="B", StudyInstanceUID="9.1", StudyDate="20200101", SeriesDescription="T1")
    write_series(
        tree / "x", "1.3", PatientID="B", StudyInstanceUID="9.1", SeriesDescription="T2", SeriesNumber=4, StudyDate=""
    )
    write_series(tree / "y", "1.4", PatientID="A", StudyInstanceUID="9.3", StudyDate="20210101", SeriesDescription="T1")
    return tree


def test_subjects_sessions_and_series_are_numbered_by_id_date_and_number(ward: Path, tmp_path: Path) -> None:
    assert convert(ward, "--out", tmp_path / "out") == 0
    table = table_of(tmp_path / "out")
    assert table["file"].tolist() == [
        "sub-001/ses-1/series-003.nii.gz",
        "sub-002/ses-1/series-003.nii.gz",
        "sub-002/ses-1/series-004.nii.gz",
        "sub-002/ses-2/series-003.nii.gz",
    ]
    assert all((tmp_path / "out" / name).is_file() for name in table["file"])
    assert table[["subject", "session", "series"]].iloc[2].tolist() == ["sub-002", "ses-1", "series-004"]


def test_a_name_for_the_chosen_series_makes_paths_alike_and_sessions_without_it_are_said(
    ward: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--series-description", "t1=^t1", "--series-description", "t2=^t2"]
    assert convert(ward, "--out", tmp_path / "out", *options) == 0
    assert table_of(tmp_path / "out")["file"].tolist() == [
        "sub-001/ses-1/t1.nii.gz",
        "sub-002/ses-1/t1.nii.gz",
        "sub-002/ses-1/t2.nii.gz",
        "sub-002/ses-2/t1.nii.gz",
    ]
    printed = capsys.readouterr()
    assert "2 of 3 sessions have no series 't2' ('^t2'): sub-001/ses-1, sub-002/ses-2" in printed.err


def test_the_same_command_again_writes_nothing_and_new_patients_do_not_move_the_old_ones(
    ward: Path, tmp_path: Path, write_series: WriteSeries, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert convert(ward, "--out", out) == 0
    before = {name: (out / name).stat().st_mtime_ns for name in files_of(out) if name.endswith(".gz")}
    table = (out / "scans.tsv").read_text()
    capsys.readouterr()
    assert convert(ward, "--out", out) == 0
    assert "0 series written, 4 there already" in capsys.readouterr().out
    assert {name: (out / name).stat().st_mtime_ns for name in before} == before
    assert (out / "scans.tsv").read_text() == table
    write_series(ward / "0", "1.5", PatientID="0", StudyInstanceUID="9.0", StudyDate="19990101")
    write_series(ward / "z", "1.6", PatientID="B", StudyInstanceUID="9.4", StudyDate="19990101")
    assert convert(ward, "--out", out) == 0
    assert {name: (out / name).stat().st_mtime_ns for name in before} == before
    added = set(table_of(out)["file"]) - set(before)
    assert added == {"sub-003/ses-1/series-003.nii.gz", "sub-002/ses-3/series-003.nii.gz"}


def test_copies_of_the_same_images_are_converted_once(ward: Path, tmp_path: Path) -> None:
    shutil.copytree(ward / "y", ward / "copies" / "again")
    assert convert(ward, ward / "x", "--out", tmp_path / "out") == 0
    assert len(table_of(tmp_path / "out")) == 4


def test_another_tree_into_the_same_folder_keeps_the_rows_of_the_first(ward: Path, tmp_path: Path) -> None:
    assert convert(ward / "x", "--out", tmp_path / "out") == 0
    assert convert(ward / "y", "--out", tmp_path / "out") == 0
    assert sorted(set(table_of(tmp_path / "out")["subject"])) == ["sub-001", "sub-002"]


def test_a_series_that_has_changed_is_not_overwritten_unless_asked(
    ward: Path, tmp_path: Path, write_series: WriteSeries, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert convert(ward, "--out", out) == 0
    tags = {"PatientID": "A", "StudyInstanceUID": "9.3", "StudyDate": "20210101", "SeriesDescription": "T1"}
    shutil.rmtree(ward / "y")
    write_series(ward / "y", "1.4", count=7, **tags)
    assert convert(ward, "--out", out) == 1
    assert "series-003.nii.gz: is there, made from other files or options" in capsys.readouterr().err
    assert nib.load(out / "sub-001" / "ses-1" / "series-003.nii.gz").shape == (10, 9, 6)
    assert convert(ward, "--out", out, "--overwrite") == 0
    assert nib.load(out / "sub-001" / "ses-1" / "series-003.nii.gz").shape == (10, 9, 7)


def test_patient_ids_and_a_mapping_are_written_only_where_they_are_asked_for(
    ward: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert convert(ward, "--out", tmp_path / "ids", "--keep-patient-ids") == 0
    assert "identify people" in capsys.readouterr().err
    assert set(table_of(tmp_path / "ids")["subject"]) == {"A", "B"}
    mapping = tmp_path / "apart" / "who.tsv"
    assert convert(ward / "x", "--out", tmp_path / "out", "--mapping", mapping) == 0
    assert convert(ward / "y", "--out", tmp_path / "out", "--mapping", mapping) == 0
    assert "identifies people" in capsys.readouterr().err
    assert mapping.stat().st_mode & 0o077 == 0
    rows = pd.read_csv(mapping, sep="\t")
    assert dict(zip(rows["patient_id"], rows["subject"], strict=True)) == {"B": "sub-001", "A": "sub-002"}
    assert len(rows) == 4
    assert convert(ward, "--out", tmp_path / "out", "--mapping", tmp_path / "out" / "who.tsv") == 2
    assert convert(ward, "--out", tmp_path / "ids") == 2
    assert "called by PatientIDs already" in capsys.readouterr().err


def test_patient_ids_that_give_one_name_are_refused_and_both_said(
    tmp_path: Path, write_series: WriteSeries, capsys: pytest.CaptureFixture[str]
) -> None:
    write_series(tmp_path / "tree", "1.1", PatientID="A/1")
    write_series(tmp_path / "tree", "1.2", PatientID="a 1")
    assert convert(tmp_path / "tree", "--out", tmp_path / "out", "--keep-patient-ids") == 2
    assert "'A/1' and 'a 1'" in capsys.readouterr().err


def test_doubts_about_who_is_who_are_said_without_saying_who(
    tmp_path: Path, write_series: WriteSeries, capsys: pytest.CaptureFixture[str]
) -> None:
    write_series(tmp_path / "tree", "1.1", PatientBirthDate="19900101")
    write_series(tmp_path / "tree", "1.2", PatientBirthDate="19910101")
    write_series(tmp_path / "tree", "1.3", PatientID="", PatientName="", StudyInstanceUID="9.9")
    assert convert(tmp_path / "tree", "--out", tmp_path / "out") == 0
    printed = capsys.readouterr().err
    assert "one PatientID, but 2 names or birth dates" in printed
    assert "no PatientID: 1 subject (sub-" in printed
    assert "1990" not in printed


# ---- what goes wrong


def test_a_bad_series_is_one_line_and_the_others_are_converted(
    ward: Path, tmp_path: Path, write_series: WriteSeries, capsys: pytest.CaptureFixture[str]
) -> None:
    write_series(ward / "gap", "1.7", count=8, SeriesDescription="gap")
    next((ward / "gap").glob("IM0002*")).unlink()
    write_series(ward / "cut", "1.8", SeriesDescription="cut")
    cut = next((ward / "cut").glob("IM0003*"))
    cut.write_bytes(cut.read_bytes()[:-20])
    write_series(ward / "empty", "1.9", SeriesDescription="empty")
    next((ward / "empty").glob("IM0004*")).write_bytes(b"")
    assert convert(ward, "--out", tmp_path / "out") == 1
    printed = capsys.readouterr()
    errors = [line for line in printed.err.splitlines() if line.startswith("droseg: error:")]
    assert len(errors) == 3
    for name, why in (("gap", "slice missing?"), (cut.name, "truncated"), ("empty", "0 bytes")):
        assert [line for line in errors if name in line and why in line], errors
    assert "4 series written, 0 there already, 3 problems" in printed.out
    assert len(table_of(tmp_path / "out")) == 4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "no such folder"),
        (["empty"], "no DICOM files"),
        (["tree", "--series-description", "t3"], "no series matches; the descriptions are: T2 oblique"),
        (["tree", "--series-description", "("], "give a regular expression"),
        (["tree", "--series-description", "a=x", "--series-description", "a=y"], "'a' is given twice"),
        (["tree", "--seg-order", "liver"], "no segment is called 'liver'"),
    ],
)
def test_a_command_that_cannot_be_done_says_so_and_writes_nothing(
    tmp_path: Path, write_series: WriteSeries, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    write_series(tmp_path / "tree")
    (tmp_path / "empty").mkdir()
    assert convert(tmp_path / arguments[0], *arguments[1:], "--out", tmp_path / "out") == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_file_of_somebody_else_called_like_the_table_is_left_alone(
    tmp_path: Path, write_series: WriteSeries, capsys: pytest.CaptureFixture[str]
) -> None:
    write_series(tmp_path / "tree")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "scans.tsv").write_text("mine\n1\n")
    assert convert(tmp_path / "tree", "--out", tmp_path / "out") == 2
    assert "no column 'subject'" in capsys.readouterr().err
    assert (tmp_path / "out" / "scans.tsv").read_text() == "mine\n1\n"


# ---- tags


def test_scanner_tags_are_columns_and_a_sidecar_in_the_units_of_bids(tmp_path: Path, write_series: WriteSeries) -> None:
    tags = {"Manufacturer": "ACME", "MagneticFieldStrength": 3, "EchoTime": "4.6", "ScanningSequence": ["SE", "IR"]}
    write_series(tmp_path / "tree", **tags)
    assert convert(tmp_path / "tree", "--out", tmp_path / "out") == 0
    (row,) = table_of(tmp_path / "out").to_dict("records")
    assert (row["manufacturer"], row["magnetic_field_strength"], row["slice_thickness"]) == ("ACME", 3, 9)
    assert row["echo_time"] == pytest.approx(0.0046)
    assert row["scanning_sequence"] == "SE_IR"
    assert np.isnan(row["flip_angle"])
    sidecar = json.loads((tmp_path / "out" / "sub-001" / "ses-1" / "series-003.json").read_text())
    assert (sidecar["Manufacturer"], sidecar["EchoTime"]) == ("ACME", pytest.approx(0.0046))


def test_an_enhanced_object_gives_the_same_volume_and_the_tags_of_its_frames(
    tmp_path: Path, write_series: WriteSeries
) -> None:
    seeds = importlib.import_module("fuzz_seeds")
    stack = seeds.voxels((6, 9, 10))
    dataset = seeds.multiframe(stack, PulseSequenceName="tfl")
    echo = pydicom.Dataset()
    echo.EffectiveEchoTime = 4.6
    for group in dataset.PerFrameFunctionalGroupsSequence:
        group.MREchoSequence = pydicom.Sequence([echo])
    (tmp_path / "tree").mkdir()
    dataset.save_as(tmp_path / "tree" / "one", enforce_file_format=True)
    assert convert(tmp_path / "tree", "--out", tmp_path / "out") == 0
    (row,) = table_of(tmp_path / "out").to_dict("records")
    assert (row["sequence_name"], row["slice_thickness"]) == ("tfl", 9)
    assert row["echo_time"] == pytest.approx(0.0046)
    image = nib.load(tmp_path / "out" / row["file"])
    np.testing.assert_array_equal(image.get_fdata(), stack.transpose(2, 1, 0))


def test_the_echoes_of_one_series_are_volumes_of_their_own(tmp_path: Path, write_series: WriteSeries) -> None:
    for echo, time in enumerate((20, 4)):

        def edit(index: int, dataset: Any, echo: int = echo, time: int = time) -> None:
            dataset.EchoTime = time
            dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = f"1.2.{echo}.{index + 1}"

        write_series(tmp_path / "tree" / str(echo), edit=edit)
    assert convert(tmp_path / "tree", "--out", tmp_path / "out") == 0
    table = table_of(tmp_path / "out")
    assert table["series"].tolist() == ["series-003_part-1", "series-003_part-2"]
    np.testing.assert_allclose(table["echo_time"], [0.004, 0.020])


@pytest.mark.real_data
def test_a_real_scanner_series_is_that_of_itk(real_data: Path, tmp_path: Path) -> None:
    itk = pytest.importorskip("itk", reason="skipped: ITK is not installed")
    assert convert(real_data / "dicom", "--out", tmp_path / "out") == 0
    table = table_of(tmp_path / "out")
    assert len(table) == 2
    assert set(table["magnetic_field_strength"].dropna()) == {3}
    for folder, slices in (("t1_post", 22), ("hippocampus_crop", 32)):
        files = [tmp_path / "out" / name for name in table["file"]]
        (result,) = [path for path in files if nib.load(path).shape[2] == slices]
        _same_by_itk(itk, real_data / "dicom" / folder, result)


def test_a_patient_who_comes_again_keeps_the_number_of_the_mapping(
    tmp_path: Path, write_series: WriteSeries, capsys: pytest.CaptureFixture[str]
) -> None:
    write_series(tmp_path / "first", "1.1", PatientID="pat7", StudyInstanceUID="8.1")
    write_series(tmp_path / "again", "1.2", PatientID="pat7", StudyInstanceUID="8.2")
    mapping = tmp_path / "who.tsv"
    assert convert(tmp_path / "first", "--out", tmp_path / "out", "--mapping", mapping) == 0
    capsys.readouterr()
    assert convert(tmp_path / "again", "--out", tmp_path / "out", "--mapping", mapping) == 0
    assert "recognized only" not in capsys.readouterr().err
    assert sorted(table_of(tmp_path / "out")["subject"]) == ["sub-001", "sub-001"]
    assert convert(tmp_path / "first", "--out", tmp_path / "other") == 0
    assert convert(tmp_path / "again", "--out", tmp_path / "other") == 0
    assert "is recognized only if the old studies are in the tree" in capsys.readouterr().err


def test_patient_ids_that_look_like_numbers_can_be_kept_twice(tmp_path: Path, write_series: WriteSeries) -> None:
    write_series(tmp_path / "tree", "1.1", PatientID="sub-001")
    for _ in range(2):
        assert convert(tmp_path / "tree", "--out", tmp_path / "out", "--keep-patient-ids") == 0


def test_nothing_to_convert_is_no_success(
    tmp_path: Path, write_series: WriteSeries, capsys: pytest.CaptureFixture[str]
) -> None:
    write_series(tmp_path / "tree", "1.1", ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])
    assert convert(tmp_path / "tree", "--out", tmp_path / "out") == 2
    assert "nothing to convert (a localizer)" in capsys.readouterr().err
