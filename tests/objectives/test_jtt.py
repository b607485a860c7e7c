"""JTT against algorithm 1: the error set, its repeats, the switch and its state."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from droseg.errors import InputError

LOSSES = np.array([0.5, 0.9, 0.1, 0.7, 0.9, 0.2, 0.3, 0.4])


def first_training(objective, epochs: int) -> None:
    """Train with losses that never change."""
    for epoch in range(1, epochs + 1):
        for batch in objective.sampler:
            objective.begin_batch(batch)
            objective.update(batch, LOSSES[batch])
        objective.epoch_completed(epoch)


def test_the_error_set_is_the_top_fraction_of_the_losses_and_is_repeated(objective_of):
    objective = objective_of("jtt", first_epochs=2, fraction=0.375, upweight=6, num_batches=23)
    assert (objective.restart_epoch, objective.wants_restart) == (2, False)
    first_training(objective, 1)
    assert objective.epoch_completed(1) == {"stage": 1.0, "error_set": 0.0}
    np.testing.assert_allclose(objective.probabilities(), 1 / 8)
    first_training(objective, 2)
    assert objective.error_set == (1, 4, 3), "hardest first, a tie by the order of the cases"
    assert (objective.restart_epoch, objective.wants_restart) == (None, True)
    objective.wants_restart = False  # as RestartHandler does
    # Algorithm 1: a pass holds each error case upweight times and every other once: 3 * 6 + 5 = 23 of 4 * 23 = 92.
    drawn = Counter(index for batch in objective.sampler for index in batch)
    assert drawn == {index: 4 * (6 if index in (1, 4, 3) else 1) for index in range(8)}
    np.testing.assert_allclose(objective.probabilities()[[1, 4, 3]], 6 / 23)
    assert objective.epoch_completed(3) == {"stage": 2.0, "error_set": 3.0}
    assert objective.error_set == (1, 4, 3), "found once"


def test_an_upweight_of_1_is_erm_twice(objective_of):
    objective = objective_of("jtt", first_epochs=1, upweight=1)
    first_training(objective, 1)
    np.testing.assert_allclose(objective.probabilities(), 1 / 8)


def test_a_small_fraction_still_has_one_case(objective_of):
    objective = objective_of("jtt", first_epochs=1, fraction=0.01)
    first_training(objective, 1)
    assert objective.error_set == (1,)


def test_a_case_that_was_never_measured_is_no_error(objective_of):
    objective = objective_of("jtt", first_epochs=1, fraction=0.25, initial_loss=100.0)
    objective.update(range(7), LOSSES[:7])
    objective.update([7], [float("nan")])
    objective.epoch_completed(1)
    assert objective.error_set == (1, 4)


def test_going_on_without_a_new_start_is_refused(objective_of):
    objective = objective_of("jtt", first_epochs=1)
    first_training(objective, 1)
    batch = next(iter(objective.sampler))
    with pytest.raises(RuntimeError, match=r"after epoch 1, but the network was not put back.*RestartHandler"):
        objective.begin_batch(batch)


@pytest.mark.parametrize("epochs", [1, 2, 3])
def test_the_stage_passes_through_a_checkpoint(objective_of, tmp_path: Path, epochs: int):
    def make(seed: int):
        return objective_of("jtt", first_epochs=2, seed=seed)

    objective = make(0)
    for epoch in range(1, epochs + 1):
        first_training(objective, 1)
        objective.epoch_completed(epoch)
        objective.wants_restart = False
    torch.save(objective.state_dict(), tmp_path / "state.pt")
    other = make(5)
    other.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert other.error_set == objective.error_set == ((1, 4) if epochs >= 2 else ())
    assert other.restart_epoch == objective.restart_epoch
    assert list(other.sampler) == list(objective.sampler)
    assert other.epoch_completed(epochs + 1) == objective.epoch_completed(epochs + 1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"first_epochs": 0}, "first_epochs is 0"),
        ({"first_epochs": 1.5}, "first_epochs is 1.5"),
        ({"fraction": 0.0}, "fraction is 0.0"),
        ({"fraction": 1.0}, "fraction is 1.0"),
        ({"upweight": 0}, "upweight is 0"),
        (
            {"first_epochs": 1, "num_batches": 1, "batch_size": 2},
            "first_epochs is 1, which visits 2 of 8 cases.*set it to 4 or more",
        ),
    ],
)
def test_settings_outside_their_range_are_refused(objective_of, options: dict, message: str):
    with pytest.raises(InputError, match=f"objective jtt: {message}"):
        objective_of("jtt", **options)
