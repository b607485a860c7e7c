"""The comparison of a planned bundle with a handwritten one: its warm-up and its interval."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest


@pytest.fixture(scope="module")
def bench() -> dict[str, Any]:
    return runpy.run_path(str(Path(__file__).parents[2] / "scripts/bench_planned_bundle.py"))


def test_a_bundle_keeps_its_warm_up_unless_its_training_is_shortened(bench: dict[str, Any]) -> None:
    config = {"epochs": 10, "batches_per_epoch": 100, "warmup_steps": 50}
    steps = {1000: 50, 2000: 50, 500: 25, 2: 1}  # of the training -> its warm-up
    assert {number: bench["warmup_steps"](config, number) for number in steps} == steps


def test_the_interval_is_of_patients_and_not_of_their_cases(bench: dict[str, Any], tmp_path: Path) -> None:
    # 8 patients with 5 scans each, which differ between patients and never within one.
    rows = [(f"{p}_{s}", str(p), name, p / 10) for p in range(8) for s in range(5) for name in ("a", "b")]
    table = pd.DataFrame(rows, columns=["case_id", "patient_id", "structure", "dice"])
    table.to_csv(tmp_path / "cases.csv", index=False)
    found = bench["scores"](tmp_path / "cases.csv")
    assert len(found) == 40
    low, high = bench["interval"](found)
    # Of the mean of 8 values 0, 0.1, ..., 0.7: 0.35, with a standard error of 0.081.
    error = np.std(np.arange(8) / 10) / np.sqrt(8)
    assert (low, high) == pytest.approx((0.35 - 1.96 * error, 0.35 + 1.96 * error), abs=0.02)
    assert np.isnan(bench["interval"](found[found.index.get_level_values("patient_id") < "4"])).all()
