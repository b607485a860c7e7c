"""Feed the readers of `droseg predict` mutated images: each must be read, or refused in one line; nothing else.

    python scripts/fuzz_inputs.py                      10,000 mutants, a table on stdout, exit code 0 if all is well
    python scripts/fuzz_inputs.py --mutants 500 --seed 7 --keep DIR

The images are made here: NIfTI (plain, gzip, 4D), NRRD, MetaImage and DICOM (a series, compressed, multi-frame).
Mutants are read by worker processes whose memory is limited, with a time limit for each; what fails is kept.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import logging
import multiprocessing
import os
import resource
import shutil
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Final

from tqdm import tqdm

from fuzz_seeds import SEEDS, make_seeds
from mutate import mutate

OUTCOMES: Final = ("read", "refused", "exception", "crash", "hang", "memory")
FINE: Final = ("read", "refused")
IMPORTS: Final = ("pydicom", "droseg.inference")
"""What reading needs: they take seconds and memory, which are not those of a mutant."""

Reader = Callable[[Path], str]


@dataclass(frozen=True)
class Finding:
    """What became of one mutant; `detail` is the error's text."""

    index: int
    kind: str
    outcome: str
    detail: str = ""
    seconds: float = 0.0


def plan(mutants: int) -> list[str]:
    """Return the kind of each mutant, in the shares of `SEEDS`."""
    total = sum(SEEDS.values())
    kinds = [kind for kind, share in SEEDS.items() for _ in range(max(1, round(mutants * share / total)))]
    return [kinds[(index * 7919) % len(kinds)] for index in range(mutants)]  # 7919: a prime, so all kinds mix


def read_mutant(folder: Path) -> str:
    """Read a mutated input as `droseg predict` does; return "read", or "refused: " and why."""
    from droseg.errors import DrosegError
    from droseg.inference import find_inputs, inputs_table, read_image

    try:
        found = find_inputs([folder], folder / "out")
        inputs_table(found)
        for case in found.cases:
            read_image(case.images, 1)
    except DrosegError as error:
        if "\n" in str(error):
            raise ValueError(f"an error of several lines: {error}") from error
        return f"refused: {error}"
    return "read"


def work(
    connection: Connection, seeds: Path, seed: int, memory_bytes: int, read: Reader, imports: Sequence[str]
) -> None:
    """Read mutants until the connection closes; the limit of memory is on top of what the imports take."""
    for name in imports:
        importlib.import_module(name)
    warnings.simplefilter("ignore")
    logging.disable(logging.CRITICAL)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + memory_bytes
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    connection.send(None)  # the imports, which take seconds, are done
    with tempfile.TemporaryDirectory(prefix="fuzz_") as scratch:
        while True:
            try:
                index, kind = connection.recv()
            except EOFError:
                return
            folder = Path(scratch) / "case"
            shutil.rmtree(folder, ignore_errors=True)
            mutate(seeds / kind, folder, (seed, index))
            started = time.monotonic()
            try:
                outcome, _, detail = read(folder).partition(": ")
            except MemoryError as error:
                outcome, detail = "memory", str(error)
            except BaseException as error:
                outcome, detail = "exception", f"{type(error).__name__}: {error}"
            connection.send(Finding(index, kind, outcome, detail[:400], time.monotonic() - started))


class Worker:
    """A process that reads mutants, started again when one of them ends it."""

    def __init__(self, seeds: Path, seed: int, memory_bytes: int, read: Reader, imports: Sequence[str]) -> None:
        self._arguments = (seeds, seed, memory_bytes, read, imports)
        self.busy: tuple[int, str] | None = None
        self.since = 0.0
        self._start()

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self.connection, other = context.Pipe()
        self.process = context.Process(target=work, args=(other, *self._arguments), daemon=True)
        self.process.start()
        other.close()
        self.connection.recv()

    def give(self, index: int, kind: str) -> None:
        """Start on a mutant."""
        self.busy, self.since = (index, kind), time.monotonic()
        self.connection.send(self.busy)

    def answer(self) -> Finding:
        """Return what became of the mutant; the end of the process is a crash."""
        assert self.busy is not None
        index, kind = self.busy
        self.busy = None
        try:
            finding: Finding = self.connection.recv()
            return finding
        except (EOFError, OSError):
            self.process.join()
            code = self.process.exitcode
            self._start()
            return Finding(index, kind, "crash", f"exit code {code}")

    def stop(self) -> Finding:
        """End a hanging process."""
        assert self.busy is not None
        index, kind = self.busy
        self.busy = None
        self.process.kill()
        self.process.join()
        self._start()
        return Finding(index, kind, "hang", f"more than {time.monotonic() - self.since:.0f} s")

    def close(self) -> None:
        """End the process."""
        self.connection.close()
        self.process.join(5)
        self.process.kill()


