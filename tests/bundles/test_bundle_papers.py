"""What a bundle's papers and its inference config promise, checked by MONAI's own verifiers without a network."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
import yaml
from monai.bundle import ConfigParser, ConfigWorkflow, ckpt_export, verify_metadata, verify_net_in_out
from monai.data import load_net_with_metadata

from droseg.bundles import shipped_bundles
from droseg.errors import InputError, WeightsError
from droseg.inference import Predictor

BUNDLES = ["brats_mri", "fetal_brain_mri", "hippocampus_mri"]

_TENSOR = {
    "type": "object",
    "required": ["type", "format", "num_channels", "spatial_shape", "dtype", "value_range"],
    "properties": {
        "num_channels": {"type": "integer"},
        "spatial_shape": {"type": "array", "items": {"type": ["string", "integer"]}},
        "value_range": {"type": "array", "items": {"type": "number"}},
        "channel_def": {"type": "object"},
    },
}
_TENSORS = {"type": "object", "minProperties": 1, "additionalProperties": _TENSOR}
_TEXTS = ["schema", "version", "monai_version", "pytorch_version", "numpy_version", "task", "description", "authors"]
# The official schema lies at the address that the metadata give, where a test cannot go. These are our own words for
# what it requires of a segmentation bundle (as of meta_schema_20240725), and `changelog`, which the model zoo requires.
SCHEMA = {
    "type": "object",
    "required": [*_TEXTS, "copyright", "required_packages_version", "network_data_format", "changelog"],
    "properties": {name: {"type": "string"} for name in [*_TEXTS, "copyright", "intended_use", "data_source"]}
    | {name: {"type": "object"} for name in ("changelog", "required_packages_version", "eval_metrics")}
    | {
        "references": {"type": "array", "items": {"type": "string"}},
        "network_data_format": {
            "type": "object",
            "required": ["inputs", "outputs"],
            "properties": {"inputs": _TENSORS, "outputs": _TENSORS},
        },
    },
}


@pytest.fixture(params=BUNDLES)
def bundle(request: pytest.FixtureRequest, project_root: Path) -> Path:
    return project_root / "bundles" / str(request.param)


@pytest.fixture
def small_bundle(bundle: Path, tmp_path: Path, copy_bundle: Callable[[str, Path], Path]) -> Path:
    """Return a copy of a bundle with a small network and random weights; everything else as shipped."""
    copy = tmp_path / bundle.name
    copy_bundle(bundle.name, copy)
    path = copy / "configs" / "inference.yaml"
    config = yaml.safe_load(path.read_text())
    config["network_def"] |= {"channels": [4, 8], "strides": [2], "num_res_units": 0}
    config["roi_size"] = [32, 32, 32]
    path.write_text(yaml.safe_dump(config, sort_keys=False))
    parser = ConfigParser()
    parser.read_config(path)
    torch.manual_seed(0)
    network = parser.get_parsed_content("network_def")
    for parameter in network.parameters():  # far from 0, so that several structures win somewhere
        torch.nn.init.normal_(parameter, std=0.5)
    torch.save(network.state_dict(), copy / "models" / "model.pt")
    return copy


def inference(bundle: Path, **override: Any) -> ConfigWorkflow:
    return ConfigWorkflow(
        workflow_type="inference",
        config_file=str(bundle / "configs" / "inference.yaml"),
        meta_file=str(bundle / "configs" / "metadata.json"),
        logging_file=str(bundle / "configs" / "logging.conf"),
        bundle_root=str(bundle),
        **override,
    )


def save_scans(folder: Path, num_channels: int = 1) -> list[Path]:
    """Write a straight scan and an oblique, left-posterior-inferior one with 1.5 mm slices."""
    rng = np.random.default_rng(0)
    angle = np.deg2rad(15)
    oblique = np.array([[-np.cos(angle), np.sin(angle), 0], [-np.sin(angle), -np.cos(angle), 0], [0, 0, -1]])
    affine = np.eye(4)
    affine[:3, :3] = oblique @ np.diag([0.9, 1.1, 1.5])
    affine[:3, 3] = 10, -20, 30
    folder.mkdir()
    for name, grid in (("straight", np.eye(4)), ("turned", affine)):
        shape = (30, 26, 22) if num_channels == 1 else (30, 26, 22, num_channels)
        image = nib.Nifti1Image(rng.normal(100, 20, size=shape).astype(np.float32), grid)
        nib.save(image, folder / f"{name}.nii.gz")
    return sorted(folder.iterdir())


def test_the_bundles_are_shipped() -> None:
    assert set(BUNDLES) <= set(shipped_bundles())


def test_the_files_that_a_bundle_needs_are_there(bundle: Path) -> None:
    for name in (
        "LICENSE",
        "configs/metadata.json",
        "configs/inference.yaml",
        "configs/logging.conf",
        "docs/README.md",
    ):
        assert (bundle / name).is_file(), name
    assert "Apache License" in (bundle / "LICENSE").read_text()


def test_metadata_satisfy_the_schema(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("jsonschema", reason="skipped: jsonschema is not installed")
    path = bundle / "configs" / "metadata.json"
    schema = tmp_path / "schema.json"
    schema.write_text(json.dumps(SCHEMA))
    verify_metadata(meta_file=str(path), filepath=str(schema))
    broken = json.loads(path.read_text())
    del broken["network_data_format"]["outputs"]["pred"]["dtype"]
    (tmp_path / "broken.json").write_text(json.dumps(broken))
    with pytest.raises(ValueError, match="dtype"):
        verify_metadata(meta_file=str(tmp_path / "broken.json"), filepath=str(schema))


def test_metadata_and_config_tell_the_same(bundle: Path) -> None:
    metadata = json.loads((bundle / "configs" / "metadata.json").read_text())
    config = yaml.safe_load((bundle / "configs" / "inference.yaml").read_text())
    assert metadata["version"] in metadata["changelog"]
    tensors = metadata["network_data_format"]
    assert tensors["inputs"]["image"]["num_channels"] == len(config["channels"])
    regions = [name for name, value in config["structures"].items() if isinstance(value, list)]
    classes = [*([] if regions else ["background"]), *config["structures"]]
    assert tensors["outputs"]["pred"]["channel_def"] == {str(index): name for index, name in enumerate(classes)}
    assert tensors["outputs"]["pred"]["num_channels"] == len(classes)
    values = {"background": 0, **config["structures"]}
    written = "label map: " + ", ".join(f"{value} {name}" for name, value in values.items())
    if regions:
        written = "label map: 0 background, 1 TC outside ET, 2 WT outside TC, 3 ET; the regions are "
        written += "WT (1, 2, 3), TC (1, 3), ET (3)"
        assert config["structures"] == {"WT": [1, 2, 3], "TC": [1, 3], "ET": 3}
    assert metadata["pred_classes"] == written
    factor = int(np.prod(config["network_def"]["strides"]))
    assert all(size % factor == 0 for size in config["roi_size"])
    assert tensors["inputs"]["image"]["spatial_shape"] == [f"{factor}*n"] * 3


def test_the_network_takes_and_gives_what_the_metadata_say(bundle: Path) -> None:
    configs = bundle / "configs"
    verify_net_in_out(
        net_id="network_def",
        meta_file=str(configs / "metadata.json"),
        config_file=str(configs / "inference.yaml"),
        device="cpu",
        n=2,
    )


def test_the_exported_network_answers_as_the_one_it_was_made_from(small_bundle: Path, tmp_path: Path) -> None:
    configs = small_bundle / "configs"
    ckpt_export(
        net_id="network_def",
        filepath=str(tmp_path / "model.ts"),
        ckpt_file=str(small_bundle / "models" / "model.pt"),
        meta_file=str(configs / "metadata.json"),
        config_file=str(configs / "inference.yaml"),
    )
    exported, metadata, _ = load_net_with_metadata(str(tmp_path / "model.ts"))
    parser = ConfigParser()
    parser.read_config(configs / "inference.yaml")
    network = parser.get_parsed_content("network_def").eval()
    network.load_state_dict(torch.load(small_bundle / "models" / "model.pt", weights_only=True))
    image = torch.randn(1, len(parser["channels"]), 16, 16, 16)
    with torch.no_grad():
        torch.testing.assert_close(exported.eval()(image), network(image))
    assert metadata["version"] == json.loads((configs / "metadata.json").read_text())["version"]


def test_inference_writes_each_scan_on_its_own_grid_as_the_predictor_does(small_bundle: Path, tmp_path: Path) -> None:
    scans = save_scans(tmp_path / "in", len(Predictor(small_bundle).channels))
    out = tmp_path / "out"
    workflow = inference(small_bundle, dataset_dir=str(tmp_path / "in"), output_dir=str(out), device="cpu")
    workflow.initialize()
    assert workflow.check_properties() == []
    workflow.run()
    workflow.finalize()
    assert sorted(path.name for path in out.iterdir()) == ["straight_seg.nii.gz", "turned_seg.nii.gz"]
    predictor = Predictor(small_bundle)
    for scan in scans:
        source, written = nib.load(scan), nib.load(out / scan.name.replace(".nii.gz", "_seg.nii.gz"))
        assert written.shape == source.shape[:3]
        np.testing.assert_allclose(written.affine, source.affine, rtol=0, atol=1e-6)
        assert written.get_data_dtype() == np.uint8
        found = set(np.unique(np.asanyarray(written.dataobj)))
        assert len(found) > 1
        assert found <= {0, *(value for values in predictor.structures.values() for value in values)}
        np.testing.assert_array_equal(
            np.asanyarray(predictor(scan)[0].dataobj), np.asanyarray(written.dataobj), strict=True
        )


def start(workflow: ConfigWorkflow) -> None:
    workflow.initialize()
    workflow.run()


def root_cause(error: BaseException) -> BaseException:
    while error.__cause__ is not None:
        error = error.__cause__
    return error


@pytest.mark.parametrize("missing", ["weights", "images"])
def test_inference_without_weights_or_images_is_an_error(small_bundle: Path, tmp_path: Path, missing: str) -> None:
    if missing == "weights":
        save_scans(tmp_path / "in")
        (small_bundle / "models" / "model.pt").unlink()
    else:
        (tmp_path / "in").mkdir()
    workflow = inference(small_bundle, dataset_dir=str(tmp_path / "in"), output_dir=str(tmp_path / "out"), device="cpu")
    with pytest.raises(RuntimeError) as caught:
        start(workflow)
    cause = root_cause(caught.value)
    assert isinstance(cause, WeightsError if missing == "weights" else InputError)
    assert ("droseg train" if missing == "weights" else "no .nii") in str(cause)


def test_training_and_inference_see_the_same_image(bundle: Path) -> None:
    train, predict = (
        yaml.safe_load((bundle / "configs" / f"{name}.yaml").read_text()) for name in ("train", "inference")
    )
    shared = (
        "channels",
        "structures",
        "spacing_mm",
        "roi_size",
        "sw_overlap",
        "network_def",
        "deterministic_transforms",
        *(["region_values"] if "region_values" in predict else []),
    )
    assert {key: train[key] for key in shared} == {key: predict[key] for key in shared}
