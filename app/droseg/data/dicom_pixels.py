"""The voxels of a DICOM series: pydicom decodes what Python can, GDCM the rest, in a process of its own."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from droseg.data.dicom import DicomSeries, DicomSlice
from droseg.data.dicom_header import read_dataset
from droseg.data.grids import Volume, VolumeError, check_size, short

_RLE: Final = "1.2.840.10008.1.2.5"
_SECONDS_PER_FILE: Final = 30
_AGAIN: Final = "copy or export the series again"


def read_series(series: DicomSeries) -> Volume:
    """Return the volume of a series.

    Raises:
        VolumeError: if its slices are no volume, or their pixels cannot be decoded.
    """
    if series.unfit:
        raise VolumeError(f"{series}: {series.unfit}", "give an MR volume")
    if series.problem:
        found, remedy = series.problem
        raise VolumeError(f"{series}: {found}", remedy)
    columns, rows, depth = series.shape
    by_file: dict[Path, list[tuple[int, DicomSlice]]] = defaultdict(list)
    for index, item in enumerate(series.slices):
        by_file[item.file].append((index, item))
    check_size(str(series), series.shape, 0, 0, False)
    plain = all(item.slope == 1 and item.intercept == 0 for item in series.slices)
    array: NDArray[Any] | None = None
    decoded = _Decoder(series)
    for path, slices in by_file.items():
        frames = decoded.frames(path)
        if frames.shape[1:] != (rows, columns) or len(frames) <= max(item.frame or 0 for _, item in slices):
            raise VolumeError(f"{path}: pixels of shape {frames.shape}, not those that its header declares", _AGAIN)
        if array is None:
            array = np.empty((1, columns, rows, depth), frames.dtype if plain else np.float32)
        elif plain and frames.dtype != array.dtype:
            array = array.astype(np.result_type(array.dtype, frames.dtype))
        for index, item in slices:
            pixels = frames[item.frame or 0].T
            array[0, :, :, index] = pixels if plain else pixels * np.float64(item.slope) + item.intercept
    if array is None:
        raise VolumeError(f"{series}: no slices", "give an MR volume")
    return Volume(array, np.array(series.affine, dtype=np.float64))


class _Decoder:
    """Decodes the files of a series; what Python cannot decode goes to GDCM in one go."""

    def __init__(self, series: DicomSeries) -> None:
        self._files = series.files
        self._by_gdcm: dict[Path, NDArray[Any]] = {}

    def frames(self, path: Path) -> NDArray[Any]:
        """Return the stored values of a file, (frames, rows, columns)."""
        if path in self._by_gdcm:
            return self._by_gdcm.pop(path)
        dataset = read_dataset(path)
        try:
            syntax = str(getattr(dataset, "file_meta", {}).get("TransferSyntaxUID", ""))
            if _needs_gdcm(syntax):
                self._by_gdcm = _by_gdcm(self._files[self._files.index(path) :])
                return self._by_gdcm.pop(path)
            return _by_pydicom(path, dataset, syntax)
        except VolumeError:
            raise
        except MemoryError:
            raise
        except Exception as error:  # pydicom raises many types on damaged pixels
            raise VolumeError(f"{path}: its pixels cannot be read ({short(error)})", _AGAIN) from error


def _needs_gdcm(syntax: str) -> bool:
    # 1.2.840.10008.1.2.4.*: the JPEG family, for which pydicom needs one plug-in each.
    return syntax.startswith("1.2.840.10008.1.2.4.")


def _by_pydicom(path: Path, dataset: Any, syntax: str) -> NDArray[Any]:
    import warnings

    from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian

    if not syntax:  # an older file without a file meta header
        implicit = dataset.original_encoding[0]
        dataset.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian if implicit else ExplicitVRLittleEndian
    frames = int(dataset.get("NumberOfFrames") or 1)
    shape = (frames, int(dataset.Rows), int(dataset.Columns))
    stored = next((len(dataset[tag].value or b"") for tag in _PIXELS if tag in dataset), 0)
    bits = max(int(dataset.BitsAllocated), 1)
    check_size(str(path), shape, max(bits // 8, 1) if bits > 1 else 0, stored, syntax == _RLE)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pixels = np.asarray(dataset.pixel_array)
    return pixels.reshape(shape)


_PIXELS: Final = ("PixelData", "FloatPixelData", "DoubleFloatPixelData")


def _by_gdcm(files: Sequence[Path]) -> dict[Path, NDArray[Any]]:
    """Return the stored values of compressed files; a file that ends the decoder's process is an error, not the end."""
    script = Path(__file__).with_name("decode_dicom.py")
    try:
        done = subprocess.run(
            [sys.executable, "-P", str(script)],  # -P: the modules beside the script must not hide Python's own
            input=json.dumps([str(path) for path in files]).encode(),
            capture_output=True,
            timeout=60 + _SECONDS_PER_FILE * len(files),
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise VolumeError(f"{files[0].parent}: its compressed pixels take too long to decode", _AGAIN) from error
    if done.returncode:
        lines = done.stderr.decode(errors="replace").strip().splitlines() or [
            f"the decoder ended with {done.returncode}"
        ]
        if "No module named" in lines[-1]:
            raise VolumeError(
                f"{files[0]}: its pixels are compressed, which needs ITK",
                "pip install 'droseg[dicom]', or decompress it",
            )
        raise VolumeError(f"{files[0].parent}: compressed pixels that cannot be read ({lines[-1][:120]})", _AGAIN)
    stream = io.BytesIO(done.stdout)
    return {path: np.load(stream, allow_pickle=False) for path in files}
