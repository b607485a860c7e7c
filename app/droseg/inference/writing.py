"""Label maps on disk: smallest type, the image's own grid, and never half a file."""

from __future__ import annotations

import errno
import os
import uuid
from collections.abc import Mapping
from pathlib import Path

import nibabel as nib
import numpy as np

from droseg.errors import DrosegError

TEMPORARY_PREFIX = ".droseg-"
PROBE_BYTES = 1 << 20
"""A label map of 256^3 compresses to less than this."""


def label_dtype(structures: Mapping[str, int]) -> np.dtype:
    """Return the smallest unsigned integer type that holds every label value."""
    return np.min_scalar_type(max(structures.values(), default=1))


def writable_folder(folder: str | Path) -> Path:
    """Return the folder, made if need be, after a trial write into it.

    Raises:
        DrosegError: if it cannot be made or written, or if the disk is full.
    """
    folder = Path(folder)
    probe = folder / f"{TEMPORARY_PREFIX}{uuid.uuid4().hex}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        try:
            with probe.open("wb") as file:
                file.write(bytes(PROBE_BYTES))
                os.fsync(file.fileno())
        finally:
            probe.unlink(missing_ok=True)
    except OSError as error:
        raise DrosegError(f"output folder {folder}: {_write_problem(error)}") from error
    return folder


def write_atomically(image: nib.Nifti1Image, path: Path) -> None:
    """Save an image so that `path` holds either all of it or what it held before.

    Raises:
        OSError: if the folder cannot be written; nothing is left behind.
    """
    temporary = path.with_name(f"{TEMPORARY_PREFIX}{uuid.uuid4().hex}.nii.gz")
    try:
        nib.save(image, temporary)
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text_atomically(text: str, path: Path) -> None:
    """Write a small text file so that a reader sees all of it or the one before.

    Raises:
        OSError: if the folder cannot be written; nothing is left behind.
    """
    temporary = path.with_name(f"{TEMPORARY_PREFIX}{uuid.uuid4().hex}")
    try:
        temporary.write_text(text, encoding="utf-8")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def disk_refuses(error: BaseException) -> str | None:
    """Return what is wrong if no later write can succeed either (disk full, read-only), else None."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES):
        return _write_problem(error)
    return None


def _write_problem(error: OSError) -> str:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return "the disk (or the quota) is full; free some space, or choose another --out."
    reason = (error.strerror or str(error)).lower()
    return f"cannot be written ({reason}); change its permissions, or choose another --out."
