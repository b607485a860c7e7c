"""Hidden subgroups: slices of the cases that no group axis names and in which a metric is bad."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from droseg.discovery.conditions import Condition, rule_text
from droseg.discovery.confirm import bootstrap_difference, split_patients
from droseg.discovery.overlap import Overlap, largest_overlap
from droseg.discovery.screen import Proposal, cross_screen
from droseg.discovery.search import Rules, enumerate_rules, jaccard, looks_bad_beyond
from droseg.errors import InputError

MIN_PATIENTS: Final = 5
MAX_OVERLAP: Final = 0.5
"""Two slices are one finding if their cases have a larger Jaccard index."""
COLUMNS: Final = (
    *("rule", "confirmed", "axis", "n", "n_patients", "n_confirm", "mean_inside", "mean_outside", "difference"),
    *("ci_low", "ci_high", "p", "p_adjusted", "known_group", "jaccard", "note"),
)


@dataclass(frozen=True)
class HiddenSubgroup:
    """A slice that looked bad to one half of the patients, and what the other half says about it.

    Attributes:
        rule: as people read it; its parts are the `conditions`.
        case_ids: all cases inside, of both halves.
        n: how many these are.
        n_patients: how many patients they have.
        n_confirm: how many of them the confirming half has. All that follows is of this half, so the search flatters
            nothing.
        mean_inside: mean of the metric over its cases inside.
        mean_outside: mean over its cases outside.
        difference: inside minus outside.
        ci: 95 % bootstrap interval of the difference over patients, not adjusted for the number of rules.
        p: one-sided, of this rule alone; also right where inside and outside differ in spread only.
        p_adjusted: one-sided, corrected for all rules that were tested, in both directions.
        confirmed: p_adjusted <= alpha, p <= alpha / 10, the interval leaves out 0, and the difference reaches the
            minimum effect.
        overlap: the known group that it resembles most; None where no groups are known.
    """

    rule: str
    conditions: tuple[Condition, ...]
    case_ids: tuple[str, ...]
    n: int
    n_patients: int
    n_confirm: int
    mean_inside: float
    mean_outside: float
    difference: float
    ci: tuple[float, float]
    p: float
    p_adjusted: float
    confirmed: bool
    overlap: Overlap | None

    def sentence(self, metric: str) -> str:
        """Return the finding as people read it, with its uncertainty."""
        return (
            f"{self.rule}: mean {metric} {self.mean_inside:.3g} against {self.mean_outside:.3g}, n = {self.n} "
            f"(means in the half that the search did not see, {self.n_confirm} of the {self.n}; difference "
            f"{self.difference:+.2g}, 95 % interval {self.ci[0]:+.2g} to {self.ci[1]:+.2g}; adjusted "
            f"p = {self.p_adjusted:.2g})"
        )


def find_hidden_subgroups(
    features: pd.DataFrame,
    values: pd.Series,
    patients: Mapping[str, str] | pd.Series,
    known: pd.DataFrame | None = None,
    *,
    higher_is_better: bool = True,
    num_rules: int = 3,
    min_patients: int = MIN_PATIENTS,
    alpha: float = 0.05,
    min_effect: float = 0.0,
    num_permutations: int = 4999,
    num_bootstrap: int = 2000,
    seed: int = 0,
) -> list[HiddenSubgroup]:
    """Return the distinct slices that looked bad, the confirmed ones first; `num_rules` at most.

    The patients are split in half at random. Each half proposes the rules that look worst on it (see `shortlist`); the
    other half tests them by permuting patients, corrected for their number (see `permutation_p_values`). This is the
    holdout of Webb 2007 (Mach. Learn. 68:1), done both ways at alpha / 2 each: cross-screening (Zhao, Small &
    Rosenbaum 2018, JASA 113:1070). So where the metric has nothing to do with any feature, a subgroup is confirmed
    with a probability of at most `alpha`, however many rules were searched; where features change its spread and not
    its mean, about so (docs/discovery.md has the measured rates). Of the rules that pass, the first that its search
    half proposed is reported, then those that look bad in both halves beyond the effect of the reported ones.

    Args:
        features: index case_id; numbers get thresholds, everything else is compared as text; NaN is unknown.
        values: index case_id; one value per case in which failures count (`droseg.metrics.groups.case_values`). NaN
            is left out.
        patients: case_id -> patient_id.
        known: index case_id, one column per group axis. Its groups take part in rules, but never alone.
        higher_is_better: False for distances.
        num_rules: how many to report at most; it does not change what is confirmed.
        min_patients: smallest slice, in patients of each half (one scan of m counts 1/m).
        alpha: probability of any false alarm, see above.
        min_effect: smallest |difference| to confirm.
        num_permutations: of each test.
        num_bootstrap: samples per interval.
        seed: of the split and of everything else random.

    Raises:
        InputError: if there are fewer than 4 x `min_patients` patients with a value, or no feature of any use.
    """
    rng = np.random.default_rng(seed)
    cohort, rules, halves = prepare(
        features, values, patients, known, higher_is_better, min_patients, alpha, min_effect, rng
    )
    proposals = cross_screen(rules, cohort.patients, halves, cohort.badness, num_permutations, rng)
    return _report(cohort, rules, proposals, num_rules, num_bootstrap, rng)


def prepare(
    features: pd.DataFrame,
    values: pd.Series,
    patients: Mapping[str, str] | pd.Series,
    known: pd.DataFrame | None,
    higher_is_better: bool,
    min_patients: int,
    alpha: float,
    min_effect: float,
    rng: np.random.Generator,
) -> tuple[Cohort, Rules, tuple[NDArray[np.intp], NDArray[np.intp]]]:
    """Return the cases with a value, all rules on them, and the halves; arguments as for `find_hidden_subgroups`."""
    values = values.dropna().astype(float)
    groups = pd.DataFrame(index=values.index) if known is None else known.reindex(values.index)
    table = features.drop(columns=[c for c in groups.columns if c in features.columns]).reindex(values.index)
    table = table.join(groups)
    codes, names = pd.factorize(_patient_ids(patients, values.index))
    _check(table, len(names), min_patients)
    halves = split_patients(codes, rng)
    rules = enumerate_rules(table, list(groups.columns), codes, halves, min_patients)
    return Cohort(values, codes, groups, alpha, min_effect, -1.0 if higher_is_better else 1.0), rules, halves


def hidden_table(subgroups: Sequence[HiddenSubgroup], axes: Sequence[str] = ()) -> pd.DataFrame:
    """Return hidden_subgroups.csv: one row per subgroup; `axis` is the name of its axis in an exported datalist."""
    rows = []
    names = iter(axes)
    for subgroup in subgroups:
        overlap = subgroup.overlap
        rows.append(
            {
                "rule": subgroup.rule,
                "confirmed": subgroup.confirmed,
                "axis": next(names, "") if subgroup.confirmed else "",
                **{name: getattr(subgroup, name) for name in ("n", "n_patients", "n_confirm")},
                **{name: getattr(subgroup, name) for name in ("mean_inside", "mean_outside", "difference")},
                "ci_low": subgroup.ci[0],
                "ci_high": subgroup.ci[1],
                "p": subgroup.p,
                "p_adjusted": subgroup.p_adjusted,
                "known_group": overlap.group if overlap else "",
                "jaccard": overlap.jaccard if overlap else float("nan"),
                "note": str(overlap) if overlap else "",
            }
        )
    return pd.DataFrame(rows, columns=list(COLUMNS))


@dataclass(frozen=True)
class Cohort:
    """The cases with a value, and what makes a slice of them confirmed."""

    values: pd.Series
    patients: NDArray[np.intp]
    known: pd.DataFrame
    alpha: float
    min_effect: float
    sign: float

    @property
    def badness(self) -> NDArray[np.float64]:
        """The values, larger being worse."""
        return self.sign * self.values.to_numpy(dtype=float)

    def subgroup(
        self, proposal: Proposal, conditions: tuple[Condition, ...], num_bootstrap: int, rng: np.random.Generator
    ) -> HiddenSubgroup:
        """Return what the confirming half says of a slice."""
        inside, here = proposal.members == 1, proposal.members[proposal.confirm]
        values = self.values.to_numpy(dtype=float)[proposal.confirm]
        ci = bootstrap_difference(values, self.patients[proposal.confirm], here, num_bootstrap, rng)
        mean_inside, mean_outside = float(values[here == 1].mean()), float(values[here == 0].mean())
        difference = mean_inside - mean_outside
        clear = min(self.sign * ci[0], self.sign * ci[1]) > 0 and self.sign * difference >= self.min_effect
        return HiddenSubgroup(
            rule=rule_text(conditions),
            conditions=conditions,
            case_ids=tuple(str(case_id) for case_id in self.values.index[inside]),
            n=int(inside.sum()),
            n_patients=len(np.unique(self.patients[inside])),
            n_confirm=int((here == 1).sum()),
            mean_inside=mean_inside,
            mean_outside=mean_outside,
            difference=difference,
            ci=ci,
            p=float(proposal.p),
            p_adjusted=float(proposal.p_adjusted),
            confirmed=bool(clear and proposal.passes(self.alpha)),
            overlap=largest_overlap(inside, self.known, self.values),
        )


def _report(
    cohort: Cohort,
    rules: Rules,
    proposals: Sequence[Sequence[Proposal]],
    num_rules: int,
    num_bootstrap: int,
    rng: np.random.Generator,
) -> list[HiddenSubgroup]:
    """Return the findings: of each half in the order in which it proposed them, each one something of its own."""
    reported: list[HiddenSubgroup] = []
    insides: list[NDArray[np.bool_]] = []
    # The half with more to say first; what passed the test before what did not.
    ordered = sorted(proposals, key=lambda of_half: min(proposal.p_adjusted for proposal in of_half))
    for passed in (True, False):
        for proposal in (p for of_half in ordered for p in of_half if p.passes(cohort.alpha) == passed):
            if len(reported) == num_rules:
                break
            halves = (proposal.search, proposal.confirm) if passed else (proposal.search,)
            if not _is_own_finding(proposal.members, insides, halves, cohort, rules):
                continue
            conditions = rules.conditions_of(proposal.rule)
            reported.append(cohort.subgroup(proposal, conditions, num_bootstrap, rng))
            insides.append(proposal.members == 1)
    return sorted(reported, key=lambda subgroup: (not subgroup.confirmed, subgroup.p_adjusted, subgroup.p))


def _is_own_finding(
    members: NDArray[np.float64],
    reported: Sequence[NDArray[np.bool_]],
    halves: Sequence[NDArray[np.intp]],
    cohort: Cohort,
    rules: Rules,
) -> bool:
    """Return whether a rule holds other cases than those reported, and looks bad in all given halves beyond them."""
    if any(jaccard(members == 1, inside) > MAX_OVERLAP for inside in reported):
        return False
    return not reported or all(
        looks_bad_beyond(members[half], [inside[half] for inside in reported], cohort.badness[half], rules.weight[half])
        for half in halves
    )


def _patient_ids(patients: Mapping[str, str] | pd.Series, index: pd.Index) -> pd.Series:
    """Return the patient of each case; a case without one is its own."""
    own = index.to_series()
    return own.map(patients).fillna(own)


def _check(table: pd.DataFrame, num_patients: int, min_patients: int) -> None:
    if num_patients < 4 * min_patients:
        raise InputError(
            f"{num_patients} patients with a value are too few to search for hidden subgroups: {min_patients} inside "
            f"and {min_patients} outside of a slice, in each of two halves, are {4 * min_patients}."
        )
    if not any(table[column].nunique() > 1 for column in table.columns):
        raise InputError(
            "no feature differs between the cases, so there is nothing to make rules of; give --datalist or --features."
        )
