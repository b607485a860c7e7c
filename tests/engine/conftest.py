"""A real but tiny MONAI training: eight 8^3 volumes, a two-level U-Net."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from monai.data import DataLoader, Dataset
from monai.networks.nets import UNet

from droseg.data import SeededDataset
from droseg.engine import DROTrainer
from droseg.handlers import HardnessHandler
from droseg.losses import PerCaseDiceCELoss
from droseg.objectives import build_objective

SIZE = 8
CASE_IDS = tuple(f"case{index}" for index in range(SIZE))


def make_items(seed: int = 0) -> list[dict[str, Any]]:
    """Blobs of two structures in noise; the label of each case can be learned from its image."""
    generator = torch.Generator().manual_seed(seed)
    items = []
    for index, case_id in enumerate(CASE_IDS):
        label = torch.zeros(1, 8, 8, 8)
        label[:, 1 : 4 + index % 3, 2:6, 1:5] = 1
        label[:, 5:, 3:, 5:] = 2
        image = label + 0.3 * torch.randn(label.shape, generator=generator)
        items.append({"image": image, "label": label, "index": index, "case_id": case_id})
    return items


def make_network(seed: int = 0) -> torch.nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return UNet(3, 1, 3, channels=(4, 8), strides=(2,), norm=("INSTANCE", {"affine": True}))


def make_trainer(
    objective: str = "hardness",
    *,
    epochs: int = 1,
    num_workers: int = 0,
    transform: Callable | None = None,
    handlers: tuple = (),
    loss_function: Callable | None = None,
    network: torch.nn.Module | None = None,
    items: list[dict[str, Any]] | None = None,
    learning_rate: float = 0.05,
    feed_back: bool = True,
    **options: Any,
) -> DROTrainer:
    robustness = {} if "target_ess" in options else {"beta": 5.0}
    options = {"batch_size": 2, "num_batches": 4, **robustness, **options}
    built = build_objective(objective, CASE_IDS, **options)
    network = make_network() if network is None else network
    dataset = Dataset(make_items() if items is None else items, transform)
    return DROTrainer(
        device=torch.device("cpu"),
        max_epochs=epochs,
        train_data_loader=DataLoader(SeededDataset(dataset), batch_sampler=built.sampler, num_workers=num_workers),
        network=network,
        optimizer=torch.optim.SGD(network.parameters(), lr=learning_rate),
        loss_function=PerCaseDiceCELoss() if loss_function is None else loss_function,
        objective=built,
        train_handlers=[*([HardnessHandler(built)] if feed_back else []), *handlers],
    )


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Volumes of 8^3 need no second thread, and on a busy machine waiting for one takes 50 times as long."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def trainer_factory() -> Callable[..., DROTrainer]:
    return make_trainer


@pytest.fixture
def items() -> list[dict[str, Any]]:
    return make_items()


@pytest.fixture
def network_factory() -> Callable[..., torch.nn.Module]:
    return make_network
