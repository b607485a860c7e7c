"""A segmented case in three planes, as small PNG files with the letters that a radiologist looks for."""

from __future__ import annotations

import io
import os
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
from nibabel.affines import voxel_sizes
from numpy.typing import NDArray

from droseg.colors import PALETTE
from droseg.data.regions import Structures, label_values
from droseg.inference.writing import TEMPORARY_PREFIX, OutputError
from droseg.report.pictures import gray_rgb, overlay, to_ras, upright, window

PLANES: Final = {"axial": 2, "coronal": 1, "sagittal": 0}
FOLDER: Final = "overview"
_LETTERS: Final = {"axial": "ARPL", "coronal": "SRIL", "sagittal": "SAIP"}  # top, left, bottom, right: radiological
_CONTEXT: Final = 2.5  # times the size of all structures; less of a large image is shown, so that they can be seen
_GRAYS: Final = 48  # colors of a picture: a third of the size, and the noise of a scan hides the steps
_WINDOW_SAMPLES: Final = 1_000_000


def structure_colors(structures: Structures) -> dict[str, str]:
    """Return structure -> color, as drawn here and in all other reports."""
    return {name: PALETTE[index % len(PALETTE)] for index, name in enumerate(structures)}


def case_pictures(
    image: NDArray[Any], labels: NDArray[Any], affine: NDArray[np.float64], structures: Structures
) -> list[tuple[str, bytes]]:
    """Return caption and PNG of an axial, a coronal and a sagittal slice, through most of the segmentation.

    Millimeters are square; the patient's right is on the left, in sagittal slices the front.

    Args:
        image: (C, H, W, D), the first channel is shown; or (H, W, D).
        labels: label values, (H, W, D).
        affine: voxel index -> mm in RAS+, (4, 4).
        structures: name -> label value, or several; regions inside others are drawn over them.
    """
    channel = np.asarray(image)[0] if np.ndim(image) == 4 else np.asarray(image)
    (channel, labels), affine = to_ras([channel, np.asarray(labels)], np.asarray(affine, dtype=np.float64))
    stride = max(1, round((channel.size / _WINDOW_SAMPLES) ** (1 / 3)))
    sample = np.asarray(channel[::stride, ::stride, ::stride], dtype=np.float32)
    values = label_values(structures)
    segmented = np.isin(labels, [value for those in values.values() for value in those])
    result = []
    for plane, axis in PLANES.items():
        others = tuple(a for a in range(3) if a != axis)
        amounts = segmented.sum(axis=others)
        index = int(amounts.argmax()) if amounts.any() else labels.shape[axis] // 2
        spacing = np.delete(voxel_sizes(affine), axis)
        frame = _frame(np.asarray(segmented.any(axis=axis)), spacing)
        gray = upright(window(np.take(channel, index, axis)[frame].astype(np.float32), sample), spacing, order=1)
        drawn = upright(np.take(labels, index, axis)[frame], spacing, order=0)
        picture = overlay(gray, drawn, values, structure_colors(structures), "") if amounts.any() else gray_rgb(gray)
        where = _position(labels.shape, affine, axis, index)
        result.append((f"{plane}, {where}", _png(picture, _LETTERS[plane], where)))
    return result


def save_pictures(out: Path, case_id: str, pictures: Sequence[tuple[str, bytes]]) -> None:
    """Write OUT/overview/CASE_ID_axial.png, ..._coronal.png and ..._sagittal.png, each whole or not at all.

    Raises:
        OutputError: if the folder takes no file.
        ValueError: if the case_id cannot be a file name.
    """
    for plane, (_, content) in zip(PLANES, pictures, strict=True):
        path = picture_path(out, case_id, plane)
        temporary = path.with_name(f"{TEMPORARY_PREFIX}{uuid.uuid4().hex}")
        try:
            path.parent.mkdir(exist_ok=True)
            temporary.write_bytes(content)
            os.replace(temporary, path)
        except OSError as error:
            reason = (error.strerror or str(error)).lower()
            raise OutputError(f"{path}: cannot be written ({reason}); free some space, or mend permissions.") from error
        finally:
            temporary.unlink(missing_ok=True)


def picture_path(out: Path, case_id: str, plane: str) -> Path:
    """Return where a picture lies.

    Raises:
        ValueError: if the case_id cannot be a file name.
    """
    path = out / FOLDER / f"{case_id}_{plane}.png"
    if path.parent != out / FOLDER or case_id.startswith("."):
        raise ValueError(f"case_id {case_id!r} cannot be a file name.")
    return path


def _frame(projection: NDArray[np.bool_], spacing: NDArray[np.float64]) -> tuple[slice, slice]:
    """Return the part of the plane to show: all of it, or `_CONTEXT` times the structures of a large one."""
    if not projection.any():
        return slice(None), slice(None)
    ends = [np.flatnonzero(projection.any(axis=1 - axis))[[0, -1]] for axis in (0, 1)]
    side_mm = _CONTEXT * max((last - first + 1) * step for (first, last), step in zip(ends, spacing, strict=True))
    frame = []
    for (first, last), step, size in zip(ends, spacing, projection.shape, strict=True):
        length = min(size, max(2, round(side_mm / step)))
        start = min(max(0, round((first + last + 1 - length) / 2)), size - length)
        frame.append(slice(start, start + length))
    return frame[0], frame[1]


def _position(shape: Sequence[int], affine: NDArray[np.float64], axis: int, index: int) -> str:
    """Return where the middle of a slice lies, as "S 12 mm"."""
    center = (np.asarray(shape) - 1) / 2
    center[axis] = index
    position = float((affine @ np.append(center, 1))[axis])
    return f"{'LPI'[axis] if position < 0 else 'RAS'[axis]} {abs(position):.0f} mm"


def _png(rgb: NDArray[np.uint8], letters: str, where: str) -> bytes:
    """Return the picture on a black square with its letters (top, left, bottom, right) and its position."""
    from PIL import Image, ImageDraw, ImageFont  # Pillow comes with matplotlib

    height, width = rgb.shape[:2]
    side = max(height, width)  # in a narrow picture the letters would lie on each other
    picture = Image.new("RGB", (side, side))
    picture.paste(Image.fromarray(np.ascontiguousarray(rgb)), ((side - width) // 2, (side - height) // 2))
    draw, font = ImageDraw.Draw(picture), ImageFont.load_default(23)
    places = (((side / 2, 3), "mt"), ((4, side / 2), "lm"), ((side / 2, side - 4), "mb"), ((side - 4, side / 2), "rm"))
    for letter, (place, anchor) in zip(letters, places, strict=True):
        draw.text(place, letter, "white", font, anchor, stroke_width=2, stroke_fill="black")
    small = ImageFont.load_default(19)
    draw.text((4, side - 4), where, "white", small, "lb", stroke_width=2, stroke_fill="black")
    buffer = io.BytesIO()
    picture.quantize(_GRAYS, dither=Image.Dither.NONE).save(buffer, "png", optimize=True)
    return buffer.getvalue()
