"""Hidden subgroups: readable slices of the cases that no one named and in which a metric is bad, confirmed honestly."""

from droseg.discovery.conditions import Condition, rule_holds
from droseg.discovery.export import axis_names, with_hidden_axes
from droseg.discovery.features import (
    datalist_features,
    group_features,
    merge_features,
    read_features,
    volume_features,
)
from droseg.discovery.overlap import Overlap
from droseg.discovery.power import VisibleEffect, visible_effect
from droseg.discovery.subgroups import HiddenSubgroup, find_hidden_subgroups, hidden_table

__all__ = [
    "Condition",
    "HiddenSubgroup",
    "Overlap",
    "VisibleEffect",
    "axis_names",
    "datalist_features",
    "find_hidden_subgroups",
    "group_features",
    "hidden_table",
    "merge_features",
    "read_features",
    "rule_holds",
    "visible_effect",
    "volume_features",
    "with_hidden_axes",
]
