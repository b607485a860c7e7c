"""The header of a MetaImage file, as https://itk.org/Wiki/ITK/MetaIO/Documentation describes it."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import numpy as np

from droseg.data.grids import VolumeError
from droseg.data.text_header import (
    LPS_TO_RAS,
    Encoding,
    TextHeader,
    affine_from_axes,
    damaged,
    data_file,
    numbers,
    sizes,
)

METAIMAGE_SUFFIXES: Final = (".mha", ".mhd")

_MAX_HEADER: Final = 1 << 16  # bytes
_TYPES: Final = {
    "MET_CHAR": "i1",
    "MET_UCHAR": "u1",
    "MET_SHORT": "i2",
    "MET_USHORT": "u2",
    "MET_INT": "i4",
    "MET_UINT": "u4",
    "MET_LONG": "i4",  # 4 bytes wherever it was written, says MetaIO
    "MET_ULONG": "u4",
    "MET_LONG_LONG": "i8",
    "MET_ULONG_LONG": "u8",
    "MET_FLOAT": "f4",
    "MET_DOUBLE": "f8",
}
_DATA_FILE: Final = "ElementDataFile"


def read_metaimage_header(path: Path) -> TextHeader:
    """Return what a MetaImage file says about its voxels.

    Raises:
        VolumeError: if it is not one, or says what cannot be or is not read here.
        OSError: if the file cannot be read.
    """
    fields, end = _fields(path)
    if fields.get("ObjectType", "Image") != "Image":
        raise damaged(path, "ObjectType", fields["ObjectType"])
    dimension = sizes(path, "NDims", fields.get("NDims", ""), 1)[0]
    if dimension not in (3, 4):
        raise VolumeError(f"{path}: an image of {dimension} dimensions", "a 3D volume is needed")
    size = sizes(path, "DimSize", fields.get("DimSize", ""), dimension)
    channels = sizes(path, "ElementNumberOfChannels", fields.get("ElementNumberOfChannels", "1"), 1)[0]
    if channels > 1 and dimension == 4:
        raise VolumeError(f"{path}: a 4D image with {channels} numbers per voxel", "a 3D volume is needed")
    channel_axis = 0 if channels > 1 else 3 if dimension == 4 else None
    local = fields[_DATA_FILE].upper() == "LOCAL"
    encoding = _encoding(path, fields)
    matrix = _one_of(path, fields, ("TransformMatrix", "Orientation", "Rotation"), dimension**2, np.eye(dimension))
    return TextHeader(
        path=path,
        sizes=(channels, *size) if channels > 1 else size,
        dtype=_dtype(path, fields, encoding),
        channel_axis=channel_axis,
        encoding=encoding,
        data_path=path if local else data_file(path, fields[_DATA_FILE]),
        offset=_offset(path, fields, end if local else 0, encoding),
        affine=_affine(path, fields, dimension, matrix.reshape(dimension, dimension)),
        oriented=any(name in fields for name in ("TransformMatrix", "Orientation", "Rotation")),
    )


def _fields(path: Path) -> tuple[dict[str, str], int]:
    """Return the fields, and where the header ends: behind the line of the data file."""
    fields: dict[str, str] = {}
    with path.open("rb") as file:
        while _DATA_FILE not in fields:
            line = file.readline(_MAX_HEADER)
            name, separator, value = line.decode("latin-1").partition("=")
            if not line or file.tell() > _MAX_HEADER or not separator or len(name) > 60:
                raise VolumeError(
                    f"{path}: not an image that can be read (no MetaImage header)", "copy or export it again"
                )
            name = name.strip()
            if name in fields:
                raise damaged(path, name, value.strip())
            fields[name] = value.strip()
        return fields, file.tell()


def _is_true(path: Path, fields: dict[str, str], name: str, default: str) -> bool:
    value = fields.get(name, default)
    if value[:1].upper() not in ("T", "F", "1", "0"):
        raise damaged(path, name, value)
    return value[0].upper() in "T1"


def _encoding(path: Path, fields: dict[str, str]) -> Encoding:
    if not _is_true(path, fields, "BinaryData", "True"):
        return "text"
    return "deflate" if _is_true(path, fields, "CompressedData", "False") else "raw"


def _dtype(path: Path, fields: dict[str, str], encoding: Encoding) -> np.dtype[Any]:
    text = fields.get("ElementType")
    if text not in _TYPES:
        raise damaged(path, "ElementType", text)
    big = _is_true(path, fields, "ElementByteOrderMSB", fields.get("BinaryDataByteOrderMSB", "False"))
    dtype = np.dtype(_TYPES[text])
    return dtype if encoding == "text" else dtype.newbyteorder(">" if big else "<")


def _offset(path: Path, fields: dict[str, str], start: int, encoding: Encoding) -> int:
    text = fields.get("HeaderSize", "0")
    if text == "-1" and encoding == "raw":
        return -1
    if text == "0" or (start == 0 and text.isascii() and text.isdigit() and len(text) < 10):
        return start + int(text)
    raise damaged(path, "HeaderSize", text)


def _one_of(path: Path, fields: dict[str, str], names: tuple[str, ...], count: int, default: Any) -> Any:
    for name in names:
        if name in fields:
            return np.array(numbers(path, name, fields[name], count))
    if default is None:
        raise damaged(path, names[0], None)
    return np.asarray(default)


def _affine(path: Path, fields: dict[str, str], dimension: int, matrix: Any) -> Any:
    """Return the affine of the first three axes; the rows of the matrix are the directions of the axes, in LPS."""
    spacing = _one_of(path, fields, ("ElementSpacing", "ElementSize"), dimension, None)
    origin = _one_of(path, fields, ("Offset", "Position", "Origin"), dimension, np.zeros(dimension))
    return affine_from_axes(matrix[:3, :3] * spacing[:3, None], origin[:3], LPS_TO_RAS)
