"""One process that refreshes a history of five cases; test_refresh.py runs it once per rank."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
import torch.distributed as dist
from ignite.engine import Engine
from monai.inferers import SimpleInferer
from monai.networks.nets import UNet

from droseg.engine.roles import leave_ranks
from droseg.engine.run_folder import RunFolder
from droseg.engine.trainer import CheckpointEvents
from droseg.handlers import EarlyLossHandler, HistoryRefreshHandler
from droseg.losses import PerCaseDiceCELoss
from droseg.objectives import build_objective

CASES = 5


class Volumes:
    """Five volumes of different sizes; remembers which were asked for."""

    def __init__(self) -> None:
        self.measured: list[int] = []

    def __len__(self) -> int:
        return CASES

    def __getitem__(self, row: int) -> dict[str, torch.Tensor]:
        self.measured.append(row)
        generator = torch.Generator().manual_seed(row)
        image = torch.randn(1, 8, 8, 8 + 4 * row, generator=generator)
        return {"image": image, "label": (image > 0).float()}


def main(folder: Path, rank: int, ranks: int) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    # Batch norm has buffers, which DistributedDataParallel would send around in each forward pass.
    network: torch.nn.Module = UNet(3, 1, 2, channels=(4, 8), strides=(2,), norm="BATCH")
    if ranks > 1:
        dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=ranks)
        network = torch.nn.parallel.DistributedDataParallel(network)
    case_ids = [f"case{row}" for row in range(CASES)]
    objective = build_objective("hardness", case_ids, batch_size=2, num_batches=1, rank=rank, world_size=ranks)
    volumes = Volumes()
    handler = HistoryRefreshHandler(objective, volumes, SimpleInferer(), PerCaseDiceCELoss(), 1)
    engine = Engine(lambda engine, batch: None)
    engine.register_events(*CheckpointEvents)
    engine.state.epoch, engine.state.device, engine.network = 1, torch.device("cpu"), network
    handler.epoch_completed(engine)
    state = {"loss": torch.from_numpy(objective.history.loss), "measured": volumes.measured}
    run = RunFolder(folder / f"of{ranks}")
    EarlyLossHandler(run, objective, Volumes(), SimpleInferer(), PerCaseDiceCELoss(), 1).epoch_completed(engine)
    torch.save(state, folder / f"{rank}of{ranks}.pt")
    if ranks > 1:
        leave_ranks()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
