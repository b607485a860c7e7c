"""What all layouts of phantoms share: arguments in range, jobs for processes, files that are whole or not there."""

from __future__ import annotations

import gzip
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import nibabel as nib
import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from droseg.data import writing
from droseg.errors import InputError

Job = TypeVar("Job")


def check_arguments(**arguments: tuple[int, int]) -> None:
    """Check name=(value, minimum).

    Raises:
        InputError: if a value is below its minimum.
    """
    for name, (value, minimum) in arguments.items():
        if value < minimum:
            raise InputError(f"{name} is {value}; phantoms need at least {minimum}.")


def make_files(
    write: Callable[[Job], None], jobs: Sequence[Job], out: Path, *, workers: int = 1, progress: bool = False
) -> None:
    """Call `write` with each job, by several processes if asked to; it makes the folders that it needs.

    Raises:
        InputError: if a file cannot be written.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        with _mapping(workers) as mapping:
            # A list: every case is waited for, and its error raised here.
            list(tqdm(mapping(write, jobs), total=len(jobs), desc="phantoms", unit="case", disable=not progress))
    except OSError as error:
        where = error.filename or out
        raise InputError(
            f"{where}: cannot be written ({error.strerror}); free space or choose another folder."
        ) from error


@contextmanager
def _mapping(workers: int) -> Iterator[Any]:
    """Give `map` itself, or that of a pool of processes."""
    if workers <= 1:
        yield map
        return
    with ProcessPoolExecutor(workers) as pool:
        yield pool.map


def write_nifti(array: NDArray[Any], affine: NDArray[np.float64], path: Path) -> None:
    """Write a .nii.gz that is complete or not there, with the same bytes whenever it is written."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = nib.Nifti1Image(array, affine)
    image.header.set_xyzt_units("mm")
    temporary = path.with_name(f".{path.name}.part")
    temporary.write_bytes(gzip.compress(image.to_bytes(), compresslevel=1, mtime=0))
    os.replace(temporary, path)


def write_text(text: str, path: Path) -> None:
    """Write a text file that is complete or not there.

    Raises:
        InputError: if its folder cannot be made. OutputError: if it cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"{path}: cannot be written ({error.strerror}); free space or choose another folder."
        ) from error
    writing.write_text(text, path)
