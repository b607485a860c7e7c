"""report.json: all numbers of a report for other programs."""

from __future__ import annotations

import html
import json
import math
import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import pandas as pd

from droseg.report.evidence import Evidence
from droseg.report.failures import failures
from droseg.report.method import method_facts, versions
from droseg.report.pictures import worst_cases
from droseg.report.record import Record
from droseg.report.significance import ALPHA
from droseg.report.verdict import verdict_paragraph

SCHEMA, SCHEMA_VERSION = "droseg.report", 1
_WORST = 20


def report_json(
    runs: Sequence[Evidence],
    *,
    hidden: Sequence[Mapping[str, object]] | None = None,
    notes: Sequence[str] = (),
) -> str:
    """Return the report as JSON; undefined numbers are null. Values per case stay in the CSV that it was made from.

    Top level: `schema`, `schema_version` (raised when a field changes its meaning or goes), `created`, `versions`,
    `settings`, `axes`, `metrics`, `main_metric`, `verdict` (one paragraph per run), `method` (name -> sentence),
    `hidden_subgroups` (null if no one searched) and `runs`, the reference last. A run has `name`, `role` ("run" or
    "reference"), `trainings`, `cases`, `patients`, the rows of `subgroups`, `penalized`, `gaps` and `spread`, its
    `worst_cases` and `failures`, `evaluation` (how its table was scored; null if no one recorded it), and for role
    "run" with a reference `comparison`.
    """
    first, settings = runs[0], runs[0].settings
    document = {
        "schema": SCHEMA,
        "schema_version": SCHEMA_VERSION,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": versions(),
        "settings": {
            "min_n": settings.min_n,
            "num_bootstrap": settings.num_bootstrap,
            "seed": settings.seed,
            "alpha": ALPHA,
            "family": None if first.comparison is None else first.comparison.family,
            "min_effect": None if first.comparison is None else first.comparison.min_effect,
        },
        "axes": list(first.axes),
        "metrics": list(first.metrics),
        "main_metric": first.main_metric,
        "verdict": [plain(verdict_paragraph(run)) for run in runs],
        "method": dict(method_facts(runs, notes)),
        "hidden_subgroups": None if hidden is None else [dict(row) for row in hidden],
        "runs": [_run(run, "run") for run in runs],
    }
    if first.reference is not None:
        document["runs"].append(_run(first.reference, "reference"))  # type: ignore[attr-defined]
    return json.dumps(_clean(document), indent=1, allow_nan=False, ensure_ascii=False) + "\n"


def plain(text: str) -> str:
    """Return HTML as text."""
    return html.unescape(re.sub(r"<[^>]+>", "", text))


def _run(run: Evidence, role: str) -> dict[str, Any]:
    worst = worst_cases(run.cases, run.main_metric, _WORST)
    result: dict[str, Any] = {
        "name": run.name,
        "role": role,
        "trainings": run.trainings,
        "cases_not_in_all_trainings": list(run.partly),
        "cases": run.cases["case_id"].nunique(),
        "patients": run.cases["patient_id"].nunique(),
        "structures": list(run.cases["structure"].unique()),
        "evaluation": _evaluation(run.record),
        "subgroups": _records(run.subgroups),
        "penalized": _records(run.penalized),
        "gaps": _records(run.gaps),
        "spread": _records(run.spread),
        "worst_cases": [{"case_id": c, "structure": s, "value": v, "structure_value": own} for c, s, v, own in worst],
        "failures": [
            {"case_id": c, "structure": s, "what": what}
            for what, flags in failures(run.cases).items()
            for c, s in run.cases.loc[flags, ["case_id", "structure"]].itertuples(index=False)
        ],
    }
    if run.comparison is not None:
        result["comparison"] = {
            "reference": run.baseline_name,
            "rule": run.comparison.rule(),
            "structures": run.comparison.structures,
            "only_run": run.comparison.run_alone.cases,
            "only_reference": run.comparison.baseline_alone.cases,
            "structures_only_run": run.comparison.run_alone.structures,
            "structures_only_reference": run.comparison.baseline_alone.structures,
            "rows_only_run": _keys(run.comparison.run_alone.rows),
            "rows_only_reference": _keys(run.comparison.baseline_alone.rows),
            "rows": _records(run.comparison.table),
        }
    return result


def _evaluation(record: Record | None) -> dict[str, Any] | None:
    if record is None:
        return None
    return {
        "not_scored": [{"case_id": case, "reason": reason} for case, reason in record.unscored.items()],
        "missing_as_failure": record.assumed,
        "nsd_tolerances_mm": record.tolerances_mm,
        "software": record.software,
    }


def _keys(rows: Sequence[tuple[str, str]]) -> list[dict[str, str]]:
    return [{"case_id": case_id, "structure": structure} for case_id, structure in rows]


def _records(table: pd.DataFrame) -> list[dict[str, Any]]:
    return table.to_dict("records")  # type: ignore[return-value]


def _clean(value: Any) -> Any:
    """Return plain JSON values: numpy numbers as numbers, NaN and infinity as None."""
    if isinstance(value, Mapping):
        return {str(key): _clean(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_clean(item) for item in value]
    if hasattr(value, "item"):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if isinstance(value, (str, int, float, bool, type(None))) else str(value)
