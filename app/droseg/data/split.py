"""Splits by patient: into sections, into folds, or with one group held out, in proportion within each stratum."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linprog

from droseg.data.datalist import Case, Datalist
from droseg.data.groups import NO_GROUP
from droseg.errors import InputError
from droseg.keys import SECTIONS, TESTING, TRAINING

Patient = tuple[tuple[str, Case], ...]
"""A patient's cases, each with the section that it comes from."""


def split_datalist(
    datalist: Datalist,
    *,
    fractions: Mapping[str, float] | None = None,
    folds: int | None = None,
    hold_out: Sequence[tuple[str, str]] = (),
    stratify: Sequence[str] = (),
    seed: int = 0,
) -> Datalist:
    """Return the datalist with its cases in other sections or folds; all cases of a patient stay together.

    In each stratum, and in all, the number of patients of a section or fold is that of its fraction, rounded up or
    down. A patient without any label stays where it is.

    Args:
        datalist: what to split.
        fractions: section -> share of the patients, with the sum 1. All labelled patients are pooled and dealt anew.
        folds: number of folds; sets `fold` (0 to folds - 1) in the training section.
        hold_out: (axis, group) of each group to hold out. Patients with a case of one of them become the testing
            section, and the rest of the former testing section goes to training. `fractions` and `folds` then divide
            the rest.
        stratify: axes whose combinations are the strata.
        seed: the same seed gives the same split.
    Raises:
        InputError: if the arguments do not fit together or to the datalist.
    """
    _check_arguments(datalist, fractions, folds, hold_out, stratify, seed)
    rng = np.random.default_rng(seed)
    patients = _patients(datalist)
    placed: dict[str, str] = {}  # patient_id -> section, of those that move
    held_out: set[str] = set()
    if hold_out:
        groups = set(hold_out)
        held_out = {name for name, rows in patients.items() if any(groups & set(c.groups.items()) for _, c in rows)}
        if held_out == set(patients):
            raise InputError(
                f"{datalist.path}: every patient has a scan of a group that is held out; nothing is left for training."
            )
        placed = dict.fromkeys(held_out, TESTING)
        placed |= {n: TRAINING for n, rows in patients.items() if n not in held_out and rows[0][0] == TESTING}
    if fractions is not None:
        pool = [n for n, rows in patients.items() if n not in held_out and any(case.label for _, case in rows)]
        if not pool:
            raise InputError(f"{datalist.path}: no patient with a label is left to deal by fractions.")
        placed |= _dealt(pool, patients, fractions, stratify, rng)
    result = _replaced(datalist, placed)
    if folds is not None:
        pool = [name for name, rows in _patients(result).items() if rows[0][0] == TRAINING]
        if len(pool) < folds:
            raise InputError(f"{folds} folds of {len(pool)} training patients; use fewer folds.")
        numbers = _dealt(pool, patients, {str(fold): 1 / folds for fold in range(folds)}, stratify, rng)
        cases = tuple(replace(case, fold=int(numbers[case.patient_id])) for case in result.sections[TRAINING])
        result = replace(result, sections={**result.sections, TRAINING: cases})
    return result


def _check_arguments(
    datalist: Datalist,
    fractions: Mapping[str, float] | None,
    folds: int | None,
    hold_out: Sequence[tuple[str, str]],
    stratify: Sequence[str],
    seed: int,
) -> None:
    """Raise an InputError if the arguments do not fit together or to the datalist."""
    if fractions is None and folds is None and not hold_out:
        raise InputError("nothing to split by; give fractions, folds or a group to hold out.")
    if fractions is not None:
        wrong = [name for name in fractions if name not in SECTIONS]
        if wrong:
            raise InputError(f"fractions: '{wrong[0]}' is no section; the sections are {', '.join(SECTIONS)}.")
        total = sum(fractions.values())
        if min(fractions.values(), default=0) < 0 or not abs(total - 1) <= 1e-6:  # also if one of them is NaN
            raise InputError(f"fractions: their sum is {total:g}; they must be >= 0 and sum to 1.")
        if hold_out and fractions.get(TESTING):
            raise InputError("fractions: the group that is held out is the testing section; give it no fraction.")
    if folds is not None and folds < 2:
        raise InputError(f"folds is {folds}; it must be at least 2.")
    if seed < 0:
        raise InputError(f"seed is {seed}; it must be >= 0.")
    axes = dict.fromkeys([*stratify, *(axis for axis, _ in hold_out)])
    unknown = [axis for axis in axes if axis not in datalist.axes]
    if unknown:
        listed = ", ".join(f"'{axis}'" for axis in unknown)
        raise InputError(f"{datalist.path}: no group axis {listed}; it has {', '.join(datalist.axes) or 'none'}.")
    _check_held_out(datalist, hold_out)


