"""Where the boxes of a strip plot lie."""

import re

import numpy as np
import pandas as pd
import pytest

from droseg.metrics.groups import ALL
from droseg.report.plots import case_points, strip_plot


def distances(*rows):
    """A cases table of two structures per case; None is missed. The image diagonal is 100 mm."""
    table = []
    for i, pair in enumerate(rows):
        for structure, mm in zip("ab", pair, strict=True):
            volumes = {"volume_ref_ml": 1.0, "volume_pred_ml": 0.0 if mm is None else 1.0, "diagonal_mm": 100.0}
            value = np.nan if mm is None else float(mm)
            ids = {"case_id": f"c{i}", "patient_id": f"c{i}", "structure": structure}
            table.append({**ids, "dice": 0.0 if mm is None else 0.9, "hd95_mm": value, **volumes})
    return pd.DataFrame(table)


def drawn(cases):
    """Return the x of ticks (value -> x), of the median, and the left and right end of the box."""
    svg = strip_plot([case_points(cases, [], "hd95_mm")], ["run"], ALL, "hd95_mm", None)
    ticks = {
        float(v): float(x) for x, v in re.findall(r'<text x="([\d.]+)" y="[\d.]+" text-anchor="middle">(\d+)<', svg)
    }
    median = float(re.search(r'class="median" d="M([\d.]+)', svg).group(1))
    left, width = map(float, re.search(r'class="box" x="([\d.]+)" y="[\d.-]+" width="([\d.]+)"', svg).groups())
    return ticks, median, (left, left + width)


def position(ticks, value):
    low, high = min(ticks), max(ticks)
    return ticks[low] + (value - low) / (high - low) * (ticks[high] - ticks[low])


def test_the_median_of_distances_counts_failures():
    ticks, median, _ = drawn(distances((1, 1), (1, 1), (2, 2), (8, 8), (1, None)))
    # Means over structures with failures: 1, 1, 2, 8, 50.5. Without them the median would be 1.
    assert median == pytest.approx(position(ticks, 2.0), abs=0.1)


def test_quartiles_beyond_the_scale_end_in_the_field_of_failures():
    ticks, median, (left, right) = drawn(distances((1, 1), (3, 3), (8, 8), (1, None), (1, None), (1, None), (2, None)))
    assert left == pytest.approx(position(ticks, 5.5), abs=0.1)  # 1, 3, 8, 50.5, ...: the first quartile is 5.5
    assert median > ticks[max(ticks)] + 12
    assert right >= median
    assert right < 520  # the width of the plot


def test_boxes_without_a_failure_are_the_quartiles_of_what_is_drawn():
    ticks, median, (left, right) = drawn(distances((1, 1), (2, 2), (3, 3), (4, 4), (10, 10)))
    assert [left, median, right] == pytest.approx([position(ticks, v) for v in (2, 3, 4)], abs=0.15)
