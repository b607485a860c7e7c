"""What a person who waits gets to see, and what `run.json` tells another program."""

from __future__ import annotations

import json
import math
import time

from droseg.handlers import ProgressHandler


def with_progress(folder, objective, validator):
    return [ProgressHandler(folder, validator)]


def test_run_json_and_the_printed_lines_tell_where_a_training_is(run_factory, tmp_path, capsys):
    run = run_factory(tmp_path, epochs=3, more_handlers=with_progress)
    run.trainer.run()
    status = json.loads(run.folder.status_file.read_text())
    assert (status["epoch"], status["step"], status["total_steps"], status["time_left_s"]) == (3, 12, 12, 0)
    assert status["memory_gb"] > 0.05
    assert status["loss"] > 0
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("epoch ")]
    assert len(lines) == 3
    value = run.validator.state.metrics["val_dice/worst_group"]
    assert f"worst group {value:.3f}" in lines[-1]
    assert lines[-1].startswith("epoch 3/3")


def test_a_continued_training_counts_from_where_it_was(run_factory, tmp_path):
    run_factory(tmp_path, epochs=2).trainer.run()
    run = run_factory(tmp_path, epochs=3, more_handlers=with_progress)
    run.checkpoint.restore(run.trainer)
    start = time.monotonic()
    run.trainer.run()
    elapsed_s = time.monotonic() - start
    status = run.folder.status()
    assert (status["step"], status["total_steps"]) == (12, 12)
    assert 4 * status["step_s"] <= elapsed_s + 0.001, "four steps of its own, not twelve"


def test_steps_left_out_are_told_and_leave_run_json_valid(run_factory, tmp_path, capsys):
    run = run_factory(tmp_path, epochs=4, more_handlers=with_progress)
    run.trainer.on_nonfinite = "skip"
    run.trainer.data_loader.dataset.dataset.data[2]["image"][:] = math.nan
    run.trainer.run()

    def refuse(constant: str) -> None:
        raise ValueError(f"{constant} is no JSON")

    status = json.loads(run.folder.status_file.read_text(), parse_constant=refuse)
    assert status["loss"] > 0, "smoothed over the steps that were made"
    assert (status["steps_left_out"], status["excluded_cases"]) == (3, ["train2"])
    out = capsys.readouterr().out
    assert "3 of 16 steps were left out, their losses not finite; cases taken out of the draws: train2" in out
    run.folder.write_status(loss=math.nan, best=[math.inf, 1.0])
    status = json.loads(run.folder.status_file.read_text(), parse_constant=refuse)
    assert (status["loss"], status["best"]) == (None, [None, 1.0])
