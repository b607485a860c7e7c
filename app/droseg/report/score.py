"""Score a folder of predicted label maps against a datalist: one row per case and structure."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pandas as pd

from droseg.data.datalist import Case, Datalist
from droseg.data.volumes import GRID_TOLERANCE
from droseg.errors import DrosegError
from droseg.metrics import COLUMNS, METRICS, tolerances_mm
from droseg.metrics.files import FileScore, ScoreOptions, score_files
from droseg.metrics.label_maps import (
    ITK_SUFFIXES,
    SUFFIXES,
    find_prediction,
    lay_on_grid,
    prediction_files,
    read_labels,
)
from droseg.metrics.names import BETTI_ERRORS, DIAGONAL, in_order, is_own_column
from droseg.metrics.topology import require_topology

__all__ = [
    "ITK_SUFFIXES",
    "SUFFIXES",
    "Scores",
    "find_prediction",
    "on_reference_grid",
    "read_labels",
    "score_cases",
    "score_section",
]

OnCase = Callable[[str], object]
Job = tuple[Case, Path, Path | None]
"""A case, its reference, and its prediction or None."""
on_reference_grid = partial(lay_on_grid, tolerance=GRID_TOLERANCE)


@dataclass(frozen=True)
class Scores:
    """The scored cases, and what kept the others out.

    Attributes:
        cases: a cases table: case_metrics.csv's columns, group axes, further metrics, `diagonal_mm`.
        missing: cases without a prediction, in the table only if they were to count as failures.
        problems: case_id -> why it could not be scored.
        warnings: what deserves a look though it was scored.
        strangers: label maps in the folder that belong to no case of the datalist.
    """

    cases: pd.DataFrame
    missing: list[str]
    problems: dict[str, str]
    warnings: list[str]
    strangers: list[str] = field(default_factory=list)


def score_cases(datalist: Datalist, section: str, pred_dir: str | os.PathLike[str], **options: Any) -> pd.DataFrame:
    """Return the cases table of a section; `options` are those of `score_section`.

    Raises:
        DrosegError: if any case could not be scored or has no prediction; the message lists all of them.
    """
    scores = score_section(datalist, section, pred_dir, **options)
    problems = [f"{case_id}: {problem}" for case_id, problem in scores.problems.items()]
    if not options.get("missing_as_failure", False):
        problems += [f"{case_id}: no prediction in {pred_dir}" for case_id in scores.missing]
    if problems:
        raise DrosegError(f"{len(problems)} cases could not be scored:\n  " + "\n  ".join(problems))
    return scores.cases


def score_section(
    datalist: Datalist,
    section: str,
    pred_dir: str | os.PathLike[str],
    *,
    predictions: Mapping[str, Path] | None = None,
    structures: Iterable[str] | None = None,
    nsd_tolerance_mm: float | Mapping[str, float] = 1.0,
    extra_metrics: Sequence[str] = (),
    missing_as_failure: bool = False,
    workers: int = 1,
    on_case: OnCase | None = None,
) -> Scores:
    """Return the scores of a section; a case that cannot be scored does not stop the others.

    Args:
        datalist: its label maps are the reference; their own grid and spacing are used.
        section: e.g. "testing".
        pred_dir: folder with CASE_ID.nii.gz or CASE_ID_seg.nii.gz (or another format: `SUFFIXES`).
        predictions: case_id -> label map, instead of what lies in the folder; only these cases are scored.
        structures: names to score; default all of the datalist.
        nsd_tolerance_mm: for all structures, or structure -> its own; see `case_metrics`.
        extra_metrics: metrics beyond `METRICS`; their columns stand to the right of the group axes.
        missing_as_failure: score a case without a prediction as all background.
        workers: processes.
        on_case: called with each case_id when it is done.

    Raises:
        DrosegError: if the folder or a structure does not exist, or an option cannot be used.
    """
    folder = Path(pred_dir)
    if not folder.is_dir():
        raise DrosegError(f"{folder}: no such folder; give the folder of the predicted label maps by --pred.")
    options = _options(datalist, structures, nsd_tolerance_mm, extra_metrics)
    cases = datalist.section(section)
    if predictions is None:
        everyone = {case.case_id for some in datalist.sections.values() for case in some}
        found, problems, strangers = _find(folder, [case.case_id for case in cases], everyone)
    else:
        cases = tuple(case for case in cases if case.case_id in predictions)
        found, problems, strangers = {case.case_id: predictions[case.case_id] for case in cases}, {}, []
    jobs = _jobs(cases, found, problems, missing_as_failure)
    at_work = {case.case_id for case, _, _ in jobs}
    done = on_case or (lambda _: None)
    for case in cases:
        if case.case_id not in at_work:
            done(case.case_id)
    tables, warnings = [], []
    for (case, _, _), score in _run(partial(score_files, options=options), jobs, workers):
        if score.table is not None:
            groups = {axis: case.groups.get(axis) for axis in datalist.axes}
            tables.append(score.table.assign(case_id=case.case_id, patient_id=case.patient_id, **groups))
        if score.problem:
            problems[case.case_id] = score.problem
        if score.warning:
            warnings.append(f"{case.case_id}: {score.warning}")
        done(case.case_id)
    columns = [*COLUMNS, *datalist.axes, *(m for m in options.metrics if m not in METRICS), DIAGONAL]
    return Scores(
        cases=pd.concat(tables, ignore_index=True)[columns] if tables else pd.DataFrame(columns=columns),
        missing=[case_id for case_id, path in found.items() if path is None and case_id not in problems],
        problems={case.case_id: problems[case.case_id] for case in cases if case.case_id in problems},
        warnings=warnings,
        strangers=strangers,
    )


def _jobs(
    cases: Iterable[Case], found: Mapping[str, Path | None], problems: dict[str, str], missing_as_failure: bool
) -> list[Job]:
    """Return what is to be scored; what has no label is added to the problems."""
    jobs: list[Job] = []
    for case in cases:
        if case.label is None:
            problems[case.case_id] = "the datalist gives no label; add one, or leave the case out of this section."
        elif case.case_id not in problems and (found[case.case_id] is not None or missing_as_failure):
            jobs.append((case, case.label, found[case.case_id]))
    return jobs


def _options(
    datalist: Datalist,
    structures: Iterable[str] | None,
    nsd_tolerance_mm: float | Mapping[str, float],
    extra_metrics: Sequence[str],
) -> ScoreOptions:
    """Return the options of every case, checked before any is scored."""
    regions = _regions(datalist, structures)
    own = [axis for axis in datalist.axes if is_own_column(axis)]
    if own:
        raise DrosegError(f"{datalist.path}: the group axis {', '.join(own)} has the name of a metric; rename it.")
    try:
        metrics = in_order([*METRICS, *extra_metrics])
        tolerance_mm = dict(zip(regions.values(), tolerances_mm(nsd_tolerance_mm, regions.values()), strict=True))
    except ValueError as error:
        raise DrosegError(str(error)) from error
    if any(metric in BETTI_ERRORS[1:] for metric in metrics):
        require_topology()
    known = frozenset(value for values in datalist.structures.values() for value in values)
    known |= set(datalist.background)
    return ScoreOptions(regions, known, tolerance_mm, tuple(metrics), GRID_TOLERANCE)


def _find(
    folder: Path, case_ids: Sequence[str], everyone: Collection[str]
) -> tuple[dict[str, Path | None], dict[str, str], list[str]]:
    """Return case_id -> its file, case_id -> what is wrong with its files, and the label maps of no case at all."""
    files = {path.name: path for path in sorted(folder.iterdir()) if path.is_file()}
    found: dict[str, Path | None] = {}
    problems: dict[str, str] = {}
    for case_id in case_ids:
        candidates = prediction_files(files, case_id, everyone)
        found[case_id] = candidates[0] if candidates else None
        if len(candidates) > 1:
            names = " and ".join(path.name for path in candidates)
            problems[case_id] = f"{folder} holds {names}; keep only the one that is to be scored."
    used = {path for case_id in everyone for path in prediction_files(files, case_id, everyone)}
    strangers = [name for name, path in files.items() if name.endswith(SUFFIXES) and path not in used]
    return found, problems, strangers


def _regions(datalist: Datalist, structures: Iterable[str] | None) -> dict[tuple[int, ...], str]:
    names = list(datalist.structures) if structures is None else list(structures)
    unknown = [name for name in names if name not in datalist.structures]
    if unknown:
        known = ", ".join(datalist.structures)
        raise DrosegError(f"{datalist.path}: no structure {', '.join(unknown)}; those declared: {known}.")
    regions: dict[tuple[int, ...], str] = {}
    for name in names:
        values = tuple(datalist.structures[name])
        if values in regions:
            raise DrosegError(f"{datalist.path}: '{regions[values]}' and '{name}' have the same label values {values}.")
        regions[values] = name
    return regions


def _run(
    score: Callable[[Path, Path | None], FileScore], jobs: Sequence[Job], workers: int
) -> Iterator[tuple[Job, FileScore]]:
    """Yield each job with its result, in their order."""
    if workers <= 1 or len(jobs) <= 1:
        for job in jobs:
            yield job, score(job[1], job[2])
        return
    # Not fork: torch's and nibabel's threads may hold locks in this process.
    with ProcessPoolExecutor(min(workers, len(jobs)), mp_context=get_context("spawn")) as pool:
        futures = [pool.submit(score, label, pred) for _, label, pred in jobs]
        for job, future in zip(jobs, futures, strict=True):
            try:
                yield job, future.result()
            except BrokenProcessPool:  # killed, most likely by the kernel when memory ran out
                yield job, FileScore(problem="a worker process was killed, for want of memory? Give fewer --workers.")
