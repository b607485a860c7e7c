"""What the text header of a NRRD or MetaImage file says, checked, and the voxels that it describes.

They are read here and not by ITK: its readers allocate what a header declares, follow any path to a data file, and a
damaged file can end the process, which no `except` catches. The tests compare with ITK as the second reader.
"""

from __future__ import annotations

import bz2
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from droseg.data.grids import Volume, VolumeError, check_size, short

Encoding = Literal["raw", "deflate", "bzip2", "text"]
LPS_TO_RAS: Final = np.diag([-1.0, -1.0, 1.0])


@dataclass(frozen=True)
class TextHeader:
    """Where the voxels lie in the file, and in the patient.

    Attributes:
        sizes: of the axes as they are stored, the fastest first.
        channel_axis: which of them counts channels; None for one channel.
        data_path: the file with the voxels, in the folder of the header.
        offset: of the voxels, in bytes; -1 if they are the last in the file.
        affine: voxel index to mm in RAS+, (4, 4).
    """

    path: Path
    sizes: tuple[int, ...]
    dtype: np.dtype[Any]
    channel_axis: int | None
    encoding: Encoding
    data_path: Path
    offset: int
    affine: NDArray[np.float64]
    oriented: bool = True

    @property
    def shape(self) -> tuple[int, ...]:
        """The sizes of the axes in space."""
        return tuple(size for axis, size in enumerate(self.sizes) if axis != self.channel_axis)


def read_headed_volume(header: TextHeader) -> Volume:
    """Return the voxels that a header describes.

    Raises:
        VolumeError: if there are too few of them, or their compression is damaged.
        OSError: if the file cannot be read.
    """
    stored = header.data_path.stat().st_size - max(header.offset, 0)
    bytes_each = 1 if header.encoding == "text" else header.dtype.itemsize  # a number needs at least one character
    # bzip2 shrinks zeros by more than deflate; 45 MB of them make 1 MB in no format that a scanner writes.
    check_size(str(header.path), header.sizes, bytes_each, stored, header.encoding in ("deflate", "bzip2"))
    count = int(np.prod(header.sizes, dtype=np.int64))
    needed = count * header.dtype.itemsize
    with header.data_path.open("rb") as file:
        file.seek(max(header.offset, 0) if header.offset >= 0 else max(stored - needed, 0))
        content = file.read(needed if header.encoding == "raw" else -1)
    try:
        if header.encoding == "text":
            values = np.array(content.split()[:count], dtype=header.dtype)
        else:
            values = np.frombuffer(_decompress(content, header.encoding, needed), header.dtype)
    except (ValueError, OverflowError, OSError, EOFError, zlib.error) as error:
        raise VolumeError(
            f"{header.path}: the voxels cannot be read ({short(error)}); the file is truncated or damaged",
            "copy or export it again",
        ) from error
    if len(values) < count:
        raise VolumeError(
            f"{header.path}: {len(values)} of {count} voxels; the file is truncated", "copy or export it again"
        )
    array = values.reshape(header.sizes, order="F").astype(header.dtype.newbyteorder("="), copy=False)
    array = array[None] if header.channel_axis is None else np.moveaxis(array, header.channel_axis, 0)
    return Volume(array, header.affine, header.oriented)


def _decompress(content: bytes, encoding: Encoding, needed: int) -> bytes:
    """Return at most `needed` bytes, whatever the content would expand to."""
    if encoding == "raw":
        return content
    if encoding == "bzip2":
        return bz2.BZ2Decompressor().decompress(content, needed)
    return zlib.decompressobj(wbits=47).decompress(content, needed)  # 47: zlib or gzip, as the stream says


def data_file(path: Path, name: str) -> Path:
    """Return the path of a header's data file, which must lie in the same folder.

    Raises:
        VolumeError: if the name leads elsewhere, or stands for several files.
        OSError: if there is no such file.
    """
    first = name.split()[0] if name.split() else ""
    if first.upper() == "LIST" or "%" in name:
        raise VolumeError(f"{path}: its voxels lie in several files", "convert it to one file, such as .nrrd or .mha")
    if not name or name in (".", "..") or any(character in name for character in "/\\\0") or name == path.name:
        raise VolumeError(
            f"{path}: its data file is {name[:100]!r}, which is not beside it; only the same folder is read",
            "put the data file beside the header, and write its bare name there",
        )
    found = path.parent / name
    if not found.is_file():
        raise VolumeError(f"{path}: its data file {name[:100]!r} is not there", "put it beside the header")
    return found


def affine_from_axes(axes: Sequence[Sequence[float]], origin: Sequence[float], to_ras: Any) -> NDArray[np.float64]:
    """Return the affine of axis vectors (one per axis, in mm) and the center of the first voxel."""
    affine = np.eye(4)
    affine[:3, :3] = to_ras @ np.asarray(axes, dtype=np.float64).T
    affine[:3, 3] = to_ras @ np.asarray(origin, dtype=np.float64)
    return affine


def numbers(path: Path, field: str, text: str, count: int) -> list[float]:
    """Return the numbers of a header's field.

    Raises:
        VolumeError: if it holds anything else, or another number of them.
    """
    try:
        values = [float(word) for word in text.split()]
    except ValueError as error:
        raise damaged(path, field, text) from error
    if len(values) != count:
        raise damaged(path, field, text)
    return values


def sizes(path: Path, field: str, text: str, count: int) -> tuple[int, ...]:
    """Return the sizes of the axes.

    Raises:
        VolumeError: if they are not positive whole numbers.
    """
    words = text.split()
    if len(words) != count or not all(word.isascii() and word.isdigit() and len(word) < 10 for word in words):
        raise damaged(path, field, text)
    return tuple(int(word) for word in words)


def damaged(path: Path, field: str, text: str | None) -> VolumeError:
    """Return the error of a header's field that cannot be used."""
    found = "missing" if text is None else f"{text[:60]!r}"
    return VolumeError(f"{path}: in its header `{field}` is {found}", "repair the header, or export the image again")
