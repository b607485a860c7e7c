"""Write a report: the page, its tables for people and papers, and all numbers for programs."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import pandas as pd

from droseg.data.datalist import Datalist
from droseg.errors import InputError
from droseg.metrics.axes import axis_columns
from droseg.report.card import ModelCard, write_card
from droseg.report.evidence import Evidence, Settings, collect_evidence, subgroups_file
from droseg.report.export import report_json
from droseg.report.page import report_page
from droseg.report.paper import latex, markdown, paper_table, parse_columns
from droseg.report.pictures import Picture, structure_colors, worst_case_pictures
from droseg.report.plots import MOST_RUNS
from droseg.report.pseudonyms import draw_pseudonyms
from droseg.report.record import Record
from droseg.report.seeds import group_axes, refuse_own_columns

PathLike = str | os.PathLike[str]
_PICTURE_BYTES = 2_500_000  # of the 5 MB that a page may have


@dataclass(frozen=True)
class Report:
    """Where the files of a report lie, and what they were made from.

    Attributes:
        html: the page.
        subgroups_csv: the table of the first run.
        comparison_csv: all comparisons, if there is a reference.
        evidence: numbers of the first run.
        runs: numbers of all runs.
        pictures: of the worst cases of the first run.
        files: everything that was written.
    """

    html: Path
    subgroups_csv: Path
    comparison_csv: Path | None
    evidence: Evidence
    pictures: Sequence[Picture] = field(default_factory=tuple)
    runs: Sequence[Evidence] = field(default_factory=tuple)
    files: Sequence[Path] = field(default_factory=tuple)


def write_report(
    cases: pd.DataFrame,
    out: PathLike,
    *,
    axes: Sequence[str] | None = None,
    metrics: Sequence[str] | None = None,
    baseline: pd.DataFrame | None = None,
    name: str = "This run",
    baseline_name: str = "the baseline",
    others: Mapping[str, pd.DataFrame] | None = None,
    datalist: Datalist | None = None,
    pred_dir: PathLike | None = None,
    num_pictures: int = 6,
    min_effect: Mapping[str, float] | None = None,
    min_n: int = 5,
    num_bootstrap: int = 2000,
    seed: int = 0,
    tables: Sequence[str] = (),
    pseudonyms: bool = False,
    pseudonym_key: PathLike | None = None,
    hidden: Sequence[Mapping[str, object]] | None = None,
    notes: Sequence[str] = (),
    model_card: ModelCard | None = None,
    records: Mapping[str, Record] | None = None,
) -> Report:
    """Write a report into a folder: report.html, report.json, table.md, table.tex and CSVs.

    Args:
        cases: a cases table, see `droseg.metrics.groups` and `read_cases`; with a column `seed` (`read_seeds`), several
            trainings, which are averaged per case.
        out: folder, made if need be.
        axes: columns to group by, of any type, and products of them (`anatomy*protocol`); default all of the table but
            numbers with a fraction.
        metrics: columns to report; default all of the table (and of the baseline).
        baseline: cases table of another run on the same cases, with which all runs are compared.
        name: what to call the run.
        baseline_name: what to call the baseline.
        others: name -> cases table of further runs.
        datalist: with the images and labels of the cases, for the pictures.
        pred_dir: folder of the predictions of the run, for the pictures.
        num_pictures: worst cases to show, >= 0; 0 for none.
        min_effect: metric -> smallest difference of means that may be called helped or hurt.
        min_n: patients that a group needs to be ranked and to get a word; smaller ones are shown and marked.
        num_bootstrap: samples per interval; 0 gives none.
        seed: of the bootstrap, >= 0.
        tables: columns of table.md and table.tex, e.g. "dice:mean±std"; see `parse_columns`.
        pseudonyms: replace the ids of cases and patients everywhere.
        pseudonym_key: CSV that says which pseudonym is whom; see `draw_pseudonyms`.
        hidden: hidden subgroups that a search confirmed, see `hidden_section`; None if no one searched.
        notes: sentences for the section on how it was computed.
        model_card: whose results are replaced by those of this report.
        records: name of a run, or of the baseline -> how its table was scored, see `read_record`.

    Raises:
        InputError: if an argument cannot be used, the folder cannot be written, a column is missing or the runs have
            nothing in common.
    """
    _check_numbers({"--bootstrap": num_bootstrap, "--pictures": num_pictures, "--seed": seed, "--min-n": min_n})
    if pred_dir is not None and not Path(pred_dir).is_dir():
        raise InputError(f"{pred_dir}: no such folder; give the folder of the predictions by --pred.")
    _check_names([name, *(others or {}), *([] if baseline is None else [baseline_name])])
    reference = None if baseline is None else (baseline_name, baseline)
    settings = Settings(min_effect or {}, min_n, num_bootstrap, seed)
    axes = _axes(cases, axes, metrics or ())
    runs = collect_evidence({name: cases, **(others or {})}, reference, axes, metrics, settings, records)
    _check_min_effects(settings, runs[0].metrics)
    columns = parse_columns(tables, runs[0])
    missing = _no_pictures(datalist, pred_dir, num_pictures)
    pictures = [] if missing else _pictures(runs[0], datalist, pred_dir, num_pictures)
    if pseudonyms or pseudonym_key is not None:
        names = draw_pseudonyms(runs, _outside(pseudonym_key, Path(out)))
        runs, pictures = [names.apply(run) for run in runs], [names.picture(picture) for picture in pictures]
        notes = [*notes, "Ids of cases and patients are pseudonyms."]
    colors = structure_colors(datalist) if datalist is not None else {}
    table = paper_table(runs, columns)
    texts = {
        "report.html": report_page(runs, pictures, colors, pictures_missing=missing, hidden=hidden, notes=notes),
        "report.json": report_json(runs, hidden=hidden, notes=notes),
        "table.md": markdown(*table),
        "table.tex": latex(*table, caption=f"{', '.join(run.name for run in runs)}: results per group."),
    }
    report = _write(Path(out), texts, runs, pictures)
    return report if model_card is None else replace(report, files=(*report.files, write_card(model_card, runs)))


def _axes(cases: pd.DataFrame, axes: Sequence[str] | None, metrics: Sequence[str]) -> list[str]:
    """Return the axes to report, each once, after a check that they group cases."""
    if axes is None:
        axes = [axis for axis in group_axes(cases) if axis not in metrics]
    axes = list(dict.fromkeys(axes))
    refuse_own_columns(axis_columns(axes, list(map(str, cases.columns))), metrics)
    return axes


def _pictures(run: Evidence, datalist: Datalist | None, pred_dir: PathLike | None, count: int) -> list[Picture]:
    """Return the pictures of the worst cases; those that would make the page too large to mail say so instead."""
    if datalist is None or pred_dir is None:
        return []
    kept, used = [], 0
    for picture in worst_case_pictures(run.cases, run.main_metric, datalist, pred_dir, count):
        used += sum(len(uri) for _, uri in picture.panels)
        full = used > _PICTURE_BYTES
        kept.append(replace(picture, panels=(), problem="the page would be too large.") if full else picture)
    return kept


def _check_numbers(numbers: Mapping[str, int]) -> None:
    for name, number in numbers.items():
        if number < 0:
            raise InputError(f"{name} is {number}; it must be >= 0.")


def _check_names(names: Sequence[str]) -> None:
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise InputError(f"two runs are called '{twice[0]}'; give them different names.")
    if len(names) > MOST_RUNS:
        raise InputError(f"{len(names)} runs; {MOST_RUNS} at most can be told apart on one page. Report fewer.")


def _check_min_effects(settings: Settings, metrics: Sequence[str]) -> None:
    unknown = [metric for metric in settings.min_effect if metric not in metrics]
    if unknown:
        raise InputError(
            f"min_effect (--min-effect): no metric {', '.join(unknown)}; those here: {', '.join(metrics)}."
        )


def _outside(key: PathLike | None, out: Path) -> Path | None:
    """Return the path of the key; inside of the report's folder it would leave the hospital with it."""
    if key is None:
        return None
    if out.resolve() in Path(key).resolve().parents:
        raise InputError(f"--pseudonym-key {key}: lies in the folder of the report ({out}); keep it elsewhere.")
    return Path(key)


