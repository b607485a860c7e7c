"""What a person should look at in a segmentation, in words; and which images the network cannot know."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from monai.data import MetaTensor
from numpy.typing import NDArray
from torch import Tensor

from droseg.inference.reading import ImageError


@dataclass(frozen=True)
class Flag:
    """Something about a segmentation that a person should look at."""

    name: str
    structure: str
    message: str

    def __str__(self) -> str:
        return self.message


class OutOfDomainError(ImageError):
    """An image that the network cannot know; `force` segments it all the same."""


@dataclass(frozen=True)
class Evidence:
    """What the flags of one case are made from.

    Attributes:
        image: the image on its own grid, (C, H, W, D), with its affine in mm and RAS+.
        labels: label values on the same grid, (H, W, D).
        probabilities: of the classes (background first) on the network's grid, (K, h, w, d), float.
        spacing_mm: of the network's grid, (3,).
        disagreement: of the test-time views, mean over the foreground, 0 to 1; None without views.
    """

    image: MetaTensor
    labels: NDArray[Any]
    probabilities: Tensor
    spacing_mm: tuple[float, float, float]
    disagreement: float | None = None


class QualityRules:
    """What the training cases look like, and thresholds of the flags, as the bundle carries them.

    Args:
        folder: of the bundle: `training_statistics.json` and `quality.json`, where there are any.
        structures: name -> value in the label map.
    """

    def __init__(self, folder: Path, structures: Mapping[str, int]) -> None:
        self.folder = folder
        self.structures = dict(structures)

    def check_domain(self, image: MetaTensor) -> None:
        """Refuse an image that the network cannot know, before it is segmented.

        Raises:
            OutOfDomainError: the message says what was found and what the network expects.
        """

    def flags(self, evidence: Evidence) -> list[Flag]:
        """Return what to look at, most serious first."""
        present = set(np.unique(evidence.labels).tolist())
        return [
            Flag("empty_structure", name, f"structure {name} is empty")
            for name, value in self.structures.items()
            if value not in present
        ]
