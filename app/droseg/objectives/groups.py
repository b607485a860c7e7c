"""The groups that an objective tells apart, from the axes of the datalist."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from droseg.objectives.base import Setting

logger = logging.getLogger(__name__)

SMALL_GROUP = 5
"""Cases below which a group that counts by itself is warned of."""

NO_GROUP = "(none)"
"""Stands for the value of a case that has no group on an axis."""


@dataclass(frozen=True)
class CaseGroups:
    """Groups of the training cases; on one axis or the product of several they are disjoint.

    Attributes:
        names: of each group, e.g. "anatomy=spina_bifida" or "anatomy=typical, site=b".
        members: ascending case indices of each group, none empty.
        axis: of each group, which of the axes it belongs to (0 for a product).
    """

    names: tuple[str, ...]
    members: tuple[np.ndarray, ...]
    axis: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.names)

    @property
    def sizes(self) -> np.ndarray:
        """Number of cases of each group, shape (G,)."""
        return np.array([len(each) for each in self.members])

    def of_case(self, num_cases: int) -> np.ndarray:
        """Return the group of each case, shape (N,); for disjoint groups."""
        result = np.full(num_cases, -1, dtype=np.int32)
        for group, members in enumerate(self.members):
            result[members] = group
        return result


def product_groups(groups: Sequence[Mapping[str, str]], axes: Sequence[str]) -> CaseGroups:
    """Return disjoint groups: every combination of values on these axes that occurs.

    Args:
        groups: axis -> value of each training case.
        axes: one or several.
    """
    values = [tuple(str(case.get(axis, NO_GROUP)) for axis in axes) for case in groups]
    found = sorted(set(values))
    number = {value: group for group, value in enumerate(found)}
    group_of_case = np.array([number[value] for value in values])
    members = tuple(np.flatnonzero(group_of_case == group).astype(np.int32) for group in range(len(found)))
    names = tuple(", ".join(f"{a}={v}" for a, v in zip(axes, each, strict=True)) for each in found)
    return CaseGroups(names, members, (0,) * len(found))


def overlapping_groups(groups: Sequence[Mapping[str, str]], axes: Sequence[str]) -> CaseGroups:
    """Return the groups of every axis by itself; each case belongs to one group per axis."""
    single = [product_groups(groups, [axis]) for axis in axes]
    return CaseGroups(
        tuple(name for each in single for name in each.names),
        tuple(members for each in single for members in each.members),
        tuple(number for number, each in enumerate(single) for _ in each.names),
    )


def all_axes(groups: Sequence[Mapping[str, str]]) -> tuple[str, ...]:
    """Return every axis that occurs, sorted."""
    return tuple(sorted({axis for case in groups for axis in case}))


def groups_of(setting: Setting, overlapping: bool = False) -> CaseGroups:
    """Return the groups that an objective tells apart: on the product of its axes, or each axis by itself.

    A case without a value on an axis is in the group "(none)" of that axis.

    Raises:
        ValueError: if there are no groups, an axis occurs in no case, or all cases are in one group.
    """
    known = all_axes(setting.groups)
    if len(setting.groups) != len(setting.history) or not known:
        raise ValueError(
            f"none of the {len(setting.history)} training cases ({setting.history.case_ids[0]}, ...) has a group; "
            "give the datalist's cases groups (axis -> value), or choose an objective that needs none."
        )
    unknown = [axis for axis in setting.axes if axis not in known]
    if unknown or not setting.axes:
        found = f"no training case has the group axis {', '.join(unknown)}" if unknown else "no group axis is given"
        raise ValueError(f"{found}; set objective_axes to some of: {', '.join(known)}.")
    axes = list(dict.fromkeys(setting.axes))
    result = overlapping_groups(setting.groups, axes) if overlapping else product_groups(setting.groups, axes)
    if len(result) < 2:
        raise ValueError(
            f"all {len(setting.history)} training cases are in one group, {', '.join(result.names)}; there is nothing "
            f"to balance. Set objective_axes to others of: {', '.join(known)}, or choose an objective without groups."
        )
    small = [f"{n} ({k})" for n, k in zip(result.names, result.sizes, strict=True) if k < SMALL_GROUP]
    if small and setting.rank == 0:
        logger.warning(
            "%d of %d groups have fewer than %d training cases: %s. Where each group counts by itself, so few are soon "
            "learned by heart; set objective_axes to fewer axes if that is not wanted.",
            len(small), len(result), SMALL_GROUP, "; ".join(small[:5]) + ("; ..." if len(small) > 5 else ""),
        )  # fmt: skip
    return result


def check_same_groups(saved: Sequence[str], groups: CaseGroups) -> None:
    """Refuse the state of other groups.

    Raises:
        ValueError: naming what differs.
    """
    if tuple(saved) != groups.names:
        differing = sorted(set(saved) ^ set(groups.names))[:5]
        raise ValueError(f"the saved state is of other groups (differing: {'; '.join(differing) or 'their order'}).")
