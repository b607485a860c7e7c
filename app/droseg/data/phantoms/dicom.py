"""Phantoms as DICOM: series in the folders of a scanner's export, and a DICOM SEG object of the labels per study."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from droseg import __version__
from droseg.data.datalist import PathLike
from droseg.data.phantoms.anatomy import STRUCTURES
from droseg.data.phantoms.files import check_arguments, make_files
from droseg.data.phantoms.people import SCANNERS, Person, plan_people, session_scans
from droseg.data.phantoms.scan import Scan, Weighting
from droseg.errors import InputError

MINIMUM_CASES: Final = 6
MINIMUM_SIZE: Final = 16
INSTALL: Final = "pip install 'droseg[dicom-seg]'"
_RAS_TO_LPS: Final = np.diag([-1.0, -1.0, 1.0, 1.0])
# Columns, rows and slices run to ... (nibabel's axis codes), as scanners show sagittal, coronal and axial slices.
_VIEWS: Final = {"sagittal": ("P", "I", "L"), "coronal": ("L", "I", "P"), "axial": ("L", "P", "S")}
_NAMES: Final = {"F": "Invented^Anna", "M": "Invented^Otto", None: "Invented^Kim"}
_SLICE_OF_LOCALIZER_MM: Final = 10.0


@dataclass(frozen=True)
class Slices:
    """A volume as a scanner stores it.

    Attributes:
        array: (slice, row, column).
        affine: (column, row, slice) index to DICOM's patient coordinates in mm (LPS+), (4, 4).
        view: "sagittal", "coronal" or "axial".
    """

    array: NDArray[Any]
    affine: NDArray[np.float64]
    view: str


def require_dicom() -> None:
    """Say before the first case what is missing to write DICOM.

    Raises:
        InputError: if pydicom or highdicom cannot be imported.
    """
    try:
        import highdicom
        import pydicom  # noqa: F401
    except ImportError as error:
        raise InputError(f"--layout dicom: needs pydicom and highdicom, {error.name} is missing; {INSTALL}.") from error
    del highdicom


def generate_dicom(
    out: PathLike, *, cases: int = 100, seed: int = 0, size: int = 64, workers: int = 1, progress: bool = False
) -> list[Person]:
    """Write a tree of DICOM files, `PATIENT/STUDY/SERIES/IM0001.dcm`, and return who is in it.

    Each study has a localizer (three slices of 10 mm), T2w, mostly T1w on the same grid, and a SEG object of the labels
    on T2w. The same arguments give the same bytes, whatever the number of workers.

    Args:
        out: folder.
        cases: number of studies; some people have two.
        seed: of everything random.
        size: voxels along the field of view of 128 mm, so 64 gives 2 mm.
        workers: processes to share the work.
        progress: show a progress bar on stderr.
    Raises:
        InputError: if an argument is out of range, a library is missing or the folder cannot be written.
    """
    require_dicom()
    check_arguments(cases=(cases, MINIMUM_CASES), size=(size, MINIMUM_SIZE), seed=(seed, 0))
    out = Path(out).expanduser().absolute()
    people = plan_people(cases, seed)
    jobs = [(person, session + 1, seed, size, out) for person in people for session in range(len(person.weightings))]
    make_files(_write_study, jobs, out, workers=workers, progress=progress)
    return people


def _write_study(job: tuple[Person, int, int, int, Path]) -> None:
    person, session, seed, size, out = job
    scans = session_scans(person, session, seed, size)
    study = _study(person, session, seed)
    folder = out / str(study["PatientID"]) / f"{study['StudyDate']}_{session}"
    reference = as_slices(scans["T2w"].image, scans["T2w"].affine)
    _write_series(folder / "001_localizer", _localizer(study, person, scans["T2w"]))
    for weighting, scan in scans.items():
        number = {"T2w": 2, "T1w": 3}[weighting]
        slices = as_slices(scan.image, scan.affine)
        datasets = _series(study, person, number, weighting, f"{weighting} {slices.view}", slices)
        _write_series(folder / f"{number:03d}_{weighting}", datasets)
        if weighting == "T2w":
            labels = as_slices(scan.label, scan.affine, reference.view)
            _write_seg(folder / "900_segmentation" / "IM0001.dcm", datasets, labels, study)


def as_slices(array: NDArray[Any], affine: NDArray[np.float64], view: str | None = None) -> Slices:
    """Return a volume as slices across its thickest axis (sagittal ones if it is isotropic), in a usual view."""
    if view is None:
        spacing_mm = np.linalg.norm(affine[:3, :3], axis=0)
        thick = int(spacing_mm.argmax()) if np.ptp(spacing_mm) > 1e-6 else None
        world = 0 if thick is None else int(nib.io_orientation(affine)[thick, 0])
        view = ("sagittal", "coronal", "axial")[world]
    wanted = nib.orientations.axcodes2ornt(_VIEWS[view])
    transform = nib.orientations.ornt_transform(nib.io_orientation(affine), wanted)
    turned = nib.orientations.apply_orientation(array, transform)
    turned_affine = affine @ nib.orientations.inv_ornt_aff(transform, array.shape)
    return Slices(np.ascontiguousarray(turned.transpose(2, 1, 0)), _RAS_TO_LPS @ turned_affine, view)


def _uid(*parts: object) -> str:
    """Return a unique identifier that depends on the parts alone."""
    from pydicom.uid import generate_uid

    return str(generate_uid(entropy_srcs=["droseg phantoms", *map(str, parts)]))


def _study(person: Person, session: int, seed: int) -> dict[str, Any]:
    """Return the elements of patient and study: every name and date is invented, and looks it."""
    scanner = SCANNERS[person.protocol]
    return {
        "PatientName": f"{_NAMES[person.sex]}",
        "PatientID": f"PHANTOM-{person.number:03d}",
        "PatientBirthDate": "19000101",
        "PatientSex": person.sex or "",
        "PatientAge": "" if person.age is None else f"{person.age:03d}Y",
        "StudyInstanceUID": _uid(seed, person.number, session),
        "StudyID": str(session),
        "StudyDate": f"2000010{session}",
        "StudyTime": "120000",
        "AccessionNumber": f"INVENTED{person.number:03d}{session}",
        "ReferringPhysicianName": "Invented^Doctor",
        "InstitutionName": f"Invented Hospital {scanner['site']}",
        "Manufacturer": scanner["Manufacturer"],
        "ManufacturerModelName": scanner["ManufacturersModelName"],
        "MagneticFieldStrength": scanner["MagneticFieldStrength"],
        "DeviceSerialNumber": "INVENTED",
        "SoftwareVersions": __version__,
        "FrameOfReferenceUID": _uid(seed, person.number, session, "frame"),
    }


def _series(
    study: dict[str, Any], person: Person, number: int, weighting: Weighting, description: str, slices: Slices
) -> list[Any]:
    """Return the datasets of a series, one per slice."""
    spacing_mm = np.linalg.norm(slices.affine[:3, :3], axis=0)
    scanner = SCANNERS[person.protocol]
    shared = {
        **study,
        "SeriesInstanceUID": _uid(study["StudyInstanceUID"], number),
        "SeriesNumber": number,
        "SeriesDate": study["StudyDate"],
        "SeriesTime": f"12{number:02d}00",
        "SeriesDescription": description,
        "ProtocolName": description,
        "BodyPartExamined": "BRAIN",
        "PatientPosition": "HFS",
        "MRAcquisitionType": "3D" if person.protocol == "isotropic" else "2D",
        "EchoTime": 1000 * scanner["EchoTime"][weighting],
        "RepetitionTime": 1000 * scanner["RepetitionTime"][weighting],
        "SliceThickness": round(float(spacing_mm[2]), 4),
        "SpacingBetweenSlices": round(float(spacing_mm[2]), 4),
        "PixelSpacing": [round(float(spacing_mm[1]), 6), round(float(spacing_mm[0]), 6)],
    }
    cosines = (slices.affine[:3, :2] / spacing_mm[:2]).T.reshape(-1)
    shared["ImageOrientationPatient"] = [f"{value:.10f}" for value in cosines]
    datasets = []
    for index, pixels in enumerate(slices.array):
        position = slices.affine[:3, 3] + index * slices.affine[:3, 2]
        own = {
            "SOPInstanceUID": _uid(shared["SeriesInstanceUID"], index),
            "InstanceNumber": index + 1,
            "ImagePositionPatient": [f"{value:.6f}" for value in position],
        }
        datasets.append(_dataset({**shared, **own}, pixels))
    return datasets


def _dataset(elements: dict[str, Any], pixels: NDArray[Any]) -> Any:
    """Return an MR image of one slice (DICOM PS3.3, MR Image IOD)."""
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian, MRImageStorage

    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.file_meta.MediaStorageSOPClassUID = MRImageStorage
    dataset.file_meta.MediaStorageSOPInstanceUID = elements["SOPInstanceUID"]
    fixed = {
        "SOPClassUID": MRImageStorage,
        "Modality": "MR",
        "ImageType": ["ORIGINAL", "PRIMARY", "M", "ND"],
        "ScanningSequence": "SE",
        "SequenceVariant": "NONE",
        "ScanOptions": "",
        "EchoTrainLength": 1,
        "PositionReferenceIndicator": "",
        "SamplesPerPixel": 1,
        "PhotometricInterpretation": "MONOCHROME2",
        "BitsAllocated": 16,
        "BitsStored": 16,
        "HighBit": 15,
        "PixelRepresentation": 0,
    }
    for name, value in {**fixed, **elements}.items():
        setattr(dataset, name, value)
    dataset.Rows, dataset.Columns = pixels.shape
    dataset.PixelData = np.ascontiguousarray(pixels, dtype="<u2").tobytes()
    return dataset


def _localizer(study: dict[str, Any], person: Person, scan: Scan) -> list[Any]:
    """Return one thick slice through the middle in each view: a series that is no volume, as every study has it."""
    datasets = []
    for index, view in enumerate(_VIEWS):
        slices = as_slices(scan.image, scan.affine, view)
        middle = len(slices.array) // 2
        affine = slices.affine.copy()
        affine[:3, 3] += middle * affine[:3, 2]
        affine[:3, 2] *= _SLICE_OF_LOCALIZER_MM / np.linalg.norm(affine[:3, 2])
        single = Slices(slices.array[middle : middle + 1], affine, view)
        (dataset,) = _series(study, person, 1, "T2w", "localizer", single)
        dataset.InstanceNumber = index + 1
        dataset.SOPInstanceUID = _uid(dataset.SeriesInstanceUID, view)
        dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
        datasets.append(dataset)
    return datasets


def _write_series(folder: Path, datasets: Sequence[Any]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for dataset in datasets:
        dataset.save_as(folder / f"IM{dataset.InstanceNumber:04d}.dcm", enforce_file_format=True)


def _write_seg(path: Path, sources: Sequence[Any], labels: Slices, study: dict[str, Any]) -> None:
    """Write the label map as a binary DICOM SEG object that refers to the slices it was drawn on."""
    import highdicom as hd
    from pydicom.sr.codedict import codes

    segments = [
        hd.seg.SegmentDescription(
            segment_number=value,
            segment_label=name,
            segmented_property_category=codes.SCT.AnatomicalStructure,
            segmented_property_type=hd.sr.CodedConcept(f"STRUCTURE{value}", "99DROSEG", name),
            algorithm_type="MANUAL",
        )
        for name, value in STRUCTURES.items()
    ]
    series_uid = _uid(study["StudyInstanceUID"], "segmentation")
    seg = hd.seg.Segmentation(
        source_images=sources,
        pixel_array=labels.array,
        segmentation_type="BINARY",
        segment_descriptions=segments,
        series_instance_uid=series_uid,
        series_number=900,
        sop_instance_uid=_uid(series_uid, 1),
        instance_number=1,
        manufacturer="droseg",
        manufacturer_model_name="droseg phantoms",
        software_versions=__version__,
        device_serial_number="INVENTED",
        content_label="LABELS",
        content_description="Labels of a generated brain",
        content_creator_name="Invented^Rater",
        series_description="labels",
    )
    _fix(seg, study)
    path.parent.mkdir(parents=True, exist_ok=True)
    seg.save_as(path, enforce_file_format=True)


def _fix(seg: Any, study: dict[str, Any]) -> None:
    """Replace what highdicom takes from the clock and from chance, so that a seed gives the same bytes."""
    organization = _uid(seg.SOPInstanceUID, "dimensions")

    def replace(_: Any, element: Any) -> None:
        if element.keyword == "DimensionOrganizationUID":
            element.value = organization
        elif element.keyword in ("ContentDate", "InstanceCreationDate", "SeriesDate"):
            element.value = study["StudyDate"]
        elif element.keyword in ("ContentTime", "InstanceCreationTime", "SeriesTime"):
            element.value = study["StudyTime"]
        elif element.keyword == "ContributionDateTime":
            element.value = study["StudyDate"] + study["StudyTime"]

    seg.walk(replace)
