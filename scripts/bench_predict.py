"""Peak memory and time of segmenting one large volume, each setting in a fresh process, side by side.

python scripts/bench_predict.py hippocampus_mri --shape 512 512 400 --spacing-mm 0.5 0.5 0.5
python scripts/bench_predict.py fetal_brain_mri --coarse 2.4 --set precision=fp32 --set precision=auto

The volume is a synthetic head in float32: an ellipsoid of smooth tissue with noise, and a rim of zeros around it. A
bundle without weights gets random ones: they cost the same. The memory is the peak of the whole process, with PyTorch
and the volume in it (ru_maxrss), and of the GPU if there is one.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
import yaml
from monai.bundle import ConfigParser
from scipy import ndimage

from droseg.bundles import find_bundle
from droseg.inference import Predictor

GB = 1e9


def head_volume(shape: tuple[int, int, int], rim: float, seed: int = 0) -> np.ndarray:
    """Return a head of smooth tissue and noise, float32; outside an ellipsoid in the box without its rim it is 0."""
    rng = np.random.default_rng(seed)
    coarse = rng.normal(size=[max(size // 32, 2) for size in shape]).astype(np.float32)
    image = ndimage.zoom(coarse, [size / small for size, small in zip(shape, coarse.shape, strict=True)], order=1)
    image *= 40.0
    image += 200.0
    for plane in image:
        plane += 10 * rng.standard_normal(plane.shape, dtype=np.float32)
    axes = [(np.arange(size) - (size - 1) / 2) / (size / 2 * (1 - rim)) for size in shape]
    outside = axes[0][:, None, None] ** 2 + axes[1][None, :, None] ** 2 + axes[2][None, None, :] ** 2 > 1
    image[outside] = 0
    return image


def save_head(path: str, shape: tuple[int, int, int], spacing_mm: tuple[float, ...], rim: float) -> None:
    """Write a head as NIfTI."""
    nib.save(nib.Nifti1Image(head_volume(shape, rim), np.diag([*spacing_mm, 1.0])), path)


def fresh_process(call: str) -> str:
    """Run a function of this file in a process of its own; return what it printed."""
    code = f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); import bench_predict; bench_predict.{call}"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout


def ready_bundle(name: str, folder: Path, coarse: float | None) -> Path:
    """Return a copy of a bundle with weights, random ones where it has none, and at another spacing if asked for."""
    source, bundle = find_bundle(name), folder / "bundle"
    shutil.copytree(source, bundle)
    path = bundle / "configs" / "inference.yaml"
    if coarse is not None:
        config = yaml.safe_load(path.read_text())
        config["spacing_mm"] = [coarse] * 3
        path.write_text(yaml.safe_dump(config, sort_keys=False))
    weights = bundle / "models" / "model.pt"
    if not weights.is_file():
        parser = ConfigParser()
        parser.read_config(path)
        torch.manual_seed(0)
        weights.parent.mkdir(exist_ok=True)
        torch.save(parser.get_parsed_content("network_def").state_dict(), weights)
    return bundle


def with_setting(bundle: Path, folder: Path, setting: dict[str, Any]) -> tuple[Path, dict[str, Any]]:
    """Return the bundle with the keys of a setting that are its own in its config, and those that are arguments."""
    own = {key: value for key, value in setting.items() if key in ("foreground_crop", "keep_largest", "sw_overlap")}
    if own:
        copy = folder / f"bundle_{abs(hash(str(own)))}"
        shutil.copytree(bundle, copy, dirs_exist_ok=True)
        path = copy / "configs" / "inference.yaml"
        path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | own, sort_keys=False))
        bundle = copy
    return bundle, {key: value for key, value in setting.items() if key not in own}


def measure(bundle: str, image: str, device: str, threads: int, options: dict[str, Any]) -> None:
    """Segment in this process, and print its times and peaks as JSON."""
    torch.set_num_threads(threads)
    peak = {"start": peak_bytes()}
    seconds: dict[str, float] = {}

    @contextlib.contextmanager
    def step(name: str) -> Any:
        started = time.perf_counter()
        yield
        seconds[name] = time.perf_counter() - started
        peak[name] = peak_bytes()

    with step("load"):
        predictor = Predictor(bundle, device, force=True, **options)
    windows = 0

    def count(_module: object, inputs: tuple[torch.Tensor, ...], _output: object) -> None:
        nonlocal windows
        windows += len(inputs[0])

    predictor.network.register_forward_hook(count)
    cpu = time.process_time()
    with step("read"):
        volume = predictor.read(image)
    with step("prepare"):
        prepared = predictor.prepare(volume)
    with step("segment"):
        segmentation = predictor.segment(prepared)
    seconds["cpu"] = time.process_time() - cpu
    gpu = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0
    grid = tuple(prepared.item["image"].shape[1:])
    summary = {"seconds": seconds, "peak": peak, "gpu": gpu, "windows": windows, "grid": grid}
    found = int((segmentation.labels > 0).sum())
    print(json.dumps(summary | {"shape": segmentation.labels.shape, "foreground": found}))


def peak_bytes() -> int:
    """Return the largest resident size that this process ever had."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def parsed(setting: str) -> dict[str, Any]:
    """Return {key: value} of `key=value,key=value`; the values are YAML."""
    pairs = (pair.split("=", 1) for pair in setting.split(",") if pair)
    return {key: yaml.safe_load(value) for key, value in pairs}


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", help="name of a shipped bundle, or the folder of one or of a run")
    parser.add_argument("--shape", nargs=3, type=int, default=(512, 512, 400), metavar="N")
    parser.add_argument("--spacing-mm", nargs=3, type=float, default=(0.5, 0.5, 0.5), metavar="MM")
    parser.add_argument("--rim", type=float, default=0.1, help="share of the box around the head that is 0")
    parser.add_argument("--coarse", type=float, metavar="MM", help="the network's grid, in place of the bundle's")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=1, help="of all settings in turn")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE,...",
        help="a setting to measure: arguments of Predictor, foreground_crop, sw_overlap; give it several times",
    )
    return parser.parse_args()


