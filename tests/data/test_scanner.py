"""Scanner tags of DICOM series that pydicom wrote, as features of a case that ITK reads."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from droseg.data.datalist import Case
from droseg.data.scanner import DICOM_TAGS, scanner_tags
from droseg.discovery.features import datalist_features, image_features

pydicom = pytest.importorskip("pydicom", reason="skipped: pydicom is not installed")

IDENTIFYING = {
    "PatientName": "Doe^Jane",
    "PatientID": "4711",
    "PatientBirthDate": "19800101",
    "PatientWeight": 61,
    "InstitutionName": "Hospital",
    "StationName": "MR3",
    "DeviceSerialNumber": "123456",
    "ProtocolName": "brain Doe",
    "StudyDate": "20240101",
    "OperatorsName": "Roe",
}


@pytest.fixture
def write_series(tmp_path: Path) -> Callable[..., Path]:
    """Return a function that writes a series of 6 axial slices of 3 mm with the given elements, and its folder."""

    def write(name: str = "series", num_slices: int = 6, **elements: Any) -> Path:
        folder = tmp_path / name
        folder.mkdir()
        series, study = pydicom.uid.generate_uid(), pydicom.uid.generate_uid()
        for index in range(num_slices):
            meta = pydicom.dataset.FileMetaDataset()
            meta.MediaStorageSOPClassUID = pydicom.uid.MRImageStorage
            meta.MediaStorageSOPInstanceUID = pydicom.uid.generate_uid()
            meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
            item = pydicom.dataset.FileDataset(str(folder / f"{index}.dcm"), {}, file_meta=meta, preamble=b"\0" * 128)
            item.SOPClassUID, item.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
            item.SeriesInstanceUID, item.StudyInstanceUID, item.Modality = series, study, "MR"
            item.InstanceNumber, item.ImagePositionPatient = index + 1, [0, 0, 3.0 * index]
            item.ImageOrientationPatient, item.PixelSpacing = [1, 0, 0, 0, 1, 0], [1, 1]
            item.Rows, item.Columns, item.SamplesPerPixel = 8, 6, 1
            item.PhotometricInterpretation, item.PixelRepresentation = "MONOCHROME2", 0
            item.BitsAllocated, item.BitsStored, item.HighBit = 16, 16, 15
            item.PixelData = np.arange(48, dtype=np.uint16).tobytes()
            for keyword, value in elements.items():
                setattr(item, keyword, value)
            item.save_as(folder / f"{index}.dcm", enforce_file_format=True)
        return folder

    return write


def test_the_tags_of_a_dicom_header_have_the_names_and_units_of_bids(write_series: Callable):
    folder = write_series(
        Manufacturer="SIEMENS",
        ManufacturerModelName="Skyra ",
        MagneticFieldStrength="3",
        EchoTime="98.5",
        RepetitionTime="1500",
        InversionTime="",
        FlipAngle="120",
        EchoTrainLength="32",
        ScanningSequence=["SE", "IR"],
        SliceThickness="3",
        ParallelReductionFactorInPlane=2.0,
    )
    assert scanner_tags(folder) == {
        "Manufacturer": "SIEMENS",
        "ManufacturersModelName": "Skyra",
        "ScanningSequence": "SE_IR",
        "MagneticFieldStrength": 3.0,
        "FlipAngle": 120.0,
        "EchoTrainLength": 32.0,
        "SliceThickness": 3.0,
        "ParallelReductionFactorInPlane": 2.0,
        "EchoTime": 0.0985,
        "RepetitionTime": 1.5,
    }


def test_who_was_scanned_where_and_by_whom_is_not_read(write_series: Callable):
    found = scanner_tags(write_series(Manufacturer="GE", **IDENTIFYING))
    assert found == {"Manufacturer": "GE"}
    assert not set(IDENTIFYING) & set(DICOM_TAGS)


def test_a_text_with_the_patients_name_is_left_out(write_series: Callable):
    found = scanner_tags(write_series(Manufacturer="GE", PatientName="Doeson^Johnny", ReceiveCoilName="HEAD Doeson"))
    assert found == {"Manufacturer": "GE"}


def test_they_are_features_of_a_case_that_is_a_dicom_series(write_series: Callable):
    pytest.importorskip("itk", reason="skipped: ITK is not installed")
    cases = [
        Case(name, name, (write_series(name, MagneticFieldStrength=field, **IDENTIFYING),), None, {})
        for name, field in (("a", "1.5"), ("b", "3"))
    ]
    assert image_features(cases[0])["slice_thickness_mm"] == 3.0
    table, problems = datalist_features(cases, {})
    assert table["MagneticFieldStrength"].tolist() == [1.5, 3.0]
    assert problems == {}


def test_other_files_in_the_folder_and_values_against_the_rules_do_not_matter(write_series: Callable):
    folder = write_series(Manufacturer="GE", EchoTime=["80", "90"])
    (folder / "0_readme.txt").write_text("not DICOM")
    raw = (folder / "0.dcm").read_bytes()
    (folder / "0.dcm").write_bytes(raw.replace(b"80\\90", b"8O\\9O"))  # letters in a number
    assert scanner_tags(folder) == {"Manufacturer": "GE"}


def test_without_pydicom_or_dicom_files_there_are_no_tags(
    write_series: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "empty").mkdir()
    assert scanner_tags(tmp_path / "empty") == {}
    folder = write_series(Manufacturer="GE")
    monkeypatch.setitem(sys.modules, "pydicom", None)
    assert scanner_tags(folder) == {}


@pytest.mark.real_data
def test_a_real_series_says_what_another_reader_says(real_data: Path):
    itk = pytest.importorskip("itk", reason="skipped: ITK is not installed")
    folder = real_data / "dicom" / "t1_post"
    found = scanner_tags(folder)
    reader = itk.GDCMImageIO.New()
    reader.SetFileName(str(sorted(folder.iterdir())[0]))
    reader.ReadImageInformation()
    header = reader.GetMetaDataDictionary()
    assert found["EchoTime"] == pytest.approx(float(header["0018|0081"]) / 1000)
    assert found["MagneticFieldStrength"] == float(header["0018|0087"])
    assert found["Manufacturer"] == header["0008|0070"].strip()