def _check_held_out(datalist: Datalist, hold_out: Sequence[tuple[str, str]]) -> None:
    """Raise an InputError that names every group that no case has, with those that there are."""
    cases = [case for section in datalist.sections.values() for case in section]
    missing = []
    for axis, group in hold_out:
        values = {case.groups[axis] for case in cases if axis in case.groups}
        if group not in values:
            missing.append(f"no case has {axis}={group}; the values are {', '.join(sorted(values))}")
    if missing:
        raise InputError(f"{datalist.path}: {'; '.join(missing)}.")


def _patients(datalist: Datalist) -> dict[str, Patient]:
    """Return patient_id -> cases, in the order of the datalist."""
    rows: dict[str, list[tuple[str, Case]]] = defaultdict(list)
    for section, cases in datalist.sections.items():
        for case in cases:
            rows[case.patient_id].append((section, case))
    return {name: tuple(values) for name, values in rows.items()}


def _dealt(
    pool: Sequence[str],
    patients: Mapping[str, Patient],
    fractions: Mapping[str, float],
    stratify: Sequence[str],
    rng: np.random.Generator,
) -> dict[str, str]:
    """Return patient_id -> part, each stratum divided by the fractions as evenly as whole patients allow."""
    strata: dict[tuple[str, ...], list[str]] = defaultdict(list)
    for name in sorted(pool):  # so that the order of the file does not matter
        strata[_stratum(patients[name], stratify)].append(name)
    keys = sorted(strata)
    parts = list(fractions)
    counts = round_table([len(strata[key]) for key in keys], list(fractions.values()))
    result: dict[str, str] = {}
    for key, row in zip(keys, counts, strict=True):
        members = [strata[key][index] for index in rng.permutation(len(strata[key]))]
        labels = [part for part, count in zip(parts, row, strict=True) for _ in range(count)]
        result.update(zip(members, labels, strict=True))
    return result


def _stratum(patient: Patient, stratify: Sequence[str]) -> tuple[str, ...]:
    """Return the groups of a patient on each axis; several different ones are a stratum of their own."""
    return tuple("+".join(sorted({case.groups.get(axis, NO_GROUP) for _, case in patient})) for axis in stratify)


def round_table(sizes: Sequence[int], fractions: Sequence[float]) -> NDArray[np.int64]:
    """Return whole numbers near sizes x fractions, (S, P): each entry and column sum is rounded up or down.

    Each row sums to its size. Such a table always exists (controlled rounding: Bacharach 1966, Management Science
    12:732). It is the vertex of a transport problem that rounds the largest remainders up.

    Args:
        sizes: number of patients in each stratum, (S,).
        fractions: share of each part, (P,), with the sum 1.
    """
    exact = np.round(np.outer(sizes, np.asarray(fractions) / np.sum(fractions)), 9)
    floor = np.floor(exact)
    remainder = exact - floor
    rows, columns = exact.shape
    in_row = np.kron(np.eye(rows), np.ones(columns))
    in_column = np.kron(np.ones(rows), np.eye(columns))
    total = np.round(exact.sum(axis=0), 6)
    solution = linprog(
        -remainder.ravel(),
        A_eq=in_row,
        b_eq=np.round(remainder.sum(axis=1)),
        A_ub=np.vstack([in_column, -in_column]),
        b_ub=np.concatenate([np.ceil(total) - floor.sum(axis=0), floor.sum(axis=0) - np.floor(total)]),
        bounds=np.stack([np.zeros(exact.size), np.ceil(remainder.ravel())], axis=1),
        method="highs-ds",  # simplex: a vertex, hence whole numbers
    )
    if not solution.success:
        raise RuntimeError(f"no rounding of {sizes} by {fractions} was found: {solution.message}")
    return (floor + np.round(solution.x.reshape(exact.shape))).astype(np.int64)


def _replaced(datalist: Datalist, placed: Mapping[str, str]) -> Datalist:
    """Return the datalist with each patient of `placed` in its new section, the order kept."""
    if not placed:
        return datalist
    sections: dict[str, list[Case]] = {name: [] for name in [*SECTIONS, *datalist.sections]}
    for section, cases in datalist.sections.items():
        for case in cases:
            sections[placed.get(case.patient_id, section)].append(replace(case, fold=None))
    return replace(datalist, sections={name: tuple(cases) for name, cases in sections.items() if cases})
