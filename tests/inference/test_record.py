"""What stands in `predict.json`, `volumes.csv` and `NAME_seg.json`, and when."""

from __future__ import annotations

import csv
import importlib.metadata
import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from droseg import __version__
from droseg.cli import main
from droseg.inference import CaseResult, InputCase, Predictor, predict_cases

MakeBundle = Callable[..., Path]
Plant = Callable[..., tuple[np.ndarray, np.ndarray]]
Save = Callable[..., Path]

ANISOTROPIC = np.array([[0, 0, -2.5, 40], [0.8, 0, 0, -7], [0, -1.5, 0, 12], [0, 0, 0, 1]])
GRID_MM = [2.5, 0.8, 1.5]  # its spacing along right, front and up: nothing is interpolated
VOXEL_ML = 0.8 * 1.5 * 2.5 / 1000
VOLUMES = {"anterior": 9 * 12 * 7 * VOXEL_ML, "posterior": 5 * 6 * 11 * VOXEL_ML}  # the boxes of `plant`


def record(out: Path) -> dict[str, Any]:
    document = json.loads((out / "predict.json").read_text())
    assert isinstance(document, dict)
    return document


def entries(out: Path) -> dict[str, dict[str, Any]]:
    return {entry["case_id"]: entry for entry in record(out)["cases"]}


def volumes(out: Path) -> dict[tuple[str, str], float]:
    with (out / "volumes.csv").open(newline="") as file:
        rows = csv.DictReader(file)
        assert rows.fieldnames == ["case_id", "structure", "volume_ml"]
        return {(row["case_id"], row["structure"]): float(row["volume_ml"]) for row in rows}


def sha256sum(*paths: Path) -> str:
    """Return what the program of that name says about the files, one behind the other."""
    program = shutil.which("sha256sum")
    if program is None:
        pytest.skip("skipped: there is no sha256sum")
    content = b"".join(path.read_bytes() for path in paths)
    return subprocess.run([program], input=content, capture_output=True, check=True).stdout.split()[0].decode()


@pytest.fixture
def bundle(make_bundle: MakeBundle) -> Path:
    return make_bundle(spacing_mm=GRID_MM)


def test_every_status_is_recorded_with_its_reason_and_all_keys(
    bundle: Path, tmp_path: Path, plant: Plant, save: Save
) -> None:
    folder, out = tmp_path / "in", tmp_path / "out"
    good = save(folder / "good.nii.gz", plant()[0], ANISOTROPIC)
    unknown = save(folder / "unknown.nii.gz", np.full((24, 20, 16), 5.0, np.float32), ANISOTROPIC)
    damaged = folder / "damaged.nii.gz"
    damaged.write_bytes(b"%PDF-1.7")
    (folder / "report.txt").write_text("x")
    assert main(["predict", str(folder), "--bundle", str(bundle), "--out", str(out), "--device", "cpu"]) == 1
    found = entries(out)
    for entry in found.values():
        assert set(entry) == {
            *("case_id", "images", "status", "seconds", "output", "files", "reused", "flags", "volumes_ml"),
            *("image_sha256", "error", "remedy"),
        }
    assert {name: entry["status"] for name, entry in found.items()} == {
        "good": "ok",
        "damaged": "failed",
        "unknown": "out_of_domain",
        "report.txt": "skipped",
    }
    assert {name: entry["images"] for name, entry in found.items()} == {
        "good": [str(good)],
        "damaged": [str(damaged)],
        "unknown": [str(unknown)],
        "report.txt": [str(folder / "report.txt")],
    }
    assert "not an image" in found["damaged"]["error"]
    assert "no contrast: all voxels are 5" in found["unknown"]["error"]
    assert "--force" in found["unknown"]["remedy"]
    assert found["report.txt"]["error"] == "not an image (.txt)"
    assert found["good"]["error"] is None
    assert found["good"]["output"] == "good_seg.nii.gz"
    assert found["good"]["seconds"] > 0
    for name in ("damaged", "unknown", "report.txt"):
        assert found[name]["output"] is None
        assert not found[name]["files"]
        assert not found[name]["volumes_ml"]
    assert {case for case, _ in volumes(out)} == {"good"}


def test_what_made_the_results_is_recorded_with_versions(
    bundle: Path, tmp_path: Path, plant: Plant, save: Save
) -> None:
    scan, out = save(tmp_path / "scan.nii", plant()[0]), tmp_path / "out"
    command = ["predict", str(scan), "--bundle", str(bundle), "--out", str(out), "--device", "cpu", "--overlap", "0.25"]
    assert main(command) == 0
    found = record(out)
    del found["cases"], found["fingerprint"]
    torch_version = found.pop("torch")
    assert torch_version.partition("+")[0] == importlib.metadata.version("torch").partition("+")[0]
    assert found == {
        "droseg": __version__,
        "monai": importlib.metadata.version("monai"),
        "bundle": str(bundle),
        "structures": {"anterior": 3, "posterior": 7},
        "device": "cpu",
        "options": {"overlap": 0.25},
    }


