"""CSV files as text, one string per field, and their numbers; what went wrong is said with file and line."""

from __future__ import annotations

import csv
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from droseg.errors import InputError

_SHOWN = 10  # line numbers that an error names
_UNDEFINED = {"", "na", "n/a", "nan", "none", "null", "-", "inf", "+inf", "-inf", "infinity"}


@dataclass(frozen=True)
class TextTable:
    """A file as text.

    Attributes:
        path: of the file.
        fields: one string per field; the index is the line number in the file.
        comma_is_decimal: whether a number may be written 0,87, since another sign separates the fields.
    """

    path: Path
    fields: pd.DataFrame
    comma_is_decimal: bool

    def need(self, column: str, hint: str) -> None:
        """Refuse a file without this column."""
        if column not in self.fields.columns:
            found = ", ".join(self.fields.columns)
            raise InputError(f"{self.path}: no column '{column}'; those there: {found}. {hint}")

    def numbers(self, column: str) -> pd.Series:
        """Return a column as floats; fields that say undefined, and infinite ones, become NaN."""
        fields = self.fields[column]
        text = fields.str.lower()
        if self.comma_is_decimal and not fields.str.contains(".", regex=False).any():
            text = text.str.replace(",", ".", regex=False)
        values = pd.to_numeric(text.mask(text.isin(_UNDEFINED)), errors="coerce").astype(float)
        bad = values.isna() & ~text.isin(_UNDEFINED)
        if bad.any():
            lines = bad.index[bad]
            found = fields[lines[0]]
            advice = "use a decimal point" if "," in found else "correct the field, or leave it empty if undefined"
            more = f" (and {len(lines) - 1} more: {_lines(lines[1:])})" if len(lines) > 1 else ""
            raise InputError(
                f"{self.path}, line {lines[0]}: column '{column}' holds '{found}', not a number{more}; {advice}."
            )
        return values.where(np.isfinite(values))


def read_text(path: Path, note: Callable[[str], None] = lambda _: None) -> TextTable:
    """Return the file as text; `note` takes what a reader should know of how it was read.

    Raises:
        InputError: if it is no CSV with a header and at least one row.
    """
    try:
        encoding = _encoding(path)
        if encoding == "latin-1":
            note("not in UTF-8, read as Latin-1; check names with accents")
        with path.open(encoding=encoding, newline="") as file:
            header = file.readline()
        separator = max(",;\t", key=header.count)
        options: dict[str, Any] = {"dtype": str, "keep_default_na": False, "encoding": encoding}
        # Blank lines are read, and left out below: skipped by pandas, they would shift the line numbers of errors.
        table = pd.read_csv(path, sep=separator, skipinitialspace=True, skip_blank_lines=False, **options)
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such file; give a CSV with one row per case and structure.") from error
    except IsADirectoryError as error:
        raise InputError(f"{path}: is a folder; give the case_metrics.csv in it.") from error
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
    return TextTable(path, table, comma_is_decimal=separator != ",")


def _encoding(path: Path) -> str:
    """Return UTF-8 or, for other text, Latin-1, which spreadsheets of Western Europe still write."""
    data = path.read_bytes()
    if b"\0" in data:
        raise InputError(f"{path}: not a text file in UTF-8; export it as CSV.")
    try:
        data.decode("utf-8-sig")
    except UnicodeDecodeError:
        return "latin-1"
    return "utf-8-sig"


def _lines(numbers: pd.Index) -> str:
    """Return "line 3", or "lines 3, 7 ..." of which the first few are named."""
    shown = ", ".join(map(str, numbers[:_SHOWN]))
    return f"line{'s' if len(numbers) > 1 else ''} {shown}{' ...' if len(numbers) > _SHOWN else ''}"
