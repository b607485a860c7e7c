"""Runs bundle jobs in several processes: `forked_ranks.py JOBS.json`; each rank leaves FOLDER/NAME.RANK.log.

The processes are real, but forked, so that torch and MONAI are imported once and not once per rank. What torchrun
would set for them is set here. JOBS.json: a list of {"name", "ranks", "run_id", "config_file", "overrides"}; the exit
codes of all ranks go to codes.json beside it.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import traceback
from pathlib import Path
from typing import Any

import torch
from monai.bundle import run
from monai.bundle.config_item import ComponentLocator


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def as_rank(job: dict[str, Any], rank: int, port: int, log: Path) -> int:
    """Run the job as one rank; return its exit code."""
    names = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": job["ranks"], "MASTER_PORT": port}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", **{name: str(value) for name, value in names.items()}}
    torch.set_num_threads(1)
    with log.open("w", buffering=1) as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
        sys.stdout = sys.stderr = file
        try:
            run(run_id=job["run_id"], config_file=job["config_file"], **job["overrides"])
            return 0
        except SystemExit as end:
            return int(end.code or 0)
        except BaseException:
            traceback.print_exc()
            return 1


def run_job(job: dict[str, Any], folder: Path) -> list[int]:
    """Return the exit codes of all ranks."""
    port, children = free_port(), []
    for rank in range(job["ranks"]):
        child = os.fork()
        if child == 0:
            code = as_rank(job, rank, port, folder / f"{job['name']}.{rank}.log")
            os._exit(code)
        children.append(child)
    return [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]


if __name__ == "__main__":
    ComponentLocator().get_component_module_name("UNet")  # imports all of MONAI, before the processes part
    jobs_file = Path(sys.argv[1])
    codes = {job["name"]: run_job(job, jobs_file.parent) for job in json.loads(jobs_file.read_text())}
    (jobs_file.parent / "codes.json").write_text(json.dumps(codes))
