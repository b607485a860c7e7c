"""The loss history against hand calculation and scipy."""

from __future__ import annotations

import logging
import sys
import tracemalloc
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.special import softmax

from droseg.sampling import (
    HardnessWeightedBatchSampler,
    HistoryMismatchError,
    LossHistory,
    RecordingBatchSampler,
    ShuffledBatchSampler,
    hardness_probabilities,
)

CASES = ("anna", "ben", "cleo", "dora")


def test_an_update_is_an_exponential_moving_average_from_the_initial_loss():
    history = LossHistory(CASES, initial_loss=4.0, momentum=0.9)
    history.update([1], [2.0])
    assert history.loss.tolist() == pytest.approx([4.0, 0.9 * 4.0 + 0.1 * 2.0, 4.0, 4.0])
    history.update([1], [1.0])
    assert history.loss[1] == pytest.approx(0.9 * 3.8 + 0.1 * 1.0)


def test_without_momentum_the_newest_loss_is_kept():
    history = LossHistory(CASES)
    history.update([0, 2], [1.5, 0.25])
    assert history.loss.tolist() == [1.5, 4.0, 0.25, 4.0]


def test_several_losses_of_a_case_are_one_visit_with_their_mean():
    history = LossHistory(CASES, initial_loss=4.0, momentum=0.5)
    changed = history.update([2, 0, 2, 2], [1.0, 5.0, 2.0, 6.0])
    assert sorted(changed) == [0, 2]
    assert history.loss.tolist() == pytest.approx([4.5, 4.0, 3.5, 4.0])  # 0.5 * 4 + 0.5 * mean(1, 2, 6)
    assert history.visits.tolist() == [1, 0, 1, 0]
    assert history.num_updates == 1


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_a_loss_that_is_not_finite_keeps_the_old_one_and_names_the_case(bad: float, caplog: pytest.LogCaptureFixture):
    history = LossHistory(CASES)
    history.update([2], [0.5])
    with caplog.at_level(logging.WARNING):
        changed = history.update([1, 2], [1.0, bad])
    assert changed == [1]
    assert history.loss.tolist() == [4.0, 1.0, 0.5, 4.0]
    assert history.visits.tolist() == [0, 1, 1, 0]
    assert "cleo" in caplog.text
    assert "ben" not in caplog.text


@pytest.mark.parametrize(
    ("indices", "losses"),
    [
        ([3, 1], [0.5, 0.25]),
        (np.array([3, 1]), np.array([0.5, 0.25], dtype=np.float32)),
        (torch.tensor([3, 1]), torch.tensor([0.5, 0.25], requires_grad=True)),
        (torch.tensor([3, 1]), torch.tensor([0.5, 0.25], dtype=torch.bfloat16)),
        ([torch.tensor(3), torch.tensor(1)], list(torch.tensor([0.5, 0.25], requires_grad=True))),
    ],
)
def test_lists_arrays_and_tensors_are_taken(indices, losses):
    history = LossHistory(CASES)
    history.update(indices, losses)
    assert history.loss.tolist() == [4.0, 0.25, 4.0, 0.5]


def test_age_counts_the_updates_since_the_last_visit():
    history = LossHistory(CASES)
    for index in (0, 1, 0, 2):
        history.update([index], [1.0])
    assert history.age.tolist() == [1, 2, 0, 4]


@pytest.mark.parametrize("beta", [0, 1, 10, 100, 1000])
@pytest.mark.parametrize("spread", [1e-6, 1.0, 1e3])
def test_probabilities_are_scipys_softmax(beta: float, spread: float):
    losses = spread * np.random.default_rng(0).random(200)
    history = LossHistory([f"case{i}" for i in range(200)])
    history.update(np.arange(200), losses)
    probability = history.probabilities(beta)
    assert probability.dtype == torch.float64
    assert float(probability.sum()) == pytest.approx(1.0, abs=1e-12)
    np.testing.assert_allclose(probability.numpy(), softmax(beta * (losses - losses.max())), rtol=1e-12)


