"""The groups that objectives tell apart: disjoint or overlapping, and what is refused."""

from __future__ import annotations

import logging

import numpy as np
import pytest

from droseg.errors import InputError
from droseg.objectives.groups import NO_GROUP, overlapping_groups, product_groups

GROUPS = [{"a": "1", "b": "x"}, {"a": "2", "b": "x"}, {"a": "1"}, {"a": "1", "b": "x"}]


def test_a_product_is_disjoint_and_a_missing_value_is_a_group():
    groups = product_groups(GROUPS, ["a", "b"])
    assert groups.names == (f"a=1, b={NO_GROUP}", "a=1, b=x", "a=2, b=x")
    assert [each.tolist() for each in groups.members] == [[2], [0, 3], [1]]
    assert groups.of_case(4).tolist() == [1, 2, 0, 1]
    assert groups.sizes.tolist() == [1, 2, 1]


def test_overlapping_groups_hold_every_case_once_per_axis():
    groups = overlapping_groups(GROUPS, ["a", "b"])
    assert groups.names == ("a=1", "a=2", f"b={NO_GROUP}", "b=x")
    assert np.bincount(np.concatenate(groups.members)).tolist() == [2, 2, 2, 2]
    assert groups.axis == (0, 0, 1, 1)


@pytest.mark.parametrize("name", ["group_dro", "group_balanced", "febs", "two_level"])
@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"groups": ()}, r"none of the 8 training cases \(a, ...\) has a group.*needs none"),
        ({"groups": ({},) * 8}, "none of the 8 training cases"),
        ({"axes": ["anatomi"]}, "no training case has the group axis anatomi; set objective_axes to some of: anatomy"),
        ({"axes": []}, "no group axis is given"),
        (
            {"groups": ({"anatomy": "rare"},) * 8},
            "all 8 training cases are in one group, anatomy=rare; there is nothing",
        ),
    ],
)
def test_an_objective_of_groups_says_what_is_missing(objective_of, name: str, given: dict, message: str):
    with pytest.raises(InputError, match=f"objective {name}: .*{message}"):
        objective_of(name, **given)


@pytest.mark.parametrize("name", ["erm", "jtt", "rgd"])
def test_other_objectives_need_no_groups(objective_of, name: str):
    options = {"first_epochs": 1} if name == "jtt" else {}
    assert objective_of(name, groups=(), **options).name == name


def test_one_axis_may_be_given_as_a_word(objective_of):
    assert objective_of("group_balanced", axes="site").groups.names == ("site=x", "site=y")


def test_small_groups_are_warned_of_on_one_rank(objective_of, caplog):
    with caplog.at_level(logging.WARNING):
        objective_of("group_balanced", axes=["anatomy"])
        assert "1 of 2 groups have fewer than 5 training cases: anatomy=rare (2)" in caplog.text
        caplog.clear()
        objective_of("group_balanced", axes=["anatomy"], rank=1, world_size=2)
        assert caplog.text == ""
