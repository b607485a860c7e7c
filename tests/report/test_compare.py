"""Paired comparison: signs, pairs, failures and the rule behind the words."""

import numpy as np
import pandas as pd
import pytest

from droseg.errors import InputError
from droseg.report import compare_runs, subgroup_table
from droseg.report.compare import correct_together, verdict
from droseg.report.console import group_table
from droseg.report.seeds import average_sides
from droseg.report.significance import holm

NAN = float("nan")


def changed(cases, group, by):
    """Return the cases with dice moved in one anatomy, distances following."""
    result = cases.copy()
    rows = (result["anatomy"] == group) & (result["dice"] > 0)
    result.loc[rows, "dice"] += by
    result.loc[rows, "hd95_mm"] -= 20 * by
    return result


def row(comparison, group, metric, structure="mean"):
    table = comparison.table
    return table[(table["group"] == group) & (table["metric"] == metric) & (table["structure"] == structure)].iloc[0]


@pytest.mark.parametrize(
    ("difference", "low", "high", "metric", "p", "word", "reason"),
    [
        (0.05, 0.02, 0.08, "dice", 0.01, "helped", ""),
        (-0.05, -0.08, -0.02, "dice", 0.01, "hurt", ""),
        (-2.0, -3.0, -1.0, "hd95_mm", 0.01, "helped", ""),
        (2.0, 1.0, 3.0, "hd95_mm", 0.05, "hurt", ""),
        (0.05, -0.01, 0.11, "dice", 0.01, "inconclusive", "the interval holds 0"),
        (0.005, 0.004, 0.006, "dice", 0.01, "inconclusive", "below the minimum effect"),
        (0.05, 0.02, 0.08, "dice", 0.051, "inconclusive", "not after Holm's correction"),
        (0.5, NAN, NAN, "dice", 0.01, "inconclusive", "no interval"),
    ],
)
def test_words_follow_the_stated_rule(difference, low, high, metric, p, word, reason):
    assert verdict(difference, low, high, metric, 0.01, p_holm=p) == (word, reason)


def test_a_gain_in_one_group_is_found_there_and_only_there(make_cases):
    baseline = make_cases(num_cases=80)  # 20 rare ones
    comparison = compare_runs(changed(baseline, "rare", 0.1), baseline, ["anatomy"], ["dice", "hd95_mm"])
    for metric, expected in (("dice", 0.1), ("hd95_mm", -2.0)):
        rare = row(comparison, "rare", metric, "a")
        assert rare["difference"] == pytest.approx(expected)
        assert (rare["verdict"], rare["reason"]) == ("helped", "")
        typical = row(comparison, "typical", metric)
        assert (typical["difference"], typical["verdict"]) == (0.0, "inconclusive")


def test_p_is_corrected_for_every_row_of_the_report(make_cases):
    baseline = make_cases(num_cases=80)
    comparison = compare_runs(changed(baseline, "rare", 0.1), baseline, ["anatomy"], ["dice", "hd95_mm"])
    assert comparison.family == len(comparison.table) == 3 * 4 * 2
    assert "all 24 tests" in comparison.rule()
    np.testing.assert_array_equal(comparison.table["p_holm"], holm(comparison.table["p"]))
    # 24 groups of 6 rare cases: the smallest p is 2 / 2**6, and no family of 24 lets it pass.
    few = compare_runs(changed(make_cases(), "rare", 0.1), make_cases(), ["anatomy"], ["dice", "hd95_mm"])
    rare = row(few, "rare", "dice", "a")
    assert rare["p"] == pytest.approx(2 / 2**6)
    assert (rare["verdict"], rare["reason"]) == ("inconclusive", "not after Holm's correction")


def test_a_family_spans_all_runs_of_a_report(make_cases):
    baseline = make_cases(num_cases=80)
    one = compare_runs(changed(baseline, "rare", 0.1), baseline, ["anatomy"], ["dice"])
    two = compare_runs(changed(baseline, "typical", 0.1), baseline, ["anatomy"], ["dice"])
    together = correct_together([one, two])
    assert [c.family for c in together] == [24, 24]
    expected = holm(np.concatenate([one.table["p"], two.table["p"]]))
    np.testing.assert_array_equal(np.concatenate([c.table["p_holm"] for c in together]), expected)


