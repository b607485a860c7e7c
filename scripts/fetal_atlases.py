"""What the two converters of fetal brain atlases share: cases by gestational age, and a split that spreads over it."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from droseg.data import Case, Datalist, empty_cells, group_table, write_datalist
from droseg.errors import DrosegError, InputError
from droseg.keys import TESTING, TRAINING, VALIDATION

# Labels of all three atlases, as refined by M. Aertsen and L. Fidon (src/utils/definitions.py of their repository).
STRUCTURES = {
    "white_matter": (1,),
    "ventricles": (2,),
    "cerebellum": (3,),
    "extra_axial_csf": (4,),
    "cortical_gm": (5,),
    "deep_gm": (6,),
    "brainstem": (7,),
    "corpus_callosum": (8,),
}
GA_BINS = ((21, 25), (26, 30), (31, 38))  # weeks; about equal numbers of cases in each


@dataclass(frozen=True)
class Atlas:
    """One atlas: a folder with one folder per time point.

    Attributes:
        name: what the options of the converter call it.
        folder: its folder below the source.
        pattern: of the name of a time point; the groups are `ga` (weeks) and, where it applies, `operation`.
        image: name of the image file.
        label: name of the label file.
        anatomy: group of all its cases.
        protocol: group of all its cases.
        case_prefix: first part of the case_id, before the gestational age.
    """

    name: str
    folder: str
    pattern: str
    image: str
    label: str
    anatomy: str
    protocol: str
    case_prefix: str


def find_cases(source: Path, atlas: Atlas) -> list[Case]:
    """Return the cases of an atlas by gestational age; says on stderr which folders are left out and why."""
    folder = source / atlas.folder
    if not folder.is_dir():
        return []
    found: list[tuple[int, str, Case]] = []
    for time_point in sorted(path for path in folder.iterdir() if path.is_dir()):
        match = re.fullmatch(atlas.pattern, time_point.name)
        if match is None:
            print(f"{time_point}: left out, its name is not that of a time point of this atlas.", file=sys.stderr)
            continue
        image, label = time_point / atlas.image, time_point / atlas.label
        missing = [path.name for path in (image, label) if not path.is_file()]
        if missing:
            print(f"{time_point}: left out, it has no {' and no '.join(missing)}.", file=sys.stderr)
            continue
        weeks, operation = int(match["ga"]), match.groupdict().get("operation")
        case_id = f"{atlas.case_prefix}_ga{weeks}" + (f"_{operation}" if operation else "")
        groups = {
            "anatomy": atlas.anatomy,
            "operation": operation or atlas.anatomy,
            "ga_weeks": ga_bin(weeks),
            "protocol": atlas.protocol,
        }
        found.append((weeks, case_id, Case(case_id, case_id, (image,), label, groups)))
    return [case for _, _, case in sorted(found, key=lambda row: row[:2])]


def ga_bin(weeks: int) -> str:
    """Return the group of a gestational age in completed weeks, e.g. "26-30"."""
    for first, last in GA_BINS:
        if first <= weeks <= last:
            return f"{first}-{last}"
    return f"below_{GA_BINS[0][0]}" if weeks < GA_BINS[0][0] else f"above_{GA_BINS[-1][1]}"


def spread(count: int, length: int) -> list[int]:
    """Return `count` of the positions 0 to length - 1 at even distances, the same number left over at both ends."""
    return [(2 * index + 1) * length // (2 * count) for index in range(count)]


def split_by_age(cases: Sequence[Case], training: int, validation: int) -> dict[str, list[Case]]:
    """Return the sections of one atlas, training and validation spread over its gestational ages."""
    chosen = [cases[index] for index in spread(training + validation, len(cases))]
    validated = {chosen[index].case_id for index in spread(validation, len(chosen))}
    trained = {case.case_id for case in chosen} - validated
    return {
        TRAINING: [case for case in cases if case.case_id in trained],
        VALIDATION: [case for case in cases if case.case_id in validated],
        TESTING: [case for case in cases if case.case_id not in trained | validated],
    }


def numbers(text: str) -> dict[str, int]:
    """Return atlas -> number of cases of "neurotypical=14,spina_bifida=3"."""
    result = {}
    for item in filter(None, text.split(",")):
        name, _, count = item.partition("=")
        if not count.isdigit():
            raise argparse.ArgumentTypeError(f"'{item}' is not ATLAS=NUMBER")
        result[name.strip()] = int(count)
    return result


def build_parser(description: str, default_training: str) -> argparse.ArgumentParser:
    """Return the arguments of both converters."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("source", type=Path, metavar="SOURCE", help="folder that holds the folders of the atlases")
    parser.add_argument("--out", type=Path, default=Path("datalist.json"), metavar="FILE", help="datalist to write")
    parser.add_argument(
        "--training",
        type=numbers,
        default=numbers(default_training),
        metavar="ATLAS=N,...",
        help=f"cases of each atlas for training (default {default_training})",
    )
    parser.add_argument(
        "--validation", type=numbers, default={}, metavar="ATLAS=N,...", help="the same for validation (default none)"
    )
    parser.add_argument(
        "--portable", action="store_true", help="write paths relative to SOURCE, to be used with --data-root SOURCE"
    )
    return parser


def convert(args: argparse.Namespace, atlases: Sequence[Atlas], license_note: str) -> int:
    """Write the datalist and print what was found and which groups resulted; the exit code."""
    try:
        datalist = build_datalist(args.source, args.out, atlases, args.training, args.validation)
        write_datalist(datalist, args.out, args.source if args.portable else None)
    except DrosegError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    print(group_table(datalist))
    for cell in empty_cells(datalist):
        print(f"no case with {cell}")
    print(license_note)
    print(f"Wrote {args.out}" + (f"; use it with --data-root {args.source}" if args.portable else ""))
    return 0


def build_datalist(
    source: Path,
    out: Path,
    atlases: Sequence[Atlas],
    training: Mapping[str, int],
    validation: Mapping[str, int],
) -> Datalist:
    """Return the datalist of the atlases that are in the source folder.

    Raises:
        InputError: if nothing is found, or fewer cases of an atlas than asked for.
    """
    source = source.expanduser().absolute()
    by_atlas = {atlas.name: find_cases(source, atlas) for atlas in atlases}
    for atlas in atlases:
        print(f"{source / atlas.folder}: {len(by_atlas[atlas.name])} cases of the atlas {atlas.name}")
    if not any(by_atlas.values()):
        folders = ", ".join(atlas.folder for atlas in atlases)
        raise InputError(f"{source}: none of the folders {folders} with cases; give the folder that holds them.")
    unknown = sorted((set(training) | set(validation)) - set(by_atlas))
    if unknown:
        raise InputError(f"no atlas '{unknown[0]}'; the names are {', '.join(by_atlas)}.")
    sections: dict[str, list[Case]] = {TRAINING: [], VALIDATION: [], TESTING: []}
    for name, cases in by_atlas.items():
        wanted = training.get(name, 0) + validation.get(name, 0)
        if wanted > len(cases):
            raise InputError(
                f"{source}: {wanted} cases of {name} for training and validation, but only {len(cases)} found; "
                f"set --training, e.g. --training {name}={len(cases) // 2}."
            )
        for section, chosen in split_by_age(cases, training.get(name, 0), validation.get(name, 0)).items():
            sections[section] += chosen
    filled = {section: tuple(cases) for section, cases in sections.items() if cases}
    return Datalist(out, ("T2w",), STRUCTURES, filled)
