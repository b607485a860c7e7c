"""Measure hidden-subgroup discovery: how often it raises a false alarm, and how often it finds a planted subgroup.

python scripts/bench_discovery.py [--null 1000] [--planted 100] [--workers 2]

A cohort has 17 correlated features (site, slice thickness, extent, intensity, gestational age and the volumes that
follow it, noise), one to three scans per patient, and Dice values as segmentation gives them: skewed, alike within a
patient, a few total failures. In null cohorts the metric has nothing to do with any feature; then every confirmed
subgroup is a false alarm. Planted: cases with thick slices and small ventricles, 15 % of all, lose Dice or fail.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.stats import binomtest

from droseg.discovery import find_hidden_subgroups

VOLUMES = ("ventricles", "white_matter", "cortical_gm", "outer_csf", "deep_gm", "cerebellum", "brainstem")
SAME = 0.5  # a finding is the planted subgroup from this Jaccard index on


@dataclass(frozen=True)
class Cohort:
    """Features, the metric without and with a planted subgroup, and who is in it."""

    features: pd.DataFrame
    dice: NDArray[np.float64]
    patients: pd.Series
    known: pd.DataFrame
    hidden: NDArray[np.bool_]


@dataclass(frozen=True)
class Setting:
    """One row of a table: the kind of cohort."""

    name: str
    num_patients: int = 80
    metric: str = "dice"
    alike: float = 0.6  # share of the variance that the scans of a patient have in common
    missing: float = 0.0
    unequal_spread: bool = False
    loss: float = 0.0
    failures: float = 0.0


def random_cohort(rng: np.random.Generator, setting: Setting) -> Cohort:
    """Return a cohort of about 1.3 scans per patient."""
    scans = rng.choice([1, 2, 3], size=setting.num_patients, p=[0.75, 0.2, 0.05])
    patient = np.repeat(np.arange(setting.num_patients), scans)
    size, index = len(patient), pd.Index([f"case_{i:04d}" for i in range(len(patient))])
    site = rng.integers(3, size=setting.num_patients)[patient]
    age = rng.normal(size=setting.num_patients)[patient] + 0.1 * rng.normal(size=size)
    thickness = np.where(rng.random(size) < 0.85, 1.0 + site, rng.choice([1.0, 1.5, 2.0, 3.0, 4.0], size=size))
    own = 0.3 * rng.normal(size=(setting.num_patients, len(VOLUMES)))[patient]
    volumes = 20 * np.exp(0.35 * age[:, None] + own + 0.05 * rng.normal(size=(size, len(VOLUMES))))
    hidden_causes = rng.normal(size=(size, 3))
    noise = hidden_causes @ rng.normal(size=(3, 6)) + rng.normal(size=(size, 6))
    features = pd.DataFrame(
        {
            "slice_thickness_mm": thickness,
            "extent_foot_head_mm": np.round(128 + 20 * site + 8 * rng.normal(size=size)),
            "intensity_p99": np.exp(6 + 0.4 * site + 0.5 * rng.normal(size=size)),
            "slice_plane": rng.choice(["axial", "coronal", "sagittal"], p=[0.6, 0.3, 0.1], size=size),
            **{f"{name}_ml": volume for name, volume in zip(VOLUMES, volumes.T, strict=True)},
            **{f"tag_{number}": column for number, column in enumerate(noise.T)},
        },
        index=index,
    )
    thick = thickness > 1.75
    hidden = thick & (volumes[:, 0] <= np.quantile(volumes[thick, 0], min(1.0, 0.15 / thick.mean())))
    features = features.mask(rng.random(features.shape) < setting.missing)
    spread = np.where(hidden, 2.5, 1.0) if setting.unequal_spread else np.ones(size)
    dice = _dice(rng, patient, setting.alike, spread)
    dice = np.clip(dice - setting.loss * hidden, 0, 1)
    failed = hidden & (rng.random(size) < setting.failures)
    dice = np.where(failed, rng.uniform(0, 0.3, size=size), dice)
    known = pd.DataFrame({"protocol": np.array(["site_a", "site_b", "site_c"])[site]}, index=index)
    return Cohort(features, dice, pd.Series(patient, index=index).astype(str), known, hidden)


def _dice(
    rng: np.random.Generator, patient: NDArray[np.intp], alike: float, spread: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return Dice: median 0.88, 5th percentile about 0.67 without the failures, and 3 % failures below 0.3."""
    common, own = rng.normal(size=patient.max() + 1)[patient], rng.normal(size=len(patient))
    deviation = np.sqrt(alike) * common + np.sqrt(1 - alike) * own
    if (spread != 1).any():  # clipped on both sides alike, so that the mean stays what it is
        return np.asarray(np.clip(0.8 + 0.06 * spread * deviation, 0.6, 1))
    failed = rng.random(len(patient)) < 0.03
    return np.where(failed, rng.uniform(0, 0.3, size=len(patient)), 1 / (1 + np.exp(-2.0 - 0.8 * deviation)))


