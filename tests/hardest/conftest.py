"""A run whose network is known in closed form: a 1x1x1 convolution that is sure of three intensity levels."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
import yaml

from droseg.data import Case, Datalist, write_datalist

LEVELS = np.array([0.0, 100.0, 200.0])  # background, anterior, posterior
AFFINE = np.diag([-1.0, 1.0, 2.0, 1.0])  # not RAS, not isotropic
SHAPE = (20, 18, 14)


def true_label() -> np.ndarray:
    label = np.zeros(SHAPE, np.uint8)
    label[4:12, 4:14, 2:9] = 1
    label[12:16, 5:12, 3:11] = 2
    return label


def make_case(folder: Path, case_id: str, label: np.ndarray, image: np.ndarray | None = None, **groups: str) -> Case:
    image = LEVELS[true_label()].astype(np.float32) if image is None else image
    paths = folder / f"{case_id}.nii.gz", folder / f"{case_id}_label.nii.gz"
    for path, array in zip(paths, (image, label), strict=True):
        nib.save(nib.Nifti1Image(array, AFFINE), path)
    return Case(case_id, f"patient of {case_id}", (paths[0],), paths[1], groups)


def make_cohort(folder: Path) -> Path:
    """Return a datalist: eight right labels, one without `posterior`, one moved by 6 voxels."""
    folder.mkdir()
    right = true_label()
    labels = {f"right_{i}": right for i in range(8)}
    labels |= {"erased": np.where(right == 2, 0, right).astype(np.uint8), "moved": np.roll(right, 6, axis=1)}
    cases = tuple(
        make_case(folder, case_id, label, anatomy="rare" if case_id == "right_0" else "typical")
        for case_id, label in labels.items()
    )
    path = folder / "datalist.json"
    write_datalist(Datalist(path, ("T1w",), {"anterior": (1,), "posterior": (2,)}, {"training": cases}), path)
    return path


def network_weights(sharpness: float = 30.0) -> dict[str, torch.Tensor]:
    """Return the weights that score level k by -sharpness (x - c_k)^2 up to x^2, c_k the level after z-scoring."""
    image = LEVELS[true_label()]
    levels = (LEVELS - image.mean()) / image.std()
    weight = torch.tensor(2 * sharpness * levels, dtype=torch.float32).reshape(3, 1, 1, 1, 1)
    return {"weight": weight, "bias": torch.tensor(-sharpness * levels**2, dtype=torch.float32)}


@pytest.fixture
def make_run(tmp_path: Path, copy_bundle: Callable[[Path], Path]) -> Callable[..., Path]:
    """Return a function that makes a run folder out of the hippocampus bundle, with the network above."""

    def make(cohort: Path | None = None, name: str = "run", **config: object) -> Path:
        cohort = make_cohort(tmp_path / "cohort") if cohort is None else cohort
        run = copy_bundle(tmp_path / name)
        path = run / "configs" / "train.yaml"
        document = yaml.safe_load(path.read_text())
        document["network_def"] = {
            "_target_": "torch.nn.Conv3d",
            "in_channels": "$len(@channels)",
            "out_channels": "$len(@structures) + 1",
            "kernel_size": 1,
        }
        document |= {"datalist": str(cohort), "spacing_mm": [1.0, 1.0, 2.0], "roi_size": [8, 8, 8], "precision": "fp32"}
        path.write_text(yaml.safe_dump({**document, **config}, sort_keys=False))
        torch.save(network_weights(), run / "models" / "model.pt")
        return run

    return make


@pytest.fixture
def cohort(tmp_path: Path) -> Path:
    return make_cohort(tmp_path / "cohort")
