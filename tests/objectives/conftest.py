"""A small cohort with two group axes, and objectives on it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from droseg.objectives import Objective, build_objective

CASES = tuple("abcdefgh")
ANATOMY = ("typical", "typical", "typical", "rare", "typical", "rare", "typical", "typical")
SITE = ("x", "x", "y", "y", "y", "x", "x", "y")
GROUPS = tuple({"anatomy": a, "site": s} for a, s in zip(ANATOMY, SITE, strict=True))


def make(name: str, *, batch_size: int = 4, num_batches: int = 5, **options: Any) -> Objective:
    """Build an objective; options that are no argument of `build_objective` or hardness are its own."""
    shared = {"seed", "rank", "world_size", "groups", "axes", "initial_loss", "momentum", "rivals"}
    given = {key: options.pop(key) for key in list(options) if key in shared}
    given.setdefault("rivals", {name: options})
    return build_objective(name, CASES, batch_size=batch_size, num_batches=num_batches, **{"groups": GROUPS, **given})


@pytest.fixture
def objective_of() -> Callable[..., Objective]:
    return make