def main() -> None:
    args = arguments()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        bundle = ready_bundle(args.bundle, folder, args.coarse)
        image = folder / "head.nii"
        # In a process of its own: a child's ru_maxrss starts at what its parent held when it was started.
        fresh_process(f"save_head({str(image)!r}, {tuple(args.shape)}, {tuple(args.spacing_mm)}, {args.rim})")
        print(f"{args.bundle}, {' x '.join(map(str, args.shape))} voxels of {args.spacing_mm} mm, {args.device}")
        print(f"{'setting':32} {'grid':>15} {'windows':>8} {'wall s':>8} {'CPU s':>8} {'peak GB':>8} {'GPU GB':>7}")
        for setting in list(args.set or [""]) * args.rounds:
            own, options = with_setting(bundle, folder, parsed(setting))
            call = f"measure({str(own)!r}, {str(image)!r}, {args.device!r}, {args.threads}, {options!r})"
            code = (
                f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); from bench_predict import measure; "
            )
            done = subprocess.run([sys.executable, "-c", code + call], capture_output=True, text=True)
            if done.returncode:
                print(f"{setting or 'default':32} failed: {done.stderr.strip().splitlines()[-1]}")
                continue
            print(row(setting or "default", json.loads(done.stdout.splitlines()[-1])), flush=True)


def row(setting: str, found: dict[str, Any]) -> str:
    """Return one line of the table, and a second one with the steps."""
    seconds, peak = found["seconds"], found["peak"]
    wall = seconds["read"] + seconds["prepare"] + seconds["segment"]
    steps = ", ".join(
        f"{name} {seconds[name]:.1f} s (peak {peak[name] / GB:.2f} GB)" for name in peak if name != "start"
    )
    grid = "x".join(map(str, found["grid"]))
    return (
        f"{setting:32} {grid:>15} {found['windows']:8d} {wall:8.1f} {seconds['cpu']:8.1f} "
        f"{peak['segment'] / GB:8.2f} {found['gpu'] / GB:7.2f}\n{'':4}start {peak['start'] / GB:.2f} GB; {steps}"
    )


if __name__ == "__main__":
    main()
