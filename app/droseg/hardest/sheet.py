"""The ranked table of all training cases."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from droseg.data import Case
from droseg.hardest.flag import LabelCheck
from droseg.hardest.measure import Measurement
from droseg.hardest.source import EarlyLosses

FLAG = "label looks wrong"
CHANGED = 0.1
"""Relative difference of two losses, at least 0.01, that half precision and another device do not make."""


def hardest_table(
    cases: Sequence[Case],
    measurements: Sequence[Measurement],
    checks: Mapping[str, LabelCheck],
    history: pd.DataFrame,
    early: EarlyLosses | None = None,
) -> pd.DataFrame:
    """Return one row per training case, hardest first; cases that could not be measured come last, without a rank.

    Columns: `rank, ranked_by` ("early loss, epoch 8" or "late loss"), `case_id, patient_id`, one per group axis, `loss`
    (whole volume, not augmented), `stale_loss, visits, draw_share` (of the last checkpoint; empty without one),
    `dice_mean, dice_STRUCTURE`, `flag` ("label looks wrong" or empty), `flag_score` (1 and above is flagged),
    `flag_reason`, `disputed_structure, disputed_structure_share, disputed_total_share`, `problem`.

    Args:
        cases: the training cases.
        measurements: of these cases, in their order.
        checks: case_id -> how wrong its label looks.
        history: see `stale_losses`.
        early: losses to rank by; a case that has none of them, or has changed since, is ranked by its measurement.
    """
    draws = history["visits"].sum()
    rows = []
    for case, measured in zip(cases, measurements, strict=True):
        row: dict[str, object] = {"case_id": case.case_id, "patient_id": case.patient_id, **case.groups}
        row["loss"] = _loss(measured, early)
        if case.case_id in history.index:
            stale = history.loc[case.case_id]
            row |= {"stale_loss": stale["stale_loss"], "visits": stale["visits"]}
            row["draw_share"] = stale["visits"] / draws if draws else np.nan
        dice = list(measured.dice.values())
        row["dice_mean"] = np.nanmean(dice) if np.isfinite(dice).any() else np.nan
        row |= {f"dice_{name}": value for name, value in measured.dice.items()}
        check = checks.get(case.case_id)
        if check is not None:
            row |= {
                "flag": FLAG if check.flagged else "",
                "flag_score": check.score,
                "flag_reason": check.reason,
                "disputed_structure": check.structure,
                "disputed_structure_share": check.structure_share,
                "disputed_total_share": check.total_share,
            }
        rows.append({**row, "problem": measured.problem})
    table = _ranked(pd.DataFrame(rows), cases, measurements)
    table.insert(1, "ranked_by", "late loss" if early is None else f"early loss, epoch {early.epoch}")
    return table


def changed_since(measured: Measurement, early: EarlyLosses | None) -> bool:
    """Whether the early network finds another loss than the training did: then the files are others by now."""
    stored = np.nan if early is None else early.losses.get(measured.case_id, np.nan)
    return bool(abs(stored - measured.loss) > max(0.01, CHANGED * stored))  # False for NaN


def _loss(measured: Measurement, early: EarlyLosses | None) -> float:
    stored = np.nan if early is None else early.losses.get(measured.case_id, np.nan)
    keeps = np.isfinite(stored) and not measured.problem and not changed_since(measured, early)
    return stored if keeps else measured.loss


def _ranked(table: pd.DataFrame, cases: Sequence[Case], measurements: Sequence[Measurement]) -> pd.DataFrame:
    axes = sorted({axis for case in cases for axis in case.groups})
    structures = dict.fromkeys(name for measured in measurements for name in measured.dice)
    columns = ["case_id", "patient_id", *axes, "loss", "stale_loss", "visits", "draw_share", "dice_mean"]
    columns += [f"dice_{name}" for name in structures]
    columns += ["flag", "flag_score", "flag_reason"]
    columns += ["disputed_structure", "disputed_structure_share", "disputed_total_share", "problem"]
    table = table.reindex(columns=columns)
    text = ["flag", "flag_reason", "disputed_structure", "problem"]
    table[text] = table[text].fillna("")
    table["visits"] = table["visits"].astype("Int64")
    table = table.sort_values("loss", ascending=False, kind="stable", na_position="last").reset_index(drop=True)
    measured_rows = table["loss"].notna()
    table.insert(0, "rank", pd.Series(table.index + 1, dtype="Int64").where(measured_rows))
    return table
