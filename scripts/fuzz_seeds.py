"""The small valid images that `fuzz_inputs.py` mutates: a folder per kind; its first file is the one to mutate."""

from __future__ import annotations

import gzip
import locale
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

SEEDS: Final[dict[str, float]] = {
    "nifti": 20,
    "nifti_gz": 14,
    "nifti_4d": 4,
    "nrrd": 12,
    "nrrd_gz": 5,
    "nhdr": 4,
    "mha": 8,
    "mha_compressed": 4,
    "mhd": 4,
    "dicom": 15,
    "dicom_multiframe": 8,
    "dicom_rle": 2,
    "dicom_j2k": 0.5,
}
"""Kind -> share of the mutants."""

_AFFINE: Final = np.array([[0, 0, 2.0, 5], [-1.5, 0, 0, 7], [0, 1.2, 0, -9], [0, 0, 0, 1]])
_MR: Final = "1.2.840.10008.5.1.4.1.1.4"


def make_seeds(folder: Path) -> None:
    """Write one folder per kind."""
    for kind in SEEDS:
        (folder / kind).mkdir(parents=True)
    for kind, make in _MAKERS.items():
        make(folder / kind)


def voxels(shape: tuple[int, ...] = (10, 9, 8)) -> NDArray[np.int16]:
    """Return voxels that compress, with structure in every bit."""
    return np.random.default_rng(0).integers(-300, 300, shape).astype(np.int16) // 8 * 8


def _nifti(folder: Path) -> None:
    image = nib.Nifti1Image(voxels(), _AFFINE)
    image.header.set_slope_inter(0.5, 10)
    nib.save(image, folder / "0.nii")


def _nifti_gz(folder: Path) -> None:
    nib.save(nib.Nifti1Image(voxels().astype(np.float32), _AFFINE), folder / "0.nii.gz")


def _nifti_4d(folder: Path) -> None:
    nib.save(nib.Nifti2Image(voxels((8, 7, 6, 1)), _AFFINE), folder / "0.nii")


_NRRD: Final = """NRRD0004
# made for fuzzing
type: short
dimension: 3
space: left-posterior-superior
sizes: 10 9 8
space directions: (0,1.5,0) (0,0,1.2) (-2,0,0)
kinds: domain domain domain
endian: little
encoding: {encoding}
space origin: (-5,-7,-9)
{more}
"""


def _data() -> bytes:
    return voxels().tobytes(order="F")


def _nrrd(folder: Path) -> None:
    (folder / "0.nrrd").write_bytes(_NRRD.format(encoding="raw", more="key:=value\n").encode() + _data())


def _nrrd_gz(folder: Path) -> None:
    content = _NRRD.format(encoding="gzip", more="").encode() + gzip.compress(_data(), mtime=0)
    (folder / "0.nrrd").write_bytes(content)


def _nhdr(folder: Path) -> None:
    (folder / "0.nhdr").write_bytes(_NRRD.format(encoding="raw", more="data file: data.raw\n").encode())
    (folder / "data.raw").write_bytes(_data())


_META: Final = """ObjectType = Image
NDims = 3
BinaryData = True
BinaryDataByteOrderMSB = False
CompressedData = {compressed}
TransformMatrix = 0 1 0 0 0 1 -1 0 0
Offset = -5 -7 -9
CenterOfRotation = 0 0 0
ElementSpacing = 1.5 1.2 2
DimSize = 10 9 8
ElementType = MET_SHORT
ElementDataFile = {data}
"""


def _mha(folder: Path) -> None:
    (folder / "0.mha").write_bytes(_META.format(compressed=False, data="LOCAL").encode() + _data())


def _mha_compressed(folder: Path) -> None:
    content = _META.format(compressed=True, data="LOCAL").encode() + zlib.compress(_data())
    (folder / "0.mha").write_bytes(content)


def _mhd(folder: Path) -> None:
    (folder / "0.mhd").write_bytes(_META.format(compressed=False, data="data.raw").encode())
    (folder / "data.raw").write_bytes(_data())


def dicom_slice(index: int, pixels: NDArray[np.int16], **tags: Any) -> Any:
    """Return a pydicom data set of one oblique slice, 2.5 mm behind the one before."""
    import pydicom
    from pydicom.uid import ExplicitVRLittleEndian

    row, column = np.array([0.96, 0.28, 0.0]), np.array([-0.168, 0.576, 0.8])
    dataset = pydicom.Dataset()
    dataset.file_meta = pydicom.dataset.FileMetaDataset()
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID = _MR
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID = f"1.2.3.4.{index + 1}"
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID, dataset.FrameOfReferenceUID = "1.2.3", "1.2.3.4", "1.2.5"
    dataset.Modality, dataset.SeriesNumber, dataset.SeriesDescription = "MR", 3, "T2 oblique"
    dataset.ImageType = ["ORIGINAL", "PRIMARY", "M"]
    dataset.PatientName, dataset.PatientID, dataset.InstanceNumber = "Doe^Jane", "P-4711", index + 1
    dataset.ImagePositionPatient = np.round([10, -20, 30] + 2.5 * index * np.cross(row, column), 6).tolist()
    dataset.ImageOrientationPatient = [*row.tolist(), *column.tolist()]
    dataset.PixelSpacing, dataset.SliceThickness = [1.5, 1.2], 9  # the thickness says nothing about the spacing
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.BitsAllocated = dataset.BitsStored = 16
    dataset.HighBit, dataset.PixelRepresentation = 15, 1
    dataset.Rows, dataset.Columns = pixels.shape
    dataset.PixelData = np.ascontiguousarray(pixels, "<i2").tobytes()
    for name, value in tags.items():
        setattr(dataset, name, value)
    return dataset


