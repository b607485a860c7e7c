"""Two processes train as one: one history, one sequence of global batches, and the network of a single process."""

from __future__ import annotations

import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import droseg

SCRIPT = Path(__file__).with_name("one_rank.py")


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict]:
    folder = tmp_path_factory.mktemp("distributed")
    path = os.pathsep.join([str(Path(droseg.__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    if Path("/sys/class/net/lo").exists():
        environment["GLOO_SOCKET_IFNAME"] = "lo"  # the host's own name need not resolve in a container
    processes = [
        subprocess.Popen(
            [sys.executable, str(SCRIPT), str(folder), str(rank), "2"],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        logs = [process.communicate(timeout=180)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0], "\n".join(logs)
    return [torch.load(folder / f"rank{rank}.pt", weights_only=True) for rank in range(2)]


@pytest.fixture(scope="module")
def alone() -> dict:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    train = runpy.run_path(str(SCRIPT))["train"]
    results = {name: train(name) for name in ("hardness", "erm")}
    torch.set_num_threads(threads)
    return results


@pytest.mark.parametrize("name", ["hardness", "erm"])
def test_all_ranks_hold_one_history_bit_for_bit(ranks: list[dict], name: str):
    first, second = (rank[name]["objective"] for rank in ranks)
    for key in ("loss", "visits", "last_update"):
        assert torch.equal(first["history"][key], second["history"][key]), key
    assert first["history"]["num_updates"] == second["history"]["num_updates"] == 15
    assert int(first["history"]["visits"].sum()) == 60
    assert torch.equal(first["sampler"]["generator"], second["sampler"]["generator"])
    assert first["sampler"].get("beta") == second["sampler"].get("beta")


@pytest.mark.parametrize("name", ["hardness", "erm"])
def test_all_ranks_together_train_what_a_single_process_trains(ranks: list[dict], alone: dict, name: str):
    first, second = (rank[name] for rank in ranks)
    assert first["draws"] == second["draws"] == alone[name]["draws"] == alone[name]["own"]
    assert [a + b for a, b in zip(first["own"], second["own"], strict=True)] == first["draws"]
    torch.testing.assert_close(first["weights"], second["weights"], rtol=0, atol=0)
    torch.testing.assert_close(first["weights"], alone[name]["weights"], rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(
        first["objective"]["history"]["loss"], alone[name]["objective"]["history"]["loss"], rtol=1e-4, atol=1e-6
    )
