"""Files on disk: the smallest type, never half a file, one run per folder, and nothing left of a killed one."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import platform
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

import nibabel as nib
import numpy as np

from droseg.data.regions import Structures, label_values
from droseg.errors import DrosegError


class OutputError(DrosegError):
    """The output folder takes no file; no later case could be written either."""


TEMPORARY_PREFIX = ".droseg-"
LOCK_NAME = f"{TEMPORARY_PREFIX}lock"
PROBE_BYTES = 1 << 20
"""A label map of 256^3 compresses to less than this."""


def label_dtype(structures: Structures) -> np.dtype:
    """Return the smallest unsigned integer type that holds every label value."""
    return np.min_scalar_type(max(max(values) for values in label_values(structures).values()))


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
    with StagedFiles() as files:
        files.add(path, lambda temporary: nib.save(image, temporary))
        files.commit()


def write_text(text: str, path: Path) -> None:
    """Write a text file so that a reader sees all of it or the one before.

    Raises:
        OutputError: if the folder takes no file; nothing is left behind.
    """
    with StagedFiles() as files:
        files.add(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))
        files.commit()


class StagedFiles:
    """Files that get their names together: all are whole and on the disk before the first of them does.

    Without `commit`, and after an error, nothing is left behind.
    """

    def __init__(self) -> None:
        self._staged: list[tuple[Path, Path]] = []

    def __enter__(self) -> StagedFiles:
        return self

    def __exit__(self, *_: object) -> None:
        for temporary, _path in self._staged:
            with contextlib.suppress(OSError):
                temporary.unlink()

    def add(self, path: Path, save: Callable[[Path], object]) -> str:
        """Let `save` write the content of `path` to a temporary file, and return its SHA-256 in hex.

        Raises:
            OutputError: if the folder takes no file.
        """
        suffix = ".nii.gz" if path.name.endswith(".nii.gz") else path.suffix
        temporary = path.with_name(f"{TEMPORARY_PREFIX}{uuid.uuid4().hex}{suffix}")
        self._staged.append((temporary, path))
        with _refusals(path.parent):
            save(temporary)
            with temporary.open("rb") as file:
                os.fsync(file.fileno())
                return hashlib.file_digest(file, "sha256").hexdigest()

    def commit(self) -> None:
        """Give the files their names, in the order in which they were added.

        Raises:
            OutputError: if the folder takes no file.
        """
        for temporary, path in self._staged:
            with _refusals(path.parent):
                os.replace(temporary, path)


def file_checksum(path: Path) -> str:
    """Return the SHA-256 of a file in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextlib.contextmanager
def output_lock(folder: Path) -> Iterator[bool]:
    """Keep other runs out of a folder, also those of this process, until the block or the process ends.

    Yields whether that is so: some network file systems know no locks.

    Raises:
        OutputError: if another run writes there; the message names it.
    """
    path = folder / LOCK_NAME
    file = _locked(path)
    try:
        yield file is not None
    finally:
        if file is not None:
            with contextlib.suppress(OSError):
                path.unlink()  # while the lock is held: who opened the old file sees that it has lost its name
            file.close()


def _locked(path: Path) -> IO[str] | None:
    while True:
        file = None
        try:
            file = path.open("a+", encoding="utf-8")
            # Unlike a POSIX lock, flock's also keeps out a second run in the same process.
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is_file_at(file, path):
                file.truncate(0)
                file.write(f"process {os.getpid()} on {platform.node()}\n")
                file.flush()
                return file
            file.close()
        except OSError as error:
            if file is None:
                raise OutputError(f"output folder {path.parent}: {_write_problem(error)}") from error
            holder = _content(file)
            file.close()
            if error.errno not in (errno.EACCES, errno.EAGAIN):
                return None
            raise OutputError(
                f"output folder {path.parent}: {holder or 'another process'} is writing there; "
                "wait until it ends, or give each run its own --out."
            ) from error


def _is_file_at(file: IO[str], path: Path) -> bool:
    """Return whether an open file still has its name; the run that held the lock before may have removed it."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def _content(file: IO[str]) -> str:
    try:
        file.seek(0)
        return file.read().strip()
    except OSError:
        return ""


def remove_leftovers(folder: Path) -> list[Path]:
    """Remove the temporary files of killed runs, and return them; only while holding the folder's lock."""
    found = [path for path in folder.glob(f"{TEMPORARY_PREFIX}*") if path.name != LOCK_NAME and not path.is_dir()]
    for path in found:
        with contextlib.suppress(OSError):
            path.unlink()
    return found


_DISK_FULL = (errno.ENOSPC, errno.EDQUOT)
_BAD_NAMES = (errno.ENAMETOOLONG, errno.EILSEQ, errno.EINVAL)
"""What a file system answers to one name that it cannot hold; the next case may have a better one."""


@contextlib.contextmanager
def _refusals(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in _BAD_NAMES:
            raise
        raise OutputError(
            f"output folder {folder}: {_write_problem(error)} The same command then goes on from here."
        ) from error


def _write_problem(error: OSError) -> str:
    if error.errno in _DISK_FULL:
        return "the disk (or the quota) is full; free some space, or choose another --out."
    if error.errno == errno.EFBIG:
        return "a file would be larger than is allowed here (ulimit -f); raise the limit, or choose another --out."
    reason = (error.strerror or str(error)).lower()
    return f"cannot be written ({reason}); change its permissions, or choose another --out."
