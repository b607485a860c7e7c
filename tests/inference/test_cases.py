from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from droseg.data.datalist import Case
from droseg.inference import CaseResult, OutputError, Predictor, predict_cases, writable_folder

MakeBundle = Callable[..., Path]
Plant = Callable[..., tuple[np.ndarray, np.ndarray]]
Save = Callable[..., Path]


def case(path: Path, case_id: str | None = None) -> Case:
    name = case_id or path.name.split(".")[0]
    return Case(name, name, (path,), None, {})


def record(out: Path) -> dict[str, dict[str, object]]:
    return {entry["case_id"]: entry for entry in json.loads((out / "predict.json").read_text())["cases"]}


def test_a_truncated_file_among_good_ones_costs_only_itself(
    make_bundle: MakeBundle, tmp_path: Path, plant: Plant, save: Save
) -> None:
    image, label = plant()
    paths = [save(tmp_path / "in" / f"{name}.nii.gz", image) for name in "abc"]
    paths[1].write_bytes(paths[1].read_bytes()[:-60])
    seen: list[CaseResult] = []
    results = predict_cases([case(path) for path in paths], make_bundle(), tmp_path / "out", on_result=seen.append)
    assert [result.status for result in results] == ["ok", "failed", "ok"]
    assert seen == results
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "a_seg.json",
        "a_seg.nii.gz",
        "c_seg.json",
        "c_seg.nii.gz",
        "predict.json",
        "volumes.csv",
    ]
    for name in "ac":
        np.testing.assert_array_equal(np.asanyarray(nib.load(tmp_path / "out" / f"{name}_seg.nii.gz").dataobj), label)
    entry = record(tmp_path / "out")["b"]
    assert entry["status"] == "failed"
    assert "b.nii.gz" in str(entry["error"])
    assert entry["remedy"]


def test_running_again_skips_what_is_done_until_overwrite(
    make_bundle: MakeBundle, tmp_path: Path, plant: Plant, save: Save
) -> None:
    cases, bundle, out = [case(save(tmp_path / "a.nii", plant()[0]))], make_bundle(), tmp_path / "out"
    predict_cases(cases, bundle, out)
    written = (out / "a_seg.nii.gz").stat().st_mtime_ns
    (again,) = predict_cases(cases, bundle, out)
    assert again.reused
    assert (out / "a_seg.nii.gz").stat().st_mtime_ns == written
    assert record(out)["a"]["reused"] is True
    (repeated,) = predict_cases(cases, bundle, out, overwrite=True)
    assert not repeated.reused
    assert (out / "a_seg.nii.gz").stat().st_mtime_ns > written


def test_a_result_of_another_image_or_model_is_never_taken_for_this_one(
    make_bundle: MakeBundle, tmp_path: Path, plant: Plant, save: Save
) -> None:
    image, _ = plant()
    out, first = tmp_path / "out", make_bundle("first")
    predict_cases([case(save(tmp_path / "monday" / "scan.nii", image))], first, out)
    before = (out / "scan_seg.nii.gz").read_bytes()
    tuesday = save(tmp_path / "tuesday" / "scan.nii", np.flip(image, 0).copy())
    (other_image,) = predict_cases([case(tuesday)], first, out)
    (other_model,) = predict_cases([case(tmp_path / "monday" / "scan.nii")], make_bundle("second", image=image**2), out)
    for result in (other_image, other_model):
        assert result.status == "failed"
        assert "exists already" in str(result.error)
        assert "--overwrite" in str(result.remedy)
    assert (out / "scan_seg.nii.gz").read_bytes() == before


def test_a_second_run_keeps_the_record_of_the_first(
    make_bundle: MakeBundle, tmp_path: Path, plant: Plant, save: Save
) -> None:
    predictor = Predictor(make_bundle())
    for name in "ab":
        predict_cases([case(save(tmp_path / f"{name}.nii", plant()[0]))], predictor, tmp_path / "out")
    assert list(record(tmp_path / "out")) == ["a", "b"]


@pytest.mark.parametrize("case_id", ["../escaped", "/tmp/escaped", "a/b", ".hidden"])
def test_a_case_id_cannot_lead_out_of_the_output_folder(
    make_bundle: MakeBundle, tmp_path: Path, plant: Plant, save: Save, case_id: str
) -> None:
    path = save(tmp_path / "a.nii", plant()[0])
    (result,) = predict_cases([case(path, case_id)], make_bundle(), tmp_path / "out")
    assert result.status == "failed"
    assert sorted(item.name for item in (tmp_path / "out").iterdir()) == ["predict.json", "volumes.csv"]


def test_an_output_folder_that_cannot_be_is_said_before_the_first_case(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(OutputError, match="not a directory"):
        predict_cases([], "no bundle is looked at", tmp_path / "file" / "out")


@pytest.mark.skipif(os.geteuid() == 0, reason="skipped: root may write everywhere")
def test_a_read_only_output_folder_is_said_before_the_first_case(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(OutputError, match="permission"):
        writable_folder(tmp_path / "out")


def test_a_full_disk_stops_the_run_and_leaves_no_half_file(
    make_bundle: MakeBundle, tmp_path: Path, plant: Plant, save: Save, monkeypatch: pytest.MonkeyPatch
) -> None:
    cases = [case(save(tmp_path / f"{name}.nii", plant()[0])) for name in "abc"]
    predictor, out = Predictor(make_bundle()), tmp_path / "out"

    def fill_the_disk(result: CaseResult) -> None:
        def refuse(descriptor: int) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        monkeypatch.setattr(os, "fsync", refuse)

    with pytest.raises(OutputError, match="full"):
        predict_cases(cases, predictor, out, on_result=fill_the_disk)
    assert sorted(path.name for path in out.iterdir()) == [
        "a_seg.json",
        "a_seg.nii.gz",
        "predict.json",
        "volumes.csv",
    ]
    monkeypatch.undo()
    assert [result.reused for result in predict_cases(cases, predictor, out)] == [True, False, False]
