"""All numbers that a report is made from, per run."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pandas as pd

from droseg.errors import InputError
from droseg.metrics import higher_is_better
from droseg.metrics.axes import axis_columns, with_axes
from droseg.metrics.groups import ALL
from droseg.report.compare import Comparison, compare_runs, correct_together
from droseg.report.failures import any_failure
from droseg.report.gaps import gap_table
from droseg.report.record import Record
from droseg.report.seeds import (
    average_seeds,
    largest_values,
    num_trainings,
    partly_there,
    refuse_unclear_metrics,
    share_penalties,
    spread_table,
    table_metrics,
)
from droseg.report.subgroups import COLUMNS, MEAN, MIN_PATIENTS, penalized_table, subgroup_table

Row = dict[str, Any]


@dataclass(frozen=True)
class Settings:
    """How the numbers of a report are computed.

    Attributes:
        min_effect: metric -> smallest difference of means that may be called helped or hurt; see `default_min_effect`.
        min_n: patients that a group needs to be ranked and to get a word; smaller ones are shown and marked.
        num_bootstrap: samples per interval; 0 gives none.
        seed: of the bootstrap.
    """

    min_effect: Mapping[str, float] = field(default_factory=dict)
    min_n: int = MIN_PATIENTS
    num_bootstrap: int = 2000
    seed: int = 0

    @property
    def bootstrap(self) -> dict[str, Any]:
        """The arguments of every table with intervals."""
        return {"num_bootstrap": self.num_bootstrap, "seed": self.seed}


@dataclass(frozen=True)
class Evidence:
    """The numbers of one run, and of its comparison with a reference.

    Attributes:
        name: what to call the run.
        cases: its cases table, seeds averaged.
        axes: group axes.
        metrics: in order; the first that is `dice`, else the first, decides the verdict.
        subgroups: `subgroup_table`, undefined values left out and counted.
        penalized: `penalized_table`, failures counted.
        gaps: `gap_table`.
        spread: `spread_table` of its trainings; empty for one.
        trainings: how many seeds were averaged.
        partly: cases that some of the trainings lack.
        settings: how all of it was computed.
        record: how its table was scored, where that is known.
        reference: the run that it is compared with, if there is one.
        comparison: run minus reference.
    """

    name: str
    cases: pd.DataFrame
    axes: Sequence[str]
    metrics: Sequence[str]
    subgroups: pd.DataFrame
    penalized: pd.DataFrame
    gaps: pd.DataFrame
    spread: pd.DataFrame
    trainings: int = 1
    partly: Sequence[str] = ()
    settings: Settings = field(default_factory=Settings)
    record: Record | None = None
    reference: Evidence | None = None
    comparison: Comparison | None = None

    @property
    def main_metric(self) -> str:
        """The metric that the verdict speaks of."""
        return "dice" if "dice" in self.metrics else self.metrics[0]

    @property
    def baseline(self) -> pd.DataFrame | None:
        """The cases table of the reference."""
        return None if self.reference is None else self.reference.cases

    @property
    def baseline_name(self) -> str:
        """What to call the reference."""
        return "baseline" if self.reference is None else self.reference.name

    def groups(self, metric: str, axis: str | None = None) -> list[Row]:
        """Return the penalized rows of structure=mean, those of one axis or of all named groups."""
        return _mean_rows(self.penalized, metric, axis)

    def ranked(self, metric: str, axis: str | None = None) -> list[Row]:
        """Return the rows of `groups` with at least `min_n` patients; all of them where no group has so many."""
        rows = self.groups(metric, axis)
        return [row for row in rows if row["n_patients"] >= self.settings.min_n] or rows

    def changes(self, metric: str, axis: str | None = None) -> list[Row]:
        """Return the comparison's rows of structure=mean; empty without a reference."""
        return [] if self.comparison is None else _mean_rows(self.comparison.table, metric, axis)

    def gap(self, metric: str, axis: str, structure: str = MEAN) -> Row | None:
        """Return the gap of one axis, if there is one."""
        table = self.gaps
        rows = table[(table["axis"] == axis) & (table["metric"] == metric) & (table["structure"] == structure)]
        return None if rows.empty else rows.to_dict("records")[0]  # type: ignore[return-value]


def collect_evidence(
    runs: Mapping[str, pd.DataFrame],
    reference: tuple[str, pd.DataFrame] | None,
    axes: Sequence[str],
    metrics: Sequence[str] | None,
    settings: Settings,
    records: Mapping[str, Record] | None = None,
) -> list[Evidence]:
    """Return the evidence of each run, all compared with the reference; words are corrected over all comparisons.

    Args:
        runs: name -> cases table; a column `seed` tells several trainings apart.
        reference: name and cases table of what they are compared with. Its groups are those of the runs.
        axes: columns to group by, and products of them (`anatomy*protocol`).
        metrics: columns to report; default all that the tables share.
        settings: how to compute it.
        records: name -> how that table was scored, where that is known.

    Raises:
        InputError: if a column is missing, groups contradict each other, or the runs have nothing in common.
    """
    tables = [with_axes(table, axes) for table in runs.values()]
    tables[1:] = [t if set(axes) <= set(t.columns) else _with_groups_of(tables[:1], t, axes) for t in tables[1:]]
    if reference is not None:
        tables.append(_with_groups_of(tables, reference[1], axes))
    _check_same_groups(tables, [*runs, *([reference[0]] if reference else [])], axes)
    metrics = _metrics(tables, metrics, axes)
    tables = list(share_penalties(*tables))
    largest = largest_values(*tables)
    sides = [_side(name, t, axes, metrics, settings, largest) for name, t in zip(runs, tables, strict=False)]
    sides = [_with_record(side, records or {}) for side in sides]
    if reference is None:
        return sides
    other = _with_record(_side(reference[0], tables[-1], axes, metrics, settings, largest), records or {})
    options: dict[str, Any] = {"min_effect": settings.min_effect, "min_n": settings.min_n, **settings.bootstrap}
    compared = [compare_runs(side.cases, other.cases, axes, metrics, **options) for side in sides]
    both = zip(sides, correct_together(compared), strict=True)
    return [replace(side, reference=other, comparison=comparison) for side, comparison in both]


