"""What a network says of one training case, whole and not augmented, beside what the label says."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from monai.data.utils import affine_to_spacing
from numpy.typing import NDArray

from droseg.data.regions import code_values
from droseg.hardest.disagreement import BINS, Disagreement, far_places, find_disagreement

BAND_VOXELS = 2.0
"""Border within which label and network may differ without anyone being wrong, in the longest edge of a voxel."""


@dataclass(frozen=True)
class WholeVolume:
    """A case on the network's grid, classes that exclude each other by number, 0 the background.

    Attributes:
        image: first channel, (H, W, D), float32.
        label: (H, W, D).
        pred: most probable class, (H, W, D).
        probability: of the most probable class, (H, W, D), float32.
        affine: (4, 4), voxel index -> mm.
        loss: of the whole volume.
        self_confidence: see `Disagreement`.
    """

    image: NDArray[np.float32]
    label: NDArray[np.integer]
    pred: NDArray[np.integer]
    probability: NDArray[np.float32]
    affine: NDArray[np.float64]
    loss: float
    self_confidence: NDArray[np.float64]

    @property
    def spacing_mm(self) -> NDArray[np.float64]:
        """Edges of a voxel, (3,)."""
        return np.asarray(affine_to_spacing(self.affine), dtype=np.float64)

    @property
    def band_mm(self) -> float:
        """Distance that counts as the border; a little more than the voxels, so that rounding decides nothing."""
        return BAND_VOXELS * float(self.spacing_mm.max()) * (1 + 1e-3)

    def disputed(self, threshold: NDArray[np.float64]) -> NDArray[np.bool_]:
        """Return where the network is sure of another structure, far from the border, (H, W, D)."""
        sure = self.probability >= threshold[self.pred]
        return far_places(self.pred, self.label, sure, self.spacing_mm, self.band_mm)

    def values(self, structures: Sequence[str]) -> dict[str, tuple[int, ...]]:
        """Return structure -> its values in `label` and `pred`."""
        return {name: (value,) for value, name in enumerate(structures, start=1)}

    def disagreement(self) -> Disagreement:
        """Return where label and network disagree."""
        return find_disagreement(
            self.pred, self.probability, self.label, self.self_confidence, self.spacing_mm, self.band_mm
        )


@dataclass(frozen=True)
class RegionVolume(WholeVolume):
    """A case of regions that may overlap: each of them by itself, against all that is outside of it.

    `label` and `pred` tell all R regions at once (`droseg.data.regions.region_codes`), `probability` is that of each
    region, (R, H, W, D), and class 0 of `self_confidence` is the outside of the regions, all taken together.
    """

    def values(self, structures: Sequence[str]) -> dict[str, tuple[int, ...]]:
        """Return region -> its values in `label` and `pred`."""
        found = code_values(structures, self.label.astype(np.int64), self.pred.astype(np.int64))
        return {name: key if isinstance(key, tuple) else (key,) for key, name in found.items()}

    def disputed(self, threshold: NDArray[np.float64]) -> NDArray[np.bool_]:
        """Return where the network is sure that the label is wrong on a region, far from its border, (H, W, D)."""
        result = np.zeros(self.label.shape, dtype=bool)
        for region in range(len(self.probability)):
            pred, probability, label = self._of(region)
            sure = probability >= np.where(pred > 0, threshold[region + 1], threshold[0])
            result |= far_places(pred, label, sure, self.spacing_mm, self.band_mm)
        return result

    def disagreement(self) -> Disagreement:
        """Return where label and network disagree: on region i, at [i, 0] where it is labelled, else at [0, i]."""
        count = len(self.probability)
        label_ml, far_ml = np.zeros(count + 1), np.zeros((count + 1, count + 1, BINS))
        for region in range(count):
            pred, probability, label = self._of(region)
            confidence = self.self_confidence[[0, region + 1]]
            one = find_disagreement(pred, probability, label, confidence, self.spacing_mm, self.band_mm)
            label_ml[[0, region + 1]] += one.label_ml
            far_ml[0, region + 1], far_ml[region + 1, 0] = one.far_ml[0, 1], one.far_ml[1, 0]
        return Disagreement(label_ml, self.self_confidence, far_ml, overlapping=True)

    def _of(self, region: int) -> tuple[NDArray[np.uint8], NDArray[np.float32], NDArray[np.uint8]]:
        """Return prediction, probability of what is predicted, and label of one region against its outside."""
        inside = self.probability[region]
        pred, label = (
            (np.asarray(codes, dtype=np.int64) >> region & 1).astype(np.uint8) for codes in (self.pred, self.label)
        )
        return pred, np.where(pred > 0, inside, 1 - inside), label
