"""What a found slice has to do with the groups that have a name already."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import pandas as pd
from numpy.typing import NDArray

SAME: Final = 0.8
"""A slice is the known group if their Jaccard index is at least this, and lies in it if this share of it does."""


@dataclass(frozen=True)
class Overlap:
    """How much of a slice is one known group.

    Attributes:
        group: "axis=value".
        jaccard: cases in both over cases in any of the two.
        n_both: cases in both.
        n_slice: cases of the slice.
        n_group: cases of the known group.
        mean_rest: mean of the metric over the cases of the group outside of the slice; NaN if there are none.
    """

    group: str
    jaccard: float
    n_both: int
    n_slice: int
    n_group: int
    mean_rest: float

    @property
    def is_known(self) -> bool:
        """Whether the slice is the known group, but for a few cases."""
        return self.jaccard >= SAME

    def __str__(self) -> str:
        share = f"{self.n_both} of its {self.n_slice} cases"
        if self.is_known:
            return f"this is the known group {self.group} ({share} and {self.n_both} of that group's {self.n_group})"
        if not self.n_both:
            return "no case in common with a known group"
        if self.n_both < SAME * self.n_slice:
            return f"most in common with {self.group}: {share}"
        rest = self.n_group - self.n_both
        return f"lies in the known group {self.group} ({share}); mean {self.mean_rest:.3g} in the other {rest} of it"


def largest_overlap(inside: NDArray[np.bool_], known: pd.DataFrame, values: pd.Series) -> Overlap | None:
    """Return the known group that the slice resembles most; None without groups.

    The group with the largest Jaccard index if that makes it the same; else the smallest one in which the slice lies;
    else the one with the largest Jaccard index.

    Args:
        inside: whether each case is in the slice.
        known: one row per case, one column per axis; a case may have no group on an axis.
        values: the metric of each case.
    """
    overlaps = []
    for axis in known.columns:
        for group in sorted(known[axis].dropna().astype(str).unique()):
            of_group = (known[axis].astype(str) == group).to_numpy() & known[axis].notna().to_numpy()
            if of_group.all():
                continue  # everyone: every slice lies in it
            both, rest = inside & of_group, values[of_group & ~inside]
            overlaps.append(
                Overlap(
                    group=f"{axis}={group}",
                    jaccard=float(both.sum() / (inside | of_group).sum()),
                    n_both=int(both.sum()),
                    n_slice=int(inside.sum()),
                    n_group=int(of_group.sum()),
                    mean_rest=float(rest.mean()) if len(rest) else float("nan"),
                )
            )
    around = [overlap for overlap in overlaps if overlap.n_both >= SAME * overlap.n_slice]
    closest = max(overlaps, key=lambda overlap: overlap.jaccard, default=None)
    if closest is None or closest.is_known or not around:
        return closest
    return min(around, key=lambda overlap: overlap.n_group)