def subgroups_file(side: Evidence, first: Evidence) -> str:
    """Return the name of the CSV that holds `side.subgroups`; that of the first run is subgroups.csv."""
    if side.name == first.name:
        return "subgroups.csv"
    name = re.sub(r"[^\w.-]+", "_", side.name).strip("_.")
    return f"subgroups_{name or 'run'}.csv"


def worst_row(rows: Sequence[Row], metric: str) -> Row:
    """Return the row with the worst mean."""
    return (min if higher_is_better(metric) else max)(rows, key=lambda row: row["mean"])


def best_row(rows: Sequence[Row], metric: str) -> Row:
    """Return the row with the best mean."""
    return (max if higher_is_better(metric) else min)(rows, key=lambda row: row["mean"])


def _side(
    name: str,
    table: pd.DataFrame,
    axes: Sequence[str],
    metrics: Sequence[str],
    settings: Settings,
    largest: Mapping[str, float],
) -> Evidence:
    cases = average_seeds(table, largest)
    repeated = cases[cases.duplicated(["case_id", "structure"])]
    if len(repeated):
        case_id, structure = repeated[["case_id", "structure"]].iloc[0]
        raise InputError(f"{name}: case '{case_id}', structure '{structure}' is there twice; keep one row of each.")
    groups = penalized_table(cases, axes, metrics, **settings.bootstrap)
    if any_failure(cases).any():
        subgroups = subgroup_table(cases, axes, metrics, **settings.bootstrap)
    else:  # nothing to penalize: the same numbers
        subgroups = groups[list(COLUMNS)]
    return Evidence(
        name=name,
        cases=cases,
        axes=axes,
        metrics=metrics,
        subgroups=subgroups,
        penalized=groups,
        gaps=gap_table(cases, groups, axes, metrics, min_n=settings.min_n, **settings.bootstrap),
        spread=spread_table(table, axes, metrics, largest),
        trainings=num_trainings(table),
        partly=partly_there(table),
        settings=settings,
    )


def _with_record(side: Evidence, records: Mapping[str, Record]) -> Evidence:
    record = records.get(side.name)
    return side if record is None else replace(side, record=record.without(set(side.cases["case_id"])))


def _mean_rows(table: pd.DataFrame, metric: str, axis: str | None) -> list[Row]:
    rows = table[(table["metric"] == metric) & (table["structure"] == MEAN)]
    rows = rows[rows["axis"] != ALL] if axis is None else rows[rows["axis"] == axis]
    return rows[rows["mean"].notna()].to_dict("records")  # type: ignore[return-value]


def _metrics(tables: Sequence[pd.DataFrame], metrics: Sequence[str] | None, axes: Sequence[str]) -> list[str]:
    """Return the metrics to report, after a check that they and the axes are there."""
    if metrics is None:
        metrics = [m for m in table_metrics(tables[0]) if all(m in table.columns for table in tables)]
        if not metrics:
            raise InputError("the run and the baseline have no metric in common; give tables with the same columns.")
    refuse_unclear_metrics(metrics)
    for table in tables:
        for column in [*axes, *metrics]:
            if column not in table.columns:
                raise InputError(f"no column '{column}' in the cases table; those there: {', '.join(table.columns)}.")
    return list(metrics)


def _with_groups_of(runs: Sequence[pd.DataFrame], reference: pd.DataFrame, axes: Sequence[str]) -> pd.DataFrame:
    """Return the reference with the groups that the runs give its cases; its own ones for cases that no run has."""
    columns = [*dict.fromkeys([*axis_columns(axes, list(map(str, runs[0].columns))), *axes])]
    if not all(column in run.columns for run in runs for column in columns):
        return reference  # which column is missing is said when the metrics are looked for
    own = with_axes(reference, axes)
    known = pd.concat([run[["case_id", *columns]] for run in runs]).drop_duplicates("case_id").set_index("case_id")
    for column in columns:
        groups = own["case_id"].map(known[column])
        mine = own[column] if column in own.columns else None
        own[column] = groups if mine is None else groups.where(own["case_id"].isin(known.index), mine)
    return own


def _check_same_groups(tables: Sequence[pd.DataFrame], names: Sequence[str], axes: Sequence[str]) -> None:
    for axis in axes:
        seen: dict[str, tuple[str, str]] = {}
        for name, table in zip(names, tables, strict=True):
            if axis not in table.columns:
                continue
            groups = table.drop_duplicates("case_id").set_index("case_id")[axis].dropna()
            for case_id, group in groups.items():
                other_name, other = seen.setdefault(str(case_id), (name, group))
                if other != group:
                    raise InputError(
                        f"case '{case_id}': {axis} is '{other}' in {other_name} and '{group}' in {name}; a case has "
                        "one group, correct the CSVs."
                    )
