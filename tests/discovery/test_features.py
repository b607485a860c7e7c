from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from droseg.data.datalist import Case, Datalist
from droseg.discovery import (
    Condition,
    HiddenSubgroup,
    axis_names,
    datalist_features,
    merge_features,
    read_features,
    volume_features,
    with_hidden_axes,
)
from droseg.discovery.features import image_features, label_volumes_ml
from droseg.discovery.network import network_features
from droseg.errors import InputError


def save(path: Path, array: np.ndarray, affine: np.ndarray) -> Path:
    nib.save(nib.Nifti1Image(array, affine), path)
    return path


@pytest.fixture
def scan(tmp_path: Path) -> Case:
    """A coronal stack: 20 slices of 3 mm run to the back, pixels of 0.8 mm, stored left to right and foot to head."""
    affine = np.zeros((4, 4))
    affine[0, 0], affine[2, 1], affine[1, 2], affine[3, 3] = 0.8, 0.8, -3.0, 1.0
    image = np.zeros((40, 50, 20), dtype=np.int16)
    image[10:20] = np.arange(1, 101).repeat(100).reshape(10, 50, 20)
    label = np.zeros((40, 50, 20), dtype=np.uint8)
    label[:10, :10, :5], label[20:25, :10, :5] = 1, 2
    return Case(
        "c1", "p1", (save(tmp_path / "c1.nii.gz", image, affine),), save(tmp_path / "l1.nii.gz", label, affine), {}
    )


def test_header_features_are_in_mm_of_the_patient(scan: Case):
    features = image_features(scan)
    assert features["slice_thickness_mm"] == 3.0
    assert features["in_plane_mm"] == 0.8
    assert features["slice_plane"] == "coronal"
    assert features["orientation"] == "RSP"
    assert features["tilt_deg"] == 0.0
    assert features["extent_left_right_mm"] == 32.0
    assert features["extent_back_front_mm"] == 60.0
    assert features["extent_foot_head_mm"] == 40.0
    assert features["stored_as"] == "int16"
    assert features["zero_share"] == 0.75
    assert features["intensity_median"] == 50.5
    assert features["intensity_p99"] == pytest.approx(99, abs=1)


def test_an_oblique_scan_has_the_angle_it_was_turned_by(scan: Case, tmp_path: Path):
    turn = np.radians(12)
    affine = np.diag([1.0, 1, 1, 1])
    affine[:2, :2] = [[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]]
    case = Case("c", "c", (save(tmp_path / "turned.nii.gz", np.ones((8, 8, 8), np.int16), affine),), None, {})
    features = image_features(case)
    assert features["tilt_deg"] == 12.0
    assert features["slice_plane"] == "isotropic"


def test_scanner_tags_come_from_the_sidecar_and_names_of_patients_do_not(scan: Case):
    tags = {"MagneticFieldStrength": 3, "Manufacturer": "Siemens", "PatientName": "Doe", "EchoTime": [1, 2]}
    (scan.images[0].parent / "c1.json").write_text(json.dumps(tags))
    features = image_features(scan)
    assert features["MagneticFieldStrength"] == 3.0
    assert features["Manufacturer"] == "Siemens"
    assert not {"PatientName", "EchoTime"} & set(features)


def test_channels_have_intensities_of_their_own(scan: Case, tmp_path: Path):
    affine = np.diag([1.0, 1, 1, 1])
    paths = tuple(save(tmp_path / f"{v}.nii.gz", np.full((4, 4, 4), v, np.int16), affine) for v in (7, 9))
    features = image_features(Case("c", "c", paths, None, {}), ("T1w", "T2w"))
    assert (features["T1w_intensity_median"], features["T2w_intensity_median"]) == (7.0, 9.0)


def test_volumes_are_in_ml_and_a_region_is_the_sum_of_its_labels(scan: Case):
    voxel_ml = 0.8 * 0.8 * 3 / 1000
    volumes = label_volumes_ml(scan, {"one": (1,), "two": (2,), "both": (1, 2), "absent": (3,)})
    assert volumes == pytest.approx(
        {"one_ml": 500 * voxel_ml, "two_ml": 250 * voxel_ml, "both_ml": 750 * voxel_ml, "absent_ml": 0.0}
    )


def test_a_case_that_cannot_be_read_is_named_and_the_others_are_read(scan: Case, tmp_path: Path):
    gone = Case("gone", "gone", (tmp_path / "gone.nii.gz",), None, {})
    table, problems = datalist_features([gone, scan], {"one": (1,)})
    assert list(table.index) == ["c1"]
    assert "gone.nii.gz: no such file" in problems["gone"]


