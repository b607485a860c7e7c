"""What `Predictor` can do beyond one network in float32: views, checkpoints, probabilities, precision, threads."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
import yaml
from monai.bundle import ConfigWorkflow
from monai.networks.nets import UNet
from torch import nn

from droseg.errors import BundleError, InputError, WeightsError
from droseg.inference import Predictor

MakeBundle = Callable[..., Path]
Plant = Callable[..., tuple[np.ndarray, np.ndarray]]
Save = Callable[..., Path]

UNET: dict[str, Any] = {
    **{"_target_": "UNet", "spatial_dims": 3, "in_channels": 1, "out_channels": 3, "channels": [8, 16]},
    **{"strides": [2], "num_res_units": 1, "norm": ["INSTANCE", {"affine": True}]},
}
ROI = [16, 16, 16]


def unet() -> nn.Module:
    return UNet(**{key: value for key, value in UNET.items() if key != "_target_"})


def noisy(image: np.ndarray, seed: int = 0) -> np.ndarray:
    return image + np.random.default_rng(seed).normal(0, 15, image.shape).astype(np.float32)


@pytest.fixture(scope="module")
def trained() -> dict[str, torch.Tensor]:
    """Return weights of a small U-Net that was trained to find two structures in noise, for a few seconds."""
    from .conftest import VALUES, plant_levels

    torch.manual_seed(0)
    network, (image, label) = unet(), plant_levels((32, 24, 16))
    classes = torch.from_numpy(np.select([label == value for value in VALUES.values()], [1, 2], 0))[None]
    optimizer = torch.optim.Adam(network.parameters(), lr=0.01)
    for step in range(60):
        one = torch.from_numpy(noisy(image, step))
        loss = nn.functional.cross_entropy(network(((one - one.mean()) / one.std())[None, None]), classes)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.15
    return network.state_dict()


@pytest.fixture
def run(make_bundle: MakeBundle, trained: dict[str, torch.Tensor]) -> Callable[..., Path]:
    """Return a function that makes a run folder with the trained U-Net."""

    def make(name: str = "run", **config: Any) -> Path:
        bundle = make_bundle(name, network_def=UNET, roi_size=ROI, **config)
        torch.save(trained, bundle / "models" / "model.pt")
        return bundle

    return make


def labels(found: tuple[nib.Nifti1Image, Any]) -> np.ndarray:
    return np.asanyarray(found[0].dataobj)


def segment(predictor: Predictor, image: np.ndarray, affine: np.ndarray | None = None) -> Any:
    given = image[None] if image.ndim == 3 else image
    return predictor.segment(predictor.prepare(predictor.read(given, np.eye(4) if affine is None else affine)))


THICK = np.array([[0, 0, 2.0, 4], [-0.8, 0, 0, 30], [0, 1.2, 0, -6], [0, 0, 0, 1]])


def test_labels_are_those_of_the_bundle_itself_with_all_its_keys(
    run: Callable[..., Path], plant: Plant, save: Save, tmp_path: Path
) -> None:
    bundle = run(keep_largest=["anterior", "posterior"])
    image = np.pad(noisy(plant((40, 30, 20))[0]), ((10, 0), (0, 9), (7, 7)), constant_values=-60)
    scan = save(tmp_path / "in" / "scan.nii.gz", image, THICK)
    workflow = ConfigWorkflow(
        workflow_type="inference",
        config_file=str(bundle / "configs" / "inference.yaml"),
        meta_file=str(bundle / "configs" / "metadata.json"),
        logging_file=str(bundle / "configs" / "logging.conf"),
        **{"bundle_root": str(bundle), "dataset_dir": str(scan.parent), "output_dir": str(tmp_path / "out")},
        device="cpu",
    )
    workflow.initialize()
    assert workflow.check_properties() == []
    workflow.run()
    workflow.finalize()
    written = np.asanyarray(nib.load(tmp_path / "out" / "scan_seg.nii.gz").dataobj)
    np.testing.assert_array_equal(labels(Predictor(bundle)(scan)), written)
    assert set(np.unique(written)) == {0, 3, 7}
    whole = labels(Predictor(run("with_pieces"))(scan))
    assert np.count_nonzero(whole) > np.count_nonzero(written)  # there was something to clean


def test_keep_largest_removes_what_the_bundle_says_and_nothing_else(make_bundle: MakeBundle, plant: Plant) -> None:
    image, label = plant()
    image[20:22, 2:4, 2:4], label[20:22, 2:4, 2:4] = 100.0, 3  # a second piece of each
    image[20:22, 8:10, 2:4], label[20:22, 8:10, 2:4] = 200.0, 7
    cleaned = labels(Predictor(make_bundle(image=image, keep_largest=["posterior"]))(image[None], np.eye(4)))
    label[20:22, 8:10, 2:4] = 0
    np.testing.assert_array_equal(cleaned, label)


def test_a_structure_to_clean_that_does_not_exist_is_named(make_bundle: MakeBundle) -> None:
    with pytest.raises(BundleError, match="keep_largest names liver"):
        Predictor(make_bundle(keep_largest=["liver"]))


def test_the_crop_changes_no_label_and_spares_the_network(run: Callable[..., Path], plant: Plant) -> None:
    image = np.pad(noisy(plant((24, 20, 16))[0]), 30)
    seen, found = [], []
    for crop in (True, False):
        predictor = Predictor(run(f"crop_{crop}", foreground_crop=crop))
        seen.append(0)

        def count(_module: nn.Module, inputs: tuple[torch.Tensor, ...], _out: torch.Tensor) -> None:
            seen[-1] += len(inputs[0])

        predictor.network.register_forward_hook(count)
        found.append(labels(predictor(image[None], np.eye(4))))
    np.testing.assert_array_equal(found[0], found[1])
    assert len(np.unique(found[0])) == 3
    assert seen[0] < 0.4 * seen[1]


def test_probabilities_lie_on_the_image_grid_sum_to_one_and_give_the_labels(
    run: Callable[..., Path], plant: Plant
) -> None:
    image = noisy(plant((30, 22, 14))[0])
    segmentation = segment(Predictor(run(), probabilities=True), image, THICK)
    found = segmentation.probabilities
    assert found.shape == (3, *image.shape)
    assert found.dtype == np.float16
    np.testing.assert_allclose(found.astype(np.float32).sum(0), 1, atol=1e-2)
    values = np.array([0, 3, 7])[found.argmax(0)]
    ties = np.sort(found, axis=0)[-1] - np.sort(found, axis=0)[-2] < 2e-3  # float16 cannot tell these apart
    assert ties.mean() < 0.01
    np.testing.assert_array_equal(values[~ties], segmentation.labels[~ties])
    assert segment(Predictor(run("without")), image, THICK).probabilities is None
    np.testing.assert_array_equal(segment(Predictor(run("again")), image, THICK).labels, segmentation.labels)


def test_volumes_are_counts_times_the_voxel_in_ml(make_bundle: MakeBundle, plant: Plant) -> None:
    image, _ = plant()
    predictor = Predictor(make_bundle(spacing_mm=[2.0, 1.5, 0.5]))
    segmentation = segment(predictor, image, np.diag([2.0, 1.5, 0.5, 1.0]))
    assert segmentation.volumes_ml == pytest.approx({"anterior": 9 * 12 * 7 * 1.5e-3, "posterior": 5 * 6 * 11 * 1.5e-3})


def test_mirroring_gives_the_mean_of_both_sides(run: Callable[..., Path], plant: Plant) -> None:
    image = noisy(plant((16, 16, 16))[0])  # one window
    bundle = run()
    network = Predictor(bundle).network
    given = torch.from_numpy((image - image.mean()) / image.std())[None, None]
    with torch.no_grad():
        by_hand = (network(given).softmax(1) + network(given.flip(2)).softmax(1).flip(2))[0] / 2
    segmentation = segment(Predictor(bundle, mirror=True, probabilities=True), image)
    np.testing.assert_allclose(segmentation.probabilities, by_hand.numpy(), atol=2e-3)
    np.testing.assert_array_equal(segmentation.labels, np.array([0, 3, 7])[by_hand.argmax(0)])


@pytest.mark.parametrize("axes", [None, [], [3], "x"])
def test_mirroring_needs_axes_that_the_bundle_allows(make_bundle: MakeBundle, axes: Any) -> None:
    bundle = make_bundle(mirror_axes=axes)
    Predictor(bundle)
    with pytest.raises(BundleError, match=r"mirror_axes .* axes that the training flips"):
        Predictor(bundle, mirror=True)


def test_the_axes_of_the_shipped_bundles_are_those_that_their_training_flips(project_root: Path) -> None:
    for configs in sorted((project_root / "bundles").glob("*/configs")):
        train, predict = (yaml.safe_load((configs / f"{name}.yaml").read_text()) for name in ("train", "inference"))
        flips = [each for each in train["augmentation"] if each["_target_"] == "RandFlipd"]
        assert predict["mirror_axes"] == [each["spatial_axis"] for each in flips]
        assert not any(side in name for name in predict["structures"] for side in ("left", "right"))


def test_two_equal_checkpoints_are_one_and_two_others_are_their_mean(run: Callable[..., Path], plant: Plant) -> None:
    image = noisy(plant((16, 16, 16))[0])
    first, second = run("first"), run("second")
    state = torch.load(second / "models" / "model.pt", weights_only=True)
    torch.save({name: value * 1.05 for name, value in state.items()}, second / "models" / "model.pt")
    one = segment(Predictor(first, probabilities=True), image)
    equal = segment(Predictor(first, probabilities=True, checkpoints=[first, first / "models" / "model.pt"]), image)
    np.testing.assert_allclose(equal.probabilities, one.probabilities, atol=1e-3)
    np.testing.assert_array_equal(equal.labels, one.labels)
    other = segment(Predictor(second, probabilities=True), image)
    both = segment(Predictor(first, probabilities=True, checkpoints=[first, second]), image)
    mean = (one.probabilities.astype(np.float32) + other.probabilities) / 2
    np.testing.assert_allclose(both.probabilities, mean, atol=2e-3)
    assert np.abs(one.probabilities - other.probabilities).max() > 0.01


def test_the_fingerprint_tells_of_all_weights_and_of_what_changes_results(run: Callable[..., Path]) -> None:
    bundle, other = run(), run("other")
    state = torch.load(other / "models" / "model.pt", weights_only=True)
    torch.save({name: value * 1.05 for name, value in state.items()}, other / "models" / "model.pt")
    predictors = [
        Predictor(bundle),
        Predictor(bundle, mirror=True),
        Predictor(bundle, overlap=0.25),
        Predictor(bundle, precision="bf16"),
        Predictor(bundle, checkpoints=[bundle, bundle]),
        Predictor(bundle, checkpoints=[bundle, other]),
    ]
    assert len({predictor.fingerprint for predictor in predictors}) == len(predictors)
    assert Predictor(bundle, memory_gb=1, probabilities=True).fingerprint == predictors[0].fingerprint


def test_checkpoints_that_do_not_fit_are_one_clear_error(run: Callable[..., Path], tmp_path: Path) -> None:
    bundle = run()
    coarse = run("coarse", spacing_mm=[2.0, 2.0, 2.0])
    with pytest.raises(WeightsError, match=r"coarse: its spacing_mm differs from .*inference\.yaml"):
        Predictor(bundle, checkpoints=[bundle, coarse])
    torch.save(nn.Conv3d(1, 3, 1).state_dict(), tmp_path / "other.pt")
    with pytest.raises(WeightsError, match=r"other\.pt: .* another network"):
        Predictor(bundle, checkpoints=[bundle, tmp_path / "other.pt"])
    with pytest.raises(WeightsError, match=r"nowhere\.pt: the file does not exist"):
        Predictor(bundle, checkpoints=[tmp_path / "nowhere.pt"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(WeightsError, match="empty: a folder without configs"):
        Predictor(bundle, checkpoints=[tmp_path / "empty"])
    with pytest.raises(InputError, match="give a list"):
        Predictor(bundle, checkpoints=[])


def test_bfloat16_agrees_with_float32_in_999_of_1000_voxels(run: Callable[..., Path], plant: Plant) -> None:
    image, bundle = noisy(plant((40, 32, 24))[0], seed=7), run()
    exact = segment(Predictor(bundle), image, THICK).labels
    fast = segment(Predictor(bundle, precision="bf16"), image, THICK).labels
    assert np.mean(exact == fast) > 0.999
    assert all(np.count_nonzero(exact == value) > 100 for value in (3, 7))


@pytest.mark.gpu
def test_float16_on_a_gpu_agrees_with_float32_on_the_cpu(run: Callable[..., Path], plant: Plant) -> None:
    image, bundle = noisy(plant((40, 32, 24))[0], seed=7), run()
    exact = segment(Predictor(bundle), image, THICK).labels
    for precision in ("fp16", "bf16", "auto", "fp32"):
        assert np.mean(exact == segment(Predictor(bundle, "cuda", precision), image, THICK).labels) > 0.999


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"precision": "fp16"}, "only a CUDA device"),
        ({"precision": "int8"}, "use fp32, bf16, fp16 or auto"),
        ({"overlap": 1.0}, "overlap is 1.0"),
        ({"memory_gb": 0}, "memory_gb is 0"),
    ],
)
def test_arguments_without_a_meaning_are_refused(
    make_bundle: MakeBundle, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        Predictor(make_bundle(), **options)


def test_averaging_needs_to_know_what_a_probability_is(make_bundle: MakeBundle) -> None:
    bundle = make_bundle()
    path = bundle / "configs" / "inference.yaml"
    config = yaml.safe_load(path.read_text())
    del config["postprocessing"]["transforms"][0]
    path.write_text(yaml.safe_dump(config, sort_keys=False))
    Predictor(bundle)
    with pytest.raises(BundleError, match="no Activationsd"):
        Predictor(bundle, mirror=True)


def test_a_postprocessing_of_another_form_runs_as_it_stands(run: Callable[..., Path], plant: Plant) -> None:
    image = noisy(plant((30, 22, 14))[0])
    usual, bundle = run(), run("other_form")
    path = bundle / "configs" / "inference.yaml"
    config = yaml.safe_load(path.read_text())
    # Of the same meaning, but nobody can know: a transform that may look at neighbors, before the inverse.
    config["postprocessing"]["transforms"].insert(1, {"_target_": "Identityd", "keys": "pred"})
    path.write_text(yaml.safe_dump(config, sort_keys=False))
    found = segment(Predictor(bundle), image, THICK).labels
    np.testing.assert_array_equal(found, segment(Predictor(usual), image, THICK).labels)
    with pytest.raises(BundleError, match="ask for none"):
        segment(Predictor(bundle, probabilities=True), image, THICK)


def test_another_inferer_runs_as_it_is(run: Callable[..., Path], plant: Plant) -> None:
    image = noisy(plant((16, 16, 16))[0])
    bundle = run(inferer={"_target_": "SimpleInferer"})
    np.testing.assert_array_equal(segment(Predictor(bundle), image).labels, segment(Predictor(run("w")), image).labels)
    with pytest.raises(InputError, match="overlap"):
        Predictor(bundle, overlap=0.5)


@pytest.mark.parametrize("form", ["usual", "whole"])
def test_the_next_case_is_prepared_while_one_is_segmented(run: Callable[..., Path], plant: Plant, form: str) -> None:
    bundle = run()
    if form == "whole":
        path = bundle / "configs" / "inference.yaml"
        config = yaml.safe_load(path.read_text())
        config["postprocessing"]["transforms"].insert(1, {"_target_": "Identityd", "keys": "pred"})
        path.write_text(yaml.safe_dump(config, sort_keys=False))
    predictor = Predictor(bundle)
    images = [noisy(plant((24 + 2 * i, 20, 16))[0], i) for i in range(4)]
    alone = [segment(predictor, image, THICK).labels for image in images]
    together: dict[int, np.ndarray] = {}

    def work(index: int) -> None:
        for turn in range(2):
            labels = segment(predictor, images[index], THICK).labels
            together[index * 2 + turn] = labels

    threads = [threading.Thread(target=work, args=(index,)) for index in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for index, expected in enumerate(alone):
        for turn in range(2):
            np.testing.assert_array_equal(together[index * 2 + turn], expected)


def test_a_run_folder_of_before_these_keys_still_predicts(run: Callable[..., Path], plant: Plant) -> None:
    image = noisy(plant()[0])
    new, old = run(), run("old")
    path = old / "configs" / "inference.yaml"
    config = yaml.safe_load(path.read_text())
    for key in ("mirror_axes", "foreground_crop", "keep_largest"):
        del config[key]
    config["postprocessing"]["transforms"] = [
        each for each in config["postprocessing"]["transforms"] if "cleanup" not in each["_target_"]
    ]
    path.write_text(yaml.safe_dump(config, sort_keys=False))
    np.testing.assert_array_equal(segment(Predictor(old), image).labels, segment(Predictor(new), image).labels)
    shutil.rmtree(old)
