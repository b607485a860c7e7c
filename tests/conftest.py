"""What all tests share: real data where it exists, bounded threads, and global random states that do not leak."""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import settings

PROJECT_ROOT = Path(__file__).resolve().parents[1]

# Workers of pytest-xdist, and the processes that tests start, share the cores. OpenMP reads these when it is loaded.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.setdefault("MKL_NUM_THREADS", "1")
os.environ.setdefault("MPLBACKEND", "Agg")

# The same examples in every run; `--hypothesis-profile=default` looks for new ones.
settings.register_profile("repeatable", derandomize=True)
settings.load_profile("repeatable")


@pytest.fixture(scope="session", autouse=True)
def _one_thread_per_worker() -> None:
    if "PYTEST_XDIST_WORKER" in os.environ:
        import torch

        torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _skip_without_gpu(request: pytest.FixtureRequest) -> None:
    if request.node.get_closest_marker("gpu"):
        import torch

        if not torch.cuda.is_available():
            pytest.skip("skipped: no CUDA device")


@pytest.fixture(autouse=True)
def _restore_global_random_state() -> Iterator[None]:
    """Seed the global generators that libraries draw from, and restore them: the order of tests decides nothing."""
    import numpy as np
    import torch

    python_state, numpy_state, torch_state = random.getstate(), np.random.get_state(), torch.get_rng_state()
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
    yield
    random.setstate(python_state)
    np.random.set_state(numpy_state)
    torch.set_rng_state(torch_state)


@pytest.fixture(scope="session")
def project_root() -> Path:
    return PROJECT_ROOT


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Return the folder of real MRI (fetal_atlas/, hippocampus/, dicom/), or skip the test."""
    folder = Path(os.environ.get("DROSEG_REAL_DATA") or PROJECT_ROOT.parent / "shared" / "data")
    if not (folder / "hippocampus").is_dir():
        pytest.skip("skipped: real data not found")
    return folder


@pytest.fixture(scope="session")
def copy_bundle() -> Callable[[str, Path], Path]:
    """Return a function that copies a shipped bundle without weights and without what was measured with them."""

    def copy(name: str, target: Path) -> Path:
        measured = shutil.ignore_patterns("*.pt", "SHA256SUMS", "quality.json", "training_statistics.json")
        return Path(shutil.copytree(PROJECT_ROOT / "bundles" / name, target, ignore=measured))

    return copy
