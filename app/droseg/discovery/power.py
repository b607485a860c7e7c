"""What could have been found: the smallest planted effect that the search sees in this very cohort."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from droseg.discovery.confirm import permutations
from droseg.discovery.screen import cross_screen
from droseg.discovery.search import Rules, jaccard
from droseg.discovery.subgroups import MAX_OVERLAP, MIN_PATIENTS, Cohort, prepare

SHARE: Final = 0.15
"""Of the patients: about so many are in the planted slices, as in scripts/bench_discovery.py."""
POWER: Final = 0.8
_SHARES: Final = (0.1, 0.2)
_STEPS: Final = 0.02 * 1.3 ** np.arange(16)  # effects that are tried, as shares of the range of the values


@dataclass(frozen=True)
class VisibleEffect:
    """The smallest difference of means that is found in 4 of 5 cohorts of this kind.

    Attributes:
        effect: by how much the mean of the metric is worse in the slice, >= 0; the largest that was tried where even
            that is found less often.
        reached: whether 4 of 5 are reached.
        share: mean share of the patients in the planted slices.
        found: in how many of the trials it was found.
        trials: cohorts that were tried.
        n_patients: of the cohort.
    """

    effect: float
    reached: bool
    share: float
    found: int
    trials: int
    n_patients: int

    def sentence(self, metric: str, higher_is_better: bool) -> str:
        """Return what the absence of a finding means, in plain words."""
        worse = "lower" if higher_is_better else "higher"
        slice_ = f"a slice of about {self.share:.0%} of these {self.n_patients} patients"
        tried = f"(tried on {self.trials} cohorts of these values in random order)"
        if self.reached:
            return (
                f"This does not show that there is none: {slice_}, one that such a rule describes, would be found 4 "
                f"times in 5 only if its mean {metric} were {worse} by about {self.effect:.2g} or more {tried}."
            )
        return (
            f"This shows nothing: even {slice_} whose mean {metric} is {worse} by {self.effect:.2g} would be found "
            f"only {self.found} times in {self.trials} {tried}. More patients are needed."
        )


def visible_effect(
    features: pd.DataFrame,
    values: pd.Series,
    patients: Mapping[str, str] | pd.Series,
    known: pd.DataFrame | None = None,
    *,
    higher_is_better: bool = True,
    min_patients: int = MIN_PATIENTS,
    alpha: float = 0.05,
    min_effect: float = 0.0,
    num_permutations: int | None = None,
    trials: int = 30,
    seed: int = 0,
) -> VisibleEffect | None:
    """Return the smallest effect that `find_hidden_subgroups` would see with these features, values and halves.

    Each trial gives the values to other patients, so that they have nothing to do with the features, makes them worse
    by one amount in the cases of one random rule that holds 10 to 20 % of the patients (or else nearly so many), and
    searches as always. Found is the slice if a confirmed rule shares more than half of its cases with it. Scores do
    not fall below 0; the effect is what this leaves of the amount.

    Returns None where no rule is large enough. The arguments are those of `find_hidden_subgroups`; `trials` at 30 give
    the power to about 0.15. `num_permutations` is by default just enough for `alpha`.
    """
    rng = np.random.default_rng(seed)
    cohort, rules, halves = prepare(
        features, values, patients, known, higher_is_better, min_patients, alpha, min_effect, rng
    )
    if not len(rules):
        return None
    # Enough to tell a p-value of a tenth of alpha.
    each = max(999, round(20 / alpha)) if num_permutations is None else num_permutations
    slices = _slices(rules, trials, rng)
    orders = np.concatenate(list(permutations(cohort.patients, trials, rng)))
    badness = cohort.badness[orders]
    most = 0.0 if higher_is_better and badness.min() >= -1 and badness.max() <= 0 else np.inf

    def planted(step: int) -> NDArray[np.float64]:
        amount = _STEPS[step] * np.ptp(cohort.badness)
        return np.where(slices == 1, np.minimum(badness + amount, np.maximum(badness, most)), badness)

    def found(step: int) -> int:
        draws = np.random.default_rng([seed, step])
        return sum(
            _is_found(cohort, rules, halves, values, inside == 1, each, draws)
            for values, inside in zip(planted(step), slices, strict=True)
        )

    low, high = -1, len(_STEPS) - 1  # more of it is found more often, so that halving the range is enough
    best = found(high)
    reached = best >= POWER * trials
    while reached and high - low > 1:
        middle = (low + high) // 2
        count = found(middle)
        if count >= POWER * trials:
            high, best = middle, count
        else:
            low = middle
    changed = [(new - old)[inside == 1].mean() for new, old, inside in zip(planted(high), badness, slices, strict=True)]
    share = float(np.mean([rules.weight[inside == 1].sum() / rules.weight.sum() for inside in slices]))
    return VisibleEffect(float(np.mean(changed)), reached, share, best, trials, len(np.unique(cohort.patients)))


def _slices(rules: Rules, trials: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """Return the members of random rules that hold about `SHARE` of the patients, (trials, cases)."""
    order = rng.permutation(len(rules))[: 50 * trials]  # there may be many thousands
    members = np.stack([rules.members(rule) for rule in order])
    shares = (members == 1) @ rules.weight / rules.weight.sum()
    fitting = np.flatnonzero((shares >= _SHARES[0]) & (shares <= _SHARES[1]))
    if not len(fitting):
        fitting = np.argsort(np.abs(shares - SHARE), kind="stable")[:1]
    return np.asarray(members[rng.choice(fitting, size=trials)])


def _is_found(
    cohort: Cohort,
    rules: Rules,
    halves: tuple[NDArray[np.intp], NDArray[np.intp]],
    badness: NDArray[np.float64],
    planted: NDArray[np.bool_],
    num_permutations: int,
    rng: np.random.Generator,
) -> bool:
    for proposals in cross_screen(rules, cohort.patients, halves, badness, num_permutations, rng):
        for proposal in proposals:
            inside, here = proposal.members == 1, proposal.members[proposal.confirm]
            if not proposal.passes(cohort.alpha) or jaccard(inside, planted) <= MAX_OVERLAP:
                continue
            values = badness[proposal.confirm]
            if values[here == 1].mean() - values[here == 0].mean() >= cohort.min_effect:
                return True
    return False
