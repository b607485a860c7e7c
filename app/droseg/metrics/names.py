"""The names of the metrics, which of them are better when higher, and which columns of a cases table hold values."""

from __future__ import annotations

import re
from collections.abc import Sequence

METRICS = ("dice", "hd_mm", "hd95_mm", "assd_mm", "nsd")
"""The metrics of case_metrics.csv's contract, in its order."""
OVERLAP_METRICS = ("dice", "nsd")
DISTANCE_METRICS = ("hd_mm", "hd95_mm", "assd_mm")
VOLUMES = ("volume_ref_ml", "volume_pred_ml")
COLUMNS = ("case_id", "patient_id", "structure", *METRICS, *VOLUMES)

COMPONENTS = ("num_components_ref", "num_components_pred")
BETTI_ERRORS = ("betti0_error", "betti1_error", "betti2_error")
EXTRA_METRICS = ("volume_error_ml", *COMPONENTS)
"""What `droseg evaluate` adds without being asked, to the right of the group axes."""
EVALUATION_METRICS = (*METRICS, *EXTRA_METRICS)
DIAGONAL = "diagonal_mm"
CONVENTIONS = (
    "Surface: voxels with a face neighbor outside of the structure or of the image; distances between voxel centers in "
    "mm. Percentiles: the larger of the two directed ones; ASSD and NSD: both surfaces pooled. Both masks empty: "
    "undefined; one empty: Dice and NSD 0, distances undefined. Components: connected by faces, edges or corners."
)
"""The choices that other software makes differently, in short; docs/metrics.md has all of them and the reasons."""

_LABELS = {
    "dice": "Dice",
    "hd_mm": "Hausdorff (mm)",
    "hd95_mm": "HD95 (mm)",
    "assd_mm": "ASSD (mm)",
    "nsd": "Surface Dice (NSD)",
}
_LOWER, _HIGHER = "_lower", "_higher"
_LOWER_ENDS = ("_mm", "_error", "_error_ml", _LOWER)
_HAUSDORFF = re.compile(r"hd(\d+(?:\.\d+)?)?_mm")
_DISTANCE_LIKE = re.compile(
    r"(?<![a-z])(hd|asd|assd|masd|rmsd|mse|rmse|mae)(?![a-z])|hausdorff|dist(ances?)?(?![a-z])|error", re.IGNORECASE
)


def hausdorff_percentile(metric: str) -> float | None:
    """Return 100 for hd_mm, P for hdP_mm (hd95_mm, hd99.5_mm) with 0 < P <= 100, None for any other name."""
    match = _HAUSDORFF.fullmatch(metric)
    if match is None:
        return None
    percentile = float(match[1] or 100)
    return percentile if 0 < percentile <= 100 else None


def is_metric(name: str) -> bool:
    """Return whether `case_metrics` computes a metric of this name."""
    return name in (*EVALUATION_METRICS, *BETTI_ERRORS) or hausdorff_percentile(name) is not None


def is_own_column(name: str) -> bool:
    """Return whether a column of a cases table is droseg's own: ids, metrics, volumes, diagonal; never a group axis."""
    return name in (*COLUMNS, DIAGONAL) or is_metric(name)


def has_direction(metric: str) -> bool:
    """Return whether one of two values of a metric is the better one.

    Not so for volumes, counts of components, and `volume_error_ml`, which has a sign: such columns describe a case and
    are neither penalized nor ranked.
    """
    return metric not in (*EXTRA_METRICS, *VOLUMES, DIAGONAL)


def higher_is_better(metric: str) -> bool:
    """Return True for overlaps and other scores, False for names that end in `_mm`, `_error` or `_lower`."""
    return not metric.endswith(_LOWER_ENDS)


def lacks_direction(name: str) -> bool:
    """Return whether a name looks like a distance or an error ("HD95", "RMSE") and yet would count as a score."""
    words = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name)  # avgHD: avg_HD
    return not name.endswith((*_LOWER_ENDS, _HIGHER)) and bool(_DISTANCE_LIKE.search(words))


def suggested_name(name: str) -> str:
    """Return a name that says the direction: hd95_mm for "HD95", rmse_error for "RMSE"."""
    plain = re.sub(r"\W+", "_", name.lower()).strip("_").removesuffix("_mm").removesuffix("mm").strip("_")
    is_error = re.search(r"err|mse|mae", plain) is not None
    return plain if plain.endswith("_error") else f"{plain}_{'error' if is_error else 'mm'}"


def with_direction(name: str, direction: str) -> str:
    """Return the name, with `_lower` or `_higher` behind it where it alone would say the opposite.

    Raises:
        ValueError: if the direction is neither "lower" nor "higher", or not that of a metric of droseg.
    """
    if direction not in ("lower", "higher"):
        raise ValueError(f"{name}: '{direction}' is no direction; it is lower or higher (which one is better).")
    if higher_is_better(name) == (direction == "higher") and not lacks_direction(name):
        return name
    if is_own_column(name):
        raise ValueError(f"{name}: {direction} is not better; {name} is a metric of droseg, choose another name.")
    return f"{name}_{direction}"


def tail_percentile(metric: str) -> int:
    """Return which percentile of the cases is the bad tail: 10 of a score, 90 of a distance or an error."""
    return 10 if higher_is_better(metric) else 90


def tail_name(metric: str) -> str:
    """Return the name of a metric's bad tail, its unit still last: dice_p10, hd95_p90_mm."""
    name, unit = re.fullmatch(r"(.*?)((?:_mm|_error|_error_ml|_lower|_higher)?)", metric, re.DOTALL).groups()  # type: ignore[union-attr]
    return f"{name}_p{tail_percentile(metric)}{unit}"


def metric_label(metric: str) -> str:
    """Return how people write a metric."""
    percentile = hausdorff_percentile(metric)
    if percentile is not None and metric not in _LABELS:
        return f"HD{percentile:g} (mm)"
    metric = metric.removesuffix(_LOWER).removesuffix(_HIGHER)
    return _LABELS.get(
        metric, metric.removesuffix("_mm").replace("_", " ") + (" (mm)" if metric.endswith("_mm") else "")
    )


def in_order(metrics: Sequence[str]) -> list[str]:
    """Return the metrics without repeats: the contract's, then percentiles ascending, then the others.

    Raises:
        ValueError: if a name is unknown.
    """
    unknown = sorted({metric for metric in metrics if not is_metric(metric)})
    if unknown:
        known = ", ".join((*METRICS, "hdP_mm with a percentile 0 < P <= 100", *EXTRA_METRICS, *BETTI_ERRORS))
        raise ValueError(f"unknown metrics {unknown}; known are {known}.")
    fixed = [*METRICS, *EXTRA_METRICS, *BETTI_ERRORS]
    percentiles = sorted(set(metrics) - set(fixed), key=lambda name: hausdorff_percentile(name) or 0.0)
    order = [*METRICS, *percentiles, *EXTRA_METRICS, *BETTI_ERRORS]
    return [metric for metric in order if metric in metrics]
