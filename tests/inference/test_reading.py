from __future__ import annotations

import gzip
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from droseg.inference import ImageError, find_inputs, read_image
from droseg.inference.reading import image_checksum

Save = Callable[..., Path]


def volume(shape: tuple[int, ...] = (6, 5, 4), seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def with_zero_spacing(path: Path) -> Path:
    image = nib.Nifti1Image(volume(), np.eye(4))
    image.set_sform(np.diag([1, 1, 0, 1]), code=1)
    nib.save(image, path)
    return path


def truncated(path: Path, keep: float) -> Path:
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * keep)])
    return path


def _link(path: Path, target: Path) -> Path:
    path.symlink_to(target)
    return path


def with_a_nan(array: np.ndarray) -> np.ndarray:
    array[1, 2, 3] = np.nan
    return array


def with_zero_pixdim(path: Path) -> Path:
    nib.save(nib.Nifti1Image(volume(), np.eye(4)), path)
    raw = bytearray(path.read_bytes())
    raw[76 + 4 * 3 : 76 + 4 * 4] = bytes(4)  # pixdim[3]; nibabel itself writes no zero
    raw[252:256] = (1).to_bytes(2, "little") + bytes(2)  # qform_code, sform_code
    path.write_bytes(raw)
    return path


BAD_FILES: dict[str, tuple[Callable[[Path, Save], Path], str]] = {
    "missing": (lambda folder, save: folder / "x.nii.gz", "no such file"),
    "no spacing": (lambda folder, save: with_zero_pixdim(folder / "x.nii"), "voxel spacing of 1 x 1 x 0 mm"),
    "dangling link": (lambda folder, save: _link(folder / "x.nii", folder / "gone.nii"), "which does not exist here"),
    "empty": (lambda folder, save: _bytes(folder / "x.nii.gz", b""), "empty file"),
    "pdf": (lambda folder, save: _bytes(folder / "x.nii.gz", b"%PDF-1.7 report"), "not an image"),
    "gzipped_text": (lambda folder, save: _bytes(folder / "x.nii.gz", gzip.compress(b"a" * 900)), "not an image"),
    "truncated_gzip": (
        lambda folder, save: truncated(save(folder / "x.nii.gz", volume((20, 20, 20))), 0.6),
        "truncated",
    ),
    "truncated_plain": (lambda folder, save: truncated(save(folder / "x.nii", volume((20, 20, 20))), 0.6), "truncated"),
    "nan": (lambda folder, save: save(folder / "x.nii", with_a_nan(volume())), "1 of 120 voxels are NaN"),
    "2d": (lambda folder, save: save(folder / "x.nii", volume((6, 5))), r"shape \(6, 5\)"),
    "one_slice": (lambda folder, save: save(folder / "x.nii", volume((6, 5, 1))), r"shape \(6, 5, 1\)"),
    "two_channels": (lambda folder, save: save(folder / "x.nii", volume((6, 5, 4, 2))), "2 channels, but .* takes 1"),
    "complex": (lambda folder, save: save(folder / "x.nii", volume().astype(np.complex64)), "complex64"),
    "zero_spacing": (lambda folder, save: with_zero_spacing(folder / "x.nii"), "affine"),
    "empty_folder": (lambda folder, save: _folder(folder / "series"), "without NIfTI or DICOM"),
}


