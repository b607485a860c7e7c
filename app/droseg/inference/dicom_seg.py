"""A label map as a DICOM SEG object that refers to the series it was made from."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from droseg import __version__
from droseg.data.dicom import DicomSeries
from droseg.data.regions import Structures, label_values, mask_of, shared_values
from droseg.data.volumes import ImageSource
from droseg.errors import InputError
from droseg.inference.predictor import Segmentation
from droseg.inference.reading import ImageError

INSTALL = "pip install 'droseg[dicom-seg]'"
RAS_TO_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
MAY_BE_EMPTY = (
    "PatientName",
    "PatientID",
    "PatientBirthDate",
    "PatientSex",
    "StudyDate",
    "StudyTime",
    "StudyID",
    "AccessionNumber",
    "ReferringPhysicianName",
)
"""What a SEG repeats of its source: of type 2 in DICOM PS3.3, so it may be empty; de-identified files often lack it."""
SEXES = ("M", "F", "O")
"""What DICOM PS3.3 C.7.1.1 allows beside nothing."""
NEEDED = (
    *MAY_BE_EMPTY,
    *("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID", "SeriesNumber", "Modality"),
    *("FrameOfReferenceUID", "PositionReferenceIndicator", "ImagePositionPatient", "ImageOrientationPatient"),
    *("Rows", "Columns", "PixelSpacing", "SliceThickness", "SpacingBetweenSlices", "NumberOfFrames"),
    *("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence", "DimensionOrganizationType"),
    *("LossyImageCompression", "LossyImageCompressionMethod", "LossyImageCompressionRatio"),
)
"""All that is read of the source: highdicom repeats what else it finds on patient, study and hospital."""
TOLERANCE = 0.01
"""Voxels by which a slice may lie off the grid: rounding in decimal strings."""


def require_highdicom() -> None:
    """Say before the first case that what writes DICOM SEG objects is missing.

    Raises:
        InputError: if highdicom cannot be imported.
    """
    try:
        import highdicom  # noqa: F401
    except ImportError as error:
        raise InputError(f"--dicom-seg: DICOM SEG objects need highdicom, which is missing; {INSTALL}.") from error


def dicom_sources(images: Sequence[ImageSource | None]) -> list[Path]:
    """Return the DICOM files of the first channel that a case has; none if it is no DICOM."""
    first = next((image for image in images if image is not None), None)
    return list(first.files) if isinstance(first, DicomSeries) else []


def save_dicom_seg(path: Path, segmentation: Segmentation, structures: Structures, sources: Sequence[Path]) -> None:
    """Write a label map on the grid of its source series as a binary DICOM SEG object, a segment for each structure.

    Args:
        path: of the object.
        segmentation: on the grid of the image.
        structures: name -> value in the label map, or several; segments of structures that share values overlap.
        sources: DICOM files, among them those of the image; other series are told apart by their grid.

    Raises:
        ImageError: if no series among the sources has the grid of the label map, or lacks what a SEG must repeat.
    """
    import highdicom as hd

    affine = RAS_TO_LPS @ segmentation.affine
    datasets = _on_grid(sources, segmentation.labels.shape, affine)
    frames = np.ascontiguousarray(_segments(segmentation.labels, structures))
    channels: Any = {"SegmentNumber": list(range(1, len(structures) + 1))} if frames.ndim == 4 else None
    order = [2, 1, 0, 3]
    try:
        volume = hd.Volume(
            frames,
            affine[:, order],
            coordinate_system="PATIENT",
            frame_of_reference_uid=datasets[0].FrameOfReferenceUID,
            channels=channels,
        )
        seg = hd.seg.Segmentation(
            source_images=datasets,
            pixel_array=volume,
            segmentation_type="BINARY",
            segment_descriptions=[_segment(number, name) for number, name in enumerate(structures, start=1)],
            series_instance_uid=hd.UID(),
            series_number=int(datasets[0].get("SeriesNumber") or 0) + 1000,
            sop_instance_uid=hd.UID(),
            instance_number=1,
            manufacturer="droseg",
            manufacturer_model_name="droseg",
            software_versions=__version__,
            device_serial_number="0",
            content_label="SEGMENTATION",
            content_description="Automatic segmentation; research only",
            series_description="droseg segmentation (research only)",
        )
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        missing = error.name if isinstance(error, AttributeError) else None
        why = f"it has no {missing}" if missing else " ".join(str(error).split())[:160]
        raise ImageError(
            f"{sources[0].parent}: no DICOM SEG can refer to this series ({why})", "leave out --dicom-seg"
        ) from error
    seg.save_as(path)


def _segments(labels: NDArray[Any], structures: Structures) -> NDArray[Any]:
    """Return the number of the segment at each place, or, where they overlap, 0 or 1 for each (last axis).

    DICOM's frames are (slice, row, column); the label map is (column, row, slice).
    """
    values = label_values(structures)
    if shared_values(structures):
        masks = [mask_of(labels, those).astype(np.uint8) for those in values.values()]
        return np.stack(masks, axis=-1).transpose(2, 1, 0, 3)
    segment_of = np.zeros(max(map(max, values.values())) + 1, np.min_scalar_type(len(values)))
    for number, those in enumerate(values.values(), start=1):
        segment_of[list(those)] = number
    return segment_of[labels].transpose(2, 1, 0)


def _segment(number: int, name: str) -> Any:
    import highdicom as hd
    from pydicom.sr.codedict import codes

    algorithm = hd.AlgorithmIdentificationSequence(
        name="droseg", version=__version__, family=codes.DCM.ArtificialIntelligence
    )
    return hd.seg.SegmentDescription(
        segment_number=number,
        segment_label=name[:64],
        segmented_property_category=codes.SCT.AnatomicalStructure,
        # A bundle's structures have names, not codes of a terminology: a private scheme, as the standard provides.
        segmented_property_type=hd.sr.CodedConcept(
            value=f"STRUCTURE{number}", scheme_designator="99DROSEG", meaning=name[:64]
        ),
        algorithm_type="AUTOMATIC",
        algorithm_identification=algorithm,
    )


def _on_grid(sources: Sequence[Path], shape: Sequence[int], affine: NDArray[np.float64]) -> list[Any]:
    """Return the headers of the series that lies on a grid (LPS affine), in the order of its slices."""
    import pydicom

    series: dict[str, list[Any]] = defaultdict(list)
    for path in sources:
        dataset = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=list(NEEDED))
        for name in MAY_BE_EMPTY:
            if name not in dataset:
                setattr(dataset, name, "")
        if dataset.PatientSex not in SEXES:  # such as "X" or "female"; highdicom would refuse the series for it
            dataset.PatientSex = ""
        series[str(dataset.get("SeriesInstanceUID"))].append(dataset)
    for datasets in series.values():
        if len(datasets) == 1 and "PerFrameFunctionalGroupsSequence" in datasets[0]:
            return datasets  # enhanced multi-frame: highdicom matches its frames
        slices = {_slice_index(dataset, shape, affine): dataset for dataset in datasets}
        if len(datasets) == shape[2] and set(slices) == set(range(shape[2])):
            return _alike([slices[index] for index in range(shape[2])], float(np.linalg.norm(affine[:3, 2])))
    found = ", ".join(f"{len(datasets)} files" for datasets in series.values())
    raise ImageError(
        f"{sources[0].parent}: no series on the grid of the label map, {tuple(shape)} (found {found})",
        "leave out --dicom-seg",
    )


def _alike(datasets: list[Any], spacing_mm: float) -> list[Any]:
    """Return slices of one grid as highdicom wants them: a thickness, and orientations without rounding errors."""
    for dataset in datasets:
        dataset.ImageOrientationPatient = datasets[0].ImageOrientationPatient
        if not dataset.get("SliceThickness"):
            dataset.SliceThickness = f"{spacing_mm:.10g}"
    return datasets


def _slice_index(dataset: Any, shape: Sequence[int], affine: NDArray[np.float64]) -> int | None:
    """Return which slice of the grid a single-frame image is; None if it is none."""
    position = dataset.get("ImagePositionPatient")
    if position is None or (dataset.get("Columns"), dataset.get("Rows")) != tuple(shape[:2]):
        return None
    column, row, index = np.linalg.solve(affine, [*map(float, position), 1.0])[:3]
    nearest = round(float(index))
    on_grid = max(abs(column), abs(row), abs(index - nearest)) < TOLERANCE
    return nearest if on_grid else None
