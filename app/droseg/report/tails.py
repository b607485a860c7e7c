"""How uncertain the bad tail of a group is: its percentile and its CVaR, resampling patients."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from droseg.metrics import higher_is_better

SHARE = 0.1
"""The worst tenth: p10 of a score, p90 of a distance or error, and the CVaR."""
COLUMNS = ("tail_ci_low", "tail_ci_high", "cvar10_ci_low", "cvar10_ci_high")
_FEWEST = 40  # worst cases that are looked at; a tenth of a resample hardly ever reaches a fifth of the cases


def tail_samples(
    values: NDArray[np.float64], codes: NDArray[np.intp], draws: Iterable[NDArray[np.float64]], metrics: Sequence[str]
) -> NDArray[np.float64]:
    """Return bad-tail percentile and CVaR of every bootstrap sample, shape (samples, columns, 2).

    Args:
        values: shape (cases, columns); NaN is left out.
        codes: number of the patient of each case.
        draws: see `draw_patients`; a patient enters with all cases, as often as drawn.
        metrics: of each column; says which end is the bad one.
    """
    columns = [_worst_first(v, codes, higher_is_better(m)) for v, m in zip(values.T, metrics, strict=True)]
    chunks = [np.stack([_tails(drawn, *column) for column in columns], axis=1) for drawn in draws]
    return np.concatenate(chunks)


def _worst_first(
    values: NDArray[np.float64], codes: NDArray[np.intp], higher: bool
) -> tuple[NDArray[np.float64], NDArray[np.intp]]:
    """Return the defined values, the worst first, and their patients."""
    defined = np.flatnonzero(np.isfinite(values))
    order = defined[np.argsort(values[defined] if higher else -values[defined], kind="stable")]
    return values[order], codes[order]


def _tails(drawn: NDArray[np.float64], values: NDArray[np.float64], codes: NDArray[np.intp]) -> NDArray[np.float64]:
    """Return percentile and CVaR of each drawn sample, shape (samples, 2); NaN of a sample without a value."""
    if not len(values):
        return np.full((len(drawn), 2), np.nan)
    total = drawn @ np.bincount(codes, minlength=drawn.shape[1])
    place = SHARE * np.maximum(total - 1, 0)  # between the ranks of two values, as numpy's linear percentile
    kept = min(len(values), max(_FEWEST, len(values) // 5))
    seen = np.cumsum(drawn[:, codes[:kept]], axis=1)
    if kept < len(values) and (seen[:, -1] <= np.floor(place) + 1).any():  # many scans of few patients
        kept = len(values)
        seen = np.cumsum(drawn[:, codes], axis=1)
    rank = np.floor(place)
    first = values[np.minimum((seen <= rank[:, None]).sum(axis=1), kept - 1)]
    second = values[np.minimum((seen <= np.minimum(rank + 1, total - 1)[:, None]).sum(axis=1), kept - 1)]
    percentile = first + (place - rank) * (second - first)
    within = np.minimum(seen, (SHARE * total)[:, None])  # the weight of all values up to each one
    steps = values[:kept] - np.append(values[1:kept], 0.0)  # sum of weight times value, by parts
    with np.errstate(invalid="ignore"):
        cvar = (within @ steps) / (SHARE * total)
    return np.where((total > 0)[:, None], np.column_stack([percentile, cvar]), np.nan)
