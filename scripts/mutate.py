"""Damage to an image file, decided by a seed: bits, runs, cuts, splices, extreme values, in the header or anywhere."""

from __future__ import annotations

import gzip
import re
import shutil
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

import numpy as np

Rng = np.random.Generator

_NUMBERS: Final = ("i2", "i4", "i8", "f4", "f8")
_EXTREMES: Final = (0, -1, 1, 2, 127, 255, 32767, 65535, 2**31 - 1, 2**32 - 1, 2**63 - 1, np.nan, np.inf, 1e308, 1e-308)
_WORDS: Final = (
    *(b"0", b"-1", b"1", b"65536", b"2147483647", b"99999999999999999999", b"nan", b"inf", b"-1e308", b"1e-320", b""),
    *(b"%d", b"LIST", b"LOCAL", b"../0", b"/etc/passwd", b"none", b"(0,0,0)", b"(nan,nan,nan)", b"double", b"gzip"),
    *(b"raw", b"block", b"MET_DOUBLE", b"MET_OTHER", b"True", b"hex", b"RGB-color", b"\xff" * 9, b"1 " * 99),
)


def mutate(source: Path, target: Path, seed: Sequence[int]) -> None:
    """Copy a folder, with the first of its files damaged; the same seed damages it in the same way."""
    rng = np.random.default_rng(list(seed))
    target.mkdir(parents=True)
    files = sorted(source.iterdir())
    for path in files[1:]:
        shutil.copy(path, target)
    content = files[0].read_bytes()
    packed = files[0].name.endswith(".gz")
    inside = packed and rng.random() < 0.6  # else the damage is in the compressed stream
    if inside:
        content = gzip.decompress(content)
    for _ in range(int(rng.choice([1, 1, 1, 2, 4]))):
        damage = _DAMAGES[int(rng.integers(len(_DAMAGES)))]
        content = damage(content, rng)
    (target / files[0].name).write_bytes(gzip.compress(content, 1, mtime=0) if inside else content)


def _place(content: bytes, rng: Rng) -> int:
    """Return an offset, in the header more often than not."""
    size = max(len(content), 1)
    return int(rng.integers(min(size, int(rng.choice([64, 352, 1200])))) if rng.random() < 0.75 else rng.integers(size))


def _flip(content: bytes, rng: Rng) -> bytes:
    changed = bytearray(content or b"\0")
    for _ in range(int(rng.integers(1, 17))):
        changed[_place(changed, rng)] ^= 1 << int(rng.integers(8))
    return bytes(changed)


def _run(content: bytes, rng: Rng) -> bytes:
    at, length = _place(content, rng), int(rng.integers(1, 65))
    fill = [b"\0" * length, b"\xff" * length, b" " * length, rng.bytes(length)][int(rng.integers(4))]
    return content[:at] + fill + content[at + length :]


def _cut(content: bytes, rng: Rng) -> bytes:
    return content[: _place(content, rng)]


def _splice(content: bytes, rng: Rng) -> bytes:
    start, at, length = _place(content, rng), _place(content, rng), int(rng.integers(1, 257))
    piece = content[start : start + length]
    behind = [at, at + length, at + int(rng.integers(0, 33))][int(rng.integers(3))]
    return content[:at] + piece + content[behind:]


def _remove(content: bytes, rng: Rng) -> bytes:
    at = _place(content, rng)
    return content[:at] + content[at + int(rng.integers(1, 33)) :]


def _extreme(content: bytes, rng: Rng) -> bytes:
    """Write an extreme number over a field."""
    dtype = np.dtype(_NUMBERS[int(rng.integers(len(_NUMBERS)))]).newbyteorder("<>"[int(rng.integers(2))])
    value = _EXTREMES[int(rng.integers(len(_EXTREMES)))]
    with np.errstate(all="ignore"):
        if dtype.kind == "i":
            value = int(value) % 2 ** (8 * dtype.itemsize) if np.isfinite(value) and abs(value) < 2**64 else 0
            field = np.array([value], dtype=f"{dtype.byteorder}u{dtype.itemsize}".replace("=", "<")).tobytes()
        else:
            field = np.array([value]).astype(dtype).tobytes()
    at = _place(content, rng) // 2 * 2
    return content[:at] + field + content[at + len(field) :]


def _word(content: bytes, rng: Rng) -> bytes:
    """Replace a word of a text header, or a number of a DICOM text value."""
    words = list(re.finditer(rb"[A-Za-z0-9.+-]{1,40}", content[:2000]))
    if not words:
        return _extreme(content, rng)
    match = words[int(rng.integers(len(words)))]
    word = _WORDS[int(rng.integers(len(_WORDS)))]
    if rng.random() < 0.3:  # of the same length, so that what counts bytes stays in step
        word = (word + b" " * 40)[: len(match[0])]
    return content[: match.start()] + word + content[match.end() :]


def _zeros(content: bytes, rng: Rng) -> bytes:
    """Put a compressed megabyte of zeros in place of the end: it expands to far more than a header says."""
    return content[: _place(content, rng)] + zlib.compress(bytes(1 << 20))


_DAMAGES: Final[tuple[Callable[[bytes, Rng], bytes], ...]] = (
    *(_flip, _flip, _run, _cut, _splice, _remove, _extreme, _extreme, _extreme, _word, _word, _zeros),
)
