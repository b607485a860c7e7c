"""Small data sets on disk: straight, anisotropic and masked."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from droseg.data import Case, Datalist, write_datalist

SIZES = {"training": 6, "validation": 4, "testing": 2}


def save_case(
    folder: Path, name: str, shape: Sequence[int], affine: Any, channels: int, structures: int, seed: int, masked: bool
) -> Case:
    """Write boxes side by side along the first axis, of the values 1, 2, ..., in noise; the rest is 0 if masked."""
    generator = np.random.default_rng(seed)
    label = np.zeros(shape, np.uint8)
    third = [max(1, edge // 3) for edge in shape]
    width = max(1, third[0] // structures)
    for index in range(structures):
        start = third[0] + index * width
        label[start : start + width, third[1] : 2 * third[1], third[2] : 2 * third[2]] = index + 1
    images = []
    for channel in range(channels):
        image = (label * 40.0 + generator.normal(100, 5, shape)).astype(np.float32)
        if masked:
            image *= label > 0
        path = folder / f"{name}_{channel}.nii.gz"
        nib.save(nib.Nifti1Image(image, affine), path)
        images.append(path)
    nib.save(nib.Nifti1Image(label, affine), folder / f"{name}_label.nii.gz")
    group = {"site": "ab"[seed % 2]}
    return Case(name, name, tuple(images), folder / f"{name}_label.nii.gz", group)


MakeDatalist = Callable[..., Path]


def written_data(
    folder: Path,
    *,
    shape: Sequence[int] = (18, 20, 14),
    spacing_mm: Sequence[float] = (1.0, 1.0, 1.5),
    affine: Any = None,
    structures: Sequence[str] = ("anterior", "posterior"),
    channels: Sequence[str] = ("T1w",),
    masked: bool = False,
    sizes: dict[str, int] | None = None,
) -> Path:
    """Write a data set and return its datalist."""
    grid = np.diag([*spacing_mm, 1.0]) if affine is None else affine
    sections, seed = {}, 0
    for section, size in (sizes or SIZES).items():
        cases = []
        for index in range(size):
            name = f"{section[:2]}_{index}"
            cases.append(save_case(folder, name, shape, grid, len(channels), len(structures), seed, masked))
            seed += 1
        sections[section] = tuple(cases)
    values = {structure: (index + 1,) for index, structure in enumerate(structures)}
    path = folder / "datalist.json"
    write_datalist(Datalist(path, tuple(channels), values, sections), path)
    return path


@pytest.fixture(scope="session")
def write_data() -> MakeDatalist:
    """Return `written_data`, for fixtures that live longer than a test."""
    return written_data


@pytest.fixture
def make_datalist(tmp_path: Path) -> MakeDatalist:
    """Return a function that writes a data set into a folder of its own and returns its datalist."""

    def make(name: str = "data", **options: Any) -> Path:
        folder = tmp_path / name
        folder.mkdir()
        return written_data(folder, **options)

    return make