def _no_pictures(datalist: Datalist | None, pred_dir: PathLike | None, num_pictures: int) -> str:
    if num_pictures == 0:
        return "left out on request (--no-pictures)."
    absent = []
    if datalist is None:
        absent.append("the datalist (--datalist D), which says where images and labels lie")
    if pred_dir is None:
        absent.append("the folder of the predictions (--pred DIR)")
    return f"they need {' and '.join(absent)}." if absent else ""


def _write(out: Path, texts: Mapping[str, str], runs: Sequence[Evidence], pictures: Sequence[Picture]) -> Report:
    reference = runs[0].reference
    sides = [*runs, *([reference] if reference is not None else [])]
    csvs = {subgroups_file(side, runs[0]): side.subgroups for side in sides}
    csvs["subgroups_penalized.csv"] = _stacked([(side.name, side.penalized) for side in sides])
    csvs["gaps.csv"] = _stacked([(side.name, side.gaps) for side in sides])
    compared = [(run.name, run.comparison.table) for run in runs if run.comparison is not None]
    if compared:
        csvs["comparison.csv"] = _stacked(compared)
    try:
        out.mkdir(parents=True, exist_ok=True)
        if not compared:
            (out / "comparison.csv").unlink(missing_ok=True)  # of an earlier report; it would belong to other numbers
        for name, table in csvs.items():
            table.to_csv(out / name, index=False, float_format="%.10g")
        for name, text in texts.items():
            (out / name).write_text(text, encoding="utf-8")
    except OSError as error:
        raise InputError(f"{out}: the report cannot be written ({error.strerror}); choose another --out.") from error
    comparison = out / "comparison.csv" if compared else None
    files = tuple(out / name for name in [*texts, *csvs])
    return Report(out / "report.html", out / "subgroups.csv", comparison, runs[0], pictures, tuple(runs), files)


def _stacked(tables: Sequence[tuple[str, pd.DataFrame]]) -> pd.DataFrame:
    """Return the tables below each other; the first column is the run."""
    parts = []
    for name, table in tables:
        part = table.copy()
        part.insert(0, "run", name)
        parts.append(part)
    return pd.concat(parts, ignore_index=True)
