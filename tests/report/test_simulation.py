"""What the statistics promise, checked on cohorts whose truth is known."""

import time

import numpy as np
import pandas as pd
import pytest

from droseg.report import compare_runs, write_report
from droseg.report.subgroups import bootstrap_means

TRUE_MEAN = 0.8


def coverage(num_patients, cluster, repeats=400):
    """Return how often the interval holds the true mean: 3 scans per patient, most of the variance between patients.

    Args:
        num_patients: patients of each simulated cohort.
        cluster: "patients" resamples patients, "scans" takes each scan for a patient.
        repeats: simulated cohorts.
    """
    rng = np.random.default_rng(num_patients)
    patients = np.repeat(np.arange(num_patients), 3)
    hits = 0
    for _ in range(repeats):
        effects = rng.normal(0, 0.09, size=num_patients)
        values = TRUE_MEAN + effects[patients] + rng.normal(0, 0.03, size=3 * num_patients)
        names = patients if cluster == "patients" else np.arange(3 * num_patients)
        low, high = bootstrap_means(values[:, None], names.astype(object), 500, rng)[0]
        hits += low <= TRUE_MEAN <= high
    return hits / repeats


def test_intervals_over_patients_hold_the_truth_as_often_as_they_say():
    assert 0.92 <= coverage(50, "patients") <= 0.975


def test_intervals_over_scans_would_not():
    assert coverage(50, "scans") < 0.85


def test_small_groups_are_marked_for_a_reason():
    assert coverage(6, "patients") < 0.92


def null_cohort(seed, num_patients=30):
    """Return two runs that differ by luck alone: a symmetric difference of each patient, and of each structure."""
    rng = np.random.default_rng(seed)
    rows = [(p, s) for p in range(num_patients) for s in "ab"]
    base = pd.DataFrame(rows, columns=["case_id", "structure"])
    base["patient_id"] = base["case_id"] = base["case_id"].map("c{:03d}".format)
    base["site"], base["sex"] = (base["case_id"].str[1:].astype(int) % n for n in (3, 2))
    base = base.assign(site="s" + base["site"].astype(str), sex="x" + base["sex"].astype(str))
    base["dice"] = rng.uniform(0.6, 0.8, size=len(base))
    base["hd95_mm"] = rng.uniform(2, 8, size=len(base))
    run = base.copy()
    shared = np.repeat(rng.normal(size=num_patients), 2)
    run["dice"] += 0.05 * (shared + rng.normal(size=len(base)))
    run["hd95_mm"] += 1.5 * (shared + rng.normal(size=len(base)))
    return run, base


@pytest.mark.slow
def test_at_most_one_null_report_in_twenty_calls_anything_helped_or_hurt():
    words = uncorrected = 0
    for seed in range(200):
        run, base = null_cohort(seed)
        table = compare_runs(run, base, ["site", "sex"], ["dice", "hd95_mm"], num_bootstrap=300, seed=seed).table
        words += (table["verdict"] != "inconclusive").any()
        uncorrected += ((table["ci_low"] > 0) | (table["ci_high"] < 0)).any()
    assert words <= 0.05 * 200
    assert uncorrected > 0.3 * 200  # what the words would be by the interval alone


def large(seed, num_cases, num_structures):
    """Return a table of many cases."""
    rng = np.random.default_rng(seed)
    table = pd.DataFrame(
        [(f"case_{i:05d}", f"p{i // 2}", f"st{s}") for i in range(num_cases) for s in range(num_structures)],
        columns=["case_id", "patient_id", "structure"],
    )
    number = table["case_id"].str[5:].astype(int)
    dice = np.clip(rng.normal(0.85, 0.05, size=len(table)), 0.01, 0.99)
    distances = {name: scale * (1 - dice) for name, scale in (("hd_mm", 30), ("hd95_mm", 20), ("assd_mm", 5))}
    table = table.assign(dice=dice, **distances, nsd=dice, volume_ref_ml=10.0, volume_pred_ml=9.0, diagonal_mm=150.0)
    table.loc[rng.random(len(table)) < 0.02, ["dice", "nsd", "volume_pred_ml"]] = 0.0
    return table.assign(anatomy=(number % 3).map("abc".__getitem__), site=(number % 5).map("s{}".format))


@pytest.mark.slow
@pytest.mark.parametrize(("num_cases", "num_structures"), [(10_000, 1), (1250, 8)])
def test_ten_thousand_rows_take_under_ten_seconds_and_five_megabytes(tmp_path, num_cases, num_structures):
    table = large(0, num_cases, num_structures)
    start = time.process_time()  # of this process alone, whatever else the machine does
    report = write_report(table, tmp_path, axes=["anatomy", "site", "anatomy*site"])
    assert time.process_time() - start < 10
    assert report.html.stat().st_size < 5e6


@pytest.mark.slow
def test_two_runs_of_ten_thousand_cases_fit_into_five_megabytes(tmp_path):
    axes = ["anatomy", "site", "anatomy*site"]
    report = write_report(large(0, 10_000, 1), tmp_path, axes=axes, baseline=large(1, 10_000, 1), num_bootstrap=100)
    assert report.html.stat().st_size < 5e6
    assert "have a name on hover; the others are dots" in report.html.read_text()
