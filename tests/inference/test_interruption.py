"""Real processes: cases that hang or crash in C code, and runs that are ended at any moment and started again."""

from __future__ import annotations

import gc
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import yaml

from droseg.cli import main
from droseg.inference import InputCase, OutputError, Predictor, predict_cases

MakeBundle = Callable[..., Path]
Plant = Callable[..., tuple[np.ndarray, np.ndarray]]
Save = Callable[..., Path]

# A transform that does what a damaged file or a faulty library does; the image's maximum says which.
TRAP = """
import re, signal, time

def read(item):
    kind = int(item["image"].max())
    if kind == 301:
        re.match(r"(a+)+$", "a" * 60 + "b")  # C code that never ends and holds the interpreter's lock
    if kind == 302:
        signal.raise_signal(signal.SIGSEGV)  # to this thread; os.kill would let it go on for a moment
    if kind == 303:
        time.sleep(0.15)  # a scan that takes long enough to be interrupted
    if kind == 304:
        raise MemoryError
    return item
"""
RECORDS = ("predict.json", "volumes.csv")
GOOD, HANGS, CRASHES, SLOW = 0, 301, 302, 303


@pytest.fixture
def trap_bundle(make_bundle: MakeBundle, tmp_path: Path, project_root: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    modules = tmp_path / "modules"
    modules.mkdir()
    (modules / "scan_trap.py").write_text(TRAP)
    monkeypatch.syspath_prepend(str(modules))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(modules), os.environ.get("PYTHONPATH", "")]))
    config = yaml.safe_load((project_root / "bundles/hippocampus_mri/configs/inference.yaml").read_text())
    trap = {"_target_": "monai.transforms.Lambda", "func": "$__import__('scan_trap').read"}
    return make_bundle(deterministic_transforms=[trap, *config["deterministic_transforms"]])


@pytest.fixture
def scan(tmp_path: Path, plant: Plant, save: Save) -> Callable[[str, int], Path]:
    def make(name: str, kind: int) -> Path:
        image = plant()[0]
        image[0, 0, 0] = max(kind, image[0, 0, 0])
        image[-1, -1, -1] = -sum(name.encode())  # each image its own checksum
        return save(tmp_path / "in" / f"{name}.nii.gz", image)

    return make


def contents(out: Path) -> dict[str, bytes]:
    """Return what a run must give again byte for byte: all but the record, which holds times."""
    files = (path for path in sorted(out.rglob("*")) if path.is_file() and path.name != "predict.json")
    return {str(path.relative_to(out)): path.read_bytes() for path in files}


def statuses(out: Path) -> dict[str, str]:
    return {entry["case_id"]: entry["status"] for entry in json.loads((out / "predict.json").read_text())["cases"]}


def command(folder: Path, bundle: Path, out: Path, *options: str) -> list[str]:
    return ["predict", str(folder), "--bundle", str(bundle), "--out", str(out), "--device", "cpu", *options]


def start(arguments: Sequence[str]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "droseg.cli", *arguments], stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )


