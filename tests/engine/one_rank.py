"""Trains in 1, 2, ... processes on the CPU: `one_rank.py FOLDER 1 2 3` leaves FOLDER/WORLD_RANK.pt.

The processes are forked, so that torch and MONAI are imported once. test_distributed.py compares what they leave.
"""

from __future__ import annotations

import os
import sys
import traceback
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from ignite.engine import Events
from monai.data import DataLoader, Dataset, MetaTensor
from monai.engines import SupervisedEvaluator
from monai.networks.nets import UNet
from monai.transforms import RandSpatialCropSamplesd
from torch import nn

from droseg.data import Case, SeededDataset
from droseg.data.items import own_share
from droseg.engine import DROTrainer
from droseg.engine.roles import rank, world_size
from droseg.handlers import CaseMetricsHandler, HardnessHandler, RestartHandler
from droseg.losses import PerCaseDiceCELoss
from droseg.objectives import OBJECTIVES, build_objective

CASES, EPOCHS, BATCHES, BATCH_SIZE = 18, 3, 5, 6
GROUPS = [{"site": "ab"[index % 2], "anatomy": "rare" if index % 5 == 0 else "typical"} for index in range(CASES)]
RIVALS: dict[str, dict[str, Any]] = {"jtt": {"first_epochs": 1}}
HARDNESS: dict[str, dict[str, Any]] = {
    "hardness": {"target_ess": 0.6},
    "weights": {"beta": 4.0, "importance_weighting": True},
    "replacement": {"beta": 10.0, "replacement": True},
    "mix": {"beta": 4.0, "mix": 0.3, "importance_weighting": True},
    "chi2": {"divergence": "chi2", "rho": 0.5, "mix": 0.1, "importance_weighting": True},
    "cvar": {"divergence": "cvar", "alpha": 0.3, "max_age": 1},
    "limits": {"beta": 20.0, "cap": 0.9, "trim": 0.1, "max_age": 2, "warmup_epochs": 2},
    "crops": {"beta": 4.0, "importance_weighting": True},
    "broken": {"beta": 4.0, "mix": 0.2},
}
"""Settings of the hardness objective; "crops" takes two patches of each case, in "broken" case 4 is not finite."""
SETUPS = (*HARDNESS, *(name for name in OBJECTIVES if name != "hardness"))


class Loader:
    """The data set with as many random crops per case as asked for."""

    def __init__(self, crops: int, broken: bool = False) -> None:
        rng = np.random.default_rng(0)
        self.items = []
        for index in range(CASES):
            label = np.zeros((1, 8, 8, 8), dtype=np.float32)
            label[:, 1 : 3 + index % 4, 2:6] = 1
            image = (label + 0.3 * rng.standard_normal(label.shape)).astype(np.float32)
            self.items.append({"image": torch.from_numpy(image), "label": torch.from_numpy(label), "index": index})
        if broken:
            self.items[4]["image"][:] = torch.nan
        self.crop = RandSpatialCropSamplesd(["image", "label"], roi_size=[6, 6, 6], num_samples=crops)

    def build(self, sampler: Any) -> DataLoader:
        return DataLoader(SeededDataset(Dataset(self.items, self.crop)), batch_sampler=sampler)


def train(setup: str) -> dict[str, Any]:
    """Train three epochs of global batches of 6; return the draws and the end state of this rank."""
    torch.manual_seed(0)
    network: nn.Module = UNet(3, 1, 2, channels=(4, 8), strides=(2,), norm=("INSTANCE", {"affine": True}))
    if world_size() > 1:
        network = nn.parallel.DistributedDataParallel(network)
    objective = build_objective(
        "hardness" if setup in HARDNESS else setup,
        [f"case{index}" for index in range(CASES)],
        batch_size=BATCH_SIZE,
        num_batches=BATCHES,
        momentum=0.3,
        groups=GROUPS,
        rivals=RIVALS,
        rank=rank(),
        world_size=world_size(),
        **HARDNESS.get(setup, {}),
    )
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    trainer = DROTrainer(
        device=torch.device("cpu"),
        max_epochs=EPOCHS,
        train_data_loader=Loader(2 if setup == "crops" else 1, broken=setup == "broken").build(objective.sampler),
        network=network,
        optimizer=optimizer,
        loss_function=PerCaseDiceCELoss(),
        objective=objective,
        on_nonfinite="skip",
        train_handlers=[HardnessHandler(objective), RestartHandler(objective, network, optimizer)],
    )
    draws, own, weights = [], [], []

    @trainer.on(Events.ITERATION_COMPLETED)
    def remember() -> None:
        draws.append([int(index) for index in objective.current_draw.indices])
        own.append([int(index) for index in trainer.state.batch["index"]])
        weights.append(trainer.state.output["case_weight"].detach())

    trainer.run()
    plain = getattr(network, "module", network)
    return {
        "draws": draws,
        "own": own,
        "weights": torch.stack(weights),
        "objective": objective.state_dict(),
        "metrics": {name: float(value) for name, value in trainer.state.metrics.items() if not name.endswith("_s")},
        "parameters": torch.cat([parameter.detach().flatten() for parameter in plain.parameters()]),
    }


def validate(num_cases: int) -> dict[str, Any]:
    """Score this rank's share of so many cases; return the table and the metrics that this rank has in the end."""
    cases = tuple(
        Case(f"case{index}", f"patient{index // 2}", (), None, {"site": "ab"[index % 2]} if index else {})
        for index in range(num_cases)
    )
    items = []
    for index, case in enumerate(cases):
        label = torch.zeros(1, 8, 8, 8)
        label[:, 1 : 3 + index % 4, 2:6] = 1
        image = MetaTensor(label.roll(index % 3, dims=1), affine=torch.diag(torch.tensor([1.0, 1.5, 3.0, 1.0])))
        items.append({"image": image, "label": MetaTensor(label, affine=image.affine), "case_id": case.case_id})
    handler = CaseMetricsHandler(cases, {"box": 1})
    evaluator = SupervisedEvaluator(
        device=torch.device("cpu"),
        val_data_loader=DataLoader(Dataset(own_share(items, rank(), world_size())), batch_size=1),
        network=nn.Identity(),
        val_handlers=[handler],
    )
    for epoch in (1, 2):
        evaluator.run(epoch)
    return {"table": handler.table.to_csv(index=False), "metrics": dict(evaluator.state.metrics)}


def run(folder: Path, world: int, own_rank: int) -> None:
    torch.set_num_threads(1)
    if world > 1:
        dist.init_process_group("gloo", init_method=f"file://{folder}/join{world}", rank=own_rank, world_size=world)
    results = {setup: train(setup) for setup in SETUPS}
    results |= {f"validation{num_cases}": validate(num_cases) for num_cases in (2, 5)}
    torch.save(results, folder / f"{world}_{own_rank}.pt")
    if world > 1:
        dist.destroy_process_group()


def main(folder: Path, worlds: list[int]) -> None:
    children = []
    for world, own_rank in [(size, number) for size in worlds for number in range(size)]:
        child = os.fork()
        if child == 0:
            try:
                run(folder, world, own_rank)
                os._exit(0)
            except BaseException:
                traceback.print_exc()
                sys.stderr.flush()
                os._exit(1)
        children.append(child)
    codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    sys.exit(f"exit codes {codes}" if any(codes) else 0)


if __name__ == "__main__":
    main(Path(sys.argv[1]), [int(word) for word in sys.argv[2:]])
