"""Checkpoints: what is written, which network is selected, and that a resumed run is the uninterrupted one."""

from __future__ import annotations

import copy
import math

import ignite.distributed as idist
import numpy as np
import pytest
import torch
from ignite.engine import Events

from droseg.errors import InputError
from droseg.handlers import RunCheckpoint


def keep_every_network(run) -> tuple[list[dict], list[float]]:
    """Return lists that fill, epoch by epoch, with the network's weights and its selecting metric."""
    weights, values = [], []

    @run.trainer.on(Events.EPOCH_COMPLETED)
    def keep() -> None:
        weights.append(copy.deepcopy(run.network.state_dict()))
        values.append(run.validator.state.metrics.get(run.checkpoint.select, math.nan))

    return weights, values


def load(path):
    return torch.load(path, weights_only=True)


def same(first: dict, second: dict) -> bool:
    return list(first) == list(second) and all(torch.equal(first[name], second[name]) for name in first)


def test_files_are_complete_and_models_are_bare_state_dicts(run_factory, tmp_path):
    run = run_factory(tmp_path, epochs=2)
    run.trainer.run()
    names = sorted(path.name for path in run.folder.models.iterdir())
    assert names == ["checkpoint.pt", "model.pt", "model_last.pt"], "and nothing half written beside them"
    assert same(load(run.folder.last_model), run.network.state_dict())
    fresh = run_factory(tmp_path / "other", seed=5)
    fresh.network.load_state_dict(load(run.folder.best_model))
    assert {"network", "trainer", "optimizer", "lr_scheduler", "objective", "rng"} <= set(load(run.folder.checkpoint))


@pytest.mark.parametrize(
    ("select", "best_of", "word"),
    [("val_dice/worst_group", np.nanargmax, "highest"), ("val_hd95_mm/worst_group", np.nanargmin, "lowest")],
)
def test_the_selected_model_is_the_best_epochs(run_factory, tmp_path, select, best_of, word):
    run = run_factory(tmp_path, epochs=5, select=select)
    weights, values = keep_every_network(run)
    run.trainer.run()
    best = int(best_of(values))
    assert len(set(values)) > 1
    assert run.checkpoint.best_epoch == best + 1
    assert run.checkpoint.best_value == values[best]
    assert same(load(run.folder.best_model), weights[best])
    assert same(load(run.folder.last_model), weights[-1])
    assert f"{word} {select}" in run.checkpoint.rule()


def test_a_later_epoch_that_is_worse_does_not_replace_the_best(run_factory, tmp_path):
    run = run_factory(tmp_path, epochs=3, select="val_made_up")
    scores = iter([0.5, 0.9, 0.7])
    run.validator.add_event_handler(
        Events.EPOCH_COMPLETED, lambda: run.validator.state.metrics.update(val_made_up=next(scores))
    )
    weights, _ = keep_every_network(run)
    run.trainer.run()
    assert (run.checkpoint.best_epoch, run.checkpoint.best_value) == (2, 0.9)
    assert same(load(run.folder.best_model), weights[1])


@pytest.mark.parametrize("with_validator", [True, False])
def test_the_last_rule_takes_the_last_epoch(run_factory, tmp_path, with_validator):
    run = run_factory(tmp_path, epochs=3, select="last" if with_validator else "val_dice/all")
    if not with_validator:
        run.checkpoint.__init__(run.folder, run.network, run.checkpoint.state, None, "val_dice/all")
    run.trainer.run()
    assert run.checkpoint.best_epoch == 3
    assert same(load(run.folder.best_model), run.network.state_dict())
    assert "after the last epoch" in run.checkpoint.rule()


def test_a_metric_that_was_never_defined_leaves_the_last_network(run_factory, tmp_path):
    run = run_factory(tmp_path, epochs=2, select="val_made_up")
    run.validator.add_event_handler(
        Events.EPOCH_COMPLETED, lambda: run.validator.state.metrics.update(val_made_up=math.nan)
    )
    run.trainer.run()
    assert same(load(run.folder.best_model), run.network.state_dict())


def test_a_metric_that_does_not_exist_is_refused_at_the_first_validation(run_factory, tmp_path):
    run = run_factory(tmp_path, select="val_dice/worst")
    with pytest.raises(InputError, match=r"select is val_dice/worst.*val_dice/worst_group"):
        run.trainer.run()
    assert run.trainer.state.epoch == 1


