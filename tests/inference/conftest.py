"""A bundle whose answer is known in closed form: a 1x1x1 convolution that names three intensity levels."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
import yaml

LEVELS = (0.0, 100.0, 200.0)  # background, anterior, posterior
VALUES = {"anterior": 3, "posterior": 7}


def plant_levels(shape: tuple[int, int, int] = (24, 20, 16)) -> tuple[np.ndarray, np.ndarray]:
    """Return an image of three levels and the label map that a perfect network gives; no axis is symmetric."""
    label = np.zeros(shape, dtype=np.uint8)
    label[3:12, 4:16, 2:9] = VALUES["anterior"]
    label[12:17, 4:10, 2:13] = VALUES["posterior"]
    image = np.select([label == VALUES["anterior"], label == VALUES["posterior"]], LEVELS[1:], LEVELS[0])
    return image.astype(np.float32), label


def save_nifti(path: Path, array: np.ndarray, affine: np.ndarray | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(array, np.eye(4) if affine is None else affine), path)
    return path


def nearest_level_weights(image: np.ndarray, channels: int = 1) -> dict[str, torch.Tensor]:
    """Return the weights that score level k by -(x - c_k)^2 up to x^2, c_k: the level after z-scoring `image`."""
    levels = (np.asarray(LEVELS) - image.mean()) / image.std()
    weight = np.zeros((3, channels, 1, 1, 1))
    weight[:, 0, 0, 0, 0] = 2 * levels
    return {"weight": torch.tensor(weight, dtype=torch.float32), "bias": torch.tensor(-(levels**2)).float()}


@pytest.fixture
def plant() -> Callable[..., tuple[np.ndarray, np.ndarray]]:
    return plant_levels


@pytest.fixture
def save() -> Callable[..., Path]:
    return save_nifti


@pytest.fixture
def make_bundle(tmp_path: Path, copy_bundle: Callable[[str, Path], Path]) -> Callable[..., Path]:
    """Return a function that makes a run folder out of the hippocampus bundle, with the network above."""

    def make(name: str = "run", image: np.ndarray | None = None, **config: object) -> Path:
        bundle = tmp_path / name
        copy_bundle("hippocampus_mri", bundle)
        path = bundle / "configs" / "inference.yaml"
        document = yaml.safe_load(path.read_text())
        channels = len(document["channels"] if "channels" not in config else config["channels"])  # type: ignore[arg-type]
        document["structures"] = VALUES
        document["network_def"] = {
            "_target_": "torch.nn.Conv3d",
            "in_channels": "$len(@channels)",
            "out_channels": "$len(@structures) + 1",
            "kernel_size": 1,
        }
        document |= config
        path.write_text(yaml.safe_dump(document, sort_keys=False))
        weights = nearest_level_weights(plant_levels()[0] if image is None else image, channels)
        torch.save(weights, bundle / "models" / "model.pt")
        return bundle

    return make
