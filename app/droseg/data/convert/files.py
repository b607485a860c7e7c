"""The files of a conversion: NIfTI whose header says which series it is, the tables, and what is there already."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from droseg.data.convert.tags import MISSING, TAG_COLUMNS
from droseg.data.scanner import Tags
from droseg.data.writing import StagedFiles, write_text
from droseg.errors import InputError

SCANS_FILE: Final = "scans.tsv"
STRUCTURES_FILE: Final = "structures.json"
SCAN_COLUMNS: Final = ("subject", "session", "series", "file", "label_file", *TAG_COLUMNS.values())
MAPPING_COLUMNS: Final = (
    *("subject", "session", "series", "file", "patient_id", "study_instance_uid", "series_instance_uid"),
    *("series_description", "folder"),
)
_SERIES_MARK: Final = re.compile(rb"droseg series=([0-9a-f]{16}) source=([0-9a-f]{16})")
_INTEGERS: Final = (np.uint8, np.int16, np.uint16, np.int32)


def series_mark(key: str, source: str) -> str:
    """Return the description in the header of a converted series."""
    return f"droseg series={key} source={source}"


def label_mark(source: str) -> str:
    """Return the description in the header of a label map."""
    return f"droseg labels={source}"


def read_mark(path: Path) -> str:
    """Return the description in a NIfTI header; empty if there is none, or no such file."""
    try:
        header: Any = nib.load(path).header
        return bytes(header["descrip"].item()).rstrip(b"\0").decode(errors="replace")
    except Exception:  # of whatever kind: it is not a file that was written here
        return ""


def read_marks(out: Path) -> dict[str, list[tuple[str, str, str]]]:
    """Return key of a series -> its names (subject, session, series) in an output folder, in order."""
    found: dict[str, list[tuple[str, str, str]]] = {}
    for path in sorted(out.glob("*/*/*.nii.gz")):
        mark = _SERIES_MARK.match(read_mark(path).encode())
        if mark:
            subject, session, name = path.relative_to(out).parts
            found.setdefault(mark[1].decode(), []).append((subject, session, name.removesuffix(".nii.gz")))
    return found


def small(array: NDArray[Any]) -> NDArray[Any]:
    """Return the same values in the smallest type that holds them: an integer type if they are whole, else float32."""
    whole = array.dtype.kind in "iub" or bool((array == np.rint(array)).all())
    low, high = float(array.min()), float(array.max())
    for kind in _INTEGERS if whole else ():
        if np.iinfo(kind).min <= low and high <= np.iinfo(kind).max:
            return array.astype(kind)
    return array.astype(np.float32)


def nifti(array: NDArray[Any], affine: NDArray[np.float64], mark: str) -> nib.Nifti1Image:
    """Return an image in scanner coordinates; nothing of another header comes with it."""
    image = nib.Nifti1Image(array, affine)
    image.set_sform(affine, code=1)
    image.set_qform(affine, code=1)
    image.header.set_xyzt_units("mm")
    image.header["descrip"] = mark.encode()
    return image


def write_series(image: nib.Nifti1Image, path: Path, tags: Tags) -> None:
    """Write an image, and its tags as the sidecar that BIDS has beside an image."""
    path.parent.mkdir(parents=True, exist_ok=True)
    sidecar = path.with_name(path.name.removesuffix(".nii.gz") + ".json")
    with StagedFiles() as files:
        files.add(sidecar, lambda temporary: temporary.write_text(json.dumps(tags, indent=2) + "\n", encoding="utf-8"))
        files.add(path, lambda temporary: nib.save(image, temporary))
        files.commit()


def scan_row(name: Sequence[str], file: str, label_file: str, tags: Tags) -> dict[str, str]:
    """Return a row of `scans.tsv`."""
    row = dict(zip(SCAN_COLUMNS, (*name, file, label_file or MISSING), strict=False))
    for tag, column in TAG_COLUMNS.items():
        value = tags.get(tag, MISSING)
        row[column] = value if isinstance(value, str) else f"{value:.6g}"
    return row


def update_table(
    path: Path, columns: Sequence[str], rows: Iterable[Mapping[str, str]], folder: Path, mode: int = 0o666
) -> None:
    """Write a table; rows of earlier runs stay while their file exists, columns that somebody added stay, too.

    Args:
        path: tab-separated.
        columns: that `rows` have.
        rows: of this run; they replace those of the same file.
        folder: that the column `file` starts from.
        mode: of a new file, before the umask.
    Raises:
        InputError: if another file of this name is there.
    """
    table = {}
    header = list(columns)
    for row in read_table(path, columns):
        header += [name for name in row if name not in header]
        if (folder / row["file"]).is_file():
            table[row["file"]] = row
    for new in rows:
        table[new["file"]] = {**table.get(new["file"], {}), **new}
    text = io.StringIO()
    writer = csv.DictWriter(text, header, restval=MISSING, delimiter="\t", lineterminator="\n")
    writer.writeheader()
    writer.writerows(table[file] for file in sorted(table))

    def save(temporary: Path) -> None:
        temporary.touch(mode)
        temporary.write_text(text.getvalue(), encoding="utf-8")

    with StagedFiles() as files:
        files.add(path, save)
        files.commit()


def read_table(path: Path, columns: Sequence[str]) -> list[dict[str, str]]:
    """Return the rows of a table of an earlier run; none if there is no such file.

    Raises:
        InputError: if it is another file.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, delimiter="\t")
            rows = [{key: value or "" for key, value in row.items() if key} for row in reader]
            header = reader.fieldnames or ()
    except FileNotFoundError:
        return []
    except (OSError, ValueError, csv.Error) as error:
        raise InputError(f"{path}: is there, but cannot be read ({error}); move it away.") from error
    missing = [name for name in columns if name not in header]
    if missing:
        raise InputError(f"{path}: is there, but is no table of droseg (no column '{missing[0]}'); move it away.")
    return rows


def read_structures(out: Path) -> dict[str, int]:
    """Return name -> label value of earlier runs; empty if there were none.

    Raises:
        InputError: if the file that should say it cannot be read.
    """
    path = out / STRUCTURES_FILE
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        return {str(name): int(value) for name, value in document["structures"].items()}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path}: is there, but says no structures; move it away.") from error


def write_structures(out: Path, structures: Mapping[str, int]) -> None:
    """Write name -> label value as a datalist has it."""
    document = {"structures": dict(sorted(structures.items(), key=lambda item: item[1]))}
    write_text(json.dumps(document, indent=2, ensure_ascii=False) + "\n", out / STRUCTURES_FILE)
