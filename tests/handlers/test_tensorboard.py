"""What TensorBoard will show, read back from the event file by TensorBoard's own reader."""

from __future__ import annotations

import math
import time

import numpy as np
import pytest
from ignite.engine import Events
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader
from tensorboard.plugins.custom_scalar.layout_pb2 import Layout
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

from droseg.handlers import TensorBoardHandler, tensorboard_line
from droseg.handlers.overlays import overlay_planes

SETTINGS = {"objective": "hardness", "seed": 0, "ignored": None}
EVERYTHING = {"scalars": 0, "images": 0, "histograms": 0, "tensors": 0}


def with_tensorboard(folder, objective, validator):
    return [TensorBoardHandler(folder, objective, validator, interval=1, hparams=SETTINGS)]


def raw_events(run) -> list:
    file = next(path for path in run.folder.tensorboard.iterdir() if "tfevents" in path.name)
    return list(EventFileLoader(str(file)).Load())


def read(run) -> EventAccumulator:
    return EventAccumulator(str(run.folder.tensorboard), size_guidance=EVERYTHING).Reload()


@pytest.fixture
def finished(run_factory, tmp_path):
    run = run_factory(tmp_path, epochs=3, more_handlers=with_tensorboard)
    run.rates, run.values = [], []
    run.trainer.add_event_handler(
        Events.ITERATION_STARTED, lambda: run.rates.append(run.trainer.optimizer.param_groups[0]["lr"])
    )
    run.trainer.add_event_handler(
        Events.EPOCH_COMPLETED, lambda: run.values.append({**run.trainer.state.metrics, **run.validator.state.metrics})
    )
    run.trainer.run()
    return run


def test_a_run_writes_one_event_file_with_all_that_is_promised(finished):
    files = [path for path in finished.folder.path.rglob("*") if "tfevents" in path.name]
    assert len(files) == 1
    tags = read(finished).Tags()
    assert {
        "train/loss",
        "train/learning_rate",
        "train/step_s",
        "val_dice/all",
        "val_dice/worst_group",
        "val_dice/anatomy=typical",
        "val_dice/anatomy=rare",
        "val_dice/structure=small",
        "val_hd95_mm/all",
        "val_hd95_mm/worst_group",
        "val_hd95_mm/anatomy=rare",
        "val_dice_p10/anatomy=rare",
        "val_hd95_p90_mm/structure=large",
        "sampler/ess_fraction",
        "sampler/max_probability",
        "sampler/lag",
        "sampler/beta",
        "history/mean_loss",
        "history/robust_risk",
        "best/val_dice/worst_group",
    } <= set(tags["scalars"])
    assert {"sampler/probability_times_n", "history/stale_loss"} <= set(tags["histograms"])
    assert {"fixed case val0 (image, reference, prediction)", "hardest case (image, reference, prediction)"} == set(
        tags["images"]
    )
    assert "custom_scalars__config__" in tags["tensors"]


def test_the_values_are_those_of_the_engines(finished):
    events = read(finished)
    assert [event.step for event in events.Scalars("train/loss")] == list(range(1, 13))
    assert [event.value for event in events.Scalars("train/learning_rate")] == pytest.approx(finished.rates, rel=1e-6)
    for tag in (
        "val_dice/worst_group",
        "val_dice_p10/all",
        "val_hd95_mm/anatomy=rare",
        "sampler/ess_fraction",
        "sampler/max_probability",
    ):
        shown = events.Scalars(tag)
        assert [event.step for event in shown] == [4, 8, 12], "against the step of the training"
        assert [event.value for event in shown] == pytest.approx([v[tag] for v in finished.values], rel=1e-6), tag
    best = max(values["val_dice/all"] for values in finished.values)
    assert events.Scalars("best/val_dice/all")[0].value == pytest.approx(best, rel=1e-6)
    histogram = events.Histograms("sampler/probability_times_n")[-1].histogram_value
    assert histogram.num == 8
    assert histogram.sum == pytest.approx(8.0), "probabilities times N have the mean 1"


def test_the_settings_that_are_shown_are_those_of_the_objective_that_ran(finished):
    # The factory asks for target_ess 0.7; the other names come from the handler's own argument.
    summaries = [value for event in raw_events(finished) for value in event.summary.value]
    start = next(value for value in summaries if value.tag == "_hparams_/session_start_info")
    data = HParamsPluginData.FromString(start.metadata.plugin_data.content)
    shown = {name: getattr(value, value.WhichOneof("kind")) for name, value in data.session_start_info.hparams.items()}
    assert shown == {"objective": "hardness", "target_ess": 0.7, "seed": 0.0}


def test_pictures_show_the_case_that_is_hardest(finished):
    events = read(finished)
    text = events.Tensors("hardest validation case/text_summary")[-1].tensor_proto.string_val[0].decode()
    table = finished.metrics.table
    assert any(text.startswith(f"{case_id}: Dice of all structures 0.") for case_id in set(table["case_id"]))
    picture = events.Images("hardest case (image, reference, prediction)")[-1]
    assert picture.height == picture.width > 0, "three planes by three tiles"


