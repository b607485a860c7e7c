"""State in the middle of an epoch: every variant continues with the identical draws, weights and limits."""

from __future__ import annotations

from collections import deque
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from droseg.objectives import Objective, build_objective

CASES = tuple(f"case{index}" for index in range(23))
NUM_BATCHES, EPOCHS = 9, 5

VARIANTS = {
    "kl": {"beta": 3.0, "target_ess": 0.6},
    "kl by kl": {"beta": 3.0, "target_kl": 0.2, "momentum": 0.3},
    "warm-up": {"beta": 8.0, "warmup_epochs": 3},
    "replacement": {"beta": 5.0, "replacement": True, "importance_weighting": True},
    "floor": {"beta": 30.0, "floor": 1e-4, "importance_weighting": True},
    "mix, cap and trim": {"beta": 6.0, "mix": 0.2, "cap": 0.8, "trim": 0.1, "importance_weighting": True},
    "max_age": {"beta": 40.0, "max_age": 1, "importance_weighting": True},
    "chi2 by beta": {"beta": 4.0, "divergence": "chi2", "mix": 0.1, "warmup_epochs": 2},
    "chi2 by rho": {"divergence": "chi2", "rho": 0.7, "max_age": 2, "importance_weighting": True},
    "cvar": {"divergence": "cvar", "alpha": 0.2, "mix": 0.1, "max_age": 1, "cap": 0.9},
}


def make(name: str, seed: int = 0, objective: str = "hardness") -> Objective:
    options = VARIANTS[name] if objective == "hardness" else {}
    return build_objective(objective, CASES, batch_size=3, num_batches=NUM_BATCHES, seed=seed, **options)


class Training:
    """A simulated training with a loader that draws `lag` batches ahead, and a record of all that happens."""

    def __init__(self, objective: Objective, lag: int, epoch: int = 1, step: int = 0) -> None:
        self.objective, self.lag, self.epoch, self.step = objective, lag, epoch, step
        self.record: list[tuple] = []

    def run(self, stop_after: int) -> None:
        """Train up to this step; the epoch's loader is started anew where a resumed run starts it."""
        while self.step < stop_after:
            ahead: deque[list[int]] = deque()
            for batch in self.objective.sampler:
                ahead.append(batch)
                if len(ahead) > self.lag and self.train(ahead.popleft()) == stop_after:
                    break
            while ahead and self.step < stop_after:
                self.train(ahead.popleft())
            if self.step % NUM_BATCHES == 0:
                self.record.append(tuple(sorted(self.objective.epoch_completed(self.epoch).items())))
                self.epoch += 1

    def train(self, batch: list[int]) -> int:
        draw, rng = self.objective.begin_batch(batch), np.random.default_rng(self.step)
        # An absurd loss now and then, and a trend, so that limits, rules and refits have something to do.
        losses = [(index % 7) / (1 + 0.1 * self.step) + 0.3 * rng.random() for index in batch]
        losses[0] = 1e4 if self.step % 11 == 5 else losses[0]
        weights = self.objective.weights(batch, torch.tensor(losses, dtype=torch.float64))
        self.objective.update(batch, losses)
        self.step += 1
        seeds = [index.seed for index in batch]
        self.record.append((*batch, *seeds, *draw.probability, *draw.stale_loss, draw.beta, *weights.tolist()))
        return self.step


def compare(name: str, objective: str, lag: int, stops: list[int], path: Path) -> None:
    total = NUM_BATCHES * EPOCHS
    whole = Training(make(name, objective=objective), lag)
    whole.run(total)
    part, record = Training(make(name, objective=objective), lag), []
    for stop in sorted({*stops, total}):
        part.run(stop)
        record += part.record
        torch.save(part.objective.state_dict(), path)
        other = make(name, seed=99, objective=objective)
        other.load_state_dict(torch.load(path, weights_only=True))
        part = Training(other, lag, part.epoch, part.step)
    assert record == whole.record
    assert len(record) == total + EPOCHS
    np.testing.assert_array_equal(part.objective.history.loss, whole.objective.history.loss)
    np.testing.assert_array_equal(part.objective.probabilities(), whole.objective.probabilities())


@pytest.mark.parametrize("lag", [0, 4])
@pytest.mark.parametrize("name", VARIANTS)
def test_a_run_that_is_interrupted_anywhere_is_the_uninterrupted_one(name: str, lag: int, tmp_path: Path):
    compare(name, "hardness", lag, [1, 5, 8, 9, 13, 14, 22, 30, 43], tmp_path / "state.pt")


@pytest.mark.parametrize("lag", [0, 4])
def test_so_are_shuffled_passes(lag: int, tmp_path: Path):
    compare("kl", "erm", lag, [1, 5, 8, 9, 13, 14, 22, 30, 43], tmp_path / "state.pt")


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    name=st.sampled_from(sorted(VARIANTS)),
    lag=st.integers(0, 7),
    stops=st.lists(st.integers(1, NUM_BATCHES * EPOCHS - 1), max_size=6),
)
def test_so_is_any_other_interruption(name: str, lag: int, stops: list[int], tmp_path: Path):
    compare(name, "hardness", lag, stops, tmp_path / "state.pt")


def test_a_batch_that_was_drawn_and_not_trained_is_drawn_again_with_its_seed_and_record():
    objective = make("max_age")
    batches = iter(objective.sampler)
    drawn = [next(batches) for _ in range(4)]
    objective.begin_batch(drawn[0])
    objective.update(drawn[0], [1.0, 2.0, 3.0])
    other = make("max_age", seed=5)
    other.load_state_dict(objective.state_dict())
    batches = iter(other.sampler)
    again = [next(batches) for _ in range(3)]
    assert [[(i, i.seed) for i in batch] for batch in again] == [[(i, i.seed) for i in batch] for batch in drawn[1:]]
    assert list(other.sampler.pending) == list(objective.sampler.pending)


def test_the_state_may_be_saved_again_before_all_that_was_pending_is_trained():
    objective = make("kl")
    batches = iter(objective.sampler)
    drawn = [next(batches) for _ in range(5)]
    for _ in range(3):
        other = make("kl", seed=5)
        other.load_state_dict(objective.state_dict())
        objective = other
        batch = next(iter(objective.sampler))
        objective.begin_batch(batch)
        objective.update(batch, [1.0, 1.0, 1.0])
        assert batch == drawn.pop(0)
