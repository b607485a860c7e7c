"""Splits by patient."""

from __future__ import annotations

import argparse
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from droseg.cli import data as command
from droseg.data import Case, Datalist, empty_cells, group_table, read_datalist, split_datalist, write_datalist
from droseg.data.groups import cell_table, thin_cells
from droseg.data.split import round_table
from droseg.errors import InputError

FRACTIONS = {"training": 0.7, "validation": 0.1, "testing": 0.2}


def case(name: str, patient: str = "", label: bool = True, **groups: str) -> Case:
    path = Path(f"/data/{name}.nii.gz")
    return Case(name, patient or name, (path,), path if label else None, groups)


def datalist(cases: list[Case], **others: list[Case]) -> Datalist:
    sections = {"training": tuple(cases), **{name: tuple(value) for name, value in others.items()}}
    return Datalist(Path("/data/d.json"), ("T2w",), {"x": (1,)}, sections)


def cohort(seed: int = 0, patients: int = 90) -> Datalist:
    """Return patients with 1 to 3 scans each, of two unbalanced axes."""
    rng = np.random.default_rng(seed)
    cases = []
    for number in range(patients):
        groups = {
            "anatomy": str(rng.choice(["typical", "rare"], p=[0.85, 0.15])),
            "site": str(rng.choice(["a", "b", "c"])),
        }
        cases += [case(f"p{number}_{scan}", f"p{number}", **groups) for scan in range(rng.integers(1, 4))]
    return datalist(cases)


def patients_of(result: Datalist) -> dict[str, set[str]]:
    return {name: {c.patient_id for c in cases} for name, cases in result.sections.items()}


def identities(result: Datalist) -> list[str]:
    return sorted(c.case_id for cases in result.sections.values() for c in cases)


@pytest.mark.parametrize("seed", range(5))
def test_parts_sum_to_the_whole_and_no_patient_is_in_two_sections(seed: int) -> None:
    whole = cohort(seed)
    result = split_datalist(whole, fractions=FRACTIONS, stratify=["anatomy", "site"], seed=seed)
    assert identities(result) == identities(whole)
    parts = list(patients_of(result).values())
    assert sum(len(part) for part in parts) == len(set.union(*parts)) == 90


@pytest.mark.parametrize("seed", range(5))
def test_each_group_and_the_whole_are_in_proportion_within_one_patient(seed: int) -> None:
    whole = cohort(seed)
    strata = {c.patient_id: (c.groups["anatomy"], c.groups["site"]) for c in whole.sections["training"]}
    result = split_datalist(whole, fractions=FRACTIONS, stratify=["anatomy", "site"], seed=seed)
    for section, members in patients_of(result).items():
        assert abs(len(members) - FRACTIONS[section] * 90) < 1
        for stratum, size in Counter(strata.values()).items():
            here = sum(strata[patient] == stratum for patient in members)
            assert abs(here - FRACTIONS[section] * size) < 1


def test_the_seed_decides_and_the_order_of_the_file_does_not() -> None:
    whole = cohort()
    turned = datalist(list(reversed(whole.sections["training"])))
    first, second = (split_datalist(d, fractions=FRACTIONS, stratify=["site"], seed=3) for d in (whole, turned))
    other = split_datalist(whole, fractions=FRACTIONS, stratify=["site"], seed=4)
    assert patients_of(first) == patients_of(second)
    assert patients_of(first) != patients_of(other)


def test_fractions_pool_all_labelled_cases_and_leave_the_others() -> None:
    whole = datalist([case(f"a{i}") for i in range(10)], testing=[case("new", label=False), case("b")])
    result = split_datalist(whole, fractions={"training": 1.0}, seed=0)
    assert {c.case_id for c in result.sections["testing"]} == {"new"}
    assert len(result.sections["training"]) == 11


