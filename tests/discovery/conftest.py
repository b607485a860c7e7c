"""Cohorts of generated features and Dice values: skewed, with failures, several scans per patient."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pandas as pd
import pytest


@dataclass
class Cohort:
    features: pd.DataFrame
    dice: pd.Series
    patients: pd.Series
    known: pd.DataFrame
    hidden: pd.Series  # thick slices and small ventricles

    def planted(self, loss: float) -> pd.Series:
        """Return the Dice values with the hidden slice worse by `loss`."""
        return (self.dice - loss * self.hidden).clip(0, 1)


def random_cohort(seed: int, num_patients: int = 80) -> Cohort:
    rng = np.random.default_rng([2024, seed])
    scans = rng.choice([1, 2, 3], size=num_patients, p=[0.75, 0.2, 0.05])
    patient = np.repeat(np.arange(num_patients), scans)
    size = len(patient)
    site, age = rng.integers(3, size=num_patients)[patient], rng.normal(size=num_patients)[patient]
    ids = [f"c{i:03d}" for i in range(size)]
    features = pd.DataFrame(
        {
            "slice_thickness_mm": np.where(rng.random(size) < 0.8, 1.0 + site, rng.choice([1.0, 1.5, 4.0], size=size)),
            "ventricles_ml": 12 * np.exp(0.4 * age + 0.2 * rng.normal(size=size)),
            "white_matter_ml": 120 * np.exp(0.3 * age + 0.1 * rng.normal(size=size)),
            "intensity_p99": np.exp(6 + 0.4 * site + 0.3 * rng.normal(size=size)),
            "tilt_deg": np.where(rng.random(size) < 0.6, 0.0, rng.uniform(5, 20, size=size)),
            "slice_plane": rng.choice(["axial", "coronal", "sagittal"], size=size),
        },
        index=ids,
    )
    thick = features["slice_thickness_mm"] > 1.8
    small = features["ventricles_ml"] <= features["ventricles_ml"][thick].quantile(0.3)
    logit = 2.2 + 0.5 * rng.normal(size=num_patients)[patient] + 0.4 * rng.normal(size=size)
    dice = np.where(rng.random(size) < 0.03, rng.uniform(0, 0.3, size=size), 1 / (1 + np.exp(-logit)))
    return Cohort(
        features=features,
        dice=pd.Series(dice, index=ids),
        patients=pd.Series([f"p{p:03d}" for p in patient], index=ids),
        known=pd.DataFrame({"protocol": np.array(["site_a", "site_b", "site_c"])[site]}, index=ids),
        hidden=thick & small,
    )


@pytest.fixture
def make_cohort() -> Callable[..., Cohort]:
    return random_cohort