def wait_for(path: Path, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 120
    while not path.exists():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline, f"{path} never came"
        time.sleep(0.01)


@pytest.mark.parametrize(
    ("beside", "limit_s"),
    [pytest.param(False, 10, id="one after the other"), pytest.param(True, 30, id="beside", marks=pytest.mark.slow)],
)
def test_a_hanging_and_a_crashing_case_cost_only_themselves(
    trap_bundle: Path, scan: Callable[[str, int], Path], tmp_path: Path, plant: Plant, beside: bool, limit_s: float
) -> None:
    kinds = {"a": GOOD, "b": HANGS, "c": GOOD, "d": CRASHES, "e": GOOD}
    cases = [InputCase(name, (scan(name, kind),)) for name, kind in kinds.items()]
    out = tmp_path / "out"
    results = {
        result.case_id: result
        for result in predict_cases(cases, trap_bundle, out, case_timeout_s=limit_s, beside=beside)
    }
    assert {name: result.status for name, result in results.items()} == {
        "a": "ok",
        "b": "failed",
        "c": "ok",
        "d": "failed",
        "e": "ok",
    }
    assert results["b"].error == f"still reading after {limit_s} s, so it was ended"
    assert results["b"].seconds == pytest.approx(limit_s, abs=5)
    assert "SIGSEGV" in str(results["d"].error)
    assert statuses(out) == {name: result.status for name, result in results.items()}
    alone = tmp_path / "alone"
    predict_cases([case for case in cases if kinds[case.case_id] == GOOD], trap_bundle, alone)
    assert contents(out) == contents(alone)


def test_an_error_in_the_child_keeps_its_kind(
    trap_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (trap_bundle / "models" / "model.pt").write_bytes(b"damaged")
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.nii").write_bytes(b"x")
    assert main(command(tmp_path / "in", trap_bundle, tmp_path / "out", "--case-timeout", "60")) == 3
    assert "model.pt: these weights cannot be read" in capsys.readouterr().err


@pytest.mark.parametrize("options", [(), ("--case-timeout", "60")], ids=["one process", "two processes"])
def test_sigterm_ends_the_run_with_143_and_the_same_command_goes_on(
    trap_bundle: Path, scan: Callable[[str, int], Path], tmp_path: Path, options: tuple[str, ...]
) -> None:
    names = [f"case_{index:02d}" for index in range(12)]
    scans = [scan(name, SLOW) for name in names]
    folder = scans[0].parent
    out = tmp_path / "out"
    process = start(command(folder, trap_bundle, out, *options))
    wait_for(out / "case_02_seg.nii.gz", process)
    process.send_signal(signal.SIGTERM)
    _, shown = process.communicate(timeout=30)
    assert process.returncode == 143, shown
    assert "stopped by SIGTERM" in shown
    assert "give the same command again" in shown
    assert "Traceback" not in shown
    done = statuses(out)
    assert 1 <= len(done) < len(names)
    assert set(done.values()) == {"ok"}
    assert not list(out.glob(".droseg-*"))
    written = {path: path.stat().st_mtime_ns for path in out.glob("*_seg.nii.gz")}
    assert main(command(folder, trap_bundle, out)) == 0
    assert all(path.stat().st_mtime_ns == before for path, before in written.items())  # not made again
    whole = tmp_path / "whole"
    assert main(command(folder, trap_bundle, whole)) == 0
    assert contents(out) == contents(whole)
    assert statuses(out) == dict.fromkeys(names, "ok")


@pytest.mark.parametrize("rounds", [1, pytest.param(12, marks=pytest.mark.slow)])
def test_kill_9_at_random_moments_changes_no_result_and_leaves_nothing(
    trap_bundle: Path, scan: Callable[[str, int], Path], tmp_path: Path, rounds: int
) -> None:
    names = [f"case_{index:02d}" for index in range(16)]
    scans = [scan(name, SLOW) for name in names]
    folder = scans[0].parent
    out, moments = tmp_path / "out", random.Random(7)
    for number in range(rounds):
        process = start(command(folder, trap_bundle, out, *(["--case-timeout", "60"] if number % 2 else [])))
        wait_for(out / f"{names[number]}_seg.nii.gz", process)
        time.sleep(moments.uniform(0, 0.4))
        process.kill()
        process.communicate()
    (out / ".droseg-0123.nii.gz").write_bytes(b"half a file")  # a kill just there is rare
    time.sleep(0.5)  # a child sees within 0.2 s that its parent is gone
    assert main(command(folder, trap_bundle, out)) == 0
    whole = tmp_path / "whole"
    assert main(command(folder, trap_bundle, whole)) == 0
    assert contents(out) == contents(whole)
    assert statuses(out) == dict.fromkeys(names, "ok")


def test_a_second_run_into_the_same_folder_is_refused_by_name(
    make_bundle: MakeBundle, tmp_path: Path, plant: Plant, save: Save
) -> None:
    predictor, out = Predictor(make_bundle()), tmp_path / "out"
    case = InputCase("a", (save(tmp_path / "a.nii", plant()[0]),))
    refused: list[str] = []

    def start_another(_: object) -> None:
        with pytest.raises(OutputError) as error:
            predict_cases([case], predictor, out)
        refused.append(str(error.value))

    predict_cases([case], predictor, out, on_result=start_another)
    assert f"process {os.getpid()} on " in refused[0]
    assert "own --out" in refused[0]
    assert not (out / ".droseg-lock").exists()
    assert predict_cases([case], predictor, out)[0].reused


FILL = """
import resource, sys
from droseg.cli import main
resource.setrlimit(resource.RLIMIT_FSIZE, (2_000_000, 2_000_000))
sys.exit(main(sys.argv[1:]))
"""


def test_a_limit_of_file_size_is_said_and_leaves_no_half_file(
    make_bundle: MakeBundle, tmp_path: Path, save: Save
) -> None:
    noise = np.random.default_rng(0).choice([0, 100, 200], size=(160, 160, 160)).astype(np.float32)
    noise[0, 0, 0] = 100
    # 160^3 labels of noise compress to about 1.3 MB; the probabilities are not needed to pass a limit of 1 MB.
    path, out = save(tmp_path / "noise.nii", noise), tmp_path / "out"
    fill = FILL.replace("2_000_000", "1_060_000")  # the trial write of 1 MiB still passes
    process = subprocess.run(
        [sys.executable, "-c", fill, *command(path, make_bundle(image=noise), out)], capture_output=True, text=True
    )
    assert process.returncode == 1, process.stderr
    assert "a file would be larger than is allowed here" in process.stderr
    assert "Traceback" not in process.stderr
    assert not [item.name for item in out.iterdir() if item.name not in (*RECORDS, "overview", "overview.html")]


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Path:
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1200k", "tmpfs", folder], capture_output=True)
    if mounted.returncode:
        pytest.skip("skipped: mounting a small disk needs root")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


def test_a_disk_that_fills_up_stops_the_run_and_keeps_what_is_whole(
    make_bundle: MakeBundle,
    tmp_path: Path,
    plant: Plant,
    save: Save,
    tiny_disk: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    noise = np.random.default_rng(0).choice([0, 100, 200], size=(160, 160, 160)).astype(np.float32)
    save(tmp_path / "in" / "a.nii.gz", plant()[0])
    save(tmp_path / "in" / "b.nii", noise)
    bundle = make_bundle()
    assert main(command(tmp_path / "in", bundle, tiny_disk, "--probabilities")) == 1
    assert "the disk (or the quota) is full" in capsys.readouterr().err
    results = [name for name in contents(tiny_disk) if not name.startswith("overview")]
    assert results == ["a_prob.nii.gz", "a_seg.json", "a_seg.nii.gz", "volumes.csv"]
    assert nib.load(tiny_disk / "a_seg.nii.gz").get_fdata().sum() > 0
    (tiny_disk / "ballast").write_bytes(bytes(600_000))
    assert main(command(tmp_path / "in", bundle, tiny_disk, "--probabilities")) == 1  # now seen before the first case
    assert "the disk (or the quota) is full" in capsys.readouterr().err
    gc.collect()  # nibabel leaves a file that could not be written to the garbage collector
    subprocess.run(["mount", "-o", "remount,ro", tiny_disk], check=True)
    assert main(command(tmp_path / "in", bundle, tiny_disk, "--probabilities")) == 1
    assert "read-only file system" in capsys.readouterr().err