def test_probabilities_of_losses_far_apart_do_not_overflow():
    probability = hardness_probabilities(torch.tensor([0.0, 1e3, 1e3]), 1000.0)
    assert probability.tolist() == [0.0, 0.5, 0.5]


@pytest.mark.parametrize("beta", [-1.0, float("nan"), float("inf")])
def test_a_beta_that_is_negative_or_not_finite_is_refused(beta: float):
    with pytest.raises(ValueError, match="beta is"):
        LossHistory(CASES).probabilities(beta)


def test_state_passes_through_a_file_read_with_weights_only(tmp_path: Path):
    history = LossHistory(CASES, momentum=0.3)
    history.update([0, 1], [0.123456789012345, 7.0])
    history.update([1], [2.0])
    torch.save(history.state_dict(), tmp_path / "state.pt")
    other = LossHistory(CASES, initial_loss=9.0, momentum=0.3)
    other.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    for name in ("loss", "visits", "last_update", "age"):
        np.testing.assert_array_equal(getattr(other, name), getattr(history, name))
    assert other.num_updates == 2
    history.update([2], [1.0])
    assert other.loss[2] == 4.0, "a loaded state shares no memory with the one that was saved"


def test_a_state_of_other_cases_is_refused_by_name():
    state = LossHistory(CASES).state_dict()
    with pytest.raises(HistoryMismatchError, match=r"gone: \['anna'\].*new: \['emil'\]"):
        LossHistory(("emil", *CASES[1:])).load_state_dict(state)
    with pytest.raises(HistoryMismatchError, match="another order"):
        LossHistory(CASES[::-1]).load_state_dict(state)


def test_input_that_does_not_fit_is_refused():
    history = LossHistory(CASES)
    with pytest.raises(ValueError, match="2 indices but 1 losses"):
        history.update([0, 1], [1.0])
    with pytest.raises(IndexError, match="index 4"):
        history.update([4], [1.0])
    with pytest.raises(IndexError, match="index -1"):
        history.update([-1], [1.0])
    with pytest.raises(ValueError, match="whole number"):
        history.update([0.5], [1.0])
    assert history.num_updates == 0
    assert history.loss.tolist() == [4.0] * 4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"case_ids": []}, "case_ids is empty"),
        ({"case_ids": ["a", "b", "a"]}, r"repeat \['a'\]"),
        ({"case_ids": CASES, "momentum": 1.0}, "momentum is 1.0"),
        ({"case_ids": CASES, "initial_loss": float("nan")}, "initial_loss is nan"),
    ],
)
def test_arguments_outside_their_range_are_refused(arguments: dict, message: str):
    with pytest.raises(ValueError, match=message):
        LossHistory(**arguments)


def test_history_and_tree_keep_at_most_40_bytes_per_case():
    size = 50_000
    case_ids = [f"case{i}" for i in range(size)]  # the names themselves are the caller's
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        history = LossHistory(case_ids)
        sampler = HardnessWeightedBatchSampler(history)
        sampler.draw()
        history.update([1, 2], [1.0, 2.0])
        kept = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    assert kept <= 40 * size + 10_000


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"mix": 0.1},
        {"cap": 0.9, "trim": 0.05, "max_age": 1},
        {"divergence": "chi2", "rho": 0.5, "max_age": 1},
        {"divergence": "cvar", "alpha": 0.3, "mix": 0.1, "max_age": 1},
    ],
    ids=["kl", "mix", "limits and age", "chi2", "cvar"],
)
def test_every_variant_keeps_at_most_40_bytes_per_case_with_all_cases_overdue(options):
    size = 50_000
    history, kept = traced(
        lambda history: HardnessWeightedBatchSampler(history, num_batches=size, batch_size=2, **options), size
    )
    assert kept - sys.getsizeof(history.case_ids) <= 40 * size + 20_000


def test_shuffled_passes_keep_at_most_40_bytes_per_case_too():
    history, kept = traced(lambda history: ShuffledBatchSampler(history, num_batches=50_000, batch_size=2), 50_000)
    assert kept - sys.getsizeof(history.case_ids) <= 40 * 50_000 + 20_000


