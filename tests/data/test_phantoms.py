"""The phantom cohort."""

from __future__ import annotations

import argparse
import hashlib
import time
from collections import Counter
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import ndimage

from droseg.cli import data as command
from droseg.data import Datalist, check_datalist, read_datalist
from droseg.data.phantoms import ANATOMIES, STRUCTURES, generate_phantoms
from droseg.data.phantoms.anatomy import Anatomy, random_waves
from droseg.data.phantoms.cohort import plan_cohort, section_sizes
from droseg.data.phantoms.scan import PROTOCOLS, Protocol, Scan, random_scan
from droseg.errors import InputError


def scan(anatomy: Anatomy, seed: int = 0, protocol: Protocol = "isotropic", size: int = 32) -> Scan:
    return random_scan(np.random.default_rng(seed), anatomy, protocol, size)


def volumes_ml(volume: Scan) -> dict[str, float]:
    voxel_ml = abs(np.linalg.det(volume.affine[:3, :3])) / 1000
    return {name: float((volume.label == value).sum() * voxel_ml) for name, value in STRUCTURES.items()}


def center_mm(volume: Scan, value: int) -> NDArray[np.float64]:
    index = np.argwhere(volume.label == value).mean(axis=0)
    return np.asarray(volume.affine[:3, :3] @ index + volume.affine[:3, 3])


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Datalist:
    return read_datalist(generate_phantoms(tmp_path_factory.mktemp("phantoms"), cases=24, seed=1, size=16))


