"""Cross-screening: each half of the patients proposes rules, and the other half tests them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from droseg.discovery.confirm import permutation_p_values
from droseg.discovery.search import Rules, shortlist

ALONE: Final = 0.1
"""The p-value of a rule alone may be this share of alpha. Chosen by simulation: in cohorts where a slice only spreads
more the false alarms then are those asked for (scripts/bench_discovery.py); a half, as for one rule, is too lenient."""


@dataclass(frozen=True)
class Proposal:
    """A rule that one half proposed and the other half tested, see `permutation_p_values`.

    Attributes:
        rule: its row among the rules.
        members: 1 inside, 0 outside, NaN neither, (cases,).
        p: of this rule alone.
        p_adjusted: corrected for all rules that were tested, in both directions.
        search: positions of the cases of the half that proposed it.
        confirm: of the other half.
    """

    rule: int
    members: NDArray[np.float64]
    p: float
    p_adjusted: float
    search: NDArray[np.intp]
    confirm: NDArray[np.intp]

    def passes(self, alpha: float) -> bool:
        """Return whether both p-values are small enough."""
        return self.p_adjusted <= alpha and self.p <= ALONE * alpha


def cross_screen(
    rules: Rules,
    patients: NDArray[np.intp],
    halves: Sequence[NDArray[np.intp]],
    badness: NDArray[np.float64],
    num_permutations: int,
    rng: np.random.Generator,
) -> list[list[Proposal]]:
    """Return the tested rules of each half that proposed any, in the order in which it proposed them.

    Args:
        rules: what to choose from.
        patients: number of the patient of each case.
        halves: positions of the cases of both halves.
        badness: larger is worse, (cases,).
        num_permutations: of each test.
        rng: source of the draws.
    """
    proposals: list[list[Proposal]] = []
    for search, confirm in (halves, halves[::-1]):
        proposed = shortlist(rules, search, badness[search].astype(np.float32))
        if not proposed:
            continue
        members = np.stack([rules.members(rule) for rule in proposed])
        p_values, adjusted = permutation_p_values(
            badness[confirm], patients[confirm], members[:, confirm], num_permutations, rng
        )
        # Two tests of the cohort, each at half of alpha.
        rows = zip(proposed, members, p_values, np.minimum(1.0, 2 * adjusted), strict=True)
        proposals.append([Proposal(*row, search, confirm) for row in rows])
    return proposals
