"""Two or three processes train as one: one history, one sequence of global batches, the network of a single process."""

from __future__ import annotations

import os
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import droseg

SCRIPT = Path(__file__).with_name("one_rank.py")
SETUPS: tuple[str, ...] = runpy.run_path(str(SCRIPT))["SETUPS"]
Results = dict[tuple[int, int], dict[str, dict[str, Any]]]


def environment() -> dict[str, str]:
    """Return what a process of a distributed run needs on any machine."""
    path = os.pathsep.join([str(Path(droseg.__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    more = {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    if Path("/sys/class/net/lo").exists():
        more["GLOO_SOCKET_IFNAME"] = "lo"  # the host's own name need not resolve in a container
    return {**os.environ, **more}


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Results:
    """Return what each (number of processes, rank) has trained."""
    folder = tmp_path_factory.mktemp("distributed")
    line = [sys.executable, str(SCRIPT), str(folder), "1", "2", "3"]
    done = subprocess.run(line, env=environment(), capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    ranks = [(world, rank) for world in (1, 2, 3) for rank in range(world)]
    return {rank: torch.load(folder / f"{rank[0]}_{rank[1]}.pt", weights_only=True) for rank in ranks}


def of_world(results: Results, world: int, setup: str) -> list[dict[str, Any]]:
    return [results[world, rank][setup] for rank in range(world)]


def assert_same(first: Any, second: Any, where: str = "state") -> None:
    """Two nested states are equal to the last bit."""
    assert type(first) is type(second), where
    if isinstance(first, dict):
        assert first.keys() == second.keys(), where
        for key in first:
            assert_same(first[key], second[key], f"{where}[{key}]")
    elif isinstance(first, torch.Tensor):
        assert torch.equal(first, second), where
    else:
        assert first == second, where


@pytest.mark.parametrize("world", [2, 3])
@pytest.mark.parametrize("setup", SETUPS)
def test_all_ranks_hold_one_state_bit_for_bit(results: Results, setup: str, world: int) -> None:
    first, *others = of_world(results, world, setup)
    assert first["objective"]["history"]["num_updates"] == 15
    for other in others:
        assert_same(first["objective"], other["objective"])
        assert_same(first["metrics"], other["metrics"])
        assert_same(first["parameters"], other["parameters"])


@pytest.mark.parametrize("world", [2, 3])
@pytest.mark.parametrize("setup", SETUPS)
def test_all_ranks_together_train_what_a_single_process_trains(results: Results, setup: str, world: int) -> None:
    ranks, (alone,) = of_world(results, world, setup), of_world(results, 1, setup)
    assert all(rank["draws"] == alone["draws"] for rank in ranks)
    for step, whole in enumerate(alone["own"]):
        assert [index for rank in ranks for index in rank["own"][step]] == whole
    weights = torch.cat([rank["weights"] for rank in ranks], dim=1)
    torch.testing.assert_close(weights, alone["weights"], rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(ranks[0]["parameters"], alone["parameters"], rtol=1e-3, atol=1e-5)
    histories = [each["objective"]["history"] for each in (ranks[0], alone)]
    torch.testing.assert_close(histories[0]["loss"], histories[1]["loss"], rtol=1e-4, atol=1e-6)
    assert torch.equal(histories[0]["visits"], histories[1]["visits"])


def test_two_patches_of_a_case_are_one_visit_on_any_number_of_ranks(results: Results) -> None:
    for world in (1, 2, 3):
        first = of_world(results, world, "crops")[0]
        assert all(len(own) == 2 * 6 // world for own in first["own"])
        assert int(first["objective"]["history"]["visits"].sum()) == 15 * 6


@pytest.mark.parametrize("world", [2, 3])
@pytest.mark.parametrize("num_cases", [2, 5])
def test_every_rank_has_the_validation_of_all_cases_once(results: Results, num_cases: int, world: int) -> None:
    (alone,) = of_world(results, 1, f"validation{num_cases}")
    assert alone["table"].count("\n") == 1 + num_cases
    assert len({alone["metrics"][name] for name in ("val_dice/all", "val_dice/worst_group")}) == 2
    for rank in of_world(results, world, f"validation{num_cases}"):
        assert_same(rank, alone)


def test_the_setups_are_not_one_and_the_same(results: Results) -> None:
    draws = {setup: str(of_world(results, 1, setup)[0]["draws"]) for setup in SETUPS}
    by_loss = ["hardness", "replacement", "mix", "chi2", "cvar", "limits", "erm", "two_level", "group_balanced", "jtt"]
    assert len({draws[setup] for setup in by_loss}) == len(by_loss)
    weighted = [of_world(results, 2, setup)[0]["weights"] for setup in ("weights", "mix", "chi2", "crops", "rgd")]
    assert all(not torch.equal(weight, torch.ones_like(weight)) for weight in weighted)


@pytest.mark.parametrize("world", [1, 2, 3])
def test_all_ranks_take_a_broken_case_out_at_the_same_step(results: Results, world: int) -> None:
    for trained in of_world(results, world, "broken"):
        history = trained["objective"]["history"]
        assert (history["excluded"], history["failures"]) == ([4], {4: 3})
        assert trained["draws"] == results[1, 0]["broken"]["draws"]
        assert [4 in draw for draw in trained["draws"]].count(True) == 3
        assert torch.isfinite(trained["parameters"]).all()
