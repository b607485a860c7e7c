"""The converters of BraTS, FeTA and the Decathlon, on tiny folders of the exact public layouts."""

from __future__ import annotations

import functools
import hashlib
import http.server
import importlib
import json
import tarfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from droseg.data import Case, check_datalist, read_datalist
from droseg.errors import InputError

PROJECT = Path(__file__).resolve().parents[2]
LPS = np.diag([-1.0, -1.0, 1.0, 1.0])


@pytest.fixture
def scripts(monkeypatch: pytest.MonkeyPatch) -> dict[str, ModuleType]:
    monkeypatch.syspath_prepend(str(PROJECT / "scripts"))
    names = ("convert_brats", "convert_feta", "convert_decathlon", "decathlon_download")
    return {name: importlib.import_module(name) for name in names}


def save(path: Path, array: np.ndarray[Any, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(array, LPS), path)


def label_of(values: Sequence[float]) -> np.ndarray[Any, Any]:
    label = np.zeros(125, np.float32 if any(v != int(v) for v in values) else np.uint8)
    label[: len(values)] = values
    return label.reshape(5, 5, 5)


def image() -> np.ndarray[Any, Any]:
    return np.arange(125, dtype=np.int16).reshape(5, 5, 5)


def training(path: Path) -> dict[str, Case]:
    return {case.case_id: case for case in read_datalist(path).section("training")}


def no_errors(path: Path) -> bool:
    return not [problem for problem in check_datalist(read_datalist(path)) if problem.severity == "error"]


# BraTS

NEW = {"t1n": "-t1n", "t1c": "-t1c", "t2w": "-t2w", "t2f": "-t2f", "seg": "-seg"}
OLD = {"t1n": "_t1", "t1c": "_t1ce", "t2w": "_t2", "t2f": "_flair", "seg": "_seg"}


def brats_case(
    root: Path, name: str, values: Sequence[float], names: Mapping[str, str], suffix: str = ".nii.gz"
) -> Path:
    folder = root / name
    stem = folder.name
    for part, end in names.items():
        save(folder / f"{stem}{end}{suffix}", label_of(values) if part == "seg" else image())
    return folder


def run_brats(scripts: dict[str, ModuleType], root: Path, *options: str) -> int:
    return int(scripts["convert_brats"].main([str(root), "--out", str(root / "datalist.json"), *options]))


@pytest.fixture
def brats2023(tmp_path: Path) -> Path:
    root = tmp_path / "ASNR-MICCAI-BraTS2023-GLI-Challenge-TrainingData"
    brats_case(root, "BraTS-GLI-00000-000", (1, 2, 3), NEW)
    brats_case(root, "BraTS-GLI-00002-000", (1, 2), NEW)
    brats_case(root, "BraTS-GLI-00008-000", (2, 3), NEW)
    brats_case(root, "BraTS-GLI-00008-001", (1, 2, 3), NEW)
    return root


def test_brats_2023_has_its_channels_regions_patients_and_groups(
    scripts: dict[str, ModuleType], brats2023: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_brats(scripts, brats2023) == 0
    datalist = read_datalist(brats2023 / "datalist.json")
    assert datalist.channels == ("t1n", "t1c", "t2w", "t2f")
    assert datalist.structures == {"WT": (1, 2, 3), "TC": (1, 3), "ET": (3,)}
    found = training(datalist.path)
    assert [path.name[20:23] for path in found["BraTS-GLI-00008-001"].images] == ["t1n", "t1c", "t2w", "t2f"]
    assert found["BraTS-GLI-00008-000"].patient_id == found["BraTS-GLI-00008-001"].patient_id == "BraTS-GLI-00008"
    enhancement = {name: case.groups for name, case in found.items()}
    assert enhancement["BraTS-GLI-00000-000"] == {"enhancement": "present"}
    assert enhancement["BraTS-GLI-00002-000"] == {"enhancement": "absent"}
    assert no_errors(datalist.path)
    printed = capsys.readouterr()
    assert "3 patients; the enhancing tumor has the label 3" in printed.out
    assert "synapse.org" in printed.out
    assert "no site is known" in printed.err


def test_brats_2021_has_the_enhancing_tumor_at_4(scripts: dict[str, ModuleType], tmp_path: Path) -> None:
    brats_case(tmp_path, "BraTS2021_00000", (1, 2, 4), OLD)
    brats_case(tmp_path, "BraTS2021_00002", (1, 2), OLD)
    assert run_brats(scripts, tmp_path) == 0
    datalist = read_datalist(tmp_path / "datalist.json")
    assert datalist.structures == {"WT": (1, 2, 4), "TC": (1, 4), "ET": (4,)}
    assert [path.name for path in training(datalist.path)["BraTS2021_00000"].images] == [
        f"BraTS2021_00000_{part}.nii.gz" for part in ("t1", "t1ce", "t2", "flair")
    ]


def test_brats_2018_tells_site_and_grade_by_its_names_and_folders(
    scripts: dict[str, ModuleType], tmp_path: Path
) -> None:
    names = {
        "HGG/Brats18_CBICA_AAM_1": ("CBICA", "HGG"),
        "HGG/Brats18_2013_11_1": ("2013", "HGG"),
        "HGG/Brats18_TCIA02_117_1": ("TCIA", "HGG"),
        "LGG/Brats18_TCIA13_615_1": ("TCIA", "LGG"),
        "LGG/BraTS19_TMC_06290_1": ("TMC", "LGG"),
    }
    for name in names:
        brats_case(tmp_path, name, (1, 2, 4), OLD)
    assert run_brats(scripts, tmp_path) == 0
    found = training(tmp_path / "datalist.json")
    for name, (site, grade) in names.items():
        case = found[name.partition("/")[2]]
        assert case.groups == {"enhancement": "present", "site": site, "grade": grade}


def test_brats_2020_reads_name_mapping_where_it_lies(
    scripts: dict[str, ModuleType], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in (1, 2, 3):
        brats_case(tmp_path, f"BraTS20_Training_{number:03d}", (1, 2, 4), OLD, ".nii")
    (tmp_path / "name_mapping.csv").write_text(
        "Grade,BraTS_2017_subject_ID,BraTS_2018_subject_ID,TCGA_TCIA_subject_ID,BraTS_2019_subject_ID,"
        "BraTS_2020_subject_ID\n"
        "HGG,Brats17_CBICA_AAB_1,Brats18_CBICA_AAB_1,NA,BraTS19_CBICA_AAB_1,BraTS20_Training_001\n"
        "LGG,NA,NA,TCGA-FG-5964,BraTS19_TMC_06290_1,BraTS20_Training_002\n"
        "HGG,NA,NA,NA,NA,BraTS20_Training_003\n"
    )
    assert run_brats(scripts, tmp_path) == 0
    found = training(tmp_path / "datalist.json")
    assert [case.groups["site"] for case in found.values()] == ["CBICA", "TMC", "unknown"]
    assert [case.groups["grade"] for case in found.values()] == ["HGG", "LGG", "HGG"]
    printed = capsys.readouterr()
    assert "name_mapping.csv: read for site and grade" in printed.out
    assert "site of 1 cases is not known, they get 'unknown': BraTS20_Training_003" in printed.err


def test_the_sheet_of_2023_saved_with_semicolons_tells_the_sites(
    scripts: dict[str, ModuleType], brats2023: Path
) -> None:
    sheet = brats2023 / "BraTS2023_2017_GLI_Mapping.csv"
    rows = [f"BraTS-GLI-{n};BraTS2021_{n[:5]};UPENN;{s}" for n, s in (("00000-000", 1), ("00002-000", 21))]
    rows += [f"BraTS-GLI-{n};BraTS2021_{n[:5]};UPENN;4" for n in ("00008-000", "00008-001")]
    columns = "BraTS2023;BraTS2021;Cohort Name (if publicly available);Site No (represents the originating institution)"
    sheet.write_text("\ufeff" + "\n".join([columns, *rows]) + "\n", encoding="utf-8")
    assert run_brats(scripts, brats2023, "--sites", str(sheet)) == 0
    sites = [case.groups["site"] for case in training(brats2023 / "datalist.json").values()]
    assert sites == ["site_1", "site_21", "site_4", "site_4"]


def test_all_problems_of_a_brats_folder_are_told_in_one_run(
    scripts: dict[str, ModuleType], brats2023: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (brats2023 / "BraTS-GLI-00000-000" / "BraTS-GLI-00000-000-t2f.nii.gz").unlink()
    brats_case(brats2023, "BraTS-GLI-00002-000", (1, 2, 2.5, 7), NEW)
    seg = brats2023 / "BraTS-GLI-00008-000" / "BraTS-GLI-00008-000-seg.nii.gz"
    seg.rename(seg.with_name("W39_1998.09.19_Segm.nii.gz"))  # as in BraTS20_Training_355
    (brats2023 / "notes").mkdir()
    mapping = brats2023 / "sites.csv"
    mapping.write_text(
        "case,site\nBraTS-GLI-00000-000,A\nBraTS-GLI-00000-000,B\nBraTS-GLI-00008-000,A\nBraTS-GLI-9,C\n"
    )
    assert run_brats(scripts, brats2023, "--sites", str(mapping)) == 2
    printed = capsys.readouterr().err
    assert "BraTS-GLI-00000-000: no file for t2f; it holds BraTS-GLI-00000-000-seg.nii.gz" in printed
    assert "BraTS-GLI-00002-000-seg.nii.gz: has the values 2.5, 7" in printed
    assert "BraTS-GLI-00008-000: no file for seg; it holds" in printed
    assert "W39_1998.09.19_Segm.nii.gz" in printed
    assert "sites.csv: BraTS-GLI-00000-000 in 2 rows (lines 2, 3)" in printed
    assert "sites.csv: no row for BraTS-GLI-00002-000" in printed
    assert "sites.csv: no row for BraTS-GLI-00008-001" in printed
    assert "rows for cases that are not here: BraTS-GLI-9" in printed
    assert "left out: " in printed
    assert "6 problems, nothing written; correct the data, or give --skip-bad" in printed
    assert not (brats2023 / "datalist.json").exists()


def test_bad_cases_are_skipped_aloud_where_that_is_wanted(
    scripts: dict[str, ModuleType], brats2023: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (brats2023 / "BraTS-GLI-00000-000" / "BraTS-GLI-00000-000-t2f.nii.gz").unlink()
    brats_case(brats2023, "BraTS-GLI-00002-000", (9,), NEW)
    assert run_brats(scripts, brats2023, "--skip-bad") == 0
    assert list(training(brats2023 / "datalist.json")) == ["BraTS-GLI-00008-000", "BraTS-GLI-00008-001"]
    assert capsys.readouterr().err.count("left out: ") == 2


def test_two_label_conventions_are_refused(
    scripts: dict[str, ModuleType], brats2023: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    brats_case(brats2023, "BraTS2021_00005", (1, 2, 4), OLD)
    assert run_brats(scripts, brats2023, "--skip-bad") == 2
    printed = capsys.readouterr().err
    assert "is 3 in 3 cases" in printed
    assert "4 in 1 (BraTS2021_00005)" in printed


def test_post_treatment_labels_are_refused(
    scripts: dict[str, ModuleType], brats2023: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    brats_case(brats2023, "BraTS-GLI-02000-100", (1, 2, 3, 4), NEW)
    assert run_brats(scripts, brats2023) == 2
    assert "4 is the resection cavity" in capsys.readouterr().err


def test_cases_without_a_label_map_are_left_out(
    scripts: dict[str, ModuleType], brats2023: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = brats_case(brats2023, "BraTS-GLI-00001-000", (1,), NEW)
    (folder / "BraTS-GLI-00001-000-seg.nii.gz").unlink()
    assert run_brats(scripts, brats2023) == 0
    assert f"left out: {folder}: no label map" in capsys.readouterr().err
    assert len(training(brats2023 / "datalist.json")) == 4


def test_tumor_phantoms_convert_to_the_groups_they_were_planned_with(
    scripts: dict[str, ModuleType], tmp_path: Path
) -> None:
    from droseg.data.phantoms.brats import generate_brats

    source, out = tmp_path / "brats", tmp_path / "lists" / "datalist.json"  # paths below it would be relative anyway
    planned = generate_brats(source, cases=8, seed=2, size=32)
    assert run_brats(scripts, source, "--sites", str(source / "sites.csv"), "--portable", "--out", str(out)) == 0
    assert str(tmp_path) not in out.read_text()
    datalist = read_datalist(out, source)
    found = {case.case_id: case for case in datalist.section("training")}
    assert len(found) == 8
    for case in planned:
        present = "present" if case.tumor_type == "enhancing" else "absent"
        assert found[case.case_id].groups == {"enhancement": present, "site": case.site}
        assert found[case.case_id].patient_id == f"BraTS-GLI-{case.patient:05d}"
    assert [problem for problem in check_datalist(datalist) if problem.severity == "error"] == []


# FeTA


def feta_subject(
    root: Path, subject: str, reconstruction: str, values: Sequence[float] = (1, 2, 3, 4, 5, 6, 7)
) -> None:
    anat = root / subject / "anat"
    for part, array in (("T2w", image()), ("dseg", label_of(values))):
        save(anat / f"{subject}_rec-{reconstruction}_{part}.nii.gz", array)
        (anat / f"{subject}_rec-{reconstruction}_{part}.json").write_text("{}")


@pytest.fixture
def feta(tmp_path: Path) -> Path:
    root = tmp_path / "feta_2.2"
    rows = ["participant_id\tPathology\tGestational age"]
    for number, (pathology, weeks) in enumerate(
        [("Neurotypical", "23.4"), ("Pathological", "27.9"), ("Neurotypical", "33"), ("Pathological", "20.1")], start=1
    ):
        feta_subject(root, f"sub-{number:03d}", "mial" if number < 3 else "irtk")
        rows.append(f"sub-{number:03d}\t{pathology}\t{weeks}")
    (root / "participants.tsv").write_text("\n".join(rows) + "\n")
    return root


def run_feta(scripts: dict[str, ModuleType], *arguments: str | Path) -> int:
    return int(scripts["convert_feta"].main([str(argument) for argument in arguments]))


def test_feta_has_seven_structures_and_its_groups(
    scripts: dict[str, ModuleType], feta: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_feta(scripts, feta, "--out", tmp_path / "d.json", "--site", "Zurich") == 0
    datalist = read_datalist(tmp_path / "d.json")
    assert list(datalist.structures.values()) == [(value,) for value in range(1, 8)]
    groups = {name: tuple(case.groups[axis] for axis in ("pathology", "ga_weeks", "reconstruction", "site"))
              for name, case in training(datalist.path).items()}  # fmt: skip
    assert groups == {
        "sub-001": ("neurotypical", "21-25", "mial", "Zurich"),
        "sub-002": ("pathological", "26-30", "mial", "Zurich"),
        "sub-003": ("neurotypical", "31-38", "irtk", "Zurich"),
        "sub-004": ("pathological", "below_21", "irtk", "Zurich"),
    }
    assert no_errors(datalist.path)
    printed = capsys.readouterr().out
    assert "4 subjects, 4 reconstructions" in printed
    assert "University Children's Hospital Zurich" in printed


def test_feta_reads_other_spellings_of_the_columns_and_a_site_column(
    scripts: dict[str, ModuleType], feta: Path, tmp_path: Path
) -> None:
    (feta / "participants.tsv").write_text(
        "Participant_ID\tInstitution\tgestational_age\tpathology\n"
        + "".join(
            f"{n:03d}\t{s}\t26,5\tNEUROTYPICAL\n" for n, s in ((1, "Zurich"), (2, "Vienna"), (3, "n/a"), (4, "Zurich"))
        )
    )
    assert run_feta(scripts, feta, "--out", tmp_path / "d.json") == 0
    found = training(tmp_path / "d.json")
    assert [case.groups["site"] for case in found.values()] == ["Zurich", "Vienna", "unknown", "Zurich"]
    assert {case.groups["ga_weeks"] for case in found.values()} == {"26-30"}


def test_runs_of_one_feta_reconstruction_are_cases_of_their_own(
    scripts: dict[str, ModuleType], feta: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    anat = feta / "sub-001" / "anat"
    for part in ("T2w", "dseg"):
        for run in (1, 2):
            source = anat / f"sub-001_rec-mial_{part}.nii.gz"
            (anat / f"sub-001_rec-mial_run-{run}_{part}.nii.gz").write_bytes(source.read_bytes())
        source.unlink()
    assert run_feta(scripts, feta, "--out", tmp_path / "d.json") == 0
    assert list(training(tmp_path / "d.json"))[:3] == ["sub-001_rec-mial_run-1", "sub-001_rec-mial_run-2", "sub-002"]
    again = feta.rename(tmp_path / "again")
    assert run_feta(scripts, again, again, "--out", tmp_path / "e.json") == 2
    images = ", ".join([str(again / "sub-002" / "anat" / "sub-002_rec-mial_T2w.nii.gz")] * 2)
    assert f"sub-002: 2 images of this name ({images}); rename one" in capsys.readouterr().err


def test_feta_joins_two_institutions(
    scripts: dict[str, ModuleType], feta: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    vienna = tmp_path / "vienna"
    feta_subject(vienna, "sub-081", "nmic")
    (vienna / "participants.tsv").write_text("participant_id\tPathology\tGestational age\nsub-081\tPathological\t30\n")
    out = tmp_path / "d.json"
    assert run_feta(scripts, feta, vienna, "--site", "Zurich", "--site", "Vienna", "--out", out) == 0
    assert training(out)["sub-081"].groups["site"] == "Vienna"
    assert len(training(out)) == 5
    assert run_feta(scripts, feta, vienna, "--portable", "--out", tmp_path / "portable.json") == 2
    assert "--portable is for one SOURCE" in capsys.readouterr().err
    assert not (tmp_path / "portable.json").exists()


def test_all_problems_of_a_feta_folder_are_told_in_one_run(
    scripts: dict[str, ModuleType], feta: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    feta_subject(feta, "sub-002", "mial", (1, 8))
    (feta / "sub-003" / "anat" / "sub-003_rec-irtk_dseg.nii.gz").unlink()
    feta_subject(feta, "sub-005", "irtk")
    feta_subject(feta, "sub-006", "irtk")
    (feta / "participants.tsv").write_text(
        "participant_id\tPathology\tGestational age\nsub-001\tNeurotypical\t23.4\nsub-001\tPathological\t23.4\n"
        "sub-002\tn/a\t\nsub-003\tNeurotypical\t33\nsub-004\tsick\ttwenty\nsub-006\tNeurotypical\t280\nsub-099\tn/a\t30\n"
    )
    assert run_feta(scripts, feta, "--out", tmp_path / "d.json") == 2
    printed = capsys.readouterr().err
    assert "sub-001 in several rows (lines 2, 3)" in printed
    assert "sub-002_rec-mial_dseg.nii.gz: has the values 8; FeTA's labels are 1 to 7" in printed
    assert "sub-003_rec-irtk_T2w.nii.gz: no label map sub-003_rec-irtk_dseg.nii.gz beside it" in printed
    assert "sub-004: Pathology is 'sick'" in printed
    assert "sub-004: Gestational age is 'twenty'" in printed
    assert "no row for sub-005" in printed
    assert "sub-006: Gestational age is '280'" in printed
    assert "sub-002: pathology and ga_weeks not given" in printed
    assert "rows without a folder: sub-099" in printed
    assert "7 problems" in printed
    assert not (tmp_path / "d.json").exists()
    assert run_feta(scripts, feta, "--out", tmp_path / "d.json", "--skip-bad") == 2  # no case is left
    assert "no case is left" in capsys.readouterr().err


def test_lines_of_a_table_are_those_of_the_file_and_its_encoding_is_said(
    scripts: dict[str, ModuleType], feta: Path, brats2023: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = feta / "participants.tsv"
    path.write_bytes(
        path.read_bytes().replace(b"\nsub-003", b"\n\nsub-003") + "\nsub-003\tZürich\t1\n".encode("cp1252")
    )
    assert run_feta(scripts, feta, "--out", tmp_path / "d.json") == 2
    printed = capsys.readouterr().err
    assert "sub-003 in several rows (lines 5, 8); keep one" in printed
    assert f"warning: {path}: not in UTF-8" in printed
    names = [path.name for path in sorted(brats2023.iterdir()) if path.is_dir()]
    rows = "".join(f"{name};a\n\n" for name in [*names, names[0]])
    (tmp_path / "sites.csv").write_text(f"case;site\n{rows}")
    assert run_brats(scripts, brats2023, "--sites", str(tmp_path / "sites.csv")) == 2
    assert f"{names[0]} in 2 rows (lines 2, {2 + 2 * len(names)})" in capsys.readouterr().err


def test_feta_without_its_table_or_columns_says_so(
    scripts: dict[str, ModuleType], feta: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (feta / "participants.tsv").write_text("participant_id\tage\nsub-001\t3\n")
    assert run_feta(scripts, feta, "--out", tmp_path / "d.json") == 2
    assert "no column Pathology, Gestational age; those there: participant_id, age" in capsys.readouterr().err
    (feta / "participants.tsv").unlink()
    assert run_feta(scripts, feta, "--out", tmp_path / "d.json") == 2
    printed = capsys.readouterr().err
    assert "participants.tsv: no such file" in printed
    assert "syn25649159" in printed  # where to ask


# Decathlon


def decathlon_task(root: Path, name: str, modality: dict[str, str], cases: int = 3) -> Path:
    folder = root / name
    entries = []
    for number in range(cases):
        file = f"{name[7:].lower()}_{number:03d}.nii.gz"
        channels = np.stack([image()] * len(modality), axis=-1) if len(modality) > 1 else image()
        save(folder / "imagesTr" / file, channels)
        save(folder / "labelsTr" / file, label_of((1, 2)))
        (folder / "imagesTr" / f"._{file}").write_bytes(b"macOS")
        (folder / "labelsTr" / f"._{file}").write_bytes(b"macOS")
        entries.append({"image": f"./imagesTr/{file}", "label": f"./labelsTr/{file}"})
    save(folder / "imagesTs" / f"{name[7:].lower()}_900.nii.gz", image())
    document = {
        "name": name[7:],
        "licence": "CC-BY-SA 4.0",
        "relase": "1.0",  # as in Task04
        "tensorImageSize": "3D",
        "modality": modality,
        "labels": {"0": "background", "1": "Anterior", "2": "Posterior"},
        "numTraining": cases,
        "numTest": 1,
        "training": entries,
        "test": [f"./imagesTs/{name[7:].lower()}_900.nii.gz"],
    }
    (folder / "dataset.json").write_text(json.dumps(document))
    return folder


def run_decathlon(scripts: dict[str, ModuleType], *arguments: str | Path) -> int:
    return int(scripts["convert_decathlon"].main([str(argument) for argument in arguments]))


def test_a_decathlon_task_has_the_channels_and_structures_of_its_json(
    scripts: dict[str, ModuleType], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = decathlon_task(tmp_path, "Task04_Hippocampus", {"0": "MRI"})
    assert run_decathlon(scripts, folder, "--out", tmp_path / "d.json") == 0
    datalist = read_datalist(tmp_path / "d.json")
    assert datalist.channels == ("MRI",)
    assert datalist.structures == {"Anterior": (1,), "Posterior": (2,)}
    assert list(training(datalist.path)) == ["hippocampus_000", "hippocampus_001", "hippocampus_002"]
    assert set(datalist.sections) == {"training"}
    assert no_errors(datalist.path)
    printed = capsys.readouterr()
    assert "CC-BY-SA 4.0" in printed.out
    assert "1 images without labels" in printed.err
    assert "._" not in printed.err


def test_a_4d_task_keeps_its_channels_in_one_file(scripts: dict[str, ModuleType], tmp_path: Path) -> None:
    folder = decathlon_task(tmp_path, "Task05_Prostate", {"0": "T2", "1": "ADC"})
    assert run_decathlon(scripts, folder, "--out", tmp_path / "d.json", "--with-test") == 0
    datalist = read_datalist(tmp_path / "d.json")
    assert datalist.channels == ("T2", "ADC")
    assert [len(case.images) for case in datalist.section("training")] == [1, 1, 1]
    assert [case.case_id for case in datalist.section("testing")] == ["prostate_900"]
    assert [problem for problem in check_datalist(datalist, ["training"]) if problem.severity == "error"] == []


def test_ct_needs_a_word(scripts: dict[str, ModuleType], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = decathlon_task(tmp_path, "Task09_Spleen", {"0": "CT"})
    assert run_decathlon(scripts, folder, "--out", tmp_path / "d.json") == 2
    assert "the modality is CT; droseg is for MRI" in capsys.readouterr().err
    assert run_decathlon(scripts, folder, "--out", tmp_path / "d.json", "--allow-ct") == 0


def test_all_problems_of_a_task_are_told_in_one_run(
    scripts: dict[str, ModuleType], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = decathlon_task(tmp_path, "Task05_Prostate", {"0": "T2", "1": "ADC"}, cases=5)
    save(folder / "imagesTr" / "prostate_000.nii.gz", image())
    save(folder / "labelsTr" / "prostate_001.nii.gz", label_of((1, 5)))
    (folder / "labelsTr" / "prostate_002.nii.gz").unlink()
    (folder / "imagesTr" / "prostate_003.nii.gz").write_bytes(b"not a volume")
    save(folder / "imagesTr" / "prostate_077.nii.gz", image())
    document = json.loads((folder / "dataset.json").read_text())
    document["training"] += [document["training"][4], {"image": 3}]
    (folder / "dataset.json").write_text(json.dumps(document))
    assert run_decathlon(scripts, folder, "--out", tmp_path / "d.json") == 2
    printed = capsys.readouterr().err
    assert "prostate_000.nii.gz: 1 channels, but dataset.json declares T2, ADC" in printed
    assert "prostate_001.nii.gz: has the values 5; dataset.json declares [1, 2]" in printed
    assert "prostate_002.nii.gz" in printed
    assert "prostate_003.nii.gz: cannot be read" in printed
    assert "prostate_004.nii.gz in 2 entries of training" in printed
    assert "training[6] is {'image': 3}" in printed
    assert "prostate_077.nii.gz: dataset.json does not list it" in printed


class RangeHandler(http.server.SimpleHTTPRequestHandler):
    """Serves files and the rest of files, as S3 does; remembers what was asked for."""

    asked: list[str | None]

    def do_GET(self) -> None:
        wanted = self.headers.get("Range")
        self.asked.append(wanted)
        data = Path(self.translate_path(self.path)).read_bytes()
        start = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted else 0
        if wanted and start >= len(data):
            self.send_error(416)
            return
        self.send_response(206 if wanted else 200)
        self.send_header("Content-Length", str(len(data) - start))
        self.end_headers()
        self.wfile.write(data[start:])

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def server(tmp_path: Path) -> Iterator[tuple[str, str, list[str | None], Path]]:
    """Give URL, MD5, the ranges asked for and the tar of a task that a local server offers."""
    task = decathlon_task(tmp_path / "source", "Task04_Hippocampus", {"0": "MRI"})
    tar = tmp_path / "served" / "Task04_Hippocampus.tar"
    tar.parent.mkdir()
    with tarfile.open(tar, "w") as archive:
        archive.add(task, task.name)
    asked: list[str | None] = []
    handler = type("Handler", (RangeHandler,), {"asked": asked})
    with http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), functools.partial(handler, directory=str(tar.parent))
    ) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{running.server_address[1]}/{tar.name}"
        yield url, hashlib.md5(tar.read_bytes()).hexdigest(), asked, tar
        running.shutdown()


def test_a_download_is_checked_unpacked_and_not_repeated(
    scripts: dict[str, ModuleType], server: tuple[str, str, list[str | None], Path], tmp_path: Path
) -> None:
    url, md5, asked, _ = server
    download = scripts["decathlon_download"].download_task
    root = tmp_path / "root"
    folder = download("Task04_Hippocampus", root, url=url, md5=md5)
    assert folder == root / "Task04_Hippocampus"
    assert sorted(path.name for path in root.iterdir()) == ["Task04_Hippocampus", "Task04_Hippocampus.tar"]
    download("Task04_Hippocampus", root, url=url, md5=md5)
    assert asked == [None]
    (folder / "dataset.json").unlink()
    with pytest.raises(InputError, match=r"Task04_Hippocampus: is there without dataset.json.*move it away"):
        download("Task04_Hippocampus", root, url=url, md5=md5)
    folder.rename(root / "elsewhere")  # as the message says; unpacked again, not downloaded again
    download("Task04_Hippocampus", root, url=url, md5=md5)
    assert asked == [None]
    assert run_decathlon(scripts, folder, "--out", tmp_path / "d.json") == 0
    assert len(training(tmp_path / "d.json")) == 3


def test_a_task_that_lacks_files_is_not_taken_for_a_whole_one(
    scripts: dict[str, ModuleType], server: tuple[str, str, list[str | None], Path], tmp_path: Path
) -> None:
    url, md5, *_ = server
    download = scripts["decathlon_download"].download_task
    folder = download("Task04_Hippocampus", tmp_path, url=url, md5=md5)
    (folder / "labelsTr" / "hippocampus_001.nii.gz").unlink()
    (folder / "imagesTs" / "hippocampus_900.nii.gz").unlink()
    with pytest.raises(InputError, match=r"2 of the 7 files that dataset.json names.*hippocampus_001.*move it away"):
        download("Task04_Hippocampus", tmp_path, url=url, md5=md5)


def test_a_tar_that_cannot_be_unpacked_is_no_failed_download(
    scripts: dict[str, ModuleType], server: tuple[str, str, list[str | None], Path], tmp_path: Path
) -> None:
    url, md5, *_ = server
    root = tmp_path / "root"
    root.mkdir()
    (root / ".Task04_Hippocampus.part").write_text("in the way")
    with pytest.raises(InputError, match=r"Task04_Hippocampus.tar: cannot be unpacked"):
        scripts["decathlon_download"].download_task("Task04_Hippocampus", root, url=url, md5=md5)


def test_a_broken_download_goes_on_where_it_stopped(
    scripts: dict[str, ModuleType], server: tuple[str, str, list[str | None], Path], tmp_path: Path
) -> None:
    url, md5, asked, tar = server
    root = tmp_path / "root"
    root.mkdir()
    (root / "Task04_Hippocampus.tar.part").write_bytes(tar.read_bytes()[:3000])
    folder = scripts["decathlon_download"].download_task("Task04_Hippocampus", root, url=url, md5=md5)
    assert asked == ["bytes=3000-"]
    assert (folder / "dataset.json").is_file()


def test_a_download_with_another_checksum_is_removed(
    scripts: dict[str, ModuleType], server: tuple[str, str, list[str | None], Path], tmp_path: Path
) -> None:
    url = server[0]
    with pytest.raises(Exception, match="MD5 of the download is not"):
        scripts["decathlon_download"].download_task("Task04_Hippocampus", tmp_path / "root", url=url, md5="0" * 32)
    assert list((tmp_path / "root").iterdir()) == []


def test_a_download_that_fails_is_one_line(
    scripts: dict[str, ModuleType], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from monai.apps import DecathlonDataset

    address = (tmp_path / "nothing.tar").as_uri()
    monkeypatch.setitem(DecathlonDataset.resource, "Task04_Hippocampus", address)
    options = ["--download", "Task04_Hippocampus", "--root", tmp_path / "root", "--out", tmp_path / "d.json"]
    assert run_decathlon(scripts, *options) == 2
    printed = capsys.readouterr().err
    assert "nothing.tar: download to" in printed
    assert "goes on where it stopped" in printed


def test_a_file_address_downloads_too(
    scripts: dict[str, ModuleType], server: tuple[str, str, list[str | None], Path], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    from monai.apps import DecathlonDataset

    _, md5, _, tar = server
    monkeypatch.setitem(DecathlonDataset.resource, "Task04_Hippocampus", tar.as_uri())
    monkeypatch.setitem(DecathlonDataset.md5, "Task04_Hippocampus", md5)
    options = ["--download", "Task04_Hippocampus", "--root", tmp_path / "root", "--out", tmp_path / "d.json"]
    assert run_decathlon(scripts, *options) == 0
    assert len(training(tmp_path / "d.json")) == 3
