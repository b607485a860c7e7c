"""Several trainings of one side: one value per case and structure before anything is compared."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import pandas as pd

from droseg.errors import InputError
from droseg.metrics import (
    COLUMNS,
    METRICS,
    has_direction,
    is_own_column,
    largest_value,
    penalized,
    share_diagonals,
)
from droseg.metrics.groups import ALL
from droseg.metrics.names import lacks_direction, suggested_name
from droseg.report.subgroups import subgroup_table

SEED = "seed"
"""Column that tells the trainings of one side apart, until `average_seeds`."""
SPREAD_COLUMNS = ("axis", "group", "structure", "metric", "trainings", "std_between", "lowest", "highest")
_OWN_COLUMNS = (*COLUMNS, "diagonal_mm", SEED)


def refuse_own_columns(axes: Sequence[str], others: Iterable[str] = (), *, source: str = "") -> None:
    """Refuse to group by what a cases table is made of: a case, a structure or a value is no group of cases.

    Raises:
        InputError: if an axis is one of droseg's own columns, or of `others`.
    """
    own = [axis for axis in axes if axis in {*_OWN_COLUMNS, ALL, *others} or is_own_column(axis)]
    if own:
        raise InputError(
            f"{source}cannot group by {', '.join(own)}: no group of cases; give --group-by another column."
        )


def refuse_unclear_metrics(metrics: Iterable[str], *, source: str = "") -> None:
    """Refuse a distance or an error whose name would make it a score: the verdict would be the reverse.

    Raises:
        InputError: if a name looks like a distance or an error and says no direction.
    """
    for name in metrics:
        if lacks_direction(name):
            raise InputError(
                f"{source}{name} looks like a distance or an error, but nothing says that lower is better. Call it "
                f"{suggested_name(name)}, or say which is better: --metric {name}:COLUMN:lower (or :higher)."
            )


def group_axes(cases: pd.DataFrame) -> list[str]:
    """Return the group axes of a cases table: its columns that are neither droseg's own nor numbers."""
    names = [str(c) for c in cases.columns if not pd.api.types.is_float_dtype(cases[c].dtype)]
    return [name for name in names if name not in _OWN_COLUMNS and not is_own_column(name)]


def table_metrics(cases: pd.DataFrame) -> list[str]:
    """Return the metrics of a cases table: droseg's in their fixed order, then the others."""
    floats = [str(c) for c in cases.columns if pd.api.types.is_float_dtype(cases[c].dtype)]
    others = [c for c in floats if c not in _OWN_COLUMNS and has_direction(c)]
    return [m for m in METRICS if m in floats] + others


def average_sides(*sides: pd.DataFrame) -> tuple[pd.DataFrame, ...]:
    """Return `average_seeds` of each side of a comparison, in which a failure costs the same on all sides."""
    shared = share_penalties(*sides)
    largest = largest_values(*shared)
    return tuple(average_seeds(side, largest) for side in shared)


def share_penalties(*sides: pd.DataFrame) -> tuple[pd.DataFrame, ...]:
    """Return the sides with one `diagonal_mm` per case, the largest that any of them gives; see `share_diagonals`."""
    known = [side[["case_id", "diagonal_mm"]] for side in sides if "diagonal_mm" in side.columns]
    if not known:
        return sides
    return tuple(share_diagonals(side, pd.concat(known))[0] for side in sides)


def largest_values(*sides: pd.DataFrame) -> dict[str, float]:
    """Return per metric that all sides have the largest finite value of them all."""
    shared = [m for m in table_metrics(sides[0]) if all(m in side.columns for side in sides)]
    return {m: float(np.fmax.reduce([largest_value(side, m) for side in sides])) for m in shared}


def average_seeds(cases: pd.DataFrame, largest_mm: Mapping[str, float] | None = None) -> pd.DataFrame:
    """Return one row per case and structure: means over the rows of several trainings (column `seed`).

    A failure in some of the seeds enters the mean with its penalized value; a distance stays undefined only if every
    seed failed. `volume_pred_ml` is the mean, hence 0 only if every seed missed the structure. A single training stays
    as it is. `largest_mm`: see `penalized`, per metric.
    """
    if num_trainings(cases) == 1:
        return cases.drop(columns=SEED, errors="ignore")
    metrics = table_metrics(cases)
    keys = ["case_id", "structure"]
    values = cases.copy()
    for metric in metrics:
        values[metric] = penalized(cases, metric, (largest_mm or {}).get(metric))
    is_number = pd.api.types.is_numeric_dtype
    own = [str(c) for c in cases.columns if is_own_column(str(c)) and is_number(cases[c].dtype)]
    numbers = [*metrics, *(c for c in own if c not in (*keys, *metrics))]
    grouped = values.groupby(keys, sort=False)
    result = grouped.first().drop(columns=[*numbers, SEED]).join(grouped[numbers].mean()).reset_index()
    ever = cases.groupby(keys, sort=False)[metrics].count().reset_index()[metrics]
    # All seeds failed: keep what one seed would show, dice 0 and an undefined distance.
    result[metrics] = result[metrics].where(ever.gt(0))
    return result[[c for c in cases.columns if c != SEED]]


def num_trainings(cases: pd.DataFrame) -> int:
    """Return how many trainings a table holds; one that is averaged already, or has no column `seed`, counts as one."""
    return int(cases[SEED].nunique()) if SEED in cases.columns else 1


def partly_there(cases: pd.DataFrame) -> list[str]:
    """Return the cases that some of the trainings lack: their mean is over fewer trainings than that of the others."""
    if num_trainings(cases) == 1:
        return []
    seen = cases.groupby("case_id", sort=False)[SEED].nunique()
    return [str(case_id) for case_id in seen.index[seen < num_trainings(cases)]]


def spread_table(
    cases: pd.DataFrame,
    axes: Sequence[str],
    metrics: Sequence[str],
    largest_mm: Mapping[str, float] | None = None,
) -> pd.DataFrame:
    """Return how far the means of the trainings lie apart (`SPREAD_COLUMNS`), per axis, group, structure and metric.

    Penalized values. `std_between` is the standard deviation of the trainings' means; it, `lowest` and `highest` say
    what another seed may change without any change of the method. Empty for one training, which cannot tell.
    """
    if num_trainings(cases) == 1:
        return pd.DataFrame(columns=list(SPREAD_COLUMNS))
    values = cases.assign(**{m: penalized(cases, m, (largest_mm or {}).get(m)) for m in metrics})
    tables = [
        subgroup_table(training.drop(columns=SEED), axes, metrics, num_bootstrap=0)
        for _, training in values.groupby(SEED, sort=True)
    ]
    means = pd.concat(tables).groupby(list(SPREAD_COLUMNS[:4]), sort=False)["mean"]
    table = means.agg(trainings="count", std_between="std", lowest="min", highest="max").reset_index()
    return table[list(SPREAD_COLUMNS)]
