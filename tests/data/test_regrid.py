"""Volumes lie on the new grid where their headers put them; labels keep their values, borders and places."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from droseg.cli import main
from droseg.data import read_datalist
from droseg.data.regrid import regrid as regrid_cases
from droseg.data.regrid_resample import Grid, lost_share, resample_image, resample_labels, with_spacing

MOVED = np.array([3.0, -7.0, 11.0])


def rotation(degrees: float, axis: int = 2) -> np.ndarray:
    """Return a rotation about one axis, (3, 3)."""
    turn = np.eye(3)
    a, b = (k for k in range(3) if k != axis)
    angle = np.radians(degrees)
    turn[[a, a, b, b], [a, b, a, b]] = [np.cos(angle), -np.sin(angle), np.sin(angle), np.cos(angle)]
    return turn


def centered(shape: tuple[int, int, int], spacing: tuple[float, ...], turn: np.ndarray | None = None) -> Grid:
    """Return a grid whose middle is at `MOVED`."""
    affine = np.eye(4)
    affine[:3, :3] = (np.eye(3) if turn is None else turn) @ np.diag(spacing)
    affine[:3, 3] = MOVED - affine[:3, :3] @ ((np.array(shape) - 1) / 2)
    return Grid(shape, affine)


def points(grid: Grid) -> np.ndarray:
    """Return where the centers of the voxels lie, (*shape, 3) in mm."""
    index = np.stack(np.meshgrid(*(np.arange(n) for n in grid.shape), indexing="ij"), axis=-1)
    return index @ grid.affine[:3, :3].T + grid.affine[:3, 3]


def center_of_mass(mask: np.ndarray, grid: Grid) -> np.ndarray:
    return points(grid)[mask].mean(axis=0)


def dice(first: np.ndarray, second: np.ndarray) -> float:
    return 2 * float((first & second).sum()) / float(first.sum() + second.sum())


FLIPPED = np.diag([-1.0, 1.0, -1.0])
PERMUTED = np.array([[0.0, 0, 1], [1, 0, 0], [0, 1, 0]])
TURNS = [np.eye(3), FLIPPED, PERMUTED, rotation(20), rotation(-35, 0) @ FLIPPED, rotation(10, 1) @ rotation(30)]


@pytest.mark.parametrize("turn", TURNS)
def test_a_linear_ramp_has_its_value_at_every_point_of_the_new_grid(turn: np.ndarray) -> None:
    source = centered((30, 28, 12), (1.5, 1.5, 4.0), turn)
    target = centered((20, 22, 24), (1.0, 1.1, 0.9))
    slope = np.array([2.0, -3.0, 5.0])
    found, outside = resample_image(points(source) @ slope, source.affine, target)
    assert outside == 0
    np.testing.assert_allclose(found, points(target) @ slope, atol=1e-3)


@pytest.mark.parametrize("order", [1, 3])
def test_flipped_and_permuted_axes_only_reorder_the_voxels(order: int) -> None:
    array = np.random.default_rng(0).normal(size=(9, 10, 11)).astype(np.float32)
    source = centered((9, 10, 11), (1.0, 2.0, 3.0))
    affine = source.affine @ np.array([[0, -1, 0, 8], [0, 0, 1, 0], [1, 0, 0, 0], [0, 0, 0, 1.0]])
    found, outside = resample_image(array, source.affine, Grid((11, 9, 10), affine), order)
    assert outside == 0
    np.testing.assert_allclose(found, array[::-1].transpose(2, 0, 1), atol=1e-5)


def test_what_lies_outside_is_zero_and_counted_by_voxel_borders() -> None:
    source = Grid((10, 10, 10), np.diag([2.0, 2, 2, 1]))  # covers -1 to 19 mm
    affine = np.eye(4)
    affine[:3, 3] = [-3.5, 0, 0]
    found, outside = resample_image(np.full((10, 10, 10), 7.0), source.affine, Grid((10, 18, 18), affine))
    # Centers at -3.5, -2.5, -1.5 are outside; -0.5 is within the first voxel, though beyond its center.
    assert outside == pytest.approx(0.3)
    np.testing.assert_array_equal(found[:3], 0)
    np.testing.assert_array_equal(found[3:], 7)


def test_cubic_interpolation_is_closer_on_a_smooth_image_and_does_not_overshoot() -> None:
    source, target = centered((24, 24, 24), (2.0, 2, 2)), centered((30, 30, 30), (1.0, 1, 1))
    smooth = [np.sin(points(grid) @ [0.4, 0.3, 0.2]) for grid in (source, target)]
    linear, cubic = (resample_image(smooth[0], source.affine, target, order)[0] for order in (1, 3))
    assert np.abs(cubic - smooth[1]).max() < np.abs(linear - smooth[1]).max() / 3
    step = (points(source)[..., 0] > MOVED[0]).astype(float)
    found, _ = resample_image(step, source.affine, target, 3)
    assert (float(found.min()), float(found.max())) == (0.0, 1.0)


def test_a_coarser_grid_averages_and_skips_no_voxel() -> None:
    checks = np.indices((32, 32, 32)).sum(axis=0) % 2  # the finest pattern there is; its mean is 0.5
    source = centered((32, 32, 32), (1.0, 1, 1))
    found, _ = resample_image(checks, source.affine, centered((8, 8, 8), (4.0, 4, 4)))
    np.testing.assert_allclose(found[1:-1, 1:-1, 1:-1], 0.5, atol=0.01)


# ---- labels


@pytest.mark.parametrize("turn", TURNS)
@pytest.mark.parametrize("target_mm", [(0.5, 0.5, 0.5), (1.0, 1.0, 1.0), (0.7, 1.3, 0.9)])
def test_a_thin_structure_stays_in_its_place_and_nothing_is_invented(
    turn: np.ndarray, target_mm: tuple[float, ...]
) -> None:
    source = centered((32, 30, 16), (1.0, 1.0, 3.0), turn)
    label = np.zeros(source.shape, np.uint8)
    label[8:24, 14:16, 5:11] = 5  # a sheet of two voxels
    label[8:24, 18:22, 5:11] = 2
    target = centered(tuple(np.ceil(32 / np.array(target_mm)).astype(int)), target_mm)  # type: ignore[arg-type]
    found = resample_labels(label, source.affine, target)
    assert set(np.unique(found)) == {0, 2, 5}
    # The sheet lies in the middle of both grids. Beside it, where the new centers happen to lie among the borders moves
    # the center of mass, too, unless there are many of them.
    for value in (5, 2) if max(target_mm) < 1 else (5,):
        shift_mm = center_of_mass(found == value, target) - center_of_mass(label == value, source)
        assert (np.abs(shift_mm) <= 0.1 * np.array(target_mm)).all()
    if max(target_mm) < 1:
        volume = np.array([(found == value).sum() * np.prod(target_mm) for value in (5, 2)])
        np.testing.assert_allclose(volume, [16 * 2 * 18, 16 * 4 * 18], rtol=0.06)
    inside = points(target)[found > 0] - MOVED  # no voxel beyond the borders of the structures, in their own axes
    local = np.abs(inside @ turn)
    assert (local.max(axis=0) <= np.array([8.0, 7.0, 9.0]) + 1e-6).all()


@pytest.mark.parametrize("turn", [np.eye(3), rotation(25) @ rotation(15, 0)])
def test_a_sphere_is_closer_to_the_truth_than_by_the_nearest_voxel(turn: np.ndarray) -> None:
    def sphere(grid: Grid) -> np.ndarray:
        return np.asarray(np.linalg.norm(points(grid) - MOVED - [0.3, 0.2, 0.1], axis=-1) <= 12)

    source, target = centered((32, 32, 12), (1.0, 1.0, 3.0), turn), centered((36, 36, 36), (0.8, 0.8, 0.8))
    label = sphere(source).astype(np.uint8)
    found = resample_labels(label, source.affine, target)
    index = np.rint((points(target) - source.affine[:3, 3]) @ np.linalg.inv(source.affine[:3, :3]).T).astype(int)
    nearest = label[tuple(np.clip(index, 0, np.array(source.shape) - 1).reshape(-1, 3).T)].reshape(target.shape)
    ours, theirs = dice(found == 1, sphere(target)), dice(nearest == 1, sphere(target))
    assert ours > theirs + 0.015
    assert ours > 0.96


def test_labels_on_their_own_grid_turned_and_back_are_the_same() -> None:
    label = np.random.default_rng(1).integers(0, 4, (9, 10, 11)).astype(np.int16)
    source = centered((9, 10, 11), (1.0, 2.0, 3.0), FLIPPED)
    np.testing.assert_array_equal(resample_labels(label, source.affine, source), label)
    affine = source.affine @ np.array([[0, -1, 0, 8], [0, 0, 1, 0], [1, 0, 0, 0], [0, 0, 0, 1.0]])
    found = resample_labels(label, source.affine, Grid((11, 9, 10), affine))
    np.testing.assert_array_equal(found, label[::-1].transpose(2, 0, 1))


def test_equal_shares_go_to_the_lower_value_on_both_sides() -> None:
    label = np.zeros((8, 4, 4), np.uint8)
    label[2:4], label[4:6] = 7, 3
    affine = np.diag([1.0, 1, 1, 1])
    affine[0, 3] = 0.5  # new centers lie in the middle between two old ones
    found = resample_labels(label, np.eye(4), Grid((7, 4, 4), affine))
    np.testing.assert_array_equal(found[:, 2, 2], [0, 0, 7, 3, 3, 0, 0])


def test_on_a_coarser_grid_the_structure_with_most_of_the_voxel_has_it() -> None:
    label = np.zeros((24, 24, 24), np.uint8)
    label[:, :, :11] = 1
    label[12, 12, 20] = 2  # one voxel of 27
    source = Grid((24, 24, 24), np.eye(4))
    found = resample_labels(label, source.affine, with_spacing(source, (3.0, 3, 3)))
    np.testing.assert_array_equal(found[4, 4], [1, 1, 1, 1, 0, 0, 0, 0])


def test_no_value_is_new_for_random_labels_and_grids() -> None:
    rng = np.random.default_rng(2)
    for turn in TURNS:
        label = rng.choice([0, 3, 17, 300], (12, 11, 10)).astype(np.int16)
        source = centered((12, 11, 10), (1.0, 1.7, 2.2), turn)
        found = resample_labels(label, source.affine, centered((15, 16, 17), (1.1, 0.9, 1.3)))
        assert set(np.unique(found)) <= {0, 3, 17, 300}


def test_one_structure_at_a_time_in_its_box_is_the_same_as_all_at_once() -> None:
    from scipy.ndimage import affine_transform

    rng = np.random.default_rng(3)
    label = np.kron(rng.integers(0, 5, (4, 4, 4)), np.ones((4, 4, 4), int)).astype(np.uint8)
    for turn in TURNS:
        source, target = centered((16, 16, 16), (1.0, 1.2, 1.4), turn), centered((20, 20, 20), (0.9, 0.9, 0.9))
        matrix = np.linalg.inv(source.affine) @ target.affine
        scores = [
            affine_transform((label == value).astype(float), matrix, output_shape=target.shape, order=1, mode="nearest")
            for value in range(5)
        ]
        top = np.sort(scores, axis=0)
        clear = (top[-1] - top[-2] > 1e-3) & (resample_image(np.ones(label.shape), source.affine, target)[0] > 0)
        found = resample_labels(label, source.affine, target)
        np.testing.assert_array_equal(found[clear], np.argmax(scores, axis=0)[clear])


@pytest.mark.parametrize("spacing", [(2.0, 2.0, 2.0), (0.75, 1.5, 1.2), (1.0, 1.0, 5.0)])
def test_another_spacing_keeps_middle_and_axes_and_moves_no_border_by_half_a_voxel(spacing: tuple[float, ...]) -> None:
    old = centered((33, 30, 14), (1.0, 1.0, 2.5), rotation(30))
    new = with_spacing(old, spacing)
    middles = [g.affine @ [*((np.array(g.shape) - 1) / 2), 1] for g in (old, new)]
    np.testing.assert_allclose(*middles)
    np.testing.assert_allclose(np.linalg.norm(new.affine[:3, :3], axis=0), spacing)
    extents = [np.array(g.shape) * np.linalg.norm(g.affine[:3, :3], axis=0) for g in (old, new)]
    assert (np.abs(extents[0] - extents[1]) <= np.array(spacing) / 2 + 1e-9).all()


def test_the_lost_share_counts_labelled_voxels_beyond_the_border() -> None:
    label = np.zeros((10, 4, 4), np.uint8)
    label[2:8, 1, 1] = 1
    assert lost_share(label, np.eye(4), Grid((5, 4, 4), np.eye(4))) == pytest.approx(0.5)
    assert lost_share(np.zeros((4, 4, 4)), np.eye(4), Grid((5, 4, 4), np.eye(4))) == 0


# ---- the command


def save(path: Path, array: np.ndarray, affine: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(array, affine), path)
    return path


T1 = centered((16, 14, 12), (1.0, 1.0, 1.0))
T2 = centered((20, 18, 7), (0.9, 0.9, 3.0), rotation(10))


@pytest.fixture
def cohort(tmp_path: Path) -> Path:
    """Return a datalist: p1 has T1, T2 and a label on three grids, p2 all on one, p3 only half of its T2."""
    rng = np.random.default_rng(0)
    entries = []
    half = Grid(T2.shape, T2.affine.copy())
    half.affine[:3, 3] += [9, 0, 0]
    for name, second in (("p1", T2), ("p2", T1), ("p3", half)):
        for channel, grid in (("t1", T1), ("t2", second)):
            save(tmp_path / f"{name}_{channel}.nii.gz", rng.integers(1, 900, grid.shape).astype(np.int16), grid.affine)
        on = T1 if name == "p2" else T2
        label = np.zeros(on.shape, np.uint8)
        label[6:14, 5:10, 2:5] = 4
        save(tmp_path / f"{name}_seg.nii.gz", label, on.affine)
        images = [f"{name}_t1.nii.gz", f"{name}_t2.nii.gz"]
        entry = {"case_id": name, "patient_id": f"P{name}", "image": images, "label": f"{name}_seg.nii.gz"}
        entries.append(entry | {"groups": {"site": name}, "fold": 1})
    document = {"channels": {"0": "T1", "1": "T2"}, "structures": {"x": 4}, "training": entries[:2]}
    path = tmp_path / "all.json"
    path.write_text(json.dumps(document | {"testing": entries[2:]}))
    return path


def regrid(*arguments: object) -> int:
    return main(["data", "regrid", *map(str, arguments)])


def test_all_volumes_of_a_case_are_on_the_grid_of_the_first_channel_and_the_rest_is_kept(
    cohort: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert regrid(cohort, "--out", tmp_path / "out") == 0
    printed = capsys.readouterr()
    assert "p2: on one grid already" in printed.out
    assert "2 cases resampled, 1 on one grid already" in printed.out
    (warning,) = [line for line in printed.err.splitlines() if "p3: T2:" in line]
    assert "of the grid lies outside of it" in warning
    old, new = read_datalist(cohort), read_datalist(tmp_path / "out" / "datalist.json")
    assert (new.channels, new.structures) == (old.channels, old.structures)
    for section in ("training", "testing"):
        for before, after in zip(old.sections[section], new.sections[section], strict=True):
            assert (after.case_id, after.patient_id, after.groups, after.fold) == (
                *(before.case_id, before.patient_id),
                *(before.groups, before.fold),
            )
            for path in (*after.images, after.label):
                assert path is not None
                assert nib.load(path).shape == T1.shape
                np.testing.assert_allclose(nib.load(path).affine, T1.affine, atol=1e-6)
            first = [np.asarray(nib.load(case.images[0]).dataobj) for case in (before, after)]
            np.testing.assert_array_equal(*first)
            assert first[1].dtype == np.int16
    assert (tmp_path / "out" / "images" / "p1_0001.nii.gz").is_file()


@pytest.mark.parametrize(
    ("options", "grid"),
    [
        (["--reference", "T2"], T2),
        (["--like", "label"], T2),
        (["--spacing-mm", "2,2,2"], with_spacing(T1, (2, 2, 2))),
        (["--like", "label", "--spacing-mm", "1,1,1"], with_spacing(T2, (1, 1, 1))),
    ],
)
def test_the_grid_is_the_one_that_was_asked_for(cohort: Path, tmp_path: Path, options: list[str], grid: Grid) -> None:
    assert regrid(cohort, "--out", tmp_path / "out", *options) == 0
    case = read_datalist(tmp_path / "out" / "datalist.json").sections["training"][0]
    for path in (*case.images, case.label):
        assert path is not None
        assert nib.load(path).shape == grid.shape
        np.testing.assert_allclose(nib.load(path).affine, grid.affine, atol=1e-5)


def test_the_same_command_again_writes_nothing_and_other_options_need_leave_to_overwrite(
    cohort: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert regrid(cohort, "--out", out) == 0
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*.nii.gz")}
    datalist = (out / "datalist.json").read_text()
    capsys.readouterr()
    assert regrid(cohort, "--out", out) == 0
    assert "3 there already" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*.nii.gz")} == before
    assert (out / "datalist.json").read_text() == datalist
    assert regrid(cohort, "--out", out, "--spacing-mm", "2,2,2") == 1
    assert "made from other files or options; --overwrite" in capsys.readouterr().err
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*.nii.gz")} == before
    assert (out / "datalist.json").read_text() == datalist
    assert regrid(cohort, "--out", out, "--spacing-mm", "2,2,2", "--overwrite") == 0
    assert nib.load(out / "images" / "p1_0000.nii.gz").shape == (8, 7, 6)


def stray(folder: Path) -> None:
    label = nib.load(folder / "p1_seg.nii.gz")
    save(folder / "p1_seg.nii.gz", np.asarray(label.dataobj) * np.float32(0.625), label.affine)


def far(folder: Path) -> None:
    image = nib.load(folder / "p1_t2.nii.gz")
    affine = image.affine.copy()
    affine[0, 3] += 500
    save(folder / "p1_t2.nii.gz", np.asarray(image.dataobj), affine)


def no_header(folder: Path) -> None:
    image = nib.Nifti1Image(np.asarray(nib.load(folder / "p1_t2.nii.gz").dataobj), None)
    image.header["sform_code"] = image.header["qform_code"] = 0
    nib.save(image, folder / "p1_t2.nii.gz")


def missing(folder: Path) -> None:
    (folder / "p1_t2.nii.gz").unlink()


def cut(folder: Path) -> None:
    path = folder / "p1_t2.nii.gz"
    path.write_bytes(path.read_bytes()[:-300])


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (stray, "p1_seg.nii.gz: label values that are not whole numbers >= 0 (between 0 and 2.5)"),
        (far, "p1_t2.nii.gz: it lies entirely outside of the grid"),
        (no_header, "p1_t2.nii.gz: its header does not say where it lies"),
        (missing, "p1_t2.nii.gz: no such file"),
        (cut, "p1_t2.nii.gz: the voxels cannot be read"),
    ],
)
def test_a_bad_case_is_one_line_and_the_others_go_on(
    cohort: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    edit: Callable[[Path], None],
    message: str,
) -> None:
    edit(tmp_path)
    assert regrid(cohort, "--out", tmp_path / "out") == 1
    errors = [line for line in capsys.readouterr().err.splitlines() if "error:" in line]
    assert len(errors) == 1
    assert message in errors[0]
    new = read_datalist(tmp_path / "out" / "datalist.json")
    names = [case.case_id for case in itertools.chain(*new.sections.values())]
    assert names == ["p2", "p3"]
    assert not list((tmp_path / "out").rglob("p1*"))


def test_a_4d_file_is_split_into_its_channels(tmp_path: Path) -> None:
    stack = np.random.default_rng(0).integers(0, 99, (*T1.shape, 2)).astype(np.int16)
    save(tmp_path / "a.nii.gz", stack, T1.affine)
    document = {"channels": {"0": "T1", "1": "T2"}, "structures": {"x": 1}, "training": [{"image": "a.nii.gz"}]}
    (tmp_path / "d.json").write_text(json.dumps(document))
    assert regrid(tmp_path / "d.json", "--out", tmp_path / "out") == 0
    (case,) = read_datalist(tmp_path / "out" / "datalist.json").sections["training"]
    for index, path in enumerate(case.images):
        assert path == tmp_path / "out" / "images" / f"a_000{index}.nii.gz"
        np.testing.assert_array_equal(np.asarray(nib.load(path).dataobj), stack[..., index])


def test_structures_that_vanish_and_labels_beyond_the_grid_are_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    label = np.zeros((16, 16, 16), np.uint8)
    label[4:12, 4:12, 4:12], label[8, 8, 8] = 1, 2
    save(tmp_path / "seg.nii.gz", label, np.eye(4))
    affine = np.diag([4.0, 4, 4, 1])
    affine[0, 3] = 9.5  # its border is at 7.5: half of the structure lies before it
    save(tmp_path / "a.nii.gz", np.ones((8, 8, 8), np.uint8), affine)
    document = {"channels": {"0": "T1"}, "structures": {"x": 1}}
    document |= {"training": [{"image": "a.nii.gz", "label": "seg.nii.gz"}]}
    (tmp_path / "d.json").write_text(json.dumps(document))
    assert regrid(tmp_path / "d.json", "--out", tmp_path / "out") == 0
    printed = capsys.readouterr().err
    assert "label: 50.0% of the labelled voxels lie outside of the grid" in printed
    assert "nothing is left of value 2 (1 voxels)" in printed


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--reference", "FLAIR"], "no channel is called 'FLAIR'; "),
        (["--like", "label", "--reference", "T2"], "give one of them"),
        (["--out", "."], "no datalist of an earlier run"),
    ],
)
def test_a_command_that_cannot_be_done_says_so(
    cohort: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    options: list[str],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cohort = cohort.rename(tmp_path / "datalist.json")
    monkeypatch.chdir(tmp_path)
    assert regrid(cohort, "--out", tmp_path / "out", *options) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("text", ["1,1", "1,1,x", "1,0,1", "1,nan,1"])
def test_a_spacing_that_is_none_is_refused(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        regrid("d.json", "--out", "o", "--spacing-mm", text)
    assert repr(text) in capsys.readouterr().err


@pytest.mark.parametrize("options", [[], ["--overwrite"]])
def test_the_users_own_images_are_never_replaced(
    cohort: Path, tmp_path: Path, options: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert regrid(cohort, "--out", tmp_path / "own") == 0
    datalist = (tmp_path / "own" / "datalist.json").rename(tmp_path / "own" / "of_mine.json")
    files = {path: path.read_bytes() for path in (tmp_path / "own").rglob("*.nii.gz")}
    capsys.readouterr()
    assert regrid(datalist, "--out", tmp_path / "own", "--spacing-mm", "3,3,3", *options) == 2
    assert "would be replaced; another --out" in capsys.readouterr().err
    assert files == {path: path.read_bytes() for path in (tmp_path / "own").rglob("*.nii.gz")}


def test_a_relative_folder_is_found_again(
    cohort: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert regrid(cohort, "--out", "../new") == 0
    capsys.readouterr()
    assert regrid(cohort, "--out", "../new") == 0
    assert "0 cases resampled, 0 on one grid already" in capsys.readouterr().out


def test_a_stopped_run_keeps_what_an_earlier_one_has_done_in_the_list(cohort: Path, tmp_path: Path) -> None:
    whole = read_datalist(cohort)
    count = sum(len(cases) for cases in whole.sections.values())
    assert count > 1
    assert regrid(cohort, "--out", tmp_path / "new") == 0
    outcomes = regrid_cases(whole, tmp_path / "new")
    assert next(outcomes).status == "there"
    outcomes.close()  # as a keyboard's interruption ends it
    after = read_datalist(tmp_path / "new" / "datalist.json")
    assert sum(len(cases) for cases in after.sections.values()) == count


def test_changed_voxels_beside_a_header_are_seen(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    values = np.arange(4 * 5 * 6, dtype="<i2")
    header = "ObjectType = Image\nNDims = 3\nDimSize = 4 5 6\nElementSpacing = 1 1 1\nOffset = 0 0 0\n"
    header += "TransformMatrix = 1 0 0 0 1 0 0 0 1\nElementType = MET_SHORT\nElementDataFile = a.raw\n"
    (tmp_path / "a.mhd").write_text(header)
    content = {"channels": {"0": "T1w"}, "testing": [{"case_id": "a", "image": "a.mhd"}]}
    (tmp_path / "list.json").write_text(json.dumps(content))
    (tmp_path / "a.raw").write_bytes(values.tobytes())
    assert regrid(tmp_path / "list.json", "--out", tmp_path / "new") == 0
    (tmp_path / "a.raw").write_bytes(values[::-1].tobytes() + b"\0\0")
    assert regrid(tmp_path / "list.json", "--out", tmp_path / "new") == 1
    assert "made from other files or options" in capsys.readouterr().err
