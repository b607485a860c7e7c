"""Where patches are cut, and how they are turned: what the form of patch and image decides of the augmentation."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from droseg.plan.fingerprint import Fingerprint
from droseg.plan.patch import Fit
from droseg.plan.spacing import ANISOTROPY, AXES

COVERING = 0.75
"""Share of the median image from which on a patch cut anywhere holds nearly every structure."""
ROTATION, SCALING = 0.3, 0.2
SHIFT = 4


def augmentation_choices(
    fingerprint: Fingerprint, fit: Fit, median: NDArray[np.float64], regions: bool = False
) -> list[tuple[str, Any, str]]:
    """Return (key, value, reason): `crop`, `rotate_range`, `scale_range`, `translate_range`.

    Args:
        fingerprint: of the training cases.
        fit: the patch.
        median: shape of the median image on the target grid, (3,); of the box around what is not 0 if the training cuts
            patches from that.
        regions: whether structures may overlap; a case without any has no center for a patch.
    """
    patch = np.array(fit.patch, dtype=float)
    covered = np.minimum(patch / median, 1.0)
    share = float(covered.prod())
    smallest = min(fingerprint.structures, key=lambda name: np.nan_to_num(fingerprint.median_ml(name), nan=np.inf))
    rare = f"the smallest, {smallest}, has {fingerprint.median_ml(smallest):.3g} ml"
    if regions:
        crop = (
            "uniform",
            f"anywhere, for a case may lack every region; a patch holds {100 * share:.0f} % of the image",
        )
        shift = [0, 0, 0]
    elif share >= COVERING:
        crop = (
            "uniform",
            f"anywhere: a patch holds {100 * share:.0f} % of the median image, and so nearly every structure",
        )
        shift = [int(min(SHIFT, size // 8)) for size in patch]
    else:
        crop = (
            "classes",
            f"every structure, and the background, is the center of as many patches: a patch holds {100 * share:.0f} % "
            f"of the median image, and {rare}",
        )
        shift = [0, 0, 0]
    rows: list[tuple[str, Any, str]] = [("crop", *crop)]
    flat = int(np.argmin(patch))
    if patch.max() > ANISOTROPY * patch.min():
        size = " x ".join(map(str, fit.patch))
        why = f"in the plane only: the patch is {size}, thin {AXES[flat]} (nnU-Net: from 3 times)"
        rotation = [ROTATION if axis == flat else 0.0 for axis in range(3)]
        scaling = [0.0 if axis == flat else SCALING for axis in range(3)]
    else:
        why, rotation, scaling = "about all axes", [ROTATION] * 3, [SCALING] * 3
    rows += [
        ("rotate_range", rotation, f"radians, {why}"),
        ("scale_range", scaling, why.replace("about", "along")),
        (
            "translate_range",
            shift,
            "voxels; " + ("an eighth of the patch at most" if any(shift) else "none: crops move already"),
        ),
    ]
    return rows