def test_scans_of_one_patient_are_one_pair_in_the_test(make_cases):
    baseline = make_cases(num_cases=40)
    run = baseline.assign(dice=baseline["dice"] + np.random.default_rng(0).normal(0.005, 0.02, len(baseline)))
    single = row(compare_runs(run, baseline, [], ["dice"]), "all", "dice", "a")
    four = {name: pd.concat([t.assign(case_id=t["case_id"] + f"_{i}") for i in range(4)], ignore_index=True)
            for name, t in (("run", run), ("baseline", baseline))}  # fmt: skip
    repeated = row(compare_runs(four["run"], four["baseline"], [], ["dice"]), "all", "dice", "a")
    assert (repeated["n"], repeated["n_patients"]) == (160, 40)
    assert repeated["p"] == pytest.approx(single["p"])
    assert repeated[["ci_low", "ci_high"]].tolist() == pytest.approx(single[["ci_low", "ci_high"]].tolist())


def test_a_group_below_the_minimum_n_gets_no_word(make_cases):
    baseline = make_cases(num_cases=80)
    run = changed(baseline, "rare", 0.1)
    guarded = row(compare_runs(run, baseline, ["anatomy"], ["dice"], min_n=21), "rare", "dice", "a")
    assert (guarded["verdict"], guarded["reason"]) == ("inconclusive", "too few patients")
    assert guarded["difference"] == pytest.approx(0.1)  # shown all the same


def test_mean_and_ranks_that_disagree_give_no_word():
    rng = np.random.default_rng(0)
    # 92 of 100 patients gain a little, 8 lose nearly all: the mean falls although most ranks rise.
    gain = np.concatenate([rng.uniform(0.010, 0.011, 92), rng.uniform(-0.95, -0.90, 8)])
    base = pd.DataFrame({"case_id": [f"c{i}" for i in range(100)], "structure": "a", "dice": 0.95})
    base["patient_id"] = base["case_id"]
    found = row(compare_runs(base.assign(dice=base["dice"] + gain), base, [], ["dice"]), "all", "dice", "a")
    assert found["difference"] < -0.05
    assert found["rank_direction"] == 1
    assert (found["verdict"], found["reason"]) == ("inconclusive", "mean and ranks disagree")


def test_equal_runs_are_inconclusive_everywhere(make_cases):
    cases = make_cases()
    table = compare_runs(cases, cases, ["anatomy", "protocol"], ["dice", "hd95_mm"]).table
    assert (table["verdict"] == "inconclusive").all()
    assert (table["difference"] == 0).all()


def test_cases_in_only_one_run_are_listed_and_left_out(make_cases):
    run, baseline = make_cases(), make_cases()
    comparison = compare_runs(run[run["case_id"] != "c01"], baseline[baseline["case_id"] != "c02"], [], ["dice"])
    assert (comparison.run_alone.cases, comparison.baseline_alone.cases) == (["c02"], ["c01"])
    assert row(comparison, "all", "dice")["n"] == 22


def test_the_number_of_pairs_stands_beside_a_difference_of_fewer_cases(make_cases):
    run = make_cases(num_cases=80)
    baseline = run[run["case_id"].isin(run["case_id"].unique()[:60])]
    groups = subgroup_table(run, ["anatomy"], ["dice"], penalize=True, num_bootstrap=50)
    lines = group_table(groups, "dice", compare_runs(run, baseline, ["anatomy"], ["dice"])).splitlines()
    (all_cases,) = [line for line in lines if line.startswith("all")]
    assert all_cases.split()[1] == "80"
    assert "(60 pairs)" in all_cases
    assert "pairs" not in group_table(groups, "dice", compare_runs(run, run, ["anatomy"], ["dice"]))


def test_rows_are_paired_by_case_whatever_their_order(make_cases):
    baseline = make_cases()
    run = changed(baseline, "rare", 0.1).sample(frac=1, random_state=0)
    assert row(compare_runs(run, baseline, [], ["dice"]), "all", "dice", "a")["difference"] == pytest.approx(0.1 / 4)


def test_a_structure_found_again_counts_from_its_penalty(make_cases):
    baseline, run = make_cases(), make_cases()
    missed = (run["volume_ref_ml"] > 0) & (run["volume_pred_ml"] == 0)
    run.loc[missed, ["dice", "hd95_mm", "volume_pred_ml"]] = [0.6, 10.0, 9.0]
    comparison = compare_runs(run, baseline, ["anatomy"], ["dice", "hd95_mm"])
    assert row(comparison, "rare", "dice", "b")["difference"] == pytest.approx(0.6 / 6)
    assert row(comparison, "rare", "hd95_mm", "b")["difference"] == pytest.approx((10.0 - 150.0) / 6)
    assert row(comparison, "rare", "hd95_mm", "b")["baseline_worst"] == 150.0


