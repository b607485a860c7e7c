"""evaluation.json: how a table of case metrics was made, for the report and for whoever asks in a year."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import scipy

from droseg import __version__
from droseg.keys import RECORD_FILE
from droseg.metrics.names import CONVENTIONS, is_metric


def evaluation_record(
    cases: pd.DataFrame,
    structures: Mapping[str, Sequence[int]],
    nsd_tolerance_mm: Mapping[str, float],
    *,
    datalist: str | Path | None = None,
    section: str | None = None,
    predictions: str | Path | None = None,
    bundle: str | Path | None = None,
    missing: Sequence[str] = (),
    missing_as_failure: bool = False,
    not_scored: Mapping[str, str] | None = None,
    warnings: Sequence[str] = (),
) -> dict[str, Any]:
    """Return what evaluation.json holds.

    Args:
        cases: the table of case metrics.
        structures: name -> its label values, at least for those in the table.
        nsd_tolerance_mm: name -> tolerance, likewise.
        datalist: where the references are listed.
        section: of the datalist.
        predictions: folder of the predicted label maps.
        bundle: that made them, if a bundle did.
        missing: cases without a prediction.
        missing_as_failure: whether these are in the table, as all background.
        not_scored: case_id -> why it is not in the table.
        warnings: what deserves a look though it was scored.
    """
    names = list(cases["structure"].unique())
    return {
        "droseg": __version__,
        "numpy": np.__version__,
        "scipy": scipy.__version__,
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        **{"datalist": _text(datalist), "section": section, "predictions": _text(predictions), "bundle": _text(bundle)},
        "structures": {name: [int(value) for value in structures[name]] for name in names},
        "metrics": [column for column in cases.columns if is_metric(str(column))],
        "nsd_tolerance_mm": {name: float(nsd_tolerance_mm[name]) for name in names},
        "conventions": CONVENTIONS,
        "scored": int(cases["case_id"].nunique()),
        "missing": list(missing),
        "missing_as_failure": missing_as_failure,
        "not_scored": dict(not_scored or {}),
        "warnings": list(warnings),
    }


def write_record(folder: Path, record: Mapping[str, Any]) -> None:
    """Write evaluation.json into a folder, beside the table."""
    (folder / RECORD_FILE).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


def _text(value: str | Path | None) -> str | None:
    return None if value is None else str(value)
