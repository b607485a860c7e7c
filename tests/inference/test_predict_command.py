from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from droseg.cli import main, parse_arguments, predict
from droseg.errors import WeightsError
from droseg.inference import OutputError

MakeBundle = Callable[..., Path]
Plant = Callable[..., tuple[np.ndarray, np.ndarray]]
Save = Callable[..., Path]


def test_a_folder_with_bad_files_gives_the_good_ones_and_code_1(
    make_bundle: MakeBundle,
    tmp_path: Path,
    plant: Plant,
    save: Save,
    capsys: pytest.CaptureFixture[str],
) -> None:
    image, label = plant()
    folder, out = tmp_path / "in", tmp_path / "out"
    for name in ("first", "last"):
        save(folder / f"{name}.nii.gz", image)
    (folder / "empty.nii").write_bytes(b"")
    (folder / "report.nii.gz").write_bytes(b"%PDF-1.7")
    (folder / "text.nii.gz").write_bytes(gzip.compress(b"not an image" * 50))
    save(folder / "flat.nii.gz", image[:, :, 0])
    save(folder / "holed.nii.gz", np.where(label == 7, np.nan, image))
    bundle = make_bundle()
    assert main(["predict", str(folder), "--bundle", str(bundle), "--out", str(out)]) == 1
    shown = capsys.readouterr()
    for name in ("empty", "report", "text", "flat", "holed"):
        lines = [line for line in shown.err.splitlines() if line.startswith(f"{name}: failed: ")]
        assert len(lines) == 1, shown.err
        assert str(folder / name) in lines[0]
    assert "Traceback" not in shown.err
    assert "2 segmented" in shown.out
    assert "5 failed" in shown.out
    for name in ("first", "last"):
        np.testing.assert_array_equal(np.asanyarray(nib.load(out / f"{name}_seg.nii.gz").dataobj), label)


def test_all_good_is_code_0_and_a_second_run_says_that_it_skips(
    make_bundle: MakeBundle,
    tmp_path: Path,
    plant: Plant,
    save: Save,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path = save(tmp_path / "scan.nii.gz", plant()[0])
    monkeypatch.setenv("DROSEG_BUNDLE", str(make_bundle()))
    command = ["predict", str(path), "--out", str(tmp_path / "out")]
    assert main(command) == 0
    capsys.readouterr()
    assert main(command) == 0
    assert "1 done before (--overwrite repeats them)" in capsys.readouterr().out


def test_a_datalist_with_a_section_names_results_by_case_id(
    make_bundle: MakeBundle, tmp_path: Path, plant: Plant, save: Save
) -> None:
    save(tmp_path / "data" / "scan.nii.gz", plant()[0])
    datalist = tmp_path / "datalist.json"
    entry = {"case_id": "patient_7", "image": "scan.nii.gz"}
    datalist.write_text(json.dumps({"channels": {"0": "T1w"}, "structures": {"a": 1}, "testing": [entry]}))
    out = tmp_path / "out"
    given = ["--section", "testing", "--data-root", str(tmp_path / "data")]
    assert main(["predict", str(datalist), *given, "--bundle", str(make_bundle()), "--out", str(out)]) == 0
    assert (out / "patient_7_seg.nii.gz").is_file()


def test_no_input_is_code_2_and_missing_weights_code_3(
    make_bundle: MakeBundle, tmp_path: Path, plant: Plant, save: Save, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle, out = make_bundle(), str(tmp_path / "out")
    (tmp_path / "nothing").mkdir()
    assert main(["predict", str(tmp_path / "nothing"), "--bundle", str(bundle), "--out", out]) == 2
    assert "no image to segment" in capsys.readouterr().err
    (bundle / "models" / "model.pt").unlink()
    path = save(tmp_path / "scan.nii.gz", plant()[0])
    assert main(["predict", str(path), "--bundle", str(bundle), "--out", out]) == 3
    message = capsys.readouterr().err
    assert message.startswith("droseg: error: ")
    assert "droseg train run --datalist" in message


def test_the_container_without_weights_says_how_to_mount_a_run(
    make_bundle: MakeBundle, tmp_path: Path, plant: Plant, save: Save, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_bundle()
    (run / "models" / "model.pt").unlink()
    path = save(tmp_path / "scan.nii.gz", plant()[0])
    out = tmp_path / "output"
    monkeypatch.setattr(predict, "CONTAINER_OUTPUT", str(out))  # /output itself can be made by root only
    with pytest.raises(WeightsError, match=r'-v "\$PWD/run":/bundle:ro before IMAGE'):
        predict.run(parse_arguments(["predict", str(path), "--bundle", str(run), "--out", str(out)]))


def test_a_container_that_cannot_write_says_how_to_mount_its_output(
    make_bundle: MakeBundle, tmp_path: Path, plant: Plant, save: Save, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, out = save(tmp_path / "scan.nii.gz", plant()[0]), tmp_path / "output"
    out.write_text("a file where the folder should be")
    monkeypatch.setattr(predict, "CONTAINER_OUTPUT", str(out))
    with pytest.raises(OutputError, match=r'-v "\$PWD/out":/output IMAGE'):
        predict.run(parse_arguments(["predict", str(path), "--bundle", str(make_bundle()), "--out", str(out)]))


def test_debug_shows_where_a_case_failed_and_goes_on(
    make_bundle: MakeBundle, tmp_path: Path, plant: Plant, save: Save, capsys: pytest.CaptureFixture[str]
) -> None:
    save(tmp_path / "in" / "b.nii.gz", plant()[0])
    (tmp_path / "in" / "a.nii.gz").write_bytes(b"x")
    command = [
        "predict",
        str(tmp_path / "in"),
        "--bundle",
        str(make_bundle()),
        "--out",
        str(tmp_path / "out"),
        "--debug",
    ]
    assert main(command) == 1
    assert "Traceback" in capsys.readouterr().err
    assert (tmp_path / "out" / "b_seg.nii.gz").is_file()
