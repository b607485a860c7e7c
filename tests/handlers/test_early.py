"""Early losses: MONAI's of the whole volumes of that moment, the training undisturbed, the same after any kill."""

from __future__ import annotations

import json
import logging
import math

import pytest
import torch
from ignite.engine import Events
from monai.data import Dataset
from monai.inferers import SlidingWindowInferer
from monai.losses import DiceCELoss

from droseg.engine.trainer import CheckpointEvents
from droseg.handlers import EarlyLossHandler
from droseg.losses import PerCaseDiceCELoss


def measures_after(epoch: int, broken: int | None = None):
    def handlers(folder, objective, validator):
        volumes = WHOLE[:]
        if broken is not None:
            volumes[broken] = {**volumes[broken], "image": volumes[broken]["image"] * math.nan}
        inferer = SlidingWindowInferer(roi_size=(8, 8, 8), sw_batch_size=1, overlap=0.25)
        return [EarlyLossHandler(folder, objective, Dataset(volumes), inferer, PerCaseDiceCELoss(), epoch)]

    return handlers


WHOLE: list[dict] = []


@pytest.fixture(autouse=True)
def _whole_volumes(run_factory, tmp_path):
    WHOLE[:] = list(run_factory(tmp_path / "none").trainer.data_loader.dataset.dataset.data)


def content(folder) -> dict:
    return json.loads(folder.early_losses_file.read_text())


def test_early_losses_are_monai_s_of_the_network_after_that_epoch(run_factory, tmp_path):
    run, at_epoch = run_factory(tmp_path, epochs=4, more_handlers=measures_after(2)), {}

    @run.trainer.on(Events.EPOCH_COMPLETED(once=2))
    def keep() -> None:
        at_epoch.update({name: value.clone() for name, value in run.network.state_dict().items()})

    run.folder.write_status(datalist_sha256="abc")
    run.trainer.run()
    found = content(run.folder)
    assert {name: found[name] for name in ("epoch", "step", "datalist_sha256")} == {
        "epoch": 2,
        "step": 8,
        "datalist_sha256": "abc",
    }
    assert list(found["losses"]) == list(run.objective.history.case_ids)
    saved = torch.load(run.folder.early_model, weights_only=True)
    assert all(torch.equal(saved[name], at_epoch[name]) for name in at_epoch)
    assert not all(torch.equal(saved[name], value) for name, value in run.network.state_dict().items())
    run.network.load_state_dict(saved)
    run.network.eval()
    loss = DiceCELoss(include_background=False, to_onehot_y=True, softmax=True)
    with torch.no_grad():
        expected = [float(loss(run.network(i["image"][None]), i["label"][None])) for i in WHOLE]
    assert list(found["losses"].values()) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("objective", ["hardness", "erm"])
def test_the_training_sees_nothing_of_it(run_factory, tmp_path, objective):
    weights, losses = [], []
    for epoch in (0, 1):
        run = run_factory(tmp_path / str(epoch), objective=objective, epochs=3, more_handlers=measures_after(epoch))
        run.trainer.run()
        weights.append(run.network.state_dict())
        losses.append(run.objective.history.loss.tolist())
        assert run.folder.early_losses_file.exists() == bool(epoch)
        assert run.folder.early_model.exists() == bool(epoch)
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    assert losses[0] == losses[1]


def test_a_training_stopped_at_any_step_or_case_has_the_same_early_losses_when_it_goes_on(run_factory, tmp_path):
    def make(path):
        return run_factory(path, epochs=3, interval=3, more_handlers=measures_after(2))

    def ask_at(trainer, event, times: int) -> None:
        fired = []

        @trainer.on(event)
        def _() -> None:
            fired.append(event)
            trainer.stop_requested = len(fired) >= times

    whole = make(tmp_path / "whole")
    whole.trainer.run()
    for step, case in ((3, None), (8, None), (8, 4), (9, None)):
        name = f"{step}-{case}"
        run = make(tmp_path / name)
        if case is None:
            ask_at(run.trainer, Events.ITERATION_COMPLETED, step)
        else:
            ask_at(run.trainer, CheckpointEvents.BETWEEN_CASES, case)
        with pytest.raises(SystemExit):
            run.trainer.run()
        assert run.folder.early_losses_file.exists() == (step == 9)
        again = make(tmp_path / name)
        again.checkpoint.restore(again.trainer)
        again.trainer.run()
        assert content(again.folder) == content(whole.folder)
        early, expected = (torch.load(each.folder.early_model, weights_only=True) for each in (again, whole))
        assert all(torch.equal(early[name], expected[name]) for name in expected)


def test_a_run_that_begins_forgets_those_of_an_earlier_one(run_factory, tmp_path):
    run_factory(tmp_path, epochs=1, more_handlers=measures_after(1)).trainer.run()
    again = run_factory(tmp_path, epochs=1, more_handlers=measures_after(8))
    again.trainer.run()
    assert not again.folder.early_losses_file.exists()
    assert not again.folder.early_model.exists()


def test_a_loss_that_is_not_finite_is_null_and_the_log_says_what_it_cost(run_factory, tmp_path, caplog):
    run = run_factory(tmp_path, epochs=1, more_handlers=measures_after(1, broken=3))
    with caplog.at_level(logging.INFO, logger="droseg.handlers.early"):
        run.trainer.run()
    losses = content(run.folder)["losses"]
    assert [name for name, loss in losses.items() if loss is None] == ["train3"]
    assert "epoch 1: the early losses of 8 whole volumes are in early_losses.json" in caplog.text


@pytest.mark.parametrize("epoch", [-1, 1.5])
def test_an_epoch_that_is_none_is_refused(run_factory, tmp_path, epoch):
    with pytest.raises(ValueError, match="whole number of epochs, 0 for never"):
        run_factory(tmp_path, more_handlers=measures_after(epoch))
