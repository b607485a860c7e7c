"""How well `droseg hardest` finds wrong labels: plants errors in 10 % of the phantoms, trains early, ranks, flags.

python scripts/bench_hardest.py                       errors of the whole label, about 10 minutes a seed on one core
python scripts/bench_hardest.py --errors structure    one structure wrong: what the loss alone does not find
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd

from droseg.cli import main as droseg
from droseg.data import Case, read_datalist, write_datalist
from droseg.data.phantoms import STRUCTURES, generate_phantoms
from droseg.hardest import check_label, measure_run, read_run, usual
from droseg.hardest.flag import Standards
from droseg.hardest.measure import measure_case
from droseg.hardest.source import TrainedRun
from label_errors import (
    Affine,
    Labels,
    changed_ml,
    erase,
    erase_part,
    from_other_case,
    grow,
    leave_unfinished,
    merge,
    read_label,
    shift,
    shrink,
    swap,
    turn,
    write_label,
)

COHORT = 170  # of which 102 are training cases: 82 typical, 14 enlarged ventricles, 6 without a cerebellum
ERRORS = 10
EARLY = {
    "batches_per_epoch": 50,  # of 2 patches: each case is seen about once an epoch
    "roi_size": [48, 48, 48],
    "learning_rate": 0.01,
    "warmup_steps": 20,
    "check_data": False,
    "early_epoch": 0,  # the whole training is an early one
    "device": "$torch.device('cpu')",
}
KINDS = {
    "whole": ("left over", "moved", "turned", "unfinished", "swapped"),
    "structure": ("erased", "half erased", "named otherwise", "grown", "shrunk"),
}
LARGE_PAIRS = (("cortical_gm", "white_matter"), ("outer_csf", "ventricles"), ("white_matter", "outer_csf"))
NEIGHBORS = {
    "cerebellum": "white_matter",
    "deep_gm": "white_matter",
    "ventricles": "outer_csf",
    "brainstem": "white_matter",
}
CURVE_CASES = 10


@dataclass(frozen=True)
class Planted:
    """What was done to a label."""

    kind: str
    detail: str
    ml: float


def plant(rng: np.random.Generator, kind: str, case: Case, cases: Sequence[Case]) -> tuple[Labels, Affine, str]:
    """Return a label with a new error of a kind, and its size in words."""
    label, affine = read_label(case.label)
    small = [name for name in NEIGHBORS if (label == STRUCTURES[name]).any()]
    name = str(rng.choice(small))
    value = STRUCTURES[name]
    if kind == "left over":
        other = cases[rng.choice([i for i, each in enumerate(cases) if each.case_id != case.case_id])]
        return from_other_case(label.shape, affine, *read_label(other.label)), affine, f"that of {other.case_id}"
    if kind == "moved":
        direction, mm = rng.normal(size=3), rng.uniform(6, 12)
        return shift(label, affine, mm * direction / np.linalg.norm(direction)), affine, f"moved by {mm:.1f} mm"
    if kind == "turned":
        axis = str(rng.choice(["A", "S"]))
        return turn(label, affine, axis), affine, {"A": "front to back", "S": "upside down"}[axis]
    if kind == "unfinished":
        share = rng.uniform(0.4, 0.6)
        return leave_unfinished(label, affine, share), affine, f"upper {100 * share:.0f} % not drawn"
    if kind == "swapped":
        first, second = LARGE_PAIRS[rng.integers(len(LARGE_PAIRS))]
        return swap(label, STRUCTURES[first], STRUCTURES[second]), affine, f"{first} and {second} swapped"
    if kind == "erased":
        return erase(label, value), affine, f"{name} erased"
    if kind == "half erased":
        return erase_part(label, affine, value, 0.5), affine, f"left half of {name} erased"
    if kind == "named otherwise":
        return merge(label, value, STRUCTURES[NEIGHBORS[name]]), affine, f"{name} drawn as {NEIGHBORS[name]}"
    if kind == "grown":
        return grow(label, affine, value, 6.0), affine, f"{name} drawn 6 mm too large"
    return shrink(label, affine, value, 4.0), affine, f"{name} drawn 4 mm too small"


def plant_all(source: Path, out: Path, kinds: Sequence[str], seed: int) -> dict[str, Planted]:
    """Write the training section with errors in it as out/datalist.json; return case_id -> what was planted."""
    datalist = read_datalist(source)
    cases = list(datalist.section("training"))
    rng = np.random.default_rng([seed, 11])
    planted = {}
    for number, index in enumerate(rng.permutation(len(cases))[:ERRORS]):
        case, kind = cases[index], kinds[number % len(kinds)]
        label, affine, detail = plant(rng, kind, case, datalist.section("training"))
        path = out / "labels" / f"{case.case_id}.nii.gz"
        write_label(path, label, affine)
        planted[case.case_id] = Planted(kind, detail, changed_ml(read_label(case.label)[0], label, affine))
        cases[index] = replace(case, label=path)
    sections = {"training": tuple(cases)}
    write_datalist(replace(datalist, sections=sections), out / "datalist.json")
    return planted


def train(datalist: Path, run: Path, seed: int, epochs: int) -> None:
    """Train by ERM."""
    words = [f"{key}={json.dumps(value)}" for key, value in {**EARLY, "seed": seed, "epochs": epochs}.items()]
    line = ["train", "fetal_brain_mri", "--overlay", "phantoms", "--datalist", str(datalist), "--out", str(run)]
    code = droseg([*line, "--objective", "erm", *words])
    if code:
        raise SystemExit(code)


def rank_cases(trained: TrainedRun, planted: dict[str, Planted]) -> tuple[pd.DataFrame, Standards]:
    """Return one row per training case, hardest first, and the standards of the flag."""
    measurements = measure_run(trained)
    standards = usual([m.disagreement for m in measurements if m.disagreement is not None])
    rows = []
    for case, m in zip(trained.cases, measurements, strict=True):
        if m.disagreement is None:
            raise SystemExit(f"{case.case_id}: {m.problem}")
        check = check_label(m.disagreement, standards, trained.structures)
        rare = case.groups["anatomy"] != "typical"
        row = {"case_id": case.case_id, "loss": m.loss, "score": check.score, "rare": rare, "reason": check.reason}
        error = planted.get(case.case_id)
        rows.append(row | {"error": error.detail if error else "", "ml": error.ml if error else 0.0})
    table = pd.DataFrame(rows).sort_values("loss", ascending=False, kind="stable", ignore_index=True)
    return table, standards


def report(table: pd.DataFrame) -> dict[str, float]:
    """Print the planted errors and return the figures of a seed."""
    wrong, flagged = table["error"] != "", table["score"] >= 1
    top = round(0.1 * len(table))
    print(f"  {'rank':>4} {'loss':>6} {'flag':>6}  {'ml':>5}  planted error")
    for row in table[wrong].itertuples():
        print(f"  {row.Index + 1:4d} {row.loss:6.3f} {row.score:6.2f}  {row.ml:5.0f}  {row.error}")
    clean = table[~wrong & flagged]
    for row in clean.itertuples():
        print(f"  flagged though right: {row.case_id}, rare: {row.rare}, {row.score:.2f}: {row.reason}")
    by_score = table.sort_values("score", ascending=False, kind="stable")["error"] != ""
    return {
        "precision of the top 10 % by loss": wrong[:top].mean(),
        "precision of the top 10 % by flag score": by_score[:top].mean(),
        "flag: precision": wrong[flagged].mean() if flagged.any() else float("nan"),
        "flag: recall": flagged[wrong].mean(),
        "flag: false positives, rare anatomy": float((flagged & ~wrong & table["rare"]).sum()),
        "clean cases of the rare anatomy": float((~wrong & table["rare"]).sum()),
        "flag: false positives, typical": float((flagged & ~wrong & ~table["rare"]).sum()),
        "clean cases of the typical anatomy": float((~wrong & ~table["rare"]).sum()),
    }


def size_settings() -> dict[str, Callable[[Labels, Affine], Labels]]:
    """Return error of a size -> what makes it."""
    cerebellum, ventricles, brainstem = (STRUCTURES[name] for name in ("cerebellum", "ventricles", "brainstem"))
    settings: dict[str, Callable[[Labels, Affine], Labels]] = {}
    for mm in (2, 4, 6, 8, 12):
        settings[f"label moved by {mm} mm (diagonally)"] = lambda y, a, mm=mm: shift(y, a, np.full(3, mm / 3**0.5))
    for share in (0.05, 0.1, 0.2, 0.4):
        settings[f"upper {100 * share:.0f} % not drawn"] = lambda y, a, share=share: leave_unfinished(y, a, share)
    for share in (0.1, 0.25, 0.5, 1.0):
        name = f"{100 * share:.0f} % of the cerebellum erased"
        settings[name] = lambda y, a, share=share: erase_part(y, a, cerebellum, share)
    for mm in (2, 4, 6, 8):
        settings[f"ventricles {mm} mm too large"] = lambda y, a, mm=mm: grow(y, a, ventricles, mm)
    for mm in (2, 4):
        settings[f"ventricles {mm} mm too small"] = lambda y, a, mm=mm: shrink(y, a, ventricles, mm)
    settings["brainstem drawn as white matter"] = lambda y, a: merge(y, brainstem, STRUCTURES["white_matter"])
    return settings


def size_curve(trained: TrainedRun, table: pd.DataFrame, standards: Standards, folder: Path, seed: int) -> pd.DataFrame:
    """Return one row per error and case: labels that were right in training, changed afterwards."""
    clean = table[table["error"] == ""]
    clean_losses = clean["loss"].sort_values(ascending=False)
    bar = clean_losses.iloc[round(0.1 * len(table)) - 1]  # above it, the case is among the hardest 10 %
    cases = [case for case in trained.cases if case.case_id in set(clean["case_id"])]
    rng = np.random.default_rng([seed, 12])
    rows = []
    for index in rng.permutation(len(cases))[:CURVE_CASES]:
        label, affine = read_label(cases[index].label)
        for setting, change in size_settings().items():
            if "cerebellum" in setting and not (label == STRUCTURES["cerebellum"]).any():
                continue
            changed = change(label, affine)
            write_label(folder / "changed.nii.gz", changed, affine)
            m = measure_case(trained, replace(cases[index], label=folder / "changed.nii.gz"))
            if m.disagreement is None:
                raise SystemExit(f"{cases[index].case_id}: {setting}: {m.problem}")
            score = check_label(m.disagreement, standards, trained.structures).score
            row = {"error": setting, "ml": changed_ml(label, changed, affine), "flagged": score >= 1}
            rows.append(row | {"hardest 10 %": m.loss >= bar})
    return pd.DataFrame(rows)


def main() -> None:
    """Run all seeds and print the figures of each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--errors", choices=list(KINDS), default="whole")
    parser.add_argument(
        "--seeds", type=int, nargs="+", default=[1, 2, 3], help="0 is the one that the rule was tuned on"
    )
    parser.add_argument("--epochs", type=int, default=8, help="of 50 steps (default: 8, which is early)")
    parser.add_argument("--folder", type=Path, help="keeps what is generated and trained (default: a temporary folder)")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        figures, curves = {}, []
        for seed in args.seeds:
            start = time.perf_counter()
            folder = (args.folder or Path(temporary)) / f"seed{seed}"
            phantoms = folder / "phantoms" / "datalist.json"
            if not phantoms.is_file():
                generate_phantoms(phantoms.parent, cases=COHORT, seed=seed)
            planted = plant_all(phantoms, folder / args.errors, KINDS[args.errors], seed)
            train(folder / args.errors / "datalist.json", folder / args.errors / "run", seed, args.epochs)
            trained = read_run(folder / args.errors / "run", device="cpu")
            table, standards = rank_cases(trained, planted)
            print(f"\nseed {seed}: {len(table)} cases, {len(planted)} errors, median loss {table['loss'].median():.3f}")
            figures[f"seed {seed}"] = report(table)
            curves.append(size_curve(trained, table, standards, folder, seed))
            print(f"  {time.perf_counter() - start:.0f} s", flush=True)
        summary = pd.DataFrame(figures)
        print(f"\n{summary.to_string(float_format='{:.2f}'.format)}")
        curve = pd.concat(curves).groupby("error", sort=False)
        found = curve.agg(
            **{
                "changed ml (median)": ("ml", "median"),
                "among the hardest 10 %": ("hardest 10 %", "mean"),
                "flagged": ("flagged", "mean"),
                "cases": ("ml", "size"),
            }
        )
        print(f"\nby size, labels changed after the training\n{found.to_string(float_format='{:.2f}'.format)}")


if __name__ == "__main__":
    main()
