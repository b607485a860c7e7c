"""The refresh of the history: MONAI's loss of whole volumes, the training undisturbed, all ranks alike."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from ignite.engine import Events
from monai.data import Dataset
from monai.inferers import SlidingWindowInferer
from monai.losses import DiceCELoss

import droseg
from droseg.engine.run_folder import RunFolder
from droseg.handlers import HistoryRefreshHandler
from droseg.losses import PerCaseDiceCELoss

INFERER = SlidingWindowInferer(roi_size=(8, 8, 8), sw_batch_size=1, overlap=0.25)
RANK_SCRIPT = Path(__file__).with_name("refresh_rank.py")


def whole_volumes(run) -> list[dict]:
    """Return the training items as they were before augmentation."""
    return list(run.trainer.data_loader.dataset.dataset.data)


def refreshing(run, interval=1, volumes=None) -> HistoryRefreshHandler:
    volumes = Dataset(whole_volumes(run) if volumes is None else volumes)
    handler = HistoryRefreshHandler(run.objective, volumes, INFERER, PerCaseDiceCELoss(), interval)
    handler.attach(run.trainer)
    return handler


def monai_losses(run) -> np.ndarray:
    """Return MONAI's Dice + CE of each whole volume, from the network as it is now, without dropout."""
    loss = DiceCELoss(include_background=False, to_onehot_y=True, softmax=True)
    network = run.network.eval()
    with torch.no_grad():
        values = [float(loss(network(i["image"][None]), i["label"][None])) for i in whole_volumes(run)]
    run.network.train()
    return np.array(values)


def test_a_refreshed_history_holds_the_loss_of_the_whole_volumes_of_that_moment(run_factory, tmp_path):
    run = run_factory(tmp_path, epochs=2, num_batches=1, momentum=0.9)
    visits_before, history = [], run.objective.history
    run.trainer.add_event_handler(
        Events.EPOCH_COMPLETED, lambda: visits_before.append(run.objective.history.visits.copy())
    )
    refreshing(run, interval=2)
    run.trainer.run()
    np.testing.assert_allclose(history.loss, monai_losses(run), rtol=1e-5)
    np.testing.assert_array_equal(history.visits, visits_before[-1])
    assert (history.visits == 0).any(), "a case that was never drawn is measured all the same"


def test_only_every_kth_epoch_is_refreshed(run_factory, tmp_path):
    run = run_factory(tmp_path, epochs=5, num_batches=2)
    measured = []
    refreshing(run, interval=2)

    @run.trainer.on(Events.EPOCH_COMPLETED)
    def note() -> None:
        metrics = run.trainer.state.metrics
        assert ("history/refresh_s" in metrics) == ("history/refresh_change" in metrics)
        measured.append("history/refresh_s" in metrics)

    run.trainer.run()
    assert measured == [False, True, False, True, False]


def test_an_interval_of_0_never_refreshes(run_factory, tmp_path):
    run = run_factory(tmp_path, epochs=2)
    refreshing(run, interval=0)
    run.trainer.run()
    assert "history/refresh_s" not in run.trainer.state.metrics


def test_erm_trains_the_same_network_with_and_without(run_factory, tmp_path):
    # Its draws do not follow the losses; so a difference could only come from mode, generators or gradients.
    weights = []
    for interval in (0, 1):
        run = run_factory(tmp_path / str(interval), objective="erm", epochs=3)
        refreshing(run, interval)
        run.trainer.run()
        weights.append(run.network.state_dict())
        assert run.network.training
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_the_next_draws_follow_the_refreshed_losses(run_factory, tmp_path):
    run = run_factory(tmp_path, epochs=1, beta=5.0)
    refreshing(run)
    run.trainer.run()
    expected = torch.softmax(5.0 * torch.from_numpy(monai_losses(run)), dim=0)
    torch.testing.assert_close(run.objective.probabilities(), expected, rtol=1e-4, atol=0)


def test_a_loss_that_is_not_finite_leaves_the_stale_one_and_names_the_case(run_factory, tmp_path, caplog):
    run = run_factory(tmp_path, epochs=1, num_batches=8)
    volumes = [dict(item) for item in whole_volumes(run)]
    volumes[3]["image"] = volumes[3]["image"] * float("nan")
    stale = []
    run.trainer.add_event_handler(Events.EPOCH_COMPLETED, lambda: stale.append(run.objective.history.loss[3]))
    refreshing(run, volumes=volumes)
    with caplog.at_level(logging.WARNING):
        run.trainer.run()
    history = run.objective.history
    assert history.loss[3] == stale[-1]
    assert "train3: loss is nan; its previous loss" in caplog.text
    others = [0, 1, 2, 4, 5, 6, 7]
    np.testing.assert_allclose(history.loss[others], monai_losses(run)[others], rtol=1e-5)
    assert np.isfinite(run.trainer.state.metrics["history/refresh_change"])


def test_the_log_says_what_it_cost(run_factory, tmp_path, caplog):
    run = run_factory(tmp_path, epochs=1)
    refreshing(run)
    with caplog.at_level(logging.INFO, logger="droseg.handlers.refresh"):
        run.trainer.run()
    assert "epoch 1: 8 whole volumes measured in" in caplog.text
    assert 0 < run.trainer.state.metrics["history/refresh_s"] < 60


@pytest.mark.parametrize("interval", [-1, 1.5])
def test_an_interval_that_is_no_number_of_epochs_is_refused(run_factory, tmp_path, interval):
    run = run_factory(tmp_path)
    with pytest.raises(ValueError, match="whole number of epochs, 0 for never"):
        HistoryRefreshHandler(run.objective, whole_volumes(run), INFERER, PerCaseDiceCELoss(), interval)


def test_other_cases_than_those_of_the_history_are_refused(run_factory, tmp_path):
    run = run_factory(tmp_path)
    with pytest.raises(ValueError, match="has 7 cases, the loss history 8"):
        HistoryRefreshHandler(run.objective, whole_volumes(run)[1:], INFERER, PerCaseDiceCELoss(), 1)


def test_two_ranks_share_the_cases_and_hold_what_one_process_holds(tmp_path):
    path = os.pathsep.join([str(Path(droseg.__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    if Path("/sys/class/net/lo").exists():
        environment["GLOO_SOCKET_IFNAME"] = "lo"  # the host's own name need not resolve in a container
    lines = [[sys.executable, str(RANK_SCRIPT), str(tmp_path), str(rank), "2"] for rank in range(2)]
    lines.append([sys.executable, str(RANK_SCRIPT), str(tmp_path), "0", "1"])
    processes = [
        subprocess.Popen(line, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        for line in lines
    ]
    try:
        logs = [process.communicate(timeout=120)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0, 0], "\n".join(logs)
    first, second, alone = (torch.load(tmp_path / f"{name}.pt", weights_only=True) for name in ("0of2", "1of2", "0of1"))
    assert torch.equal(first["loss"], second["loss"])
    assert torch.equal(first["loss"], alone["loss"])
    assert sorted(first["measured"] + second["measured"]) == alone["measured"] == [0, 1, 2, 3, 4]
    assert len(first["measured"]) == 3
    early = [RunFolder(tmp_path / name) for name in ("of1", "of2")]
    assert early[0].early_losses_file.read_text() == early[1].early_losses_file.read_text()
    names = [set(torch.load(each.early_model, weights_only=True)) for each in early]
    assert names[0] == names[1], "without the wrapper's prefix"
