"""Tails and gaps: closed forms, examples by hand, and a second implementation of the bootstrap."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from scipy.optimize import minimize_scalar

from droseg.report.gaps import COLUMNS, equity_scaled, gap_table
from droseg.report.subgroups import COLUMNS as SUBGROUP_COLUMNS
from droseg.report.subgroups import TAIL_COLUMNS, cvar, penalized_table, subgroup_table

METRICS = ["dice", "hd95_mm"]


def gaps_of(cases, axes, **options):
    options = {"num_bootstrap": 200, **options}
    groups = penalized_table(cases, axes, METRICS, num_bootstrap=0)
    return gap_table(cases, groups, axes, METRICS, **options)


def row(table, axis, metric, structure="mean"):
    keys = table[["axis", "structure", "metric"]] == [axis, structure, metric]
    return table[keys.all(axis=1)].iloc[0]


def test_cvar_of_an_example_by_hand():
    values = np.array([0.1, 0.5, *[0.9] * 14])  # 16 values: 1.6 of them are a tenth
    assert cvar(values, "dice") == pytest.approx((0.1 + 0.6 * 0.5) / 1.6)
    assert cvar(-values, "hd95_mm") == pytest.approx(-(0.1 + 0.6 * 0.5) / 1.6)
    assert cvar(np.arange(100.0), "dice") == pytest.approx(np.arange(10).mean())
    assert cvar(np.array([3.0, 1.0, 2.0]), "hd_mm") == 3.0
    assert np.isnan(cvar(np.array([]), "dice"))


@pytest.mark.parametrize("size", [5, 16, 37, 250])
def test_cvar_is_the_minimum_that_defines_it(size):
    losses = np.random.default_rng(size).exponential(size=size)

    def objective(threshold):  # Rockafellar and Uryasev 2000, theorem 1
        return threshold + np.maximum(losses - threshold, 0).mean() / 0.1

    found = min(minimize_scalar(objective, bounds=(0, losses.max()), method="bounded").fun, *map(objective, losses))
    assert cvar(losses, "hd95_mm") == pytest.approx(found)


def test_cvar_of_normal_values_is_that_of_the_closed_form():
    values = np.random.default_rng(0).normal(0.8, 0.1, size=200_000)
    quantile_density = 0.17549833193248685  # of the standard normal at its 10th percentile
    assert cvar(values, "dice") == pytest.approx(0.8 - 0.1 * quantile_density / 0.1, abs=2e-3)


def test_the_penalized_table_adds_its_columns_to_the_agreed_ones(make_cases):
    cases = make_cases()
    table = penalized_table(cases, ["anatomy"], METRICS, num_bootstrap=50)
    assert tuple(table.columns) == (*SUBGROUP_COLUMNS, *TAIL_COLUMNS)
    plain = subgroup_table(cases, ["anatomy"], METRICS, penalize=True, num_bootstrap=50)
    pd.testing.assert_frame_equal(table[list(SUBGROUP_COLUMNS)], plain)


@pytest.mark.parametrize(("patients", "size"), [(4, "too few"), (5, "small"), (19, "small"), (20, "ok")])
def test_groups_are_marked_by_patients_and_not_by_scans(make_cases, patients, size):
    cases = make_cases(num_cases=40)
    cases["patient_id"] = [f"p{int(c[1:]) % patients}" for c in cases["case_id"]]
    table = penalized_table(cases, [], ["dice"], num_bootstrap=0)
    assert set(table["size"]) == {size}
    assert set(table["n_patients"]) == {patients}


def test_equity_scaled_score_of_an_example_by_hand():
    assert equity_scaled(0.8, [0.9, 0.7, 0.75]) == pytest.approx(0.8 / (1 + 0.1 + 0.1 + 0.05))
    assert equity_scaled(0.8, [0.8, 0.8]) == 0.8  # equal groups cost nothing


def test_gap_is_that_of_worst_and_best_group(make_cases):
    cases = make_cases(num_cases=80)
    table = gaps_of(cases, ["anatomy"])
    assert tuple(table.columns) == COLUMNS
    case_means = cases.groupby("case_id")["dice"].mean()
    groups = case_means.groupby(cases.drop_duplicates("case_id").set_index("case_id")["anatomy"]).mean()
    found = row(table, "anatomy", "dice")
    assert (found["worst_group"], found["best_group"]) == ("rare", "typical")
    assert found["gap"] == pytest.approx(groups["typical"] - groups["rare"])
    overall = case_means.mean()
    deltas = abs(groups["typical"] - overall) + abs(groups["rare"] - overall)
    assert found["equity_scaled"] == pytest.approx(overall / (1 + deltas))
    distance = row(table, "anatomy", "hd95_mm", "a")
    assert (distance["worst_group"], distance["best_group"]) == ("rare", "typical")
    assert distance["gap"] > 0
    assert np.isnan(distance["equity_scaled"])  # made for scores


def test_gap_interval_equals_that_of_a_plain_loop(make_cases):
    cases = make_cases(num_cases=60)
    cases["patient_id"] = [f"p{int(c[1:]) // 2}" for c in cases["case_id"]]  # two scans each, often in both groups
    found = row(gaps_of(cases, ["anatomy"], num_bootstrap=4000), "anatomy", "dice", "a")
    own = cases[cases["structure"] == "a"]
    by_patient = dict(iter(own.groupby("patient_id")))
    names, rng, gaps = list(by_patient), np.random.default_rng(5), []
    for _ in range(400):
        sample = pd.concat([by_patient[name] for name in rng.choice(names, len(names))])
        means = sample.groupby("anatomy")["dice"].mean()
        gaps.append(means["typical"] - means["rare"])
    low, high = np.percentile(gaps, [2.5, 97.5])
    assert found[["gap_ci_low", "gap_ci_high"]].tolist() == pytest.approx([low, high], abs=0.2 * (high - low))


def test_whether_groups_differ_is_tested_over_patients(make_cases):
    cases = make_cases(num_cases=60).assign(site=lambda t: t["case_id"].str[1:].astype(int) // 2 % 3)
    cases["site"] = "s" + cases["site"].astype(str)
    cases["patient_id"] = [f"p{int(c[1:]) // 2}" for c in cases["case_id"]]
    means = cases[cases["structure"] == "a"].groupby(["site", "patient_id"])["dice"].mean()
    expected = stats.kruskal(*(means[site] for site in ("s0", "s1", "s2"))).pvalue
    assert row(gaps_of(cases, ["site"]), "site", "dice", "a")["p_groups"] == pytest.approx(expected)
    same = cases.assign(dice=0.8, volume_pred_ml=9.0)
    assert row(gaps_of(same, ["site"]), "site", "dice", "a")["p_groups"] == 1.0


def test_groups_below_the_minimum_n_are_counted_and_not_ranked(make_cases):
    cases = make_cases().assign(site=lambda t: np.where(t["case_id"] == "c23", "tiny", t["protocol"]))  # the worst case
    found = row(gaps_of(cases, ["site"]), "site", "dice")
    assert (found["n_groups"], found["n_too_small"]) == (3, 1)
    assert found["worst_group"] != "tiny"
    alone = row(gaps_of(cases, ["site"], min_n=1), "site", "dice")
    assert (alone["worst_group"], alone["n_too_small"]) == ("tiny", 0)
    none = row(gaps_of(cases, ["site"], min_n=50), "site", "dice")
    assert none[["worst_group", "gap", "equity_scaled"]].isna().all()


def test_a_gap_repeats_with_its_seed(make_cases):
    first, again, other = (gaps_of(make_cases(), ["anatomy"], seed=s) for s in (3, 3, 4))
    pd.testing.assert_frame_equal(first, again)
    assert not np.allclose(first["gap_ci_low"], other["gap_ci_low"])


def test_equity_is_scaled_for_fractions_only(make_cases):
    cases = make_cases().assign(psnr=lambda t: 100 * t["dice"])
    table = gap_table(cases, penalized_table(cases, ["anatomy"], ["dice", "psnr"]), ["anatomy"], ["dice", "psnr"])
    assert table.groupby("metric")["equity_scaled"].count().to_dict() == {"dice": 4, "psnr": 0}