def test_checksums_are_those_of_sha256sum(bundle: Path, tmp_path: Path, plant: Plant, save: Save) -> None:
    scan, out = save(tmp_path / "scan.nii.gz", plant()[0]), tmp_path / "out"
    predict_cases([InputCase("scan", (scan,))], bundle, out, options={"probabilities": True}, probabilities=True)
    entry, sidecar = entries(out)["scan"], json.loads((out / "scan_seg.json").read_text())
    assert entry["image_sha256"] == sidecar["image_sha256"] == sha256sum(scan)
    weights = sha256sum(bundle / "models" / "model.pt", bundle / "configs" / "inference.yaml")
    assert record(out)["fingerprint"] == sidecar["fingerprint"] == weights
    assert set(sidecar["files"]) == {"scan_seg.nii.gz", "scan_prob.nii.gz"}
    assert {name: sha256sum(out / name) for name in sidecar["files"]} == sidecar["files"]
    assert set(entry["files"]) == {*sidecar["files"], "scan_seg.json"}


def test_volumes_are_voxels_times_their_size_in_ml(bundle: Path, tmp_path: Path, plant: Plant, save: Save) -> None:
    scan, out = save(tmp_path / "scan.nii", plant()[0], ANISOTROPIC), tmp_path / "out"
    predict_cases([InputCase("scan", (scan,))], bundle, out)
    assert volumes(out) == {("scan", name): pytest.approx(volume, rel=1e-6) for name, volume in VOLUMES.items()}
    for found in (entries(out)["scan"], json.loads((out / "scan_seg.json").read_text())):
        assert found["volumes_ml"] == pytest.approx(VOLUMES, rel=1e-6)


def test_both_files_are_there_after_the_first_case(bundle: Path, tmp_path: Path, plant: Plant, save: Save) -> None:
    out = tmp_path / "out"
    cases = [InputCase(name, (save(tmp_path / f"{name}.nii", plant()[0]),)) for name in "abc"]
    seen: list[tuple[list[str], set[str]]] = []

    def look(result: CaseResult) -> None:
        seen.append((list(entries(out)), {case for case, _ in volumes(out)}))

    predict_cases(cases, bundle, out, on_result=look)
    assert seen[0] == (["a"], {"a"})
    assert (list(entries(out)), {case for case, _ in volumes(out)}) == (["a", "b", "c"], {"a", "b", "c"})


def test_the_json_beside_a_label_map_names_its_values_and_gives_no_time(
    bundle: Path, tmp_path: Path, plant: Plant, save: Save
) -> None:
    image, label = plant()
    scan, out = save(tmp_path / "scan.nii", np.where(label == 7, image, 0), ANISOTROPIC), tmp_path / "out"
    model = Predictor(bundle)
    predict_cases([InputCase("scan", (scan,))], model, out)
    sidecar = json.loads((out / "scan_seg.json").read_text())
    assert set(sidecar) == {
        *("case_id", "structures", "volumes_ml", "flags", "bundle", "fingerprint", "image_sha256", "droseg", "files")
    }
    assert sidecar["case_id"] == "scan"
    assert sidecar["structures"] == {"anterior": 3, "posterior": 7}
    assert sidecar["volumes_ml"]["anterior"] == 0
    message = "structure anterior is empty"
    assert sidecar["flags"] == [{"name": "empty_structure", "structure": "anterior", "message": message}]
    assert entries(out)["scan"]["flags"] == sidecar["flags"]
    assert sidecar["bundle"] == bundle.name
    assert str(tmp_path) not in (out / "scan_seg.json").read_text()
    predict_cases([InputCase("scan", (scan,))], model, tmp_path / "again")
    assert (tmp_path / "again" / "scan_seg.json").read_bytes() == (out / "scan_seg.json").read_bytes()


def test_earlier_cases_stay_and_a_mended_one_takes_the_place_of_its_failure(
    bundle: Path, tmp_path: Path, plant: Plant, save: Save
) -> None:
    image, label = plant()
    model, out, scan = Predictor(bundle), tmp_path / "out", tmp_path / "b.nii"
    flagged = save(tmp_path / "a.nii", np.where(label == 7, image, 0), ANISOTROPIC)
    scan.write_bytes(b"")
    cases = [InputCase("a", (flagged,)), InputCase("b", (scan,))]
    predict_cases(cases, model, out)
    first = entries(out)
    assert [first[name]["status"] for name in "ab"] == ["ok", "failed"]
    save(scan, image, ANISOTROPIC)
    predict_cases(cases[1:], model, out)
    assert entries(out)["a"] == first["a"]
    assert entries(out)["b"]["status"] == "ok"
    assert [case for case, _ in volumes(out)] == ["a", "a", "b", "b"]
    predict_cases(cases, model, out)
    resumed = entries(out)
    assert [resumed[name]["reused"] for name in "ab"] == [True, True]
    for key in ("flags", "volumes_ml", "seconds", "image_sha256", "output"):
        assert resumed["a"][key] == first["a"][key]
    assert set(resumed["a"]["files"]) == set(first["a"]["files"])


@pytest.mark.parametrize("content", [b"", b"[1, 2]", b'{"cases": [{"case_id": 3}, null]}', b"\xff\xfe{"])
def test_a_damaged_record_is_begun_anew(bundle: Path, tmp_path: Path, plant: Plant, save: Save, content: bytes) -> None:
    scan, out = save(tmp_path / "scan.nii", plant()[0]), tmp_path / "out"
    out.mkdir()
    (out / "predict.json").write_bytes(content)
    (result,) = predict_cases([InputCase("scan", (scan,))], bundle, out)
    assert result.status == "ok"
    assert list(entries(out)) == ["scan"]
