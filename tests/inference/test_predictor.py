from __future__ import annotations

import hashlib
import itertools
import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from droseg.errors import BundleError, InputError, WeightsError
from droseg.inference import ImageError, Predictor

MakeBundle = Callable[..., Path]
Plant = Callable[..., tuple[np.ndarray, np.ndarray]]
Save = Callable[..., Path]


def oblique(spacing_mm: tuple[float, float, float] = (1, 1, 1)) -> np.ndarray:
    """Return an affine turned by 20 degrees about z, then by 10 about x, with an origin."""
    z, x = np.deg2rad(20), np.deg2rad(10)
    about_z = np.array([[np.cos(z), -np.sin(z), 0], [np.sin(z), np.cos(z), 0], [0, 0, 1]])
    about_x = np.array([[1, 0, 0], [0, np.cos(x), -np.sin(x)], [0, np.sin(x), np.cos(x)]])
    affine = np.eye(4)
    affine[:3, :3] = about_x @ about_z @ np.diag(spacing_mm)
    affine[:3, 3] = -11.5, 22.25, -33
    return affine


def labels(image: nib.Nifti1Image) -> np.ndarray:
    return np.asanyarray(image.dataobj)


def test_output_is_the_planted_label_map_with_the_original_values(make_bundle: MakeBundle, plant: Plant) -> None:
    image, label = plant()
    segmentation, flags = Predictor(make_bundle())(image[None], np.eye(4))
    np.testing.assert_array_equal(labels(segmentation), label)
    assert labels(segmentation).dtype == np.uint8
    assert flags == []


ORIENTATIONS = [
    np.array(list(zip(axes, flips, strict=True)))
    for axes in itertools.permutations(range(3))
    for flips in itertools.product((1, -1), repeat=3)
]


@pytest.mark.parametrize("options", [{}, {"mirror": True}, {"overlap": 0.0, "precision": "bf16"}], ids=str)
def test_output_turns_with_the_input_in_all_48_orientations(
    make_bundle: MakeBundle, plant: Plant, options: dict[str, Any]
) -> None:
    image, label = plant()
    predictor = Predictor(make_bundle(), **options)
    for affine in (np.eye(4), oblique()):
        source, truth = nib.Nifti1Image(image, affine), nib.Nifti1Image(label, affine)
        for orientation in ORIENTATIONS:
            turned, expected = source.as_reoriented(orientation), truth.as_reoriented(orientation)
            segmentation, _ = predictor(turned)
            np.testing.assert_array_equal(labels(segmentation), labels(expected))
            np.testing.assert_allclose(segmentation.affine, turned.affine, rtol=0, atol=1e-5)


@pytest.mark.parametrize("grid_mm", [(1.0, 1.0, 1.0), (0.8, 0.8, 0.8), (1.5, 0.9, 2.0)])
@pytest.mark.parametrize("crop", [True, False])
def test_labels_of_a_turned_file_are_the_turned_labels_on_every_grid_of_the_network(
    make_bundle: MakeBundle, plant: Plant, grid_mm: tuple[float, float, float], crop: bool
) -> None:
    image, _ = plant()
    affine = oblique((0.9, 1.3, 2.1))
    rim = np.pad(image, ((3, 20), (18, 4), (2, 15)))
    bundle = make_bundle(
        image=rim, spacing_mm=list(grid_mm), roi_size=[16, 16, 16], sw_overlap=0.25, foreground_crop=crop
    )
    predictor = Predictor(bundle)
    source = nib.Nifti1Image(rim, affine)
    truth = labels(predictor(source)[0])
    assert set(np.unique(truth)) == {0, 3, 7}
    for orientation in ORIENTATIONS[::7]:
        turned = nib.orientations.apply_orientation(truth, orientation)
        found = labels(predictor(source.as_reoriented(orientation))[0])
        np.testing.assert_array_equal(found, turned)


@pytest.mark.parametrize("spacing_mm", [(1, 1, 3), (0.7, 0.7, 0.7), (2, 1.5, 1)])
def test_output_has_the_grid_of_an_oblique_anisotropic_file(
    make_bundle: MakeBundle, tmp_path: Path, spacing_mm: tuple[float, float, float], plant: Plant, save: Save
) -> None:
    image, label = plant((40, 32, 28))
    path = save(tmp_path / "in" / "scan.nii.gz", image, oblique(spacing_mm))
    source = nib.load(path)
    segmentation, _ = Predictor(make_bundle(image=image))(path)
    assert segmentation.shape == source.shape
    np.testing.assert_array_equal(segmentation.affine, source.affine)
    agreement = np.mean(labels(segmentation)[label > 0] == label[label > 0])
    assert agreement > 0.85  # interpolation to 1 mm and back moves borders, and the levels between two classes