def test_volumes_of_a_cases_table_are_those_of_the_reference():
    cases = pd.DataFrame(
        {"case_id": ["a", "a", "b"], "structure": ["x", "y", "x"], "volume_ref_ml": [1.0, 0.0, 3.0], "dice": 0.5}
    )
    table = volume_features(cases)
    assert table["x_ml"].to_dict() == {"a": 1.0, "b": 3.0}
    assert table.loc["a", "y_ml"] == 0.0
    assert np.isnan(table.loc["b", "y_ml"])
    assert list(volume_features(cases.drop(columns="volume_ref_ml")).columns) == []


def test_of_two_sources_the_first_counts_and_the_second_fills_gaps():
    first = pd.DataFrame({"v": [1.0, np.nan]}, index=["a", "b"])
    second = pd.DataFrame({"v": [9.0, 2.0, 3.0], "w": [1, 2, 3]}, index=["a", "b", "c"])
    assert merge_features([first, second])["v"].to_dict() == {"a": 1.0, "b": 2.0, "c": 3.0}
    assert merge_features([first, second])["w"].to_dict() == {"a": 1, "b": 2, "c": 3}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("id,age\na,3\n", "no column 'case_id'; those there: id, age"),
        ("case_id,age\na,3\na,4\n", "case 'a' is there twice"),
        ("", "not a CSV with a header line"),
    ],
)
def test_a_features_file_that_cannot_be_used_says_why(tmp_path: Path, text: str, message: str):
    path = tmp_path / "features.csv"
    path.write_text(text)
    with pytest.raises(InputError, match=message):
        read_features(path)


def test_features_of_a_spreadsheet_are_numbers_and_texts(tmp_path: Path):
    path = tmp_path / "features.csv"
    path.write_text("case_id;age;coil\n001;23.5;head\n002;;body\n")
    table = read_features(path)
    assert list(table.index) == ["001", "002"]
    assert table["age"].tolist() == pytest.approx([23.5, np.nan], nan_ok=True)
    assert table["coil"].tolist() == ["head", "body"]


def test_an_exported_axis_covers_all_sections_but_cases_whose_features_are_unknown():
    cases = {name: Case(name, name, (Path("/x.nii"),), None, {"site": "a"}) for name in ("a", "b", "c", "d")}
    datalist = Datalist(
        Path("/d.json"), ("T1w",), {}, {"training": (cases["a"], cases["b"]), "testing": (cases["c"], cases["d"])}
    )
    features = pd.DataFrame({"age": [1.0, 9.0, np.nan]}, index=["a", "b", "c"])
    rule = (Condition("age", ">", 5.0),)
    subgroup = HiddenSubgroup("age > 5", rule, ("b",), 1, 1, 1, 0.5, 0.9, -0.4, (-0.5, -0.3), 0.01, 0.02, True, None)
    extended = with_hidden_axes(datalist, features, [subgroup], ["hidden_1"])
    groups = {case.case_id: case.groups for section in extended.sections.values() for case in section}
    assert groups == {
        "a": {"site": "a", "hidden_1": "outside"},
        "b": {"site": "a", "hidden_1": "inside"},
        "c": {"site": "a"},
        "d": {"site": "a"},
    }


def test_new_axes_leave_older_ones_alone():
    assert axis_names(3, ["protocol", "hidden_2"]) == ["hidden_1", "hidden_3", "hidden_4"]


def test_network_features_come_from_the_narrowest_layer():
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.down, self.up = nn.AvgPool3d(4), nn.Upsample(scale_factor=4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.up(self.down(x))

    network, rng = Net(), np.random.default_rng(0)
    levels = np.arange(6.0)
    # Two windows per image; means of the pooled maps are 2 x level + 1, without any spread in space
    images = {f"c{i}": torch.full((2, 1, 8, 8, 8), v) for i, v in enumerate(levels)}
    table = network_features(network, lambda x: [network(part[None] * 2 + 1) for part in x], images, 3)
    assert table.shape == (6, 1)
    assert table["network_1"].to_numpy() == pytest.approx((levels - levels.mean()) / levels.std())
    noisy = {k: v + torch.as_tensor(rng.normal(size=v.shape)) for k, v in images.items()}
    table = network_features(network, network, noisy, 3)
    pooled = np.array(
        [
            [f(v.numpy().reshape(2, 2, 4, 2, 4, 2, 4).mean((2, 4, 6)), (1, 2, 3)).mean() for f in (np.mean, np.std)]
            for v in noisy.values()
        ]
    )
    standard = (pooled - pooled.mean(0)) / pooled.std(0)
    assert np.cov(table.to_numpy().T, ddof=0).diagonal() == pytest.approx(
        np.sort(np.linalg.eigvalsh(np.cov(standard.T, ddof=0)))[::-1]
    )
    assert not network._forward_hooks


def test_a_network_without_maps_is_refused():
    network = nn.Sequential(nn.Flatten(), nn.Linear(8, 2))
    with pytest.raises(ValueError, match="no bottleneck"):
        network_features(network, network, {"a": torch.zeros(1, 1, 2, 2, 2)})