@pytest.mark.parametrize("folds", [2, 5, 7])
def test_folds_share_each_stratum_evenly_and_keep_patients_together(folds: int) -> None:
    whole = cohort(1)
    result = split_datalist(whole, folds=folds, stratify=["anatomy"], seed=2)
    by_patient: dict[str, set[int | None]] = {}
    for c in result.sections["training"]:
        by_patient.setdefault(c.patient_id, set()).add(c.fold)
    assert all(len(numbers) == 1 for numbers in by_patient.values())
    anatomy = {c.patient_id: c.groups["anatomy"] for c in whole.sections["training"]}
    for group in ("typical", "rare"):
        sizes = Counter(min(n) for p, n in by_patient.items() if anatomy[p] == group)  # type: ignore[type-var]
        assert set(sizes) <= set(range(folds))
        assert max(sizes.values()) - min(sizes.get(fold, 0) for fold in range(folds)) <= 1


def test_holding_a_group_out_takes_all_scans_of_its_patients() -> None:
    whole = datalist(
        [case("a1", "a", site="x"), case("a2", "a", site="y"), case("b", site="y")],
        validation=[case("v", site="y")],
        testing=[case("t", site="y")],
    )
    result = split_datalist(whole, hold_out=[("site", "x")])
    assert patients_of(result) == {"training": {"b", "t"}, "validation": {"v"}, "testing": {"a"}}


def test_the_rest_of_a_held_out_group_can_be_dealt_anew() -> None:
    result = split_datalist(
        cohort(2), hold_out=[("site", "a")], fractions={"training": 0.9, "validation": 0.1}, stratify=["anatomy"]
    )
    assert {c.groups["site"] for c in result.sections["testing"]} == {"a"}
    assert {c.groups["site"] for name in ("training", "validation") for c in result.sections[name]} == {"b", "c"}
    rest = len(patients_of(result)["training"]) + len(patients_of(result)["validation"])
    assert abs(len(patients_of(result)["validation"]) - 0.1 * rest) < 1


def test_a_case_without_a_group_is_a_stratum_of_its_own() -> None:
    whole = datalist([case(f"a{i}", site="x") for i in range(10)] + [case(f"b{i}") for i in range(10)])
    result = split_datalist(whole, fractions={"training": 0.5, "testing": 0.5}, stratify=["site"])
    assert Counter(c.groups.get("site") for c in result.sections["testing"]) == {"x": 5, None: 5}


