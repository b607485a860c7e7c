"""The image, built and run as hospital IT does: no network, any user, read-only root, 64 MB of shared memory.

`DROSEG_CONTAINER_IMAGE` names an image that is there already (nothing is built then), `DROSEG_CONTAINER_ENGINE` the
command line of the engine, `DROSEG_CONTAINER_BUILD_ARGS` further arguments of the build.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest

pytestmark = pytest.mark.container

TAG = "droseg:test"
MAX_IMAGE_BYTES = 2.5e9
STRANGER = 54321
"""A user id that no image knows."""


@pytest.fixture(scope="session")
def engine() -> list[str]:
    """Return the command line of a container engine that answers, or skip."""
    named = os.environ.get("DROSEG_CONTAINER_ENGINE")
    for command in [shlex.split(named)] if named else [["docker"], ["podman"]]:
        if shutil.which(command[0]) and subprocess.run([*command, "info"], capture_output=True).returncode == 0:
            return command
    pytest.skip("skipped: no container engine answers (docker info, podman info)")


@pytest.fixture(scope="session")
def image(engine: list[str], project_root: Path) -> str:
    """Return the name of the image, built from the Dockerfile if none is named; skip without its base image."""
    if "DROSEG_CONTAINER_IMAGE" in os.environ:
        return os.environ["DROSEG_CONTAINER_IMAGE"]
    base = "python:3.11-slim-bookworm"
    here = subprocess.run([*engine, "image", "inspect", base], capture_output=True).returncode == 0
    if not here and subprocess.run([*engine, "pull", base], capture_output=True, timeout=600).returncode != 0:
        pytest.skip(f"skipped: {base} is not here and cannot be pulled")
    more = shlex.split(os.environ.get("DROSEG_CONTAINER_BUILD_ARGS", ""))
    subprocess.run([*engine, "build", *more, "-t", TAG, str(project_root)], check=True)
    return TAG


Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def run(engine: list[str], image: str, tmp_path: Path) -> Run:
    """Return a function that runs the image on `tmp_path/in`, with results in `tmp_path/out`."""
    (tmp_path / "in").mkdir()
    (tmp_path / "out").mkdir()
    (tmp_path / "out").chmod(0o777)

    def start(*words: str, options: tuple[str, ...] = (), user: int = STRANGER) -> subprocess.CompletedProcess[str]:
        hardened = ("--network", "none", "--read-only", "--tmpfs", "/tmp", "--cap-drop", "ALL", "-u", f"{user}:{user}")
        mounts = ("-v", f"{tmp_path / 'in'}:/input:ro", "-v", f"{tmp_path / 'out'}:/output")
        command = [*engine, "run", "--rm", *hardened, *mounts, *options, image, *words]
        return subprocess.run(command, capture_output=True, text=True, timeout=600)

    return start


def crop(path: Path) -> Path:
    """Write an image of the size of a hippocampus crop."""
    values = np.random.default_rng(0).normal(100, 20, (35, 50, 36)).astype(np.float32)
    nib.save(nib.Nifti1Image(values, np.diag([-1.0, 1.0, 1.0, 1.0])), path)
    return path


def record(tmp_path: Path) -> dict[str, dict[str, object]]:
    cases = json.loads((tmp_path / "out" / "predict.json").read_text())["cases"]
    return {case["case_id"]: case for case in cases}


def test_the_image_is_small_labeled_and_not_root(engine, image):
    inspected = json.loads(subprocess.check_output([*engine, "image", "inspect", image]))[0]
    assert inspected["Size"] < MAX_IMAGE_BYTES
    assert inspected["Config"]["User"].split(":")[0] not in ("", "0", "root")
    labels = inspected["Config"]["Labels"]
    assert labels["org.opencontainers.image.version"]
    assert "not a medical device" in labels["org.opencontainers.image.description"]


def test_a_stranger_segments_with_no_network_and_a_read_only_root(run, tmp_path):
    source = nib.load(crop(tmp_path / "in" / "scan.nii.gz"))
    done = run()
    assert done.returncode == 0, done.stderr
    result = nib.load(tmp_path / "out" / "scan_seg.nii.gz")
    assert result.shape == source.shape
    np.testing.assert_array_equal(result.affine, source.affine)
    assert set(np.unique(np.asanyarray(result.dataobj))) <= {0, 1, 2}
    assert (tmp_path / "out" / "scan_seg.nii.gz").stat().st_uid == STRANGER
    volumes = pd.read_csv(tmp_path / "out" / "volumes.csv")
    assert set(volumes["structure"]) == {"anterior", "posterior"}


def test_one_bad_file_costs_the_exit_code_and_no_other_case(run, tmp_path):
    crop(tmp_path / "in" / "good.nii.gz")
    (tmp_path / "in" / "report.nii.gz").write_bytes(b"%PDF-1.4")
    done = run()
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert {name: case["status"] for name, case in record(tmp_path).items()} == {"good": "ok", "report": "failed"}


def test_no_home_and_no_memory_for_sharing_are_no_problem(run, tmp_path):
    crop(tmp_path / "in" / "scan.nii.gz")
    done = run(options=("-e", "HOME=", "--shm-size", "64m"), user=0)
    assert done.returncode == 0, done.stderr


def test_an_empty_folder_prints_the_line_to_run(run):
    done = run()
    assert done.returncode == 2
    assert '-v "$PWD/in":/input:ro -v "$PWD/out":/output' in done.stderr


def test_a_read_only_output_is_said_with_the_line_to_run(run, tmp_path):
    crop(tmp_path / "in" / "scan.nii.gz")
    (tmp_path / "out").chmod(0o555)
    done = run()
    (tmp_path / "out").chmod(0o777)
    assert done.returncode == 1
    assert "/output" in done.stderr
    assert 'docker run --rm --network none -u "$(id -u):$(id -g)"' in done.stderr


def test_an_own_model_takes_the_place_of_the_shipped_one(run, project_root, tmp_path):
    crop(tmp_path / "in" / "scan.nii.gz")
    own = tmp_path / "run"
    shutil.copytree(project_root / "bundles" / "hippocampus_mri", own)
    config = own / "configs" / "inference.yaml"
    config.write_text(config.read_text().replace("{anterior: 1, posterior: 2}", "{anterior: 11, posterior: 12}"))
    done = run(options=("-v", f"{own}:/bundle:ro"))
    assert done.returncode == 0, done.stderr
    values = set(np.unique(np.asanyarray(nib.load(tmp_path / "out" / "scan_seg.nii.gz").dataobj)))
    assert values <= {0, 11, 12}
    assert values != {0}


@pytest.mark.parametrize("job", ["train", "evaluate", "report", "predict"])
def test_other_jobs_follow_the_name_of_the_image(run, job):
    done = run(job, "--help")
    assert done.returncode == 0, done.stderr
    assert f"usage: droseg {job}" in done.stdout


@pytest.mark.real_data
def test_real_nifti_and_dicom_are_segmented(run, real_data, tmp_path):
    shutil.copy(next((real_data / "hippocampus" / "images").glob("*.nii.gz")), tmp_path / "in")
    shutil.copytree(real_data / "dicom" / "hippocampus_crop", tmp_path / "in" / "series")
    for path in (tmp_path / "in").rglob("*"):
        path.chmod(0o755)
    done = run()
    assert done.returncode == 0, done.stderr
    results = list((tmp_path / "out").glob("*_seg.nii.gz"))
    assert len(results) == 2
    for path in results:
        assert {1, 2} <= set(np.unique(np.asanyarray(nib.load(path).dataobj)))
