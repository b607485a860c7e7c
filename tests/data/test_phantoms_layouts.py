"""Phantoms in the layouts that real data come in: BraTS, BIDS and DICOM."""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
import re
import sys
from collections import Counter
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import ndimage

from droseg.cli import data as command
from droseg.data.phantoms.anatomy import STRUCTURES
from droseg.data.phantoms.bids import generate_bids
from droseg.data.phantoms.brats import generate_brats, plan_tumors
from droseg.data.phantoms.files import write_text
from droseg.data.phantoms.people import plan_people, session_scans
from droseg.data.phantoms.tumor import CHANNELS, ED, ET, NCR, TumorScan, TumorType, random_patient, scan_patient
from droseg.errors import InputError


def hashes(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def run(out: Path, layout: str, *options: str) -> int:
    parser = argparse.ArgumentParser()
    command.register(parser.add_subparsers())
    args = parser.parse_args(["data", "phantoms", str(out), "--layout", layout, *options])
    return int(args.run(args))


# BraTS


def tumor_scan(seed: int, tumor_type: TumorType = "enhancing", site: str = "A", size: int = 64) -> TumorScan:
    individual, tumor = random_patient(np.random.default_rng(seed), tumor_type)
    return scan_patient(np.random.default_rng([seed, 1]), individual, tumor, site, size)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def brats(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("brats")
    generate_brats(out, cases=10, seed=1, size=32)
    return out


def test_the_files_are_named_as_those_of_brats_2023(brats: Path) -> None:
    cases = sorted(path.name for path in brats.iterdir() if path.is_dir())
    assert len(cases) == 10
    for case in cases:
        assert re.fullmatch(r"BraTS-GLI-\d{5}-\d{3}", case)
        parts = ("seg", "t1c", "t1n", "t2f", "t2w")
        assert sorted(p.name for p in (brats / case).iterdir()) == [f"{case}-{part}.nii.gz" for part in parts]
    with (brats / "sites.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["case"] for row in rows] == cases
    assert {row["site"] for row in rows} == {"A", "B", "C"}


def test_size_240_would_have_the_grid_of_brats() -> None:
    from droseg.data.phantoms.tumor import brats_grid

    affine, shape = brats_grid(240)
    assert shape == (240, 240, 155)
    assert affine.tolist() == [[-1, 0, 0, 0], [0, -1, 0, 239], [0, 0, 1, 0], [0, 0, 0, 1]]
    for size in (32, 64, 120):  # the same field of view: the outer faces of the outer voxels
        affine, shape = brats_grid(size)
        corners = [affine @ [*corner, 1] for corner in ((-0.5, -0.5, -0.5), (shape[0] - 0.5, shape[1] - 0.5, -0.5))]
        assert np.ravel(corners) == pytest.approx([0.5, 239.5, -0.5, 1, -239.5, -0.5, -0.5, 1])


def test_all_volumes_of_a_case_lie_on_one_lps_grid_and_have_no_background(brats: Path) -> None:
    for folder in (path for path in brats.iterdir() if path.is_dir()):
        volumes = {path.name.split("-")[-1][:3]: nib.load(path) for path in folder.iterdir()}
        assert len({volume.shape for volume in volumes.values()}) == 1
        label = np.asarray(volumes["seg"].dataobj)
        assert set(np.unique(label)) <= {0, NCR, ED, ET}
        outside = np.asarray(volumes["t1n"].dataobj) == 0
        assert 0.4 < outside.mean() < 0.95
        for channel in CHANNELS:
            assert nib.aff2axcodes(volumes[channel].affine) == ("L", "P", "S")
            assert np.array_equal(volumes[channel].affine, volumes["seg"].affine)
            assert np.array_equal(np.asarray(volumes[channel].dataobj) == 0, outside)
        assert not (label > 0)[outside].any()


def test_the_rare_groups_have_their_shares_and_time_points_share_a_patient() -> None:
    planned = plan_tumors(200, seed=0)
    patients = {case.patient: case for case in planned}
    assert len(planned) == len({case.case_id for case in planned}) == 200
    types = Counter(case.tumor_type for case in patients.values())
    sites = Counter(case.site for case in patients.values())
    assert types["no_enhancement"] / len(patients) == pytest.approx(0.12, abs=0.01)
    assert sites["C"] / len(patients) == pytest.approx(0.12, abs=0.01)
    twice = [patient for patient, count in Counter(case.patient for case in planned).items() if count == 2]
    assert len(twice) / len(patients) == pytest.approx(1 / 8, abs=0.02)
    for case in planned:
        assert (case.tumor_type, case.site) == (patients[case.patient].tumor_type, patients[case.patient].site)


@pytest.mark.parametrize("cases", range(6, 20))
def test_a_small_tumor_cohort_has_every_group(cases: int) -> None:
    planned = plan_tumors(cases, seed=2)
    assert len(planned) == cases
    assert {case.site for case in planned} == {"A", "B", "C"}
    assert {case.tumor_type for case in planned} == {"enhancing", "no_enhancement"}


@pytest.mark.parametrize("size", [32, 64])
def test_only_tumors_without_enhancement_lack_the_label(size: int) -> None:
    for seed in range(12):
        enhancing, other = tumor_scan(seed, size=size).label, tumor_scan(seed, "no_enhancement", size=size).label
        assert (enhancing == ET).sum() > 0
        assert (other == ET).sum() == 0
        assert (other == ED).sum() > 0
        assert (other == NCR).sum() < 0.2 * (other == ED).sum()


def test_necrosis_lies_inside_the_rim_and_the_rim_inside_the_edema() -> None:
    for seed in range(8):
        label = tumor_scan(seed, size=80).label
        touching = ndimage.binary_dilation(label == NCR) & (label != NCR)
        if touching.any():
            assert (label[touching] == ET).mean() > 0.8
        core = (label == NCR) | (label == ET)
        shell = ndimage.binary_dilation(core, iterations=1) & ~core
        assert (label[shell] == ED).mean() > 0.3  # elsewhere cortex, ventricles or the surface of the brain


def test_the_channels_show_what_radiologists_look_for() -> None:
    for seed in range(6):
        scan = tumor_scan(seed, size=80)

        def median(channel: str, where: NDArray[np.bool_], scan: TumorScan = scan) -> float:
            return float(np.median(scan.images[channel][where]))  # type: ignore[index]

        brain = (scan.images["t1n"] > 0) & (scan.label == 0)
        parts = {value: scan.label == value for value in (NCR, ED, ET)}
        assert median("t1c", parts[ET]) > 1.15 * median("t1c", brain)  # contrast agent
        assert median("t1c", parts[ET]) > 1.4 * median("t1n", parts[ET])
        assert median("t2f", parts[ED]) > 1.4 * median("t2f", brain)
        assert median("t2w", parts[ED]) > 1.2 * median("t2w", brain)
        white_matter = np.percentile(scan.images["t1n"][brain], 80)
        assert median("t1n", parts[ED]) < 0.9 * white_matter
        if parts[NCR].sum() > 30:
            assert median("t1c", parts[NCR]) < 0.7 * median("t1c", parts[ET])


def test_site_c_is_noisier_and_shows_less_enhancement() -> None:
    def measured(site: str) -> tuple[float, float]:
        noise, contrast = [], []
        for seed in range(4):
            scan = tumor_scan(seed, site=site)
            image = scan.images["t1c"].astype(float)
            brain = (image > 0) & (scan.label == 0)
            inside = ndimage.binary_erosion(brain, iterations=2)
            steps = np.abs(np.diff(image, n=2, axis=0))[inside[1:-1]]
            noise.append(np.median(steps) / np.median(image[brain]))  # a median: edges are few
            contrast.append(np.median(image[scan.label == ET]) / np.median(image[brain]))
        return float(np.mean(noise)), float(np.mean(contrast))

    (noise_a, contrast_a), (noise_c, contrast_c) = measured("A"), measured("C")
    assert noise_c > 1.5 * noise_a
    assert contrast_c < 0.9 * contrast_a


def test_a_second_time_point_is_the_same_brain_with_a_larger_tumor(tmp_path: Path) -> None:
    planned = generate_brats(tmp_path, cases=6, seed=3, size=40)
    twice = [p for p, count in Counter(case.patient for case in planned).items() if count == 2]
    assert twice
    for patient in twice:
        folders = [tmp_path / f"BraTS-GLI-{patient:05d}-{time:03d}" for time in (0, 1)]
        first, second = (np.asarray(nib.load(f / f"{f.name}-seg.nii.gz").dataobj) for f in folders)
        assert (second > 0).sum() > (first > 0).sum()
        assert (second[first > 0] > 0).mean() > 0.8


def test_volumes_of_a_tumor_do_not_depend_on_the_resolution() -> None:
    for seed in range(3):
        volumes = []
        for size in (60, 120):
            scan = tumor_scan(seed, size=size)
            voxel_ml = abs(np.linalg.det(scan.affine[:3, :3])) / 1000
            volumes.append([(scan.label == value).sum() * voxel_ml for value in (ED, ET)])
        assert volumes[0] == pytest.approx(volumes[1], rel=0.15)


def test_tumor_phantoms_need_32_voxels(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"size is 31; .* at least 32"):
        generate_brats(tmp_path, cases=6, size=31)


# BIDS


@pytest.fixture(scope="module")
def bids(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("bids")
    generate_bids(out, cases=14, seed=1, size=16)
    return out


def participants(root: Path) -> list[dict[str, str]]:
    with (root / "participants.tsv").open() as file:
        return list(csv.DictReader(file, delimiter="\t"))


def test_every_image_has_its_sidecar_and_every_session_its_label(bids: Path) -> None:
    sessions = sorted(bids.glob("sub-*/ses-*"))
    assert len(sessions) == 14
    with_t1w = 0
    for session in sessions:
        subject = session.parent.name
        stem = f"{subject}_{session.name}"
        label = bids / "derivatives" / "labels" / subject / session.name / "anat" / f"{stem}_dseg.nii.gz"
        names = {path.name for path in (session / "anat").iterdir()}
        expected = {f"{stem}_T2w.nii.gz", f"{stem}_T2w.json"}
        assert expected <= names <= expected | {f"{stem}_T1w.nii.gz", f"{stem}_T1w.json"}
        reference = nib.load(label)
        for image in (session / "anat").glob("*.nii.gz"):
            assert np.allclose(nib.load(image).affine, reference.affine)
            assert nib.load(image).shape == reference.shape
            sidecar = json.loads(image.with_name(image.name.replace(".nii.gz", ".json")).read_text())
            assert sidecar["SliceThickness"] == pytest.approx(max(nib.load(image).header.get_zooms()), abs=1e-3)
        with_t1w += f"{stem}_T1w.nii.gz" in names
    assert 0 < with_t1w < 14


def test_the_table_has_a_row_per_subject_and_few_unknown_values(bids: Path) -> None:
    rows = participants(bids)
    assert list(rows[0]) == ["participant_id", "age", "sex", "diagnosis", "site"]
    assert [row["participant_id"] for row in rows] == sorted(path.name for path in bids.glob("sub-*"))
    assert {row["diagnosis"] for row in rows} == {"typical", "enlarged_ventricles", "absent_cerebellum"}
    unknown = [column for row in rows for column, value in row.items() if value == "n/a"]
    assert set(unknown) == {"age", "sex"}
    assert len(unknown) <= 4
    assert all(20 <= int(row["age"]) <= 80 for row in rows if row["age"] != "n/a")


def test_the_diagnosis_is_what_the_labels_show(bids: Path) -> None:
    for row in participants(bids):
        for path in (bids / "derivatives" / "labels" / row["participant_id"]).rglob("*_dseg.nii.gz"):
            label = np.asarray(nib.load(path).dataobj)
            has_cerebellum = bool((label == STRUCTURES["cerebellum"]).any())
            assert has_cerebellum == (row["diagnosis"] != "absent_cerebellum")


def test_the_site_is_the_scanner_of_the_sidecars(bids: Path) -> None:
    sites: dict[str, set[str]] = {}
    for row in participants(bids):
        for path in (bids / row["participant_id"]).rglob("*.json"):
            sites.setdefault(row["site"], set()).add(json.loads(path.read_text())["Manufacturer"])
    assert sites == {"site_a": {"Alpha Imaging"}, "site_b": {"Beta Scanners"}}


def test_the_descriptions_are_those_that_bids_requires(bids: Path) -> None:
    raw = json.loads((bids / "dataset_description.json").read_text())
    derived = json.loads((bids / "derivatives" / "labels" / "dataset_description.json").read_text())
    assert raw["BIDSVersion"] == derived["BIDSVersion"] == "1.9.0"
    assert (raw["DatasetType"], derived["DatasetType"]) == ("raw", "derivative")
    assert derived["GeneratedBy"][0]["Name"]
    with (bids / "derivatives" / "labels" / "dseg.tsv").open() as file:
        names = {row["name"]: int(row["index"]) for row in csv.DictReader(file, delimiter="\t")}
    assert names == {"background": 0, **STRUCTURES}


def test_people_have_the_promised_shares() -> None:
    people = plan_people(300, seed=4)
    anatomies = Counter(person.anatomy for person in people)
    assert sum(len(person.weightings) for person in people) == 300
    assert anatomies["enlarged_ventricles"] / len(people) == pytest.approx(0.2, abs=0.01)
    assert anatomies["absent_cerebellum"] / len(people) == pytest.approx(0.1, abs=0.01)
    assert sum(p.protocol == "thick_slice" for p in people) / len(people) == pytest.approx(1 / 3, abs=0.01)
    assert sum(len(p.weightings) == 2 for p in people) / len(people) == pytest.approx(1 / 4, abs=0.01)


def test_t1w_has_the_opposite_contrast_of_t2w() -> None:
    person = next(p for p in plan_people(20, 0) if "T1w" in p.weightings[0])
    scans = session_scans(person, 1, 0, 40)
    csf, white = STRUCTURES["ventricles"], STRUCTURES["white_matter"]
    for weighting, brighter, darker in (("T2w", csf, white), ("T1w", white, csf)):
        scan = scans[weighting]  # type: ignore[index]
        assert np.median(scan.image[scan.label == brighter]) > 1.2 * np.median(scan.image[scan.label == darker])
    assert np.array_equal(scans["T1w"].affine, scans["T2w"].affine)


# DICOM


@pytest.fixture(scope="module")
def dicom(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("highdicom")
    from droseg.data.phantoms.dicom import generate_dicom

    out = tmp_path_factory.mktemp("dicom")
    generate_dicom(out, cases=6, seed=0, size=16)
    return out


def test_a_series_read_back_is_the_scan_in_its_place(dicom: Path) -> None:
    from droseg.data.volumes import read_volume

    oblique = 0
    for person in plan_people(6, 0):
        for session in range(1, len(person.weightings) + 1):
            (study,) = (dicom / f"PHANTOM-{person.number:03d}").glob(f"*_{session}")
            for weighting, scan in session_scans(person, session, 0, 16).items():
                (series,) = study.glob(f"*_{weighting}")
                volume = read_volume(series)
                index = np.argwhere(np.ones(volume.array.shape[1:], bool))
                points = volume.affine @ np.c_[index, np.ones(len(index))].T
                there = (np.linalg.inv(scan.affine) @ points)[:3]
                assert np.abs(there - np.round(there)).max() < 1e-3
                values = scan.image[tuple(np.round(there).astype(int))]
                assert np.array_equal(values, volume.array[0][tuple(index.T)])
                oblique += bool((np.abs(volume.affine[:3, :3]) > 1e-6).sum() > 3)
    assert oblique > 0


def test_the_seg_holds_the_labels_in_their_place(dicom: Path) -> None:
    import highdicom as hd

    for person in plan_people(6, 0):
        scan = session_scans(person, 1, 0, 16)["T2w"]
        (path,) = (dicom / f"PHANTOM-{person.number:03d}").glob("*_1/900_segmentation/*.dcm")
        seg = hd.seg.segread(path)
        volume = seg.get_volume(combine_segments=True)
        affine = np.diag([-1, -1, 1, 1]) @ volume.affine  # LPS to RAS
        index = np.argwhere(scan.label > 0)
        there = (np.linalg.inv(affine) @ (scan.affine @ np.c_[index, np.ones(len(index))].T))[:3]
        assert np.abs(there - np.round(there)).max() < 1e-2
        assert np.array_equal(volume.array[tuple(np.round(there).astype(int))], scan.label[tuple(index.T)])
        names = {d.segment_label: d.segment_number for d in map(seg.get_segment_description, seg.segment_numbers)}
        assert names == STRUCTURES


def test_the_scanners_differ_and_every_name_and_date_is_invented(dicom: Path) -> None:
    import pydicom

    scanners = set()
    for path in dicom.rglob("*_T?w/*.dcm"):
        dataset = pydicom.dcmread(path, stop_before_pixels=True)
        words = set(str(dataset.PatientName).split("^"))
        assert not words & set(dataset.Manufacturer.split())  # else a de-identification must drop the manufacturer
        scanners.add((dataset.Manufacturer, float(dataset.MagneticFieldStrength), float(dataset.SliceThickness)))
        assert str(dataset.PatientName).startswith("Invented")
        assert str(dataset.ReferringPhysicianName).startswith("Invented")
        assert dataset.InstitutionName.startswith("Invented")
        assert dataset.PatientBirthDate == "19000101"
        assert dataset.StudyDate.startswith("200001")
    assert scanners == {("Alpha Imaging", 3.0, 8.0), ("Beta Scanners", 1.5, 12.0)}


def test_a_localizer_is_three_slices_in_three_directions(dicom: Path) -> None:
    import pydicom

    for folder in dicom.rglob("001_localizer"):
        orientations = [pydicom.dcmread(path).ImageOrientationPatient for path in sorted(folder.iterdir())]
        normals = [np.cross(cosines[:3], cosines[3:]) for cosines in np.array(orientations, float)]
        assert np.abs(np.array(normals) @ np.array(normals).T) == pytest.approx(np.eye(3), abs=1e-6)


def test_dicom_without_its_libraries_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from droseg.data.phantoms.dicom import generate_dicom

    monkeypatch.setitem(sys.modules, "highdicom", None)
    with pytest.raises(InputError, match=r"highdicom is missing; pip install 'droseg\[dicom-seg\]'"):
        generate_dicom(tmp_path, cases=6, size=16)


# all


@pytest.mark.parametrize(("layout", "size"), [("brats", "32"), ("bids", "16"), ("dicom", "16")])
def test_the_same_seed_gives_the_same_bytes(
    tmp_path: Path, layout: str, size: str, capsys: pytest.CaptureFixture[str]
) -> None:
    if layout == "dicom":
        pytest.importorskip("highdicom")
    for name, seed, workers in (("one", "5", "1"), ("two", "5", "2"), ("other", "6", "1")):
        options = ["--cases", "6", "--size", size, "--seed", seed, "--workers", workers]
        assert run(tmp_path / name, layout, *options) == 0
    assert hashes(tmp_path / "one") == hashes(tmp_path / "two")
    assert hashes(tmp_path / "one") != hashes(tmp_path / "other")
    assert "site: " in capsys.readouterr().out


@pytest.mark.parametrize("layout", ["brats", "bids", "dicom"])
def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path, layout: str) -> None:
    if layout == "dicom":
        pytest.importorskip("highdicom")
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="file"):
        run(tmp_path / "file", layout, "--cases", "6", "--size", "32")


def test_a_text_file_is_replaced_as_a_whole(tmp_path: Path) -> None:
    path, kept = tmp_path / "tree" / "sites.csv", tmp_path / "kept"
    write_text("old\n", path)
    kept.hardlink_to(path)  # the old file under a second name: writing into it would show here
    write_text("new\n", path)
    assert (kept.read_text(), path.read_text()) == ("old\n", "new\n")
    assert [each.name for each in path.parent.iterdir()] == ["sites.csv"]
