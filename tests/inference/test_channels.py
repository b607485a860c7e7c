"""Networks of two channels, segmented from every form in which people keep the channels of a case."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from droseg.cli import main
from droseg.inference import find_inputs

MakeBundle = Callable[..., Path]
Plant = Callable[..., tuple[np.ndarray, np.ndarray]]
Save = Callable[..., Path]
WriteSeries = Callable[..., list[Any]]


@pytest.fixture
def bundle(make_bundle: MakeBundle) -> Path:
    """Return a bundle of two channels; only the first one says something."""
    return make_bundle(channels=["T1w", "T2w"])


@pytest.fixture
def noise(plant: Plant) -> np.ndarray:
    return np.random.default_rng(0).normal(size=plant()[0].shape).astype(np.float32)


@pytest.fixture
def predict(bundle: Path, tmp_path: Path) -> Callable[..., dict[str, dict[str, Any]]]:
    """Return a function that runs `droseg predict` and gives the record of each case."""

    def run(*words: str | Path, code: int = 0, model: Path = bundle) -> dict[str, dict[str, Any]]:
        given = [str(word) for word in words]
        out = tmp_path / "out"
        options = ["--bundle", str(model), "--out", str(out), "--device", "cpu", "--no-overview"]
        assert main(["predict", *given, *options]) == code
        return {entry["case_id"]: entry for entry in json.loads((out / "predict.json").read_text())["cases"]}

    return run


def labels(out: Path, case_id: str) -> np.ndarray:
    return np.asanyarray(nib.load(out / f"{case_id}_seg.nii.gz").dataobj)


def test_files_numbered_as_in_nnunet_are_the_channels_of_one_case(
    predict: Callable[..., Any], tmp_path: Path, plant: Plant, save: Save, noise: np.ndarray
) -> None:
    image, label = plant()
    folder = tmp_path / "in"
    for case_id, sign in (("la_001", 1), ("la_002", -1)):
        save(folder / f"{case_id}_0001.nii.gz", noise * sign)  # the order of writing decides nothing
        save(folder / f"{case_id}_0000.nii.gz", image[::sign].copy())
    found = predict(folder)
    assert {name: len(entry["images"]) for name, entry in found.items()} == {"la_001": 2, "la_002": 2}
    np.testing.assert_array_equal(labels(tmp_path / "out", "la_001"), label)
    np.testing.assert_array_equal(labels(tmp_path / "out", "la_002"), label[::-1])


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["0000"], r"x_0001.nii.gz: no such file"),
        (["0001"], r"x_0000.nii.gz: no such file"),
        (["0000", "0001", "0002"], "3 channels, but the network takes 2"),
        (["0000", "0002"], r"x_0001.nii.gz: no such file"),
    ],
)
def test_a_set_that_is_not_whole_is_one_failing_case_and_the_rest_goes_on(
    predict: Callable[..., Any],
    tmp_path: Path,
    plant: Plant,
    save: Save,
    noise: np.ndarray,
    given: list[str],
    message: str,
) -> None:
    image, label = plant()
    for index in given:
        save(tmp_path / "in" / f"x_{index}.nii.gz", image)
    save(tmp_path / "in" / "whole_0000.nii.gz", image)
    save(tmp_path / "in" / "whole_0001.nii.gz", noise)
    found = predict(tmp_path / "in", code=1)
    assert {name: entry["status"] for name, entry in found.items()} == {"x": "failed", "whole": "ok"}
    assert message in found["x"]["error"]
    np.testing.assert_array_equal(labels(tmp_path / "out", "whole"), label)


def test_a_network_of_one_channel_takes_a_lone_0000_for_the_case_and_several_for_cases(
    tmp_path: Path, plant: Plant, save: Save
) -> None:
    for name in ("a_0000", "b_0000", "b_0001", "c_1234"):
        save(tmp_path / "in" / f"{name}.nii.gz", plant()[0])
    cases = find_inputs([tmp_path / "in"], tmp_path / "out").cases
    assert sorted(case.case_id for case in cases) == ["a", "b_0000", "b_0001", "c_1234"]
    assert {len(case.images) for case in cases} == {1}


def write_nrrd(path: Path, channels: list[np.ndarray]) -> Path:
    """Write an NRRD file by hand whose last axis is a list of channels; axes to right, front and up."""
    sizes = " ".join(map(str, (*channels[0].shape, len(channels))))
    header = [
        *("NRRD0004", "type: float", "dimension: 4", "space: right-anterior-superior", f"sizes: {sizes}"),
        *("space directions: (1,0,0) (0,1,0) (0,0,1) none", "kinds: domain domain domain list"),
        *("endian: little", "encoding: raw", "space origin: (0,0,0)", "", ""),
    ]
    path.write_bytes("\n".join(header).encode() + np.stack(channels, -1).astype("<f4").tobytes(order="F"))
    return path


def write_metaimage(path: Path, channels: list[np.ndarray]) -> Path:
    """Write a MetaImage file by hand with two values per voxel; axes to left, back and up, as it has them."""
    header = [
        *("ObjectType = Image", "NDims = 3", "BinaryData = True", "BinaryDataByteOrderMSB = False"),
        *("CompressedData = False", "TransformMatrix = -1 0 0 0 -1 0 0 0 1", "Offset = 0 0 0"),
        *("ElementSpacing = 1 1 1", f"DimSize = {' '.join(map(str, channels[0].shape))}"),
        *(f"ElementNumberOfChannels = {len(channels)}", "ElementType = MET_FLOAT", "ElementDataFile = LOCAL", ""),
    ]
    path.write_bytes("\n".join(header).encode() + np.stack(channels).astype("<f4").tobytes(order="F"))
    return path


def test_channels_lie_in_the_last_axis_of_one_file(
    predict: Callable[..., Any], tmp_path: Path, plant: Plant, save: Save, noise: np.ndarray
) -> None:
    image, label = plant()
    folder = tmp_path / "in"
    save(folder / "nifti.nii.gz", np.stack([image, noise], -1))
    save(folder / "numbered_0000.nii.gz", np.stack([image, noise], -1))  # holds all channels itself
    save(folder / "swapped.nii.gz", np.stack([noise, image], -1))
    write_nrrd(folder / "nrrd.nrrd", [image, noise])
    write_metaimage(folder / "meta.mha", [image, noise])
    found = predict(folder)
    assert set(found) == {"nifti", "numbered_0000", "swapped", "nrrd", "meta"}
    for name in set(found) - {"swapped"}:
        np.testing.assert_array_equal(labels(tmp_path / "out", name), label, err_msg=name)
    assert not np.array_equal(labels(tmp_path / "out", "swapped"), label)


def test_channels_in_the_first_axis_or_too_many_are_refused(
    predict: Callable[..., Any], tmp_path: Path, plant: Plant, save: Save, noise: np.ndarray
) -> None:
    image = plant()[0]
    save(tmp_path / "in" / "first.nii", np.stack([image, noise]))
    save(tmp_path / "in" / "three.nii", np.stack([image, noise, noise], -1))
    found = predict(tmp_path / "in", code=1)
    assert "16 channels, but the network takes 2" in found["first"]["error"]  # the last axis of (2, 24, 20, 16)
    assert "3 channels, but the network takes 2" in found["three"]["error"]


def test_a_datalist_gives_one_path_per_channel(
    predict: Callable[..., Any], tmp_path: Path, plant: Plant, save: Save, noise: np.ndarray
) -> None:
    image, label = plant()
    save(tmp_path / "t1" / "p1.nii.gz", image)
    save(tmp_path / "t2" / "p1.nii.gz", noise)
    save(tmp_path / "both" / "p2.nii.gz", np.stack([image, noise], -1))
    datalist = tmp_path / "datalist.json"
    testing = [
        {"case_id": "in_two_files", "image": ["t1/p1.nii.gz", "t2/p1.nii.gz"]},
        {"case_id": "in_one_file", "image": "both/p2.nii.gz"},
        {"case_id": "one_is_missing", "image": ["t1/p1.nii.gz", "t2/p9.nii.gz"]},
        {"case_id": "too_few", "image": ["t1/p1.nii.gz"]},
    ]
    content = {"channels": {"0": "T1w", "1": "T2w"}, "structures": {"anterior": 3, "posterior": 7}, "testing": testing}
    datalist.write_text(json.dumps(content))
    found = predict(datalist, "--section", "testing", code=1)
    assert {name: entry["status"] for name, entry in found.items()} == {
        "in_two_files": "ok",
        "in_one_file": "ok",
        "one_is_missing": "failed",
        "too_few": "failed",
    }
    assert f"{tmp_path / 't2' / 'p9.nii.gz'}: no such file" in found["one_is_missing"]["error"]
    assert "1 channel, but the network takes 2" in found["too_few"]["error"]
    for name in ("in_two_files", "in_one_file"):
        np.testing.assert_array_equal(labels(tmp_path / "out", name), label)


def test_each_series_description_chooses_one_channel(
    predict: Callable[..., Any], make_bundle: MakeBundle, tmp_path: Path, write_series: WriteSeries
) -> None:
    label = np.zeros((10, 9, 6), np.uint8)  # columns, rows, slices of `write_series`
    label[1:5, 2:8, 1:4], label[5:9, 1:4, 2:5] = 3, 7
    image = np.select([label == 3, label == 7], [100.0, 200.0], 0.0)

    def plain(index: int, dataset: Any) -> None:
        dataset.PixelData = image[:, :, index].T.astype("<i2").tobytes()

    def add(patient: str, number: int, description: str, edit: Callable[[int, Any], None] | None = None) -> None:
        uid = f"1.{len(patient)}.{number}"
        study = {"StudyInstanceUID": f"1.{len(patient)}", "SeriesNumber": number, "SeriesDescription": description}
        write_series(tmp_path / "in" / patient / str(number), uid=uid, edit=edit, **study)

    add("a", 1, "T2 tse")
    add("a", 2, "T1 mprage", plain)
    add("a", 3, "FLAIR")
    add("bb", 1, "T2 tse")
    model = make_bundle("dicom", image=image, channels=["T1w", "T2w"], spacing_mm=[1.2, 2.5, 1.5])
    chosen = ("--series-description", "^t1", "--series-description", "t2")
    found = predict(tmp_path / "in", *chosen, code=1, model=model)
    statuses = {name: entry["status"] for name, entry in found.items()}
    assert statuses == {"a": "ok", "1": "failed", "series 3 'FLAIR'": "skipped"}
    assert [Path(image.partition(" [")[0]).name for image in found["a"]["images"]] == ["2", "1"]
    assert "no series matches --series-description '^t1'" in found["1"]["error"]
    np.testing.assert_array_equal(labels(tmp_path / "out", "a"), label)


def test_all_forms_in_one_folder_get_names_of_their_own(
    predict: Callable[..., Any], tmp_path: Path, plant: Plant, save: Save, noise: np.ndarray
) -> None:
    image, label = plant()
    folder = tmp_path / "in"
    both = np.stack([image, noise], -1)
    for place in ("monday", "tuesday"):
        save(folder / place / "x_0000.nii.gz", image)
        save(folder / place / "x_0001.nii.gz", noise)
    save(folder / "x.nii.gz", both)
    write_nrrd(folder / "y.nrrd", [image, noise])
    found = predict(folder)
    assert len(found) == 4
    assert {"y"} < set(found)
    for name in found:
        np.testing.assert_array_equal(labels(tmp_path / "out", name), label)
    assert sorted(path for entry in found.values() for path in entry["images"]) == sorted(
        str(path) for path in folder.rglob("*") if path.is_file()
    )
