"""Intervals of the bad tail, against numpy on explicit resamples."""

import numpy as np
import pytest

from droseg.report.subgroups import bootstrap_tails, cvar, draw_patients, penalized_table, stream
from droseg.report.tails import tail_samples


@pytest.mark.parametrize(("metric", "percentile"), [("dice", 10), ("hd95_mm", 90)])
@pytest.mark.parametrize(("num_cases", "num_patients"), [(7, 7), (40, 12), (300, 4), (400, 400)])
def test_each_sample_has_the_percentile_and_cvar_of_its_cases(metric, percentile, num_cases, num_patients):
    rng = np.random.default_rng(num_cases)
    values = rng.normal(0.8, 0.1, num_cases).round(2)  # with ties
    values[rng.random(num_cases) < 0.1] = np.nan
    codes = rng.integers(num_patients, size=num_cases)
    codes[:num_patients] = np.arange(num_patients)
    drawn = list(draw_patients(num_patients, 60, np.random.default_rng(1)))
    samples = tail_samples(values[:, None], codes, drawn, [metric])[:, 0]
    assert samples.shape == (60, 2)
    for counts, (tail, bad_mean) in zip(np.concatenate(drawn), samples, strict=True):
        drawn_values = np.repeat(values, counts[codes].astype(int))
        drawn_values = drawn_values[np.isfinite(drawn_values)]
        if not len(drawn_values):
            assert np.isnan([tail, bad_mean]).all()
            continue
        assert tail == pytest.approx(np.percentile(drawn_values, percentile), rel=1e-12)
        assert bad_mean == pytest.approx(cvar(drawn_values, metric), rel=1e-12)


def test_intervals_of_the_tail_cover_the_truth():
    """Uniform values: the 10th percentile is 0.1, the mean of the worst tenth 0.05; 95 % of intervals hold them."""
    covered = np.zeros((200, 2))
    patients = np.arange(200).astype(object)
    for i in range(len(covered)):
        values = np.random.default_rng(i).random((200, 1))
        low_tail, high_tail, low_cvar, high_cvar = bootstrap_tails(values, patients, ["dice"], 400, stream(0, str(i)))[
            0
        ]
        covered[i] = low_tail <= 0.1 <= high_tail, low_cvar <= 0.05 <= high_cvar
    assert (covered.mean(axis=0) >= 0.88).all()  # binomial, 200 trials of 0.95: 0.9 is 3 standard deviations below
    assert (covered.mean(axis=0) <= 0.99).all()


def test_tails_of_few_patients_have_no_interval(make_cases):
    table = penalized_table(make_cases(num_cases=16), ["anatomy"], ["dice"], num_bootstrap=50)
    rare = table[(table["group"] == "rare") & (table["structure"] == "a")].iloc[0]
    everyone = table[(table["group"] == "all") & (table["structure"] == "a")].iloc[0]
    columns = ["tail_ci_low", "tail_ci_high", "cvar10_ci_low", "cvar10_ci_high"]
    assert rare["n_patients"] == 4
    assert rare[columns].isna().all()
    assert everyone["tail_ci_low"] <= everyone["p10"] <= everyone["tail_ci_high"]
    assert everyone["cvar10_ci_low"] <= everyone["cvar10"] <= everyone["cvar10_ci_high"]
    assert list(table.columns[-4:]) == columns  # to the right of DESIGN's columns
