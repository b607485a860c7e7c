"""What is known of a case without looking at its segmentation: header, intensities, scanner tags, volumes, any CSV."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import nibabel as nib
import numpy as np
import pandas as pd

from droseg.data.datalist import Case
from droseg.data.scanner import scanner_tags
from droseg.data.volumes import Volume, VolumeError, read_volume, spacing_mm
from droseg.errors import InputError
from droseg.keys import CASE_ID

_PLANES: Final = ("sagittal", "coronal", "axial")
_EXTENTS: Final = ("extent_left_right_mm", "extent_back_front_mm", "extent_foot_head_mm")
_ISOTROPIC: Final = 1.2
"""Slices at most so many times as thick as a pixel is wide have no plane of their own."""


def image_features(case: Case, channels: Sequence[str] = ()) -> dict[str, float | str]:
    """Return the header, acquisition and intensity features of a case's images.

    Of the first image: `slice_thickness_mm` and `in_plane_mm` (the largest and smallest voxel edge), `slice_plane`,
    `orientation` (axis codes of the stored array), `tilt_deg` (largest angle between an array axis and the patient's),
    extents of the field of view, `stored_as` (data type), and what its DICOM header or its JSON file says of the
    scanner (`scanner_tags`).
    Per channel, of the voxels that are not 0: `intensity_median`, `intensity_p99`; and `zero_share` of all voxels.

    Raises:
        VolumeError: if an image cannot be read.
    """
    volumes = [read_volume(path) for path in case.images]
    features: dict[str, float | str] = {**_grid_features(volumes[0]), **scanner_tags(case.images[0])}
    arrays = [array for volume in volumes for array in volume.array]
    for number, array in enumerate(arrays):
        name = channels[number] if len(channels) == len(arrays) else str(number)
        prefix = f"{name}_" if len(arrays) > 1 else ""
        features.update({f"{prefix}{key}": value for key, value in _intensity_features(array).items()})
    return features


def label_volumes_ml(case: Case, structures: Mapping[str, Sequence[int]]) -> dict[str, float]:
    """Return `NAME_ml` per structure of the case's label; empty without a label.

    Raises:
        VolumeError: if the label cannot be read.
    """
    if case.label is None:
        return {}
    volume = read_volume(case.label)
    voxel_ml = float(spacing_mm(volume.affine).prod()) / 1000.0
    values, counts = np.unique(volume.array, return_counts=True)
    return {
        f"{name}_ml": float(counts[np.isin(values, list(of_structure))].sum()) * voxel_ml
        for name, of_structure in structures.items()
    }


def datalist_features(
    cases: Iterable[Case], structures: Mapping[str, Sequence[int]], channels: Sequence[str] = ()
) -> tuple[pd.DataFrame, dict[str, str]]:
    """Return one row of image features and reference volumes per case, and case_id -> why a case has none."""
    rows, problems = {}, {}
    for case in cases:
        try:
            rows[case.case_id] = {**image_features(case, channels), **label_volumes_ml(case, structures)}
        except VolumeError as error:
            problems[case.case_id] = str(error)
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis(CASE_ID), problems


def volume_features(cases: pd.DataFrame) -> pd.DataFrame:
    """Return `NAME_ml` per case and structure from the reference volumes of a cases table; no column without them."""
    if "volume_ref_ml" not in cases.columns:
        return pd.DataFrame(index=pd.Index(cases[CASE_ID].unique(), name=CASE_ID))
    wide = cases.pivot(index=CASE_ID, columns="structure", values="volume_ref_ml")
    return wide.add_suffix("_ml").rename_axis(columns=None).dropna(axis="columns", how="all")


def read_features(path: Path) -> pd.DataFrame:
    """Return the features of a CSV with a column `case_id`; columns that hold only numbers become numbers.

    Raises:
        InputError: if it cannot be read, has no `case_id`, or names a case twice.
    """
    try:
        with path.open(encoding="utf-8-sig") as file:
            header = file.readline()
        separator = max(",;\t", key=header.count)
        table = pd.read_csv(path, sep=separator, dtype={CASE_ID: str}, encoding="utf-8-sig", skipinitialspace=True)
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such file; give a CSV with a column {CASE_ID} and one per feature.") from error
    except (OSError, ValueError) as error:  # pandas' parser errors are ValueErrors
        #:
        raise InputError(f"{path}: not a CSV with a header line ({error}).") from error
    if CASE_ID not in table.columns:
        raise InputError(f"{path}: no column '{CASE_ID}'; those there: {', '.join(map(str, table.columns))}.")
    repeated = table[CASE_ID][table[CASE_ID].duplicated()]
    if len(repeated):
        raise InputError(f"{path}: case '{repeated.iloc[0]}' is there twice; keep one row per case.")
    return table.set_index(CASE_ID)


def group_features(cases: Iterable[Case]) -> pd.DataFrame:
    """Return one row per case and one column per group axis."""
    return pd.DataFrame.from_dict({case.case_id: case.groups for case in cases}, orient="index").rename_axis(CASE_ID)


def merge_features(tables: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """Return the columns of all tables side by side, all cases of any; where several know a value, the first counts."""
    merged = tables[0]
    for table in tables[1:]:
        shared = [column for column in table.columns if column in merged.columns]
        merged = merged.join(table.drop(columns=shared), how="outer")
        for column in shared:
            merged[column] = merged[column].where(merged[column].notna(), table[column].reindex(merged.index))
    return merged.rename_axis(CASE_ID)


def _grid_features(volume: Volume) -> dict[str, float | str]:
    # Rounded to what a header means: 3.0 and 2.9999998 are one slice thickness.
    edges = np.round(spacing_mm(volume.affine), 3)
    patient_axis = nib.orientations.io_orientation(volume.affine)[:, 0].astype(int)
    extents = np.zeros(3)
    extents[patient_axis] = edges * volume.array.shape[1:]
    thick = int(edges.argmax())
    plane = _PLANES[patient_axis[thick]] if edges[thick] > _ISOTROPIC * edges.min() else "isotropic"
    tilt = np.degrees(np.abs(nib.affines.obliquity(volume.affine)).max())
    return {
        "slice_thickness_mm": float(edges.max()),
        "in_plane_mm": float(edges.min()),
        "slice_plane": plane,
        "orientation": "".join(nib.orientations.aff2axcodes(volume.affine)),
        "tilt_deg": round(float(tilt), 1),
        **{name: round(float(extent), 1) for name, extent in zip(_EXTENTS, extents, strict=True)},
        "stored_as": str(volume.array.dtype),
    }


def _intensity_features(array: Any) -> dict[str, float]:
    values = np.asarray(array, dtype=np.float32)
    values = values[np.isfinite(values)]
    filled = values[values != 0]
    if not len(filled):
        return {"zero_share": 1.0}
    median, high = np.percentile(filled, [50, 99])
    return {
        "intensity_median": float(median),
        "intensity_p99": float(high),
        "zero_share": round(1.0 - len(filled) / len(values), 4),
    }
