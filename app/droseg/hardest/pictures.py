"""A case in three planes: image, label and prediction, with what the network disputes outlined."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from nibabel.affines import voxel_sizes
from numpy.typing import NDArray
from scipy import ndimage

from droseg.colors import PALETTE
from droseg.hardest.volumes import WholeVolume
from droseg.report.pictures import frame_of, gray_rgb, overlay, to_ras, upright, window

PLANES = ("sagittal", "coronal", "axial")
PANELS = ("image", "label", "prediction")
OUTLINE = np.array([255, 45, 45], dtype=np.uint8)


@dataclass(frozen=True)
class PlanePictures:
    """One slice of a case: its plane, and image, label and prediction as data URIs, in the order of `PANELS`."""

    plane: str
    panels: tuple[str, ...]


def structure_colors(structures: Sequence[str]) -> dict[str, str]:
    """Return structure -> color, as drawn here and in the other reports."""
    return {name: PALETTE[i % len(PALETTE)] for i, name in enumerate(structures)}


def draw_case(
    volume: WholeVolume, sure: NDArray[np.float64], structures: Sequence[str], flagged: bool
) -> list[PlanePictures]:
    """Return a slice in each plane, through most of what the network disputes (if flagged), else of what it got wrong.

    Args:
        volume: the case.
        sure: see `Standards`.
        structures: names of the classes from 1 on.
        flagged: whether its label looks wrong.
    """
    disputed = volume.disputed(sure)
    wrong = volume.label != volume.pred
    arrays, affine = to_ras([volume.image, volume.label, volume.pred, disputed, wrong], volume.affine)
    anything = (arrays[1] > 0) | (arrays[2] > 0)
    values = volume.values(structures)
    result = []
    for axis, plane in enumerate(PLANES):
        others = tuple(a for a in range(3) if a != axis)
        choices = (arrays[3], arrays[4], anything) if flagged else (arrays[4], anything)
        amounts = next((a.sum(axis=others) for a in choices if a.any()), None)
        index = arrays[0].shape[axis] // 2 if amounts is None else int(amounts.argmax())
        spacing = np.delete(voxel_sizes(affine), axis)
        frame = frame_of(np.any(anything, axis=axis), spacing)
        image, label, pred, dispute = (np.take(array, index, axis=axis)[frame] for array in arrays[:4])
        gray = upright(window(image, arrays[0]), spacing, order=1)
        outline = _outline(upright(dispute.astype(np.uint8), spacing, order=0) > 0)
        drawn = [gray_rgb(gray)]
        for labels in (label, pred):
            colors = structure_colors(structures)
            drawn.append(overlay(gray, upright(labels, spacing, order=0), values, colors, worst=""))
        for picture in drawn[:2]:
            picture[outline] = OUTLINE
        result.append(PlanePictures(plane, tuple(_data_uri(picture) for picture in drawn)))
    return result


def _outline(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    return np.asarray(ndimage.binary_dilation(mask, iterations=1) & ~ndimage.binary_erosion(mask, iterations=1))


def _data_uri(rgb: NDArray[np.uint8]) -> str:
    from matplotlib.image import imsave  # slow to import

    buffer = io.BytesIO()
    # noise does not compress as PNG: a page of a dozen cases would be 20 MB
    imsave(buffer, np.ascontiguousarray(rgb), format="jpeg", pil_kwargs={"quality": 88})
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
