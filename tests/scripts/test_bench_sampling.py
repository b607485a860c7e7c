"""The benchmark of the sampling runs, and its direct draw is the released one."""

from __future__ import annotations

import importlib.util
import sys
from collections import Counter
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from scipy.special import softmax


@pytest.fixture
def bench(project_root: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.setattr(torch, "set_num_threads", lambda threads: None)
    spec = importlib.util.spec_from_file_location("bench_sampling", project_root / "scripts" / "bench_sampling.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_it_prints_ratios_variants_and_epoch_work(bench, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["bench_sampling.py", "--sizes", "2000", "1000", "--rounds", "1"])
    bench.main()
    lines = capsys.readouterr().out.splitlines()
    rows = [line.split() for line in lines if line.strip() and line.split()[0] in ("1000", "2000")]
    assert [int(row[0]) for row in rows] == [1000, 2000]
    for _, ours, direct, faster, _own in rows:
        assert float(faster) == pytest.approx(float(direct) / float(ours), rel=0.1)
    for name in bench.VARIANTS:
        (row,) = [line for line in lines if line.startswith(f"{name:>20} ")]
        _step_ms, _refits, _start_ms, arrays, kept = (float(value) for value in row[20:].split())
        assert 32.0 <= arrays <= min(kept, 40.0)


def test_both_sides_draw_the_same_distribution(bench):
    case_ids = [str(index) for index in range(8)]
    ours, direct = bench.Ours(8, case_ids, 1), bench.Direct(8, case_ids, 1)
    expected = softmax(bench.BETA * direct.loss)
    np.testing.assert_allclose(ours.sampler.probabilities(), expected, rtol=1e-9)
    counts = Counter()
    for _ in range(4000):
        before = direct.loss.copy()
        direct.step()
        counts[int(np.flatnonzero(direct.loss != before)[0])] += 1
        direct.loss = before
    drawn = np.array([counts[index] for index in range(8)]) / 4000
    np.testing.assert_allclose(drawn, expected, atol=4 * np.sqrt(0.25 / 4000))
