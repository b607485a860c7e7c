"""Numbers as groups: bins by edges that a person names, so that their names do not depend on the data."""

from __future__ import annotations

import math
import re
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise


@dataclass(frozen=True)
class Bins:
    """Bins such as `<40`, `40-60` and `>=60`; a number on an edge is in the upper one."""

    edges: tuple[float, ...]

    @classmethod
    def parse(cls, text: str) -> Bins:
        """Return the bins of "40,60".

        Raises:
            ValueError: if these are no increasing numbers.
        """
        try:
            edges = tuple(float(edge) for edge in text.split(","))
        except ValueError as error:
            raise ValueError(f"'{text}' are no numbers with commas between, such as 40,60") from error
        if not all(math.isfinite(edge) for edge in edges) or list(edges) != sorted(set(edges)):
            raise ValueError(f"the edges {text} must be numbers that increase")
        return cls(edges)

    @property
    def names(self) -> tuple[str, ...]:
        """Their names, from the lowest."""
        shown = [f"{edge:g}" for edge in self.edges]
        to = " to " if min(self.edges) < 0 else "-"
        between = [f"{low}{to}{high}" for low, high in pairwise(shown)]
        return (f"<{shown[0]}", *between, f">={shown[-1]}")

    def name_of(self, number: float) -> str:
        """Return the bin that a number is in."""
        return self.names[bisect_right(self.edges, number)]


def as_number(text: str, comma_is_decimal: bool) -> float | None:
    """Return a field as a number; None if it is none.

    A comma is a decimal one where another sign separates the fields of the table.
    """
    if comma_is_decimal and "." not in text and text.count(",") == 1:
        text = text.replace(",", ".")
    if not re.fullmatch(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", text):
        return None
    return float(text)


def all_numbers(values: Sequence[str]) -> bool:
    """Return whether all values are numbers, in whatever notation."""
    return bool(values) and all(as_number(value, comma_is_decimal=True) is not None for value in values)
