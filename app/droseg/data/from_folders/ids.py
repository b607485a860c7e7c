"""Names of subjects and sessions that are not the same but may have been meant to be."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from functools import lru_cache
from typing import Final

_MONTH: Final = (
    "(jan|feb|mar|mär|mrz|apr|may|mai|jun|jul|aug|sep|oct|okt|nov|dec|dez|janv|févr|mars|avr|juin|juil|août|sept|déc)"
)
_DATE: Final = re.compile(
    r"\d{4}-\d{1,2}-\d{1,2}( .*)?|\d{1,2}[./]\d{1,2}[./](\d{2,4})?"
    rf"|\d{{1,2}}[.-]? ?{_MONTH}\.?([- ]?\d{{2,4}})?|{_MONTH}[- ]\d{{2,4}}",
    re.IGNORECASE,
)
_POWER: Final = re.compile(r"\d([.,]\d+)?E[+-]?\d+", re.IGNORECASE)
_SIMILAR: Final = 0.75
"""Of difflib's ratio, from 0 to 1; "patient12" and "patent12" have 0.94."""


def without_zeros(name: str) -> str:
    """Return a name without leading zeros in its numbers, and "12.0" or "12,0" as "12": what a spreadsheet drops."""
    name = re.sub(r"^(\d+)[.,]0+$", r"\1", name)
    return re.sub(r"(?<!\d)0+(?=\d)", "", name)


@lru_cache(maxsize=10_000)  # each name is compared with all others
def loosely(name: str) -> str:
    """Return a name as it sounds: without case, zeros, punctuation, and with O and l as the digits 0 and 1."""
    squeezed = re.sub(r"[\W_]+", "", name.casefold())
    return without_zeros(
        re.sub(r"(?<![a-z])[il](?=\d)|(?<=\d)[il](?![a-z])", "1", re.sub(r"o(?=o*\d)|(?<=\d)o", "0", squeezed))
    )


def nearest(name: str, candidates: Iterable[str]) -> str | None:
    """Return the candidate that a name was most probably meant to be; None if none is near."""
    names = list(candidates)
    alike = [candidate for candidate in names if loosely(candidate) == loosely(name)]
    if alike:
        return alike[0]
    near = difflib.get_close_matches(name, [c for c in names if _numbers(c) == _numbers(name)], 1, _SIMILAR)
    return near[0] if near else None


def spoiled_by_spreadsheet(name: str) -> str | None:
    """Return what a spreadsheet made of an id that it took for a date or a number; None if it did not."""
    if _DATE.fullmatch(name):
        return "looks like a date that a spreadsheet made of an id; format the column as text and enter it again"
    if _POWER.fullmatch(name):
        return "looks like a long number that a spreadsheet rounded; format the column as text and enter it again"
    return None


def _numbers(name: str) -> list[str]:
    """Return the numbers in a name: with others it is the neighbor's, however alike the letters are."""
    return [without_zeros(number) for number in re.findall(r"\d+", name)]
