"""Metrics of every validated case, with its real spacing, and their values per subgroup."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from ignite.engine import Engine, Events
from monai.data.utils import affine_to_spacing

from droseg import keys
from droseg.data import Case
from droseg.data.regions import code_values, region_codes
from droseg.engine.roles import gather_objects, is_writer, world_size
from droseg.metrics import (
    COLUMNS,
    METRICS,
    bad_tail,
    case_metrics,
    evaluation_record,
    group_values,
    has_direction,
    is_metric,
    penalized,
    tolerances_mm,
    worst_group,
    write_record,
)
from droseg.metrics.axes import axis_columns, with_axes
from droseg.metrics.groups import ALL
from droseg.metrics.names import DIAGONAL, tail_name

WORST = "worst_group"


class CaseMetricsHandler:
    """Collects one row per case and structure; at the end of the epoch puts group values into the metrics.

    Leaves in `engine.state.metrics`, failures counted as failures (a missed structure: Dice 0, distance the image
    diagonal): `val_dice/all`, `val_dice/AXIS=GROUP`, `val_dice/worst_group`, and the same for every other metric;
    `val_dice/structure=NAME` for each structure. These are means over the cases; `val_dice_p10/...` and
    `val_hd95_p90_mm/...` are the bad tails (`droseg.metrics.bad_tail`): the same figures as in a report.
    `table` is the whole table, as in `case_metrics.csv`.

    Under torch.distributed each rank scores its share of the cases (`droseg.data.items.own_share`); table and metrics
    are those of all, the same on every rank and in a single process. Rank 0 writes.

    Args:
        cases: the datalist's cases that may occur, each once; they give patient and groups, and the order of the table
            under torch.distributed.
        structures: name -> value in the label maps that arrive here, or several values; such regions may overlap (of
            tumors: `{"ET": 3, "TC": [1, 3], "WT": [1, 2, 3]}`). If not one map arrives but 0/1 channels, one for
            each of several structures, as of a thresholded sigmoid, these are taken in this order, and the values not
            used.
        metrics: which metrics to compute, see `droseg.metrics.case_metrics`; those that have no better and worse,
            as counts of components, only enter the table.
        axes: group axes, and products of them (`anatomy*protocol`); default all that occur in `cases`.
        output: where to write `case_metrics.csv`, if anywhere.
        record: what `evaluation.json` shall say besides, beside the table: `datalist`, `section`, `predictions`,
            `bundle`, see `droseg.metrics.evaluation_record`; by default that file is not written.
        prefix: of the names in `engine.state.metrics`.
        label_key: of the reference label map, in the engine's output or else in its batch.
        nsd_tolerance_mm: for all structures, or name -> its own, of every structure.

    Raises:
        ValueError: if two structures are the same values, or a tolerance is missing or negative.
    """

    def __init__(
        self,
        cases: Sequence[Case],
        structures: Mapping[str, int | Sequence[int]],
        metrics: Sequence[str] = METRICS,
        axes: Sequence[str] | None = None,
        output: str | Path | None = None,
        prefix: str = "val_",
        label_key: str = keys.LABEL,
        nsd_tolerance_mm: float | Mapping[str, float] = 1.0,
        record: Mapping[str, Any] | None = None,
    ) -> None:
        self.cases = {case.case_id: case for case in cases}
        known = sorted({axis for case in cases for axis in case.groups})
        self.axes = tuple(axes if axes is not None else known)
        self._columns = axis_columns(self.axes, known)
        self.structures = _regions(structures)
        tolerances = tolerances_mm(nsd_tolerance_mm, self.structures.values())
        self.nsd_tolerance_mm = dict(zip(self.structures.values(), tolerances, strict=True))
        self.metrics, self.prefix, self.label_key = tuple(metrics), prefix, label_key
        self.output = Path(output) if output is not None else None
        self.record = record
        self.table = pd.DataFrame()
        self._rows: list[pd.DataFrame] = []

    def attach(self, engine: Engine) -> None:
        """Attach to an evaluator whose output is decollated and postprocessed to label maps."""
        engine.add_event_handler(Events.EPOCH_STARTED, self.start)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self.score)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self.summarize)

    def start(self, engine: Engine) -> None:
        """Forget the last epoch."""
        self._rows = []

    def score(self, engine: Engine) -> None:
        """Score the cases of one batch."""
        batch: Any = engine.state.batch
        output: Any = engine.state.output
        for item, result in zip(batch, output, strict=True):
            label = result[self.label_key] if self.label_key in result else item[self.label_key]
            spacing = np.asarray(affine_to_spacing(label.affine)).astype(float)
            pred, ref, structures = self._maps(result[keys.PRED], label)
            rows = case_metrics(
                pred,
                ref,
                structures,
                spacing.tolist(),
                self.nsd_tolerance_mm,
                self.metrics,
            )
            case = self.cases[item[keys.CASE_ID]]
            rows.insert(0, keys.CASE_ID, case.case_id)
            rows.insert(1, keys.PATIENT_ID, case.patient_id)
            for axis in self._columns:
                rows[axis] = case.groups.get(axis)
            rows[DIAGONAL] = float(np.linalg.norm(spacing * np.array(label.shape[1:])))
            self._rows.append(rows)

    def _maps(self, pred: Any, label: Any) -> tuple[Any, Any, dict[int | tuple[int, ...], str]]:
        """Return both as maps (H, W, D), and the values of the structures in them -> name."""
        if len(pred) == len(label) == 1:
            return pred[0], label[0], self.structures
        names = list(self.structures.values())
        if not len(pred) == len(label) == len(names):
            raise ValueError(
                f"the prediction has {len(pred)} channels, the label {len(label)}; expected one label map, or for each "
                f"of the {len(names)} structures a channel of 0 and 1 ({', '.join(names)}) in both."
            )
        codes = [region_codes(each.detach().cpu().numpy()) for each in (pred, label)]
        return codes[0], codes[1], code_values(names, *codes)

    def _all_rows(self) -> list[pd.DataFrame]:
        """Return the rows of the cases of all ranks as a single process has them: each case once, in their order."""
        if world_size() == 1:
            return self._rows
        rows = {rows[keys.CASE_ID].iloc[0]: rows for part in gather_objects(self._rows) for rows in part}
        return [rows[case_id] for case_id in self.cases if case_id in rows]

    def summarize(self, engine: Engine) -> None:
        """Put the values per group and structure into the engine's metrics; write the table."""
        self.table = pd.concat(self._all_rows(), ignore_index=True)
        cases = with_axes(self.table, self.axes)
        values: dict[str, float] = {}
        for metric in filter(has_direction, self.metrics):
            values |= self._of_groups(cases, metric) | self._of_structures(cases, metric)
        engine.state.metrics.update(values)
        if self.output is not None and is_writer():
            self._write(self.output)

    def _write(self, output: Path) -> None:
        columns = [column for column in COLUMNS if column in self.table]
        others = [column for column in self.table.columns if is_metric(str(column)) and column not in COLUMNS]
        table = self.table[[*columns, *self._columns, *others, DIAGONAL]]
        output.parent.mkdir(parents=True, exist_ok=True)
        table.to_csv(output, index=False, float_format="%.10g")
        if self.record is not None:
            values = {name: key if isinstance(key, tuple) else (key,) for key, name in self.structures.items()}
            unseen = self.cases.keys() - set(table[keys.CASE_ID])
            reasons = {case_id: "the evaluation did not come to it." for case_id in self.cases if case_id in unseen}
            record = evaluation_record(table, values, self.nsd_tolerance_mm, not_scored=reasons, **self.record)
            write_record(output.parent, record)

    def _of_groups(self, cases: pd.DataFrame, metric: str) -> dict[str, float]:
        mean, tail = f"{self.prefix}{metric}", f"{self.prefix}{tail_name(metric)}"
        values: dict[str, float] = {}
        for row in group_values(cases, self.axes, metric).to_dict("records"):
            group = ALL if row["axis"] == ALL else f"{row['axis']}={row['group']}"
            values |= {f"{mean}/{group}": float(row["value"]), f"{tail}/{group}": float(row["tail"])}
        values[f"{mean}/{WORST}"] = worst_group(cases, self.axes, metric)[2]
        values[f"{tail}/{WORST}"] = worst_group(cases, self.axes, metric, by="tail")[2]
        return values

    def _of_structures(self, cases: pd.DataFrame, metric: str) -> dict[str, float]:
        values = {}
        counted = penalized(cases, metric)
        for structure, of_cases in counted.groupby(cases["structure"], sort=False):
            values[f"{self.prefix}{metric}/structure={structure}"] = float(of_cases.mean())
            tail = bad_tail(of_cases.dropna().to_numpy(), metric)
            values[f"{self.prefix}{tail_name(metric)}/structure={structure}"] = tail
        return values


def _regions(structures: Mapping[str, int | Sequence[int]]) -> dict[int | tuple[int, ...], str]:
    """Return the label values of each structure -> its name, as `case_metrics` takes them."""
    regions: dict[int | tuple[int, ...], str] = {}
    for name, value in structures.items():
        values = sorted({int(v) for v in value}) if isinstance(value, Iterable) else [int(value)]
        key = values[0] if len(values) == 1 else tuple(values)
        if key in regions:
            raise ValueError(f"'{regions[key]}' and '{name}' have the same label values {value}; leave out one.")
        regions[key] = name
    return regions
