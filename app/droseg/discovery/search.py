"""The search: all rules of one or two conditions, and those that look worst on some of the cases."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.stats import rankdata

from droseg.discovery.conditions import Condition, candidate_conditions, feature_values

MAX_SHARE: Final = 2 / 3
"""Largest share of the patients that a slice may hold: what most patients are is no subgroup."""
SHORTLIST: Final = 30
"""Rules that each half proposes. In trials 20 to 100 found planted slices equally often, 3 did so clearly less."""
VARIANT: Final = 0.8
"""Of two rules whose cases have a larger Jaccard index only the better one is proposed."""
MIN_SCORE: Final = 1.5
"""A rule that looks no worse than this many standard errors on the search half is not worth a test."""
MIN_BEYOND: Final = 2.0
"""Standard errors by which a further finding has to look bad once the effects of the others are taken out."""
_MOST_TRIED: Final = 2000  # rules to look through for a shortlist; further down there are only variants
MIN_GAIN: Final = 0.3
"""What a second condition has to add to the score of either alone, in standard errors; else the shorter rule stands."""

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Rules:
    """All rules with enough patients inside and outside in every part of the cohort.

    Attributes:
        conditions: the conditions that rules are made of.
        inside: 1 where a condition holds, (conditions, cases).
        known: 1 where its feature is known, (conditions, cases).
        weight: 1 / number of scans of the case's patient, (cases,).
        first: row of the first condition of each rule, (rules,).
        second: row of the second, the same as the first for rules of one condition.
    """

    conditions: tuple[Condition, ...]
    inside: Floats
    known: Floats
    weight: Floats
    first: NDArray[np.intp]
    second: NDArray[np.intp]

    def __len__(self) -> int:
        return len(self.first)

    def members(self, rule: int) -> NDArray[np.float64]:
        """Return 1 for the cases inside, 0 outside, NaN where the rule cannot tell, (cases,)."""
        i, j = self.first[rule], self.second[rule]
        return np.where(self.known[i] * self.known[j] > 0, self.inside[i] * self.inside[j], np.nan).astype(float)

    def conditions_of(self, rule: int) -> tuple[Condition, ...]:
        """Return its one or two conditions."""
        rows = dict.fromkeys([int(self.first[rule]), int(self.second[rule])])
        return tuple(self.conditions[row] for row in rows)


def enumerate_rules(
    features: pd.DataFrame,
    named: Sequence[str],
    patients: NDArray[np.intp],
    parts: Sequence[NDArray[np.intp]],
    min_patients: int,
) -> Rules:
    """Return every rule of at most two conditions on different features that is large enough; the metric has no say.

    Args:
        features: one row per case; may hold NaN.
        named: columns whose groups have a name already; they appear together with another condition only.
        patients: number of the patient of each case. A patient with m scans counts as 1/m of a patient per scan.
        parts: positions of the cases of each part; each needs `min_patients` inside and outside.
        min_patients: smallest slice.
    """
    conditions = candidate_conditions(features, min_patients * len(parts))
    size, count = len(features), len(conditions)
    values = {name: feature_values(features[name]) for name in dict.fromkeys(c.feature for c in conditions)}
    holds = np.array([c.holds_for(values[c.feature]) for c in conditions]).reshape(count, size)
    known = np.isfinite(holds).astype(np.float32)
    inside = np.where(known > 0, holds, 0).astype(np.float32)
    weight = (1.0 / np.bincount(patients)[patients]).astype(np.float32)
    names = np.array([condition.feature for condition in conditions])
    of_named = np.isin(names, list(named))
    allowed = (names[:, None] != names[None]) | (np.eye(count, dtype=bool) & ~of_named)
    allowed &= ~np.tri(count, k=-1, dtype=bool)  # each pair once
    total_inside, total_known = np.zeros((count, count), np.float32), np.zeros((count, count), np.float32)
    for part in parts:
        patients_inside = _pair_sums(inside[:, part], weight[part])
        patients_known = _pair_sums(known[:, part], weight[part])
        # 1/3 + 1/3 + 1/3 is a patient, in float32 too.
        allowed &= (patients_inside >= min_patients - 1e-3) & (patients_known - patients_inside >= min_patients - 1e-3)
        total_inside, total_known = total_inside + patients_inside, total_known + patients_known
    allowed &= total_inside <= MAX_SHARE * total_known
    first, second = np.nonzero(allowed)
    return Rules(tuple(conditions), inside, known, weight, first, second)


def shortlist(rules: Rules, part: NDArray[np.intp], badness: Floats, size: int = SHORTLIST) -> list[int]:
    """Return the rules that look worst on a part of the cases, worst first, without near variants.

    The score of a rule is the difference of means, inside minus outside, in standard errors; once of the badness and
    once of its ranks, and the larger counts: the first sees slices with total failures, the second those that are a
    little worse throughout.

    Args:
        rules: what to choose from.
        part: positions of the cases to look at.
        badness: one value per case of the part; larger is worse.
        size: how many at most.
    """
    scale = _Scale(rules, part)
    scores = np.maximum(*(scale.scores(values) for values in _both_scales(badness)))
    chosen: list[int] = []
    members = np.zeros((size, rules.inside.shape[1]), dtype=np.float32)
    sizes = np.zeros(size, dtype=np.float32)
    for rule in np.argsort(-scores, kind="stable")[:_MOST_TRIED]:
        if scores[rule] < MIN_SCORE or len(chosen) == size:
            break
        inside = rules.inside[rules.first[rule]] * rules.inside[rules.second[rule]]
        own_size, count = inside.sum(), len(chosen)
        both = members[:count] @ inside
        if (both > VARIANT * (sizes[:count] + own_size - both)).any():
            continue
        members[count], sizes[count] = inside, own_size
        chosen.append(int(rule))
    return chosen


def looks_bad_beyond(
    members: NDArray[np.float64], others: Sequence[NDArray[np.bool_]], badness: NDArray[Any], weight: Floats
) -> bool:
    """Return whether a slice still looks bad once the effects of other slices are taken out of the badness.

    Args:
        members: 1 inside, 0 outside, NaN neither, (cases,).
        others: who is inside of the other slices; inside and outside of each are centered, one after the other.
        badness: larger is worse.
        weight: see `Rules`.
    """
    inside, outside = members == 1, members == 0
    standard_error = np.sqrt(1 / weight[inside].sum() + 1 / weight[outside].sum())
    for values in _both_scales(badness):
        for other in others:
            values = _standardized(_without_effect(values, other))
        if (values[inside].mean() - values[outside].mean()) / standard_error >= MIN_BEYOND:
            return True
    return False


def jaccard(first: NDArray[np.bool_], second: NDArray[np.bool_]) -> float:
    """Return cases in both over cases in any; 0 if both are empty."""
    union = int((first | second).sum())
    return int((first & second).sum()) / union if union else 0.0


class _Scale:
    """What the scores of all rules on one part need besides the values: counts of cases and patients."""

    def __init__(self, rules: Rules, part: NDArray[np.intp]) -> None:
        self._inside, self._known = rules.inside[:, part], rules.known[:, part]
        self._complete = bool(self._known.all())
        self._pairs = (rules.first, rules.second)
        self._alone = np.arange(len(rules.conditions))
        self._is_pair = rules.first != rules.second
        ones, weight = np.ones(len(part), np.float32), rules.weight[part]
        self._cases_inside = _pair_sums(self._inside, ones)
        self._cases_known = _pair_sums(self._known, ones)
        patients_inside = _pair_sums(self._inside, weight)
        patients_outside = _pair_sums(self._known, weight) - patients_inside
        # Scans of one patient are alike: a difference is as uncertain as that of so many patients.
        with np.errstate(divide="ignore"):
            self._standard_error = np.sqrt(1 / np.maximum(patients_inside, 0) + 1 / np.maximum(patients_outside, 0))

    def scores(self, values: Floats) -> Floats:
        """Return the score of each rule; -inf for a second condition that adds nothing."""
        sums = _pair_sums(self._inside, values)
        sums_known: Floats = values.sum() if self._complete else _pair_sums(self._known, values)
        alone = self._score(sums, sums_known, (self._alone, self._alone))
        alone = np.where(np.isfinite(alone), alone, 0)
        scores = self._score(sums, sums_known, self._pairs)
        first, second = self._pairs
        gained = scores > np.maximum(alone[first], alone[second]) + MIN_GAIN
        return np.where(self._is_pair, np.where(gained, scores - MIN_GAIN, -np.inf), scores)

    def _score(self, sums: Floats, sums_known: Floats, at: tuple[NDArray[np.intp], NDArray[np.intp]]) -> Floats:
        inside, cases_inside = sums[at], self._cases_inside[at]
        known = sums_known if self._complete else sums_known[at]
        with np.errstate(divide="ignore", invalid="ignore"):
            means = inside / cases_inside - (known - inside) / (self._cases_known[at] - cases_inside)
            return means / self._standard_error[at]


def _pair_sums(indicator: Floats, values: Floats) -> Floats:
    """Return per pair of conditions the sum of the values over the cases where both have a 1."""
    return np.asarray((indicator * values) @ indicator.T, dtype=np.float32)


def _both_scales(badness: NDArray[Any]) -> tuple[Floats, Floats]:
    """Return the values and their ranks, both with mean 0 and standard deviation 1."""
    return _standardized(badness), _standardized(rankdata(badness))


def _standardized(values: NDArray[Any]) -> Floats:
    centered = values - values.mean()
    spread = float(centered.std())
    return (centered / spread if spread > 0 else centered).astype(np.float32)


def _without_effect(values: Floats, inside: NDArray[np.bool_]) -> Floats:
    """Return the values with the mean inside and the mean outside taken out."""
    result = values.copy()
    for side in (inside, ~inside):
        if side.any():
            result[side] -= values[side].mean()
    return result
