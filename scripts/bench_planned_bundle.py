"""Does a planned bundle reach a handwritten one's Dice at the same budget?

    python scripts/bench_planned_bundle.py --datalist data/hippocampus/datalist.json --out runs/planned

Plans a bundle for the datalist (`droseg bundle new`), trains it and the handwritten one (`--handwritten`), scores both
on the testing section (`droseg evaluate`) and prints the difference of the mean Dice, paired by case, with a 95 %
bootstrap interval over the patients (none below 5 of them). The exit code is 1 if the planned bundle falls behind by
more than `--within`.

The same budget means, by default, the same voxels: epochs, steps and patches of the handwritten bundle decide how many
voxels pass through the network, and the planned one, whose patch and batch may be of other sizes, gets as many (steps =
voxels / (batch x patch)), in as many epochs. That is about the same computing time. With `--same steps` both make the
same number of updates; a bundle with larger batches then sees more and takes longer. Each keeps the warm-up that it
says itself; where a training has fewer steps than its bundle says, the warm-up is shorter by the same factor. Learning
rate and everything else that a plan does not decide are those of the bundle it follows, which is the handwritten one by
default. Where the datalist has other channels or structures than the handwritten bundle, this is told to it.

Started again with the same --out it goes on where it was: trainings continue from their checkpoints, what is scored is
not scored again. A smoke test on phantoms, two minutes on a CPU:

    python scripts/bench_planned_bundle.py --datalist D --out OUT --epochs 1 --batches-per-epoch 2
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml

from droseg.bundles import find_bundle
from droseg.inference.shared_choices import with_shared
from droseg.report.subgroups import bootstrap_means


def droseg(*words: str | Path) -> None:
    """Run one job of the command line; end with its exit code if it fails."""
    print("$ droseg", *words, flush=True)
    done = subprocess.run([sys.executable, "-m", "droseg.cli", *map(str, words)], check=False)
    if done.returncode:
        raise SystemExit(done.returncode)


def training_config(bundle: Path) -> dict[str, Any]:
    """Return what a bundle's training says."""
    configs = bundle / "configs"
    return with_shared(yaml.safe_load((configs / "train.yaml").read_text()), configs)


def voxels_per_step(config: dict[str, Any]) -> int:
    """Return how many voxels one batch holds."""
    return int(config["batch_size"] * np.prod(config["roi_size"]))


def warmup_steps(config: dict[str, Any], steps: int) -> int:
    """Return the warm-up of a bundle, shortened with a training that is shorter than the bundle says."""
    share = min(1.0, steps / (config["epochs"] * config["batches_per_epoch"]))
    return max(1, round(config["warmup_steps"] * share))


def scores(table: Path) -> pd.Series:
    """Return the mean Dice over structures of each case of each patient; a missed structure counts as 0."""
    rows = pd.read_csv(table, dtype={"case_id": str, "patient_id": str})
    return rows.groupby(["case_id", "patient_id"])["dice"].mean()


def interval(difference: pd.Series) -> tuple[float, float]:
    """Return the 95 % bootstrap interval of the mean over patients; NaN for fewer than 5 of them."""
    patients = difference.index.get_level_values("patient_id").to_numpy(dtype=object)
    low, high = bootstrap_means(difference.to_numpy()[:, None], patients, 10_000, np.random.default_rng(0))[0]
    return float(low), float(high)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--datalist", required=True, type=Path)
    parser.add_argument("--data-root", type=Path, help="folder that the datalist's relative paths start from")
    parser.add_argument("--out", required=True, type=Path)
    parser.add_argument("--handwritten", default="hippocampus_mri", help="the bundle to compare with, and to follow")
    parser.add_argument("--memory-gb", help="of the plan (default: as `droseg bundle new` finds it)")
    parser.add_argument("--same", choices=("voxels", "steps"), default="voxels", help="what the two trainings share")
    parser.add_argument("--epochs", type=int, help="of both (default: the handwritten bundle's)")
    parser.add_argument("--batches-per-epoch", type=int, help="of the handwritten bundle (default: its own)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--within", type=float, default=0.01, help="Dice that the planned one may fall behind")
    parser.add_argument("options", nargs="*", metavar="key=value", help="overrides of both trainings")
    args = parser.parse_args()
    data = ["--datalist", args.datalist.resolve()]
    data += ["--data-root", args.data_root.resolve()] if args.data_root else []
    args.out.mkdir(parents=True, exist_ok=True)

    planned, handwritten = args.out / "planned_bundle", find_bundle(args.handwritten)
    if not (planned / "plan.json").is_file():
        memory = ["--memory-gb", args.memory_gb] if args.memory_gb else []
        droseg("bundle", "new", planned, *data, "--like", args.handwritten, *memory)
    theirs, ours = training_config(handwritten), training_config(planned)
    epochs = args.epochs or theirs["epochs"]
    batches = {"handwritten": args.batches_per_epoch or theirs["batches_per_epoch"]}
    ratio = voxels_per_step(theirs) / voxels_per_step(ours) if args.same == "voxels" else 1.0
    batches["planned"] = max(1, round(batches["handwritten"] * ratio))

    dice = {}
    for name, bundle, config in (("handwritten", handwritten, theirs), ("planned", planned, ours)):
        run, table = args.out / f"{name}_seed{args.seed}", args.out / f"{name}_seed{args.seed}_scores"
        steps = epochs * batches[name]
        patches = f"{config['batch_size']} patches of {config['roi_size']}"
        total = f"{steps * voxels_per_step(config):.3g} voxels"
        print(f"\n{name}: {epochs} epochs of {batches[name]} steps, {patches} each: {total}", flush=True)
        budget = [f"epochs={epochs}", f"batches_per_epoch={batches[name]}", f"seed={args.seed}"]
        budget += [f"warmup_steps={warmup_steps(config, steps)}"]
        # The planned one has those of the datalist, which may be others than those that the handwritten one is for.
        budget += [f"{key}={json.dumps(ours[key])}" for key in ("channels", "structures") if config[key] != ours[key]]
        droseg("train", bundle, *data, "--out", run, *budget, *args.options)
        if not (table / "case_metrics.csv").is_file():
            droseg("evaluate", *data, "--bundle", run, "--out", table)
        dice[name] = scores(table / "case_metrics.csv")

    pairs = pd.DataFrame(dice)
    difference = pairs["planned"] - pairs["handwritten"]
    low, high = interval(difference)
    print(f"\nmean Dice of {len(pairs)} testing cases: handwritten {pairs['handwritten'].mean():.4f}, ", end="")
    print(f"planned {pairs['planned'].mean():.4f}")
    span = f"[{low:+.4f}, {high:+.4f}]" if np.isfinite(low) else "(no interval: fewer than 5 patients)"
    print(f"planned - handwritten: {difference.mean():+.4f} {span}, same {args.same}")
    reached = difference.mean() >= -args.within
    said = "within" if reached else "NOT within"
    print(f"{said} {args.within:g}; one training of each, so the luck of training is part of it")
    return int(not reached)


if __name__ == "__main__":
    sys.exit(main())
