"""Paired tests of a family of comparisons: Wilcoxon's signed ranks and Holm's correction."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

ALPHA = 0.05
"""Level of the words "helped" and "hurt", over the whole family of a report."""
_EXACT_UP_TO = 50  # as scipy.stats.wilcoxon(method="auto"): the normal approximation above


def signed_rank(differences: ArrayLike) -> tuple[float, float]:
    """Return the two-sided p of Wilcoxon's signed-rank test (1945) and the direction of the ranks: -1, 0 or 1.

    Zeros are dropped (Wilcoxon's way), NaN too; p is 1 if nothing is left. Exact up to 50 differences, also with ties
    (the distribution of the midranks), the normal approximation with the correction for ties above.
    """
    values = np.asarray(differences, dtype=float)
    values = np.round(values[np.isfinite(values)], 12)  # else rounding errors break ties at random
    values = values[values != 0]
    if not values.size:
        return 1.0, 0.0
    ranks = stats.rankdata(np.abs(values))
    direction = float(np.sign((np.sign(values) * ranks).sum()))
    if values.size > _EXACT_UP_TO:
        return float(stats.wilcoxon(values, method="asymptotic").pvalue), direction
    if len(np.unique(np.abs(values))) == values.size:
        return float(stats.wilcoxon(values, method="exact").pvalue), direction
    return _exact_p(values, ranks), direction


def _exact_p(values: NDArray[np.float64], ranks: NDArray[np.float64]) -> float:
    """Return p given the midranks. scipy enumerates the signs (0.3 s for 12 values), and only up to 13 values."""
    doubled = np.rint(2 * ranks).astype(int)  # whole numbers: midranks end in .0 or .5
    ways = np.zeros(doubled.sum() + 1)
    ways[0] = 1.0
    for rank in doubled:
        ways[rank:] = ways[rank:] + ways[:-rank]
    statistic = int(doubled[values > 0].sum())
    tail = min(ways[: statistic + 1].sum(), ways[statistic:].sum()) / 2.0**values.size
    return min(1.0, 2.0 * float(tail))


def holm(p_values: ArrayLike) -> NDArray[np.float64]:
    """Return the adjusted p of each test (Holm 1979): the family's error rate is at most the level they are held to.

    The i-th smallest of m is multiplied by m - i + 1, and none is smaller than one before it.
    """
    p = np.asarray(p_values, dtype=float)
    order = np.argsort(p, kind="stable")
    stepped = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1))
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(stepped, 1.0)
    return adjusted


def fewest_pairs(family: int, alpha: float = ALPHA) -> int:
    """Return how many patients a cell needs at least to be able to pass Holm: its smallest p is 2 / 2**n."""
    return max(1, math.ceil(math.log2(2 * max(family, 1) / alpha)))