def test_an_interval_spares_checkpoints_but_not_the_last(run_factory, tmp_path):
    run = run_factory(tmp_path, epochs=5, interval=2)
    written = []
    run.trainer.add_event_handler(
        Events.EPOCH_COMPLETED, lambda: written.append(run.folder.checkpoint.exists() and load(run.folder.checkpoint))
    )
    run.trainer.run()
    assert [bool(saved) and saved["trainer"]["iteration"] // 4 for saved in written] == [False, 2, 2, 4, 5]


@pytest.mark.parametrize("objective", ["hardness", "erm"])
@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_resumed_run_is_the_uninterrupted_one_bit_for_bit(run_factory, tmp_path, objective, num_workers):
    options = {"objective": objective, "num_workers": num_workers, "importance_weighting": objective == "hardness"}
    whole = run_factory(tmp_path / "whole", epochs=4, **options)
    draws = []

    def keep_draws(run) -> None:
        run.trainer.add_event_handler(
            Events.ITERATION_COMPLETED, lambda: draws.append(run.objective.current_draw.indices)
        )

    keep_draws(whole)
    whole.trainer.run()
    expected, draws[:] = draws[:], []

    killed = run_factory(tmp_path / "part", epochs=4, **options)
    keep_draws(killed)

    @killed.trainer.on(Events.ITERATION_STARTED(once=11))
    def kill() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        killed.trainer.run()
    assert draws == expected[:10]

    torch.manual_seed(77)
    resumed = run_factory(tmp_path / "part", epochs=4, seed=33, **options)
    draws[:] = expected[:8]
    keep_draws(resumed)
    assert resumed.checkpoint.restore(resumed.trainer) == 2
    assert (resumed.trainer.state.epoch, resumed.trainer.state.iteration) == (2, 8)
    resumed.trainer.run()
    assert draws == expected
    assert (resumed.trainer.state.epoch, resumed.trainer.state.iteration) == (4, 16)
    assert same(resumed.network.state_dict(), whole.network.state_dict())
    for one, other in zip(
        resumed.objective.history.state_dict().values(), whole.objective.history.state_dict().values(), strict=True
    ):
        assert torch.equal(one, other) if isinstance(one, torch.Tensor) else one == other
    assert resumed.objective.beta == whole.objective.beta
    assert resumed.schedule.get_last_lr() == whole.schedule.get_last_lr()
    assert resumed.checkpoint.best_value == whole.checkpoint.best_value
    assert resumed.checkpoint.best_epoch == whole.checkpoint.best_epoch
    assert same(load(resumed.folder.best_model), load(whole.folder.best_model))


def test_a_run_that_goes_on_for_more_epochs_follows_the_longer_schedule(run_factory, tmp_path):
    short = run_factory(tmp_path, epochs=2)
    short.trainer.run()
    assert short.schedule.get_last_lr() == [0.0]
    longer = run_factory(tmp_path, epochs=4)
    longer.checkpoint.restore(longer.trainer)
    rates = []
    longer.trainer.add_event_handler(
        Events.ITERATION_COMPLETED, lambda: rates.append(longer.trainer.optimizer.param_groups[0]["lr"])
    )
    longer.trainer.run()
    # The cosine of 16 steps with 3 of warm-up, as if it had been planned so from the start.
    expected = [0.03 * 0.5 * (1 + math.cos(math.pi * (step - 3) / 13)) for step in range(9, 17)]
    assert rates == pytest.approx(expected, rel=1e-9, abs=1e-12)


def test_a_run_killed_after_its_last_checkpoint_has_nothing_left_to_train(run_factory, tmp_path):
    run = run_factory(tmp_path, epochs=2)
    run.trainer.run()
    again = run_factory(tmp_path, epochs=2)
    assert again.checkpoint.restore(again.trainer) == 2
    again.trainer.run()
    assert again.trainer.state.epoch == 2
    assert same(again.network.state_dict(), run.network.state_dict())


def test_without_a_checkpoint_there_is_nothing_to_restore(run_factory, tmp_path):
    run = run_factory(tmp_path)
    before = copy.deepcopy(run.network.state_dict())
    assert run.checkpoint.restore(run.trainer) == 0
    assert same(run.network.state_dict(), before)


def test_a_wrapped_network_is_saved_bare(run_factory, tmp_path):
    run = run_factory(tmp_path)
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/rendezvous", rank=0, world_size=1)
    try:
        wrapped = torch.nn.parallel.DistributedDataParallel(run.network)
        checkpoint = RunCheckpoint(run.folder, wrapped, {})
        run.trainer.state.max_epochs = run.trainer.state.epoch = 1
        checkpoint.epoch_completed(run.trainer)
    finally:
        idist.finalize()  # ignite, too, must forget the group
    assert same(load(run.folder.best_model), run.network.state_dict())
