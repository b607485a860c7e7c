"""The benchmark of the estimated memory runs as far as there is a GPU, and says where it cannot."""

from __future__ import annotations

import importlib.util
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest
import torch


@pytest.fixture
def bench(project_root: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    spec = importlib.util.spec_from_file_location("bench_plan_memory", project_root / "scripts/bench_plan_memory.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "bench_plan_memory", module)  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def test_without_a_gpu_it_estimates_and_says_that_nothing_was_measured(bench, monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(sys, "argv", ["bench_plan_memory.py", "--bundle", "hippocampus_mri", "brats_mri"])
    with pytest.raises(SystemExit) as end:
        bench.main()
    assert end.value.code == 2
    said = capsys.readouterr()
    assert "Nothing was measured, for that needs a CUDA device." in said.err
    sizes = {tuple(line.split()[i] for i in (0, -2)): float(line.split()[-1]) for line in said.out.splitlines()[2:]}
    assert set(sizes) == {(name, kind) for name in ("hippocampus_mri", "brats_mri") for kind in ("fp32", "bf16")}
    for name in ("hippocampus_mri", "brats_mri"):
        assert 0 < sizes[name, "bf16"] < sizes[name, "fp32"]


@pytest.mark.parametrize(
    ("bundle", "loss"), [("hippocampus_mri", "PerCaseDiceCELoss"), ("brats_mri", "PerCaseDiceBCELoss")]
)
def test_a_bundle_is_trained_with_its_own_loss(bench, bundle, loss):
    row = bench.of_bundle(bundle)
    assert type(row.loss).__name__ == loss
    bench.train_steps(replace(row, patch=(32, 32, 32), batch_size=1), bf16=True, device="cpu")
