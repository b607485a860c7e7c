"""Time droseg's metrics beside MONAI's functions for the same ones, in one process, in turn; compare their values.

python scripts/bench_metrics.py [LABEL PRED]     two label maps (NIfTI); default: two generated phantoms
"""

from __future__ import annotations

import argparse
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np

from droseg.metrics import EXTRA_METRICS, METRICS, case_metrics

MiB = 1024**2


def monai_metrics(
    pred: np.ndarray, label: np.ndarray, values: list[int], spacing_mm: tuple[float, ...], more: dict[str, float]
) -> dict[str, np.ndarray]:
    """Return Dice, HD, HD95, ASSD and NSD of each structure by MONAI, and `more`: name -> percentile."""
    import torch
    from monai.metrics import (
        DiceMetric,
        compute_average_surface_distance,
        compute_hausdorff_distance,
        compute_surface_dice,
    )

    one_hot = [torch.stack([torch.as_tensor(m == i) for i in (0, *values)])[None] for m in (pred, label)]
    found = {"dice": DiceMetric(include_background=False, reduction="none")(*one_hot)}
    for name, percentile in {"hd_mm": None, "hd95_mm": 95, **more}.items():
        found[name] = compute_hausdorff_distance(*one_hot, percentile=percentile, spacing=spacing_mm)
    found["assd_mm"] = compute_average_surface_distance(*one_hot, symmetric=True, spacing=spacing_mm)
    found["nsd"] = compute_surface_dice(*one_hot, [1.0] * len(values), spacing=spacing_mm)
    return {name: value[0].numpy() for name, value in found.items()}


def phantom_pair(folder: str) -> list[Path]:
    """Return the labels of two phantoms on one grid."""
    from droseg.data import read_datalist
    from droseg.data.phantoms import generate_phantoms

    cases = read_datalist(generate_phantoms(folder, cases=12, seed=0)).section("training")
    labels = [case.label for case in cases if case.label is not None]
    shapes = [nib.load(path).shape for path in labels]
    return next([labels[i], labels[j]] for i in range(len(labels)) for j in range(i) if shapes[i] == shapes[j])


def read_pair(paths: list[Path]) -> tuple[np.ndarray, np.ndarray, tuple[float, ...]]:
    """Return label, prediction and spacing."""
    images = [nib.load(path) for path in paths]
    label, pred = (np.asarray(image.dataobj).astype(np.uint8) for image in images)
    return label, pred, tuple(float(s) for s in images[0].header.get_zooms()[:3])


def seconds(function: Callable[[], object]) -> float:
    """Return the time of one call."""
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def peak_memory_bytes() -> int:
    """Return the most memory that this process has held."""
    status = Path("/proc/self/status")
    if status.exists():  # ru_maxrss would start at the peak of the process that started this one
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def print_memory(paths: list[Path], metrics: list[str]) -> None:
    """Print the peak of this process, which imports no torch, and how much of it the metrics of one case took."""
    label, pred, spacing_mm = read_pair(paths)
    structures = {int(value): str(value) for value in np.unique(label) if value}
    before = peak_memory_bytes()
    case_metrics(pred, label, structures, spacing_mm, metrics=metrics)
    peak = peak_memory_bytes()
    print(f"memory: {peak / MiB:.0f} MiB at most, {(peak - before) / MiB:.0f} MiB of them for the metrics")


def other_metrics(pred: np.ndarray, label: np.ndarray, values: list[int], spacing_mm: tuple[float, ...]) -> None:
    """Compute what MONAI has no function for the plain way: volume error, and components by scipy."""
    from scipy import ndimage

    for value in values:
        masks = [m == value for m in (pred, label)]
        _ = (np.count_nonzero(masks[0]) - np.count_nonzero(masks[1])) * np.prod(spacing_mm) / 1000
        for mask in masks:
            ndimage.label(mask, np.ones((3, 3, 3)))


def compare(paths: list[Path], repeats: int, more: dict[str, float], betti: list[str]) -> None:
    """Print medians and ratios, turn by turn, and the largest disagreement."""
    label, pred, spacing_mm = read_pair(paths)
    values = [int(value) for value in np.unique(label) if value]
    structures = {value: str(value) for value in values}
    same, everything = [*METRICS, *more], [*METRICS, *more, *EXTRA_METRICS]
    table = case_metrics(pred, label, structures, spacing_mm, metrics=same)
    theirs = monai_metrics(pred, label, values, spacing_mm, more)
    apart = max(np.nanmax(np.abs(table[m] - theirs[m]) / np.maximum(np.abs(theirs[m]), 1e-12)) for m in same)
    times: dict[str, list[float]] = {name: [] for name in ("monai", "other", "same", "everything", "betti")}
    for _ in range(repeats):
        times["same"].append(seconds(lambda: case_metrics(pred, label, structures, spacing_mm, metrics=same)))
        times["monai"].append(seconds(lambda: monai_metrics(pred, label, values, spacing_mm, more)))
        times["everything"].append(
            seconds(lambda: case_metrics(pred, label, structures, spacing_mm, metrics=everything))
        )
        times["other"].append(seconds(lambda: other_metrics(pred, label, values, spacing_mm)))
        if betti:
            times["betti"].append(seconds(lambda: case_metrics(pred, label, structures, spacing_mm, metrics=betti)))
    both = [monai + other for monai, other in zip(times["monai"], times["other"], strict=True)]
    print(f"{'x'.join(map(str, label.shape))}, {len(values)} structures, medians of {repeats} turns")
    print(f"{', '.join(same)}: droseg and MONAI agree to {apart:.1e}")
    print_row("  MONAI", times["monai"], "droseg", times["same"])
    print(f"these and {', '.join(EXTRA_METRICS)}")
    print_row("  MONAI and scipy.ndimage.label", both, "droseg", times["everything"])
    if betti:
        print(f"{', '.join(betti)} alone: droseg {statistics.median(times['betti']):.3f} s")


def print_row(name: str, theirs: list[float], own_name: str, ours: list[float]) -> None:
    """Print two medians and the median of the paired ratios."""
    ratio = statistics.median(a / b for a, b in zip(theirs, ours, strict=True))
    print(f"{name} {statistics.median(theirs):.3f} s, {own_name} {statistics.median(ours):.3f} s, ratio {ratio:.1f}")


def main() -> None:
    """Compare, and measure the memory in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("paths", nargs="*", type=Path, metavar="LABEL PRED")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--percentiles", type=float, nargs="*", default=[], metavar="P", help="on both sides")
    parser.add_argument("--betti", action="store_true", help="also time Betti errors, by droseg alone")
    parser.add_argument("--memory-only", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    more = {f"hd{percentile:g}_mm": percentile for percentile in args.percentiles}
    betti = ["betti0_error", "betti1_error", "betti2_error"] if args.betti else []
    everything = [*METRICS, *more, *EXTRA_METRICS, *betti]
    with tempfile.TemporaryDirectory() as folder:
        paths = args.paths or phantom_pair(folder)
        if args.memory_only:
            print_memory(paths, everything)
            return
        compare(paths, args.repeats, more, betti)
        command = [sys.executable, __file__, *map(str, paths), "--memory-only"]
        command += ["--percentiles", *map(str, args.percentiles), *(["--betti"] if args.betti else [])]
        subprocess.run(command, check=True)


if __name__ == "__main__":
    main()
