"""Which images a network cannot know: a whole head for a network of crops, or no image at all."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
from monai.data import MetaTensor
from numpy.typing import NDArray

from droseg.data.channels import present_channels
from droseg.data.statistics import ImageMeasures, measure_image
from droseg.inference.ranges import Range, TrainingRanges
from droseg.inference.reading import ImageError

EXTENT_MARGIN: Final = 1.5
"""Times outside the training range. Fields of view of one protocol differ by about as much among themselves; a head is
5 times a crop around one structure, and 2 slices are far less than half of a brain."""
SPACING_MARGIN: Final = 3.0
"""Times the coarsest training voxel: one voxel is then 3 in a row of what the network knows."""
MASKED_SHARE: Final = 0.1
"""Of the voxels of every training image that are background, from which on they count as masked (skull-stripped)."""
AXES: Final = "left-right x back-front x down-up"


class OutOfDomainError(ImageError):
    """An image that the network cannot know; `force` segments it all the same."""


def check_domain(image: MetaTensor, ranges: TrainingRanges, structures: Sequence[str]) -> None:
    """Refuse an image that is constant, or far from the training cases in extent, spacing or masking.

    Raises:
        OutOfDomainError: the message says what was found and what the network expects.
    """
    array = image.as_tensor().numpy()
    present = present_channels(image)
    for index, channel in enumerate(array):
        if present[index] and channel.min() == channel.max():
            which = f"channel {index}" if len(array) > 1 else "the image"
            raise OutOfDomainError(
                f"{which} has no contrast: all voxels are {float(channel.flat[0]):g}",
                "check the export, or give --force (in Python: force=True)",
            )
    measures = measure_image(array, image.affine.numpy())
    _check_masking(measures, ranges)
    _check_extent(measures, ranges, structures)
    coarsest = ranges.image("spacing_mm")
    if coarsest is not None and max(measures.spacing_mm) > SPACING_MARGIN * coarsest.high.max():
        raise OutOfDomainError(
            f"voxels of {by_axis(measures.spacing_mm)} mm; the network was trained on voxels of at most "
            f"{plain(coarsest.high.max())} mm",
            "give a scan of higher resolution, or --force (in Python: force=True)",
        )


def is_masked(ranges: TrainingRanges) -> bool:
    """Return whether all training images are masked, as skull-stripped ones are."""
    share = ranges.image("background_share")
    return share is not None and float(share.low[0]) >= MASKED_SHARE


def _check_masking(measures: ImageMeasures, ranges: TrainingRanges) -> None:
    share = ranges.image("background_share")
    if share is not None and is_masked(ranges) and measures.background_share < share.low[0] / 10:
        raise OutOfDomainError(
            f"{measures.background_share:.1%} of the voxels are background; the network was trained on masked images "
            f"(skull-stripped, {share.low[0]:.0%} to {share.high[0]:.0%} background)",
            "mask the image (all but the brain to 0), or --force (in Python: force=True)",
        )


def _check_extent(measures: ImageMeasures, ranges: TrainingRanges, structures: Sequence[str]) -> None:
    # What lies around a masked brain says nothing; in an unmasked image all of the field of view reaches the network.
    masked = is_masked(ranges)
    expected = ranges.image("foreground_mm" if masked else "extent_mm")
    found = measures.foreground_mm if masked else measures.extent_mm
    if expected is None or expected.times_outside(found) <= EXTENT_MARGIN:
        return
    larger = bool((np.asarray(found) > EXTENT_MARGIN * expected.high).any())
    what, trained = ("tissue in a box", "masked images with a box") if masked else ("field of view", "images")
    remedy = f"crop the image to that around {_list(structures)}" if larger else "give an image of all of that region"
    raise OutOfDomainError(
        f"{what} of {by_axis(found)} mm ({AXES}); the network was trained on {trained} of {range_by_axis(expected)} mm "
        f"with {_list(structures)}",
        f"{remedy}, or --force (in Python: force=True)",
    )


def _list(names: Sequence[str], shown: int = 4) -> str:
    more = f" and {len(names) - shown} more" if len(names) > shown else ""
    return ", ".join(names[:shown]) + more


def plain(value: float) -> str:
    """Return a number with three digits, never with an exponent where a person would not write one."""
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


def by_axis(values: Sequence[float] | NDArray[Any]) -> str:
    """Return "1 x 1 x 3"."""
    return " x ".join(plain(float(value)) for value in values)


def range_by_axis(expected: Range) -> str:
    """Return "31-43 x 40-59 x 24-47"; one number where both ends are alike."""
    ends = [(plain(low), plain(high)) for low, high in zip(expected.low, expected.high, strict=True)]
    return " x ".join(low if low == high else f"{low}-{high}" for low, high in ends)
