from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy.stats import rankdata

from droseg.discovery.search import MAX_SHARE, MIN_GAIN, VARIANT, enumerate_rules, jaccard, looks_bad_beyond, shortlist


def table(rng: np.random.Generator, size: int, missing: float = 0.0) -> pd.DataFrame:
    features = pd.DataFrame(
        {"a": rng.normal(size=size), "b": rng.integers(4, size=size).astype(float), "c": rng.choice(["x", "y"], size)}
    )
    return features.mask(rng.random(features.shape) < missing)


def slow_score(values: np.ndarray, members: np.ndarray, weight: np.ndarray) -> float:
    inside, outside = members == 1, members == 0
    error = np.sqrt(1 / weight[inside].sum() + 1 / weight[outside].sum())
    return float((values[inside].mean() - values[outside].mean()) / error / values.std())


@pytest.mark.parametrize("missing", [0.0, 0.1])
def test_the_first_pick_is_the_best_of_all_rules_one_by_one(missing: float):
    rng = np.random.default_rng(5)
    patients = np.repeat(np.arange(40), np.where(np.arange(40) < 10, 2, 1))
    features = table(rng, len(patients), missing)
    badness = rng.normal(size=len(patients)) + (features["a"] > 0.3) * (features["c"] == "x") * 1.5
    part = np.flatnonzero(patients % 2 == 0)
    rules = enumerate_rules(features, [], patients, [part, np.flatnonzero(patients % 2)], 3)
    values, weight = badness.to_numpy()[part], rules.weight[part]
    alone = {}
    for row in range(len(rules.conditions)):
        members = np.where(rules.known[row] > 0, rules.inside[row], np.nan)[part]
        alone[row] = [slow_score(v, members, weight) for v in (values, rankdata(values))]
    best, best_score = None, -np.inf
    for rule in range(len(rules)):
        i, j = rules.first[rule], rules.second[rule]
        for kind, v in enumerate((values, rankdata(values))):
            score = slow_score(v, rules.members(rule)[part], weight)
            if i != j:
                if score <= max(0, alone[i][kind], alone[j][kind]) + MIN_GAIN:
                    continue
                score -= MIN_GAIN
            if score > best_score:
                best, best_score = rule, score
    assert shortlist(rules, part, values.astype(np.float32), 1) == [best]


def test_every_rule_is_large_enough_in_both_halves_and_small_enough_overall():
    rng = np.random.default_rng(1)
    patients = np.repeat(np.arange(50), 2)
    features = table(rng, 100)
    parts = [np.flatnonzero(patients < 25), np.flatnonzero(patients >= 25)]
    rules = enumerate_rules(features, [], patients, parts, 5)
    assert len(rules) > 50
    for rule in range(len(rules)):
        members = rules.members(rule)
        assert (members == 1).mean() <= MAX_SHARE + 1e-9
        for part in parts:
            for side in (0, 1):
                assert len(set(patients[part][members[part] == side])) >= 5
        assert len({condition.feature for condition in rules.conditions_of(rule)}) == len(rules.conditions_of(rule))


def test_thresholds_are_the_deciles_of_all_cases():
    features = pd.DataFrame({"a": np.arange(100.0)})
    rules = enumerate_rules(features, [], np.arange(100), [np.arange(50), np.arange(50, 100)], 1)
    assert sorted({c.value for c in rules.conditions}) == [9.5, 19.5, 29.5, 39.5, 49.5, 59.5, 69.5, 79.5, 89.5]


def test_a_named_group_appears_only_together_with_something_else():
    rng = np.random.default_rng(2)
    features = table(rng, 100).assign(protocol=rng.choice(["site_a", "site_b"], 100))
    rules = enumerate_rules(features, ["protocol"], np.arange(100), [np.arange(50), np.arange(50, 100)], 5)
    of_protocol = [rules.conditions_of(r) for r in range(len(rules)) if "protocol" in str(rules.conditions_of(r))]
    assert of_protocol
    assert all(len(conditions) == 2 for conditions in of_protocol)


@pytest.fixture
def two_slices() -> tuple[pd.DataFrame, np.ndarray]:
    """Two slices that are bad for reasons of their own; one feature is there twice."""
    rng = np.random.default_rng(3)
    features = pd.DataFrame(rng.normal(size=(200, 4)), columns=list("abcd"))
    features["a_again"] = features["a"] + 0.01 * rng.normal(size=200)
    badness = 2.0 * (features["a"] > 1) + 1.5 * (features["b"] > 1) + 0.2 * rng.normal(size=200)
    return features, badness.to_numpy(np.float32)


def test_a_shortlist_has_no_near_variants_and_both_causes(two_slices: tuple[pd.DataFrame, np.ndarray]):
    features, badness = two_slices
    rules = enumerate_rules(features, [], np.arange(200), [np.arange(200)], 5)
    members = [rules.members(rule) == 1 for rule in shortlist(rules, np.arange(200), badness)]
    for row, first in enumerate(members):
        assert all(jaccard(first, second) <= VARIANT for second in members[:row])
    for name in "ab":
        assert max(jaccard(found, (features[name] > 1).to_numpy()) for found in members) > 0.7


def test_what_only_shares_cases_with_a_slice_does_not_look_bad_beyond_it(two_slices: tuple[pd.DataFrame, np.ndarray]):
    features, badness = two_slices
    weight = np.ones(200, np.float32)
    first, second = ((features[name] > 1).to_numpy() for name in "ab")
    diluted = ((features["a"] > 0.5) & (features["c"] < 1)).to_numpy(float)  # bad, as it holds most of the first
    assert looks_bad_beyond(diluted, [], badness, weight)
    assert not looks_bad_beyond(diluted, [first], badness, weight)
    assert looks_bad_beyond(second.astype(float), [first], badness, weight)
    assert not looks_bad_beyond(second.astype(float), [first, second], badness, weight)


def test_a_second_condition_that_adds_nothing_is_left_out():
    rng = np.random.default_rng(4)
    features = pd.DataFrame(rng.normal(size=(200, 6)), columns=list("abcdef"))
    badness = (features["a"] > 0.8) + 0.1 * rng.normal(size=200)
    rules = enumerate_rules(features, [], np.arange(200), [np.arange(200)], 5)
    (rule,) = shortlist(rules, np.arange(200), badness.to_numpy(np.float32), 1)
    assert [condition.feature for condition in rules.conditions_of(rule)] == ["a"]


def test_a_metric_without_differences_gives_no_pick():
    features = pd.DataFrame({"a": np.arange(40.0)})
    rules = enumerate_rules(features, [], np.arange(40), [np.arange(40)], 5)
    assert shortlist(rules, np.arange(40), np.ones(40, np.float32)) == []
