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
    judge: str,
    early: EarlyLosses | None = None,
) -> pd.DataFrame:
    """Return one row per training case, hardest first; cases that could not be measured come last, without a rank.

    Columns: `rank`, `ranked_by` ("early loss, epoch 8": of the early network; or "late loss": of the one that flags),
    `flagged_by` (the network of flags, disputes and Dice: "model.pt after epoch 18"), `case_id, patient_id`, one per
    group axis, `loss` (that of `ranked_by`; whole volume, not augmented), `stale_loss, visits, draw_share` (of the last
    checkpoint; empty without one), `dice_mean, dice_STRUCTURE`, `flag` ("label looks wrong" or empty), `flag_score`
    (1 and above is flagged), `flag_reason`, `disputed_structure, disputed_structure_share, disputed_total_share`,
    `problem`.

    Args:
        cases: the training cases.
        measurements: of these cases, in their order.
        checks: case_id -> how wrong its label looks.
        history: see `stale_losses`.
        judge: the network of the checks and the Dice, in words.
        early: losses to rank by; a case that has none of them, or has changed since, is ranked by the early network's
            new one.
    """
    rows = []
    for case, measured in zip(cases, measurements, strict=True):
        row: dict[str, object] = {"case_id": case.case_id, "patient_id": case.patient_id, **case.groups}
        row |= {"loss": _loss(measured, early), **_draws(case.case_id, history), **_dice(measured)}
        check = checks.get(case.case_id)
        row |= {} if check is None else _flag(check)
        rows.append({**row, "problem": measured.problem})
    table = _ranked(pd.DataFrame(rows), cases, measurements)
    table.insert(1, "ranked_by", "late loss" if early is None else f"early loss, epoch {early.epoch}")
    table.insert(2, "flagged_by", judge)
    return table


def changed_since(measured: Measurement, early: EarlyLosses | None) -> bool:
    """Whether the early network finds another loss than the training did: then the files are others by now."""
    stored = np.nan if early is None else early.losses.get(measured.case_id, np.nan)
    return bool(abs(stored - measured.early_loss) > max(0.01, CHANGED * stored))  # False for NaN


def _loss(measured: Measurement, early: EarlyLosses | None) -> float:
    """Return the loss to rank by; NaN if there is none."""
    if early is None or measured.problem:
        return measured.loss
    stored = early.losses.get(measured.case_id, np.nan)
    return stored if np.isfinite(stored) and not changed_since(measured, early) else measured.early_loss


def _draws(case_id: str, history: pd.DataFrame) -> dict[str, object]:
    if case_id not in history.index:
        return {}
    stale, draws = history.loc[case_id], history["visits"].sum()
    share = stale["visits"] / draws if draws else np.nan
    return {"stale_loss": stale["stale_loss"], "visits": stale["visits"], "draw_share": share}


def _dice(measured: Measurement) -> dict[str, object]:
    dice = list(measured.dice.values())
    mean = np.nanmean(dice) if np.isfinite(dice).any() else np.nan
    return {"dice_mean": mean, **{f"dice_{name}": value for name, value in measured.dice.items()}}


def _flag(check: LabelCheck) -> dict[str, object]:
    return {
        "flag": FLAG if check.flagged else "",
        "flag_score": check.score,
        "flag_reason": check.reason,
        "disputed_structure": check.structure,
        "disputed_structure_share": check.structure_share,
        "disputed_total_share": check.total_share,
    }


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
