"""Starts trainings as processes of their own, without the seconds that each would need to import torch and MONAI.

A line of JSON on standard input starts a training in a forked child and prints its id; `wait ID` prints how it ended.
"""

from __future__ import annotations

import json
import os
import runpy
import sys
import time
from pathlib import Path
from typing import Any

import torch
import torch._dynamo  # an optimizer imports it, in each child if not here
import torch.distributed as dist
from ignite.engine import Events
from monai.data import Dataset
from monai.inferers import SimpleInferer
from monai.utils import set_determinism

from droseg.handlers import AuditHandler, HistoryRefreshHandler, ProgressHandler
from droseg.losses import PerCaseDiceCELoss
from droseg.workflow import run_training

conftest = runpy.run_path(str(Path(__file__).with_name("conftest.py")))
make_run = conftest["make_run"]


def train(
    folder: str,
    ballast_mb: int = 0,
    step_s: float = 0.0,
    validation_case_s: float = 0.0,
    refresh_case_s: float | None = None,
    ranks: tuple[int, int] = (0, 1),
    **options: Any,
) -> None:
    """Start or continue a training in a folder.

    Args:
        folder: of the run.
        ranks: rank of this process, and their number.
        ballast_mb: size of what is saved in addition, to make the writing of a checkpoint long.
        step_s: how long each step waits.
        validation_case_s: how long each validation case takes; the file `validating_EPOCH` tells of a validation.
        refresh_case_s: how long each case takes when the history is refreshed; None: it is not.
        options: of `make_run`.
    """
    torch.set_num_threads(1)
    path, (rank, world_size) = Path(folder), ranks
    if world_size > 1:
        dist.init_process_group("gloo", init_method=options.pop("meet"), rank=rank, world_size=world_size)
        options["wrap"] = torch.nn.parallel.DistributedDataParallel
    # Another network, sampler and state of the generators than the run's own: a resumed run must replace them all.
    seed = os.getpid() if (path / "models/checkpoint.pt").is_file() else 0
    set_determinism(seed)  # as a bundle does

    def more_handlers(folder: Any, objective: Any, validator: Any) -> list[Any]:
        refresh = [] if refresh_case_s is None else [refresh_handler(objective, path, refresh_case_s)]
        return [*refresh, AuditHandler(folder, objective), ProgressHandler(folder, validator)]

    run = make_run(
        path,
        seed=seed,
        rank=rank,
        world_size=world_size,
        more_handlers=more_handlers,
        **options,
    )
    if ballast_mb:
        run.checkpoint.state["ballast"] = Ballast(ballast_mb)
    if step_s:
        run.trainer.add_event_handler(Events.ITERATION_STARTED, lambda: time.sleep(step_s))
    if validation_case_s:
        epoch = run.validator.state
        run.validator.add_event_handler(Events.STARTED, lambda: (path / f"validating_{epoch.epoch + 1}").touch())
        run.validator.add_event_handler(Events.ITERATION_STARTED, lambda: time.sleep(validation_case_s))
    run_training(run.trainer, run.checkpoint)


def refresh_handler(objective: Any, path: Path, case_s: float) -> HistoryRefreshHandler:
    """Return one whose cases take so long; the file `refreshing` tells of it."""

    def wait(item: dict[str, Any]) -> dict[str, Any]:
        (path / "refreshing").touch()
        time.sleep(case_s)
        return item

    volumes = Dataset(conftest["make_items"](objective.history.case_ids, 0), wait)
    return HistoryRefreshHandler(objective, volumes, SimpleInferer(), PerCaseDiceCELoss(), interval=1)


class Ballast:
    """Something large to save."""

    def __init__(self, size_mb: int) -> None:
        self.values = torch.zeros(size_mb * 250_000)

    def state_dict(self) -> dict[str, torch.Tensor]:
        return {"values": self.values}

    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None:
        self.values = state["values"]


def child(spec: dict[str, Any]) -> None:
    """Train in this process and end it."""
    os.setpgid(0, 0)
    log = os.open(spec.pop("log"), os.O_CREAT | os.O_WRONLY | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    code = 1
    try:
        train(**spec)
        code = 0
    except SystemExit as end:
        code = int(end.code or 0)
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def serve() -> None:
    """Do what the lines of standard input ask for."""
    for line in sys.stdin:
        if line.startswith("wait"):
            print(os.waitstatus_to_exitcode(os.waitpid(int(line.split()[1]), 0)[1]), flush=True)
            continue
        pid = os.fork()
        if pid == 0:
            child(json.loads(line))
        print(pid, flush=True)


if __name__ == "__main__":
    print("ready", flush=True)
    serve()
