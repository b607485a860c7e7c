"""Penalized values and worst groups, on tables small enough to compute by hand."""

import numpy as np
import pandas as pd
import pytest

from droseg.metrics import (
    group_values,
    is_false_positive,
    is_missed,
    largest_value,
    penalized,
    share_diagonals,
    worst_group,
)

NAN = float("nan")


def table(rows):
    columns = ["case_id", "structure", "dice", "hd95_mm", "volume_ref_ml", "volume_pred_ml", "anatomy", "diagonal_mm"]
    return pd.DataFrame(rows, columns=columns)


@pytest.fixture
def cases():
    return table(
        [
            ("c1", "a", 0.9, 2.0, 5.0, 5.0, "typical", 100.0),
            ("c1", "b", 0.8, 3.0, 5.0, 5.0, "typical", 100.0),
            ("c2", "a", 0.0, NAN, 5.0, 0.0, "rare", 200.0),  # missed
            ("c2", "b", NAN, NAN, 0.0, 0.0, "rare", 200.0),  # not in scope
            ("c3", "a", 0.7, 4.0, 5.0, 5.0, "typical", 300.0),
            ("c3", "b", 0.0, NAN, 0.0, 1.0, "typical", 300.0),  # false positive
        ]
    )


def test_failures_count_as_zero_dice_and_the_image_diagonal(cases):
    assert penalized(cases, "dice").tolist() == pytest.approx([0.9, 0.8, 0.0, NAN, 0.7, 0.0], nan_ok=True)
    assert penalized(cases, "hd95_mm").tolist() == pytest.approx([2.0, 3.0, 200.0, NAN, 4.0, 300.0], nan_ok=True)


def test_missed_and_false_positive_are_read_off_the_volumes(cases):
    assert is_missed(cases).tolist() == [False, False, True, False, False, False]
    assert is_false_positive(cases).tolist() == [False, False, False, False, False, True]


def test_without_a_diagonal_the_largest_finite_distance_stands_for_it(cases):
    other = cases.drop(columns="diagonal_mm")
    assert penalized(other, "hd95_mm").tolist() == pytest.approx([2.0, 3.0, 4.0, NAN, 4.0, 4.0], nan_ok=True)


def test_without_volumes_zero_dice_without_a_distance_is_a_failure(cases):
    other = cases.drop(columns=["volume_ref_ml", "volume_pred_ml"])
    other.loc[2, "hd95_mm"] = np.inf  # how some software writes the distance to nothing
    assert penalized(other, "hd95_mm").tolist() == pytest.approx([2.0, 3.0, 200.0, NAN, 4.0, 300.0], nan_ok=True)


def test_group_values_average_structures_first_then_cases(cases):
    values = group_values(cases, ["anatomy"], "dice")
    assert values[["axis", "group", "n"]].values.tolist() == [
        ["all", "all", 3],
        ["anatomy", "rare", 1],
        ["anatomy", "typical", 2],
    ]
    assert values["value"].tolist() == pytest.approx([(0.85 + 0.0 + 0.35) / 3, 0.0, (0.85 + 0.35) / 2])


def test_the_worst_group_is_the_lowest_dice_and_the_largest_distance(cases):
    assert worst_group(cases, ["anatomy"], "dice") == ("anatomy", "rare", 0.0)
    assert worst_group(cases, ["anatomy"], "hd95_mm") == ("anatomy", "rare", 200.0)


def test_without_axes_the_worst_group_is_everyone(cases):
    assert worst_group(cases, [], "dice")[:2] == ("all", "all")


def test_an_unknown_metric_is_named(cases):
    with pytest.raises(KeyError, match="hd99"):
        penalized(cases, "hd99")


def test_a_case_with_nothing_in_scope_has_no_value():
    only = table([("c1", "a", NAN, NAN, 0.0, 0.0, "rare", 100.0)])
    values = group_values(only, ["anatomy"], "dice")
    assert values["n"].tolist() == [0]
    assert np.isnan(worst_group(only, ["anatomy"], "dice")[2])


def test_one_penalty_can_be_given_to_tables_that_are_compared(cases):
    other = cases.drop(columns="diagonal_mm")
    assert largest_value(other, "hd95_mm") == 4.0
    assert penalized(other, "hd95_mm", 50.0).tolist() == pytest.approx([2.0, 3.0, 50.0, NAN, 4.0, 50.0], nan_ok=True)
    assert penalized(cases, "hd95_mm", 50.0)[2] == 200.0  # a known diagonal goes first


def test_a_diagonal_that_one_table_knows_holds_for_both(cases):
    first, second = share_diagonals(cases, cases.drop(columns="diagonal_mm"))
    assert first["diagonal_mm"].tolist() == second["diagonal_mm"].tolist() == cases["diagonal_mm"].tolist()
    larger = cases.assign(diagonal_mm=[100.0, 100.0, NAN, NAN, 301.0, 301.0])
    assert share_diagonals(cases, larger)[0]["diagonal_mm"].tolist() == [100.0, 100.0, 200.0, 200.0, 301.0, 301.0]
    without = cases.drop(columns="diagonal_mm")
    assert "diagonal_mm" not in share_diagonals(without, without)[0]
