"""Metrics of every validated case, with its real spacing, and their values per subgroup."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from ignite.engine import Engine, Events
from monai.data.utils import affine_to_spacing

from droseg import keys
from droseg.data import Case
from droseg.handlers.roles import is_writer
from droseg.metrics import COLUMNS, METRICS, case_metrics, group_values, penalized, worst_group

WORST = "worst_group"


class CaseMetricsHandler:
    """Collects one row per case and structure; at the end of the epoch puts group values into the metrics.

    Leaves in `engine.state.metrics`, failures counted as failures (a missed structure: Dice 0, distance the image
    diagonal): `val_dice/all`, `val_dice/AXIS=GROUP`, `val_dice/worst_group`, and the same for every other metric;
    `val_dice/structure=NAME` for each structure. `table` is the whole table, as in `case_metrics.csv`.

    Args:
        cases: the datalist's cases that may occur; they give patient and groups.
        structures: name -> value in the label maps that arrive here.
        metrics: which metrics to compute.
        axes: group axes; default all that occur in `cases`.
        output: where to write `case_metrics.csv`, if anywhere.
        prefix: of the names in `engine.state.metrics`.
        label_key: of the reference label map, in the engine's output or else in its batch.
    """

    def __init__(
        self,
        cases: Sequence[Case],
        structures: Mapping[str, int],
        metrics: Sequence[str] = METRICS,
        axes: Sequence[str] | None = None,
        output: str | Path | None = None,
        prefix: str = "val_",
        label_key: str = keys.LABEL,
    ) -> None:
        self.cases = {case.case_id: case for case in cases}
        self.axes = tuple(axes) if axes is not None else tuple(sorted({a for case in cases for a in case.groups}))
        self.structures: dict[int | tuple[int, ...], str] = {int(value): name for name, value in structures.items()}
        self.metrics, self.prefix, self.label_key = tuple(metrics), prefix, label_key
        self.output = Path(output) if output is not None else None
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
            rows = case_metrics(result[keys.PRED][0], label[0], self.structures, spacing.tolist(), metrics=self.metrics)
            case = self.cases[item[keys.CASE_ID]]
            rows.insert(0, keys.CASE_ID, case.case_id)
            rows.insert(1, keys.PATIENT_ID, case.patient_id)
            for axis in self.axes:
                rows[axis] = case.groups.get(axis)
            rows["diagonal_mm"] = float(np.linalg.norm(spacing * np.array(label.shape[1:])))
            self._rows.append(rows)

    def summarize(self, engine: Engine) -> None:
        """Put the values per group and structure into the engine's metrics; write the table."""
        self.table = pd.concat(self._rows, ignore_index=True)
        values: dict[str, float] = {}
        for metric in self.metrics:
            name = f"{self.prefix}{metric}"
            for row in group_values(self.table, self.axes, metric).to_dict("records"):
                group = "all" if row["axis"] == "all" else f"{row['axis']}={row['group']}"
                values[f"{name}/{group}"] = float(row["value"])
            values[f"{name}/{WORST}"] = worst_group(self.table, self.axes, metric)[2]
            counted = penalized(self.table, metric)
            for structure, value in counted.groupby(self.table["structure"], sort=False).mean().items():
                values[f"{name}/structure={structure}"] = float(value)
        engine.state.metrics.update(values)
        if self.output is not None and is_writer():
            columns = [column for column in COLUMNS if column in self.table]
            ordered = [*columns, *self.axes, "diagonal_mm"]
            self.output.parent.mkdir(parents=True, exist_ok=True)
            self.table[ordered].to_csv(self.output, index=False, float_format="%.10g")
