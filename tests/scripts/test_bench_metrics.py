"""The benchmark of the metrics runs, agrees with MONAI, and shows that memory stays small."""

import re
import subprocess
import sys

import nibabel as nib
import numpy as np
import pytest


@pytest.fixture
def save(tmp_path):
    def to_disk(name, labels):
        path = tmp_path / name
        nib.save(nib.Nifti1Image(labels.astype(np.uint8), np.diag([0.8, 0.8, 2.0, 1.0])), path)
        return str(path)

    return to_disk


def shells(shape, shift=0):
    """Eight nested boxes, as tissues of a head."""
    labels = np.zeros(shape, np.uint8)
    for i in range(8):
        box = [slice(size // 20 * (i + 1), size - size // 20 * (i + 1)) for size in shape]
        labels[tuple(box)] = i + 1
    return np.roll(labels, shift, axis=0)


def run(project_root, *arguments):
    command = [sys.executable, str(project_root / "scripts" / "bench_metrics.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def test_the_benchmark_compares_the_same_values(project_root, save):
    paths = [save("label.nii.gz", shells((40, 40, 40))), save("pred.nii.gz", shells((40, 40, 40), 2))]
    out = run(project_root, *paths, "--repeats", "1", "--percentiles", "90")
    assert "hd90_mm: droseg and MONAI agree to" in out
    assert float(re.search(r"agree to (\S+)", out)[1]) < 1e-5
    assert len(re.findall(r"ratio [\d.]+", out)) == 2


@pytest.mark.skipif(sys.platform != "linux", reason="skipped: reads the peak of a process from /proc")
@pytest.mark.parametrize("noise", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_eight_tissues_of_a_large_volume_need_less_than_a_gibibyte(project_root, save, noise):
    shape = (135, 189, 155)
    pred = np.random.default_rng(0).integers(0, 9, shape) if noise else shells(shape, 5)
    out = run(project_root, save("label.nii.gz", shells(shape)), save("pred.nii.gz", pred), "--memory-only")
    peak_mib = int(re.search(r"memory: (\d+) MiB", out)[1])
    assert 50 < peak_mib < 1024