def test_a_run_that_continues_hides_what_was_logged_after_its_checkpoint(run_factory, tmp_path):
    killed = run_factory(tmp_path, epochs=3, more_handlers=with_tensorboard)

    @killed.trainer.on(Events.ITERATION_COMPLETED(once=7))
    def kill() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        killed.trainer.run()
    resumed = run_factory(tmp_path, epochs=3, more_handlers=with_tensorboard)
    resumed.checkpoint.restore(resumed.trainer)
    resumed.trainer.run()
    assert [event.step for event in read(resumed).Scalars("train/loss")] == list(range(1, 13))


def layout(run) -> dict[str, list[str]]:
    """Return the charts of each category in the last layout that the run wrote."""
    content = read(run).Tensors("custom_scalars__config__")[-1].tensor_proto.string_val[0]
    return {each.title: [chart.title for chart in each.chart] for each in Layout.FromString(content).category}


def test_the_layout_has_a_category_for_each_axis_and_the_objectives_sampler(finished):
    found = layout(finished)
    assert list(found) == [
        *("Groups of anatomy (validation, failures counted)", "Structures (validation, failures counted)", "Sampler")
    ]
    means_and_tails = ["Dice, mean", "Dice, 10th percentile", "HD95 (mm), mean", "HD95 (mm), 90th percentile"]
    assert [list(charts) for charts in found.values()][:2] == [means_and_tails] * 2
    assert {"Beta", "Effective sample size / N", "Loss history: mean, robust risk, CVaR"} <= set(found["Sampler"])


def test_a_run_that_continues_keeps_its_groups_until_it_validates_again(run_factory, tmp_path):
    options = {"epochs": 3, "val_interval": 2, "select": "last", "more_handlers": with_tensorboard}
    first = run_factory(tmp_path, **options)
    first.trainer.add_event_handler(Events.EPOCH_STARTED(once=3), first.trainer.terminate)
    first.trainer.run()
    before = layout(first)
    assert any("anatomy" in title for title in before)
    resumed = run_factory(tmp_path, **options)
    assert resumed.checkpoint.restore(resumed.trainer) == 2
    resumed.trainer.run()
    assert "val_dice/all" not in resumed.validator.state.metrics, "the third epoch is not validated"
    assert layout(resumed) == before


def test_a_run_killed_before_its_first_checkpoint_leaves_no_trace_in_the_curves(run_factory, tmp_path):
    killed = run_factory(tmp_path, epochs=1, more_handlers=with_tensorboard)

    @killed.trainer.on(Events.ITERATION_COMPLETED(once=3))
    def kill() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        killed.trainer.run()
    time.sleep(1.0)  # TensorBoard reads the files in the order of their names: the second, then a counter (9, 10)
    again = run_factory(tmp_path, epochs=1, more_handlers=with_tensorboard)
    again.trainer.run()
    assert [event.step for event in read(again).Scalars("train/loss")] == [1, 2, 3, 4]


def test_the_printed_line_names_the_folder(tmp_path):
    assert tensorboard_line(tmp_path) == f"tensorboard --logdir {tmp_path}"


def test_an_overlay_colors_structures_and_leaves_the_rest_gray():
    image = np.zeros((4, 6, 8), dtype=np.float32)
    image[0, 0, 0], image[3, 5, 7] = 1.0, 1.0
    label, pred = np.zeros((2, 4, 6, 8), dtype=int)
    label[2, 3, 4] = 1
    pred[2, 3, 4] = 2
    picture = overlay_planes(image, label, pred, opacity=1.0)
    assert picture.dtype == np.uint8
    side = picture.shape[1] // 3  # three planes by three square tiles
    assert picture.shape == (3, 3 * side, 3 * side)
    colors = {tuple(color) for color in picture.reshape(3, -1).T.tolist()}
    assert {(0x56, 0xB4, 0xE9), (0xE6, 0x9F, 0x00)} <= colors  # sky blue, orange: the first two of Okabe and Ito
    colored = picture.max(axis=0) != picture.min(axis=0)
    seen = [
        [bool(colored[r * side : (r + 1) * side, c * side : (c + 1) * side].any()) for c in range(3)] for r in range(3)
    ]
    assert seen == [[False, True, True]] * 3, "in every plane, on the reference and on the prediction"
    pixels_per_voxel = (side // (8 + 2)) ** 2
    assert colored.sum() == 3 * 2 * pixels_per_voxel, "one voxel"


def test_an_overlay_of_an_empty_case_is_gray():
    empty = np.zeros((4, 4, 4), dtype=int)
    picture = overlay_planes(np.random.default_rng(0).random((4, 4, 4)), empty, empty)
    assert (picture.max(axis=0) == picture.min(axis=0)).all()
    assert not math.isnan(picture.mean())
