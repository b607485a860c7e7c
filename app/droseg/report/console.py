"""The compact tables that the command line prints."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import pandas as pd

from droseg.metrics import higher_is_better
from droseg.metrics.groups import ALL
from droseg.metrics.names import metric_label, tail_percentile
from droseg.report.compare import Comparison
from droseg.report.failures import failures
from droseg.report.subgroups import MEAN, MIN_PATIENTS, SMALL


def format_value(value: float, metric: str, sign: bool = False) -> str:
    """Return a number with the digits that its metric deserves; a dash if undefined."""
    if value is None or not np.isfinite(value):
        return "–"
    digits = 3 if higher_is_better(metric) and abs(value) < 10 else 2 if abs(value) < 10 else 1
    return f"{value:{'+' if sign else ''}.{digits}f}".replace("-", "−")


def size_sign(size: str) -> str:
    """Return the mark of a group by its `size`: a double dagger without an interval, a dagger if small."""
    return {"too few": "‡", "small": "†"}.get(size, "")


SIZE_LEGEND = (
    f"† fewer than {SMALL} patients: intervals tend to be too narrow; ‡ fewer than {MIN_PATIENTS}: no interval."
)


def text_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return an aligned table: the first column to the left, numbers to the right."""
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]

    def line(cells: Sequence[str]) -> str:
        return "  ".join(
            c.ljust(w) if i == 0 else c.rjust(w) for i, (c, w) in enumerate(zip(cells, widths, strict=True))
        )

    return "\n".join([line(header), "  ".join("-" * w for w in widths), *map(line, rows)])


def group_table(penalized_groups: pd.DataFrame, metric: str, comparison: Comparison | None = None) -> str:
    """Return group, n, mean, tail and worst case of one metric (structure=mean), and the difference to a baseline.

    Args:
        penalized_groups: a `subgroup_table` of penalized values, or a `penalized_table`, which marks small groups.
        metric: the metric to show.
        comparison: against a baseline, if there is one.
    """
    tail = f"p{tail_percentile(metric)}"
    header = ["group", "n", f"mean {metric_label(metric)}", tail, "worst"]
    if comparison is not None:
        header += ["difference to baseline [95 % interval]", "", "why"]
    changes = _by_group(comparison.table, metric) if comparison is not None else {}
    rows = []
    for key, row in _by_group(penalized_groups, metric).items():
        cells = [" = ".join(key) if key[0] != ALL else "all", f"{row['n']}{size_sign(str(row.get('size', '')))}"]
        cells += [format_value(row[c], metric) for c in ("mean", tail, "worst")]
        if comparison is not None:
            change = changes.get(key)
            words = [str(change["verdict"]), str(change["reason"])] if change is not None else ["", ""]
            cells += ["–" if change is None else interval_text(change, metric) + _pairs(change, row), *words]
        rows.append(cells)
    return text_table(header, rows)


def _pairs(change: Mapping[str, float], row: Mapping[str, float]) -> str:
    """Return how many cases both runs have, where that is not the number beside the mean."""
    return f" ({change['n']} pairs)" if change["n"] != row["n"] else ""


def interval_text(row: Mapping[str, float], metric: str) -> str:
    """Return "+0.034 [+0.010, +0.060]", or the difference alone where the group is too small for an interval."""
    difference = format_value(row["difference"], metric, sign=True)
    if not np.isfinite(row["ci_low"]):
        return f"{difference} [too few]"
    bounds = ", ".join(format_value(row[c], metric, sign=True) for c in ("ci_low", "ci_high"))
    return f"{difference} [{bounds}]"


def failure_lines(cases: pd.DataFrame) -> Iterator[str]:
    """Yield what was missed and what was invented, if anything."""
    for what, flags in failures(cases).items():
        if flags.any():
            rows = cases[flags]
            shown = ", ".join(f"{c}: {s}" for c, s in zip(rows["case_id"][:5], rows["structure"][:5], strict=True))
            more = f", and {len(rows) - 5} more" if len(rows) > 5 else ""
            yield f"{what}: {len(rows)} (structures), in {rows['case_id'].nunique()} (cases): {shown}{more}"


def _by_group(table: pd.DataFrame, metric: str) -> dict[tuple[str, str], dict[str, float]]:
    rows = table[(table["metric"] == metric) & (table["structure"] == MEAN)]
    return {(r["axis"], r["group"]): r for r in rows.to_dict("records")}  # type: ignore[misc]
