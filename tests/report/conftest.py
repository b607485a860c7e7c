"""Tables and a cohort on disk that are small enough to compute by hand."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest

from droseg.data.datalist import Case, Datalist, write_datalist

SPACING_MM = (1.0, 1.0, 3.0)


def random_cases(seed: int = 0, num_cases: int = 24, rare_dice: float = 0.6) -> pd.DataFrame:
    """Return a cases table: two anatomies, two protocols; the last case misses b, and never has c."""
    rng = np.random.default_rng(seed)
    rows = []
    for i in range(num_cases):
        anatomy = "rare" if i % 4 == 3 else "typical"
        for structure in "abc":
            dice = float(np.clip(rng.normal(rare_dice if anatomy == "rare" else 0.85, 0.03), 0.05, 0.99))
            row = {"case_id": f"c{i:02d}", "patient_id": f"p{i:02d}", "structure": structure, "dice": dice}
            row |= {"hd_mm": 30 * (1 - dice), "hd95_mm": 20 * (1 - dice), "assd_mm": 5 * (1 - dice), "nsd": dice}
            row |= {"volume_ref_ml": 10.0, "volume_pred_ml": 9.0}
            rows.append(row | {"anatomy": anatomy, "protocol": f"site_{i % 2}", "diagonal_mm": 150.0})
    table = pd.DataFrame(rows)
    distances, last = ["hd_mm", "hd95_mm", "assd_mm"], table["case_id"] == f"c{num_cases - 1:02d}"
    missed, absent = last & (table["structure"] == "b"), last & (table["structure"] == "c")
    table.loc[missed, ["dice", "nsd", "volume_pred_ml"]] = 0.0
    table.loc[missed, distances] = np.nan
    table.loc[absent, ["dice", "nsd", *distances]] = np.nan
    table.loc[absent, ["volume_ref_ml", "volume_pred_ml"]] = 0.0
    return table


@pytest.fixture
def make_cases() -> Callable[..., pd.DataFrame]:
    return random_cases


@pytest.fixture
def write_csv(tmp_path: Path) -> Callable[..., Path]:
    def write(table: pd.DataFrame, name: str = "run/case_metrics.csv") -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        table.to_csv(path, index=False)
        return path

    return write


def plant_labels() -> np.ndarray:
    """Return a label map of two structures, symmetric in no axis."""
    labels = np.zeros((20, 18, 12), dtype=np.uint8)
    labels[3:10, 4:14, 2:8] = 1
    labels[11:17, 3:9, 5:10] = 5
    return labels


def save_labels(path: Path, labels: np.ndarray, affine: np.ndarray | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    affine = np.diag([*SPACING_MM, 1.0]) if affine is None else affine
    nib.save(nib.Nifti1Image(labels, affine), path)
    return path


@pytest.fixture
def cohort(tmp_path: Path) -> Datalist:
    """Four test cases on disk with images, labels and perfect predictions in `pred/`."""
    cases = []
    for i in range(4):
        labels = np.roll(plant_labels(), i, axis=1)
        label = save_labels(tmp_path / "labels" / f"c{i}.nii.gz", labels)
        image = save_labels(tmp_path / "images" / f"c{i}.nii.gz", labels.astype(np.float32) * 100)
        save_labels(tmp_path / "pred" / f"c{i}_seg.nii.gz", labels)
        cases.append(Case(f"c{i}", f"p{i}", (image,), label, {"anatomy": "rare" if i == 3 else "typical"}))
    datalist = Datalist(
        tmp_path / "datalist.json", ("T1w",), {"anterior": (1,), "posterior": (5,)}, {"testing": tuple(cases)}
    )
    write_datalist(datalist, datalist.path)
    return datalist
