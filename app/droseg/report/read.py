"""Case tables from disk: case_metrics.csv of one or several runs, or any long CSV of other software."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import pandas as pd

from droseg.data.csv_text import TextTable, read_text
from droseg.errors import InputError
from droseg.metrics import COLUMNS, METRICS, has_direction, higher_is_better, is_metric, is_own_column
from droseg.report.checks import VOLUMES, as_fractions, check_distances, check_groups, check_ids, fill_patients
from droseg.report.seeds import (
    SEED,
    average_seeds,
    group_axes,
    refuse_own_columns,
    refuse_unclear_metrics,
    table_metrics,
)

PathLike = str | os.PathLike[str]


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
    other_scale: Collection[str] = (),
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
            other_scale=other_scale,
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
    other_scale: Collection[str] = (),
    groups: Mapping[str, Mapping[str, str]] | None = None,
    notes: list[tuple[Path, str]] | None = None,
) -> pd.DataFrame:
    """Return the cases tables of several trainings one below the other, told apart by the column `seed`.

    Args:
        paths: CSV files, one row per case and structure; separated by commas, semicolons or tabs.
        case_column: column of the case.
        patient_column: column of the patient; default `patient_id`, and where that is absent the case.
        structure_column: column of the structure.
        metrics: metric -> column; default the columns that bear droseg's names. `volume_ref_ml` and `volume_pred_ml`
            may be among them, so that missed and false positive can be told apart. Lower is better if a name ends in
            `_mm` (a distance), `_error` or `_lower`; see `with_direction`.
        axes: columns to group by; default the columns that are not its own, in a case_metrics.csv of droseg.
        where: keep rows with this (column, value); several values of one column: any of them.
        percent: the scores (higher is better) are given in percent.
        other_scale: scores that are no fractions, or not given in percent though the others are.
        groups: axis -> case_id -> group, for the axes that a file has no column of.
        notes: takes file and sentence of what a reader should know of how it was read.

    Raises:
        InputError: if a file cannot be used; the message names the file, the column or the row.
    """
    if not paths:
        raise InputError("no CSV given; give at least one case_metrics.csv.")
    tables = []
    for path in paths:
        note = partial(_note, notes, Path(path))
        source = _keep(read_text(Path(path), note), where)
        columns = {"case_id": case_column, "structure": structure_column}
        patient = patient_column or ("patient_id" if "patient_id" in source.fields.columns else case_column)
        table = _own_names(source, columns | {"patient_id": patient}, metrics or {}, axes, groups or {})
        check_ids(table, source.path)
        table["patient_id"] = fill_patients(table, source.path, note)
        check_groups(table, group_axes(table), str(path))
        check_distances(table, source.path)
        scores = [m for m in table_metrics(table) if higher_is_better(m)]
        table = as_fractions(table, source.path, scores, percent, other_scale)
        tables.append(table.reset_index(drop=True))
    table_axes = group_axes(tables[0])
    for path, table in zip(paths, tables, strict=True):
        if set(table.columns) != set(tables[0].columns):
            odd = sorted(set(table.columns) ^ set(tables[0].columns))
            raise InputError(f"{path}: columns {odd} are not in both this file and {paths[0]}; give files of one kind.")
    merged = pd.concat([t.assign(**{SEED: i}) for i, t in enumerate(tables)], ignore_index=True)
    check_groups(merged, [*table_axes, "patient_id"], f"{len(paths)} files")
    return merged


def _note(notes: list[tuple[Path, str]] | None, path: Path, text: str) -> None:
    if notes is not None:
        notes.append((path, text))


def _keep(source: TextTable, where: Sequence[tuple[str, str]]) -> TextTable:
    wanted: dict[str, list[str]] = {}
    for column, value in where:
        source.need(column, "Correct --where.")
        wanted.setdefault(column, []).append(value)
    table = source.fields
    for column, values in wanted.items():
        kept = table[table[column].isin(values)]
        if kept.empty:
            found = ", ".join(sorted(table[column].unique())[:20])
            raise InputError(
                f"{source.path}: no row left with {column} = {' or '.join(values)}; values there: {found}."
            )
        table = kept
    return replace(source, fields=table)


def _own_names(
    source: TextTable,
    columns: Mapping[str, str],
    metrics: Mapping[str, str],
    axes: Sequence[str] | None,
    groups: Mapping[str, Mapping[str, str]],
) -> pd.DataFrame:
    """Return the columns in use under droseg's names, with numbers as floats."""
    raw, path = source.fields, source.path
    hints = {"case_id": "--case-column", "structure": "--structure-column", "patient_id": "--patient-column"}
    for name, column in columns.items():
        source.need(column, f"Name the right one by {hints[name]}.")
    volumes = {name: metrics.get(name, name) for name in VOLUMES if name in metrics or name in raw.columns}
    metrics = {name: column for name, column in metrics.items() if name not in VOLUMES}
    if not metrics:
        metrics = {m: m for m in [*METRICS, *raw.columns] if m in raw.columns and is_metric(m) and has_direction(m)}
    if not metrics:
        source.need("dice", "Name the metrics by --metric NAME:COLUMN, e.g. --metric dice:DSC.")
    for column in [*metrics.values(), *volumes.values()]:
        source.need(column, "Correct --metric NAME:COLUMN.")
    refuse_unclear_metrics(metrics, source=f"{path}: ")
    if axes is None:
        own_file = {"case_id", "patient_id", "structure", *VOLUMES} <= set(raw.columns)
        used = {*columns.values(), *metrics.values(), *COLUMNS, "diagonal_mm"}
        axes = [c for c in raw.columns if own_file and c not in used and not is_own_column(c)]
    else:
        refuse_own_columns(axes, {*columns.values(), *metrics, *metrics.values()}, source=f"{path}: ")
    others = {axis: groups[axis] for axis in axes if axis in groups and axis not in raw.columns}
    for column in axes:
        if column not in others:
            source.need(column, "Correct --group-by, or give a --datalist whose cases have this group.")

    table = pd.DataFrame({name: raw[columns[name]] for name in ("case_id", "patient_id", "structure")})
    for name, column in {**metrics, **volumes}.items():
        table[name] = source.numbers(column)
    for column in axes:
        if column in others:
            of_case = table["case_id"].map(dict(others[column]))
            if of_case.isna().all():
                raise InputError(f"{path}: the datalist knows the group '{column}' of none of its cases.")
            table[column] = of_case.astype(object).where(of_case.notna(), None)
        elif column not in table.columns:
            table[column] = raw[column].where(raw[column] != "", None).astype(object)
    if "diagonal_mm" in raw.columns:
        table["diagonal_mm"] = source.numbers("diagonal_mm")
    return table
