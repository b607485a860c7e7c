"""A maximum age: in long simulated runs every case comes back in time, spread over the epoch, or the log says not."""

from __future__ import annotations

import logging

import numpy as np
import pytest

from droseg.sampling import HardnessWeightedBatchSampler, LossHistory


def sampler_of(size: int, **options) -> HardnessWeightedBatchSampler:
    history = LossHistory([f"case{index}" for index in range(size)])
    return HardnessWeightedBatchSampler(history, **options)


def train(sampler: HardnessWeightedBatchSampler, epochs: int, lag: int = 0) -> np.ndarray:
    """Return which cases each epoch trained, shape (epochs, N); cases 0 to 2 stay hard, all others are easy."""
    trained = np.zeros((epochs, len(sampler.history)), dtype=int)
    for epoch in range(epochs):
        waiting: list[list[int]] = []
        for batch in sampler:
            waiting.append(batch)
            if len(waiting) > lag:
                finish(sampler, waiting.pop(0), trained[epoch])
        for batch in waiting:
            finish(sampler, batch, trained[epoch])
    return trained


def finish(sampler: HardnessWeightedBatchSampler, batch: list[int], trained: np.ndarray) -> None:
    trained[batch] += 1
    sampler.history.update(batch, [1.0 if index < 3 else 0.1 for index in batch])


@pytest.mark.parametrize("max_age", [1, 2, 5])
@pytest.mark.parametrize("lag", [0, 4])
@pytest.mark.parametrize(
    "options",
    [{"beta": 100.0}, {"divergence": "cvar", "alpha": 0.02}, {"divergence": "chi2", "rho": 5.0}],
    ids=["kl", "cvar", "chi2"],
)
def test_every_case_is_trained_in_any_max_age_plus_one_epochs(max_age: int, lag: int, options, caplog):
    sampler = sampler_of(90, batch_size=3, num_batches=30, max_age=max_age, seed=1, **options)
    trained = train(sampler, 8 * (max_age + 1), lag)
    seen = trained[1:] > 0  # the first epoch draws the cases that were never visited
    windows = np.lib.stride_tricks.sliding_window_view(seen, max_age + 1, axis=0).any(axis=-1)
    assert windows.all()
    assert "raise max_age" not in caplog.text


def test_without_a_maximum_age_easy_cases_are_forgotten():
    # So that the test above can fail.
    trained = train(sampler_of(90, batch_size=3, num_batches=30, beta=100.0, seed=1), 12)
    assert (trained[6:].sum(axis=0) == 0).sum() > 40


def test_hard_cases_still_get_the_slots_that_the_overdue_leave():
    trained = train(sampler_of(90, batch_size=3, num_batches=30, beta=100.0, max_age=5, seed=1), 26)[2:]
    easy = trained[:, 3:].sum()
    assert easy == 87 * 24 / 6, "once in six epochs each"
    assert trained[:, :3].sum() == 24 * 90 - easy


def test_the_overdue_are_spread_over_the_epoch_and_the_oldest_come_first():
    sampler = sampler_of(40, batch_size=4, num_batches=20, beta=1000.0, max_age=1)
    history = sampler.history
    for index in range(40):  # case 0 was trained first, so it is the oldest
        history.update([index], [0.0])
    for _ in range(40):
        history.update([39], [5.0])
    sampler.start_epoch()
    forced = [sampler.overdue.take() for _ in range(20)]
    assert [index for turn in forced for index in turn] == list(range(39))
    assert {len(turn) for turn in forced} <= {1, 2}


def test_a_case_that_a_draw_has_taken_leaves_the_queue():
    sampler = sampler_of(3, batch_size=1, num_batches=100, beta=0.0, max_age=1)
    for _ in range(300):
        sampler.history.update([0], [1.0])  # cases 1 and 2 are overdue; one of them is forced after half of the epoch
    batches = list(sampler)
    assert {1, 2} <= {index for (index,) in batches}
    assert sampler.overdue.state_dict()["waiting"].tolist() == []


def test_more_overdue_cases_than_slots_are_said_and_the_oldest_are_taken(caplog):
    sampler = sampler_of(200, batch_size=2, num_batches=10, beta=100.0, max_age=2)
    trained = train(sampler, 4)
    with caplog.at_level(logging.WARNING):
        age, again = sampler.history.age, train(sampler, 1)[0]
    assert "cases were not drawn for 2 epochs, but an epoch has only 20 slots: raise max_age or" in caplog.text
    assert trained.sum() == 4 * 20
    assert again.sum() == 20
    oldest = np.argsort(-age, kind="stable")[:20]
    assert set(np.flatnonzero(again)) == set(oldest)
    # Feasible in the long run, for 200 cases in 20 slots, is once in ten epochs.
    seen = train(sampler, 30) > 0
    assert np.lib.stride_tricks.sliding_window_view(seen[10:], 11, axis=0).any(axis=-1).all()


def test_the_recorded_probability_is_the_share_of_the_epochs_slots():
    # Ten overdue of twelve cases in 20 batches of 2: half of the first slots... measured over many epochs.
    sampler = sampler_of(12, batch_size=2, num_batches=20, beta=3.0, max_age=1, replacement=True, seed=3)
    history = sampler.history
    history.update(range(12), np.linspace(0.0, 1.0, 12))
    for _ in range(30):
        history.update([10, 11], [0.9, 1.0])
    counts, recorded = np.zeros(12), {}
    for _ in range(400):
        for batch in sampler:  # no update: the same ten cases are overdue in every epoch
            counts[batch] += 1
            recorded |= dict(zip(sampler.pending[-1].indices, sampler.pending[-1].probability, strict=True))
    measured = counts / counts.sum()
    expected = np.array([recorded[index] for index in range(12)])
    # A draw that takes an overdue case by chance saves its forced slot, which the record leaves out of account.
    np.testing.assert_allclose(measured, expected, rtol=0.25)
    np.testing.assert_allclose(expected.sum(), 1.0, rtol=1e-12)
    assert expected[9] > 1 / 40


def test_the_plan_takes_few_bytes_however_many_are_overdue():
    sampler = sampler_of(100_000, batch_size=50, num_batches=2000, max_age=1)
    sampler.history.num_updates = 10_000
    sampler.start_epoch()
    assert sampler.overdue._num_planned == 100_000
    assert sampler.nbytes <= 40 * 100_000
    assert sampler.overdue.nbytes == 5 * 100_000
