"""Penalized values and worst groups, on tables small enough to compute by hand."""

import numpy as np
import pandas as pd
import pytest

from droseg.metrics import (
    COLUMNS,
    EVALUATION_METRICS,
    bad_tail,
    group_values,
    has_direction,
    hausdorff_percentile,
    higher_is_better,
    is_false_positive,
    is_missed,
    is_own_column,
    largest_value,
    penalized,
    share_diagonals,
    worst_group,
)
from droseg.metrics.names import tail_name

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


def test_errors_are_measured_on_failures_too_and_keep_their_value(cases):
    other = cases.assign(betti0_error=[0.0, 1.0, 2.0, NAN, 0.0, NAN])
    assert penalized(other, "betti0_error").tolist() == pytest.approx([0.0, 1.0, 2.0, NAN, 0.0, 2.0], nan_ok=True)


@pytest.mark.parametrize("metric", ["volume_error_ml", "num_components_pred", "volume_ref_ml"])
def test_what_has_no_better_and_worse_is_not_penalized(cases, metric):
    other = cases.assign(**{metric: [-3.0, 1.0, -5.0, 0.0, 2.0, 1.0]})
    assert not has_direction(metric)
    assert penalized(other, metric).tolist() == other[metric].tolist()


@pytest.mark.parametrize(
    ("name", "percentile"),
    [("hd_mm", 100), ("hd95_mm", 95), ("hd99.5_mm", 99.5), ("hd0_mm", None), ("hd101_mm", None), ("hd95", None)],
)
def test_the_name_of_a_hausdorff_distance_says_its_percentile(name, percentile):
    assert hausdorff_percentile(name) == percentile
    assert is_own_column(name) == (percentile is not None)


def test_group_axes_are_told_from_droseg_s_own_columns():
    own = [*COLUMNS, *EVALUATION_METRICS, "hd90_mm", "betti1_error", "diagonal_mm"]
    assert all(is_own_column(name) for name in own)
    assert not any(is_own_column(name) for name in ("anatomy", "protocol", "site_mm", "num_components", "seed"))


def test_group_values_average_structures_first_then_cases(cases):
    values = group_values(cases, ["anatomy"], "dice")
    assert values[["axis", "group", "n"]].values.tolist() == [
        ["all", "all", 3],
        ["anatomy", "rare", 1],
        ["anatomy", "typical", 2],
    ]
    assert values["value"].tolist() == pytest.approx([(0.85 + 0.0 + 0.35) / 3, 0.0, (0.85 + 0.35) / 2])


def test_the_bad_tail_is_low_for_scores_and_high_for_distances_and_errors():
    values = np.arange(21, dtype=float)
    assert bad_tail(values, "dice") == 2.0
    assert bad_tail(values, "hd95_mm") == bad_tail(values, "betti1_error") == 18.0
    assert np.isnan(bad_tail(values[:0], "dice"))


@pytest.mark.parametrize(
    ("metric", "name"),
    [("dice", "dice_p10"), ("hd95_mm", "hd95_p90_mm"), ("betti0_error", "betti0_p90_error"), ("score", "score_p10")],
)
def test_the_name_of_a_bad_tail_keeps_the_unit_last_and_so_the_direction(metric, name):
    assert tail_name(metric) == name
    assert higher_is_better(name) == higher_is_better(metric)


def test_the_group_with_the_worst_tail_need_not_have_the_worst_mean():
    dice = {"steady": [0.8] * 11, "failing": [0.1, 0.6, *[0.95] * 9]}
    rows = [
        (f"{group}{i}", "a", value, 1.0, 5.0, 5.0, group, 100.0)
        for group, values in dice.items()
        for i, value in enumerate(values)
    ]
    cases = table(rows)
    assert worst_group(cases, ["anatomy"], "dice") == ("anatomy", "steady", pytest.approx(0.8))
    # The 10th percentile of eleven values is the second lowest one.
    assert worst_group(cases, ["anatomy"], "dice", by="tail") == ("anatomy", "failing", pytest.approx(0.6))
    tails = group_values(cases, ["anatomy"], "dice").set_index("group")["tail"]
    assert tails.to_dict() == pytest.approx({"all": 0.8, "steady": 0.8, "failing": 0.6})


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