def multiframe(stack: NDArray[np.int16], **tags: Any) -> Any:
    """Return a pydicom data set of an enhanced MR object; `stack` is (frames, rows, columns)."""
    from pydicom.dataset import Dataset
    from pydicom.sequence import Sequence

    dataset = dicom_slice(0, stack[0])
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID = f"{_MR}.1"
    shared, measures, orientation = Dataset(), Dataset(), Dataset()
    measures.PixelSpacing, measures.SliceThickness = dataset.PixelSpacing, 9
    orientation.ImageOrientationPatient = dataset.ImageOrientationPatient
    shared.PixelMeasuresSequence, shared.PlaneOrientationSequence = Sequence([measures]), Sequence([orientation])
    dataset.SharedFunctionalGroupsSequence = Sequence([shared])
    groups = []
    for index in range(len(stack)):
        position, group = Dataset(), Dataset()
        position.ImagePositionPatient = dicom_slice(index, stack[0]).ImagePositionPatient
        group.PlanePositionSequence = Sequence([position])
        groups.append(group)
    dataset.PerFrameFunctionalGroupsSequence = Sequence(groups)
    dataset.NumberOfFrames = len(stack)
    for name in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "SliceThickness"):
        delattr(dataset, name)
    dataset.PixelData = np.ascontiguousarray(stack, "<i2").tobytes()
    for name, value in tags.items():
        setattr(dataset, name, value)
    return dataset


def _stack() -> NDArray[np.int16]:
    return voxels((6, 9, 10))


def _dicom(folder: Path) -> None:
    for index, pixels in enumerate(_stack()):
        dicom_slice(index, pixels).save_as(folder / f"{index}.dcm", enforce_file_format=True)


def _dicom_multiframe(folder: Path) -> None:
    multiframe(_stack()).save_as(folder / "0.dcm", enforce_file_format=True)


def _dicom_rle(folder: Path) -> None:
    from pydicom.uid import RLELossless

    for index, pixels in enumerate(_stack()):
        dataset = dicom_slice(index, pixels)
        dataset.compress(RLELossless, generate_instance_uid=False)
        dataset.save_as(folder / f"{index}.dcm", enforce_file_format=True)


def _dicom_j2k(folder: Path) -> None:
    for index, pixels in enumerate(_stack()):
        write_j2k(folder / f"{index}.dcm", dicom_slice(index, np.kron(pixels, np.ones((4, 4), np.int16))))


def write_j2k(path: Path, dataset: Any) -> None:
    """Write a data set with the pixels in JPEG 2000 without loss, as GDCM encodes them."""
    import itk
    import pydicom

    plain = path.with_suffix(".plain")
    dataset.save_as(plain, enforce_file_format=True)
    reader, writer = itk.GDCMImageIO.New(), itk.GDCMImageIO.New()
    image = itk.imread(str(plain), imageio=reader)
    writer.SetCompressionType(itk.GDCMImageIOEnums.Compression_JPEG2000)
    before = locale.setlocale(locale.LC_ALL)
    itk.imwrite(image, str(path), compression=True, imageio=writer)
    locale.setlocale(locale.LC_ALL, before)  # GDCM leaves "C", and Python would then read text files as ASCII
    encoded = pydicom.dcmread(path)
    dataset.file_meta.TransferSyntaxUID = encoded.file_meta.TransferSyntaxUID
    dataset.PixelData = encoded.PixelData
    dataset["PixelData"].VR = "OB"
    dataset["PixelData"].is_undefined_length = True
    dataset.save_as(path, enforce_file_format=True)
    plain.unlink()


_MAKERS: Final[dict[str, Callable[[Path], None]]] = {
    "nifti": _nifti,
    "nifti_gz": _nifti_gz,
    "nifti_4d": _nifti_4d,
    "nrrd": _nrrd,
    "nrrd_gz": _nrrd_gz,
    "nhdr": _nhdr,
    "mha": _mha,
    "mha_compressed": _mha_compressed,
    "mhd": _mhd,
    "dicom": _dicom,
    "dicom_multiframe": _dicom_multiframe,
    "dicom_rle": _dicom_rle,
    "dicom_j2k": _dicom_j2k,
}
