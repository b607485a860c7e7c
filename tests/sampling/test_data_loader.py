"""The one promise that everything rests on: a loss update changes the draws of a running DataLoader."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from monai.data import DataLoader, Dataset, ThreadDataLoader
from torch.utils.data import IterableDataset

from droseg.sampling import HardnessWeightedBatchSampler, LossHistory

SIZE, HARD, NUM_BATCHES = 40, 17, 40


def items() -> Dataset:
    return Dataset([{"image": torch.full((1, 4, 4, 4), float(index)), "index": index} for index in range(SIZE)])


def even_history() -> LossHistory:
    history = LossHistory([f"case{index}" for index in range(SIZE)])
    history.update(range(SIZE), [1.0] * SIZE)
    return history


def rows(batch: dict) -> list[int]:
    assert batch["image"].flatten(1)[:, 0].tolist() == batch["index"].tolist()
    return batch["index"].tolist()


@pytest.mark.parametrize(("num_workers", "prefetched"), [(0, 1), (2, 5)])
def test_a_loss_update_changes_the_draws_of_a_running_data_loader(num_workers: int, prefetched: int):
    history = even_history()
    sampler = HardnessWeightedBatchSampler(history, beta=50.0, batch_size=2, num_batches=NUM_BATCHES, seed=0)
    loader = DataLoader(items(), batch_sampler=sampler, num_workers=num_workers)
    batches = []
    for batch in loader:
        batches.append(rows(batch))
        if len(batches) == 1:
            assert len(sampler.pending) == prefetched, "batches drawn when the first loss is known"
        if len(batches) == 10:
            drawn_before = len(sampler.pending)
            history.update([HARD], [9.0])  # from now on this case has all the probability
        if len(batches) == 25:
            drawn_hard = len(sampler.pending)
            history.update([HARD], [-9.0])  # and now none
    assert len(batches) == NUM_BATCHES
    assert [list(draw.indices) for draw in sampler.pending] == batches, "drawn and delivered in one order"
    assert drawn_before == 10 + prefetched - 1
    assert drawn_hard == 25 + prefetched - 1
    assert sum(HARD in batch for batch in batches[:drawn_before]) < 5
    assert all(HARD in batch for batch in batches[drawn_before:drawn_hard])
    assert not any(HARD in batch for batch in batches[drawn_hard:])


class DrawsInsideTheWorker(IterableDataset):
    """What must not be: every worker draws from its own copy of the sampler."""

    def __init__(self, sampler: HardnessWeightedBatchSampler) -> None:
        self.sampler = sampler

    def __iter__(self) -> Iterator[torch.Tensor]:
        for indices in self.sampler:
            yield torch.tensor(indices)


def test_a_sampler_copied_into_a_worker_would_not_follow_and_the_check_above_sees_it():
    history = even_history()
    sampler = HardnessWeightedBatchSampler(history, beta=50.0, batch_size=2, num_batches=NUM_BATCHES, seed=0)
    batches = []
    for batch in torch.utils.data.DataLoader(DrawsInsideTheWorker(sampler), batch_size=None, num_workers=1):
        batches.append(batch.tolist())
        if len(batches) == 10:
            history.update([HARD], [9.0])
    assert len(batches) == NUM_BATCHES
    assert sum(HARD in batch for batch in batches[20:]) < 5


def test_every_epoch_starts_with_no_draw_left_over():
    history = even_history()
    sampler = HardnessWeightedBatchSampler(history, batch_size=2, num_batches=6, seed=0)
    loader = DataLoader(items(), batch_sampler=sampler, num_workers=2, persistent_workers=True)
    for batch in loader:
        rows(batch)
        break  # an epoch that is left early
    for _ in range(2):
        epoch = [rows(batch) for batch in loader]
        assert [list(draw.indices) for draw in sampler.pending] == epoch


def test_a_loader_thread_that_draws_ahead_follows_too():
    history = even_history()
    sampler = HardnessWeightedBatchSampler(history, beta=50.0, batch_size=2, num_batches=NUM_BATCHES, seed=0)
    batches = []
    for batch in ThreadDataLoader(items(), batch_sampler=sampler, num_workers=0):
        batches.append(rows(batch))
        if len(batches) == 10:
            history.update([HARD], [9.0])
            drawn_before = len(sampler.pending)
    assert drawn_before <= 10 + 3
    assert all(HARD in batch for batch in batches[drawn_before:])
