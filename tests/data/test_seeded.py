"""Augmentation that follows from the draw, and how far ahead of the training a batch is drawn."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from monai.data import Dataset
from monai.transforms import Compose, RandFlipd, RandGaussianNoised

from droseg.data import LagBoundedDataLoader, SeededDataset
from droseg.data.seeded import prefetch_factor
from droseg.errors import InputError
from droseg.sampling import HardnessWeightedBatchSampler, LossHistory, ShuffledBatchSampler

CASES = tuple(f"case{index}" for index in range(12))


def augmented() -> SeededDataset:
    items = [{"image": torch.arange(64.0).reshape(1, 4, 4, 4), "index": index} for index in range(12)]
    return SeededDataset(Dataset(items, Compose([RandFlipd("image", prob=0.5), RandGaussianNoised("image", prob=1.0)])))


@pytest.mark.parametrize("num_workers", [1, 3])
def test_workers_change_nothing_in_what_is_trained(num_workers: int) -> None:
    epochs = []
    for workers in (0, num_workers):
        loader = LagBoundedDataLoader(augmented(), ShuffledBatchSampler(LossHistory(CASES), 2, 5), workers)
        epochs.append([(batch["index"], batch["image"]) for _ in range(3) for batch in loader])
    assert len(epochs[0]) == 15
    for (index, image), (other_index, other_image) in zip(*epochs, strict=True):
        assert torch.equal(index, other_index)
        assert torch.equal(image, other_image)
    images = torch.stack([image for _, image in epochs[0]])
    assert len(torch.unique(images.reshape(30, -1), dim=0)) == 30, "each draw has an augmentation of its own"


def test_loading_takes_nothing_from_the_global_generator() -> None:
    before = torch.get_rng_state()
    for workers in (0, 1):
        loader = LagBoundedDataLoader(augmented(), ShuffledBatchSampler(LossHistory(CASES), 2, 5), workers)
        assert len([*loader, *loader]) == 10
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("num_workers", "max_lag", "largest"), [(0, 8, 0), (1, 8, 2), (2, 8, 4), (2, 3, 2), (3, 5, 3), (3, 3, 3)]
)
def test_no_draw_is_older_than_the_largest_lag(num_workers: int, max_lag: int, largest: int) -> None:
    history = LossHistory(CASES)
    sampler = HardnessWeightedBatchSampler(history, 5.0, 2, 20)
    sampler.keeps_pending = True
    loader, lags = LagBoundedDataLoader(augmented(), sampler, num_workers, max_lag), []
    for epoch in range(2):
        for batch in loader:
            draw = sampler.pending.popleft()
            assert batch["index"].tolist() == list(draw.indices)
            lags.append(history.num_updates - draw.num_updates)
            history.update(draw.indices, [1.0, 2.0])
        assert max(lags) == largest <= max_lag, f"epoch {epoch}"
    assert len(lags) == 40


def test_more_workers_than_the_lag_allows_are_refused_with_both_keys() -> None:
    with pytest.raises(InputError, match=r"num_workers is 9 and max_lag 8.*Lower num_workers or raise max_lag"):
        LagBoundedDataLoader(augmented(), ShuffledBatchSampler(LossHistory(CASES), 2, 5), 9, 8)
    assert [prefetch_factor(workers, 8) for workers in (1, 2, 4, 5, 8)] == [2, 2, 2, 1, 1]


@pytest.mark.skipif(sys.platform == "darwin", reason="skipped: macOS does not tell who sent a signal")
def test_a_worker_ends_by_the_sigterm_of_the_training_and_of_nobody_else() -> None:
    loader = LagBoundedDataLoader(augmented(), ShuffledBatchSampler(LossHistory(CASES), 2, 5), 1)
    batches = iter(loader)
    next(batches)
    (worker,) = batches._workers
    subprocess.run(["kill", "-TERM", str(worker.pid)], check=True)
    assert len(list(batches)) == 4
    assert worker.is_alive()
    worker.terminate()
    worker.join(timeout=30)
    assert worker.exitcode == 0
