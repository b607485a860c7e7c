"""A slice as a group axis: of a datalist, for training and reports by it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pandas as pd

from droseg.data.datalist import Case, Datalist
from droseg.discovery.conditions import rule_holds
from droseg.discovery.subgroups import HiddenSubgroup

INSIDE, OUTSIDE = "inside", "outside"
PREFIX = "hidden_"


def axis_names(count: int, taken: Sequence[str]) -> list[str]:
    """Return `hidden_1`, `hidden_2`, ... without those that are taken."""
    numbers = (number for number in range(1, count + len(taken) + 1) if f"{PREFIX}{number}" not in taken)
    return [f"{PREFIX}{number}" for number, _ in zip(numbers, range(count), strict=False)]


def with_hidden_axes(
    datalist: Datalist, features: pd.DataFrame, subgroups: Sequence[HiddenSubgroup], axes: Sequence[str]
) -> Datalist:
    """Return the datalist with one more axis per subgroup: `inside` or `outside`, in every section.

    A case without a feature that the rule needs gets no group on its axis.

    Args:
        datalist: what to add to.
        features: index case_id; the features and groups that the rules were made of, of the cases of all sections.
        subgroups: one per axis.
        axes: their names.
    """
    members = pd.DataFrame(
        {axis: rule_holds(s.conditions, features) for axis, s in zip(axes, subgroups, strict=True)},
        index=features.index,
    )

    def extended(case: Case) -> Case:
        if case.case_id not in members.index:
            return case
        row = members.loc[case.case_id].dropna()
        return replace(case, groups={**case.groups, **{str(a): INSIDE if v else OUTSIDE for a, v in row.items()}})

    sections = {name: tuple(extended(case) for case in cases) for name, cases in datalist.sections.items()}
    return replace(datalist, sections=sections)
