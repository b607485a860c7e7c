"""Every variant of the draw against its closed form by chi-square tests, on 1e5 draws and more (some with -m slow)."""

from __future__ import annotations

import itertools
import warnings
from collections import Counter

import numpy as np
import pytest
from scipy.special import softmax
from scipy.stats import chi2_contingency

from droseg.sampling import HardnessWeightedBatchSampler, ShuffledBatchSampler

LOSSES = np.array([0.31, 0.52, 0.11, 0.83, 0.47, 0.64])
LEVEL = 1e-4
"""Of the tests: a p-value below it fails. The seeds are fixed, so a sound sampler passes each time."""


def num_draws(fast: int, slow: int) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("num_draws", [fast, pytest.param(slow, marks=pytest.mark.slow)])


VARIANTS = {
    "kl": {"beta": 5.0},
    "floor": {"beta": 30.0, "floor": 0.2},
    "mix": {"beta": 20.0, "mix": 0.3},
    "cap": {"beta": 10.0, "cap": 0.5},
    "trim": {"beta": 5.0, "trim": 0.34, "mix": 0.2},
    "cap and trim": {"beta": 10.0, "cap": 0.5, "trim": 0.2, "mix": 0.1},
    "chi2 by beta": {"beta": 4.0, "divergence": "chi2", "mix": 0.2},
    "chi2 by rho": {"beta": 0.0, "divergence": "chi2", "rho": 0.6, "mix": 0.2},
    "chi2, capped": {"beta": 0.0, "divergence": "chi2", "rho": 0.3, "cap": 0.7, "mix": 0.2},
    "cvar": {"beta": 0.0, "divergence": "cvar", "alpha": 0.4, "mix": 0.2},
    "cvar of the rest": {"beta": 0.0, "divergence": "cvar", "alpha": 0.3, "trim": 0.2, "mix": 0.2},
}


def sampler_of(history, batch_size: int, **options) -> HardnessWeightedBatchSampler:
    sampler = HardnessWeightedBatchSampler(history, batch_size=batch_size, num_batches=10, **options)
    sampler.start_epoch()
    return sampler


@pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS)
def test_with_replacement_each_variant_draws_its_q(variant, visited_history, direct_q, p_value):
    q = direct_q(LOSSES, **variant)
    assert q.sum() == pytest.approx(1.0)
    sampler = sampler_of(visited_history(LOSSES), 1000, replacement=True, seed=1, **variant)
    np.testing.assert_allclose(sampler.probabilities(), q, rtol=1e-9)
    batches = [sampler.draw_batch() for _ in range(100)]
    for index, probability in zip(*batches[0], strict=True):
        assert probability == pytest.approx(q[index], rel=1e-9)
    drawn = Counter(itertools.chain.from_iterable(indices for indices, _ in batches))
    assert p_value(drawn, dict(enumerate(q))) > LEVEL


