"""Pseudonyms for cases and patients, so that a report may leave the hospital."""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd

from droseg.errors import InputError
from droseg.report.evidence import Evidence
from droseg.report.pictures import Picture

_KEY_COLUMNS = ["kind", "id", "pseudonym"]


@dataclass(frozen=True)
class Pseudonyms:
    """What stands for the ids of cases and patients.

    The numbers are drawn at random, so that neither the order of the ids nor a hash of them can be undone.
    """

    cases: Mapping[str, str]
    patients: Mapping[str, str]

    def apply(self, run: Evidence) -> Evidence:
        """Return the evidence of a run, and of its reference, without an id; rows in the order of the pseudonyms."""
        comparison = run.comparison
        if comparison is not None:
            comparison = replace(
                comparison,
                run_alone=comparison.run_alone.renamed(self.case),
                baseline_alone=comparison.baseline_alone.renamed(self.case),
            )
        return replace(
            run,
            cases=self._table(run.cases),
            partly=sorted(map(self.case, run.partly)),
            record=None if run.record is None else run.record.renamed(self.case),
            reference=None if run.reference is None else self.apply(run.reference),
            comparison=comparison,
        )

    def picture(self, picture: Picture) -> Picture:
        """Return the picture under its pseudonym; why there is none may name files, so that is left out."""
        problem = "a report without --pseudonyms says why." if picture.problem else ""
        return replace(picture, case_id=self.case(picture.case_id), problem=problem)

    def case(self, case_id: str) -> str:
        """Return the pseudonym of a case."""
        return self.cases[case_id]

    def _table(self, cases: pd.DataFrame) -> pd.DataFrame:
        table = cases.assign(
            case_id=cases["case_id"].map(self.cases), patient_id=cases["patient_id"].map(self.patients)
        )
        return table.sort_values("case_id", kind="stable").reset_index(drop=True)


def draw_pseudonyms(runs: Sequence[Evidence], key: Path | None = None) -> Pseudonyms:
    """Return pseudonyms for all ids of the runs and their reference.

    Args:
        runs: evidence with the real ids.
        key: CSV that says which pseudonym is whom. It is written, and pseudonyms in it stay the same. Keep it where
            the ids may be.

    Raises:
        InputError: if an axis groups by the patients themselves, or the key cannot be used.
    """
    sides = [*runs, *(run.reference for run in runs if run.reference is not None)]
    for run in runs:
        _refuse_ids_as_groups(run)
    known = _read_key(key)
    found: dict[str, dict[str, str]] = {}
    for kind, column in (("case", "case_id"), ("patient", "patient_id")):
        ids = dict.fromkeys(str(value) for side in sides for value in side.cases[column])
        others = [case_id for side in sides for case_id in _further_cases(side)] if kind == "case" else []
        found[kind] = _draw([*ids, *others], kind, known.get(kind, {}))
    if key is not None:
        _write_key(key, found)
    return Pseudonyms(found["case"], found["patient"])


def _further_cases(side: Evidence) -> list[str]:
    """Return the cases that a report may name although its table lacks them."""
    return [*side.partly, *([] if side.record is None else [*side.record.unscored, *side.record.assumed])]


def _draw(ids: Iterable[str], kind: str, known: Mapping[str, str]) -> dict[str, str]:
    names = dict(known)
    new = [name for name in dict.fromkeys(ids) if name not in names]
    secrets.SystemRandom().shuffle(new)
    width = max(3, len(str(len(names) + len(new))))
    number, taken = 0, set(names.values())
    for name in new:
        while (pseudonym := f"{kind}_{(number := number + 1):0{width}d}") in taken:
            pass
        names[name] = pseudonym
    return names


def _refuse_ids_as_groups(run: Evidence) -> None:
    for axis in run.axes:
        groups = set(run.cases[axis].dropna().astype(str))
        for column in ("case_id", "patient_id"):
            ids = set(run.cases[column].astype(str))
            if len(groups) > len(ids) / 2 and groups <= ids:
                raise InputError(f"--pseudonyms: the groups of '{axis}' are ids ({column}); leave out that axis.")


def _read_key(key: Path | None) -> dict[str, dict[str, str]]:
    if key is None or not key.exists():
        return {}
    try:
        table = pd.read_csv(key, dtype=str, keep_default_na=False)
        if list(table.columns) != _KEY_COLUMNS:
            raise ValueError(f"its columns are {', '.join(table.columns)}, not {', '.join(_KEY_COLUMNS)}")
    except (OSError, ValueError) as error:
        raise InputError(f"{key}: not a key of pseudonyms ({error}); give a new file by --pseudonym-key.") from error
    return {str(kind): dict(zip(rows["id"], rows["pseudonym"], strict=True)) for kind, rows in table.groupby("kind")}


def _write_key(key: Path, found: Mapping[str, Mapping[str, str]]) -> None:
    rows = [(kind, name, pseudonym) for kind, names in found.items() for name, pseudonym in names.items()]
    try:
        key.parent.mkdir(parents=True, exist_ok=True)
        pd.DataFrame(rows, columns=_KEY_COLUMNS).to_csv(key, index=False)
    except OSError as error:
        raise InputError(f"{key}: the key cannot be written ({error.strerror}); choose another file.") from error
