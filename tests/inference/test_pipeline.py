"""Cases overlap where memory allows it; what happens beside what is told by events, never by how long it takes."""

from __future__ import annotations

import threading
import types
from collections.abc import Callable, Sequence
from pathlib import Path

import nibabel as nib
import numpy as np
import psutil
import pytest
from monai.data import MetaTensor

from droseg.inference import CaseResult, InputCase, Predictor, Prepared, predict_cases

MakeBundle = Callable[..., Path]
Plant = Callable[..., tuple[np.ndarray, np.ndarray]]
Save = Callable[..., Path]
Event = tuple[str, str | None]

PATIENCE_S = 30.0
"""After which something that should happen beside something else is said not to."""
ENDED = ["reading", None, "segmenting", None, "writing", None]


class Stages:
    """What began and ended with which case, in order; others can wait for it."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self._changed = threading.Condition()

    def __call__(self, case_id: str, stage: str | None) -> None:
        with self._changed:
            self.events.append((case_id, stage))
            self._changed.notify_all()

    def of(self, case_id: str) -> list[str | None]:
        """Return the stages of one case."""
        return [stage for name, stage in list(self.events) if name == case_id]

    def wait_for(self, case_id: str, stages: Sequence[str | None]) -> bool:
        """Return whether a case has gone through these stages, after waiting for it."""
        with self._changed:
            return self._changed.wait_for(lambda: self.of(case_id)[: len(stages)] == list(stages), PATIENCE_S)


@pytest.fixture
def cases(tmp_path: Path, plant: Plant, save: Save) -> list[InputCase]:
    return [InputCase(name, (save(tmp_path / f"{name}.nii.gz", plant()[0]),)) for name in "abc"]


@pytest.fixture
def predictor(make_bundle: MakeBundle) -> Predictor:
    return Predictor(make_bundle())


def check_labels(results: Sequence[CaseResult], plant: Plant) -> None:
    assert [(result.case_id, result.status) for result in results] == [(name, "ok") for name in "abc"]
    for result in results:
        np.testing.assert_array_equal(np.asanyarray(nib.load(str(result.output)).dataobj), plant()[1])


def test_the_next_case_is_read_and_the_last_one_written_while_one_is_in_the_network(
    predictor: Predictor, cases: list[InputCase], tmp_path: Path, plant: Plant
) -> None:
    stages = Stages()
    beside: dict[str, bool] = {}

    def in_the_network(*_: object) -> None:
        if stages.of("a")[-1] == "segmenting":
            beside["b is read during a"] = stages.wait_for("b", ["reading", None])
            beside["c waits"] = not stages.of("c")  # at most one case is ahead
        elif stages.of("b")[-1] == "segmenting":
            beside["a is written during b"] = stages.wait_for("a", ENDED)
            beside["c is read during b"] = stages.wait_for("c", ["reading", None])

    predictor.network.register_forward_pre_hook(in_the_network)
    results = predict_cases(cases, predictor, tmp_path / "out", on_stage=stages)
    assert beside == dict.fromkeys(
        ("b is read during a", "c waits", "a is written during b", "c is read during b"), True
    )
    assert all(stages.of(name) == ENDED for name in "abc")
    check_labels(results, plant)


def test_on_request_one_case_is_done_before_the_next_begins(
    predictor: Predictor, cases: list[InputCase], tmp_path: Path, plant: Plant
) -> None:
    stages = Stages()
    results = predict_cases(cases, predictor, tmp_path / "out", on_stage=stages, beside=False)
    assert stages.events == [(name, stage) for name in "abc" for stage in ENDED]
    check_labels(results, plant)


@pytest.mark.parametrize(("times", "one_at_a_time"), [(20, True), (200, False)])
def test_where_little_memory_is_free_one_case_is_done_before_the_next_begins(
    make_bundle: MakeBundle,
    cases: list[InputCase],
    tmp_path: Path,
    plant: Plant,
    monkeypatch: pytest.MonkeyPatch,
    times: int,
    one_at_a_time: bool,
) -> None:
    stages = Stages()
    free = types.SimpleNamespace(available=times * plant()[0].size * 4)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: free)
    predictor = Predictor(make_bundle(roi_size=[8, 8, 8]))  # a window is small beside an image
    waited: list[bool] = []

    def in_the_network(*_: object) -> None:
        if not one_at_a_time and not waited:
            waited.append(stages.wait_for("b", ["reading", None]))

    predictor.network.register_forward_pre_hook(in_the_network)
    results = predict_cases(cases, predictor, tmp_path / "out", on_stage=stages)
    assert (stages.events == [(name, stage) for name in "abc" for stage in ENDED]) is one_at_a_time
    assert all(waited)
    check_labels(results, plant)


def test_a_case_that_ran_out_of_memory_beside_another_is_segmented_again_alone(
    predictor: Predictor, cases: list[InputCase], tmp_path: Path, plant: Plant
) -> None:
    stages = Stages()

    def on_stage(case_id: str, stage: str | None) -> None:
        stages(case_id, stage)
        if (case_id, stage) == ("b", "reading"):
            assert stages.wait_for("a", ["reading", None, "segmenting", None])

    def in_the_network(*_: object) -> None:
        if stages.of("b") != ["reading", None] and stages.of("a")[-1] == "segmenting":
            raise MemoryError  # as long as b holds memory, too

    predictor.network.register_forward_pre_hook(in_the_network)
    results = predict_cases(cases, predictor, tmp_path / "out", on_stage=on_stage)
    assert stages.of("a") == ["reading", None, "segmenting", None, "segmenting", None, "writing", None]
    events = stages.events
    again = len(events) - 1 - events[::-1].index(("a", "segmenting"))
    assert ("b", None) in events[:again]  # then it was alone
    check_labels(results, plant)


def test_a_case_that_could_not_be_read_beside_another_is_read_again_alone(
    make_bundle: MakeBundle, cases: list[InputCase], tmp_path: Path, plant: Plant, monkeypatch: pytest.MonkeyPatch
) -> None:
    stages = Stages()
    predictor = Predictor(make_bundle())
    prepare = predictor.prepare

    refused: list[str] = []

    def short_of_memory(image: MetaTensor) -> Prepared:
        if threading.current_thread() is not threading.main_thread() and not refused:
            refused.append("b")  # what is read beside the network is read in another thread
            raise MemoryError
        return prepare(image)

    monkeypatch.setattr(predictor, "prepare", short_of_memory)
    results = predict_cases(cases, predictor, tmp_path / "out", on_stage=stages)
    assert refused == ["b"]
    assert stages.of("b") == ["reading", None, *ENDED]
    check_labels(results, plant)


def test_a_bad_case_in_the_middle_holds_nobody_up(predictor: Predictor, cases: list[InputCase], tmp_path: Path) -> None:
    stages = Stages()
    (tmp_path / "b.nii.gz").write_bytes(b"x")
    results = predict_cases(cases, predictor, tmp_path / "out", on_stage=stages)
    assert [result.status for result in results] == ["ok", "failed", "ok"]
    assert stages.of("b") == ["reading", None]
    assert stages.of("c") == ENDED