def _bytes(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def _folder(path: Path) -> Path:
    path.mkdir()
    return path


@pytest.mark.parametrize("kind", BAD_FILES)
def test_a_bad_image_is_named_with_what_was_found_and_what_to_do(tmp_path: Path, kind: str, save: Save) -> None:
    make, found = BAD_FILES[kind]
    path = make(tmp_path, save)
    with pytest.raises(ImageError, match=found) as caught:
        read_image([path], 1)
    assert str(path) in caught.value.found
    assert caught.value.remedy
    assert "\n" not in str(caught.value)


def test_voxels_are_scaled_as_the_header_says(tmp_path: Path) -> None:
    image = nib.Nifti1Image(np.arange(60, dtype=np.int16).reshape(3, 4, 5), np.diag([2, 2, 2, 1]))
    image.header.set_slope_inter(0.5, 10)
    nib.save(image, tmp_path / "x.nii")
    expected = np.asarray(nib.load(tmp_path / "x.nii").get_fdata())
    found = read_image([tmp_path / "x.nii"], 1)
    np.testing.assert_allclose(found.numpy()[0], expected, rtol=1e-6)
    np.testing.assert_array_equal(found.affine.numpy(), np.diag([2, 2, 2, 1]))


def test_channels_on_different_grids_are_refused(tmp_path: Path, save: Save) -> None:
    first = save(tmp_path / "a.nii", volume())
    moved = np.eye(4)
    moved[0, 3] = 1.0
    second = save(tmp_path / "b.nii", volume(), moved)
    with pytest.raises(ImageError, match=r"b\.nii: its grid is not that of a\.nii"):
        read_image([first, second], 2)


@pytest.mark.parametrize("shift_mm", [0.0, 1e-6, 0.049])
def test_channels_whose_headers_differ_by_rounding_are_on_the_grid_of_the_first(
    tmp_path: Path, save: Save, shift_mm: float
) -> None:
    moved = np.eye(4)
    moved[0, 3] = shift_mm  # within a twentieth of a voxel, as for labels
    paths = [save(tmp_path / "a.nii", volume()), save(tmp_path / "b.nii", volume(seed=1), moved)]
    found = read_image(paths, 2)
    np.testing.assert_array_equal(found.numpy(), np.stack([volume(), volume(seed=1)]))
    np.testing.assert_array_equal(found.affine.numpy(), np.eye(4))


@pytest.mark.parametrize("suffix", [".nrrd", ".mha"])
def test_nrrd_and_metaimage_land_on_the_same_grid_as_nifti(tmp_path: Path, suffix: str, save: Save) -> None:
    itk = pytest.importorskip("itk", reason="skipped: ITK is not installed")
    affine = np.array([[0, 0, 2.0, 5], [-1.5, 0, 0, 7], [0, 1.2, 0, -9], [0, 0, 0, 1]])
    nifti = save(tmp_path / "x.nii", volume(), affine)
    itk.imwrite(itk.imread(str(nifti)), str(tmp_path / f"x{suffix}"))
    expected, found = read_image([nifti], 1), read_image([tmp_path / f"x{suffix}"], 1)
    np.testing.assert_array_equal(found.numpy(), expected.numpy())
    np.testing.assert_allclose(found.affine.numpy(), expected.affine.numpy(), atol=1e-6)


@pytest.mark.real_data
def test_a_dicom_series_lies_where_its_own_headers_say(real_data: Path) -> None:
    pytest.importorskip("itk", reason="skipped: ITK is not installed")
    pydicom = pytest.importorskip("pydicom", reason="skipped: pydicom is not installed")
    folder = real_data / "dicom" / "t1_post"
    found = read_image([folder], 1)
    slices = [pydicom.dcmread(path) for path in sorted(folder.iterdir())]
    assert found.shape == (1, slices[0].Columns, slices[0].Rows, len(slices))
    first = np.array([float(value) for value in slices[0].ImagePositionPatient])
    along = np.array([[float(value) for value in item.ImagePositionPatient] for item in slices])
    normal = np.cross(*np.array(slices[0].ImageOrientationPatient, dtype=float).reshape(2, 3))
    order = np.argsort(along @ normal)
    for index in (0, len(slices) - 1):  # the corner of the first and of the last slice, LPS -> RAS
        corner = found.affine.numpy() @ [0, 0, index, 1]
        np.testing.assert_allclose(corner[:3], along[order[index]] * [-1, -1, 1], atol=1e-2)
        pixels = slices[order[index]].pixel_array.T
        np.testing.assert_array_equal(found.numpy()[0, :, :, index], pixels.astype(np.float32))
    assert first.shape == (3,)


def test_the_checksum_covers_voxels_that_lie_in_a_file_of_their_own(tmp_path: Path) -> None:
    array = np.arange(60, dtype="<i2").reshape(5, 4, 3)
    (tmp_path / "scan.raw").write_bytes(array.tobytes())
    header = "NDims = 3\nDimSize = 3 4 5\nElementType = MET_SHORT\nElementSpacing = 1 1 1\nElementDataFile = scan.raw\n"
    (tmp_path / "scan.mhd").write_text(header)
    before = image_checksum([tmp_path / "scan.mhd"])
    (tmp_path / "scan.raw").write_bytes((array + 1).tobytes())
    assert image_checksum([tmp_path / "scan.mhd"]) != before
    found = find_inputs([tmp_path], tmp_path / "out")
    assert [case.case_id for case in found.cases] == ["scan"]
    assert not found.skipped, "the voxels are part of the image"
