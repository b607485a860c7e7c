"""One process of a distributed training on the CPU; test_distributed.py runs it once per rank."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from ignite.engine import Events
from monai.data import DataLoader, Dataset
from monai.networks.nets import UNet

from droseg.engine import DROTrainer
from droseg.handlers import HardnessHandler
from droseg.handlers.roles import rank, world_size
from droseg.losses import PerCaseDiceCELoss
from droseg.objectives import build_objective

CASES = 12


def train(name: str) -> dict:
    """Train three epochs of global batches of 4; return the draws and the end state of this rank."""
    rng = np.random.default_rng(0)
    items = []
    for index in range(CASES):
        label = np.zeros((1, 8, 8, 8), dtype=np.float32)
        label[:, 1 : 3 + index % 4, 2:6] = 1
        image = (label + 0.3 * rng.standard_normal(label.shape)).astype(np.float32)
        items.append({"image": torch.from_numpy(image), "label": torch.from_numpy(label), "index": index})
    torch.manual_seed(0)
    network: torch.nn.Module = UNet(3, 1, 2, channels=(4, 8), strides=(2,))
    if world_size() > 1:
        network = torch.nn.parallel.DistributedDataParallel(network)
    objective = build_objective(
        name,
        [f"case{index}" for index in range(CASES)],
        batch_size=4,
        num_batches=5,
        beta=4.0,
        target_ess=0.6,
        momentum=0.3,
        rank=rank(),
        world_size=world_size(),
    )
    trainer = DROTrainer(
        device=torch.device("cpu"),
        max_epochs=3,
        train_data_loader=DataLoader(Dataset(items), batch_sampler=objective.sampler),
        network=network,
        optimizer=torch.optim.SGD(network.parameters(), lr=0.1),
        loss_function=PerCaseDiceCELoss(),
        objective=objective,
        train_handlers=[HardnessHandler(objective)],
    )
    draws, own = [], []

    @trainer.on(Events.ITERATION_COMPLETED)
    def remember() -> None:
        draws.append(list(objective.current_draw.indices))
        own.append(trainer.state.batch["index"].tolist())

    trainer.run()
    plain = getattr(network, "module", network)
    return {
        "draws": draws,
        "own": own,
        "objective": objective.state_dict(),
        "weights": torch.cat([parameter.detach().flatten() for parameter in plain.parameters()]),
    }


def main(folder: Path, own_rank: int, ranks: int) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=own_rank, world_size=ranks)
    torch.save({name: train(name) for name in ("hardness", "erm")}, folder / f"rank{own_rank}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
