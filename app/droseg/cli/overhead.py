"""`droseg overhead`: what the robust sampling costs for a number of cases and a batch size, measured here and now."""

from __future__ import annotations

import argparse
import logging
import statistics
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from droseg.errors import InputError

MAX_STEPS = 500
"""Steps that are timed for each variant."""
VARIANTS: dict[str, dict[str, Any]] = {
    "kl, target_ess": {"target_ess": 0.5},
    "+ mix, cap, max_age": {"target_ess": 0.5, "mix": 0.1, "cap": 0.95, "max_age": 10},
    "chi2, max_age": {"divergence": "chi2", "target_ess": 0.5, "max_age": 10},
}
"""The bundles' default, its guards, and another divergence."""


@dataclass(frozen=True)
class Cost:
    """What one variant of the sampling takes."""

    draw_ms: float
    """To draw a batch and to take it up in the step."""
    update_ms: float
    """To feed its losses back."""
    epoch_ms: float
    """Once per epoch: solving beta, quantiles, effective sample size, risks."""
    memory_bytes: int
    """Case names excluded."""

    def per_step_ms(self, num_batches: int) -> float:
        """Return all of it, per step of an epoch of so many batches."""
        return self.draw_ms + self.update_ms + self.epoch_ms / num_batches


def register(subparsers: argparse._SubParsersAction) -> None:
    """Add `droseg overhead`."""
    parser = subparsers.add_parser(
        "overhead",
        help="time and memory that the robust sampling adds",
        description="Measure on this machine what hardness-weighted sampling adds to each training step and epoch, and "
        "the memory it keeps, for your number of training cases. Losses are simulated; no network is trained.",
    )
    parser.add_argument("--num-cases", required=True, type=int, metavar="N", help="training cases")
    parser.add_argument("--batch-size", required=True, type=int, metavar="B", help="cases per batch, over all ranks")
    parser.add_argument("--num-batches", type=int, metavar="K", help="batches per epoch (default: N / B, one pass)")
    parser.add_argument("--step-ms", type=float, metavar="MS", help="time of one of your training steps, to compare")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print the table."""
    if args.num_cases < 1 or args.batch_size < 1:
        raise InputError(f"--num-cases is {args.num_cases}, --batch-size is {args.batch_size}; both must be >= 1.")
    if args.step_ms is not None and not 0.0 < args.step_ms < float("inf"):
        raise InputError(f"--step-ms is {args.step_ms}; it is the time of a training step in ms, > 0.")
    num_batches = -(-args.num_cases // args.batch_size) if args.num_batches is None else args.num_batches
    if num_batches < 1:
        raise InputError(f"--num-batches is {num_batches}; it must be >= 1.")
    logger = logging.getLogger("droseg")
    level = logger.level
    logger.setLevel(logging.ERROR)  # nobody wants to be warned of simulated losses
    try:
        measure(args.num_cases, args.batch_size, 5, {})  # the first calls of a process are slow
        costs = {name: measure(args.num_cases, args.batch_size, num_batches, VARIANTS[name]) for name in VARIANTS}
    finally:
        logger.setLevel(level)
    print(f"{args.num_cases} cases, batches of {args.batch_size}, {num_batches} batches per epoch\n")
    print(table(costs, args.num_cases, num_batches, args.step_ms))
    return 0


def measure(num_cases: int, batch_size: int, num_batches: int, options: Mapping[str, Any]) -> Cost:
    """Return the cost of one variant: medians over up to 500 steps of an epoch, all cases visited before."""
    import numpy as np
    import torch
    from ignite.engine import Engine

    from droseg.handlers import HardnessHandler
    from droseg.objectives import build_objective

    case_ids = [str(index) for index in range(num_cases)]
    objective = build_objective("hardness", case_ids, batch_size=batch_size, num_batches=num_batches, **options)
    rng = np.random.default_rng(0)
    objective.update(range(num_cases), rng.gamma(4.0, 0.1, num_cases).tolist())  # type: ignore[arg-type]
    engine: Any = Engine(lambda engine, batch: None)
    handler = HardnessHandler(objective)
    handler.epoch_completed(engine)  # the first solve; what follows is an epoch in the middle of a training
    draw_ms, update_ms = [], []
    batches, first_ms = iter(objective.sampler), 0.0
    for step in range(min(num_batches, MAX_STEPS)):
        losses = rng.gamma(4.0, 0.1, batch_size)
        start = time.perf_counter()
        batch = next(batches)
        objective.begin_batch(batch)
        objective.weights(batch, torch.from_numpy(losses))
        middle = time.perf_counter()
        objective.update(batch, losses.tolist())
        end = time.perf_counter()
        draw_ms.append(1e3 * (middle - start))
        update_ms.append(1e3 * (end - middle))
        if step == 0:
            first_ms = draw_ms[0]
    start = time.perf_counter()
    handler.epoch_completed(engine)
    # The first draw of an epoch also fits what is fitted once per epoch.
    epoch_ms = 1e3 * (time.perf_counter() - start) + max(0.0, first_ms - statistics.median(draw_ms))
    memory: int = objective.sampler.nbytes  # type: ignore[attr-defined]
    return Cost(statistics.median(draw_ms), statistics.median(update_ms), epoch_ms, memory)


def table(costs: Mapping[str, Cost], num_cases: int, num_batches: int, step_ms: float | None) -> str:
    """Return the costs as lines of text, one column per variant."""
    rows = [
        ("", list(costs)),
        ("draw, ms per step", [f"{cost.draw_ms:.3f}" for cost in costs.values()]),
        ("update, ms per step", [f"{cost.update_ms:.3f}" for cost in costs.values()]),
        ("once per epoch, ms", [f"{cost.epoch_ms:.2f}" for cost in costs.values()]),
        ("all of it, ms per step", [f"{cost.per_step_ms(num_batches):.3f}" for cost in costs.values()]),
    ]
    if step_ms is not None:
        shares = [f"{100.0 * cost.per_step_ms(num_batches) / step_ms:.3f} %" for cost in costs.values()]
        rows.append((f"of a step of {step_ms:g} ms", shares))
    rows += [
        ("memory, MB", [f"{cost.memory_bytes / 1e6:.3f}" for cost in costs.values()]),
        ("memory, bytes per case", [f"{cost.memory_bytes / num_cases:.1f}" for cost in costs.values()]),
    ]
    return "\n".join(f"{name:<24}" + "".join(f"{value:>21}" for value in values) for name, values in rows)
