"""subgroups.csv against pandas, closed forms of the bootstrap, and hand-made failures."""

import numpy as np
import pandas as pd
import pytest

from droseg.report import subgroup_table
from droseg.report.subgroups import COLUMNS, bootstrap_means

AXES, METRICS = ["anatomy", "protocol"], ["dice", "hd95_mm"]


def row(table, axis, group, structure, metric):
    keys = table[["axis", "group", "structure", "metric"]] == [axis, group, structure, metric]
    return table[keys.all(axis=1)].iloc[0]


def test_columns_and_rows_are_in_the_agreed_order(make_cases):
    table = subgroup_table(make_cases(), AXES, METRICS, num_bootstrap=50)
    assert ", ".join(table.columns) == (
        "axis, group, structure, metric, n, n_undefined, n_missed, mean, std, median, p25, p75, p5, p10, p90, p95, "
        "worst, ci_low, ci_high"
    )
    groups = list(dict.fromkeys(zip(table["axis"], table["group"], strict=True)))
    assert groups == [
        ("all", "all"),
        ("anatomy", "rare"),
        ("anatomy", "typical"),
        ("protocol", "site_0"),
        ("protocol", "site_1"),
    ]
    assert list(dict.fromkeys(table["structure"])) == ["a", "b", "c", "mean"]
    assert len(table) == 5 * 4 * 2
    assert tuple(table.columns) == COLUMNS


def test_statistics_equal_those_of_pandas(make_cases):
    cases = make_cases()
    table = subgroup_table(cases, AXES, METRICS, num_bootstrap=50)
    values = cases[(cases["anatomy"] == "typical") & (cases["structure"] == "a")]["hd95_mm"]
    found = row(table, "anatomy", "typical", "a", "hd95_mm")
    quantiles = {f"p{p}": values.quantile(p / 100) for p in (5, 10, 25, 75, 90, 95)}
    expected = {"n": 18, "mean": values.mean(), "std": values.std(), "median": values.median(), **quantiles}
    assert found[list(expected)].to_dict() == pytest.approx(expected)
    assert found["worst"] == values.max()
    assert (
        row(table, "anatomy", "typical", "a", "dice")["worst"]
        == cases[cases["anatomy"] == "typical"].query("structure == 'a'")["dice"].min()
    )


def test_undefined_values_are_counted_and_left_out(make_cases):
    table = subgroup_table(make_cases(), AXES, METRICS, num_bootstrap=50)
    missed, absent = (row(table, "anatomy", "rare", s, "hd95_mm") for s in "bc")
    assert missed[["n", "n_undefined", "n_missed"]].tolist() == [6, 1, 1]
    assert absent[["n", "n_undefined", "n_missed"]].tolist() == [6, 1, 0]
    dice = row(table, "anatomy", "rare", "b", "dice")
    assert dice[["n", "n_undefined", "n_missed"]].tolist() == [6, 0, 1]
    assert dice["worst"] == 0.0


def test_mean_averages_the_structures_of_a_case_first(make_cases):
    cases = make_cases()
    found = row(subgroup_table(cases, [], ["dice"], num_bootstrap=50), "all", "all", "mean", "dice")
    per_case = cases.groupby("case_id")["dice"].mean()
    assert found["mean"] == pytest.approx(per_case.mean())
    assert found["n"] == 24
    assert found["n_missed"] == 1


def test_penalized_values_count_a_missed_structure_by_the_diagonal(make_cases):
    table = subgroup_table(make_cases(), AXES, METRICS, penalize=True, num_bootstrap=50)
    assert row(table, "anatomy", "rare", "b", "hd95_mm")["worst"] == 150.0


def test_fewer_than_five_patients_get_no_interval(make_cases):
    cases = make_cases(num_cases=16)  # four rare ones
    table = subgroup_table(cases, ["anatomy"], ["dice"], num_bootstrap=50)
    assert table[table["group"] == "rare"]["ci_low"].isna().all()
    assert table[table["group"] == "typical"]["ci_low"].notna().all()


def test_a_group_of_one_case_is_shown_without_spread(make_cases):
    cases = make_cases().assign(site=lambda t: np.where(t["case_id"] == "c00", "alone", "rest"))
    found = row(subgroup_table(cases, ["site"], ["dice"], num_bootstrap=50), "site", "alone", "a", "dice")
    assert found["n"] == 1
    assert found[["std", "ci_low", "ci_high"]].isna().all()


def test_a_structure_undefined_everywhere_still_has_a_row(make_cases):
    cases = make_cases()
    cases.loc[cases["structure"] == "c", METRICS] = np.nan
    found = row(subgroup_table(cases, [], METRICS, num_bootstrap=50), "all", "all", "c", "dice")
    assert found[["n", "n_undefined"]].tolist() == [24, 24]
    assert np.isnan(found["mean"])


def test_cases_without_a_group_are_left_out_on_that_axis_only(make_cases):
    cases = make_cases()
    cases["anatomy"] = cases["anatomy"].where(cases["case_id"] != "c00", None)
    table = subgroup_table(cases, AXES, ["dice"], num_bootstrap=50)
    assert row(table, "all", "all", "a", "dice")["n"] == 24
    assert row(table, "anatomy", "typical", "a", "dice")["n"] == 17


def test_the_interval_is_that_of_the_normal_theory_for_many_patients():
    values = np.random.default_rng(0).normal(10, 2, size=(4000, 1))
    low, high = bootstrap_means(values, np.arange(4000).astype(object), 2000, np.random.default_rng(1))[0]
    expected = values.mean() + 1.96 * values.std() / np.sqrt(4000) * np.array([-1, 1])
    assert [low, high] == pytest.approx(expected, abs=0.01)


def test_scans_of_one_patient_do_not_narrow_the_interval():
    values = np.random.default_rng(0).normal(size=20)
    once = bootstrap_means(values[:, None], np.arange(20).astype(object), 2000, np.random.default_rng(0))
    repeated = np.repeat(values, 5)[:, None]
    five_scans = bootstrap_means(repeated, np.repeat(np.arange(20), 5).astype(object), 2000, np.random.default_rng(0))
    np.testing.assert_allclose(five_scans, once)


def test_an_interval_depends_on_the_seed_and_not_on_other_groups(make_cases):
    cases = make_cases()
    both = subgroup_table(cases, AXES, ["dice"], seed=7)
    one = subgroup_table(cases, ["protocol"], ["dice"], seed=7)
    keep = both[both["axis"].isin(["all", "protocol"])].reset_index(drop=True)
    pd.testing.assert_frame_equal(one, keep)
    assert not np.allclose(subgroup_table(cases, AXES, ["dice"], seed=8)["ci_low"], both["ci_low"], equal_nan=True)