def test_path_nibabel_metatensor_and_array_give_the_same(
    make_bundle: MakeBundle, tmp_path: Path, plant: Plant, save: Save
) -> None:
    image, _ = plant()
    affine = oblique((1, 1.2, 2)).astype(np.float32).astype(float)  # what a NIfTI header can hold
    path = save(tmp_path / "scan.nii", image, affine)
    predictor = Predictor(make_bundle())
    first, _ = predictor(path)
    for given in (
        str(path),
        [path],
        nib.load(path),
        MetaTensor(torch.from_numpy(image[None]), affine=torch.from_numpy(affine)),
        (image[None], affine),
    ):
        other, _ = predictor(given)
        np.testing.assert_array_equal(labels(other), labels(first))
        np.testing.assert_allclose(other.affine, first.affine, rtol=0, atol=1e-6)


def test_weights_that_are_not_the_released_ones_are_refused(make_bundle: MakeBundle) -> None:
    bundle = make_bundle()
    weights, sums = bundle / "models" / "model.pt", bundle / "models" / "SHA256SUMS"
    sums.write_text(f"{hashlib.sha256(weights.read_bytes()).hexdigest()}  model.pt\n")
    Predictor(bundle)
    state = torch.load(weights, weights_only=True)
    torch.save({name: value + 1e-3 for name, value in state.items()}, weights)
    with pytest.raises(WeightsError, match=r"model\.pt: SHA-256 is .* SHA256SUMS beside it says"):
        Predictor(bundle)


def test_a_flipped_bit_in_weights_without_a_checksum_file_is_noticed(make_bundle: MakeBundle) -> None:
    bundle = make_bundle()
    weights = bundle / "models" / "model.pt"
    content = bytearray(weights.read_bytes())
    state = torch.load(weights, weights_only=True)
    stored = max(state.values(), key=lambda value: value.numel()).numpy().tobytes()
    content[content.index(stored[:32]) + 1] ^= 1
    weights.write_bytes(content)
    torch.load(weights, weights_only=True)  # says nothing
    with pytest.raises(WeightsError, match="bad checksum of"):
        Predictor(bundle)


def test_an_array_without_an_affine_is_refused(make_bundle: MakeBundle, plant: Plant) -> None:
    with pytest.raises(InputError, match="affine"):
        Predictor(make_bundle())(plant()[0][None])


def test_an_image_smaller_than_the_window_is_segmented(make_bundle: MakeBundle, plant: Plant) -> None:
    image, label = plant()
    corner = np.s_[2:9, 3:9, 1:5]
    segmentation, _ = Predictor(make_bundle(image=image[corner]))(image[corner][None], np.eye(4))
    np.testing.assert_array_equal(labels(segmentation), label[corner])


def test_label_values_above_255_get_16_bits(make_bundle: MakeBundle, plant: Plant) -> None:
    image, label = plant()
    bundle = make_bundle(structures={"anterior": 3, "posterior": 700})
    segmentation, _ = Predictor(bundle)(image[None], np.eye(4))
    assert segmentation.get_data_dtype() == np.uint16
    np.testing.assert_array_equal(labels(segmentation) == 700, label == 7)


def test_a_structure_that_was_not_found_is_flagged_by_name(make_bundle: MakeBundle, plant: Plant) -> None:
    image, label = plant()
    predictor = Predictor(make_bundle())
    two_levels = np.where(label == 7, image, 0)
    _, flags = predictor(two_levels[None], np.eye(4))
    assert [str(flag) for flag in flags] == ["structure anterior is empty"]


def test_the_input_array_is_left_as_it_was(make_bundle: MakeBundle, plant: Plant) -> None:
    image, _ = plant()
    tensor = MetaTensor(torch.from_numpy(image[None].copy()), affine=torch.eye(4))
    Predictor(make_bundle())(tensor)
    np.testing.assert_array_equal(tensor.numpy()[0], image)


def test_bfloat16_differs_at_borders_at_most(make_bundle: MakeBundle, plant: Plant) -> None:
    image, _ = plant()
    bundle = make_bundle()
    exact, _ = Predictor(bundle)(image[None], oblique((1, 1, 2)))
    fast, _ = Predictor(bundle, precision="auto")(image[None], oblique((1, 1, 2)))
    assert np.mean(labels(exact) != labels(fast)) < 0.01


