"""Group-balanced sampling: every group equally often."""

from __future__ import annotations

import numpy as np

from droseg.objectives.base import Objective, Setting
from droseg.objectives.groups import CaseGroups, groups_of
from droseg.sampling import GroupBalancedBatchSampler, LossHistory, RecordingBatchSampler


class GroupBalanced(Objective):
    """min over theta of the mean over groups of the group's mean loss, by drawing a group and then a case of it.

    RWG of Idrissi et al. 2022, CLeaR, arXiv:2110.14503: every group is seen equally often in expectation; all weights
    are 1.

    Args:
        setting: cases, groups and batches.
        overlapping: False: the groups are the combinations of values on all axes. True: those of each axis by itself.
        replacement: whether a case may be in a batch twice. If not, small groups have less than their share.
    Raises:
        ValueError: if there are no groups to balance.
    """

    name = "group_balanced"

    def __init__(self, setting: Setting, overlapping: bool = False, replacement: bool = True) -> None:
        self.groups = groups_of(setting, overlapping)
        super().__init__(setting.history, balanced_sampler(setting, self.groups, replacement))

    def risk(self) -> float:
        """Return the mean over groups of their mean stale loss."""
        return float(np.nanmean(group_means(self.history, self.groups)))


def balanced_sampler(setting: Setting, groups: CaseGroups, replacement: bool) -> RecordingBatchSampler:
    """Return the sampler that draws every group equally often."""
    return GroupBalancedBatchSampler(
        setting.history,
        groups.members,
        setting.batch_size,
        setting.num_batches,
        replacement,
        setting.seed,
        setting.rank,
        setting.world_size,
    )


def sampler_of(setting: Setting, groups: CaseGroups, sampling: str, replacement: bool) -> RecordingBatchSampler:
    """Return the sampler of an objective that weights losses by group: "uniform" over the groups, or "shuffled".

    Raises:
        ValueError: for another name.
    """
    if sampling == "uniform":
        return balanced_sampler(setting, groups, replacement)
    if sampling == "shuffled":
        return setting.shuffled()
    raise ValueError(f"sampling is {sampling!r}; choose uniform (every group equally often) or shuffled (every case).")


def group_means(history: LossHistory, groups: CaseGroups) -> np.ndarray:
    """Return the mean stale loss of each group, shape (G,); NaN if all its cases were taken out."""
    counted = history.counted
    kept = [members[counted[members]] for members in groups.members]
    return np.array([history.loss[each].mean() if len(each) else np.nan for each in kept])
