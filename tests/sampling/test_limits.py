"""Cap, trim and refits: what one absurd loss may do, by hand and in simulated runs."""

from __future__ import annotations

import math

import numpy as np
import pytest

from droseg.objectives import build_objective
from droseg.sampling import HardnessWeightedBatchSampler, LossHistory
from droseg.sampling.limits import LossLimits


def test_limits_are_order_statistics_of_the_visited_losses():
    losses = np.arange(1.0, 11.0)  # 1 .. 10
    for trim, cap, trim_loss, cap_loss in (
        (0.1, 0.8, 9.0, 8.0),
        (0.2, 0.95, 8.0, 10.0),
        (0.05, 0.5, 10.0, 5.0),  # 5 % of ten cases is no case
        (0.9, 0.01, 1.0, 1.0),
        (0.0, None, math.inf, math.inf),
    ):
        limits = LossLimits(cap, trim)
        limits.fit(losses)
        assert (limits.trim_loss, limits.cap_loss) == (trim_loss, cap_loss)


@pytest.mark.parametrize("size", [10, 20, 30, 70, 100, 1000])
def test_a_tenth_is_a_tenth_in_spite_of_rounding(size: int):
    losses = np.random.default_rng(size).permutation(size).astype(float)
    limits = LossLimits(trim=0.1)
    limits.fit(losses)
    _, keeps = limits.apply(losses, np.ones(size, dtype=bool))
    assert (~keeps).sum() == size // 10
    assert losses[~keeps].min() == losses[keeps].max() + 1


def test_cases_that_were_never_visited_are_neither_capped_nor_trimmed_nor_counted():
    losses, visited = np.array([1.0, 2.0, 3.0, 4.0, 99.0]), np.array([True, True, True, True, False])
    limits = LossLimits(cap=0.5, trim=0.25)
    limits.fit(losses[visited])
    capped, keeps = limits.apply(losses, visited)
    assert capped.tolist() == [1.0, 2.0, 2.0, 2.0, 99.0]
    assert keeps.tolist() == [True, True, True, False, True]
    each = [limits.apply_one(float(loss), bool(seen)) for loss, seen in zip(losses, visited, strict=True)]
    assert each == [1.0, 2.0, 2.0, None, 99.0]


def test_a_case_with_an_absurd_loss_gets_the_share_of_the_capped_quantile():
    losses = np.append(np.linspace(0.1, 0.9, 99), 1e6)
    history = LossHistory([str(index) for index in range(100)])
    history.update(range(100), losses)
    sampler = HardnessWeightedBatchSampler(history, 10.0, cap=0.95)
    sampler.start_epoch()
    q = sampler.probabilities()
    assert q[99] == q[94] == q.max()
    expected = np.exp(10.0 * np.minimum(losses, losses[94]))
    np.testing.assert_allclose(q, expected / expected.sum(), rtol=1e-12)
    without = HardnessWeightedBatchSampler(history, 10.0)
    assert without.probabilities()[99] == 1.0


@pytest.mark.parametrize("options", [{"cap": 0.9}, {"trim": 0.05, "mix": 0.02}, {"cap": 0.9, "divergence": "chi2"}])
def test_an_absurd_loss_takes_no_more_slots_than_others_from_the_first_epoch_on(options):
    # A first epoch that is longer than the data set: limits that wait for its end would come too late.
    size, absurd = 60, 7
    if options.get("divergence"):
        options = {**options, "rho": 0.5, "mix": 0.05}
    else:
        options = {**options, "beta": 5.0}
    objective = build_objective(
        "hardness", [str(index) for index in range(size)], batch_size=2, num_batches=600, seed=1, **options
    )
    drawn = np.zeros(size)
    for batch in objective.sampler:
        objective.begin_batch(batch)
        drawn[batch] += 1
        objective.update(batch, [1e6 if index == absurd else 0.5 + 0.005 * index for index in batch])
    assert drawn.min() > 0
    assert drawn[absurd] <= 1.5 * np.sort(drawn)[-5] + 15
    assert drawn[absurd] < 0.08 * drawn.sum()


