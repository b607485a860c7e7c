"""Time and memory of hardness-weighted draws from 1e3 to 1e6 cases, beside the direct O(N) draw, in one run.

python scripts/bench_sampling.py [--batch-size 2] [--sizes 1000 1000000] [--rounds 20]

Ours is one step of training: the next batch of the sampler, then the update of its losses. The direct draw is what the
authors' released code does: softmax over all cases, probabilities floored at 1e-4 / N, numpy's choice without
replacement, two values written back. The rounds go through all sizes in turn, so that a busy machine slows all alike.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import sys
import time
import tracemalloc
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import torch

from droseg.sampling import (
    ChiSquare,
    CVaR,
    HardnessWeightedBatchSampler,
    LossHistory,
    effective_sample_size,
    solve_beta,
    solve_beta_for_kl,
)

BETA = 10.0
VARIANTS: dict[str, dict[str, Any]] = {
    "kl": {},
    "mix": {"mix": 0.1},
    "cap, trim, mix": {"cap": 0.95, "trim": 0.01, "mix": 0.1},
    "max_age": {"max_age": 5},
    "chi2, max_age": {"divergence": "chi2", "rho": 0.5, "max_age": 5},
    "cvar, mix, max_age": {"divergence": "cvar", "alpha": 0.5, "mix": 0.1, "max_age": 5},
}


def milliseconds(function: Callable[[], object]) -> float:
    start = time.perf_counter()
    function()
    return 1e3 * (time.perf_counter() - start)


def batches_of(sampler: HardnessWeightedBatchSampler) -> Iterator[list[int]]:
    """Yield batches without end."""
    return itertools.chain.from_iterable(itertools.repeat(sampler))


def visited_history(size: int, case_ids: list[str]) -> LossHistory:
    """Return a history with losses as in the middle of a training: Dice plus cross entropy, skewed."""
    history = LossHistory(case_ids[:size])
    history.replace(np.arange(size), np.random.default_rng(size).gamma(4.0, 0.1, size))
    history.visits[:] = 1
    return history


class Ours:
    """One step of training as the sampler sees it."""

    def __init__(self, size: int, case_ids: list[str], batch_size: int, **options: Any) -> None:
        self.history = visited_history(size, case_ids)
        self.sampler = HardnessWeightedBatchSampler(self.history, BETA, batch_size, num_batches=size, **options)
        self.batches = batches_of(self.sampler)
        self.losses = np.random.default_rng(1).gamma(4.0, 0.1, batch_size).tolist()

    def step(self) -> None:
        self.history.update(next(self.batches), self.losses)


class Direct:
    """The same step with a softmax over all cases and numpy's choice."""

    def __init__(self, size: int, case_ids: list[str], batch_size: int) -> None:
        self.loss = visited_history(size, case_ids).loss
        self.batch_size, self.rng = batch_size, np.random.RandomState(0)

    def step(self) -> None:
        q = np.exp(BETA * (self.loss - self.loss.max()))
        q /= q.sum()
        floor = 1e-4 / len(q)
        q[q <= floor] = floor
        rows = self.rng.choice(len(q), self.batch_size, p=q / q.sum(), replace=False)
        self.loss[rows] = 0.4


def compare(sizes: list[int], case_ids: list[str], batch_size: int, rounds: int) -> None:
    ours = {size: Ours(size, case_ids, batch_size) for size in sizes}
    direct = {size: Direct(size, case_ids, batch_size) for size in sizes}
    times: dict[tuple[str, int], list[float]] = {(kind, size): [] for kind in ("ours", "direct") for size in sizes}
    for _ in range(rounds):
        for size in sizes:
            times["ours", size] += [milliseconds(ours[size].step) for _ in range(200)]
            times["direct", size] += [milliseconds(direct[size].step) for _ in range(20 if size <= 10_000 else 3)]
    median = {key: statistics.median(values) for key, values in times.items()}
    print(f"\ndraw and update, batch {batch_size}, median of {rounds} rounds\n")
    print(f"{'cases':>9} {'ours ms':>9} {'direct ms':>10} {'times faster':>13} {'ours / ours at ' + str(sizes[0]):>21}")
    for size in sizes:
        mine, theirs = median["ours", size], median["direct", size]
        print(f"{size:9d} {mine:9.4f} {theirs:10.3f} {theirs / mine:13.1f} {mine / median['ours', sizes[0]]:21.2f}")


