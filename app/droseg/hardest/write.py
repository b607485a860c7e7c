"""From a run folder to hardest.csv and hardest.html."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from droseg.engine.run_folder import replace_text
from droseg.errors import DrosegError
from droseg.hardest.curves import UsualLosses, loss_curve, usual_losses
from droseg.hardest.flag import LabelCheck, Standards, check_label, usual
from droseg.hardest.measure import Measurement, measure_run, whole_volume
from droseg.hardest.page import ShownCase, hardest_page
from droseg.hardest.pictures import draw_case, structure_colors
from droseg.hardest.sheet import changed_since, hardest_table
from droseg.hardest.source import EARLY, LATE, TrainedRun, audit_trail, stale_losses

CSV, HTML = "hardest.csv", "hardest.html"


@dataclass(frozen=True)
class Sheet:
    """What was written.

    Attributes:
        table: see `hardest_table`.
        csv, html: paths.
        ranked_by: what the cases are ranked by, in words.
        judge: the network of the Dice, the pictures and the flags, in words.
        notes: what the reader must know.
    """

    table: pd.DataFrame
    csv: Path
    html: Path
    ranked_by: str
    judge: str
    notes: tuple[str, ...]


def write_sheet(
    trained: TrainedRun, out: Path, *, top: int = 12, on_case: Callable[[Measurement], None] | None = None
) -> Sheet:
    """Measure all training cases of a run, write the sheet and return what is in it.

    Args:
        trained: the run.
        out: folder that exists.
        top: cases with pictures: as many that are flagged, and as many others.
        on_case: called with each measurement.
    Raises:
        DrosegError: if no case could be measured.
    """
    measurements = measure_run(trained, on_case)
    standards, checks = _check_labels(trained, measurements)
    history = stale_losses(trained.run)
    table = hardest_table(trained.cases, measurements, checks, history, trained.judge, trained.early)
    audit, no_audit = audit_trail(trained.run)
    notes = _notes(trained, measurements, history, no_audit)
    doubts = _doubts(table, trained)
    replace_text(out / CSV, table.to_csv(index=False, float_format="%.6g"))
    shown = _shown(trained, table, standards, top, audit)
    page = hardest_page(
        trained.run.path.resolve().name,
        _subtitle(trained, table),
        table,
        shown,
        structure_colors(trained.structures),
        trained.datalist.axes,
        _ranked_by(trained),
        trained.judge,
        doubts,
        notes,
    )
    replace_text(out / HTML, page)
    return Sheet(table, out / CSV, out / HTML, _ranked_by(trained), trained.judge, (*doubts, *notes))


def _check_labels(trained: TrainedRun, measurements: Sequence[Measurement]) -> tuple[Standards, dict[str, LabelCheck]]:
    found = {m.case_id: m.disagreement for m in measurements if m.disagreement is not None}
    if not found:
        raise DrosegError(
            f"none of the {len(measurements)} training cases could be measured; the first, {measurements[0].case_id}: "
            f"{measurements[0].problem}"
        )
    standards = usual(list(found.values()))
    return standards, {
        case_id: check_label(disagreement, standards, trained.structures) for case_id, disagreement in found.items()
    }


def _notes(trained: TrainedRun, measurements: Sequence[Measurement], history: pd.DataFrame, no_audit: str) -> list[str]:
    notes = list(trained.notes)
    if history.empty:
        notes.append(f"{trained.run.checkpoint.name} has no loss history: no stale losses, visits and shares of draws.")
    changed = [m.case_id for m in measurements if changed_since(m, trained.early)]
    if changed:
        notes.append(f"Changed since the early losses were measured, and ranked by the new ones: {', '.join(changed)}.")
    if no_audit:
        notes.append(f"No loss curves: {no_audit}")
    return notes


def _doubts(table: pd.DataFrame, trained: TrainedRun) -> list[str]:
    dice = float(table["dice_mean"].median())
    if np.isfinite(dice) and dice < 0.5:
        return [
            f"The median Dice of the training cases is {dice:.2f}: {trained.judge} knows too little to judge labels "
            "by; train longer."
        ]
    return []


def _ranked_by(trained: TrainedRun) -> str:
    """Return in words what the cases are ranked by."""
    if trained.early is None:
        return f"late loss: that of {trained.judge}"
    when = f"after epoch {trained.early.epoch}"
    stored = f"measured {when} of the training" if trained.early.losses else f"of the network {when}"
    is_trained = trained.early_network is not trained.network
    other = "; --by late ranks by the trained network" if is_trained else ""
    return f"early loss: {stored} ({trained.run.early_model.name}){other}"


def _subtitle(trained: TrainedRun, table: pd.DataFrame) -> str:
    losses = f"{LATE} losses"
    if trained.early is not None:
        losses = f"{EARLY} losses ({trained.run.early_model.name} after epoch {trained.early.epoch})"
    return (
        f"{int(table['rank'].notna().sum())} training cases, {len(trained.structures)} structures, whole volumes "
        f"without augmentation; ranked by {losses}; Dice, pictures and flags: {trained.judge}"
    )


def _shown(
    trained: TrainedRun, table: pd.DataFrame, standards: Standards, top: int, audit: pd.DataFrame | None
) -> list[ShownCase]:
    flagged = table[table["flag"] != ""].sort_values("flag_score", ascending=False, kind="stable").head(top)
    others = table[(table["flag"] == "") & table["rank"].notna()].head(top)
    by_id = {case.case_id: (index, case) for index, case in enumerate(trained.cases)}
    all_losses = usual_losses(audit) if audit is not None else None
    shown = []
    for record in pd.concat([flagged, others]).to_dict("records"):
        row = {str(name): value for name, value in record.items()}
        case_id = str(row["case_id"])
        index, case = by_id[case_id]
        curve = _curve(case_id, audit, all_losses)
        volume = whole_volume(trained, case, index)
        planes = draw_case(volume, standards.sure, trained.structures, flagged=bool(row["flag"]))
        shown.append(ShownCase(row, planes, curve))
    return shown


def _curve(case_id: str, audit: pd.DataFrame | None, all_losses: UsualLosses | None) -> str:
    if audit is None or all_losses is None:
        return ""
    return loss_curve(audit[audit["case_id"] == case_id], all_losses, case_id)
