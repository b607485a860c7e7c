"""Every objective trains in the real trainer, does what it says to the gradient, and feeds its history."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from ignite.engine import Events

from droseg.objectives import OBJECTIVES

GROUPS = tuple({"anatomy": "rare" if index % 4 == 3 else "typical", "site": "xy"[index % 2]} for index in range(8))
RIVALS = {"jtt": {"first_epochs": 1}, "group_dro": {"step_size": 0.5}, "febs": {"sampling": "uniform"}}


@pytest.mark.parametrize("name", OBJECTIVES)
def test_an_epoch_trains_the_network_and_fills_the_history(trainer_factory, name: str):
    trainer = trainer_factory(name, groups=GROUPS, rivals=RIVALS, target_ess=0.7)
    history, before = trainer.objective.history, [p.detach().clone() for p in trainer.network.parameters()]
    weighted = []

    @trainer.on(Events.ITERATION_COMPLETED)
    def compare() -> None:
        output = trainer.state.output
        weighted.append(float((output["case_weight"] * output["case_loss"]).mean()))
        if name == "febs":
            assert float(output["loss"].detach()) > weighted[-1], "scaled scores cost more"
        else:
            assert float(output["loss"].detach()) == pytest.approx(weighted[-1], rel=1e-6)
        for index, loss in zip(trainer.state.batch["index"].tolist(), output["case_loss"].tolist(), strict=True):
            repeats = trainer.state.batch["index"].tolist().count(index)
            assert repeats > 1 or history.loss[index] == pytest.approx(loss, rel=1e-6)

    trainer.run()
    assert len(weighted) == 4
    assert np.isfinite(weighted).all()
    assert any(not torch.equal(a, b) for a, b in zip(before, trainer.network.parameters(), strict=True))
    assert {"sampler/ess_fraction", "history/robust_risk"} <= set(trainer.state.metrics)
    assert trainer.objective.wants_restart is (name == "jtt")


@pytest.mark.parametrize("name", OBJECTIVES)
@pytest.mark.parametrize("num_workers", [0, 1])
def test_one_seed_gives_one_training(trainer_factory, name: str, num_workers: int):
    losses = []
    for _ in range(2):
        trainer = trainer_factory(name, groups=GROUPS, rivals=RIVALS, num_workers=num_workers)
        trainer.run()
        losses.append(trainer.objective.history.loss.tolist())
    assert losses[0] == losses[1]
