"""The kinds of failure that a cases table can tell apart."""

from __future__ import annotations

import pandas as pd

from droseg.metrics import is_false_positive, is_missed
from droseg.report.checks import VOLUMES

MISSED, FALSE_POSITIVE, FAILED = "missed", "false positive", "failed"


def failures(cases: pd.DataFrame) -> dict[str, pd.Series]:
    """Return kind -> whether each row is one.

    Without volumes a Dice of 0 and no distance says that one of the two masks is empty, and not which: "failed".
    """
    if set(VOLUMES) <= set(cases.columns):
        return {MISSED: is_missed(cases), FALSE_POSITIVE: is_false_positive(cases)}
    return {FAILED: is_missed(cases)}


def any_failure(cases: pd.DataFrame) -> pd.Series:
    """Return per row whether it is a failure of any kind."""
    return is_missed(cases) | is_false_positive(cases)


def failures_text(cases: pd.DataFrame) -> str:
    """Return "2 / 0" and the like, the counts in the order of `failures`."""
    return " / ".join(str(int(flags.sum())) for flags in failures(cases).values())


def failures_by_case(cases: pd.DataFrame) -> pd.Series:
    """Return case_id -> "missed a, b; false positive c", for the cases with a failure."""
    found: dict[str, list[str]] = {}
    for kind, flags in failures(cases).items():
        for case_id, names in cases[flags].groupby("case_id", sort=False)["structure"]:
            found.setdefault(str(case_id), []).append(f"{kind} {', '.join(map(str, names))}")
    return pd.Series({case_id: "; ".join(parts) for case_id, parts in found.items()}, dtype=object)
