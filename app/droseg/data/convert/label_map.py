"""DICOM SEG objects as one label map on the grid of the series that they refer to."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from droseg.data.convert.segments import SegObject
from droseg.data.dicom import DicomSeries
from droseg.data.grids import GRID_TOLERANCE, VolumeError, short
from droseg.data.text_header import LPS_TO_RAS

_INSTALL: Final = "pip install 'droseg[dicom-seg]'"


def label_map(
    segs: Sequence[SegObject], series: DicomSeries, values: Mapping[str, int], order: Sequence[str] = ()
) -> NDArray[Any]:
    """Return the label map of a series, (columns, rows, slices), of the smallest type that holds `values`.

    Frames are put where their position and orientation say, so their order, and slices without a frame, do not matter.

    Args:
        segs: SEG objects that refer to the series.
        series: whose grid is wanted.
        values: name of a segment -> label value.
        order: names of segments that may overlap; where they do, the first one wins.
    Raises:
        VolumeError: if a frame is not on the grid of the series, or segments overlap without an order.
    """
    _check_names(segs)
    rank = {values[name]: place for place, name in enumerate(order) if name in values}
    names = {value: name for name, value in values.items()}
    labels = np.zeros(series.shape, np.min_scalar_type(max(values.values())))
    overlaps: Counter[tuple[str, str]] = Counter()
    for seg in segs:
        for place, value in _voxels(seg, series, values):
            before = labels[place]
            clash = (before != 0) & (before != value)
            for other in np.unique(before[clash]).tolist():
                if value not in rank or other not in rank:
                    first, second = sorted((names[other], names[value]))
                    overlaps[first, second] += int((before == other).sum())
            keeps = clash & np.isin(before, [other for other in rank if rank[other] < rank.get(value, len(rank))])
            labels[place] = np.where(keeps, before, value)
    if overlaps:
        listed = ", ".join(f"'{a}' and '{b}' in {count} voxels" for (a, b), count in sorted(overlaps.items()))
        raise VolumeError(
            f"{segs[0].path}: segments overlap: {listed}",
            "a label map holds one structure per voxel: say with --seg-order NAME,NAME,... which one wins, the first",
        )
    return labels


def _check_names(segs: Sequence[SegObject]) -> None:
    repeated = [name for name, count in Counter(name for seg in segs for name in seg.numbers).items() if count > 1]
    if repeated:
        others = ", ".join(str(seg.path) for seg in segs[1:])
        listed = ", ".join(f"'{name}'" for name in repeated)
        raise VolumeError(
            f"{segs[0].path}: {listed} is also a segment of {others}, which refers to the same series",
            "leave one of the objects in the tree: which one is right cannot be known here",
        )


def _voxels(seg: SegObject, series: DicomSeries, values: Mapping[str, int]) -> Any:
    """Yield per frame and value the voxels of the series, as index arrays, and the value."""
    try:
        import highdicom as hd
    except ImportError as error:
        raise VolumeError(f"{seg.path}: a SEG object, and highdicom is not installed", _INSTALL) from error
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            dataset = hd.seg.segread(seg.path)
            groups = dataset.PerFrameFunctionalGroupsSequence
            shared = dataset.SharedFunctionalGroupsSequence[0]
            # All at once: highdicom unpacks single bits only as a whole, and decompresses what is compressed.
            frames = np.reshape(dataset.pixel_array, (len(groups), dataset.Rows, dataset.Columns))
        except Exception as error:  # many types on damaged objects
            raise VolumeError(f"{seg.path}: a damaged SEG object ({short(error)})", "export it again") from error
        by_number = dataset.SegmentationType == "LABELMAP"
        for index, (pixels, group) in enumerate(zip(frames, groups, strict=True)):
            where = f"{seg.path}, frame {index + 1}"
            to_series = _to_series(where, _frame_affine(where, group, shared), series, pixels.shape)
            for number in np.unique(pixels[pixels != 0]).tolist():
                found = number if by_number else _segment_number(where, group, shared)
                if found not in seg.segments:
                    raise VolumeError(f"{where}: it is of segment {found}, which is not described", "export it again")
                rows, columns = np.nonzero(pixels == number)
                yield _place(where, to_series, columns, rows, series.shape), values[seg.segments[found]]


def _segment_number(where: str, group: Any, shared: Any) -> int:
    for item in (group, shared):
        if "SegmentIdentificationSequence" in item:
            return int(item.SegmentIdentificationSequence[0].ReferencedSegmentNumber)
    raise VolumeError(f"{where}: it does not say of which segment it is", "export it again")


def _frame_affine(where: str, group: Any, shared: Any) -> NDArray[np.float64]:
    """Return (column, row, 0, 1) of a frame -> mm in RAS: DICOM PS3.3 equation C.7.6.2.1-1."""

    def numbers(sequence: str, keyword: str) -> NDArray[np.float64]:
        for item in (group, shared):
            if sequence in item and keyword in item[sequence].value[0]:
                return np.array(item[sequence].value[0].get(keyword), dtype=np.float64)
        raise VolumeError(f"{where}: it has no {keyword}", "export it again")

    row, column = numbers("PlaneOrientationSequence", "ImageOrientationPatient").reshape(2, 3)
    between_rows, between_columns = numbers("PixelMeasuresSequence", "PixelSpacing")
    affine = np.eye(4)
    affine[:3, 0], affine[:3, 1] = row * between_columns, column * between_rows
    affine[:3, 2] = np.cross(row, column)
    affine[:3, 3] = numbers("PlanePositionSequence", "ImagePositionPatient")
    affine[:3] = LPS_TO_RAS @ affine[:3]
    return affine


def _to_series(where: str, affine: NDArray[np.float64], series: DicomSeries, size: Sequence[int]) -> NDArray[np.int64]:
    """Return (column, row, 1) of a frame -> voxel of the series, (3, 3), whole numbers.

    Raises:
        VolumeError: if the pixels of the frame are not voxels of the series.
    """
    exact = (np.linalg.inv(np.array(series.affine)) @ affine)[:3][:, [0, 1, 3]]
    whole = np.rint(exact).astype(np.int64)
    corners = np.array([[c, r, 1] for c in (0, size[1] - 1) for r in (0, size[0] - 1)]).T
    off = float(np.abs((exact - whole) @ corners).max())
    steps = np.abs(whole[:, :2])
    if off > GRID_TOLERANCE or (steps.sum(axis=0) != 1).any() or (steps[:, 0] == steps[:, 1]).all():
        raise VolumeError(
            f"{where}: it is not on the grid of its series ({off:.2f} voxels off it)",
            "export the segmentation on the grid of the series that it was drawn on",
        )
    return whole


def _place(
    where: str, to_series: NDArray[np.int64], columns: NDArray[np.int64], rows: NDArray[np.int64], shape: Sequence[int]
) -> tuple[NDArray[np.int64], ...]:
    place = to_series @ np.stack([columns, rows, np.ones_like(rows)])
    outside = ((place < 0) | (place >= np.array(shape)[:, None])).any(axis=0)
    if outside.any():
        raise VolumeError(
            f"{where}: {int(outside.sum())} of its voxels lie outside of the series that it refers to",
            "export it again for that series, or find the series that it was drawn on",
        )
    return tuple(place)