def hashes(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.mark.parametrize("cases", [100, 130, 200, 500])
def test_a_usual_cohort_has_the_promised_numbers(cases: int) -> None:
    planned = plan_cohort(cases, seed=0)
    counts = Counter((case.section, case.anatomy) for case in planned)
    training = section_sizes(cases)["training"]
    assert len(planned) == cases
    assert training >= 60
    assert counts["training", "typical"] / training == pytest.approx(0.80, abs=0.02)
    assert counts["training", "enlarged_ventricles"] / training == pytest.approx(0.14, abs=0.02)
    assert counts["training", "absent_cerebellum"] / training == pytest.approx(0.06, abs=0.02)
    assert len({counts["testing", anatomy] for anatomy in ANATOMIES}) == 1
    assert counts["testing", "typical"] >= 10
    assert min(counts["validation", anatomy] for anatomy in ANATOMIES) >= (4 if cases > 100 else 3)


@pytest.mark.parametrize("cases", range(6, 40))
def test_a_small_cohort_has_all_sections(cases: int) -> None:
    sizes = section_sizes(cases)
    assert sum(sizes.values()) == cases
    assert min(sizes.values()) >= 1
    tested = [case for case in plan_cohort(cases, seed=0) if case.section == "testing"]
    assert {case.anatomy for case in tested} == set(ANATOMIES)
    assert {case.protocol for case in tested} == set(PROTOCOLS)


def test_protocols_are_mixed_in_every_section_and_anatomy() -> None:
    counts = Counter((case.section, case.anatomy, case.protocol) for case in plan_cohort(100, seed=3))
    sections = ("training", "validation", "testing")
    assert all(counts[s, a, p] > 0 for s in sections for a in ANATOMIES for p in PROTOCOLS)


def test_the_same_seed_gives_the_same_bytes_with_any_number_of_workers(tmp_path: Path) -> None:
    for name, seed, workers in (("one", 5, 1), ("two", 5, 2), ("other", 6, 1)):
        generate_phantoms(tmp_path / name, cases=6, seed=seed, size=16, workers=workers)
    assert hashes(tmp_path / "one") == hashes(tmp_path / "two")
    assert hashes(tmp_path / "one") != hashes(tmp_path / "other")


def test_a_cohort_passes_the_check_of_its_own_datalist(cohort: Datalist) -> None:
    assert [problem for problem in check_datalist(cohort) if problem.severity == "error"] == []


def test_some_cases_are_oblique_and_some_are_not_stored_as_ras() -> None:
    affines = [scan("typical", seed=seed, size=16).affine[:3, :3] for seed in range(24)]
    oblique = [bool((np.abs(affine) > 1e-6).sum() > 3) for affine in affines]
    ras = [nib.aff2axcodes(np.block([[a, np.zeros((3, 1))], [np.zeros((1, 3)), np.ones((1, 1))]])) for a in affines]
    assert 3 <= sum(oblique) <= 16
    assert 6 <= sum(codes != ("R", "A", "S") for codes in ras) <= 20


def test_voxels_are_2_mm_and_slices_3_mm() -> None:
    for seed in range(6):
        isotropic = scan("typical", seed, "isotropic", size=64)
        thick = scan("typical", seed, "thick_slice", size=64)
        assert np.linalg.norm(isotropic.affine[:3, :3], axis=0) == pytest.approx([2, 2, 2])
        assert sorted(np.linalg.norm(thick.affine[:3, :3], axis=0)) == pytest.approx([1.6, 1.6, 3.0])
        assert thick.label.size == pytest.approx(64**3, rel=0.1)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_volumes_in_ml_do_not_depend_on_the_resolution(protocol: Protocol) -> None:
    coarse, fine = (volumes_ml(scan("typical", 2, protocol, size)) for size in (40, 80))
    for name in ("white_matter", "cerebellum", "deep_gm", "outer_csf"):
        assert coarse[name] == pytest.approx(fine[name], rel=0.12), name


def test_the_anatomy_lies_upright_in_world_coordinates() -> None:
    for seed in range(8):
        for protocol in PROTOCOLS:
            volume = scan("typical", seed, protocol)
            cerebellum, brainstem, deep = (center_mm(volume, value) for value in (6, 7, 5))
            assert cerebellum[1] < brainstem[1]  # behind the brainstem
            assert cerebellum[2] < deep[2]  # below the deep grey matter
            assert abs(brainstem[0]) < 8  # in the middle


def test_enlarged_ventricles_come_with_a_small_low_cerebellum_and_little_outer_csf() -> None:
    descents_mm = []
    for seed in range(6):
        typical, rare = scan("typical", seed), scan("enlarged_ventricles", seed)
        before, after = volumes_ml(typical), volumes_ml(rare)
        assert after["ventricles"] > 3 * before["ventricles"]
        assert 0 < after["cerebellum"] < 0.6 * before["cerebellum"]
        assert after["outer_csf"] < 0.5 * before["outer_csf"]
        below = (center_mm(volume, 5) - center_mm(volume, 6) for volume in (typical, rare))
        descents_mm.append(-np.subtract(*below)[2])
    assert np.mean(descents_mm) > 7  # further below the deep grey matter


def test_only_the_third_anatomy_lacks_the_cerebellum() -> None:
    for seed in range(6):
        assert volumes_ml(scan("absent_cerebellum", seed))["cerebellum"] == 0
        assert min(volumes_ml(scan("typical", seed)).values()) > 1


def test_tissues_are_nested() -> None:
    label = scan("typical", seed=4, size=48).label
    touching = ndimage.binary_dilation(label == STRUCTURES["white_matter"]) & (label != STRUCTURES["white_matter"])
    assert (label[touching] == 0).mean() < 0.01  # white matter does not meet the skull
    filled = ndimage.binary_fill_holes(label > 0)
    assert (filled & (label == 0)).sum() == 0


def test_the_protocols_differ_in_noise_and_contrast() -> None:
    def means(volume: Scan) -> tuple[float, float, float]:
        white = volume.image[volume.label == STRUCTURES["white_matter"]].astype(float)
        cortex = volume.image[volume.label == STRUCTURES["cortical_gm"]].astype(float)
        return white.mean(), cortex.mean(), white.std() / white.mean()

    isotropic = [means(scan("typical", seed, "isotropic", 48)) for seed in range(4)]
    thick = [means(scan("typical", seed, "thick_slice", 48)) for seed in range(4)]
    assert all(white > cortex for white, cortex, _ in isotropic)
    assert all(white < cortex for white, cortex, _ in thick)
    assert min(noise for *_, noise in thick) > max(noise for *_, noise in isotropic)


def test_waves_on_a_grid_equal_the_sum_of_cosines() -> None:
    rng = np.random.default_rng(0)
    waves = random_waves(rng, components=2, waves=3, wavelength_mm=(10, 30), rms=1.0)
    affine = np.vstack([rng.normal(size=(3, 4)), [0, 0, 0, 1]])
    result = waves.on_grid(affine, (4, 5, 6))
    for index in ((0, 0, 0), (3, 1, 5), (2, 4, 0)):
        point = affine[:3, :3] @ index + affine[:3, 3]
        expected = (waves.amplitude * np.cos(waves.frequency @ point + waves.phase)).sum(axis=1)
        assert result[(slice(None), *index)] == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("arguments", [{"cases": 5}, {"size": 8}, {"seed": -1}])
def test_arguments_out_of_range_are_refused(tmp_path: Path, arguments: dict[str, int]) -> None:
    with pytest.raises(InputError, match=f"{next(iter(arguments))} is"):
        generate_phantoms(tmp_path, **arguments)


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="file"):
        generate_phantoms(tmp_path / "file", cases=6, size=16)


@pytest.mark.slow
def test_a_hundred_cases_take_less_than_a_minute_on_one_core(tmp_path: Path) -> None:
    start = time.process_time()
    generate_phantoms(tmp_path)
    assert time.process_time() - start < 60


def test_the_command_writes_a_cohort_and_counts_its_groups(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    parser = argparse.ArgumentParser()
    command.register(parser.add_subparsers())
    args = parser.parse_args(["data", "phantoms", str(tmp_path / "out"), "--cases", "8", "--size", "16", "--seed", "3"])
    assert args.run(args) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["all", "all", "4", "1", "3", "8"] in lines
    assert (tmp_path / "out" / "datalist.json").is_file()
