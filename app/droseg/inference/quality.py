"""What a person should look at in a segmentation, in words. docs/quality_flags.md says what each flag means."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from monai.data import MetaTensor
from numpy.typing import NDArray
from torch import Tensor

from droseg.data.regions import Structures
from droseg.data.statistics import ImageMeasures, StructureMeasures, measure_image, measure_structures
from droseg.errors import BundleError
from droseg.inference.domain import OutOfDomainError, by_axis, check_domain, plain, range_by_axis
from droseg.inference.ranges import TrainingRanges, read_document
from droseg.inference.reading import ORIENTED

__all__ = ["Evidence", "Finding", "Flag", "OutOfDomainError", "QualityRules", "foreground_entropy"]

QUALITY_FILE: Final = "quality.json"
FLAGS: Final = (  # most serious first
    "empty_structure",
    "cut_by_field_of_view",
    "volume_low",
    "volume_high",
    "many_pieces",
    "high_entropy",
    "views_disagree",
    "orientation",
    "spacing",
    "intensity",
)
THRESHOLDS: Final[Mapping[str, float | None]] = {
    "empty_structure": 0.5,  # 1 if empty
    "cut_by_field_of_view": 0.01,  # share of the voxels beyond the largest of the training cases
    "volume_low": 1.0,  # times below the smallest
    "volume_high": 1.0,  # times above the largest
    "many_pieces": 0.01,  # share of the voxels beyond the largest of the training cases
    "high_entropy": None,  # what is usual depends on the network: only a calibration can tell
    "views_disagree": None,
    "orientation": 0.5,  # 1 if unknown
    "spacing": 1.1,  # times outside; resampling headers differ by a few percent
    "intensity": 0.25,  # widths of the training range outside of it: beyond what one more case would do
}
"""A finding is a flag if its score is above; None: never. The calibration of a bundle replaces some."""
UNSURE_BACKGROUND: Final = 0.9
"""Voxels whose probability of background is below count for the entropy: all but what is clearly outside."""


@dataclass(frozen=True)
class Flag:
    """Something about a segmentation that a person should look at; `structure` is empty if it concerns the image."""

    name: str
    structure: str
    message: str

    def __str__(self) -> str:
        return self.message


@dataclass(frozen=True)
class Finding:
    """A flag in waiting: the larger the score, the more unusual; what it counts: `THRESHOLDS`."""

    score: float
    flag: Flag


@dataclass(frozen=True)
class Evidence:
    """What the flags of one case are made from.

    Attributes:
        image: the image on its own grid, (C, H, W, D), with its affine in mm and RAS+.
        labels: label values on the same grid, (H, W, D).
        probabilities: on the network's grid, (K, h, w, d), float: of the classes, background first, or of regions.
        spacing_mm: of the network's grid, (3,).
        disagreement: of the test-time views, mean over the foreground, 0 to 1; None without views.
        overlapping: whether `probabilities` are those of regions, each by itself, without a background.
    """

    image: MetaTensor
    labels: NDArray[Any]
    probabilities: Tensor
    spacing_mm: tuple[float, float, float]
    disagreement: float | None = None
    overlapping: bool = False


class QualityRules:
    """What the training cases look like, and thresholds of the flags, as the bundle carries them.

    What the bundle does not say is not checked.

    Args:
        folder: of the bundle: `training_statistics.json` and `quality.json`, where there are any.
        structures: name -> value in the label map, or several; regions may overlap.

    Attributes:
        thresholds: flag name -> the score above which it is raised; None: never.

    Raises:
        BundleError: if one of the two files cannot be used.
    """

    def __init__(self, folder: Path, structures: Structures) -> None:
        self.folder = folder
        self.structures = dict(structures)
        self.ranges = TrainingRanges(folder)
        self._calibration = read_document(folder / QUALITY_FILE)
        self.thresholds = {**THRESHOLDS, **self._calibrated_thresholds()}

    def check_domain(self, image: MetaTensor) -> None:
        """Refuse an image that the network cannot know, before it is segmented.

        Raises:
            OutOfDomainError: the message says what was found and what the network expects.
        """
        check_domain(image, self.ranges, list(self.structures))

    def flags(self, evidence: Evidence) -> list[Flag]:
        """Return what to look at, most serious first."""
        raised = []
        for finding in self.findings(evidence):
            threshold = self.thresholds[finding.flag.name]
            if threshold is not None and finding.score > threshold:
                message = finding.flag.message + self._record(finding.flag.name)
                raised.append(Flag(finding.flag.name, finding.flag.structure, message))
        return sorted(raised, key=lambda flag: FLAGS.index(flag.name))

    def findings(self, evidence: Evidence) -> list[Finding]:
        """Return all that can be measured on this case, whether it is unusual or not."""
        affine = np.asarray(evidence.image.affine.numpy(), dtype=np.float64)
        found = [
            finding
            for name, measures in measure_structures(evidence.labels, affine, self.structures).items()
            for finding in self._structure_findings(name, measures)
        ]
        entropy = (region_entropy if evidence.overlapping else foreground_entropy)(evidence.probabilities)
        if entropy is not None:
            message = f"the network is unsure of its borders or structures: entropy {entropy:.2f} of 1"
            found.append(Finding(entropy, Flag("high_entropy", "", message)))
        if evidence.disagreement is not None:
            message = f"mirrored views of the image are segmented differently: disagreement {evidence.disagreement:.2f}"
            found.append(Finding(evidence.disagreement, Flag("views_disagree", "", message)))
        if not evidence.image.meta.get(ORIENTED, True):
            message = "the file does not say how the patient lies in it; left and right may be exchanged"
            found.append(Finding(1.0, Flag("orientation", "", message)))
        image = measure_image(evidence.image.as_tensor().numpy(), affine)
        return [*found, *self._image_findings(image)]

    def _structure_findings(self, name: str, measures: StructureMeasures) -> Iterator[Finding]:
        if measures.volume_ml == 0:
            yield Finding(1.0, Flag("empty_structure", name, f"structure {name} is empty{self._presence(name)}"))
            return
        volume = self.ranges.structure(name, "volume_ml")
        if volume is not None:
            low, high = float(volume.low[0]), float(volume.high[0])
            trained = f"in any of the {self.ranges.cases} training cases ({plain(low)} to {plain(high)} ml)"
            less = f"{name}: {plain(measures.volume_ml)} ml is less than {trained}"
            more = f"{name}: {plain(measures.volume_ml)} ml is more than {trained}"
            yield Finding(low / measures.volume_ml, Flag("volume_low", name, less))
            yield Finding(measures.volume_ml / max(high, 1e-12), Flag("volume_high", name, more))
        stray = self.ranges.structure(name, "stray_share")
        if stray is not None:
            message = (
                f"{name} is in {measures.pieces:.0f} pieces, {measures.stray_share:.1%} of it apart from the largest "
                f"(training cases: at most {stray.high[0]:.1%})"
            )
            yield Finding(measures.stray_share - float(stray.high[0]), Flag("many_pieces", name, message))
        border = self.ranges.structure(name, "border_share")
        if border is not None:
            message = (
                f"{name} reaches the edge of the image and may be cut off: {measures.border_share:.1%} of it lies in "
                f"the outermost voxels (training cases: at most {border.high[0]:.1%})"
            )
            score = measures.border_share - float(border.high[0])
            yield Finding(score, Flag("cut_by_field_of_view", name, message))

    def _image_findings(self, image: ImageMeasures) -> Iterator[Finding]:
        spacing = self.ranges.image("spacing_mm")
        if spacing is not None:
            message = (
                f"voxels of {by_axis(image.spacing_mm)} mm (finest edge first) are outside the training range "
                f"{range_by_axis(spacing)} mm"
            )
            yield Finding(spacing.times_outside(image.spacing_mm), Flag("spacing", "", message))
        for measure, least_width, low, high in _INTENSITY:
            expected, values = self.ranges.image(measure), np.atleast_1d(getattr(image, measure))
            if expected is None or expected.low.size != values.size:
                continue
            outside = expected.widths_outside(values, least_width)
            worst = int(np.abs(outside).argmax())
            message = (
                f"{low if outside[worst] < 0 else high} ({measure} {values[worst]:.3g}; "
                f"training cases {expected.low[worst]:.3g} to {expected.high[worst]:.3g})"
            )
            yield Finding(float(np.abs(outside[worst])), Flag("intensity", "", message))

    def _presence(self, name: str) -> str:
        """Return how usual it is that a structure is there, in words."""
        absent, cases = self.ranges.absent(name), self.ranges.cases
        if absent is None or not cases:
            return ""
        there = f"in all {cases} training cases" if absent == 0 else f"in {cases - absent} of {cases} training cases"
        return f"; it is there {there}"

    def _calibrated_thresholds(self) -> dict[str, float | None]:
        thresholds = self._calibration.get("thresholds", {})
        numbers = isinstance(thresholds, dict) and all(
            value is None or isinstance(value, int | float) for value in thresholds.values()
        )
        if not numbers:
            raise BundleError(f"{self.folder / QUALITY_FILE}: its thresholds are no numbers; run `droseg calibrate`.")
        return {name: value for name, value in thresholds.items() if name in THRESHOLDS}

    def _record(self, name: str) -> str:
        """Return how often this flag was right in the calibration, in words; nothing before a calibration."""
        try:
            counts = self._calibration["flags"][name]["all"]
            flagged, hits, below = int(counts["flagged"]), int(counts["hits"]), float(self._calibration["dice_below"])
        except (KeyError, TypeError, ValueError):
            return ""
        if flagged == 0:
            return ""
        return f"; in the calibration {hits} of {flagged} images flagged so had a Dice under {below:g}"


_INTENSITY: Final = (  # measure, least width of its range, what it means to lie below, and above
    ("roughness", 0.01, "the image has less detail than in training", "the image is noisier than in training"),
    ("sharpness", 0.1, "the image is blurrier than in training", "the image is noisier than in training"),
    ("balance", 0.05, "the contrast is not that of the training", "the contrast is not that of the training"),
    ("background_share", 0.1, "less of the image is empty than in training", "more of it is empty than in training"),
)


def foreground_entropy(probabilities: Tensor) -> float | None:
    """Return the mean entropy, 0 to 1 (all classes alike), where background has less than `UNSURE_BACKGROUND`.

    Args:
        probabilities: of the classes, background first, (K, h, w, d).

    Returns:
        None where there is no such voxel.
    """
    inside = probabilities[:, probabilities[0] < UNSURE_BACKGROUND].float()
    if inside.shape[1] == 0 or len(inside) < 2:
        return None
    return float(torch.special.entr(inside).sum(0).mean()) / float(np.log(len(inside)))


def region_entropy(probabilities: Tensor) -> float | None:
    """Return the mean entropy of yes or no, 0 to 1, over the regions, where any of them has more than 0.1.

    Args:
        probabilities: of overlapping regions, without a background, (R, h, w, d).

    Returns:
        None where there is no such voxel.
    """
    inside = probabilities[:, probabilities.amax(dim=0) > 1 - UNSURE_BACKGROUND].float()
    if inside.shape[1] == 0:
        return None
    entropy = torch.special.entr(inside) + torch.special.entr(1 - inside)
    return float(entropy.mean()) / float(np.log(2))
