"""Group axes of a cases table: columns, and products of columns."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd

PRODUCT = "*"
"""Joins axes to their product: `anatomy*protocol` groups by both at once."""


def axis_columns(axes: Sequence[str], known: Sequence[str] = ()) -> list[str]:
    """Return the columns that axes are made of, each once; a column of `known` whose name has a star is no product."""
    parts = [part for axis in axes for part in ([axis] if axis in known else _parts(axis))]
    return list(dict.fromkeys(parts))


def with_axes(cases: pd.DataFrame, axes: Sequence[str]) -> pd.DataFrame:
    """Return the table with the groups of every axis as text; the group of a product is "rare * site_a".

    A case without a group on one of the axes of a product has none on the product. An axis whose columns are absent is
    left to the caller.
    """
    columns = [c for c in axis_columns(axes, list(map(str, cases.columns))) if c in cases.columns]
    cases = cases.assign(**{column: cases[column].map(_group_text).astype(object) for column in columns})
    for axis in axes:
        parts = _parts(axis)
        if axis not in cases.columns and set(parts) <= set(columns):
            cases = cases.assign(**{axis: _join(cases, parts)})
    return cases


def _join(cases: pd.DataFrame, parts: Sequence[str]) -> pd.Series:
    joined = cases[parts[0]]
    for part in parts[1:]:
        joined = joined + f" {PRODUCT} " + cases[part]
    return joined.where(cases[list(parts)].notna().all(axis=1), None)


def _parts(axis: str) -> list[str]:
    return [part.strip() for part in axis.split(PRODUCT)] if PRODUCT in axis else [axis]


def _group_text(value: Any) -> str | None:
    """Return a group as text; a whole number as 3, also where a gap in the column made it 3.0."""
    if pd.isna(value):
        return None
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)
