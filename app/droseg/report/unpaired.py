"""What only one of two compared runs has: cases, structures, and single rows; none of it can be compared."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import pandas as pd

SHOWN = 10
"""Names that a sentence lists; report.json has all of them."""
Row = tuple[str, str]


@dataclass(frozen=True)
class Unpaired:
    """What one run has and the other lacks.

    Attributes:
        cases: cases that the other has no row of.
        structures: structures that the other has no row of.
        rows: case and structure that the other lacks although it has the case and, of others, the structure.
    """

    cases: Sequence[str] = ()
    structures: Sequence[str] = ()
    rows: Sequence[Row] = field(default_factory=tuple)

    def renamed(self, case: Callable[[str], str]) -> Unpaired:
        """Return the same with other names of the cases, in their order."""
        rows = sorted((case(case_id), structure) for case_id, structure in self.rows)
        return replace(self, cases=sorted(map(case, self.cases)), rows=rows)

    def sentences(self, name: str, shared: Sequence[str]) -> Iterator[str]:
        """Yield what is only in the run of this name.

        Args:
            name: what to call the run.
            shared: the structures that both runs have.
        """
        if self.cases:
            yield f"only in {name}, not compared: {_listed(self.cases, 'cases')}"
        if self.structures:
            yield (
                f"only in {name}, not compared: structure {', '.join(self.structures)}; means over structures are over "
                f"{', '.join(shared)} here"
            )
        if self.rows:
            structures = ", ".join(dict.fromkeys(structure for _, structure in self.rows))
            rows = _listed([f"{case_id}: {structure}" for case_id, structure in self.rows], "rows")
            yield (
                f"only in {name}, not compared: {len(self.rows)} rows ({structures}), {rows}; the mean over structures "
                "of these cases is over their other structures in both runs"
            )


def unpaired(run: pd.DataFrame, other: pd.DataFrame) -> Unpaired:
    """Return what the other cases table lacks of a run's, in the order of the run."""
    own_cases, own_structures = (list(run[column].unique()) for column in ("case_id", "structure"))
    cases, structures = set(other["case_id"]), set(other["structure"])
    keys = set(zip(other["case_id"], other["structure"], strict=True))
    comparable = run[run["case_id"].isin(cases) & run["structure"].isin(structures)]
    own_keys = zip(comparable["case_id"], comparable["structure"], strict=True)
    return Unpaired(
        [case for case in own_cases if case not in cases],
        [structure for structure in own_structures if structure not in structures],
        [key for key in own_keys if key not in keys],
    )


def _listed(names: Sequence[str], what: str) -> str:
    more = f" and {len(names) - SHOWN} more {what} (all of them in report.json)" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more
