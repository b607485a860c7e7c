"""What is planned of which data; truths by hand from the geometry of the data sets in conftest."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from droseg.data.datalist import parse_datalist
from droseg.errors import BundleError, DatalistError
from droseg.plan import Budget, Plan, make_plan, take_fingerprint
from droseg.plan.sides import has_side
from droseg.plan.spacing import target_spacing
from droseg.plan.template import overlapping, read_template

GIB = 2**30
CPU = Budget(4 * GIB, "a test", False, "a test", False, 16 * GIB, 4)
GPU = Budget(4 * GIB, "a test", True, "a test", True, 16 * GIB, 4)
MakeDatalist = Callable[..., Path]


def plan(path: Path, budget: Budget = CPU, like: str | None = None) -> Plan:
    datalist, entries = parse_datalist(path)
    fingerprint, _ = take_fingerprint(datalist, entries)
    return make_plan(datalist, fingerprint, budget, read_template(like, datalist.structures))


def test_measures_are_of_the_axes_after_the_turn_to_ras(make_datalist: MakeDatalist) -> None:
    # Array axis 0 goes down (2 mm), axis 1 to the left (0.5 mm), axis 2 to the front (1 mm).
    affine = np.array([[0, -0.5, 0, 0], [0, 0, 1, 0], [-2, 0, 0, 0], [0, 0, 0, 1.0]])
    datalist, _ = parse_datalist(make_datalist(shape=(12, 40, 30), affine=affine))
    case = take_fingerprint(datalist)[0].cases[0]
    assert case.spacing_mm == (0.5, 1.0, 2.0)
    assert case.shape == (40, 30, 12)
    assert case.box == (40, 30, 12)
    assert case.zero_share == 0.0
    # 2 voxels wide (third of 12, halved), 13 and 10 long, of 1 mm^3 each.
    assert dict(case.voxels) == {"anterior": 2 * 13 * 10, "posterior": 2 * 13 * 10}
    assert case.intensity[0] is not None
    assert case.intensity[0] == pytest.approx(160, abs=5)  # 100 + 40 and 100 + 80, alike often


def test_values_of_the_background_are_not_measured_as_labelled(make_datalist: MakeDatalist) -> None:
    datalist, _ = parse_datalist(make_datalist())
    only = replace(datalist, structures={"anterior": (1,)}, background=(0, 2))
    case = take_fingerprint(only)[0].cases[0]
    assert list(case.voxels) == ["anterior"]
    assert case.intensity[0] is not None
    assert case.intensity[0] == pytest.approx(140, abs=5)  # 100 + 40 alone


def test_a_straight_set_gets_its_median_spacing_and_a_patch_that_holds_it(make_datalist: MakeDatalist) -> None:
    found = plan(make_datalist())
    assert found["spacing_mm"] == [1.0, 1.0, 1.5]
    assert found["roi_size"] == [20, 20, 14]
    assert found["network_def"]["strides"] == [2, [2, 2, 1]]  # 18 -> 9 -> 5, but 14 -> 7 stops
    assert found["network_def"]["channels"] == [32, 64, 128]
    assert found["crop"] == "uniform"
    assert found["normalization"] == "all"
    assert found["mirror_axes"] == [0]
    assert (found["select"], found["group_axes"]) == ("val_dice/worst_group", ["site"])
    assert found["batch_size"] == 2
    steps = found["epochs"] * found["batches_per_epoch"]
    assert steps == 2500
    assert found["warmup_steps"] == 50


def test_thick_slices_get_flat_kernels_and_turns_in_the_plane(make_datalist: MakeDatalist) -> None:
    found = plan(make_datalist(shape=(64, 72, 10), spacing_mm=(0.8, 0.8, 5.0), channels=("T2w", "FLAIR")))
    assert found["spacing_mm"] == [0.8, 0.8, 5.0]
    assert found["network_def"]["_target_"] == "DynUNet"
    assert found["network_def"]["kernel_size"][0] == [3, 3, 1]
    assert found["network_def"]["strides"][1] == [2, 2, 1]
    assert found["roi_size"][2] >= 10
    assert found["rotate_range"] == [0.0, 0.0, 0.3]
    assert found["scale_range"] == [0.2, 0.2, 0.0]
    assert found["channels"] == ["T2w", "FLAIR"]


def test_the_target_of_a_thick_axis_is_the_tenth_percentile(make_datalist: MakeDatalist) -> None:
    path = make_datalist(shape=(64, 64, 8), spacing_mm=(0.8, 0.8, 5.0), sizes={"training": 10})
    thicknesses = [3.0, 4.0, *[5.0] * 6, 6.0, 6.0]
    for index, thickness in enumerate(thicknesses):
        for name in ("0", "label"):
            file = path.parent / f"tr_{index}_{name}.nii.gz"
            image = nib.load(file)
            nib.save(nib.Nifti1Image(np.asarray(image.dataobj), np.diag([0.8, 0.8, thickness, 1])), file)
    datalist, _ = parse_datalist(path)
    spacing, reason = target_spacing(take_fingerprint(datalist)[0])
    # Linear between the smallest two of ten: 3 + 0.9 * 1.
    assert spacing == pytest.approx((0.8, 0.8, 3.9))
    assert "10th percentile" in reason
    assert "0.8 x 0.8 x 3 mm to 0.8 x 0.8 x 6 mm" in reason


def test_masked_images_are_normalized_over_what_is_not_zero(make_datalist: MakeDatalist) -> None:
    found = plan(make_datalist(shape=(48, 48, 48), spacing_mm=(1, 1, 1), masked=True))
    assert found["normalization"] == "nonzero"
    assert "of them is exactly 0" in found.reason("normalization")
    assert max(found["roi_size"]) <= 16  # of the box of 16 x 16 x 16, not of the image
    assert "holds what is not 0 in the median image, 16 x 16 x 16 " in found.reason("roi_size")
    assert found["crop"] == "classes"


def test_steps_count_what_patches_are_cut_from(make_datalist: MakeDatalist) -> None:
    # 30 cases of 48^3 voxels, of which a box of 16^3 is not 0.
    path = make_datalist(shape=(48, 48, 48), spacing_mm=(1, 1, 1), masked=True, sizes={"training": 30})
    whole = plan(path, GPU)
    path.write_text(path.read_text().replace('"anterior": 1', '"anterior": [1, 2]'))
    cropped = plan(path, GPU)  # like brats_mri, which crops to what is not 0
    for found, edge in ((whole, 48), (cropped, 16)):
        assert (found["roi_size"], found["batch_size"]) == ([16, 16, 16], 2)
        steps = found["epochs"] * found["batches_per_epoch"]
        assert steps == pytest.approx(200 * 30 * edge**3 / (2 * 16**3), rel=0.01)  # each voxel is seen 200 times
    assert "in the box around what is not 0" in cropped.reason("epochs")
    assert "in the box" not in whole.reason("epochs")
    assert cropped.reason("cache_rate") == whole.reason("cache_rate")  # volumes stay in memory whole


def test_structures_with_a_side_forbid_mirroring(make_datalist: MakeDatalist) -> None:
    found = plan(make_datalist(structures=("lung_left", "lung_right")))
    assert found["mirror_axes"] == []
    assert "lung_left, lung_right have a side" in found.reason("mirror_axes")


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        *[(name, True) for name in ("Left-Hippocampus", "hippocampus_l", "ctx-lh-insula", "leftLung", "kidneyRight")],
        *[(name, False) for name in ("bright_lesion", "cleft", "lesion", "upright", "white_matter", "ET", "liver")],
    ],
)
def test_a_side_is_read_from_the_name(name: str, expected: bool) -> None:
    assert has_side(name) is expected


def test_less_memory_gives_a_smaller_patch_that_fits(make_datalist: MakeDatalist) -> None:
    path = make_datalist(shape=(96, 80, 64), spacing_mm=(1, 1, 1))
    small, large = (plan(path, Budget(m, "", False, "", False, GIB, 2)) for m in (2**28, 2**32))
    assert small.fit.needed <= 2**28
    assert np.prod(small["roi_size"]) < np.prod(large["roi_size"])
    assert small["crop"] == "classes"
    assert "the largest of which 2 fit into" in small.reason("roi_size")
    assert large.fit.needed > small.fit.needed


def test_a_gpu_gets_workers_and_a_full_ram_a_part_of_the_cache(make_datalist: MakeDatalist) -> None:
    path = make_datalist(shape=(32, 32, 32), spacing_mm=(1, 1, 1))
    found = plan(path, GPU)
    assert (found["num_workers"], found["cache_rate"]) == (3, 1.0)
    # 10 cases of 32^3 voxels, image and label of 4 bytes: 2.6 MB; half of 2 MB holds 38 % of it.
    scarce = plan(path, Budget(GIB, "", True, "", True, 2_000_000, 4))
    assert scarce["cache_rate"] == pytest.approx(0.38)


def test_memory_of_another_machine_says_what_is_for_this_one(make_datalist: MakeDatalist) -> None:
    path, note = make_datalist(), "num_workers and cache_rate are for this machine"
    given, found = (plan(path, replace(CPU, memory_given=value)) for value in (True, False))
    assert given["num_workers"] == 0
    assert next(text for text in given.notes if text.startswith(note)).endswith("set num_workers=8.")
    assert note not in " ".join(found.notes)
    assert note not in " ".join(plan(path, replace(GPU, memory_given=True)).notes)


def test_without_validation_the_last_network_is_taken(make_datalist: MakeDatalist) -> None:
    assert plan(make_datalist(sizes={"training": 4}))["select"] == "last"


def test_three_slices_are_not_halved(make_datalist: MakeDatalist) -> None:
    found = plan(make_datalist(shape=(32, 32, 3), spacing_mm=(1, 1, 1)))
    assert found["roi_size"] == [32, 32, 3]
    assert all(stride == [2, 2, 1] for stride in found["network_def"]["strides"])
    assert "holds the median image, 32 x 32 x 3 " in found.reason("roi_size")


def test_half_a_slice_of_the_median_is_no_limit_of_the_volume(make_datalist: MakeDatalist) -> None:
    path = make_datalist(shape=(32, 32, 3), spacing_mm=(1, 1, 1), sizes={"training": 4})
    for index in range(2):  # two of four have a fourth slice: 3.5 in the median
        for name in ("0", "label"):
            file = path.parent / f"tr_{index}_{name}.nii.gz"
            image = nib.load(file)
            nib.save(nib.Nifti1Image(np.pad(image.dataobj, ((0, 0), (0, 0), (0, 1)), "edge"), image.affine), file)
    found = plan(path)
    assert found["roi_size"] == [32, 32, 3]
    assert "holds the median image, 32 x 32 x 3.5 " in found.reason("roi_size")


def test_all_errors_are_said_in_one_run(make_datalist: MakeDatalist) -> None:
    path = make_datalist()
    (path.parent / "tr_1_0.nii.gz").write_bytes(b"no image")
    (path.parent / "va_0_label.nii.gz").unlink()
    path.write_text(path.read_text().replace(', "label": "tr_2_label.nii.gz"', ""))
    with pytest.raises(DatalistError) as error:
        plan(path)
    message = str(error.value)
    assert "3 error(s)" in message
    for part in ("tr_1_0.nii.gz", "va_0_label.nii.gz", "tr_2", "no label"):
        assert part in message


def test_one_case_or_a_structure_that_nobody_has_is_refused(make_datalist: MakeDatalist) -> None:
    with pytest.raises(DatalistError, match="training has 1 case"):
        plan(make_datalist(name="one", sizes={"training": 1}))
    path = make_datalist(name="never")
    path.write_text(path.read_text().replace('"posterior": 2', '"posterior": 2, "never": 9'))
    with pytest.raises(DatalistError, match="no training case has never"):
        plan(path)
    with pytest.raises(DatalistError, match="no section 'training'"):
        plan(make_datalist(name="none", sizes={"testing": 2}))


def test_regions_ask_for_a_bundle_that_trains_regions() -> None:
    regions = {"whole": (1, 2), "core": (2,)}
    assert overlapping(regions) == ["whole", "core"]
    assert overlapping({"a": (1, 2), "b": (3,)}) == []
    with pytest.raises(BundleError, match="whole, core overlap"):
        read_template("hippocampus_mri", regions)
