"""What is wrong with the values of a cases table from disk, said with file and line."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from pathlib import Path

import pandas as pd

from droseg.errors import InputError
from droseg.metrics import OVERLAP_METRICS
from droseg.metrics.names import lacks_direction

VOLUMES = ("volume_ref_ml", "volume_pred_ml")


def check_ids(table: pd.DataFrame, path: Path) -> None:
    """Refuse rows without a case or a structure, and repeated ones; the index of the table is the line."""
    for name in ("case_id", "structure"):
        empty = table[name] == ""
        if empty.any():
            raise InputError(f"{path}, line {_first_line(empty)}: no {name}; fill it in.")
    repeated = table.duplicated(["case_id", "structure"])
    if repeated.any():
        line = _first_line(repeated)
        raise InputError(
            f"{path}, line {line}: case '{table['case_id'][line]}', structure '{table['structure'][line]}' is there "
            "twice; keep one row per case and structure (several runs: one file each; a subset: --where COLUMN=VALUE)."
        )


def fill_patients(table: pd.DataFrame, path: Path, note: Callable[[str], None]) -> pd.Series:
    """Return the patient of each row; where none is given, the one of the case's other rows, else the case itself.

    Raises:
        InputError: if rows of one case name different patients: intervals resample patients, each with all its cases.
    """
    given = table["patient_id"].mask(table["patient_id"] == "")
    known = given.groupby(table["case_id"]).transform("first")
    without = table.loc[known.isna(), "case_id"].nunique()
    if without:
        note(f"{without} cases have no patient; each of them counts as a patient of its own")
    odd = given.notna() & (given != known)
    if odd.any():
        line = _first_line(odd)
        raise InputError(
            f"{path}, line {line}: case '{table['case_id'][line]}' has the patient '{given[line]}' here and "
            f"'{known[line]}' above; a case is of one patient, correct the CSV or name the right --patient-column."
        )
    return known.fillna(table["case_id"])


def check_distances(table: pd.DataFrame, path: Path) -> None:
    """Refuse negative distances and volumes."""
    for column in (c for c in map(str, table.columns) if c in VOLUMES or _is_distance(c)):
        negative = table[column] < 0
        if negative.any():
            line = _first_line(negative)
            raise InputError(
                f"{path}, line {line}: {column} is {table[column][line]:g}; it cannot be negative, correct the field "
                "or leave it empty if undefined."
            )


def as_fractions(
    table: pd.DataFrame, path: Path, scores: Sequence[str], percent: bool, other_scale: Collection[str]
) -> pd.DataFrame:
    """Return the table with its scores as fractions, after a check that they are.

    Args:
        table: with a column per score.
        path: of the file, for messages.
        scores: columns in which higher is better.
        percent: they are given in percent.
        other_scale: those that stay as they are; `dice` and `nsd` must still lie between 0 and 1.

    Raises:
        InputError: if scores look like percent and no one said so, or the reverse.
    """
    result = table.copy()
    for score in scores:
        values = table[score]
        if percent and score not in other_scale:
            if values.max() <= 1 and (values > 0).any():
                raise InputError(
                    f"{path}: {score} is {values.max():g} at most; these are fractions already. Drop --percent, or if "
                    f"only other columns are in percent, say --metric {score}:COLUMN:higher."
                )
            values = result[score] = values / 100
        if score in OVERLAP_METRICS or score not in other_scale:
            _check_fractions(values, score, path, percent and score not in other_scale)
    return result


def _check_fractions(values: pd.Series, score: str, path: Path, percent: bool) -> None:
    outside = (values < 0) | (values > 1 + 1e-6)
    bounded = score in OVERLAP_METRICS
    like_percent = not percent and 1.5 < values.max() <= 100
    if not outside.any() or not (bounded or like_percent):
        return  # a score of other software may have any scale
    line = _first_line(values > 1 + 1e-6) if like_percent else _first_line(outside)
    found = f"{path}, line {line}: {score} is {values[line] * (100 if percent else 1):g}"
    if like_percent:
        count = f"{int((values > 1 + 1e-6).sum())} of {int(values.notna().sum())} values are above 1"
        looks = "looks like percent" if values.median() > 2 else "is no fraction"
        escape = "" if bounded else f"; if its scale is another one, say --metric {score}:COLUMN:higher"
        raise InputError(
            f"{found}; this {looks}, 0 to 1 is expected ({count}). If the column is in percent, add --percent{escape}."
        )
    raise InputError(f"{found}; it must lie between 0 and {100 if percent else 1}.")


def check_groups(table: pd.DataFrame, axes: Sequence[str], source: str) -> None:
    """Refuse an axis on which a case has several groups."""
    for axis in axes:
        counts = table.groupby("case_id")[axis].nunique(dropna=False)
        if (counts > 1).any():
            case = counts.idxmax()
            found = ", ".join(str(v) for v in table.loc[table["case_id"] == case, axis].unique()[:5])
            raise InputError(
                f"{source}: case '{case}' has several values of '{axis}' ({found}); a case has one group. If that is "
                "no group, name the columns that are: --group-by COLUMN."
            )


def _is_distance(column: str) -> bool:
    if column.endswith("_mm"):
        return True
    base = column.removesuffix("_lower")
    return base != column and "err" not in base.lower() and lacks_direction(base)


def _first_line(rows: pd.Series) -> int:
    return int(rows.index[int(rows.to_numpy().argmax())])
