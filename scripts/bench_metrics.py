"""Time droseg's metrics beside MONAI's functions for the same ones, in one process, in turn.

python scripts/bench_metrics.py [LABEL PRED]     two label maps (NIfTI); default: two generated phantoms
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import torch
from monai.metrics import (
    DiceMetric,
    compute_average_surface_distance,
    compute_hausdorff_distance,
    compute_surface_dice,
)

from droseg.data import read_datalist
from droseg.data.phantoms import generate_phantoms
from droseg.metrics import case_metrics


def monai_metrics(pred: np.ndarray, label: np.ndarray, values: list[int], spacing_mm: tuple[float, ...]) -> None:
    """Compute Dice, HD, HD95, ASSD and NSD of each structure by MONAI."""
    one_hot = [torch.stack([torch.as_tensor(m == i) for i in (0, *values)])[None] for m in (pred, label)]
    DiceMetric(include_background=False, reduction="none")(*one_hot)
    for percentile in (None, 95):
        compute_hausdorff_distance(*one_hot, percentile=percentile, spacing=spacing_mm)
    compute_average_surface_distance(*one_hot, symmetric=True, spacing=spacing_mm)
    compute_surface_dice(*one_hot, [1.0] * len(values), spacing=spacing_mm)


def phantom_pair(folder: str) -> list[Path]:
    """Return the labels of two phantoms on one grid."""
    cases = read_datalist(generate_phantoms(folder, cases=12, seed=0)).section("training")
    labels = [case.label for case in cases if case.label is not None]
    shapes = [nib.load(path).shape for path in labels]
    return next([labels[i], labels[j]] for i in range(len(labels)) for j in range(i) if shapes[i] == shapes[j])


def seconds(function: Callable[[], object]) -> float:
    """Return the time of one call."""
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def main() -> None:
    """Print both medians and their ratio, pair by pair."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("paths", nargs="*", type=Path, metavar="LABEL PRED")
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        images = [nib.load(path) for path in (args.paths or phantom_pair(folder))]
        label, pred = (np.asarray(image.dataobj).astype(np.uint8) for image in images)
    spacing_mm = tuple(float(s) for s in images[0].header.get_zooms()[:3])
    values = [int(value) for value in np.unique(label) if value]
    structures = {value: str(value) for value in values}
    ours, theirs = [], []
    for _ in range(args.repeats):
        ours.append(seconds(lambda: case_metrics(pred, label, structures, spacing_mm)))
        theirs.append(seconds(lambda: monai_metrics(pred, label, values, spacing_mm)))
    ratio = statistics.median(b / a for a, b in zip(ours, theirs, strict=True))
    print(f"{'x'.join(map(str, label.shape))}, {len(values)} structures, median of {args.repeats} pairs")
    print(f"droseg {statistics.median(ours):.3f} s, MONAI {statistics.median(theirs):.3f} s, ratio {ratio:.1f}")


if __name__ == "__main__":
    main()
