"""Case tables from disk: case_metrics.csv of one or several runs, or any long CSV of other software."""

from __future__ import annotations

import csv
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from droseg.errors import InputError
from droseg.metrics import COLUMNS, METRICS, OVERLAP_METRICS, has_direction, is_metric, is_own_column
from droseg.report.seeds import SEED, average_seeds, group_axes, refuse_own_columns, refuse_unclear_metrics

PathLike = str | os.PathLike[str]

_VOLUMES = ("volume_ref_ml", "volume_pred_ml")
_SHOWN = 10  # line numbers that an error names
_UNDEFINED = {"", "na", "n/a", "nan", "none", "null", "-", "inf", "+inf", "-inf", "infinity"}


def read_cases(
    paths: Sequence[PathLike],
    *,
    case_column: str = "case_id",
    patient_column: str | None = None,
    structure_column: str = "structure",
    metrics: Mapping[str, str] | None = None,
    axes: Sequence[str] | None = None,
    where: Sequence[tuple[str, str]] = (),
    percent: bool = False,
) -> pd.DataFrame:
    """Return a cases table (see `droseg.metrics.groups`); several files are several seeds and are averaged per case.

    For the arguments see `read_seeds`. Two sides that are to be compared: `read_seeds` of each, then `average_sides`.
    """
    return average_seeds(
        read_seeds(
            paths,
            case_column=case_column,
            patient_column=patient_column,
            structure_column=structure_column,
            metrics=metrics,
            axes=axes,
            where=where,
            percent=percent,
        )
    )


def read_seeds(
    paths: Sequence[PathLike],
    *,
    case_column: str = "case_id",
    patient_column: str | None = None,
    structure_column: str = "structure",
    metrics: Mapping[str, str] | None = None,
    axes: Sequence[str] | None = None,
    where: Sequence[tuple[str, str]] = (),
    percent: bool = False,
) -> pd.DataFrame:
    """Return the cases tables of several trainings one below the other, told apart by the column `seed`.

    Args:
        paths: CSV files, one row per case and structure; separated by commas, semicolons or tabs.
        case_column: column of the case.
        patient_column: column of the patient; default `patient_id`, and where that is absent the case.
        structure_column: column of the structure.
        metrics: metric -> column; default the columns that bear droseg's names. Lower is better if a name ends in `_mm`
            (a distance), `_error` or `_lower`; see `with_direction`.
        axes: columns to group by; default the columns that are not its own, in a case_metrics.csv of droseg.
        where: keep rows with this (column, value); several values of one column: any of them.
        percent: `dice` and `nsd` are given in percent.

    Raises:
        InputError: if a file cannot be used; the message names the file, the column or the row.
    """
    if not paths:
        raise InputError("no CSV given; give at least one case_metrics.csv.")
    tables = []
    for path in paths:
        raw = _read_text_table(Path(path))
        raw = _keep(raw, where, Path(path))
        columns = {"case_id": case_column, "structure": structure_column}
        patient = patient_column or ("patient_id" if "patient_id" in raw.columns else case_column)
        table = _own_names(raw, Path(path), columns | {"patient_id": patient}, metrics, axes)
        _check_values(table, Path(path), percent)
        tables.append(table.reset_index(drop=True))
    table_axes = group_axes(tables[0])
    for path, table in zip(paths, tables, strict=True):
        if set(table.columns) != set(tables[0].columns):
            odd = sorted(set(table.columns) ^ set(tables[0].columns))
            raise InputError(f"{path}: columns {odd} are not in both this file and {paths[0]}; give files of one kind.")
    merged = pd.concat([t.assign(**{SEED: i}) for i, t in enumerate(tables)], ignore_index=True)
    _check_groups(merged, table_axes, f"{len(paths)} files")
    return merged