def traced(make: Callable[[LossHistory], RecordingBatchSampler], size: int) -> tuple[LossHistory, int]:
    """Return a history of this size and the bytes that it and its sampler keep in the middle of an epoch."""
    case_ids = [f"case{i}" for i in range(size)]
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        history = LossHistory(case_ids)
        sampler = make(history)
        history.num_updates = 10 * size
        batches = iter(sampler)
        for _ in range(20):
            history.update(next(batches), [1.0, 2.0])
        return history, tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()


def test_a_measurement_without_training_replaces_the_loss_and_is_no_visit():
    history = LossHistory(CASES, momentum=0.5)
    history.update([1], [2.0])
    sampler = HardnessWeightedBatchSampler(history, 3.0)
    assert sorted(history.replace([0, 1, 1, 3], [1.0, 0.5, 1.5, float("nan")])) == [0, 1]
    assert history.loss.tolist() == [1.0, 1.0, 4.0, 4.0], "as it is, without momentum; the mean of repeats"
    assert history.visits.tolist() == [0, 1, 0, 0]
    assert history.age.tolist() == [1, 0, 1, 1]
    np.testing.assert_allclose(sampler.probabilities(), softmax(3.0 * history.loss), rtol=1e-12)


def test_a_history_is_carried_over_for_the_cases_that_remain(caplog: pytest.LogCaptureFixture):
    history = LossHistory(CASES)
    history.update([0, 1, 3], [0.1, 0.2, 0.3])
    other = LossHistory(("dora", "emil", "ben"), initial_loss=9.0)
    sampler = HardnessWeightedBatchSampler(other, 2.0)
    with caplog.at_level(logging.WARNING):
        other.load_state_dict(history.state_dict(), carry_over=True)
    assert other.loss.tolist() == [0.3, 9.0, 0.2]
    assert other.visits.tolist() == [1, 0, 1]
    assert "2 cases taken over, 1 new ones, 2 gone" in caplog.text
    np.testing.assert_allclose(sampler.probabilities(), softmax(2.0 * other.loss), rtol=1e-12)


def test_cases_without_a_loss_are_lifted_above_every_loss_and_the_sampler_follows():
    history = LossHistory(CASES, unvisited_first=True)
    sampler = HardnessWeightedBatchSampler(history, 3.0)
    history.update([1], [2.0])
    assert history.loss.tolist() == [4.0, 2.0, 4.0, 4.0]
    history.update([0], [8.0])
    assert history.loss.tolist() == [8.0, 2.0, 10.0, 10.0]
    np.testing.assert_allclose(sampler.probabilities(), softmax(3.0 * history.loss), rtol=1e-12)
    history.replace([2], [9.0])  # a measurement: known from now on, though no visit
    history.update([0], [20.0])
    assert history.loss.tolist() == [20.0, 2.0, 9.0, 25.0]
    np.testing.assert_allclose(sampler.probabilities(), softmax(3.0 * history.loss), rtol=1e-12)


def test_what_unvisited_cases_count_as_is_saved_and_carried_over():
    history = LossHistory(CASES, unvisited_first=True)
    history.update([0], [8.0])
    again = LossHistory(CASES, unvisited_first=True)
    again.load_state_dict(history.state_dict())
    other = LossHistory(("anna", "ben", "emil"), initial_loss=30.0, unvisited_first=True)
    other.load_state_dict(history.state_dict(), carry_over=True)
    assert other.loss.tolist() == [8.0, 30.0, 30.0]
    for each in (history, again):
        each.update([1], [16.0])
        assert each.loss.tolist() == [8.0, 16.0, 20.0, 20.0]