@pytest.mark.parametrize("seed", range(20))
def test_a_rounded_table_keeps_rows_columns_and_entries_within_one(seed: int) -> None:
    rng = np.random.default_rng(seed)
    sizes = rng.integers(0, 30, size=rng.integers(1, 12))
    fractions = rng.dirichlet(np.ones(rng.integers(2, 5)))
    table = round_table(list(sizes), list(fractions))
    exact = np.outer(sizes, fractions)
    assert (table.sum(axis=1) == sizes).all()
    assert (np.abs(table - exact) < 1).all()
    assert (np.abs(table.sum(axis=0) - exact.sum(axis=0)) < 1).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "nothing to split by"),
        ({"fractions": {"training": 0.7, "testing": 0.2}}, "sum is 0.9"),
        ({"fractions": {"training": float("nan"), "testing": 0.3}}, "sum is nan"),
        ({"fractions": {"train": 1.0}}, "'train' is no section"),
        ({"fractions": FRACTIONS, "seed": -1}, "seed is -1; it must be >= 0"),
        ({"folds": 1}, "at least 2"),
        ({"folds": 91}, "use fewer folds"),
        ({"folds": 3, "stratify": ["scanner"]}, "no group axis 'scanner'; it has anatomy, site"),
        ({"folds": 3, "stratify": ["scanner", "site", "age"]}, "no group axis 'scanner', 'age'; it has anatomy, site"),
        ({"hold_out": [("site", "z")]}, "the values are a, b, c"),
        ({"hold_out": [("site", "z"), ("anatomy", "x")]}, "site=z; the values are a, b, c; no case has anatomy=x"),
        ({"hold_out": [("site", name) for name in "abc"]}, "nothing is left for training"),
        ({"hold_out": [("site", "a")], "fractions": FRACTIONS}, "held out is the testing section"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(arguments: dict, message: str) -> None:  # type: ignore[type-arg]
    with pytest.raises(InputError, match=message):
        split_datalist(cohort(), **arguments)


def test_the_table_counts_the_cases_and_empty_cells_are_named() -> None:
    result = datalist([case("a", site="x"), case("b", site="y")], testing=[case("c", site="x")])
    lines = [line.split() for line in group_table(result).splitlines()]
    assert lines == [
        ["axis", "group", "training", "testing", "total"],
        ["all", "all", "2", "1", "3"],
        ["site", "x", "1", "1", "2"],
        ["site", "y", "1", "0", "1"],
    ]
    assert empty_cells(result) == ["site=y in testing"]


def split_command(*arguments: str) -> int:
    parser = argparse.ArgumentParser()
    command.register(parser.add_subparsers())
    args = parser.parse_args(["data", "split", *arguments])
    return int(args.run(args))


def test_the_command_writes_a_datalist_and_warns_about_empty_cells(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cases = [case(f"c{i}", site="x" if i else "y") for i in range(10)]
    write_datalist(datalist(cases), tmp_path / "all.json")
    assert (
        split_command(str(tmp_path / "all.json"), "--fractions", "training=0.8,testing=0.2", "--stratify", "site") == 0
    )
    printed = capsys.readouterr()
    result = read_datalist(tmp_path / "all_split.json")
    assert [len(result.sections[name]) for name in ("training", "testing")] == [8, 2]
    assert "no case with site=y in testing" in printed.err
    assert "training" in printed.out


def test_the_command_numbers_folds_and_writes_where_it_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_datalist(cohort(), tmp_path / "all.json")
    assert split_command(str(tmp_path / "all.json"), "--folds", "5", "--out", str(tmp_path / "folds.json")) == 0
    assert {c.fold for c in read_datalist(tmp_path / "folds.json").sections["training"]} == set(range(5))
    printed = capsys.readouterr().out.splitlines()
    header = next(line for line in printed if "fold 0" in line)
    assert header.split() == ["fold", "0", "fold", "1", "fold", "2", "fold", "3", "fold", "4", "total"]
    counts = [int(word) for word in printed[printed.index(header) + 1].split() if not word.startswith("(")]
    assert counts == [18, 18, 18, 18, 18, 90]


@pytest.mark.parametrize("argument", ["training", "training=x"])
def test_malformed_fractions_are_refused(argument: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        split_command("d.json", "--fractions", argument)
    assert "SECTION=SHARE" in capsys.readouterr().err


def test_several_groups_are_held_out_together() -> None:
    result = split_datalist(cohort(3), hold_out=[("site", "a"), ("anatomy", "rare")])
    for name, cases in result.sections.items():
        of_these = {c.groups["site"] == "a" or c.groups["anatomy"] == "rare" for c in cases}
        assert of_these == {name == "testing"}


def test_cells_are_combinations_by_section_and_fold_and_count_patients() -> None:
    def at(fold: int | None, *args: str, **groups: str) -> Case:
        return Case(args[0], args[-1], (Path("/x"),), Path("/y"), groups, fold)

    result = datalist(
        [
            at(0, "a1", "a", site="x", sex="f"),
            at(0, "a2", "a", site="x", sex="f"),
            at(1, "b", site="x", sex="f"),
            at(1, "c", site="y", sex="m"),
        ],
        testing=[at(None, "d", site="y", sex="m")],
    )
    rows = [" ".join(line.split()) for line in cell_table(result, ["site", "sex"]).splitlines()]
    assert rows == [
        "site sex fold 0 fold 1 testing total",
        "x f 1 (2) 1 0 2 (3)",
        "y m 0 1 1 2",
        "all 1 (2) 2 1 4 (5)",
    ]
    assert thin_cells(result, ["site", "sex"], folds=2) == [
        "no case with site=x, sex=f in testing",
        "no case with site=y, sex=m in fold 0 (1 patient for 2 folds)",
        "2 combinations of groups do not occur at all: site=x, sex=m; site=y, sex=f",
    ]


def test_the_command_prints_cells_by_fold_and_says_which_groups_are_too_small(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cases = [case(f"c{i}", site="x" if i < 3 else "y", sex="fm"[i % 2]) for i in range(20)]
    write_datalist(datalist(cases), tmp_path / "all.json")
    options = ["--folds", "5", "--stratify", "site", "--stratify", "sex"]
    assert split_command(str(tmp_path / "all.json"), *options) == 0
    printed = capsys.readouterr()
    (row,) = [line.split() for line in printed.out.splitlines() if line.split()[:2] == ["x", "f"]]
    assert row[-1] == "2"
    assert sum(int(word) for word in row[2:-1]) == 2
    assert "no case with site=x in folds" in printed.err
    assert "(3 patients for 5 folds)" in printed.err
    assert "no case with site=x, sex=f in folds" in printed.err


def test_what_was_held_out_is_not_warned_about_and_patients_in_several_groups_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cases = [case(f"c{i}", site="x" if i < 5 else "y", sex="fm"[i % 2]) for i in range(20)]
    cases += [case("p1", "p", site="x", sex="f"), case("p2", "p", site="y", sex="f")]
    write_datalist(datalist(cases), tmp_path / "all.json")
    assert split_command(str(tmp_path / "all.json"), "--hold-out", "site=x") == 0
    assert capsys.readouterr().err.splitlines() == [
        "droseg: warning: 1 patient has scans in several groups of site; all their scans are held out if one is: "
        "p (x and y)."
    ]
    assert split_command(str(tmp_path / "all.json"), "--folds", "2", "--stratify", "site", "--overwrite") == 0
    assert "they are a stratum of their own: p (x and y)" in capsys.readouterr().err


def test_a_section_that_gets_no_patient_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_datalist(datalist([case(f"c{i}") for i in range(4)]), tmp_path / "all.json")
    assert split_command(str(tmp_path / "all.json"), "--fractions", "training=0.9,validation=0.1") == 0
    read = read_datalist(tmp_path / "all_split.json")
    assert ("validation" in read.sections and bool(read.sections["validation"])) != (
        "no patient in validation" in capsys.readouterr().err
    )


def test_another_datalist_is_not_overwritten_without_leave(tmp_path: Path) -> None:
    path = tmp_path / "all.json"
    write_datalist(cohort(), path)
    out = tmp_path / "all_split.json"
    assert split_command(str(path), "--folds", "3") == 0
    before = out.read_text()
    assert split_command(str(path), "--folds", "3") == 0  # the same split again
    with pytest.raises(InputError, match="is there, and is not this split"):
        split_command(str(path), "--folds", "4")
    with pytest.raises(InputError, match="is there"):
        split_command(str(path), "--folds", "4", "--out", str(path))
    assert out.read_text() == before
    assert split_command(str(path), "--folds", "4", "--overwrite") == 0
    assert json.loads(out.read_text())["training"][0]["fold"] in range(4)


def test_a_section_given_twice_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        split_command("d.json", "--fractions", "training=0.5,training=0.5")
    assert "'training' is given twice" in capsys.readouterr().err


@pytest.mark.parametrize("fractions", [None, {"training": 0.8, "validation": 0.2}])
def test_patients_who_were_scanned_everywhere_leave_nothing_to_train_on(fractions: dict[str, float] | None) -> None:
    traveling = datalist([case(f"{patient}{site}", patient, site=site) for patient in "pqrs" for site in "ab"])
    with pytest.raises(InputError, match="every patient has a scan of a group that is held out"):
        split_datalist(traveling, fractions=fractions, hold_out=[("site", "a")])


def test_without_labels_there_is_nothing_to_deal() -> None:
    with pytest.raises(InputError, match="no patient with a label is left"):
        split_datalist(datalist([case("a", label=False), case("b", label=False)]), fractions=FRACTIONS)
