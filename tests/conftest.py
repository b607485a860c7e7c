"""What all tests share: real data where it exists, bounded threads, and global random states that do not leak."""

from __future__ import annotations

import importlib
import os
import random
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import settings

if TYPE_CHECKING:
    import numpy as np

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


@pytest.fixture
def seeds(monkeypatch: pytest.MonkeyPatch, project_root: Path) -> ModuleType:
    """Return `scripts/fuzz_seeds.py`, which writes small valid images, or skip where there is no pydicom."""
    pytest.importorskip("pydicom", reason="skipped: pydicom is not installed")
    monkeypatch.syspath_prepend(str(project_root / "scripts"))
    return importlib.import_module("fuzz_seeds")


@pytest.fixture
def write_series(seeds: ModuleType) -> Callable[..., list[Any]]:
    """Return a function that writes an oblique DICOM series, and gives its data sets."""
    import numpy as np

    def write(
        folder: Path,
        count: int = 6,
        names: Sequence[str] = (),
        edit: Callable[[int, Any], None] | None = None,
        seed: int = 0,
        uid: str = "1.2.3.4",
        **tags: Any,
    ) -> list[Any]:
        folder.mkdir(parents=True, exist_ok=True)
        stack = np.random.default_rng(seed).integers(-300, 3000, (count, 9, 10)).astype(np.int16)
        written = []
        for index, pixels in enumerate(stack):
            dataset = seeds.dicom_slice(index, pixels, **tags)
            dataset.SeriesInstanceUID = uid
            dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = f"{uid}.{index + 1}"
            if edit is not None:
                edit(index, dataset)
            dataset.save_as(folder / (names[index] if names else f"IM{index:04d}"), enforce_file_format=True)
            written.append(dataset)
        return written

    return write


@pytest.fixture(scope="session")
def affine_by_hand() -> Callable[[list[Any]], np.ndarray]:
    """Return a function: slices in order -> their affine in RAS, DICOM PS3.3 equation C.7.6.2.1-1 from their tags."""
    import numpy as np

    def affine(slices: list[Any]) -> np.ndarray:
        first, last = slices[0], slices[-1]
        along_row, along_column = np.array(first.ImageOrientationPatient, dtype=float).reshape(2, 3)
        between_rows, between_columns = (float(value) for value in first.PixelSpacing)
        start = np.array(first.ImagePositionPatient, dtype=float)
        step = (np.array(last.ImagePositionPatient, dtype=float) - start) / (len(slices) - 1)
        lps = np.eye(4)
        lps[:3] = np.column_stack([along_row * between_columns, along_column * between_rows, step, start])
        return np.diag([-1, -1, 1, 1]) @ lps

    return affine
