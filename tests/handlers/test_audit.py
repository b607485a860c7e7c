"""The audit trail says what was drawn: compared with the draws themselves."""

from __future__ import annotations

import math
import shutil

import numpy as np
import pandas as pd
import pytest
from ignite.engine import Events

from droseg.errors import InputError
from droseg.handlers import AuditHandler, read_audit


def with_audit(folder, objective, validator):
    return [AuditHandler(folder, objective)]


def what_was_trained(run) -> list[tuple[str, int, int, float, float]]:
    """Return a list that fills with a row per trained item."""
    rows = []

    @run.trainer.on(Events.ITERATION_COMPLETED)
    def keep() -> None:
        state, draw = run.trainer.state, run.objective.current_draw
        for index, loss in zip(state.batch["index"].tolist(), state.output["case_loss"].tolist(), strict=True):
            probability = draw.probability[draw.indices.index(index)]
            rows.append((run.objective.history.case_ids[index], state.epoch, state.iteration, probability, loss))

    return rows


@pytest.mark.parametrize(
    "options",
    [{"objective": "hardness", "num_workers": 2}, {"objective": "erm"}, {"replacement": True, "beta": 100.0}],
)
def test_the_trail_is_what_was_drawn(run_factory, tmp_path, options):
    run = run_factory(tmp_path, epochs=3, more_handlers=with_audit, **options)
    rows = what_was_trained(run)
    run.trainer.run()
    trail = read_audit(tmp_path)
    expected = pd.DataFrame(rows, columns=["case_id", "epoch", "step", "probability", "loss"])
    expected = expected.astype({"probability": "float32", "loss": "float32"})
    pd.testing.assert_frame_equal(trail, expected, check_exact=True)
    assert len(trail) == 3 * 4 * 2
    assert run.folder.audit_file.stat().st_size == 16 * len(trail)
    visits = trail.groupby("case_id")["step"].nunique()
    assert [visits.get(name, 0) for name in run.objective.history.case_ids] == run.objective.history.visits.tolist()


def test_what_a_killed_run_wrote_after_its_checkpoint_is_cut_off(run_factory, tmp_path):
    whole = run_factory(tmp_path / "whole", epochs=3, more_handlers=with_audit)
    whole.trainer.add_event_handler(
        Events.EPOCH_COMPLETED(once=2), lambda: shutil.copytree(tmp_path / "whole", tmp_path / "part")
    )
    whole.trainer.run()
    later = whole.folder.audit_file.read_bytes()[16 * 16 :]
    with (tmp_path / "part/audit.bin").open("ab") as file:
        file.write(later[:55])  # three records, and a part of one
    assert len(read_audit(tmp_path / "part")) == 19
    part = run_factory(tmp_path / "part", epochs=3, seed=5, more_handlers=with_audit)
    part.checkpoint.restore(part.trainer)
    part.trainer.run()
    assert part.folder.audit_file.read_bytes() == whole.folder.audit_file.read_bytes()


def test_a_new_run_in_the_folder_starts_a_new_trail(run_factory, tmp_path):
    for _ in range(2):
        run_factory(tmp_path, epochs=1, more_handlers=with_audit).trainer.run()
    assert read_audit(tmp_path)["step"].tolist() == [1, 1, 2, 2, 3, 3, 4, 4]


def test_a_trail_that_begins_late_says_so(run_factory, tmp_path, caplog):
    run_factory(tmp_path, epochs=1).trainer.run()
    run = run_factory(tmp_path, epochs=2, more_handlers=with_audit)
    run.checkpoint.restore(run.trainer)
    with caplog.at_level("WARNING"):
        run.trainer.run()
    assert "no record of step 4" in caplog.text
    trail = read_audit(tmp_path)
    assert trail["step"].tolist() == [5, 5, 6, 6, 7, 7, 8, 8]
    assert set(trail["epoch"]) == {2}


def test_the_cases_of_a_changed_datalist_keep_their_names(run_factory, tmp_path):
    first = run_factory(tmp_path, epochs=1, more_handlers=with_audit)
    rows = what_was_trained(first)
    first.trainer.run()
    others = ("new", *(f"train{index}" for index in range(7, 0, -1)))
    second = run_factory(tmp_path, epochs=2, more_handlers=with_audit, cases=others)
    second.checkpoint.carry_over_history = True
    second.checkpoint.restore(second.trainer)
    more = what_was_trained(second)
    second.trainer.run()
    assert read_audit(tmp_path)["case_id"].tolist() == [row[0] for row in rows + more]


def test_a_loss_that_is_not_finite_is_in_the_trail(run_factory, tmp_path):
    run = run_factory(tmp_path, epochs=2, more_handlers=with_audit)  # eight steps; ten with a NaN would end it
    run.trainer.on_nonfinite = "skip"
    run.trainer.data_loader.dataset.data[3]["image"][:] = math.nan
    run.trainer.run()
    trail = read_audit(tmp_path)
    assert set(trail["case_id"][~np.isfinite(trail["loss"])]) == {"train3"}


def test_a_run_without_a_trail_is_said_to_have_none(run_factory, tmp_path):
    run_factory(tmp_path, epochs=1).trainer.run()
    with pytest.raises(InputError, match=r"there is no audit\.bin; train with audit=true"):
        read_audit(tmp_path)