def test_nothing_is_written_into_the_bundle(make_bundle: MakeBundle, plant: Plant) -> None:
    bundle = make_bundle()
    before = sorted((path, path.stat().st_mtime_ns) for path in bundle.rglob("*"))
    Predictor(bundle)(plant()[0][None], np.eye(4))
    assert sorted((path, path.stat().st_mtime_ns) for path in bundle.rglob("*")) == before


def test_missing_weights_say_how_to_train_them(make_bundle: MakeBundle) -> None:
    bundle = make_bundle("my_run")
    (bundle / "models" / "model.pt").unlink()
    with pytest.raises(WeightsError, match=r"droseg train my_run --datalist .* --bundle RUN") as caught:
        Predictor(bundle)
    assert caught.value.exit_code == 3
    assert str(bundle / "models" / "model.pt") in str(caught.value)


@pytest.mark.parametrize(
    ("status", "remedy"),
    [("running", r"the same `droseg train` command again: it continues"), ("finished", r"again with --restart")],
)
def test_a_run_without_weights_says_how_to_go_on_with_it(make_bundle: MakeBundle, status: str, remedy: str) -> None:
    run = make_bundle("my_run")
    (run / "models" / "model.pt").unlink()
    (run / "run.json").write_text(json.dumps({"status": status, "epoch": 1}))
    with pytest.raises(WeightsError, match=remedy) as caught:
        Predictor(run)
    assert f"The training in {run}" in str(caught.value)
    assert "droseg train my_run" not in str(caught.value)  # a run is no bundle to train anew


@pytest.mark.parametrize("damage", ["empty", "garbage", "truncated", "not_a_state_dict", "other_network"])
def test_damaged_weights_are_named_and_end_with_code_3(make_bundle: MakeBundle, damage: str) -> None:
    bundle = make_bundle()
    weights = bundle / "models" / "model.pt"
    if damage == "empty":
        weights.write_bytes(b"")
    elif damage == "garbage":
        weights.write_bytes(b"no weights at all")
    elif damage == "truncated":
        weights.write_bytes(weights.read_bytes()[:-200])
    elif damage == "not_a_state_dict":
        torch.save([1, 2, 3], weights)
    else:
        torch.save(torch.nn.Conv3d(1, 4, 3).state_dict(), weights)
    with pytest.raises(WeightsError, match=r"model\.pt") as caught:
        Predictor(bundle)
    assert caught.value.exit_code == 3


class _Mischief:
    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return os.mkdir, ("mischief",)


def test_weights_cannot_run_code(make_bundle: MakeBundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    bundle = make_bundle()
    (bundle / "models" / "model.pt").write_bytes(pickle.dumps({"weight": _Mischief()}, protocol=2))
    with pytest.raises(WeightsError):
        Predictor(bundle)
    assert not (tmp_path / "mischief").exists()


def test_a_broken_config_is_named_with_its_id(make_bundle: MakeBundle) -> None:
    bundle = make_bundle(inferer={"_target_": "NoSuchInferer"})
    with pytest.raises(BundleError, match=r"inference\.yaml: the id 'inferer'"):
        Predictor(bundle)


def test_a_device_that_is_not_here_is_refused(make_bundle: MakeBundle) -> None:
    with pytest.raises(InputError, match="cuda:99"):
        Predictor(make_bundle(), device="cuda:99")


@pytest.mark.parametrize("device", ["mps", "meta"])
def test_a_kind_of_device_that_droseg_never_computed_on_is_refused(make_bundle: MakeBundle, device: str) -> None:
    with pytest.raises(InputError, match=f"device {device}: .* use cpu, cuda or auto"):
        Predictor(make_bundle(), device=device)


def test_a_wrong_number_of_channels_is_refused(make_bundle: MakeBundle, plant: Plant) -> None:
    image, _ = plant()
    with pytest.raises(ImageError, match="2 channels, but the network takes 1"):
        Predictor(make_bundle())(np.stack([image, image]), np.eye(4))


def test_channels_come_as_files_in_order_or_as_the_last_axis(
    make_bundle: MakeBundle, tmp_path: Path, plant: Plant, save: Save
) -> None:
    image, label = plant()
    noise = np.random.default_rng(0).normal(size=image.shape).astype(np.float32)
    predictor = Predictor(make_bundle(channels=["T1w", "T2w"]))  # the second channel has weight 0
    first, second = save(tmp_path / "a_0.nii", image), save(tmp_path / "a_1.nii", noise)
    stacked = save(tmp_path / "b.nii", np.stack([image, noise], axis=-1))
    np.testing.assert_array_equal(labels(predictor([first, second])[0]), label)
    np.testing.assert_array_equal(labels(predictor(stacked)[0]), label)
    assert not np.array_equal(labels(predictor([second, first])[0]), label)