@num_draws(16_000, 100_000)
@pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS)
def test_without_replacement_each_variant_draws_plackett_luce(
    variant, num_draws, visited_history, direct_q, ordered_batches, p_value
):
    sampler = sampler_of(visited_history(LOSSES), 2, seed=2, **variant)
    drawn = Counter(tuple(sampler.draw_batch()[0]) for _ in range(num_draws // 2))
    assert p_value(drawn, ordered_batches(direct_q(LOSSES, **variant), 2)) > LEVEL


@num_draws(20_000, 200_000)
@pytest.mark.parametrize("beta", [0, 1, 10, 100, 1000])
@pytest.mark.parametrize("spread", [1e-6, 1.0, 1e3])
def test_the_softmax_is_drawn_at_any_beta_and_spread(beta, spread, num_draws, visited_history, p_value):
    losses = 2.0 + spread * np.array([0.1, 0.7, 0.7, 0.69, 0.0, 0.698, 0.3, 0.7])  # with ties
    sampler = sampler_of(visited_history(losses), 1000, beta=beta, replacement=True, seed=3)
    drawn = Counter(itertools.chain.from_iterable(sampler.draw_batch()[0] for _ in range(num_draws // 1000)))
    assert p_value(drawn, dict(enumerate(softmax(beta * (losses - losses.max()))))) > LEVEL


def test_the_chi_square_test_sees_a_beta_that_is_five_percent_off(visited_history, p_value):
    sampler = sampler_of(visited_history(LOSSES), 1000, beta=5.0, replacement=True, seed=1)
    drawn = Counter(itertools.chain.from_iterable(sampler.draw_batch()[0] for _ in range(100)))
    assert p_value(drawn, dict(enumerate(softmax(5.25 * LOSSES)))) < 1e-6


def released_draw(losses: np.ndarray, beta: float, batch_size: int, rng: np.random.RandomState) -> tuple[int, ...]:
    """Draw as the authors' released sampler does: probabilities raised to 1e-4 / N, then numpy's choice."""
    q, floor = softmax(beta * losses), 1e-4 / len(losses)
    q[q <= floor] = floor
    return tuple(rng.choice(len(losses), batch_size, p=q / q.sum(), replace=False).tolist())


@num_draws(24_000, 120_000)
def test_the_floor_draws_as_the_released_code(num_draws, visited_history):
    # At beta 100 all cases but two are below the floor, so that the floor decides every third case of a batch.
    losses, rng = np.array([0.9, 0.85, 0.2, 0.1, 0.4]), np.random.RandomState(0)
    assert (softmax(100 * losses) < 1e-4 / 5).sum() == 3
    theirs = Counter(released_draw(losses, 100.0, 3, rng) for _ in range(num_draws // 3))
    ours = {}
    for floor in (1e-4, 0.0):
        sampler = sampler_of(visited_history(losses), 3, beta=100.0, floor=floor, seed=4)
        ours[floor] = Counter(tuple(sampler.draw_batch()[0]) for _ in range(num_draws // 3))
    keys = sorted(set(theirs) | set(ours[1e-4]))
    both = np.array([[each[key] for key in keys] for each in (theirs, ours[1e-4])])
    assert chi2_contingency(both[:, both.sum(0) >= 10]).pvalue > LEVEL
    keys = sorted(set(theirs) | set(ours[0.0]))
    assert chi2_contingency([[each[key] for key in keys] for each in (theirs, ours[0.0])]).pvalue < 1e-12


def test_the_default_draws_are_not_floored(visited_history):
    sampler = sampler_of(visited_history([0.9, 0.2, 0.1]), 1, beta=100.0)
    assert sampler.probabilities()[2] == pytest.approx(np.exp(-80.0), rel=1e-9)


def test_beta_zero_draws_independent_uniform_batches_and_erm_passes(visited_history, p_value):
    history = visited_history(LOSSES)
    batches = list(HardnessWeightedBatchSampler(history, 0.0, 2, 20_001, seed=5))
    pairs = dict.fromkeys(itertools.permutations(range(6), 2), 1 / 30)
    assert p_value(Counter(map(tuple, batches)), pairs) > LEVEL
    # One batch tells nothing of the next: both contain case 0 with probability (2/6)^2.
    repeats = sum(0 in a and 0 in b for a, b in itertools.pairwise(batches)) / 20_000
    assert repeats == pytest.approx(1 / 9, abs=5 * np.sqrt(1 / 9 * 8 / 9 / 20_000))
    # ERM: every case once per three batches; consecutive batches of one pass share no case.
    passes = list(ShuffledBatchSampler(history, 2, 15_000, seed=5))
    assert p_value(Counter(map(tuple, passes)), pairs) > LEVEL
    thirds = [passes[start : start + 3] for start in range(0, len(passes), 3)]
    assert all(sorted(itertools.chain.from_iterable(three)) == list(range(6)) for three in thirds)
    counts = np.array([sum(0 in batch for batch in batches[start : start + 3]) for start in range(0, 20_001, 3)])
    assert counts.var() == pytest.approx(3 * 1 / 3 * 2 / 3, rel=0.1), "binomial; of shuffled passes it is 0"


def test_one_case_is_drawn_every_time(visited_history):
    for options in (
        {"beta": 1000.0},
        {"beta": 3.0, "mix": 0.5},
        {"divergence": "cvar", "alpha": 0.1, "mix": 0.1},
        {"divergence": "chi2", "rho": 2.0, "max_age": 1},
        {"trim": 0.9, "mix": 0.1},
        {"cap": 0.1},
        {"floor": 1e-4},
    ):
        sampler = sampler_of(visited_history([3.0]), 1, **options)
        assert sampler.draw_batch() == ([0], [pytest.approx(1.0)])
        many = sampler_of(visited_history([3.0]), 4, replacement=True, **options)
        assert many.draw_batch()[0] == [0] * 4
        with pytest.raises(ValueError, match="batch_size is 2 but there are 1 cases"):
            sampler_of(visited_history([3.0]), 2, **options)


def test_without_replacement_a_batch_holds_every_case_at_most_once_whatever_the_weights(visited_history):
    # CVaR gives weight to one case only; the rest of the batch is filled up uniformly from the others.
    sampler = sampler_of(visited_history(LOSSES), 4, divergence="cvar", alpha=1 / 6, max_age=100)
    batches = [sampler.draw_batch() for _ in range(4000)]
    assert all(indices[0] == 3 and len(set(indices)) == 4 for indices, _ in batches)
    assert all(probability == pytest.approx([1.0, 1 / 6, 1 / 6, 1 / 6]) for _, probability in batches)
    others = np.bincount([i for indices, _ in batches for i in indices[1:]], minlength=6)
    assert others[3] == 0
    np.testing.assert_allclose(others[others > 0] / 12_000, 1 / 5, atol=0.02)


def test_with_replacement_the_only_case_of_weight_fills_the_batch(visited_history):
    sampler = sampler_of(visited_history(LOSSES), 4, divergence="cvar", alpha=1 / 6, max_age=100, replacement=True)
    assert sampler.draw_batch()[0] == [3, 3, 3, 3]


def test_no_case_gets_more_than_its_slot_of_a_batch_without_replacement(visited_history):
    sampler = sampler_of(visited_history([9.0, 0.0, 0.1, 0.2]), 2, beta=100.0)
    batches = [sampler.draw_batch()[0] for _ in range(2000)]
    assert np.mean([0 in batch for batch in batches]) == 1.0
    assert sum(batch.count(0) for batch in batches) / 4000 == 0.5, "1/B of the slots, though q is 1"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"divergence": "cvar", "alpha": 0.2}, r"divergence cvar gives some cases no weight.*set mix.*or max_age"),
        ({"divergence": "chi2", "rho": 0.5}, "divergence chi2 gives some cases no weight"),
        ({"trim": 0.1}, "trim gives some cases no weight"),
        ({"divergence": "cvar", "mix": 0.1}, "cvar needs alpha"),
        ({"divergence": "cvar", "alpha": 0.0, "mix": 0.1}, "alpha is 0.0"),
        ({"divergence": "cvar", "alpha": 1.1, "mix": 0.1}, "alpha is 1.1"),
        ({"divergence": "chi2", "rho": -1.0, "mix": 0.1}, "rho is -1.0"),
        ({"divergence": "chi2", "rho": float("nan"), "mix": 0.1}, "rho is nan"),
        ({"divergence": "wasserstein"}, "choose one of kl, chi2, cvar"),
        ({"mix": 1.0}, "mix is 1.0"),
        ({"mix": -0.1}, "mix is -0.1"),
        ({"cap": 0.0}, "cap is 0.0"),
        ({"cap": 1.5}, "cap is 1.5"),
        ({"trim": 1.0, "mix": 0.1}, "trim is 1.0"),
        ({"max_age": 0.0}, "max_age is 0.0"),
        ({"floor": 1e-4, "mix": 0.1}, "floor reproduces the released code"),
        ({"floor": 1e-4, "cap": 0.9}, "floor reproduces the released code"),
        ({"floor": 1e-4, "divergence": "chi2", "mix": 0.1}, "floor reproduces the released code"),
        ({"beta": float("inf")}, "beta is inf"),
        ({"beta": 1e200}, r"beta is 1e\+200"),
    ],
)
def test_what_cannot_be_or_would_forget_cases_is_refused(options, message, visited_history):
    with pytest.raises(ValueError, match=message):
        HardnessWeightedBatchSampler(visited_history(LOSSES), **options)


def test_no_draw_warns_of_its_own_arithmetic(visited_history):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for variant in VARIANTS.values():
            sampler_of(visited_history(1e6 * LOSSES), 3, **variant).draw()
