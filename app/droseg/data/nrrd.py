"""The header of a NRRD file, as https://teem.sourceforge.net/nrrd/format.html defines it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Final

import numpy as np

from droseg.data.grids import VolumeError
from droseg.data.text_header import LPS_TO_RAS, TextHeader, affine_from_axes, damaged, data_file, numbers, sizes

NRRD_SUFFIXES: Final = (".nrrd", ".nhdr")

_MAX_HEADER: Final = 1 << 20  # bytes; Slicer writes some hundred
_TYPES: Final = {
    **dict.fromkeys(("signed char", "int8", "int8_t"), "i1"),
    **dict.fromkeys(("uchar", "unsigned char", "uint8", "uint8_t"), "u1"),
    **dict.fromkeys(("short", "short int", "signed short", "signed short int", "int16", "int16_t"), "i2"),
    **dict.fromkeys(("ushort", "unsigned short", "unsigned short int", "uint16", "uint16_t"), "u2"),
    **dict.fromkeys(("int", "signed int", "int32", "int32_t"), "i4"),
    **dict.fromkeys(("uint", "unsigned int", "uint32", "uint32_t"), "u4"),
    **dict.fromkeys(("longlong", "long long", "long long int", "int64", "int64_t"), "i8"),
    **dict.fromkeys(("signed long long", "signed long long int"), "i8"),
    **dict.fromkeys(("ulonglong", "unsigned long long", "unsigned long long int", "uint64", "uint64_t"), "u8"),
    "float": "f4",
    "double": "f8",
}
_ENCODINGS: Final[dict[str, Any]] = {
    "raw": "raw",
    **dict.fromkeys(("gzip", "gz"), "deflate"),
    **dict.fromkeys(("bzip2", "bz2"), "bzip2"),
    **dict.fromkeys(("ascii", "text", "txt"), "text"),
}
_TO_RAS: Final = {
    **dict.fromkeys(("left-posterior-superior", "lps"), LPS_TO_RAS),
    **dict.fromkeys(("right-anterior-superior", "ras"), np.eye(3)),
    **dict.fromkeys(("left-anterior-superior", "las"), np.diag([-1.0, 1.0, 1.0])),
}
_SPACE_KINDS: Final = ("domain", "space")
_CHANNEL_KINDS: Final = ("list", "vector", "time", "point", "covariant-vector", "normal", "stub", "scalar")
_TWO_OR_MORE_NUMBERS: Final = re.compile(r"\d+-vector")
_VECTOR: Final = re.compile(r"\(([^()]*)\)|none", re.IGNORECASE)


def read_nrrd_header(path: Path) -> TextHeader:
    """Return what a NRRD file says about its voxels.

    Raises:
        VolumeError: if it is not one, or says what cannot be or is not read here.
        OSError: if the file cannot be read.
    """
    fields, end = _fields(path)
    dimension = sizes(path, "dimension", fields.get("dimension", ""), 1)[0]
    if dimension not in (3, 4):
        raise VolumeError(f"{path}: an image of {dimension} dimensions", "a 3D volume is needed")
    size = sizes(path, "sizes", fields.get("sizes", ""), dimension)
    kinds = fields.get("kinds", "").lower().split() or ["???"] * dimension
    directions = _directions(path, fields, dimension)
    channel_axis = _channel_axis(path, kinds, directions)
    axes = [vector for axis, vector in enumerate(directions) if axis != channel_axis]
    if any(vector is None for vector in axes):
        raise damaged(path, "space directions", fields.get("space directions"))
    space = fields.get("space", "").lower()
    origin = [0.0, 0.0, 0.0]
    if "space origin" in fields:
        origin = numbers(path, "space origin", re.sub(r"[(),]", " ", fields["space origin"]), 3)
    encoding = _known(path, "encoding", fields, _ENCODINGS)
    data_path, offset = _data(path, fields, end, encoding)
    return TextHeader(
        path=path,
        sizes=size,
        dtype=_dtype(path, fields, encoding),
        channel_axis=channel_axis,
        encoding=encoding,
        data_path=data_path,
        offset=offset,
        affine=affine_from_axes([vector for vector in axes if vector is not None], origin, _to_ras(space)),
        oriented=space in _TO_RAS and "space directions" in fields,
    )


def _to_ras(space: str) -> Any:
    return _TO_RAS.get(space, LPS_TO_RAS)  # an unknown space is LPS, as ITK takes it


def _fields(path: Path) -> tuple[dict[str, str], int]:
    """Return the fields by their lower-case names, and where the header ends."""
    fields: dict[str, str] = {}
    with path.open("rb") as file:
        if not re.match(rb"NRRD000\d\r?$", file.readline(16).rstrip(b"\n")):
            raise VolumeError(f"{path}: not an image that can be read (it does not start as NRRD)", "export it again")
        while file.tell() < _MAX_HEADER:
            line = file.readline(_MAX_HEADER)
            if not line.strip(b"\r\n"):
                break
            text = line.decode("latin-1").strip()
            name, separator, value = text.partition(":")
            if text.startswith("#") or value.startswith("="):  # a comment; a key/value pair, which says nothing here
                continue
            name = name.strip().lower()
            if not separator or name in fields:
                raise damaged(path, name[:60], value if separator else None)
            fields[name] = value.strip()
        else:
            raise VolumeError(f"{path}: its header does not end", "export the image again")
        return fields, file.tell()


def _known(path: Path, name: str, fields: dict[str, str], values: dict[str, Any]) -> Any:
    text = fields.get(name)
    if text is None or text.lower() not in values:
        raise damaged(path, name, text)
    return values[text.lower()]


def _dtype(path: Path, fields: dict[str, str], encoding: str) -> np.dtype[Any]:
    dtype = np.dtype(_known(path, "type", fields, _TYPES))
    if dtype.itemsize == 1 or encoding == "text":
        return dtype
    return dtype.newbyteorder(_known(path, "endian", fields, {"little": "<", "big": ">"}))


def _directions(path: Path, fields: dict[str, str], dimension: int) -> list[list[float] | None]:
    """Return the vector of each axis in mm; None for one that is not in space."""
    if "space directions" not in fields:
        spacings = numbers(path, "spacings", fields.get("spacings", ""), dimension)
        inside = [axis for axis, spacing in enumerate(spacings) if not np.isnan(spacing)][:3]
        return [
            [spacings[axis] if row == inside.index(axis) else 0.0 for row in range(3)] if axis in inside else None
            for axis in range(dimension)
        ]
    text = fields["space directions"]
    found = list(_VECTOR.finditer(text))
    if len(found) != dimension:
        raise damaged(path, "space directions", text)
    vectors = [match.group(1) for match in found]
    return [None if v is None else numbers(path, "space directions", v.replace(",", " "), 3) for v in vectors]


def _channel_axis(path: Path, kinds: list[str], directions: list[list[float] | None]) -> int | None:
    """Return which axis counts channels; the last of four if none of them says so."""
    if len(kinds) != len(directions):
        raise damaged(path, "kinds", " ".join(kinds))
    for kind in kinds:
        if kind not in (*_SPACE_KINDS, *_CHANNEL_KINDS, "none", "???") and not _TWO_OR_MORE_NUMBERS.fullmatch(kind):
            raise VolumeError(f"{path}: its voxels are of the kind {kind[:40]!r}", "convert it to a scalar image")
    if len(directions) == 3:
        return None
    outside = [axis for axis, vector in enumerate(directions) if vector is None]
    outside = outside or [axis for axis, kind in enumerate(kinds) if kind not in (*_SPACE_KINDS, "none", "???")]
    return outside[0] if outside else 3


def _data(path: Path, fields: dict[str, str], end: int, encoding: str) -> tuple[Path, int]:
    """Return the file with the voxels, and where they start."""
    skip = fields.get("byte skip", fields.get("byteskip", "0"))
    if fields.get("line skip", fields.get("lineskip", "0")) != "0" or not re.fullmatch(r"-1|\d{1,9}", skip):
        raise damaged(path, "byte skip", skip)
    if skip != "0" and encoding != "raw":
        raise damaged(path, "byte skip", skip)
    name = fields.get("data file", fields.get("datafile"))
    if name is None and path.name.lower().endswith(".nhdr"):
        raise damaged(path, "data file", None)
    data_path, start = (path, end) if name is None else (data_file(path, name), 0)
    return data_path, -1 if skip == "-1" else start + int(skip)
