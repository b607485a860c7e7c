"""A volume among DICOM files: which slices it consists of, and where they lie in the patient."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class DicomSlice:
    """One slice: an image file, or one frame of a multi-frame file."""

    file: Path
    frame: int | None
    slope: float = 1.0
    intercept: float = 0.0

    def __str__(self) -> str:
        return self.file.name if self.frame is None else f"{self.file.name}, frame {self.frame + 1}"


@dataclass(frozen=True)
class DicomSeries:
    """One volume of a DICOM series.

    Attributes:
        folder: where its first file lies.
        uid: SeriesInstanceUID.
        description: SeriesDescription, else the protocol's name; empty where it repeats the patient's name or ID.
        part: what tells it from other volumes of the same series, such as "EchoTime 4.6".
        slices: in geometric order, along the normal of row x column.
        shape: columns, rows, slices.
        affine: voxel index to mm in RAS+, four rows of four; empty if the slices give none.
        unfit: why it is no candidate for a segmentation, such as "a localizer"; empty if it is one.
        problem: what is wrong with a candidate, and what to do; reading it raises that.
        private: words of the patient's tags, which must not occur in the name of a result.
    """

    folder: Path
    uid: str
    study_uid: str = ""
    modality: str = ""
    number: int | None = None
    description: str = ""
    part: str = ""
    slices: tuple[DicomSlice, ...] = ()
    shape: tuple[int, int, int] = (0, 0, 0)
    affine: tuple[tuple[float, ...], ...] = ()
    unfit: str = ""
    problem: tuple[str, str] | None = None
    private: frozenset[str] = field(default=frozenset(), repr=False)

    @property
    def files(self) -> tuple[Path, ...]:
        """The files, each once, in geometric order."""
        return tuple(dict.fromkeys(item.file for item in self.slices))

    @property
    def label(self) -> str:
        """What a person calls it: number and description; empty for files that could not be read."""
        if not self.uid:
            return ""
        words = [f"series {self.number}" if self.number is not None else "series"]
        words += [f"'{text}'" for text in (self.description, self.part) if text]
        return " ".join(words)

    def __str__(self) -> str:
        return f"{self.folder} [{self.label}]" if self.label else str(self.folder)


def squeezed(text: str) -> str:
    """Return the letters and digits of a text in lower case, so that spellings of a name can be compared."""
    return "".join(character for character in text.casefold() if character.isalnum())


def tells_patient(text: str, private: frozenset[str]) -> bool:
    """Return whether a text contains the patient's name, ID, or a date of the study."""
    whole = squeezed(text)
    return any(word == whole or (len(word) >= 3 and word in whole) for word in private if word)


def common_folder(files: Iterable[Path]) -> Path:
    """Return the deepest folder that holds all files."""
    return Path(os.path.commonpath([str(path.parent) for path in files]))


def affine_rows(affine: NDArray[np.float64]) -> tuple[tuple[float, ...], ...]:
    """Return a matrix as plain values, which can be compared and hashed."""
    return tuple(tuple(float(value) for value in row) for row in affine)
