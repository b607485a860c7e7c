"""A tiny but real run: training, validation on cases with groups, all in a temporary run folder."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from monai.data import DataLoader, Dataset, MetaTensor
from monai.engines import SupervisedEvaluator
from monai.handlers import LrScheduleHandler, ValidationHandler
from monai.networks.nets import UNet
from monai.optimizers import WarmupCosineSchedule
from monai.transforms import AsDiscreted, RandFlipd, RandGaussianNoised
from monai.transforms import Compose as MonaiCompose

from droseg.data import Case, LagBoundedDataLoader, SeededDataset
from droseg.engine import DROTrainer
from droseg.engine.run_folder import RunFolder
from droseg.handlers import CaseMetricsHandler, HardnessHandler, RestartHandler, RunCheckpoint
from droseg.losses import PerCaseDiceCELoss
from droseg.objectives import Objective, build_objective

TRAINING = tuple(f"train{index}" for index in range(8))
AFFINE = torch.diag(torch.tensor([1.0, 1.5, 3.0, 1.0], dtype=torch.float64))
VALIDATION = tuple(
    Case(f"val{index}", f"patient{index}", (), None, {"anatomy": "typical" if index < 3 else "rare"})
    for index in range(4)
)


def make_items(case_ids: Sequence[str], seed: int) -> list[dict[str, Any]]:
    generator = torch.Generator().manual_seed(seed)
    items = []
    for index, case_id in enumerate(case_ids):
        label = torch.zeros(1, 8, 8, 8)
        label[:, 1 : 4 + index % 3, 2:6, 1:5] = 1
        label[:, 5:, 3:, 5:] = 2
        image = label + 0.3 * torch.randn(label.shape, generator=generator)
        items.append(
            {
                "image": MetaTensor(image, affine=AFFINE),
                "label": MetaTensor(label, affine=AFFINE),
                "index": index,
                "case_id": case_id,
            }
        )
    return items


@dataclass
class Run:
    """All parts of one training, as a bundle config puts them together."""

    folder: RunFolder
    trainer: DROTrainer
    validator: SupervisedEvaluator
    objective: Objective
    network: torch.nn.Module
    checkpoint: RunCheckpoint
    schedule: WarmupCosineSchedule
    metrics: CaseMetricsHandler


def make_run(
    path: Path,
    *,
    objective: str = "hardness",
    epochs: int = 4,
    cases: Sequence[str] = TRAINING,
    seed: int = 0,
    select: str = "val_dice/worst_group",
    interval: int = 1,
    val_interval: int = 1,
    num_workers: int = 0,
    max_lag: int = 8,
    minutes: float | None = None,
    wrap: Callable[[torch.nn.Module], torch.nn.Module] = lambda network: network,
    more_handlers: Callable[[RunFolder, Objective, SupervisedEvaluator], Sequence[Any]] = lambda *_: (),
    **options: Any,
) -> Run:
    torch.manual_seed(seed)
    folder = RunFolder(path)
    network = UNet(3, 1, 3, channels=(4, 8), strides=(2,), norm=("INSTANCE", {"affine": True}), dropout=0.1)
    network = wrap(network)
    robustness = {} if "beta" in options else {"target_ess": 0.7}
    options = {"batch_size": 2, "num_batches": 4, "seed": seed, **robustness, **options}
    built = build_objective(objective, cases, **options)
    optimizer = torch.optim.AdamW(network.parameters(), lr=0.03)
    schedule = WarmupCosineSchedule(optimizer, warmup_steps=3, t_total=4 * epochs)
    metrics = CaseMetricsHandler(VALIDATION, {"small": 1, "large": 2}, metrics=("dice", "hd95_mm"))
    validator = SupervisedEvaluator(
        device=torch.device("cpu"),
        val_data_loader=DataLoader(Dataset(make_items([case.case_id for case in VALIDATION], 1)), batch_size=1),
        network=network,
        postprocessing=AsDiscreted("pred", argmax=True),
        val_handlers=[metrics],
    )
    restart = RestartHandler(built, network, optimizer, schedule)
    state = {"optimizer": optimizer, "lr_scheduler": schedule, "objective": built, "restart_handler": restart}
    checkpoint = RunCheckpoint(folder, network, state, validator, select, interval, minutes)
    augment = MonaiCompose([RandFlipd(["image", "label"], prob=0.5), RandGaussianNoised("image", prob=1.0)])
    trainer = DROTrainer(
        device=torch.device("cpu"),
        max_epochs=epochs,
        train_data_loader=LagBoundedDataLoader(
            SeededDataset(Dataset(make_items(cases, 0), augment)), built.sampler, num_workers, max_lag
        ),
        network=network,
        optimizer=optimizer,
        loss_function=PerCaseDiceCELoss(),
        objective=built,
        train_handlers=[
            LrScheduleHandler(schedule, epoch_level=False, print_lr=False),
            HardnessHandler(built),
            ValidationHandler(interval=val_interval, validator=validator),
            *more_handlers(folder, built, validator),
            checkpoint,
        ],
    )
    return Run(folder, trainer, validator, built, network, checkpoint, schedule, metrics)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Volumes of 8^3 need no second thread, and on a busy machine waiting for one takes 50 times as long."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def run_factory() -> Callable[..., Run]:
    return make_run
