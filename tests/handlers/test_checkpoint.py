"""Checkpoints: what is written, which network is selected, and that a resumed run is the uninterrupted one."""

from __future__ import annotations

import copy
import math
import shutil

import ignite.distributed as idist
import numpy as np
import pytest
import torch
from ignite.engine import Events
from monai.engines import IterationEvents
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from droseg.errors import DrosegError, InputError
from droseg.handlers import RunCheckpoint, TensorBoardHandler
from droseg.sampling.history import HistoryMismatchError


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


@pytest.mark.parametrize(("objective", "num_workers"), [("hardness", 2), ("erm", 0)])
def test_from_any_step_a_run_goes_on_as_if_it_had_never_stopped(run_factory, tmp_path, objective, num_workers):
    options = {"objective": objective, "num_workers": num_workers, "epochs": 3, "max_age": 1.0, "minutes": 0}
    whole = run_factory(tmp_path / "whole", **options)
    states, draws = {}, {}

    def keep_draw(engine, run, kept) -> None:
        kept[engine.state.iteration] = run.objective.current_draw

    def keep_state(moment: str) -> None:
        states[moment] = shutil.copy(whole.folder.checkpoint, tmp_path / f"{moment}.pt")

    whole.trainer.add_event_handler(Events.ITERATION_COMPLETED, keep_draw, whole, draws)

    @whole.trainer.on(Events.ITERATION_COMPLETED)
    def after_a_step() -> None:
        if whole.trainer.state.iteration % 4:
            keep_state(f"step {whole.trainer.state.iteration}")

    whole.validator.add_event_handler(Events.STARTED, lambda: keep_state(f"before validation {len(draws)}"))
    whole.trainer.add_event_handler(Events.EPOCH_COMPLETED, lambda: keep_state(f"after epoch {len(draws)}"))
    whole.trainer.run()
    assert len(states) == 9 + 3 + 3

    for moment, file in states.items():
        path = tmp_path / "part" / moment
        (path / "models").mkdir(parents=True)
        shutil.copy(file, path / "models/checkpoint.pt")
        part = run_factory(path, seed=33, **options)
        epochs, step = part.checkpoint.restore(part.trainer), part.trainer.state.iteration
        assert (epochs, step) == (step // 4, int(moment.split()[-1]))

        redrawn = {}
        part.trainer.add_event_handler(Events.ITERATION_COMPLETED, keep_draw, part, redrawn)
        part.trainer.run()
        assert redrawn == {key: draw for key, draw in draws.items() if key > step}, moment
        assert same(part.network.state_dict(), whole.network.state_dict()), moment
        assert part.trainer.state.iteration == 12
        assert (part.checkpoint.best_value, part.checkpoint.best_epoch) == (
            whole.checkpoint.best_value,
            whole.checkpoint.best_epoch,
        )
        if not moment.startswith("after epoch 12"):
            assert without_times(part.trainer.state.metrics) == without_times(whole.trainer.state.metrics), moment


def without_times(metrics: dict) -> dict:
    return {name: value for name, value in metrics.items() if name != "sampler/epoch_s"}


@pytest.mark.parametrize(("minutes", "expected"), [(None, [8]), (0, [1, 2, 3, 5, 6, 7, 8]), (60, [8])])
def test_checkpoints_come_by_minutes_as_well_as_by_epochs(run_factory, tmp_path, minutes, expected):
    run = run_factory(tmp_path, epochs=2, interval=2, minutes=minutes, select="last")
    run.checkpoint.__init__(run.folder, run.network, run.checkpoint.state, None, interval=2, minutes=minutes)
    written = []

    @run.trainer.on(Events.ITERATION_COMPLETED | Events.EPOCH_COMPLETED)
    def look() -> None:
        if run.folder.checkpoint.exists():
            written.append(load(run.folder.checkpoint)["trainer"]["iteration"])

    run.trainer.run()
    if minutes == 0:
        expected = [1, 2, 3, 4, 5, 6, 7, 8]  # the step that ends an epoch is saved with the epoch's end
    assert sorted(set(written)) == expected


def test_no_checkpoint_falls_between_summed_up_gradients(run_factory, tmp_path):
    def summing(path, **options):
        run = run_factory(path, epochs=2, num_batches=6, minutes=0, **options)
        run.trainer.accumulation_steps = 4
        return run

    whole, steps = summing(tmp_path), set()

    @whole.trainer.on(Events.ITERATION_COMPLETED)
    def keep() -> None:
        if whole.folder.checkpoint.exists():
            steps.add(load(whole.folder.checkpoint)["trainer"]["iteration"])
        if whole.trainer.state.iteration == 10:
            shutil.copytree(tmp_path, tmp_path.with_name("part"))

    whole.trainer.run()
    assert steps == {4, 6, 10}
    part = summing(tmp_path.with_name("part"), seed=33)
    part.checkpoint.restore(part.trainer)
    part.trainer.run()
    assert same(part.network.state_dict(), whole.network.state_dict())


@pytest.mark.parametrize("damage", [lambda data: data[: len(data) // 2], lambda data: b"", lambda data: b"no archive"])
def test_a_damaged_checkpoint_is_said_to_be_one(run_factory, tmp_path, damage):
    run_factory(tmp_path, epochs=1).trainer.run()
    run = run_factory(tmp_path, epochs=2)
    run.folder.checkpoint.write_bytes(damage(run.folder.checkpoint.read_bytes()))
    with pytest.raises(DrosegError, match=r"checkpoint.pt cannot be read.*--restart"):
        run.checkpoint.restore(run.trainer)


def test_a_checkpoint_of_another_format_is_refused(run_factory, tmp_path):
    run_factory(tmp_path, epochs=1).trainer.run()
    run = run_factory(tmp_path, epochs=2)
    torch.save({**load(run.folder.checkpoint), "format": 0}, run.folder.checkpoint)
    with pytest.raises(DrosegError, match="format 0, expected 1"):
        run.checkpoint.restore(run.trainer)


@pytest.mark.parametrize("options", [{"interval": 0}, {"interval": 1.5}, {"minutes": -1}, {"minutes": math.nan}])
def test_an_interval_out_of_its_range_is_refused(run_factory, tmp_path, options):
    with pytest.raises(InputError, match=f"checkpoint_{next(iter(options))} is"):
        run_factory(tmp_path, **options)


def interrupt() -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize("num_workers", [0, 1])
def test_other_cases_are_refused_and_carried_over_on_demand(run_factory, tmp_path, num_workers):
    first = run_factory(tmp_path, epochs=2, minutes=0, num_workers=num_workers)
    first.trainer.add_event_handler(Events.ITERATION_COMPLETED(once=6), interrupt)
    with pytest.raises(KeyboardInterrupt):
        first.trainer.run()
    others = ("train5", "new", *(f"train{index}" for index in (0, 1, 2, 3, 7, 4)))
    changed = run_factory(tmp_path, epochs=3, cases=others)
    with pytest.raises(HistoryMismatchError, match=r"gone: \['train6'\], new: \['new'\].*carry_over_history"):
        changed.checkpoint.restore(changed.trainer)

    changed = run_factory(tmp_path, epochs=3, cases=others, num_workers=num_workers)
    changed.checkpoint.carry_over_history = True
    changed.checkpoint.restore(changed.trainer)
    old, new = first.objective.history, changed.objective.history
    for name in set(others) - {"new"}:
        assert new.loss[new.case_ids.index(name)] == old.loss[old.case_ids.index(name)]
        assert new.visits[new.case_ids.index(name)] == old.visits[old.case_ids.index(name)]
    assert (new.loss[1], new.visits[1]) == (4.0, 0)
    assert changed.checkpoint.best_epoch == 0, "the best value may be of other validation cases"
    steps = []
    changed.trainer.add_event_handler(
        Events.ITERATION_COMPLETED, lambda: steps.append((changed.trainer.state.epoch, changed.trainer.state.iteration))
    )
    changed.trainer.run()
    assert steps == [(2, 7), (2, 8), *((3, step) for step in range(9, 13))]
    assert not changed.objective.sampler.pending, "each epoch drew what it trained"
    assert new.visits[1] > 0


def test_a_solved_beta_stays_when_cases_are_carried_over_and_one_given_by_hand_does_not(run_factory, tmp_path):
    first = run_factory(tmp_path, epochs=4, target_ess=0.7)
    first.trainer.run()
    assert first.objective.beta != 5.0
    for robustness, expected in (({"target_ess": 0.7}, first.objective.beta), ({"beta": 5.0}, 5.0)):
        cases = ("new", *(f"train{index}" for index in range(1, 8)))
        changed = run_factory(tmp_path, epochs=5, cases=cases, **robustness)
        changed.checkpoint.carry_over_history = True
        changed.checkpoint.restore(changed.trainer)
        assert changed.objective.beta == changed.objective.sampler.beta == expected
        q = torch.softmax(expected * torch.from_numpy(changed.objective.history.loss), dim=0)
        torch.testing.assert_close(changed.objective.probabilities(), q)


def test_nothing_in_common_is_refused(run_factory, tmp_path):
    run_factory(tmp_path / "first", epochs=1).trainer.run()
    others = tuple(f"other{index}" for index in range(8))
    changed = run_factory(tmp_path / "first", epochs=2, cases=others)
    changed.checkpoint.carry_over_history = True
    with pytest.raises(InputError, match=r"losses of none of the 8 training cases \(other0, ...; there train0"):
        changed.checkpoint.restore(changed.trainer)
    second = run_factory(tmp_path / "second", epochs=2, cases=others)
    second.checkpoint.carry_over_history, second.checkpoint.init_from = True, tmp_path / "first"
    with pytest.raises(InputError, match="there is nothing to take over"):
        second.checkpoint.restore(second.trainer)


def test_the_history_of_another_run_is_taken_with_its_weights(run_factory, tmp_path):
    first = run_factory(tmp_path / "first", epochs=2)
    first.trainer.run()
    second = run_factory(tmp_path / "second", epochs=2, seed=3)
    second.checkpoint.init_from = tmp_path / "first"
    second.checkpoint.restore(second.trainer)
    assert second.objective.history.visits.sum() == 0, "only on demand"
    second.checkpoint.carry_over_history = True
    assert second.checkpoint.restore(second.trainer) == 0
    assert second.objective.history.loss.tolist() == first.objective.history.loss.tolist()
    assert second.objective.history.visits.tolist() == first.objective.history.visits.tolist()
    for nothing in (None, tmp_path / "missing"):
        second.checkpoint.init_from = nothing
        with pytest.raises(InputError, match=r"is no run folder with a models/checkpoint\.pt"):
            second.checkpoint.restore(second.trainer)


def test_a_continued_run_says_that_it_does_not_start_from_other_weights(run_factory, tmp_path, caplog):
    run_factory(tmp_path, epochs=1).trainer.run()
    run = run_factory(tmp_path, epochs=2)
    run.checkpoint.init_from = "other/model.pt"
    with caplog.at_level("WARNING"):
        run.checkpoint.restore(run.trainer)
    assert "init_from is ignored" in caplog.text


@pytest.mark.parametrize("objective", ["hardness", "jtt"])
def test_a_case_that_was_taken_out_stays_out_after_a_resume_from_any_step(run_factory, tmp_path, objective):
    options = {"rivals": {"jtt": {"first_epochs": 2}}}

    def make(path):
        run = run_factory(path, objective=objective, epochs=4, mix=0.2, max_age=1.0, **options)
        run.trainer.on_nonfinite = "skip"
        run.trainer.data_loader.dataset.dataset.data[2]["image"][:] = math.nan
        drawn = []
        run.trainer.add_event_handler(
            IterationEvents.LOSS_COMPLETED, lambda: drawn.append(tuple(run.objective.current_draw.indices))
        )
        return run, drawn

    whole, expected = make(tmp_path / "whole")
    whole.trainer.run()
    assert whole.objective.history.excluded == {2}
    assert whole.trainer.state.steps_left_out == 3
    for step in (2, 5, 9, 10, 12):
        run, drawn = make(tmp_path / f"from{step}")
        run.trainer.add_event_handler(
            Events.ITERATION_COMPLETED(once=step), lambda trainer=run.trainer: setattr(trainer, "stop_requested", True)
        )
        with pytest.raises(SystemExit):
            run.trainer.run()
        again, rest = make(tmp_path / f"from{step}")
        again.checkpoint.restore(again.trainer)
        again.trainer.run()
        assert drawn + rest == expected
        assert again.objective.history.failures == whole.objective.history.failures
        assert same(load(again.folder.last_model), load(whole.folder.last_model))


def test_what_people_see_survives_a_kill(run_factory, tmp_path):
    def shown(folder, objective, validator):
        return [TensorBoardHandler(folder, objective, validator, interval=1, hparams={"seed": 0})]

    def scalars(tag: str) -> list:
        return EventAccumulator(str(tmp_path / "tensorboard")).Reload().Scalars(tag)

    killed = run_factory(tmp_path, epochs=2, minutes=0, more_handlers=shown)
    killed.trainer.add_event_handler(Events.ITERATION_COMPLETED(once=6), interrupt)
    with pytest.raises(KeyboardInterrupt):
        killed.trainer.run()
    assert [event.step for event in scalars("train/loss")] == [1, 2, 3, 4, 5, 6], "as far as the checkpoint goes"
    resumed = run_factory(tmp_path, epochs=2, more_handlers=shown)
    resumed.checkpoint.restore(resumed.trainer)
    assert resumed.trainer.state.best_values == killed.trainer.state.best_values
    assert resumed.trainer.state.best_values["val_dice/all"] == pytest.approx(scalars("val_dice/all")[0].value)
    resumed.trainer.run()
    assert [event.step for event in scalars("train/loss")] == [1, 2, 3, 4, 5, 6, 7, 8]


def test_another_number_of_ranks_gets_generators_of_its_own(run_factory, tmp_path, caplog):
    run_factory(tmp_path, epochs=1).trainer.run()
    run = run_factory(tmp_path, epochs=2)
    saved = load(run.folder.checkpoint)
    torch.save({**saved, "rng": saved["rng"] * 3}, run.folder.checkpoint)
    with caplog.at_level("WARNING"):
        assert run.checkpoint.restore(run.trainer) == 1
    assert "saved by 3 ranks, continued by 1" in caplog.text


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
        idist.finalize()  # ignite must forget the group, if it has noticed it,
        if torch.distributed.is_initialized():  # and only then does that end it
            torch.distributed.destroy_process_group()
    assert same(load(run.folder.best_model), run.network.state_dict())