def memory(size: int, case_ids: list[str], batch_size: int, options: dict[str, Any]) -> tuple[float, float]:
    """Return bytes per case of the arrays by their own account, and all that is kept by tracemalloc, names excluded."""
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        ours = Ours(size, case_ids, batch_size, **options)
        ours.history.num_updates = 100 * size  # with a maximum age, the next epoch finds every case overdue
        ours.sampler.start_epoch()
        for _ in range(200):
            ours.step()
        kept = tracemalloc.get_traced_memory()[0] - before - sys.getsizeof(ours.history.case_ids)
    finally:
        tracemalloc.stop()
    return ours.sampler.nbytes / size, kept / size


def show_variants(size: int, case_ids: list[str], batch_size: int, rounds: int) -> None:
    print(f"\nvariants at {size} cases: a step, the start of an epoch, bytes per case (arrays; all, by tracemalloc)\n")
    print(f"{'':>20} {'step ms':>9} {'refits':>7} {'epoch start ms':>15} {'arrays':>8} {'all':>8}")
    for name, options in VARIANTS.items():
        ours = Ours(size, case_ids, batch_size, **options)
        start = min(milliseconds(ours.sampler.start_epoch) for _ in range(3))
        ours.sampler.refits = 0
        step = statistics.median(milliseconds(ours.step) for _ in range(100 * rounds))
        arrays, kept = memory(size, case_ids, batch_size, options)
        print(f"{name:>20} {step:9.4f} {ours.sampler.refits:7d} {start:15.1f} {arrays:8.1f} {kept:8.1f}")


def show_epoch_work(sizes: list[int], case_ids: list[str]) -> None:
    print("\nwork of O(N), at most once per epoch, ms (least of 3)\n")
    work: dict[str, Callable[[LossHistory, HardnessWeightedBatchSampler], object]] = {
        "solve beta for an ESS": lambda h, s: solve_beta(torch.from_numpy(h.loss), 0.5),
        "solve beta for a KL": lambda h, s: solve_beta_for_kl(torch.from_numpy(h.loss), 0.5),
        "set beta (new tree)": lambda h, s: setattr(s, "beta", BETA),
        "probabilities and ESS": lambda h, s: effective_sample_size(torch.from_numpy(s.probabilities())),
        "quantiles of cap, trim": lambda h, s: s.limits.fit(h.loss),
        "plan of a maximum age": lambda h, s: s.overdue.plan(h),
        "fit chi-square ball": lambda h, s: ChiSquare(rho=0.5).fit(h.loss),
        "fit CVaR": lambda h, s: CVaR(0.5).fit(h.loss),
    }
    print(f"{'cases':>24}" + "".join(f"{size:>10d}" for size in sizes))
    rows: dict[str, list[float]] = {name: [] for name in work}
    for size in sizes:
        history = visited_history(size, case_ids)
        sampler = HardnessWeightedBatchSampler(history, BETA, cap=0.95, trim=0.01, max_age=5, num_batches=size)
        for name, function in work.items():
            rows[name].append(min(milliseconds(partial(function, history, sampler)) for _ in range(3)))
    for name, values in rows.items():
        print(f"{name:>24}" + "".join(f"{value:10.2f}" for value in values))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch-size", type=int, default=2)
    parser.add_argument("--sizes", type=int, nargs="+", default=[1_000, 10_000, 100_000, 1_000_000])
    parser.add_argument("--rounds", type=int, default=20)
    args = parser.parse_args()
    torch.set_num_threads(1)
    sizes = sorted(args.sizes)
    case_ids = [f"case{index}" for index in range(sizes[-1])]
    compare(sizes, case_ids, args.batch_size, args.rounds)
    show_variants(sizes[-1], case_ids, args.batch_size, args.rounds)
    show_epoch_work(sizes, case_ids)


if __name__ == "__main__":
    main()
