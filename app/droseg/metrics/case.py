"""Metrics of one case: each structure of a predicted label map against the reference."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from droseg.metrics.groups import DISTANCE_METRICS, METRICS
from droseg.metrics.surface import SurfaceDistances, surface_distances

_SURFACE_METRICS = (*DISTANCE_METRICS, "nsd")
_NO_SURFACE = SurfaceDistances(np.zeros(0), np.zeros(0))


def case_metrics(
    pred: ArrayLike,
    label: ArrayLike,
    structures: Mapping[int | tuple[int, ...], str],
    spacing_mm: Sequence[float] = (1.0, 1.0, 1.0),
    nsd_tolerance_mm: float = 1.0,
    metrics: Sequence[str] | None = None,
) -> pd.DataFrame:
    """Return one row per structure: its name, the metrics, and the volumes in ml.

    Let A, B be the masks of one structure, S(A) the voxels of A with a face neighbor outside of A (the image border is
    outside), and d(a, S(B)) the distance of voxel centers in mm. All are exact, in float64, as MONAI defines them:

    =========  ===========================================================================================
    dice       2 |A & B| / (|A| + |B|)
    hd_mm      the larger of the two directed maxima of d
    hd95_mm    the larger of the two directed 95th percentiles of d (linear interpolation)
    assd_mm    mean of d over the voxels of S(A) and S(B), pooled
    nsd        share of the voxels of S(A) and S(B), pooled, with d <= `nsd_tolerance_mm` (no sub-voxel areas)
    =========  ===========================================================================================

    Empty masks: both empty gives NaN for all metrics; one empty gives dice = nsd = 0 and NaN distances.

    Args:
        pred: whole-numbered label map, (H, W, D) or (H, W), array or tensor.
        label: the reference label map of the same shape.
        structures: label value -> name; a tuple of values makes one region of several, and regions may overlap.
        spacing_mm: voxel size along each array axis.
        nsd_tolerance_mm: surface distance that still counts as right, >= 0.
        metrics: the metrics to compute; default all. The columns of the others are left out.
    Raises:
        ValueError: if shapes differ, labels are not whole numbers, or spacing, tolerance or metrics are not usable.
    """
    prediction, reference = _label_map(pred, "prediction"), _label_map(label, "reference")
    if prediction.shape != reference.shape:
        raise ValueError(
            f"the prediction has shape {prediction.shape} and the reference {reference.shape}; "
            "both must lie on the same grid."
        )
    wanted = _check_options(reference.ndim, spacing_mm, nsd_tolerance_mm, metrics)
    with_surface = any(metric in _SURFACE_METRICS for metric in wanted)
    voxel_ml = math.prod(float(s) for s in spacing_mm) / 1000.0

    rows: dict[int, dict[str, Any]] = {}
    for layer in _layers(structures):
        regions = [values for _, values in layer]
        pred_index, ref_index = _indices(prediction, regions), _indices(reference, regions)
        size = len(regions) + 1
        overlap = np.bincount(pred_index[pred_index == ref_index], minlength=size)
        n_pred = np.bincount(pred_index.ravel(), minlength=size)
        n_ref = np.bincount(ref_index.ravel(), minlength=size)
        distances = [_NO_SURFACE] * len(regions)
        if with_surface:
            distances = surface_distances(pred_index, ref_index, len(regions), spacing_mm)
        for index, (row, _) in enumerate(layer, start=1):
            counts = (int(overlap[index]), int(n_pred[index]), int(n_ref[index]))
            scores = _metric_values(*counts, distances[index - 1], wanted, nsd_tolerance_mm)
            rows[row] = {**scores, "volume_ref_ml": counts[2] * voxel_ml, "volume_pred_ml": counts[1] * voxel_ml}
    table = [{"structure": name, **rows[row]} for row, name in enumerate(structures.values())]
    return pd.DataFrame(table, columns=["structure", *wanted, "volume_ref_ml", "volume_pred_ml"])


def _label_map(labels: ArrayLike, what: str) -> NDArray[np.integer]:
    if hasattr(labels, "detach"):  # a tensor, also on a GPU or with gradients
        labels = labels.detach().cpu().numpy()
    array = np.asarray(labels)
    if array.dtype == bool:
        return array.astype(np.uint8)
    if not np.issubdtype(array.dtype, np.integer):
        rounded = np.rint(array)
        if not np.array_equal(rounded, array):
            raise ValueError(
                f"the {what} holds values that are not whole numbers; give a label map, not probabilities."
            )
        array = rounded.astype(np.int64)
    return array


def _check_options(
    ndim: int, spacing_mm: Sequence[float], nsd_tolerance_mm: float, metrics: Sequence[str] | None
) -> list[str]:
    """Return the metrics to compute in their fixed order."""
    if ndim not in (2, 3):
        raise ValueError(f"label maps have {ndim} axes; give (H, W, D) or (H, W), without batch or channel.")
    if len(spacing_mm) != ndim or not all(math.isfinite(s) and s > 0 for s in spacing_mm):
        raise ValueError(f"spacing_mm is {tuple(spacing_mm)}; give {ndim} positive numbers, one per array axis.")
    if not (math.isfinite(nsd_tolerance_mm) and nsd_tolerance_mm >= 0):
        raise ValueError(f"nsd_tolerance_mm is {nsd_tolerance_mm}; it must be >= 0.")
    unknown = sorted(set(metrics or ()) - set(METRICS))
    if unknown:
        raise ValueError(f"unknown metrics {unknown}; known are {list(METRICS)}.")
    return [metric for metric in METRICS if metrics is None or metric in metrics]


def _layers(structures: Mapping[int | tuple[int, ...], str]) -> list[list[tuple[int, tuple[int, ...]]]]:
    """Return (row, values) of all structures in as few lists as possible such that no list holds a value twice."""
    layers: list[list[tuple[int, tuple[int, ...]]]] = []
    for row, key in enumerate(structures):
        values = tuple(int(v) for v in key) if isinstance(key, Iterable) else (int(key),)
        for layer in layers:
            if not {v for _, taken in layer for v in taken} & set(values):
                layer.append((row, values))
                break
        else:
            layers.append([(row, values)])
    return layers


def _indices(labels: NDArray[np.integer], regions: Sequence[tuple[int, ...]]) -> NDArray[np.integer]:
    """Return the label map with i + 1 where `regions[i]` is, 0 elsewhere."""
    small = np.uint8 if len(regions) < 255 else np.int32
    if labels.size and labels.min() >= 0 and labels.max() < 1 << 16:
        table = np.zeros(1 << 16, dtype=small)
        for index, values in enumerate(regions, start=1):
            table[[v for v in values if 0 <= v < 1 << 16]] = index
        return table[labels]
    indices = np.zeros(labels.shape, dtype=small)
    for index, values in enumerate(regions, start=1):
        indices[np.isin(labels, values)] = index
    return indices


def _metric_values(
    overlap: int, n_pred: int, n_ref: int, distances: SurfaceDistances, wanted: Sequence[str], nsd_tolerance_mm: float
) -> dict[str, float]:
    values: dict[str, float] = {}
    one_empty = (n_pred == 0) != (n_ref == 0)
    for metric in wanted:
        if metric == "dice":
            values[metric] = 2 * overlap / (n_pred + n_ref) if n_pred + n_ref else float("nan")
        elif metric == "nsd":
            values[metric] = 0.0 if one_empty else distances.within(nsd_tolerance_mm)
        elif metric == "assd_mm":
            values[metric] = distances.average_mm()
        else:
            values[metric] = distances.hausdorff_mm(95.0 if metric == "hd95_mm" else 100.0)
    return values
