"""How the table of a run was scored, from the evaluation.json that `droseg evaluate` writes beside it."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

SHOWN = 10
"""Cases that a sentence names; report.json has all of them."""


@dataclass(frozen=True)
class Record:
    """What the records of a run's trainings say.

    Attributes:
        unscored: case_id -> why it has no row, in at least one training.
        assumed: cases without a prediction that were scored as all background, on request.
        tolerances_mm: the NSD tolerance of each structure, one mapping per different choice.
        software: with which versions it was scored, one entry per different choice.
    """

    unscored: Mapping[str, str] = field(default_factory=dict)
    assumed: Sequence[str] = ()
    tolerances_mm: Sequence[Mapping[str, float]] = ()
    software: Sequence[str] = ()

    def renamed(self, case: Callable[[str], str]) -> Record:
        """Return the same with other names of the cases, in their order; reasons name files, so they are left out."""
        unscored = dict.fromkeys(sorted(map(case, self.unscored)), "")
        return replace(self, unscored=unscored, assumed=sorted(map(case, self.assumed)))

    def without(self, case_ids: Collection[str]) -> Record:
        """Return the same without the unscored cases that have a row after all, from another training."""
        return replace(self, unscored={case: why for case, why in self.unscored.items() if case not in case_ids})

    def sentences(self, name: str) -> Iterator[str]:
        """Yield what a reader of any mean of this run must know first."""
        if self.unscored:
            yield f"Not scored, and in no number of {name}: {_listed(list(self.unscored))}."
        if self.assumed:
            yield (
                f"Without a prediction, and counted as all missed in {name} (--missing-as-failure): "
                f"{_listed(self.assumed)}."
            )
        if len(self.tolerances_mm) > 1:
            yield f"The trainings of {name} were scored with different NSD tolerances, {self.tolerance_text()}."

    def tolerance_text(self) -> str:
        """Return "1 mm", or "WT 1 mm, ET 2 mm"; alternatives with "or" between them."""
        return " or ".join(_one_tolerance(tolerances) for tolerances in self.tolerances_mm)


def read_record(files: Iterable[Path]) -> Record | None:
    """Return what the records of one run say together; None if there is none that can be read."""
    records = [record for record in map(_read, files) if record]
    if not records:
        return None
    unscored: dict[str, str] = {}
    assumed: dict[str, None] = {}
    for record in records:
        unscored |= {str(case): str(reason) for case, reason in (record.get("not_scored") or {}).items()}
        without = [str(case) for case in record.get("missing") or ()]
        if record.get("missing_as_failure"):
            assumed |= dict.fromkeys(without)
        else:
            unscored |= dict.fromkeys(without, "no prediction")
    tolerances = [record["nsd_tolerance_mm"] for record in records if record.get("nsd_tolerance_mm")]
    return Record(unscored, list(assumed), _different(tolerances), _different(map(_software, records)))


def different_tolerances(run: Record | None, reference: Record | None, structures: Iterable[str]) -> list[str]:
    """Return the structures of both runs whose NSD was measured with tolerances that differ."""
    if run is None or reference is None:
        return []
    chosen = [{s: {t.get(s) for t in record.tolerances_mm} for s in structures} for record in (run, reference)]
    return [s for s in chosen[0] if chosen[0][s] and chosen[1][s] and chosen[0][s] != chosen[1][s]]


def _read(path: Path) -> dict[str, Any]:
    """Return the record; empty for a table of other software, and for a file that is no record."""
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return record if isinstance(record, dict) else {}


def _software(record: Mapping[str, Any]) -> str:
    versions = [f"{name} {record[name]}" for name in ("droseg", "numpy", "scipy") if record.get(name)]
    return ", ".join(versions)


def _different(values: Iterable[Any]) -> list[Any]:
    result: list[Any] = []
    for value in values:
        if value and value not in result:
            result.append(value)
    return result


def _one_tolerance(tolerances: Mapping[str, float]) -> str:
    values = set(tolerances.values())
    if len(values) == 1:
        return f"{values.pop():g} mm"
    return ", ".join(f"{structure} {value:g} mm" for structure, value in tolerances.items())


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return f"{len(names)} case{'' if len(names) == 1 else 's'} ({', '.join(names[:SHOWN])}{more})"
