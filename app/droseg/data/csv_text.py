"""CSV files as text, one string per field, and their numbers; what went wrong is said with file and line."""

from __future__ import annotations

import codecs
import csv
import io
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

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
        header: the column names as the file has them; `fields` tells repeated ones apart by ".1", ".2" ...
    """

    path: Path
    fields: pd.DataFrame
    comma_is_decimal: bool
    header: tuple[str, ...] = ()

    def rows(self) -> Iterator[tuple[int, dict[str, str]]]:
        """Yield the line number and the fields of each row, by column."""
        columns = list(self.fields.columns)
        for line, values in zip(self.fields.index, self.fields.to_numpy(), strict=True):
            yield int(line), dict(zip(columns, map(str, values), strict=True))

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


def read_text(
    path: Path, note: Callable[[str], None] = lambda _: None, rows_are: str = "one row per case and structure"
) -> TextTable:
    """Return the file as text; `note` takes what a reader should know of how it was read.

    Commas, semicolons and tabs separate fields; UTF-8, UTF-16 (a spreadsheet's "Unicode text") and Windows-1252 (its
    "CSV" in Western Europe) are read. `rows_are` says in an error what is expected.

    Raises:
        InputError: if it is no CSV with a header and at least one row.
    """
    try:
        text = _decoded(path, note)
        names, rows, separator = _parsed(text)
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such file; give a CSV with {rows_are}.") from error
    except IsADirectoryError as error:
        raise InputError(f"{path}: is a folder; give a CSV with {rows_are}, such as one in it.") from error
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}).") from error
    except csv.Error as error:
        raise InputError(f"{path}: not a CSV with a header line ({error}).") from error
    long = [line for line, row in rows.items() if any(row[len(names) :])]
    if long:
        raise InputError(
            f"{path}: more fields than its header has ({len(names)}) in {_lines(long)}; put a field that holds a "
            f"'{separator}' in quotation marks."
        )
    if not rows:
        raise InputError(f"{path}: a header but no rows; {rows_are} is expected.")
    filled = [[*row[: len(names)], *[""] * (len(names) - len(row))] for row in rows.values()]
    table = pd.DataFrame(filled, index=list(rows), columns=_told_apart(names), dtype=str)
    unnamed = [column for column, name in zip(table.columns, names, strict=True) if not name]
    table = table.drop(columns=[column for column in unnamed if (table[column] == "").all()])
    return TextTable(path, table, comma_is_decimal=separator != ",", header=names)


def _parsed(text: str) -> tuple[tuple[str, ...], dict[int, list[str]], str]:
    """Return the names of the columns, line number -> fields of each row that is not blank, and the separator."""
    skipped, separator = 0, ""
    if marked := re.match(r"sep=(.)\r?\n", text):  # a first line that Excel writes and reads
        skipped, separator, text = 1, marked[1], text[marked.end() :]
    separator = separator or max(",;\t", key=text.partition("\n")[0].count)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, skipinitialspace=True, strict=True)
    names = tuple(name.strip() for name in next(reader, []))
    if not any(names):
        raise csv.Error("its first line is blank")
    rows, line = {}, reader.line_num
    for row in reader:
        fields = [field.strip() for field in row]
        if any(fields):
            rows[skipped + line + 1] = fields  # where the row begins: a quoted field may hold line breaks
        line = reader.line_num
    return names, rows, separator


def _told_apart(names: Sequence[str]) -> list[str]:
    """Return names of which each occurs once: "age", "age.1"; a blank one becomes "Unnamed: 3"."""
    found: list[str] = []
    for index, name in enumerate(names):
        name = name or f"Unnamed: {index}"
        count = names[:index].count(name)
        found.append(f"{name}.{count}" if count else name)
    return found


def _decoded(path: Path, note: Callable[[str], None]) -> str:
    """Return the text of a file in UTF-8, UTF-16 or, where it is neither, Windows-1252."""
    data = path.read_bytes()
    if data.startswith((b"PK\x03\x04", b"\xd0\xcf\x11\xe0")):  # the containers of .xlsx and .ods, and of .xls
        raise InputError(
            f"{path}: a spreadsheet, not text; open it and save the sheet as CSV (in Excel: Save As, 'CSV UTF-8')."
        )
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return data.decode("utf-16", errors="replace")
    if b"\0" in data:
        raise InputError(f"{path}: not a text file in UTF-8; export it as CSV.")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        note("not in UTF-8, read as Windows-1252 (Latin-1); check names with accents")
    try:
        return data.decode("cp1252")
    except UnicodeDecodeError:  # five bytes mean nothing there
        return data.decode("latin-1")


def _lines(numbers: Sequence[int] | pd.Index) -> str:
    """Return "line 3", or "lines 3, 7 ..." of which the first few are named."""
    shown = ", ".join(map(str, numbers[:_SHOWN]))
    return f"line{'s' if len(numbers) > 1 else ''} {shown}{' ...' if len(numbers) > _SHOWN else ''}"
