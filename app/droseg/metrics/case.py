"""Metrics of one case: each structure of a predicted label map against the reference."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy import ndimage

from droseg.metrics.names import BETTI_ERRORS, COMPONENTS, METRICS, VOLUMES, hausdorff_percentile, in_order
from droseg.metrics.surface import SurfaceDistances, crop_to_foreground, surface_distances
from droseg.metrics.topology import betti_numbers, count_components

_NO_SURFACE = SurfaceDistances(np.zeros(0), np.zeros(0))


def case_metrics(
    pred: ArrayLike,
    label: ArrayLike,
    structures: Mapping[int | tuple[int, ...], str],
    spacing_mm: Sequence[float] = (1.0, 1.0, 1.0),
    nsd_tolerance_mm: float | Mapping[str, float] = 1.0,
    metrics: Sequence[str] | None = None,
) -> pd.DataFrame:
    """Return one row per structure: its name, the metrics, and the volumes in ml. All conventions: docs/metrics.md.

    Let A, B be the masks of one structure, S(A) the voxels of A with a face neighbor outside of A (the image border is
    outside), and d(a, S(B)) the distance of voxel centers in mm. All are exact, in float64, as MONAI defines them:

    =====================  ===============================================================================
    dice                   2 |A & B| / (|A| + |B|)
    hd_mm                  the larger of the two directed maxima of d
    hd95_mm, any hdP_mm    the larger of the two directed P-th percentiles of d (linear interpolation)
    assd_mm                mean of d over the voxels of S(A) and S(B), pooled
    nsd                    share of the voxels of S(A) and S(B), pooled, with d <= tolerance (no sub-voxel areas)
    volume_error_ml        predicted minus reference volume
    num_components_ref     components of the reference, connected by faces, edges or corners; likewise `_pred`
    betti0_error, ...      |difference| of the Betti numbers: components, tunnels (needs scikit-image), cavities
    =====================  ===============================================================================

    Empty masks: both empty gives NaN for all metrics but counts of components, which are 0; one empty gives
    dice = nsd = 0 and NaN distances, and volume and Betti errors against 0.

    Args:
        pred: whole-numbered label map, (H, W, D) or (H, W), array or tensor.
        label: the reference label map of the same shape.
        structures: label value -> name; a tuple of values makes one region of several, and regions may overlap.
        spacing_mm: voxel size along each array axis.
        nsd_tolerance_mm: surface distance that still counts as right, >= 0; for all, or structure name -> its own.
        metrics: the metrics to compute, among those above; default the first five. Columns are in a fixed order:
            these five, percentiles, volumes, the others.
    Raises:
        ValueError: if shapes differ, labels are not whole numbers, or spacing, tolerance or metrics are not usable.
        DrosegError: if a metric needs a library that is not installed.
    """
    prediction, reference = _label_map(pred, "prediction"), _label_map(label, "reference")
    if prediction.shape != reference.shape:
        raise ValueError(
            f"the prediction has shape {prediction.shape} and the reference {reference.shape}; "
            "both must lie on the same grid."
        )
    wanted = in_order(METRICS if metrics is None else metrics)
    _check_geometry(reference.ndim, spacing_mm, wanted)
    tolerance_mm = tolerances_mm(nsd_tolerance_mm, structures.values())

    voxel_ml = math.prod(float(s) for s in spacing_mm) / 1000.0
    rows: dict[int, dict[str, float]] = {}
    for layer in _layers(structures):
        masks = _measure(prediction, reference, [values for _, values in layer], spacing_mm, wanted)
        for (row, _), measured in zip(layer, masks, strict=True):
            rows[row] = _metric_values(measured, [*wanted, *VOLUMES], tolerance_mm[row], voxel_ml)
    table = [{"structure": name, **rows[row]} for row, name in enumerate(structures.values())]
    first = [metric for metric in wanted if metric in METRICS or hausdorff_percentile(metric) is not None]
    columns = ["structure", *first, *VOLUMES, *(metric for metric in wanted if metric not in first)]
    return pd.DataFrame(table, columns=columns)


def tolerances_mm(tolerance_mm: float | Mapping[str, float], structures: Iterable[str]) -> list[float]:
    """Return the tolerance of each structure.

    Raises:
        ValueError: if one is negative or not finite, or a structure has none.
    """
    names = list(structures)
    if isinstance(tolerance_mm, Mapping):
        without = [name for name in names if name not in tolerance_mm]
        if without:
            raise ValueError(
                f"nsd_tolerance_mm has no value for {', '.join(without)}; it has {', '.join(tolerance_mm) or 'none'}."
            )
        found = [float(tolerance_mm[name]) for name in names]
    else:
        found = [float(tolerance_mm)] * len(names)
    for value in found:
        if not (math.isfinite(value) and value >= 0):
            raise ValueError(f"nsd_tolerance_mm is {value}; it must be >= 0.")
    return found


@dataclass(frozen=True)
class _Measured:
    """What the metrics of one structure are made of; counts in voxels."""

    overlap: int
    num_pred: int
    num_ref: int
    distances: SurfaceDistances
    betti_pred: tuple[int, ...]
    betti_ref: tuple[int, ...]


def _measure(
    prediction: NDArray[np.integer],
    reference: NDArray[np.integer],
    regions: Sequence[tuple[int, ...]],
    spacing_mm: Sequence[float],
    wanted: Sequence[str],
) -> list[_Measured]:
    """Return the measures of disjoint regions, in their order."""
    pred, ref = crop_to_foreground(_indices(prediction, regions), _indices(reference, regions))
    num = len(regions)
    overlap, num_pred, num_ref = (np.bincount(m.ravel(), minlength=num + 1) for m in (pred[pred == ref], pred, ref))
    distances = [_NO_SURFACE] * num
    if any(metric in ("assd_mm", "nsd") or hausdorff_percentile(metric) is not None for metric in wanted):
        distances = surface_distances(pred, ref, num, spacing_mm)
    betti_pred, betti_ref = (_betti_numbers(m, num, wanted) for m in (pred, ref))
    return [
        _Measured(
            int(overlap[i + 1]), int(num_pred[i + 1]), int(num_ref[i + 1]), distances[i], betti_pred[i], betti_ref[i]
        )
        for i in range(num)
    ]


def _betti_numbers(labels: NDArray[np.integer], num: int, wanted: Sequence[str]) -> list[tuple[int, ...]]:
    """Return the Betti numbers of structures 1..num as far as they are wanted: none, the first, or all."""
    if not any(metric in (*COMPONENTS, *BETTI_ERRORS) for metric in wanted):
        return [()] * num
    everything = any(metric in BETTI_ERRORS[1:] for metric in wanted)
    numbers: list[tuple[int, ...]] = []
    for index, box in enumerate(ndimage.find_objects(labels, num), start=1):
        if box is None:
            numbers.append((0,) * labels.ndim)
        else:
            mask = labels[box] == index
            numbers.append(betti_numbers(mask) if everything else (count_components(mask),))
    return numbers


def _metric_values(
    measured: _Measured, wanted: Sequence[str], tolerance_mm: float, voxel_ml: float
) -> dict[str, float]:
    return {metric: _metric_value(metric, measured, tolerance_mm, voxel_ml) for metric in wanted}


def _metric_value(metric: str, measured: _Measured, tolerance_mm: float, voxel_ml: float) -> float:
    num_pred, num_ref = measured.num_pred, measured.num_ref
    described = {"volume_ref_ml": num_ref * voxel_ml, "volume_pred_ml": num_pred * voxel_ml}
    if metric in COMPONENTS:
        return float((measured.betti_ref if metric == COMPONENTS[0] else measured.betti_pred)[0])
    if metric in described:
        return described[metric]
    if num_pred + num_ref == 0:  # the structure is not in scope
        return float("nan")
    percentile = hausdorff_percentile(metric)
    if percentile is not None:
        return measured.distances.hausdorff_mm(percentile)
    if metric == "dice":
        return 2 * measured.overlap / (num_pred + num_ref)
    if metric == "nsd":
        return 0.0 if 0 in (num_pred, num_ref) else measured.distances.within(tolerance_mm)
    if metric == "assd_mm":
        return measured.distances.average_mm()
    if metric == "volume_error_ml":
        return (num_pred - num_ref) * voxel_ml
    dimension = BETTI_ERRORS.index(metric)
    return float(abs(measured.betti_pred[dimension] - measured.betti_ref[dimension]))


def _label_map(labels: ArrayLike, what: str) -> NDArray[np.integer]:
    if hasattr(labels, "detach"):  # a tensor, also on a GPU or with gradients
        labels = labels.detach().cpu().numpy()
    array = np.asarray(labels)
    if array.dtype == bool:
        return array.astype(np.uint8)
    if not np.issubdtype(array.dtype, np.integer):
        rounded = np.rint(array)
        if not (np.array_equal(rounded, array) and np.isfinite(array).all()):
            raise ValueError(
                f"the {what} holds values that are not whole numbers; give a label map, not probabilities."
            )
        array = rounded.astype(np.int64)
    return array


def _check_geometry(ndim: int, spacing_mm: Sequence[float], wanted: Sequence[str]) -> None:
    if ndim not in (2, 3):
        raise ValueError(f"label maps have {ndim} axes; give (H, W, D) or (H, W), without batch or channel.")
    if len(spacing_mm) != ndim or not all(math.isfinite(s) and s > 0 for s in spacing_mm):
        raise ValueError(f"spacing_mm is {tuple(spacing_mm)}; give {ndim} positive numbers, one per array axis.")
    if ndim == 2 and "betti2_error" in wanted:
        raise ValueError("betti2_error counts cavities, which (H, W) label maps do not have; leave it out.")


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