def equally_bad_runs(make_cases):
    """Return two tables without diagonals that miss the same structures; elsewhere 5 mm, but for one case."""
    cases = make_cases(num_cases=12).drop(columns="diagonal_mm")
    cases = cases[cases["structure"] == "a"].reset_index(drop=True).assign(hd95_mm=5.0)
    cases.loc[:2, ["dice", "nsd", "volume_pred_ml"]], cases.loc[:2, "hd95_mm"] = 0.0, NAN
    baseline = cases.copy()
    baseline.loc[11, "hd95_mm"] = 50.0
    return cases, baseline


def test_failures_that_both_runs_share_do_not_make_a_difference(make_cases):
    run, baseline = equally_bad_runs(make_cases)
    overall = row(compare_runs(run, baseline, [], ["hd95_mm"]), "all", "hd95_mm")
    assert overall["difference"] == pytest.approx(-45.0 / 12)  # the one case alone
    assert overall["verdict"] == "inconclusive"


def test_a_diagonal_that_only_the_baseline_has_counts_for_both(make_cases):
    run, baseline = equally_bad_runs(make_cases)
    overall = row(compare_runs(run, baseline.assign(diagonal_mm=150.0), [], ["hd95_mm"]), "all", "hd95_mm")
    assert overall["difference"] == pytest.approx(-45.0 / 12)
    assert overall["worst"] == 150.0


def test_failures_of_one_seed_cost_the_same_on_both_sides(make_cases):
    run, baseline = equally_bad_runs(make_cases)
    found = run.assign(hd95_mm=5.0, dice=0.8, nsd=0.8, volume_pred_ml=9.0)
    sides = [pd.concat([found.assign(seed=0), side.assign(seed=1)], ignore_index=True) for side in (run, baseline)]
    overall = row(compare_runs(*average_sides(*sides), [], ["hd95_mm"]), "all", "hd95_mm")
    assert overall["difference"] == pytest.approx(-45.0 / 2 / 12)


def test_a_false_positive_that_is_gone_lifts_the_mean(make_cases):
    baseline, run = make_cases(), make_cases()
    absent = baseline["volume_ref_ml"] == 0
    baseline.loc[absent, ["dice", "nsd", "volume_pred_ml"]] = [0.0, 0.0, 1.0]
    comparison = compare_runs(run, baseline, [], ["dice"])
    last = run[run["case_id"] == "c23"]["dice"]
    assert row(comparison, "all", "dice")["difference"] == pytest.approx((last.mean() - last.fillna(0).mean()) / 24)


def test_seeded_intervals_repeat(make_cases):
    run, baseline = make_cases(1), make_cases(2)
    first, again = (compare_runs(run, baseline, ["anatomy"], ["dice"], seed=3).table for _ in range(2))
    assert first.equals(again)
    assert not np.allclose(first["ci_low"], compare_runs(run, baseline, ["anatomy"], ["dice"], seed=4).table["ci_low"])


def test_runs_on_other_cases_cannot_be_compared(make_cases):
    run = make_cases().assign(case_id=lambda t: "x" + t["case_id"])
    with pytest.raises(InputError, match=r"no case and structure in common.*'xc00'.*'c00'"):
        compare_runs(run, make_cases(), [], ["dice"])


def test_a_structure_of_one_run_only_is_named_and_leaves_the_mean(make_cases):
    run, baseline = make_cases(1), make_cases(2)
    comparison = compare_runs(run, baseline[baseline["structure"] != "b"], [], ["dice"])
    assert comparison.structures == ["a", "c"]
    assert (comparison.run_alone.structures, comparison.baseline_alone.structures) == (["b"], [])
    means = [t[t["structure"] != "b"].groupby("case_id")["dice"].mean().mean() for t in (run, baseline)]
    assert row(comparison, "all", "dice")["difference"] == pytest.approx(means[0] - means[1])
    assert comparison.unpaired("DRO", "ERM") == [
        "only in DRO, not compared: structure b; means over structures are over a, c here"
    ]


def test_rows_of_one_run_only_are_counted_and_named(make_cases):
    run, baseline = make_cases(1), make_cases(2)
    gone = (run["structure"] == "b") & (run["case_id"] < "c12")
    comparison = compare_runs(run[~gone], baseline, [], ["dice"])
    assert comparison.baseline_alone.rows == [(f"c{i:02d}", "b") for i in range(12)]
    assert comparison.run_alone.rows == []
    assert row(comparison, "all", "dice", "b")["n"] == 12
    sentence = comparison.unpaired("DRO", "ERM")[0]
    assert sentence.startswith("only in ERM, not compared: 12 rows (b), c00: b, c01: b, ")
    assert "c09: b and 2 more rows (all of them in report.json)" in sentence
