"""A cohort of small real NIfTI files and a network small enough to train in seconds."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from droseg.data import Case, Datalist, read_datalist, write_datalist


def write_case(folder: Path, case_id: str, seed: int, group: str) -> Case:
    """Two touching boxes in noise on an oblique grid of 1 x 1 x 1.5 mm; values 1 and 2 as in the hippocampus data."""
    generator = np.random.default_rng(seed)
    label = np.zeros((18, 20, 14), np.uint8)
    x, y, z = generator.integers(3, 6, 3)
    label[x : x + 6, y : y + 6, z : z + 5] = 1
    label[x : x + 6, y + 6 : y + 12, z : z + 5] = 2
    image = (label * 40.0 + generator.normal(100, 5, label.shape)).astype(np.float32)
    affine = np.array([[-0.98, 0.2, 0, 5], [0.2, 0.98, 0, -7], [0, 0, 1.5, 3], [0, 0, 0, 1]])
    affine[:3, :2] /= np.linalg.norm(affine[:3, 0])
    paths = folder / f"{case_id}.nii.gz", folder / f"{case_id}_label.nii.gz"
    nib.save(nib.Nifti1Image(image, affine), paths[0])
    nib.save(nib.Nifti1Image(label, affine), paths[1])
    return Case(case_id, case_id, (paths[0],), paths[1], {"anatomy": group})


@pytest.fixture
def cohort(tmp_path: Path) -> Path:
    """Return the datalist of 6 training, 3 validation and 3 testing cases in two groups."""
    folder = tmp_path / "cohort"
    folder.mkdir()
    sizes = {"training": 6, "validation": 3, "testing": 3}
    sections = {
        section: tuple(
            write_case(folder, f"{section[:2]}_{i}", 100 * s + i, "rare" if i % 3 == 0 else "typical")
            for i in range(size)
        )
        for s, (section, size) in enumerate(sizes.items())
    }
    path = folder / "datalist.json"
    write_datalist(Datalist(path, ("T1w",), {"anterior": (1,), "posterior": (2,)}, sections), path)
    assert len(read_datalist(path).section("training")) == 6
    return path
