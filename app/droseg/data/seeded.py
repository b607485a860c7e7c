"""Augmentation that follows from the draw: the same with any number of workers, and after a resume anywhere."""

from __future__ import annotations

import os
import random
import signal
import threading
from collections.abc import Sequence, Sized
from typing import Any, cast

import numpy as np
import torch
from monai.data import DataLoader
from monai.data.utils import worker_init_fn
from monai.transforms import Randomizable
from torch.utils.data import Dataset, Sampler, get_worker_info

from droseg.errors import InputError

PREFETCH = 2
"""Batches that each worker prepares ahead at most; torch's own default."""


class SeededDataset(Dataset):
    """Seeds the random transforms of a MONAI data set anew for each item, with the seed that its draw carries.

    The batch samplers of `droseg.sampling` yield indices with a `seed`. An index without one leaves the transforms as
    they are. In a worker process the global generators of Python, numpy and torch are seeded too, for transforms of
    other people; in the main process they belong to the training.

    Args:
        dataset: e.g. `CacheDataset`; its `transform` is what is seeded.
    """

    def __init__(self, dataset: Dataset) -> None:
        self.dataset = dataset
        self.data = getattr(dataset, "data", None)

    def __len__(self) -> int:
        return len(cast(Sized, self.dataset))

    def __getitem__(self, index: int) -> Any:
        """Return the transformed item."""
        seed = getattr(index, "seed", None)
        if seed is not None:
            transform = getattr(self.dataset, "transform", None)
            if isinstance(transform, Randomizable):
                transform.set_random_state(seed=seed)
            if get_worker_info() is not None:
                random.seed(seed)
                np.random.seed(seed)
                torch.manual_seed(seed)
        return self.dataset[int(index)]


class LagBoundedDataLoader(DataLoader):
    """MONAI's `DataLoader` for drawn batches, with a bound on how much older than its update a draw can be.

    A batch that a worker prepares ahead was drawn before the losses of the batches in between were known. With 0
    workers the lag is 0, else at most num_workers * (batches that each prepares ahead), which is kept <= `max_lag`.

    Args:
        dataset: e.g. `SeededDataset`.
        batch_sampler: of `droseg.sampling`.
        num_workers: processes that load data; 0: the training process itself.
        max_lag: most updates between a draw and its own.
        kwargs: of `torch.utils.data.DataLoader`.
    Raises:
        InputError: if the workers alone exceed the lag.
    """

    def __init__(
        self,
        dataset: Dataset,
        batch_sampler: Sampler[list[int]] | Sequence[list[int]],
        num_workers: int = 0,
        max_lag: int = 8,
        **kwargs: Any,
    ) -> None:
        # Its own generator: torch draws a seed for the workers from it at each start of an epoch. From the global one
        # it would be drawn once more when a run is resumed in the middle of an epoch.
        options: dict[str, Any] = {"generator": torch.Generator()}
        if num_workers:
            options["prefetch_factor"] = prefetch_factor(num_workers, max_lag)
            options["persistent_workers"] = True
            options["worker_init_fn"] = start_worker
        super().__init__(dataset, num_workers, batch_sampler=batch_sampler, **{**options, **kwargs})

    def end_workers(self) -> None:
        """End the workers, which otherwise live on between epochs; the next pass starts new ones."""
        # Left to the garbage collector, their queues are closed before they hear of it, and each is waited for 5 s.
        iterator, self._iterator = self._iterator, None
        if iterator is not None:
            iterator._shutdown_workers()  # type: ignore[attr-defined]


def prefetch_factor(num_workers: int, max_lag: int) -> int:
    """Return how many batches each worker may prepare ahead so that no draw is older than `max_lag` updates.

    Raises:
        InputError: if even one batch per worker is too many.
    """
    if num_workers > max_lag:
        raise InputError(
            f"num_workers is {num_workers} and max_lag {max_lag}: each worker prepares at least one batch ahead, so a "
            f"batch would be trained up to {num_workers} updates after its draw. Lower num_workers or raise max_lag."
        )
    return min(PREFETCH, max_lag // num_workers)


def start_worker(worker_id: int) -> None:
    """Prepare a data-loading worker: MONAI's random states, and SIGTERM heeded from the training process only.

    Schedulers send SIGTERM to all processes of a job; a worker that ended by it would take the training's checkpoint
    with it. On macOS, which cannot tell who sent a signal, it does.
    """
    if hasattr(signal, "sigwaitinfo"):
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_end_by_signal_of, args=(os.getppid(),), daemon=True).start()
    worker_init_fn(worker_id)


def _end_by_signal_of(parent: int) -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
        pass
    os._exit(0)