@dataclass(frozen=True)
class Outcome:
    """What one cohort gave: anything confirmed, the planted subgroup, a rule of nothing but noise; CPU time."""

    any_confirmed: bool
    hit: bool
    noise: bool
    seconds: float


def trial(setting: Setting, seed: int) -> Outcome:
    """Return what the search finds in one cohort."""
    cohort = random_cohort(np.random.default_rng([seed, setting.num_patients]), setting)
    values = pd.Series(cohort.dice, index=cohort.features.index)
    if setting.metric == "hd95_mm":
        values = 3 * np.exp(2.5 * (1 - values))
    start = time.process_time()
    found = find_hidden_subgroups(
        cohort.features,
        values,
        cohort.patients,
        cohort.known,
        higher_is_better=setting.metric == "dice",
        seed=seed,
    )
    seconds = time.process_time() - start
    confirmed = [subgroup for subgroup in found if subgroup.confirmed]
    insides = [values.index.isin(subgroup.case_ids) for subgroup in confirmed]
    overlaps = [(inside & cohort.hidden).sum() / (inside | cohort.hidden).sum() for inside in insides]
    noise = [all(c.feature.startswith(("tag_", "slice_plane")) for c in subgroup.conditions) for subgroup in confirmed]
    return Outcome(bool(confirmed), max(overlaps, default=0.0) >= SAME, any(noise), seconds)


def null_settings() -> Iterator[Setting]:
    """Give the kinds of cohorts in which there is nothing to find."""
    for num_patients in (30, 80, 250):
        yield Setting(f"Dice, {num_patients} patients", num_patients)
    yield Setting("HD95, 80 patients", metric="hd95_mm")
    yield Setting("Dice, scans of a patient alike (0.95)", alike=0.95)
    yield Setting("Dice, 10 % of the features missing", missing=0.1)
    for num_patients in (80, 250):
        yield Setting(f"same mean, 2.5 times the spread in a slice, {num_patients}", num_patients, unequal_spread=True)


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--null", type=int, default=1000, help="null cohorts per row (default: 1000)")
    parser.add_argument("--planted", type=int, default=100, help="cohorts per planted effect (default: 100)")
    parser.add_argument("--workers", type=int, default=1)
    args = parser.parse_args()
    with ProcessPoolExecutor(args.workers) as pool:
        print(f"False alarms: null cohorts with any confirmed subgroup, of {args.null} (95 % binomial interval)")
        for setting in null_settings():
            results = list(pool.map(partial(trial, setting), range(args.null), chunksize=10))
            alarms = sum(outcome.any_confirmed for outcome in results)
            low, high = binomtest(alarms, args.null).proportion_ci()
            milliseconds = 1000 * float(np.median([outcome.seconds for outcome in results]))
            rate = f"{alarms / args.null:6.1%} ({low:.1%} to {high:.1%})"
            print(f"  {setting.name:50} {rate:24} {milliseconds:5.0f} ms per cohort", flush=True)
        print(f"Planted subgroup of 15 % found (Jaccard index >= {SAME}) and confirmed, of {args.planted} cohorts")
        for loss, failures in ((0.05, 0), (0.1, 0), (0.15, 0), (0.2, 0), (0.3, 0), (0, 0.3), (0, 0.5), (0, 0.8)):
            name = f"Dice lower by {loss}" if loss else f"{failures:.0%} of its cases fail"
            cells, noise = [], 0
            for num_patients in (50, 80, 150, 300):
                setting = Setting(name, num_patients, loss=loss, failures=failures)
                results = list(pool.map(partial(trial, setting), range(args.planted), chunksize=5))
                cells.append(f"{num_patients} patients: {sum(outcome.hit for outcome in results) / args.planted:4.0%}")
                noise += sum(outcome.noise for outcome in results)
            print(f"  {name:24} {'   '.join(cells)}   rules of noise alone: {noise}", flush=True)


if __name__ == "__main__":
    main()