def _read_text_table(path: Path) -> pd.DataFrame:
    """Return the file as text, one string per field; the index is the line number in the file."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            header = file.readline()
        separator = max(",;\t", key=header.count)
        options: dict[str, Any] = {"dtype": str, "keep_default_na": False, "encoding": "utf-8-sig"}
        # Blank lines are read, and left out below: skipped by pandas, they would shift the line numbers of errors.
        table = pd.read_csv(path, sep=separator, skipinitialspace=True, skip_blank_lines=False, **options)
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such file; give a CSV with one row per case and structure.") from error
    except IsADirectoryError as error:
        raise InputError(f"{path}: is a folder; give the case_metrics.csv in it.") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not a text file in UTF-8; export it as CSV.") from error
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}).") from error
    except (pd.errors.ParserError, pd.errors.EmptyDataError, csv.Error) as error:
        raise InputError(f"{path}: not a CSV with a header line ({error}).") from error
    table.columns = [str(c).strip() for c in table.columns]
    table.index = pd.RangeIndex(2, len(table) + 2)
    table = table.apply(lambda column: column.str.strip())
    table = table[(table != "").any(axis=1)]
    if table.empty:
        raise InputError(f"{path}: a header but no rows; was the evaluation empty?")
    return table


def _need(table: pd.DataFrame, column: str, path: Path, hint: str) -> None:
    if column not in table.columns:
        raise InputError(f"{path}: no column '{column}'; those there: {', '.join(table.columns)}. {hint}")


def _keep(table: pd.DataFrame, where: Sequence[tuple[str, str]], path: Path) -> pd.DataFrame:
    wanted: dict[str, list[str]] = {}
    for column, value in where:
        _need(table, column, path, "Correct --where.")
        wanted.setdefault(column, []).append(value)
    for column, values in wanted.items():
        kept = table[table[column].isin(values)]
        if kept.empty:
            found = ", ".join(sorted(table[column].unique())[:20])
            raise InputError(f"{path}: no row left with {column} = {' or '.join(values)}; values there: {found}.")
        table = kept
    return table


def _own_names(
    raw: pd.DataFrame,
    path: Path,
    columns: Mapping[str, str],
    metrics: Mapping[str, str] | None,
    axes: Sequence[str] | None,
) -> pd.DataFrame:
    """Return the columns in use under droseg's names, with numbers as floats."""
    hints = {"case_id": "--case-column", "structure": "--structure-column", "patient_id": "--patient-column"}
    for name, column in columns.items():
        _need(raw, column, path, f"Name the right one by {hints[name]}.")
    if metrics is None:
        metrics = {m: m for m in [*METRICS, *raw.columns] if m in raw.columns and is_metric(m) and has_direction(m)}
        if not metrics:
            _need(raw, "dice", path, "Name the metrics by --metric NAME:COLUMN, e.g. --metric dice:DSC.")
    for column in metrics.values():
        _need(raw, column, path, "Correct --metric NAME:COLUMN.")
    refuse_unclear_metrics(metrics, source=f"{path}: ")
    if axes is None:
        own_file = {"case_id", "patient_id", "structure", *_VOLUMES} <= set(raw.columns)
        used = {*columns.values(), *metrics.values(), *COLUMNS, "diagonal_mm"}
        axes = [c for c in raw.columns if own_file and c not in used and not is_own_column(c)]
    else:
        refuse_own_columns(axes, {*columns.values(), *metrics, *metrics.values()}, source=f"{path}: ")
    for column in axes:
        _need(raw, column, path, "Correct --group-by.")

    table = pd.DataFrame({name: raw[columns[name]] for name in ("case_id", "patient_id", "structure")})
    for name, column in metrics.items():
        table[name] = _numbers(raw[column], path)
    for name in _VOLUMES:
        if name in raw.columns:
            table[name] = _numbers(raw[name], path)
    for column in axes:
        if column not in table.columns:
            table[column] = raw[column].where(raw[column] != "", None).astype(object)
    if "diagonal_mm" in raw.columns:
        table["diagonal_mm"] = _numbers(raw["diagonal_mm"], path)
    return table


def _numbers(column: pd.Series, path: Path) -> pd.Series:
    """Return floats; fields that say undefined, and infinite ones, become NaN."""
    text = column.str.lower()
    values = pd.to_numeric(column.mask(text.isin(_UNDEFINED)), errors="coerce").astype(float)
    bad = values.isna() & ~text.isin(_UNDEFINED)
    if bad.any():
        lines = bad.index[bad]
        text = column[lines[0]]
        advice = "use a decimal point" if "," in text else "correct the field, or leave it empty if undefined"
        more = f" (and {len(lines) - 1} more: {_lines(lines[1:])})" if len(lines) > 1 else ""
        raise InputError(
            f"{path}, line {lines[0]}: column '{column.name}' holds '{text}', not a number{more}; {advice}."
        )
    return values.where(np.isfinite(values))


def _check_values(table: pd.DataFrame, path: Path, percent: bool) -> None:
    """Refuse empty ids, repeated rows, groups that change within a case, and overlaps outside of 0..1."""
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
    _check_groups(table, group_axes(table), str(path))
    for metric in (m for m in OVERLAP_METRICS if m in table.columns):
        if percent:
            if table[metric].max() <= 1 and (table[metric] > 0).any():
                raise InputError(
                    f"{path}: {metric} is {table[metric].max():g} at most; these are fractions already. Drop --percent."
                )
            table[metric] = table[metric] / 100
        outside = (table[metric] < 0) | (table[metric] > 1 + 1e-6)
        if not outside.any():
            continue
        line = _first_line(outside)
        value = f"{path}, line {line}: {metric} is {table[metric][line]:g}"
        if not percent and table[metric].max() <= 100 and table[metric].median() > 2:
            count = f" ({int(outside.sum())} of {len(table)} rows are above 1)"
            raise InputError(
                f"{value}; this looks like percent, fractions (0 to 1) are expected{count}. Add --percent."
            )
        raise InputError(f"{value}; it must lie between 0 and {100 if percent else 1}.")


def _lines(numbers: pd.Index) -> str:
    """Return "line 3", or "lines 3, 7 ..." of which the first few are named."""
    shown = ", ".join(map(str, numbers[:_SHOWN]))
    return f"line{'s' if len(numbers) > 1 else ''} {shown}{' ...' if len(numbers) > _SHOWN else ''}"


def _first_line(rows: pd.Series) -> int:
    return int(rows.index[int(rows.to_numpy().argmax())])


def _check_groups(table: pd.DataFrame, axes: Sequence[str], source: str) -> None:
    for axis in axes:
        counts = table.groupby("case_id")[axis].nunique(dropna=False)
        if (counts > 1).any():
            case = counts.idxmax()
            found = ", ".join(str(v) for v in table.loc[table["case_id"] == case, axis].unique())
            raise InputError(f"{source}: case '{case}' has several values of '{axis}' ({found}); a case has one group.")
