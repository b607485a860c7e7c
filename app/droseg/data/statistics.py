"""What the training cases look like: the ranges that a later input is compared with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from droseg.data.datalist import Case
from droseg.data.volumes import read_volume, spacing_mm

QUANTILES = {"min": 0.0, "p5": 0.05, "median": 0.5, "p95": 0.95, "max": 1.0}


def training_statistics(cases: Sequence[Case], structures: Mapping[str, int]) -> dict[str, Any]:
    """Return quantiles over the cases, as JSON takes them.

    `volume_ml` per structure (0 where a case lacks it) and `absent` (number of such cases); per array axis in the
    file's own order `spacing_mm` and `extent_mm`; per channel `intensity_p1`, `intensity_median`, `intensity_p99`.
    """
    volumes: dict[str, list[float]] = {name: [] for name in structures}
    spacing, extent = [], []
    intensity: dict[str, list[list[float]]] = {"intensity_p1": [], "intensity_median": [], "intensity_p99": []}
    for case in cases:
        channels = [channel for path in case.images for channel in read_volume(path).array]
        percentiles = np.array([np.percentile(channel, [1, 50, 99]) for channel in channels])
        for values, column in zip(intensity.values(), percentiles.T, strict=True):
            values.append(column.tolist())
        if case.label is None:
            continue
        label = read_volume(case.label)
        edges = spacing_mm(label.affine)
        spacing.append(edges.tolist())
        extent.append((edges * label.array.shape[1:]).tolist())
        for name, value in structures.items():
            volumes[name].append(float((label.array == value).sum() * edges.prod() / 1000.0))
    return {
        "cases": len(cases),
        "volume_ml": {name: {**_quantiles(v), "absent": sum(x == 0 for x in v)} for name, v in volumes.items()},
        "spacing_mm": _quantiles(spacing),
        "extent_mm": _quantiles(extent),
        **{name: _quantiles(values) for name, values in intensity.items()},
    }


def _quantiles(values: Sequence[Any]) -> dict[str, Any]:
    table = np.asarray(values, dtype=float)
    return {name: np.quantile(table, q, axis=0).round(4).tolist() for name, q in QUANTILES.items()}
