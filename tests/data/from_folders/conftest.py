"""Small studies on disk, as people keep them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from droseg.cli import main


class Study:
    """A folder `study` with images and labels, beside it `datalist.json`; each test spoils what it is about."""

    def __init__(self, root: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.root = root / "study"
        self.root.mkdir()
        self.out_path = root / "datalist.json"
        self._capsys = capsys
        self.out = self.err = ""

    def image(self, name: str, spacing_mm: Sequence[float] = (1, 1, 1), x_mm: float = 0, **tags: Any) -> Path:
        """Write an image of 24 mm, and its sidecar if there are tags."""
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        affine = np.diag([*spacing_mm, 1.0])
        affine[0, 3] = x_mm
        shape = tuple(round(24 / edge) for edge in spacing_mm)
        nib.save(nib.Nifti1Image(np.random.default_rng(0).normal(size=shape).astype(np.float32), affine), path)
        if tags:
            path.with_name(path.name.removesuffix(".nii.gz") + ".json").write_text(json.dumps(tags))
        return path

    def label(self, name: str, values: Sequence[int] = (1, 2), spacing_mm: Sequence[float] = (1, 1, 1)) -> Path:
        """Write a label with one slab of each value, 2 voxels thick."""
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        array = np.zeros(tuple(round(24 / edge) for edge in spacing_mm), np.uint8)
        for index, value in enumerate(values):
            array[2 + 2 * index : 4 + 2 * index] = value
        nib.save(nib.Nifti1Image(array, np.diag([*spacing_mm, 1.0])), path)
        return path

    def case(self, subject: str, channels: Sequence[str] = ("T2w",), **image: Any) -> None:
        """Write images and a label as `SUBJECT_CHANNEL.nii.gz` and `SUBJECT_seg.nii.gz`."""
        for channel in channels:
            self.image(f"{subject}_{channel}.nii.gz", **image)
        self.label(f"{subject}_seg.nii.gz", spacing_mm=image.get("spacing_mm", (1, 1, 1)))

    def table(self, *lines: str, name: str = "table.csv", encoding: str = "utf-8") -> Path:
        """Write a table beside the study."""
        path = self.root.parent / name
        path.write_bytes("\n".join([*lines, ""]).encode(encoding))
        return path

    def new(self, *options: str | Path, files: bool = True, structures: bool = True) -> int:
        """Run `droseg data new` and return its exit code; `out` and `err` are what it wrote."""
        words = ["data", "new", str(self.root), "--out", str(self.out_path), *map(str, options)]
        if files:
            words += ["--image", "T2w={subject}_T2w.nii.gz", "--label", "{subject}_seg.nii.gz"]
        if structures:
            words += ["--structure", "x=1", "--structure", "y=2"]
        self._capsys.readouterr()
        code = main(words)
        self.out, self.err = self._capsys.readouterr()
        return code

    @property
    def document(self) -> dict[str, Any]:
        """What was written."""
        found: dict[str, Any] = json.loads(self.out_path.read_text())
        return found

    def groups(self, axis: str, section: str = "training") -> dict[str, str]:
        """Return case_id -> group."""
        return {entry["case_id"]: entry["groups"][axis] for entry in self.document[section]}


@pytest.fixture
def study(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Study:
    return Study(tmp_path, capsys)
