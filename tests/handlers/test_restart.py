"""The second training of an objective: from where the first began, for the steps that remain, also when resumed."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from ignite.engine import Engine, Events
from monai.optimizers import WarmupCosineSchedule
from torch import nn

from droseg.errors import InputError
from droseg.handlers import RestartHandler
from droseg.losses import PerCaseDiceCELoss
from droseg.objectives import OBJECTIVES

GROUPS = tuple({"anatomy": "rare" if index % 4 == 3 else "typical"} for index in range(8))
STEPS, FIRST = 4, 2  # per epoch; epochs of the first training


@pytest.fixture
def run_of(run_factory, tmp_path) -> Callable[..., Any]:
    def make(folder: str = "run", name: str = "jtt", **options: Any) -> Any:
        rivals = {"jtt": {"first_epochs": FIRST}, "group_dro": {"step_size": 0.5}}
        options = {"objective": name, "groups": GROUPS, "rivals": rivals, "epochs": 5, **options}
        return run_factory(tmp_path / folder, **options)

    return make


def handler_of(run: Any) -> RestartHandler:
    handler = run.checkpoint.state["restart_handler"]
    assert isinstance(handler, RestartHandler)
    return handler


def load(path: Any) -> dict[str, Any]:
    loaded: dict[str, Any] = torch.load(path, weights_only=True)
    return loaded


def same(first: dict, second: dict) -> bool:
    return list(first) == list(second) and all(torch.equal(first[name], second[name]) for name in first)


def remember_rates(run: Any) -> list[float]:
    rates: list[float] = []
    run.trainer.add_event_handler(
        Events.ITERATION_COMPLETED, lambda: rates.append(run.trainer.optimizer.param_groups[0]["lr"])
    )
    return rates


def test_the_second_training_is_one_from_scratch(run_of):
    run, steps = run_of(), []
    initial = copy.deepcopy(run.network)

    @run.trainer.on(Events.ITERATION_STARTED)
    def remember() -> None:
        batch = run.trainer.state.batch
        steps.append((batch["image"].clone(), batch["label"].clone(), torch.get_rng_state()))

    run.trainer.run()
    assert len(steps) == 5 * STEPS
    # By hand: a fresh optimizer and a schedule of the 12 steps that remain, on the same patches and dropout.
    optimizer = torch.optim.AdamW(initial.parameters(), lr=0.03)
    schedule = WarmupCosineSchedule(optimizer, warmup_steps=3, t_total=3 * STEPS)
    for image, label, random_state in steps[FIRST * STEPS :]:
        torch.set_rng_state(random_state)
        optimizer.zero_grad()
        PerCaseDiceCELoss()(initial.train()(image), label).mean().backward()
        optimizer.step()
        schedule.step()
    assert same(initial.state_dict(), run.network.state_dict())


def test_network_optimizer_and_schedule_are_where_they_began_and_the_copies_are_gone(run_of):
    run = run_of()
    begun = {part: copy.deepcopy(getattr(run, part).state_dict()) for part in ("network", "schedule")}
    groups = copy.deepcopy(run.trainer.optimizer.state_dict()["param_groups"])
    parameters = [id(parameter) for parameter in run.network.parameters()]
    seen = []

    @run.trainer.on(Events.EPOCH_STARTED)
    def compare() -> None:
        if run.trainer.state.epoch == FIRST + 1:
            seen.append(same(run.network.state_dict(), begun["network"]))
            seen.append(run.trainer.optimizer.state_dict() == {"state": {}, "param_groups": groups})
            schedule = {**begun["schedule"], "t_total": 3 * STEPS}
            assert {key: run.schedule.state_dict()[key] for key in schedule} == schedule
            seen.append([id(parameter) for parameter in run.network.parameters()] == parameters)
            seen.append(not run.objective.wants_restart)
            seen.append(handler_of(run).state_dict()["initial"] == {})

    run.trainer.run()
    assert seen == [True] * 5
    assert (handler_of(run).restarted_epoch, handler_of(run).restarted_step) == (FIRST, FIRST * STEPS)


def cosine(step: int, total: int) -> float:
    """Rate after this many steps of a schedule with 3 steps of warm-up."""
    return 0.03 * (step / 3 if step < 3 else 0.5 * (1 + math.cos(math.pi * (step - 3) / (total - 3))))


def test_each_training_has_a_schedule_of_its_own_to_the_end(run_of):
    run = run_of()
    rates = remember_rates(run)
    run.trainer.run()
    first = [cosine(step, 5 * STEPS) for step in range(1, FIRST * STEPS + 1)]
    second = [cosine(step, 3 * STEPS) for step in range(1, 3 * STEPS + 1)]
    assert rates == pytest.approx(first + second, rel=1e-9, abs=1e-12)
    assert second[-1] == pytest.approx(0.0, abs=1e-12)


def test_a_run_that_goes_on_for_longer_stretches_the_second_schedule(run_of):
    run_of(epochs=3).trainer.run()
    longer = run_of(epochs=6)
    assert longer.checkpoint.restore(longer.trainer) == 3
    rates = remember_rates(longer)
    longer.trainer.run()
    assert rates == pytest.approx([cosine(s, 4 * STEPS) for s in range(STEPS + 1, 4 * STEPS + 1)], abs=1e-12)


@pytest.mark.parametrize("best_at", [1, 2, 4])
def test_only_networks_of_the_second_training_can_be_selected(run_of, best_at: int):
    run = run_of(select="val_made_up")
    scores = {1: 0.3, 2: 0.4, 3: 0.1, 4: 0.2, 5: 0.1, best_at: 0.9}
    run.validator.add_event_handler(
        Events.EPOCH_COMPLETED, lambda: run.validator.state.metrics.update(val_made_up=scores[run.trainer.state.epoch])
    )
    kept: dict[int, dict] = {}
    run.trainer.add_event_handler(
        Events.EPOCH_COMPLETED, lambda: kept.update({run.trainer.state.epoch: copy.deepcopy(run.network.state_dict())})
    )
    run.trainer.run()
    assert run.checkpoint.best_epoch == 4
    assert same(load(run.folder.best_model), kept[4])


KILLS = [("jtt", at) for at in (FIRST * STEPS, FIRST * STEPS + 1, FIRST * STEPS + 3)]
KILLS += [(name, 7) for name in OBJECTIVES if name not in ("jtt", "erm", "hardness")]


@pytest.mark.parametrize(("name", "killed_at"), KILLS)
def test_a_run_resumed_at_any_step_is_the_uninterrupted_one_bit_for_bit(run_of, name: str, killed_at: int):
    whole = run_of("whole", name, epochs=4)
    expected = remember_rates(whole)
    whole.trainer.run()
    killed = run_of("part", name, epochs=4)
    killed.checkpoint.minutes = 0.0  # a checkpoint after each step

    @killed.trainer.on(Events.ITERATION_STARTED(once=killed_at))
    def kill() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        killed.trainer.run()
    resumed = run_of("part", name, epochs=4, seed=77)  # another first network: only the checkpoint may decide
    resumed.checkpoint.restore(resumed.trainer)
    assert resumed.trainer.state.iteration == killed_at - 1
    rates = remember_rates(resumed)
    resumed.trainer.run()
    assert rates == expected[killed_at - 1 :]
    assert same(resumed.network.state_dict(), whole.network.state_dict())
    assert same(load(resumed.folder.best_model), load(whole.folder.best_model))
    assert resumed.checkpoint.best_epoch == whole.checkpoint.best_epoch
    assert resumed.objective.history.loss.tolist() == whole.objective.history.loss.tolist()
    assert list(resumed.objective.sampler) == list(whole.objective.sampler)


@pytest.mark.parametrize("name", [name for name in OBJECTIVES if name != "jtt"])
def test_an_objective_that_never_asks_keeps_no_copies(run_of, name: str):
    run = run_of(name=name, epochs=1)
    run.trainer.run()
    saved = load(run.folder.checkpoint)["restart_handler"]
    assert saved == {"initial": {}, "restarted_epoch": 0, "restarted_step": 0}
    assert not handler_of(run).is_provisional(1)


def test_a_run_that_never_comes_to_its_second_training_is_refused(run_of):
    with pytest.raises(InputError, match=r"takes 2 epochs and the run has 2.*lower rivals#jtt#first_epochs"):
        run_of(epochs=FIRST).trainer.run()
    run = run_of("other")
    with pytest.raises(InputError, match="raise epochs above 2"):
        RestartHandler(run.objective, run.network, run.trainer.optimizer, run.schedule, max_epochs=1)


def test_a_state_without_copies_leaves_those_of_an_objective_that_can_still_ask(run_of):
    run, spent = run_of(), {"initial": {}, "restarted_epoch": 2, "restarted_step": 8}
    handler_of(run).load_state_dict(spent)  # as after carry_over_history, which brings the first training back
    assert same(handler_of(run).state_dict()["initial"]["network"], dict(run.network.state_dict()))
    run.objective.error_set = (1,)
    handler_of(run).load_state_dict(spent)
    assert handler_of(run).state_dict()["initial"] == {}


def test_statistics_of_batch_norm_start_anew_and_a_schedule_is_optional():
    objective: Any = SimpleNamespace(restart_epoch=1, wants_restart=False, name="made up")
    network = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9)
    handler, begun = RestartHandler(objective, network, optimizer), copy.deepcopy(network.state_dict())
    engine = Engine(lambda engine, batch: None)
    engine.state.max_epochs, engine.state.epoch, engine.state.iteration = 3, 1, 2
    for _ in range(2):
        network(torch.rand(4, 2)).sum().backward()
        optimizer.step()
    assert not same(network.state_dict(), begun)
    handler.epoch_completed(engine)
    assert not same(network.state_dict(), begun), "nobody has asked yet"
    objective.wants_restart, objective.restart_epoch = True, None
    handler.epoch_completed(engine)
    assert same(network.state_dict(), begun)
    assert optimizer.state_dict()["state"] == {}
    assert [handler.is_provisional(epoch) for epoch in (1, 2)] == [True, False]