def fuzz(
    seeds: Path,
    mutants: int,
    *,
    seed: int = 0,
    workers: int = 1,
    memory_bytes: int = 1 << 29,
    timeout_s: float = 30.0,
    read: Reader = read_mutant,
    imports: Sequence[str] = IMPORTS,
) -> list[Finding]:
    """Return what became of each mutant."""
    waiting = list(enumerate(plan(mutants)))[::-1]
    pool = [Worker(seeds, seed, memory_bytes, read, imports) for _ in range(workers)]
    findings: list[Finding] = []
    with tqdm(total=mutants, desc="fuzz", unit="file", file=sys.stderr, disable=None) as bar:
        while len(findings) < mutants:
            for worker in pool:
                if worker.busy is None and waiting:
                    worker.give(*waiting.pop())
            ready = wait([worker.connection for worker in pool if worker.busy], timeout=1.0)
            for worker in pool:
                if worker.busy and worker.connection in ready:
                    findings.append(worker.answer())
                elif worker.busy and time.monotonic() - worker.since > timeout_s:
                    findings.append(worker.stop())
            bar.update(len(findings) - bar.n)
    for worker in pool:
        worker.close()
    return findings


def table(findings: list[Finding]) -> str:
    """Return the counts by kind and outcome as aligned text."""
    counts = Counter((finding.kind, finding.outcome) for finding in findings)
    kinds = [kind for kind in SEEDS if any(kind == finding.kind for finding in findings)]
    rows = [["kind", "mutants", *OUTCOMES, "slowest [s]"]]
    for kind in [*kinds, "all"]:
        mine = [finding for finding in findings if kind in (finding.kind, "all")]
        numbers = [sum(counts[each, outcome] for each in kinds if kind in (each, "all")) for outcome in OUTCOMES]
        rows.append([kind, str(len(mine)), *map(str, numbers), f"{max(f.seconds for f in mine):.1f}"])
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join("  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)


def report(findings: list[Finding], seeds: Path, seed: int, keep: Path) -> int:
    """Print what failed and the table, keep the mutants that failed, and return the exit code: 0 if none did."""
    bad = sorted((f for f in findings if f.outcome not in FINE), key=lambda f: f.index)
    for finding in bad:
        folder = keep / f"{finding.kind}_{seed}_{finding.index}"
        with contextlib.suppress(FileNotFoundError):
            shutil.rmtree(folder)
        mutate(seeds / finding.kind, folder, (seed, finding.index))
        print(f"{finding.outcome}: {folder}: {finding.detail}")
    print(table(findings))
    return 1 if bad else 0


def main(arguments: list[str] | None = None) -> int:
    """Fuzz, and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mutants", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=min(2, os.cpu_count() or 1))
    parser.add_argument("--memory-mib", type=int, default=512, help="that reading may take on top of the imports")
    parser.add_argument("--timeout-s", type=float, default=30.0, help="for one file")
    parser.add_argument("--keep", type=Path, default=Path("fuzz_failures"), help="folder for the mutants that fail")
    args = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="fuzz_seeds_") as scratch:
        seeds = Path(scratch)
        make_seeds(seeds)
        findings = fuzz(
            seeds,
            args.mutants,
            seed=args.seed,
            workers=args.workers,
            memory_bytes=args.memory_mib << 20,
            timeout_s=args.timeout_s,
        )
        return report(findings, seeds, args.seed, args.keep)


if __name__ == "__main__":
    sys.exit(main())
