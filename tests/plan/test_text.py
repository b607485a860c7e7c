from __future__ import annotations

import pytest
import yaml

from droseg.errors import BundleError
from droseg.plan.text import ConfigText, change_items, flow, set_leaf, setting

TEXT = """\
# A file.
imports:
  - $import torch

# ---- a section ----
# of a
a: 1 # one
b:
  # inside of b
  - _target_: pkg.First
    x: 1
  # of the second
  - _target_: Second
    y: 2 # two
c: {d: 1}
"""


def test_a_text_comes_back_as_it_was() -> None:
    assert str(ConfigText(TEXT)) == TEXT


def test_a_setting_takes_its_comments_with_it_and_leaves_the_others() -> None:
    text = ConfigText(TEXT)
    text.set("a", setting("a", 2, "two is more"))
    text.set("new", setting("new", [1, 2], "after a"), after="a")
    text.set("first", "first: 0", before="a")
    text.remove("c")
    result = str(text)
    assert yaml.safe_load(result).keys() == {"imports", "first", "a", "new", "b"}
    assert "a: 2 # two is more\nnew: [1, 2] # after a\n" in result
    assert "# of a\n" not in result
    assert "# ---- a section ----\nfirst: 0\n" in result
    assert "  # inside of b\n" in result


def test_a_long_reason_stands_above_and_no_line_is_longer_than_120() -> None:
    text = setting("spacing_mm", [1.0, 1.0, 1.0], "because " * 40)
    assert text.endswith("\nspacing_mm: [1.0, 1.0, 1.0]")
    assert max(map(len, text.splitlines())) <= 120
    assert yaml.safe_load(text) == {"spacing_mm": [1.0, 1.0, 1.0]}


def test_items_of_a_list_are_changed_with_the_comments_above_them() -> None:
    block = ConfigText(TEXT)["b"]
    seen = []

    def change(kind: str, item: str) -> str:
        seen.append((kind, item))
        return "" if kind == "Second" else item

    left = change_items(block, change)
    assert [kind for kind, _ in seen] == ["First", "Second"]
    assert seen[1][1].startswith("  # of the second\n")
    assert yaml.safe_load(left) == {"b": [{"_target_": "pkg.First", "x": 1}]}


def test_a_list_in_the_form_of_a_dump_is_read_too() -> None:
    block = "b:\n- {_target_: First, x: 1}\n- _target_: Second\n  y: 2\n"
    assert (
        change_items(block, lambda kind, item: item if kind == "Second" else "") == "b:\n- _target_: Second\n  y: 2\n"
    )


def test_a_leaf_is_set_by_its_path() -> None:
    block = "a:\n  b:\n    x: 1\n  c:\n    x: 2 # two\n"
    assert set_leaf(block, ("a", "c", "x"), "3 # three") == "a:\n  b:\n    x: 1\n  c:\n    x: 3 # three\n"
    with pytest.raises(BundleError, match="no a#d in its config"):
        set_leaf(block, ("a", "d", "x"), "3")


def test_a_leaf_that_is_not_there_is_put_into_its_mapping_and_no_other() -> None:
    block = "a:\n  b: # of b\n    y: 1\n  c:\n    x: 2\n"
    assert set_leaf(block, ("a", "b", "x"), "3") == "a:\n  b: # of b\n    y: 1\n    x: 3\n  c:\n    x: 2\n"
    dumped = "a:\n  b: {y: 1}\n  c: {x: 2}\n"
    assert yaml.safe_load(set_leaf(dumped, ("a", "b", "x"), "'@z'")) == {"a": {"b": {"y": 1, "x": "@z"}, "c": {"x": 2}}}
    assert yaml.safe_load(set_leaf("b: {y: 1}\n", ("b", "y"), "5")) == {"b": {"y": 5}}


@pytest.mark.parametrize(
    "value", [None, True, 0.001, "$len(@a)", "a: b", {"Left-Lung": 1, "no": [1, 2]}, [[2, 2, 1], 2]]
)
def test_a_value_on_one_line_is_read_back(value: object) -> None:
    text = flow(value)
    assert "\n" not in text
    assert yaml.safe_load(f"key: {text}") == {"key": value}
