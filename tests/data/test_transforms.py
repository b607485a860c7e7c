"""Label values to class indices, file names after cases, and cases as items."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import Compose, EnsureChannelFirstd, Invertd, LoadImaged, SaveImaged, Spacingd

from droseg.data import Case, Datalist
from droseg.data.items import reference_items, section_items
from droseg.data.transforms import LabelsToClassesd, NameAfterCased, class_indices
from droseg.errors import DatalistError

# Value 2 is left out, though it is the class index of `stem`; 7 and 40 are far from any class index.
STRUCTURES = {"cortex": 7, "stem": 40, "csf": 1}
VALUES = [[0, 1, 2], [3, 7, 40], [255, 7, 1]]
CLASSES = [[0, 3, 0], [0, 1, 2], [0, 1, 3]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.int64, torch.uint8])
def test_a_structure_left_out_is_background_even_where_its_value_is_a_class_index(dtype):
    affine = torch.diag(torch.tensor([0.8, 0.8, 3.0, 1.0], dtype=torch.float64))
    label = MetaTensor(torch.tensor(VALUES, dtype=dtype)[None, :, :, None], affine=affine)
    items = {"label": label, "case_id": "a"}
    result = LabelsToClassesd("label", STRUCTURES)(items)
    assert result["label"][0, :, :, 0].tolist() == CLASSES
    assert result["label"].dtype == dtype
    torch.testing.assert_close(result["label"].affine, affine)
    assert items["label"] is label
    assert label[0, :, :, 0].tolist() == VALUES, "the input is left as it was"


def test_values_off_by_the_rounding_of_a_resampling_are_taken():
    label = MetaTensor(torch.tensor([6.9999995, 7.0000005, 39.99999, 0.2])[None])
    assert LabelsToClassesd("label", STRUCTURES)({"label": label})["label"].tolist() == [[1, 1, 2, 0]]


def test_class_indices_follow_the_order_of_the_structures():
    assert class_indices(STRUCTURES) == {"cortex": 1, "stem": 2, "csf": 3}
    label = MetaTensor(torch.tensor([[7.0, 40.0, 1.0]]))
    classes = LabelsToClassesd("label", STRUCTURES)({"label": label})["label"][0].tolist()
    assert classes == list(class_indices(STRUCTURES).values())


def test_an_item_without_label_passes_if_allowed():
    assert LabelsToClassesd("label", STRUCTURES, allow_missing_keys=True)({"image": 1}) == {"image": 1}
    with pytest.raises(KeyError):
        LabelsToClassesd("label", STRUCTURES)({"image": 1})


def test_the_history_of_the_spatial_transforms_survives(tmp_path: Path):
    # A prediction is inverted by the label's or image's recorded operations: they must not be lost on the way.
    values = np.zeros((6, 5, 4), dtype=np.uint8)
    values[1:4, 1:4, 1:3] = 7
    nib.save(nib.Nifti1Image(values, np.diag([1.0, 1.0, 2.0, 1.0])), tmp_path / "label.nii.gz")
    pre = Compose(
        [
            LoadImaged("label"),
            EnsureChannelFirstd("label"),
            Spacingd("label", pixdim=(1, 1, 1), mode="nearest"),
            LabelsToClassesd("label", STRUCTURES),
        ]
    )
    item = pre({"label": str(tmp_path / "label.nii.gz")})
    assert item["label"].shape == (1, 6, 5, 7)
    back = Invertd("label", pre, orig_keys="label", nearest_interp=True)(item)
    np.testing.assert_array_equal(back["label"][0].numpy(), values == 7)


def test_files_are_named_after_the_case_not_after_the_image(tmp_path: Path):
    folder = tmp_path / "sub-07"
    folder.mkdir()
    nib.save(nib.Nifti1Image(np.zeros((4, 4, 4), dtype=np.uint8), np.eye(4)), folder / "image.nii.gz")
    Compose(
        [
            LoadImaged("image"),
            EnsureChannelFirstd("image"),
            NameAfterCased("image"),
            SaveImaged(
                "image", output_dir=tmp_path / "out", output_postfix="seg", separate_folder=False, print_log=False
            ),
        ]
    )({"image": str(folder / "image.nii.gz"), "case_id": "patient7"})
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["patient7_seg.nii.gz"]


def cohort(*cases: Case) -> Datalist:
    return Datalist(Path("list.json"), ("T2w",), {"cortex": (7,)}, {"training": cases})


def test_items_carry_their_row_and_one_path_per_channel():
    one = Case("a", "pa", (Path("/a.nii.gz"),), Path("/a_seg.nii.gz"), {})
    two = Case("b", "pb", (Path("/b0.nii.gz"), Path("/b1.nii.gz")), None, {})
    assert section_items(cohort(one, two), "training") == [
        {"image": "/a.nii.gz", "label": "/a_seg.nii.gz", "case_id": "a", "index": 0},
        {"image": ["/b0.nii.gz", "/b1.nii.gz"], "case_id": "b", "index": 1},
    ]
    assert section_items(cohort(one), "testing") == []


def test_references_are_out_of_reach_of_the_preprocessing():
    one = Case("a", "pa", (Path("/a.nii.gz"),), Path("/a_seg.nii.gz"), {})
    (item,) = reference_items(cohort(one), "training")
    assert item["reference"] == "/a_seg.nii.gz"
    assert "label" not in item
    without = Case("b", "pb", (Path("/b.nii.gz"),), None, {})
    with pytest.raises(DatalistError, match="no label for b"):
        reference_items(cohort(one, without), "training")