@pytest.mark.parametrize(("blend", "expected"), [(True, [2.8, 1.96]), (False, [1.0, 0.7])])
def test_the_first_visit_mixes_the_initial_loss_in_only_if_asked_to(blend: bool, expected: list[float]):
    history = LossHistory(CASES, momentum=0.6, blend_initial=blend, unvisited_first=True)
    history.update([3], [100.0])  # lifts the others: the constant that is mixed in stays the initial loss
    for loss, stale in zip((1.0, 0.25 if not blend else 0.7), expected, strict=True):
        history.update([0], [loss])
        assert history.loss[0] == pytest.approx(stale)


def test_a_measured_case_keeps_its_measurement_in_the_first_momentum_step():
    history = LossHistory(CASES, momentum=0.6, blend_initial=False)
    history.replace([0], [2.0])
    history.update([0], [1.0])
    assert history.loss[0] == pytest.approx(0.6 * 2.0 + 0.4 * 1.0)


@pytest.mark.parametrize("momentum", [0.0, 0.3, 0.9])
def test_a_history_is_the_moving_average_of_thousands_of_updates_in_numpy(momentum: float):
    rng, history = np.random.default_rng(0), LossHistory([str(i) for i in range(40)], momentum=momentum)
    expected, visits = np.full(40, 4.0), np.zeros(40)
    for _ in range(2000):
        rows = rng.integers(0, 40, 5)  # with repeats
        losses = rng.gamma(2.0, 1.0, 5)
        for row in set(rows.tolist()):
            expected[row] = momentum * expected[row] + (1 - momentum) * losses[rows == row].mean()
            visits[row] += 1
        history.update(rows, losses)
    np.testing.assert_allclose(history.loss, expected, rtol=1e-12)
    np.testing.assert_array_equal(history.visits, visits)


@pytest.mark.parametrize("replacement", [True, False])
@pytest.mark.parametrize(
    "variant",
    [
        {"beta": 3.0},
        {"beta": 3.0, "mix": 0.3},
        {"beta": 3.0, "floor": 0.5},
        {"divergence": "cvar", "alpha": 0.5, "mix": 0.2},
        {"divergence": "chi2", "rho": 0.4, "mix": 0.2, "cap": 0.8},
    ],
    ids=str,
)
def test_without_a_case_the_draws_are_those_of_a_history_that_never_had_it(
    visited_history, direct_q, p_value, ordered_batches, variant, replacement
):
    losses = [0.3, 9.0, 0.5, 0.1, 0.7]
    history = visited_history(losses)
    options = {"batch_size": 2, "num_batches": 1, "replacement": replacement, "seed": 3}
    sampler = HardnessWeightedBatchSampler(history, **{**variant, **options})
    history.exclude(1)
    sampler.start_epoch()
    size_of_floor = {"floor": variant["floor"] * 4 / 5} if "floor" in variant else {}  # floor / N, N stays 5
    q = direct_q(np.array(losses)[[0, 2, 3, 4]], **{**variant, **size_of_floor})
    np.testing.assert_allclose(sampler.probabilities(), np.insert(q, 1, 0.0), rtol=1e-9)
    drawn = Counter(index for _ in range(10_000) for index in sampler.draw().indices[:1])
    assert p_value(drawn, dict(zip([0, 2, 3, 4], q, strict=True))) > 1e-3
    assert all(len(set(sampler.draw().indices)) == 2 or replacement for _ in range(50))
    history.update([1, 2], [0.2, 0.2])  # from a batch that was drawn before
    assert sampler.probabilities()[1] == 0.0


def test_a_saved_history_remembers_what_was_taken_out_unless_the_cases_are_others():
    history = LossHistory(["a", "b", "c"])
    assert [history.count_failure(1) for _ in range(3)] == [1, 2, 3]
    history.exclude(1)
    again, other = LossHistory(["a", "b", "c"]), LossHistory(["b", "c", "d"])
    again.load_state_dict(history.state_dict())
    assert (again.excluded, again.failures) == ({1}, {1: 3})
    other.load_state_dict(history.state_dict(), carry_over=True)
    assert (other.excluded, other.failures) == (set(), {})
    again.load_state_dict(history.state_dict(), carry_over=True)
    assert (again.excluded, again.failures) == (set(), {}), "another run: the file may have been mended"