def test_without_limits_the_absurd_loss_takes_all_that_it_can():
    # So that the test above can fail.
    objective = build_objective("hardness", [str(i) for i in range(60)], batch_size=2, num_batches=600, beta=5.0)
    drawn = np.zeros(60)
    for batch in objective.sampler:
        objective.begin_batch(batch)
        drawn[batch] += 1
        objective.update(batch, [1e6 if index == 7 else 0.5 + 0.005 * index for index in batch])
    assert drawn[7] > 0.4 * drawn.sum()


def test_trimmed_cases_come_back_when_their_loss_falls():
    history = LossHistory([str(index) for index in range(10)])
    history.update(range(10), np.arange(1.0, 11.0))
    sampler = HardnessWeightedBatchSampler(history, 1.0, trim=0.1, max_age=100)
    sampler.start_epoch()
    assert sampler.probabilities()[9] == 0.0
    history.update([9], [3.0])
    assert sampler.probabilities()[9] == pytest.approx(sampler.probabilities()[2])
    history.update([0], [50.0])
    assert sampler.probabilities()[0] == 0.0, "at once, by the limit of the epoch"


@pytest.mark.parametrize(
    ("options", "tail"),
    [
        ({"divergence": "cvar", "alpha": 0.2}, 0.2),
        ({"divergence": "chi2", "rho": 0.5}, 0.5),  # effective sample size N / (1 + 2 rho)
        ({"divergence": "chi2", "beta": 3.0}, 0.3),
    ],
)
def test_refits_inside_an_epoch_are_few(options, tail):
    # Between refits the sum of the weights halves or doubles, which takes about half of the tail: an O(N log N) refit
    # per so many draws. Losses fall as in a training, with noise.
    size, batch_size, num_batches, epochs = 1000, 4, 1000, 4
    objective = build_objective(
        "hardness",
        [str(index) for index in range(size)],
        batch_size=batch_size,
        num_batches=num_batches,
        max_age=3,
        **options,
    )
    rng, visits = np.random.default_rng(0), np.zeros(size)
    level = rng.gamma(4.0, 0.25, size)
    per_epoch = []
    for epoch in range(1, epochs + 1):
        for batch in objective.sampler:
            objective.begin_batch(batch)
            visits[batch] += 1
            objective.update(batch, [level[i] / np.sqrt(visits[i]) + 0.05 * rng.random() for i in batch])
        per_epoch.append(objective.epoch_completed(epoch)["refits"])
    draws = batch_size * num_batches
    assert max(per_epoch[1:]) <= 1 + 2.5 * draws / (tail * size), per_epoch
    assert per_epoch[0] <= 2 + math.log2(num_batches) + 2.5 * draws / (tail * size), per_epoch
    assert min(per_epoch) >= 1, "the one at the start of the epoch"


def test_kl_is_never_refitted():
    objective = build_objective("hardness", list("abcdef"), batch_size=2, num_batches=200, beta=10.0)
    for epoch in (1, 2):
        for batch in objective.sampler:
            objective.begin_batch(batch)
            objective.update(batch, [0.1 * index for index in batch])
        assert objective.epoch_completed(epoch)["refits"] == 0


def test_a_chi_square_ball_follows_the_losses_in_the_first_epoch_already():
    # At the start all losses are the initial one: the rule is then flat, and its sum of weights cannot change.
    objective = build_objective(
        "hardness", [str(index) for index in range(50)], batch_size=2, num_batches=400, divergence="chi2", rho=2.0,
        mix=0.05,
    )  # fmt: skip
    drawn = np.zeros(50)
    for number, batch in enumerate(objective.sampler):
        objective.begin_batch(batch)
        drawn[batch] += number >= 200
        objective.update(batch, [0.1 * (index // 10) for index in batch])
    assert drawn[40:].sum() > 3 * drawn[:40].sum()
    assert 1.0 / float((objective.probabilities() ** 2).sum()) < 25.0
