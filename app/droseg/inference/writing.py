"""Label maps on disk: smallest type, the image's own grid, and never half a file."""

from __future__ import annotations

import contextlib
import errno
import os
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path

import nibabel as nib
import numpy as np

from droseg.errors import DrosegError


class OutputError(DrosegError):
    """The output folder takes no file; no later case could be written either."""


TEMPORARY_PREFIX = ".droseg-"
PROBE_BYTES = 1 << 20
"""A label map of 256^3 compresses to less than this."""


def label_dtype(structures: Mapping[str, int]) -> np.dtype:
    """Return the smallest unsigned integer type that holds every label value."""
    return np.min_scalar_type(max(structures.values(), default=1))


def writable_folder(folder: str | Path) -> Path:
    """Return the folder, made if need be, after a trial write into it.

    Raises:
        OutputError: if it cannot be made or written, or if the disk is full.
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
        raise OutputError(f"output folder {folder}: {_write_problem(error)}") from error
    return folder


def write_image(image: nib.Nifti1Image, path: Path) -> None:
    """Save an image so that `path` holds either all of it or what it held before.

    Raises:
        OutputError: if the folder takes no file; nothing is left behind.
    """
    _write(path, ".nii.gz", lambda temporary: nib.save(image, temporary))


def write_text(text: str, path: Path) -> None:
    """Write a text file so that a reader sees all of it or the one before.

    Raises:
        OutputError: if the folder takes no file; nothing is left behind.
    """
    _write(path, "", lambda temporary: temporary.write_text(text, encoding="utf-8"))


def _write(path: Path, suffix: str, save: Callable[[Path], object]) -> None:
    temporary = path.with_name(f"{TEMPORARY_PREFIX}{uuid.uuid4().hex}{suffix}")
    try:
        save(temporary)
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        if error.errno in _REFUSALS:
            problem = _write_problem(error)
            raise OutputError(
                f"output folder {path.parent}: {problem} The same command then goes on from here."
            ) from error
        raise
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


_DISK_FULL = (errno.ENOSPC, errno.EDQUOT)
_REFUSALS = (*_DISK_FULL, errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOENT)


def _write_problem(error: OSError) -> str:
    if error.errno in _DISK_FULL:
        return "the disk (or the quota) is full; free some space, or choose another --out."
    reason = (error.strerror or str(error)).lower()
    return f"cannot be written ({reason}); change its permissions, or choose another --out."
