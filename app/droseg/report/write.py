"""Write a report: report.html, subgroups.csv and, against a baseline, comparison.csv."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from droseg.data.datalist import Datalist
from droseg.errors import InputError
from droseg.metrics import share_diagonals
from droseg.report.compare import compare_runs
from droseg.report.page import report_page
from droseg.report.pictures import Picture, structure_colors, worst_case_pictures
from droseg.report.seeds import group_axes, refuse_own_columns, table_metrics
from droseg.report.subgroups import subgroup_table
from droseg.report.verdict import Evidence

PathLike = str | os.PathLike[str]


@dataclass(frozen=True)
class Report:
    """Where the files of a report lie, and what they were made from."""

    html: Path
    subgroups_csv: Path
    comparison_csv: Path | None
    evidence: Evidence
    pictures: Sequence[Picture] = field(default_factory=tuple)


def write_report(
    cases: pd.DataFrame,
    out: PathLike,
    *,
    axes: Sequence[str] | None = None,
    metrics: Sequence[str] | None = None,
    baseline: pd.DataFrame | None = None,
    name: str = "This run",
    baseline_name: str = "the baseline",
    datalist: Datalist | None = None,
    pred_dir: PathLike | None = None,
    num_pictures: int = 6,
    min_effect: Mapping[str, float] | None = None,
    num_bootstrap: int = 2000,
    seed: int = 0,
    notes: Sequence[str] = (),
) -> Report:
    """Write `report.html`, `subgroups.csv` and with a baseline `comparison.csv` into a folder.

    Args:
        cases: a cases table, see `droseg.metrics.groups` and `read_cases`.
        out: folder, made if need be.
        axes: columns to group by, of any type; default all of the table but numbers with a fraction.
        metrics: columns to report; default all of the table (and of the baseline).
        baseline: cases table of another run on the same cases.
        name: what to call the run.
        baseline_name: what to call the baseline.
        datalist: with the images and labels of the cases, for the pictures.
        pred_dir: folder of the predictions, for the pictures.
        num_pictures: worst cases to show, >= 0.
        min_effect: metric -> smallest difference of means that may be called helped or hurt.
        num_bootstrap: samples per interval; 0 gives none.
        seed: of the bootstrap, >= 0.
        notes: sentences for the section on how it was computed.

    Raises:
        InputError: if an argument cannot be used, the folder cannot be written, a column is missing or the runs have
            nothing in common.
    """
    _check_numbers({"--bootstrap": num_bootstrap, "--pictures": num_pictures, "--seed": seed})
    if pred_dir is not None and not Path(pred_dir).is_dir():
        raise InputError(f"{pred_dir}: no such folder; give the folder of the predictions by --pred.")
    if axes is None:
        axes = [axis for axis in group_axes(cases) if axis not in (metrics or ())]
    axes = list(dict.fromkeys(axes))
    refuse_own_columns(axes, metrics or ())
    cases = cases.assign(**{axis: cases[axis].map(_group_text).astype(object) for axis in axes if axis in cases})
    if baseline is not None:
        cases, baseline = share_diagonals(cases, baseline)
    metrics = _common_metrics(cases, baseline) if metrics is None else list(metrics)
    for column in [*axes, *metrics]:
        if column not in cases.columns:
            raise InputError(f"no column '{column}' in the cases table; those there: {', '.join(cases.columns)}.")
    unknown = [metric for metric in min_effect or {} if metric not in metrics]
    if unknown:
        raise InputError(
            f"min_effect (--min-effect): no metric {', '.join(unknown)}; those here: {', '.join(metrics)}."
        )
    options: dict[str, Any] = {"num_bootstrap": num_bootstrap, "seed": seed}
    evidence = Evidence(
        name=name,
        cases=cases,
        axes=axes,
        metrics=metrics,
        subgroups=subgroup_table(cases, axes, metrics, **options),
        penalized=subgroup_table(cases, axes, metrics, penalize=True, **options),
        baseline_name=baseline_name,
        baseline=baseline,
        comparison=None
        if baseline is None
        else compare_runs(cases, baseline, axes, metrics, min_effect=min_effect, **options),
    )
    pictures: list[Picture] = []
    colors, missing = {}, _no_pictures(datalist, pred_dir)
    if not missing and datalist is not None and pred_dir is not None:
        pictures = worst_case_pictures(cases, evidence.main_metric, datalist, pred_dir, num_pictures)
        colors = structure_colors(datalist)
    page = report_page(evidence, pictures, colors, pictures_missing=missing, notes=notes, **options)
    return _write(Path(out), page, evidence, pictures)


def _check_numbers(numbers: Mapping[str, int]) -> None:
    for name, number in numbers.items():
        if number < 0:
            raise InputError(f"{name} is {number}; it must be >= 0.")


def _group_text(value: Any) -> str | None:
    """Return a group as text; a whole number as 3, also where a gap in the column made it 3.0."""
    if pd.isna(value):
        return None
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def _common_metrics(cases: pd.DataFrame, baseline: pd.DataFrame | None) -> list[str]:
    metrics = [m for m in table_metrics(cases) if baseline is None or m in baseline.columns]
    if not metrics:
        raise InputError("the run and the baseline have no metric in common; give tables with the same columns.")
    return metrics


def _no_pictures(datalist: Datalist | None, pred_dir: PathLike | None) -> str:
    absent = []
    if datalist is None:
        absent.append("the datalist (--datalist D), which says where images and labels lie")
    if pred_dir is None:
        absent.append("the folder of the predictions (--pred DIR)")
    return f"they need {' and '.join(absent)}." if absent else ""


def _write(out: Path, page: str, evidence: Evidence, pictures: Sequence[Picture]) -> Report:
    report = Report(
        out / "report.html",
        out / "subgroups.csv",
        out / "comparison.csv" if evidence.comparison is not None else None,
        evidence,
        pictures,
    )
    try:
        out.mkdir(parents=True, exist_ok=True)
        evidence.subgroups.to_csv(report.subgroups_csv, index=False, float_format="%.10g")
        if evidence.comparison is not None:
            evidence.comparison.table.to_csv(report.comparison_csv, index=False, float_format="%.10g")
        report.html.write_text(page, encoding="utf-8")
    except OSError as error:
        raise InputError(f"{out}: the report cannot be written ({error.strerror}); choose another --out.") from error
    return report
