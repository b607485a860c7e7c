"""Conditions on the features of a case, and rules made of one or two of them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

Relation = Literal["<=", ">", "="]

NUM_THRESHOLDS: Final = 9
"""Most thresholds of a numeric feature: the gaps nearest to its deciles."""
_UNIT: Final = re.compile(r"_(mm|ml|deg|s|ms|t)$")
_UNIT_NAMES: Final = {"deg": "degrees", "t": "T"}


@dataclass(frozen=True)
class Condition:
    """One comparison with a feature; `value` is a number for `<=` and `>`, a text for `=`."""

    feature: str
    relation: Relation
    value: float | str

    def holds(self, features: pd.DataFrame) -> NDArray[np.float64]:
        """Return 1 where it holds, 0 where it does not, NaN where the feature is unknown."""
        return self.holds_for(feature_values(features[self.feature]))

    def holds_for(self, values: NDArray[Any]) -> NDArray[np.float64]:
        """Return the same for what `feature_values` makes of the feature's column."""
        if self.relation == "=":
            return np.where(pd.isna(values), np.nan, (values == self.value).astype(float))
        above = np.where(np.isfinite(values), (values > float(self.value)).astype(float), np.nan)
        return above if self.relation == ">" else 1.0 - above

    def __str__(self) -> str:
        unit = _UNIT.search(self.feature)
        if self.relation == "=":
            return f"{self.feature.replace('_', ' ')} = {self.value}"
        name = self.feature[: unit.start()] if unit else self.feature
        suffix = f" {_UNIT_NAMES.get(unit[1], unit[1])}" if unit else ""
        return f"{name.replace('_', ' ')} {self.relation} {self.value:g}{suffix}"


def rule_text(conditions: Sequence[Condition]) -> str:
    """Return the rule as people read it, e.g. "slice thickness > 2.5 mm and ventricles <= 12 ml"."""
    return " and ".join(str(condition) for condition in conditions)


def rule_holds(conditions: Sequence[Condition], features: pd.DataFrame) -> NDArray[np.float64]:
    """Return 1 where all conditions hold, 0 where one does not, NaN where a feature of the rule is unknown."""
    return np.prod([condition.holds(features) for condition in conditions], axis=0)


def candidate_conditions(features: pd.DataFrame, min_cases: int) -> list[Condition]:
    """Return the conditions that at least `min_cases` cases meet: thresholds of numbers, values of everything else.

    Only the features decide, never the metric, so that the search cannot fit thresholds to it.
    """
    found: list[Condition] = []
    for name in features.columns:
        column = features[name]
        if is_number(column):
            numbers = feature_values(column)
            for value in _thresholds(numbers, min_cases):
                sides: list[tuple[Relation, int]] = [(">", (numbers > value).sum()), ("<=", (numbers <= value).sum())]
                found += [Condition(str(name), relation, value) for relation, count in sides if count >= min_cases]
        else:
            counts = column.dropna().astype(str).value_counts()
            values = sorted(str(value) for value, count in counts.items() if min_cases <= count < counts.sum())
            found += [Condition(str(name), "=", value) for value in values]
    return found


def feature_values(column: pd.Series) -> NDArray[Any]:
    """Return numbers as float64, everything else as text; NaN where the feature is unknown."""
    if is_number(column):
        return column.to_numpy(dtype=float, na_value=np.nan)
    return column.astype(str).where(column.notna(), np.nan).to_numpy(dtype=object)


def is_number(column: pd.Series) -> bool:
    """Return whether thresholds make sense for a feature: numbers, and not just true or false."""
    return pd.api.types.is_numeric_dtype(column.dtype) and not pd.api.types.is_bool_dtype(column.dtype)


def _thresholds(numbers: NDArray[np.float64], min_cases: int) -> list[float]:
    """Return short numbers in the gaps between the values, with `min_cases` values on one side at least."""
    ordered = np.sort(numbers[np.isfinite(numbers)])
    last_below = np.flatnonzero(np.diff(ordered) > 0)
    size = len(ordered)
    last_below = last_below[np.maximum(last_below + 1, size - last_below - 1) >= min_cases]
    if len(last_below) > NUM_THRESHOLDS:
        wanted = np.arange(1, NUM_THRESHOLDS + 1) / (NUM_THRESHOLDS + 1) * size - 1
        last_below = np.unique(last_below[np.abs(last_below[None] - wanted[:, None]).argmin(axis=1)])
    return [_short_between(float(ordered[i]), float(ordered[i + 1])) for i in last_below]


def _short_between(low: float, high: float) -> float:
    """Return a number strictly between two others, near their middle, with as few digits as possible."""
    middle = low + (high - low) / 2
    for digits in range(1, 17):
        value = float(f"{middle:.{digits}g}")
        if low < value < high:
            return value
    return low  # neighbors in float64; `> low` still tells them apart
