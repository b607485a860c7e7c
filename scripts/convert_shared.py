"""What the converters of BraTS, FeTA and the Decathlon share: findings told in one run, label values, options."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from droseg.data import Datalist, empty_cells, group_table, write_datalist
from droseg.data.check import value_counts
from droseg.data.from_folders.axes import UNKNOWN
from droseg.data.from_folders.findings import some
from droseg.data.from_folders.tables import MISSING
from droseg.data.volumes import read_volume
from droseg.errors import DrosegError, InputError

NOT_KNOWN = MISSING | {"none", "-", "?", UNKNOWN}
"""What says in the tables of these data sets that there is no value, in lower case."""
LISTED = 40  # lines of an error


@dataclass
class Findings:
    """What is wrong with a data set; all of it is told in one run.

    Attributes:
        problems: case_id (None: the whole data set) and what is wrong.
        left_out: what is no case, and why.
        warnings: what a person should look at.
    """

    problems: list[tuple[str | None, str]] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def problem(self, text: str, case_id: str | None = None) -> None:
        """Add what keeps a case, or the whole data set, from being used."""
        self.problems.append((case_id, text))

    def tell(self) -> None:
        """Say on stderr what is left out and what to look at."""
        for text in self.left_out:
            print(f"left out: {text}", file=sys.stderr)
        for text in self.warnings:
            print(f"warning: {text}", file=sys.stderr)

    def bad_cases(self, skip_bad: bool) -> set[str]:
        """Return the cases to leave out.

        Raises:
            InputError: if there are problems and they are not to be skipped, or concern the whole data set.
        """
        stopping = [text for case_id, text in self.problems if case_id is None or not skip_bad]
        if stopping:
            lines = [f"  {text}" for text in stopping[:LISTED]]
            if len(stopping) > LISTED:
                lines.append(f"  ... and {len(stopping) - LISTED} more")
            hint = "" if skip_bad or any(case_id is None for case_id, _ in self.problems) else ", or give --skip-bad"
            count = "1 problem" if len(stopping) == 1 else f"{len(stopping)} problems"
            raise InputError(f"{count}, nothing written; correct the data{hint}:\n" + "\n".join(lines))
        self.left_out += [text for _, text in self.problems]
        return {case_id for case_id, _ in self.problems if case_id is not None}


def known(text: str) -> str:
    """Return the value of a field, `UNKNOWN` where it says that there is none."""
    return UNKNOWN if text.lower() in NOT_KNOWN else text


def label_values(path: Path) -> list[float]:
    """Return the values that occur in a label map, sorted.

    Raises:
        VolumeError: if it cannot be read.
    """
    return [float(value) for value in value_counts(read_volume(path).array)[0]]


def strange_values(values: Iterable[float], allowed: Iterable[int]) -> str:
    """Return the values that may not occur in a label map, as text; empty if there are none."""
    return some(f"{value:g}" for value in sorted(set(values) - set(map(float, allowed))))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of every converter."""
    parser.add_argument("--out", type=Path, default=Path("datalist.json"), metavar="FILE", help="datalist to write")
    parser.add_argument(
        "--portable", action="store_true", help="write paths relative to SOURCE, to be used with --data-root SOURCE"
    )
    parser.add_argument("--skip-bad", action="store_true", help="leave out cases with problems instead of stopping")


def finish(
    args: argparse.Namespace, build: Callable[[Findings], Datalist], root: Path | None, license_lines: Sequence[str]
) -> int:
    """Build and write the datalist, print what was found and which groups resulted; the exit code."""
    findings = Findings()
    try:
        if args.portable and root is None:
            raise InputError("--portable is for one SOURCE: --data-root takes one folder; leave it out, or give one.")
        datalist = build(findings)
        write_datalist(datalist, args.out, root if args.portable else None)
    except DrosegError as error:
        findings.tell()
        print(f"error: {error}", file=sys.stderr)
        print("\n".join(license_lines), file=sys.stderr)
        return error.exit_code
    findings.tell()
    print(group_table(datalist))
    for cell in empty_cells(datalist):
        print(f"no case with {cell}")
    print("structures: " + ", ".join(f"{name} {list(values)}" for name, values in datalist.structures.items()))
    print("\n".join(license_lines))
    where = f" --data-root {root}" if args.portable else ""
    print(f"Wrote {args.out}" + (f"; use it with{where}" if where else ""))
    print(f"Next: droseg data check {args.out}{where}")
    return 0
