"""Site and grade of BraTS cases: from their names, and from the tables that people have."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from convert_shared import Findings, known
from droseg.data.csv_text import read_text
from droseg.data.from_folders.axes import UNKNOWN
from droseg.data.from_folders.findings import some
from droseg.errors import InputError

OLD_NAMES = re.compile(r"Bra[tT][sS]1[789]_(?P<site>[A-Za-z]+|2013)\d*_.+")
"""Brats18_CBICA_AAM_1, Brats18_TCIA02_117_1, BraTS19_TMC_06290_1, Brats17_2013_11_1: the second part is the source."""
YEAR_COLUMN = re.compile(r"BraTS_?20\d\d(_subject_ID)?", re.IGNORECASE)
"""BraTS_2020_subject_ID in name_mapping.csv, BraTS2023 in BraTS2023_2017_GLI_Mapping."""
CASE_COLUMNS = ("case", "case_id", "subject")
SITE_COLUMNS = ("site", "Site No (represents the originating institution)")


@dataclass(frozen=True)
class Mapping:
    """What a table says of the cases: case_id -> site and case_id -> grade; empty where it has no such column."""

    sites: dict[str, str]
    grades: dict[str, str]


def site_of_name(name: str) -> str | None:
    """Return the site in the name of a case of 2017 to 2019: CBICA, TCIA (without its number), TMC or 2013."""
    match = OLD_NAMES.fullmatch(name)
    return match["site"] if match else None


def read_mapping(path: Path, case_ids: Sequence[str], findings: Findings) -> Mapping:
    """Return the sites and grades that a table gives the cases; rows that contradict or lack become problems.

    Raises:
        InputError: if the table cannot be read or has no column for the cases or for the sites.
    """
    table = read_text(path, lambda note: findings.warnings.append(f"{path}: {note}"), "one row per case").fields
    case_column = _case_column(table, case_ids, path)
    names = table[case_column]
    rows = {name: table.index[names == name] for name in case_ids}
    for name, index in rows.items():
        if len(index) > 1:
            where = some(map(str, index))
            findings.problem(f"{path}: {name} in {len(index)} rows (lines {where}); keep one.", name)
        elif len(index) == 0:
            findings.problem(f"{path}: no row for {name}; add one (an empty site becomes '{UNKNOWN}').", name)
    wanted = set(case_ids)
    others = [name for name in names if name and name not in wanted and known(name) != UNKNOWN]
    if others:
        findings.warnings.append(f"{path}: {len(others)} rows for cases that are not here: {some(others)}")
    first = {name: table.loc[index[0]] for name, index in rows.items() if len(index)}
    by_name = {column.lower(): column for column in table.columns}
    site_column = next((by_name[name.lower()] for name in SITE_COLUMNS if name.lower() in by_name), None)
    years = [column for column in table.columns if column != case_column and YEAR_COLUMN.fullmatch(column)]
    if site_column is None and not years:
        raise InputError(f"{path}: no column 'site'; those there: {', '.join(table.columns)}.")
    sites = {name: known(row[site_column]) if site_column else _site(row, years) for name, row in first.items()}
    if site_column and site_column != by_name.get("site"):  # BraTS' sheet numbers them
        sites = {name: site if site == UNKNOWN else f"site_{site}" for name, site in sites.items()}
    grade_column = by_name.get("grade")
    grades = {name: known(row[grade_column]) for name, row in first.items()} if grade_column else {}
    return Mapping(sites, grades)


def _case_column(table: pd.DataFrame, case_ids: Sequence[str], path: Path) -> str:
    """Return the column that holds most of the names of the cases."""
    wanted = set(case_ids)
    columns = [c for c in table.columns if c.lower() in CASE_COLUMNS or YEAR_COLUMN.fullmatch(c)]
    hits = {column: int(table[column].isin(wanted).sum()) for column in columns}
    if not hits or max(hits.values()) == 0:
        raise InputError(
            f"{path}: no column 'case' (or BraTS_2020_subject_ID ...) with names such as {some(case_ids[:2])}; "
            f"its columns: {', '.join(table.columns)}."
        )
    return max(hits, key=lambda column: hits[column])


def _site(row: pd.Series, years: Sequence[str]) -> str:
    """Return the site that the names of a case in other years tell."""
    return next((site for site in map(site_of_name, row[list(years)]) if site), UNKNOWN)
