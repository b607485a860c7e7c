"""Several trainings of one side: one value per case and structure before anything is compared."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import pandas as pd

from droseg.errors import InputError
from droseg.metrics import COLUMNS, METRICS, largest_value, penalized, share_diagonals
from droseg.metrics.groups import ALL

SEED = "seed"
"""Column that tells the trainings of one side apart, until `average_seeds`."""
_OWN_COLUMNS = (*COLUMNS, "diagonal_mm", SEED)


def refuse_own_columns(axes: Sequence[str], others: Iterable[str] = (), *, source: str = "") -> None:
    """Refuse to group by what a cases table is made of: a case, a structure or a value is no group of cases.

    Raises:
        InputError: if an axis is one of droseg's own columns, or of `others`.
    """
    own = [axis for axis in axes if axis in {*_OWN_COLUMNS, ALL, *others}]
    if own:
        raise InputError(
            f"{source}cannot group by {', '.join(own)}: no group of cases; give --group-by another column."
        )


def group_axes(cases: pd.DataFrame) -> list[str]:
    """Return the group axes of a cases table: its columns that are neither droseg's own nor numbers."""
    return [str(c) for c in cases.columns if c not in _OWN_COLUMNS and not pd.api.types.is_float_dtype(cases[c].dtype)]


def table_metrics(cases: pd.DataFrame) -> list[str]:
    """Return the metrics of a cases table: droseg's in their fixed order, then the others."""
    floats = [str(c) for c in cases.columns if pd.api.types.is_float_dtype(cases[c].dtype)]
    others = [c for c in floats if c not in _OWN_COLUMNS]
    return [m for m in METRICS if m in floats] + others


def average_sides(first: pd.DataFrame, second: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return `average_seeds` of the two sides of a comparison, in which a failure costs the same on both sides."""
    first, second = share_diagonals(first, second)
    shared = [m for m in table_metrics(first) if m in second.columns]
    largest = {m: float(np.fmax(largest_value(first, m), largest_value(second, m))) for m in shared}
    return average_seeds(first, largest), average_seeds(second, largest)


def average_seeds(cases: pd.DataFrame, largest_mm: Mapping[str, float] | None = None) -> pd.DataFrame:
    """Return one row per case and structure: means over the rows of several trainings (column `seed`).

    A failure in some of the seeds enters the mean with its penalized value; a distance stays undefined only if every
    seed failed. `volume_pred_ml` is the mean, hence 0 only if every seed missed the structure. A single training stays
    as it is. `largest_mm`: see `penalized`, per metric.
    """
    if cases[SEED].nunique() == 1:
        return cases.drop(columns=SEED)
    metrics = table_metrics(cases)
    keys = ["case_id", "structure"]
    values = cases.copy()
    for metric in metrics:
        values[metric] = penalized(cases, metric, (largest_mm or {}).get(metric))
    numbers = [*metrics, *(c for c in ("volume_ref_ml", "volume_pred_ml", "diagonal_mm") if c in cases.columns)]
    grouped = values.groupby(keys, sort=False)
    result = grouped.first().drop(columns=[*numbers, SEED]).join(grouped[numbers].mean()).reset_index()
    ever = cases.groupby(keys, sort=False)[metrics].count().reset_index()[metrics]
    # All seeds failed: keep what one seed would show, dice 0 and an undefined distance.
    result[metrics] = result[metrics].where(ever.gt(0))
    return result[[c for c in cases.columns if c != SEED]]
