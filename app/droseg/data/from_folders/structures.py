"""Which label value is which structure: from options, from the files in which people keep that, or asked for."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
from tqdm import tqdm

from droseg.data import form
from droseg.data.check import value_counts
from droseg.data.csv_text import read_text
from droseg.data.from_folders.findings import Findings, counted, some
from droseg.data.regions import label_values
from droseg.data.volumes import VolumeError, read_volume
from droseg.errors import BundleError, DatalistError, InputError

Structures = dict[str, tuple[int, ...]]
LabelValues = dict[Path, dict[int, int]]
"""Label file -> value -> number of voxels, without 0."""

_ITK_SNAP: Final = re.compile(r'\s*(\d+)(?:\s+[\d.]+){4}(?:\s+\d+){2}\s+"(.*)"\s*')
"""Value, red, green, blue, opacity, visible, mesh, name: a label description file of ITK-SNAP."""


def parse_structures(options: Iterable[str]) -> Structures:
    """Return the structures of options such as "ventricles=2" and "tumor=1,3"; "background=3" is none.

    Raises:
        InputError: if one is not of that form, or names a structure twice.
    """
    found = _of_options(options)
    return _checked(found, "--structure") if found else {}


def parse_background(options: Iterable[str]) -> tuple[int, ...]:
    """Return the label values that are no structure by options such as "background=3"; 0 is one always.

    Raises:
        InputError: if an option is not of that form, or names a structure twice.
    """
    return form.read_background({"structures": _of_options(options) or None})


def _of_options(options: Iterable[str]) -> dict[str, list[int]]:
    found: dict[str, list[int]] = {}
    for option in options:
        name, equals, values = option.partition("=")
        numbers = [value.strip() for value in values.split(",")]
        if not (name.strip() and equals and all(re.fullmatch(r"\d+", number) for number in numbers)):
            raise InputError(f"--structure '{option}' is not NAME=VALUE or NAME=VALUE,VALUE, such as ventricles=2.")
        if name.strip() in found:
            raise InputError(f"--structure {name.strip()} is given twice; give all its values at once: NAME=1,2.")
        found[name.strip()] = [int(number) for number in numbers]
    return found


def read_structures(path: Path) -> Structures:
    """Return the structures of a datalist or Decathlon's dataset.json, BIDS' dseg.tsv or an ITK-SNAP label file.

    Raises:
        DatalistError: if it is none of them.
    """
    return _checked(_of_file(path), str(path))


def read_background(path: Path) -> tuple[int, ...]:
    """Return the label values that such a file says are no structure; 0 is one always.

    Raises:
        DatalistError: if it is none of them.
    """
    return form.read_background({"structures": _of_file(path) or None})


def _of_file(path: Path) -> Any:
    """Return what `structures` of a datalist would hold; of a JSON file it is not checked yet, and None if missing."""
    try:
        text = path.read_text(encoding="utf-8-sig", errors="replace")
    except OSError as error:
        raise DatalistError(
            f"{path}: cannot be read ({(error.strerror or '?').lower()}); correct --structures."
        ) from error
    if text.lstrip().startswith("{"):
        try:
            document = json.loads(text)
        except ValueError as error:
            raise DatalistError(f"{path}: {error}") from error
        return document.get("structures", document.get("labels"))
    lines = [line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    matches = [_ITK_SNAP.fullmatch(line) for line in lines]
    if lines and all(matches):
        return _by_name((match[2], int(match[1])) for match in matches if match)
    table = read_text(path, rows_are="one row per structure")
    for column in ("index", "name"):
        table.need(column, "A dseg.tsv has index and name; JSON and ITK-SNAP's label files are read, too.")
    pairs = []
    for line, (index, name) in zip(table.fields.index, table.fields[["index", "name"]].to_numpy(), strict=True):
        if not re.fullmatch(r"\d+", index) or not name:
            raise DatalistError(
                f"{path}, line {line}: index '{index}' and name '{name}'; a number and a name are needed."
            )
        pairs.append((name, int(index)))
    return _by_name(pairs)


def _by_name(pairs: Iterable[tuple[str, int]]) -> dict[str, list[int]]:
    """Return name -> values: one that is there several times is a structure of several values."""
    found: dict[str, list[int]] = {}
    for name, value in pairs:
        found.setdefault(name, []).append(value)
    return found


def _checked(named: object, source: str) -> Structures:
    try:
        return label_values(form.read_structures({"structures": named}, True))
    except (ValueError, BundleError) as error:
        raise DatalistError(f"{source}: {error}") from error


def read_label_values(labels: Sequence[Path], progress: bool = False) -> LabelValues:
    """Return the values of each label that can be read; one that cannot be read, or is no label, is left out."""
    found: LabelValues = {}
    for path in tqdm(labels, desc="reading labels", unit="label", delay=2, disable=not progress):
        try:
            values, counts = value_counts(read_volume(path).array)
        except VolumeError:  # the check of the whole case says so
            continue
        if np.isfinite(values).all() and (values == np.round(values)).all():
            found[path] = {int(v): int(n) for v, n in zip(values, counts, strict=True) if v != 0}
    return found


def ask_for_structures(found: LabelValues, findings: Findings, files: Sequence[Path] = ()) -> None:
    """Report the values that occur, and the option that names them; nobody but the user knows what they are.

    Args:
        found: the values of each label.
        findings: takes the error.
        files: of the data set that may say the names, such as a dseg.tsv.
    """
    labels, voxels = _occurrence(found)
    items = [f"value {v}: in {counted(labels[v], 'label')} of {len(found)}, {voxels[v]} voxels" for v in sorted(labels)]
    if not labels:
        findings.error("no structure is named, and no label has any value but 0; are these the labels?")
        return
    line = " ".join(f"--structure NAME{value}={value}" for value in sorted(labels))
    text = "which structure is which label value? Name them"
    text += f" by --structures {files[0]}, or" if files else ","
    findings.error(f"{text} with your own names: {line}\nThe values that occur:", items)


def check_occurrence(structures: Structures, found: LabelValues, findings: Findings) -> None:
    """Report structures that occur in no label."""
    labels, _ = _occurrence(found)
    absent = [
        f"{n}={','.join(map(str, values))}" for n, values in structures.items() if not any(v in labels for v in values)
    ]
    if found and absent:
        text = (
            f"{counted(len(absent), 'structure')} in none of the labels: {some(absent, 20)}; the values that occur are"
        )
        findings.warning(f"{text} {some(map(str, sorted(labels)), 30) or 'none'}. Leave out what cannot be learned.")


def _occurrence(found: LabelValues) -> tuple[Counter[int], Counter[int]]:
    """Return value -> number of labels, and value -> number of voxels."""
    labels: Counter[int] = Counter()
    voxels: Counter[int] = Counter()
    for values in found.values():
        labels.update(values.keys())
        voxels.update(values)
    return labels, voxels
