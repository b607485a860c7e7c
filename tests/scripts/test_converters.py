"""The converters of public data sets, on tiny folders of the right shape."""

from __future__ import annotations

import importlib
from collections import Counter
from pathlib import Path
from types import ModuleType
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from droseg.data import Case, Datalist, check_datalist, read_datalist

PROJECT = Path(__file__).resolve().parents[2]


@pytest.fixture
def scripts(monkeypatch: pytest.MonkeyPatch) -> dict[str, ModuleType]:
    monkeypatch.syspath_prepend(str(PROJECT / "scripts"))
    names = ("convert_hippocampus", "convert_fetal_atlas", "convert_trustworthy_atlases", "fetal_atlases")
    return {name: importlib.import_module(name) for name in names}


def save(path: Path, array: np.ndarray[Any, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(array, np.eye(4)), path)


def save_case(folder: Path, image: str, label: str) -> None:
    rng = np.random.default_rng(0)
    save(folder / image, rng.normal(size=(6, 6, 6)).astype(np.float32))
    save(folder / label, rng.integers(0, 9, size=(6, 6, 6)).astype(np.uint8))


def cases(datalist: Datalist) -> dict[str, tuple[str, Case]]:
    return {case.case_id: (section, case) for section, rows in datalist.sections.items() for case in rows}


def sizes(datalist: Datalist) -> dict[str, int]:
    return {name: len(rows) for name, rows in datalist.sections.items()}


def errors(datalist: Datalist) -> list[str]:
    return [problem.message for problem in check_datalist(datalist) if problem.severity == "error"]


@pytest.fixture
def hippocampus(tmp_path: Path) -> Path:
    """Return a folder of 36 cases: 12 of each protocol, with label volumes of 1 to 36 voxels."""
    for number in range(36):
        dtype, scale = [(np.uint8, 100), (np.float32, 2e4), (np.float32, 2.1e4)][number % 3]
        image = np.linspace(0, scale, 1000).reshape(10, 10, 10).astype(dtype)
        label = np.zeros(1000, np.uint8)
        label[: number + 1] = 1 + number % 2
        save(tmp_path / "source" / "images" / f"hippocampus_{number:03d}.nii.gz", image)
        save(tmp_path / "source" / "labels" / f"hippocampus_{number:03d}.nii.gz", label.reshape(10, 10, 10))
    return tmp_path / "source"


def test_hippocampus_is_split_in_proportion_in_each_protocol(
    scripts: dict[str, ModuleType], hippocampus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "datalist.json"
    assert scripts["convert_hippocampus"].main([str(hippocampus), "--out", str(out)]) == 0
    datalist = read_datalist(out)
    assert errors(datalist) == []
    assert sizes(datalist) == {
        "training": 24,
        "validation": 4,
        "testing": 8,
    }
    by_protocol = Counter((section, case.groups["protocol"]) for section, case in cases(datalist).values())
    assert all(by_protocol["training", name] == 8 for name in ("uint8", "float_low", "float_high"))
    assert "36 images, 36 with a label" in capsys.readouterr().out


def test_hippocampus_protocols_follow_data_type_and_maximum(
    scripts: dict[str, ModuleType], hippocampus: Path, tmp_path: Path
) -> None:
    scripts["convert_hippocampus"].main([str(hippocampus), "--out", str(tmp_path / "d.json")])
    found = cases(read_datalist(tmp_path / "d.json"))
    for number, protocol in ((0, "uint8"), (1, "float_low"), (2, "float_high")):
        assert found[f"hippocampus_{number:03d}"][1].groups["protocol"] == protocol


def test_hippocampus_size_thresholds_come_from_training_alone(
    scripts: dict[str, ModuleType], hippocampus: Path, tmp_path: Path
) -> None:
    for seed in ("0", "1", "2"):
        scripts["convert_hippocampus"].main([str(hippocampus), "--out", str(tmp_path / "d.json"), "--seed", seed])
        found = cases(read_datalist(tmp_path / "d.json"))
        voxels = {name: int(name[-3:]) + 1 for name in found}
        low, high = np.quantile(
            [voxels[name] for name, (part, _) in found.items() if part == "training"], [1 / 3, 2 / 3]
        )
        for name, (_, case) in found.items():
            expected = "small" if voxels[name] < low else "medium" if voxels[name] < high else "large"
            assert case.groups["anatomy"] == expected


def test_hippocampus_splits_alike_for_one_seed(
    scripts: dict[str, ModuleType], hippocampus: Path, tmp_path: Path
) -> None:
    for name, seed in (("a", "5"), ("b", "5"), ("c", "6")):
        scripts["convert_hippocampus"].main([str(hippocampus), "--out", str(tmp_path / name), "--seed", seed])
    texts = [(tmp_path / name).read_text() for name in "abc"]
    assert texts[0] == texts[1] != texts[2]


def test_hippocampus_reads_decathlons_own_folder(
    scripts: dict[str, ModuleType], hippocampus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (hippocampus / "images").rename(hippocampus / "imagesTr")
    (hippocampus / "labels").rename(hippocampus / "labelsTr")
    (hippocampus / "imagesTr" / "._hippocampus_000.nii.gz").write_bytes(b"macOS")
    (hippocampus / "labelsTr" / "hippocampus_007.nii.gz").unlink()
    assert scripts["convert_hippocampus"].main([str(hippocampus), "--out", str(tmp_path / "d.json")]) == 0
    printed = capsys.readouterr()
    assert "36 images, 35 with a label" in printed.out
    assert "hippocampus_007.nii.gz: left out" in printed.err


def test_a_folder_without_images_is_named(
    scripts: dict[str, ModuleType], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert scripts["convert_hippocampus"].main([str(tmp_path), "--out", str(tmp_path / "d.json")]) != 0
    assert scripts["convert_fetal_atlas"].main([str(tmp_path), "--out", str(tmp_path / "d.json")]) != 0
    printed = capsys.readouterr().err
    assert printed.count(f"error: {tmp_path}: no") == 2
    assert not (tmp_path / "d.json").exists()


@pytest.fixture
def fetal_atlas(tmp_path: Path) -> Path:
    root = tmp_path / "fetal_atlas"
    for weeks in range(21, 39):
        save_case(root / "neurotypical" / f"ga{weeks}", "image.nii.gz", "label.nii.gz")
    for weeks in range(21, 35):
        for operation in ["notoperated"] * (weeks <= 25) + ["operated"] * (weeks >= 25):
            save_case(root / "spina_bifida" / f"ga{weeks}_{operation}", "image.nii.gz", "label.nii.gz")
    (root / "neurotypical" / "LICENSE").touch()
    return root


def test_fetal_atlas_trains_on_14_and_3_spread_over_age(
    scripts: dict[str, ModuleType], fetal_atlas: Path, tmp_path: Path
) -> None:
    assert scripts["convert_fetal_atlas"].main([str(fetal_atlas), "--out", str(tmp_path / "d.json")]) == 0
    datalist = read_datalist(tmp_path / "d.json")
    assert errors(datalist) == []
    counts = Counter((section, case.groups["anatomy"]) for section, case in cases(datalist).values())
    assert counts == {
        ("training", "neurotypical"): 14,
        ("training", "spina_bifida"): 3,
        ("testing", "neurotypical"): 4,
        ("testing", "spina_bifida"): 12,
    }
    assert set(datalist.sections) == {"training", "testing"}
    for anatomy in ("neurotypical", "spina_bifida"):
        bins = {
            c.groups["ga_weeks"]
            for s, c in cases(datalist).values()
            if s == "training" and c.groups["anatomy"] == anatomy
        }
        assert bins == {"21-25", "26-30", "31-38"}


def test_fetal_atlas_groups_come_from_the_names_of_the_folders(
    scripts: dict[str, ModuleType], fetal_atlas: Path, tmp_path: Path
) -> None:
    scripts["convert_fetal_atlas"].main([str(fetal_atlas), "--out", str(tmp_path / "d.json")])
    datalist = read_datalist(tmp_path / "d.json")
    found = cases(datalist)
    assert datalist.structures["corpus_callosum"] == (8,)
    assert len(datalist.structures) == 8
    assert found["spina_bifida_ga25_operated"][1].groups == {
        "anatomy": "spina_bifida",
        "operation": "operated",
        "ga_weeks": "21-25",
        "protocol": "fidon2021",
    }
    assert found["neurotypical_ga38"][1].groups == {
        "anatomy": "neurotypical",
        "operation": "neurotypical",
        "ga_weeks": "31-38",
        "protocol": "gholipour2017",
    }


def test_fetal_atlas_takes_other_numbers_and_writes_portable_paths(
    scripts: dict[str, ModuleType], fetal_atlas: Path, tmp_path: Path
) -> None:
    numbers = ["--training", "neurotypical=9,spina_bifida=6", "--validation", "neurotypical=3,spina_bifida=3"]
    scripts["convert_fetal_atlas"].main([str(fetal_atlas), "--out", str(tmp_path / "d.json"), "--portable", *numbers])
    assert str(tmp_path) not in (tmp_path / "d.json").read_text()
    datalist = read_datalist(tmp_path / "d.json", fetal_atlas)
    assert sizes(datalist) == {
        "training": 15,
        "validation": 6,
        "testing": 12,
    }
    assert errors(datalist) == []


@pytest.mark.parametrize(
    ("option", "message"),
    [("neurotypical=20", "only 18 found"), ("wu2021=3", "no atlas 'wu2021'; the names are neurotypical, spina_bifida")],
)
def test_numbers_that_do_not_fit_are_refused(
    scripts: dict[str, ModuleType],
    fetal_atlas: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    option: str,
    message: str,
) -> None:
    out = str(tmp_path / "d.json")
    assert scripts["convert_fetal_atlas"].main([str(fetal_atlas), "--out", out, "--training", option]) != 0
    assert message in capsys.readouterr().err


def test_incomplete_and_unknown_folders_are_left_out_aloud(
    scripts: dict[str, ModuleType], fetal_atlas: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (fetal_atlas / "neurotypical" / "ga30" / "label.nii.gz").unlink()
    (fetal_atlas / "neurotypical" / "notes").mkdir()
    scripts["convert_fetal_atlas"].main([str(fetal_atlas), "--out", str(tmp_path / "d.json")])
    printed = capsys.readouterr()
    assert "17 cases of the atlas neurotypical" in printed.out
    assert "ga30: left out, it has no label.nii.gz" in printed.err
    assert "notes: left out" in printed.err


@pytest.mark.parametrize("count", range(19))
def test_spread_positions_are_distinct_and_even(scripts: dict[str, ModuleType], count: int) -> None:
    positions = scripts["fetal_atlases"].spread(count, 18)
    assert len(set(positions)) == count
    assert all(0 <= position < 18 for position in positions)
    gaps = np.diff(positions)
    assert count < 2 or gaps.max() - gaps.min() <= 1


@pytest.fixture
def trustworthy(tmp_path: Path) -> Path:
    """Return a clone's folders, with the names of the public repository."""
    root = tmp_path / "clone"
    atlases = root / "data" / "fetal_brain_atlases"
    folders = [f"Neurotypical_Gholipour2017/HarvardSTA{weeks}_Study1" for weeks in range(21, 39)]
    folders += [f"Neurotypical_Wu2021/Chinese{weeks}_Study1" for weeks in range(22, 36)]
    folders += [f"SpinaBifida_Fidon2021/fetal_SB_atlas_GA{weeks}_notoperated" for weeks in range(21, 26)]
    folders += [f"SpinaBifida_Fidon2021/fetal_SB_atlas_GA{weeks}_operated" for weeks in range(25, 35)]
    for folder in folders:
        save_case(atlases / folder, "srr.nii.gz", "parcellation.nii.gz")
        (atlases / folder / "mask.nii.gz").touch()
    return root


def test_all_three_public_atlases_are_found(
    scripts: dict[str, ModuleType], trustworthy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert scripts["convert_trustworthy_atlases"].main([str(trustworthy), "--out", str(tmp_path / "d.json")]) == 0
    datalist = read_datalist(tmp_path / "d.json")
    counts = Counter((section, case.groups["protocol"]) for section, case in cases(datalist).values())
    assert counts == {
        ("training", "gholipour2017"): 14,
        ("testing", "gholipour2017"): 4,
        ("testing", "wu2021"): 14,
        ("training", "fidon2021"): 3,
        ("testing", "fidon2021"): 12,
    }
    assert cases(datalist)["neurotypical_wu_ga22"][1].images[0].name == "srr.nii.gz"
    assert errors(datalist) == []
    assert "no case with protocol=wu2021 in training" in capsys.readouterr().out


def test_the_atlas_folder_itself_gives_the_same_list(
    scripts: dict[str, ModuleType], trustworthy: Path, tmp_path: Path
) -> None:
    convert = scripts["convert_trustworthy_atlases"].main
    convert([str(trustworthy), "--out", str(tmp_path / "a.json")])
    convert([str(trustworthy / "data" / "fetal_brain_atlases"), "--out", str(tmp_path / "b.json")])
    assert (tmp_path / "a.json").read_text() == (tmp_path / "b.json").read_text()


@pytest.mark.real_data
def test_the_frozen_hippocampus_list_is_what_the_converter_makes(
    scripts: dict[str, ModuleType], real_data: Path, tmp_path: Path
) -> None:
    source = real_data / "hippocampus"
    scripts["convert_hippocampus"].main([str(source), "--out", str(tmp_path / "d.json"), "--portable"])
    frozen = PROJECT / "data" / "datalists" / "hippocampus.json"
    assert (tmp_path / "d.json").read_text() == frozen.read_text()
    assert errors(read_datalist(frozen, source)) == []


@pytest.mark.real_data
def test_the_frozen_fetal_list_is_what_the_converter_makes(
    scripts: dict[str, ModuleType], real_data: Path, tmp_path: Path
) -> None:
    source = real_data / "fetal_atlas"
    scripts["convert_fetal_atlas"].main([str(source), "--out", str(tmp_path / "d.json"), "--portable"])
    frozen = PROJECT / "data" / "datalists" / "fetal_atlas.json"
    assert (tmp_path / "d.json").read_text() == frozen.read_text()
    read = read_datalist(frozen, source)
    files = [path for rows in read.sections.values() for case in rows for path in (*case.images, case.label)]
    assert all(
        path is not None and path.is_file() for path in files
    )  # `droseg data check` reads them; here it takes long


def test_the_frozen_lists_hold_no_absolute_path_and_the_promised_numbers() -> None:
    found = {}
    for name in ("hippocampus", "fetal_atlas"):
        path = PROJECT / "data" / "datalists" / f"{name}.json"
        assert '"/' not in path.read_text()
        found[name] = sizes(read_datalist(path))
    assert found["hippocampus"] == {"training": 120, "validation": 20, "testing": 40}
    assert found["fetal_atlas"] == {"training": 17, "testing": 16}
