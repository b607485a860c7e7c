from __future__ import annotations

import re
from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest

from droseg.discovery import find_hidden_subgroups, visible_effect
from droseg.discovery.power import VisibleEffect


def visible(cohort, **options) -> VisibleEffect:
    effect = visible_effect(cohort.features, cohort.dice, cohort.patients, cohort.known, **options)
    assert effect is not None
    return effect


def test_an_effect_of_the_stated_size_is_found_about_as_often_as_stated(make_cohort: Callable):
    # Through the front door, on a slice of a feature that nothing else depends on.
    stated = visible(make_cohort(0, num_patients=100)).effect
    hits = {0.25: 0, 1.5: 0}
    for seed in range(12):
        cohort = make_cohort(100 + seed, num_patients=100)
        age = pd.Series(np.random.default_rng(seed).permutation(len(cohort.dice)), index=cohort.dice.index)
        inside = age < 0.16 * len(age)
        features = cohort.features.assign(age=age)
        for share in hits:
            dice = (cohort.dice - share * stated * inside).clip(0, 1)
            found = find_hidden_subgroups(features, dice, cohort.patients, num_permutations=999, num_bootstrap=200)
            hits[share] += any(s.confirmed and "age" in s.rule for s in found)
    assert hits[1.5] >= 8
    assert hits[0.25] <= 3


def test_more_patients_see_smaller_effects(make_cohort: Callable):
    few, many = (visible(make_cohort(1, num_patients=n), trials=20) for n in (60, 240))
    assert many.effect < 0.7 * few.effect
    assert few.reached
    assert many.reached
    assert many.found >= 0.8 * many.trials
    assert 0.1 <= many.share <= 0.2
    assert many.n_patients == 240


def test_for_distances_the_effect_is_larger_distances(make_cohort: Callable):
    cohort = make_cohort(3, num_patients=120)
    as_score = visible(cohort, trials=20)
    cohort.dice = 50 * (1 - cohort.dice)
    as_distance = visible(cohort, higher_is_better=False, trials=20)
    assert as_distance.effect == pytest.approx(50 * as_score.effect, rel=0.35)
    assert "were higher by about" in as_distance.sentence("hd95_mm", higher_is_better=False)


def test_where_nothing_could_be_found_the_sentence_says_that_too_few_were_there(make_cohort: Callable):
    hopeless = visible(make_cohort(4, num_patients=22), alpha=0.005, trials=10)
    assert not hopeless.reached
    sentence = hopeless.sentence("dice", higher_is_better=True)
    assert re.search(r"even a slice of about \d+% of these 22 patients whose mean dice is lower by 0\.\d+", sentence)
    assert f"only {hopeless.found} times in 10" in sentence
    assert "More patients are needed" in sentence


def test_without_a_rule_there_is_no_answer(make_cohort: Callable):
    cohort = make_cohort(5, num_patients=20)
    features = pd.DataFrame({"a": (np.arange(len(cohort.dice)) == 0).astype(float)}, index=cohort.dice.index)
    assert visible_effect(features, cohort.dice, cohort.patients) is None
