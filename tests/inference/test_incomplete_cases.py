"""Cases that lack a channel: refused, or segmented with zeros there and a flag, as far as the network knows that."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import yaml

from droseg.cli import main
from droseg.data.channels import present_channels
from droseg.errors import BundleError, InputError
from droseg.inference import Predictor, find_inputs
from droseg.inference.degradations import ALL_KINDS, degrade
from droseg.inference.domain import OutOfDomainError
from droseg.inference.reading import ImageError, image_checksum, read_image

MakeBundle = Callable[..., Path]
Plant = Callable[..., tuple[np.ndarray, np.ndarray]]
Save = Callable[..., Path]
CHANNELS = ["T1w", "T2w", "FLAIR"]


@pytest.fixture
def bundle(make_bundle: MakeBundle) -> Callable[..., Path]:
    """Return a function that makes a bundle of three channels, of which the first says all."""

    def make(
        name: str = "run", missing: str = "zero", dropout: float = 0.0, counts: list[int] | None = None, cases: int = 9
    ) -> Path:
        folder = make_bundle(name, channels=CHANNELS, missing_channels=missing)
        path = folder / "configs" / "train.yaml"
        path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | {"channel_dropout": dropout}))
        if counts is not None:
            document = {"cases": cases, "missing_channels": counts}
            (folder / "training_statistics.json").write_text(json.dumps(document))
        return folder

    return make


@pytest.fixture
def images(tmp_path: Path, plant: Plant, save: Save) -> Path:
    """Return a folder in nnU-Net's form: `whole` has all channels, `x` lacks T2w."""
    noise = np.random.default_rng(0).normal(size=plant()[0].shape).astype(np.float32)
    for case_id, indices in (("whole", (0, 1, 2)), ("x", (0, 2))):
        for index in indices:
            save(tmp_path / "in" / f"{case_id}_{index:04d}.nii.gz", noise if index else plant()[0])
    return tmp_path / "in"


def predict(given: Path, bundle: Path, *words: str, code: int = 0) -> dict[str, dict[str, Any]]:
    out = given.parent / "out"
    line = ["predict", str(given), "--bundle", str(bundle), "--out", str(out), "--device", "cpu", *words]
    assert main(line) == code
    return {entry["case_id"]: entry for entry in json.loads((out / "predict.json").read_text())["cases"]}


def test_a_missing_file_is_an_error_by_default_that_names_it(bundle: Callable[..., Path], images: Path) -> None:
    found = predict(images, bundle(missing="error", dropout=0.2), code=1)
    assert found["whole"]["status"] == "ok"
    assert found["x"]["status"] == "failed"
    assert f"{images / 'x_0001.nii.gz'}: no such file" in found["x"]["error"]


def test_a_bundle_that_fills_segments_the_case_and_says_so_everywhere(
    bundle: Callable[..., Path], images: Path, plant: Plant, capsys: pytest.CaptureFixture[str]
) -> None:
    found = predict(images, bundle(counts=[0, 2, 1]))
    message = "channel T2w is missing and was filled with zeros, its mean; 2 of 9 training cases lacked it"
    assert [flag["message"] for flag in found["x"]["flags"] if flag["name"] == "missing_channel"] == [message]
    assert not any(flag["name"] == "missing_channel" for flag in found["whole"]["flags"])
    assert found["x"]["images"] == [str(images / "x_0000.nii.gz"), None, str(images / "x_0002.nii.gz")]
    out = images.parent / "out"
    sidecar = json.loads((out / "x_seg.json").read_text())
    assert sidecar["flags"][0] == {"name": "missing_channel", "structure": "", "message": message}
    assert f"look: {message}" in capsys.readouterr().err
    assert message in (out / "overview.html").read_text()
    labels = np.asanyarray(nib.load(out / "x_seg.nii.gz").dataobj)
    np.testing.assert_array_equal(labels, plant()[1])  # by T1w alone: a zero adds nothing to this network's scores


def test_a_case_that_later_gets_its_channel_is_another_image(bundle: Callable[..., Path], images: Path) -> None:
    model = bundle(counts=[0, 2, 1])
    first = predict(images, model)["x"]["image_sha256"]
    assert predict(images, model)["x"]["reused"]
    (images / "x_0001.nii.gz").write_bytes((images / "whole_0001.nii.gz").read_bytes())
    found = predict(images, model, code=1)["x"]
    assert "was made from another image" in found["error"]
    assert predict(images, model, "--overwrite")["x"]["image_sha256"] != first
    paths = [images / f"x_{index:04d}.nii.gz" for index in (0, 2)]
    assert len({image_checksum(given) for given in ([*paths, None], [None, *paths], paths)}) == 3


def test_the_option_fills_for_once_if_the_network_was_trained_to_do_without(
    bundle: Callable[..., Path], images: Path
) -> None:
    zero = ("--missing-channels", "zero", "--no-overview")
    found = predict(images, bundle("dropped", "error", dropout=0.2, counts=[0, 0, 0]), *zero, "--overwrite")
    (flag,) = [flag for flag in found["x"]["flags"] if flag["name"] == "missing_channel"]
    assert flag["message"].endswith(
        "0 of 9 training cases lacked it, channels were dropped from patches (channel_dropout 0.2)"
    )
    for name, counts in (("complete", [0, 0, 3]), ("unknown", None)):  # FLAIR was missing, T2w never
        found = predict(images, bundle(name, "error", counts=counts), *zero, "--overwrite", code=1)
        assert found["x"]["status"] == "out_of_domain"
        assert "channel T2w is missing, and the network was never trained without it" in found["x"]["error"]
    assert predict(images, bundle("forced", "error", counts=[0, 0, 0]), *zero, "--force", "--overwrite")["x"]["flags"]
    found = predict(images, bundle("other"), "--missing-channels", "error", "--overwrite", "--no-overview", code=1)
    assert "x_0001.nii.gz: no such file" in found["x"]["error"]


def test_a_bundle_without_statistics_is_taken_at_its_word(bundle: Callable[..., Path], images: Path) -> None:
    (flag,) = predict(images, bundle())["x"]["flags"]
    assert flag["message"].endswith("in training it may never have been missing")


def test_a_datalist_with_null_is_refused_or_filled(
    bundle: Callable[..., Path], images: Path, plant: Plant, capsys: pytest.CaptureFixture[str]
) -> None:
    path = images.parent / "d.json"
    entries = [
        {"case_id": "x", "image": ["in/x_0000.nii.gz", None, "in/x_0002.nii.gz"]},
        {"case_id": "nothing", "image": [None, None, None]},
    ]
    content = {"channels": dict(enumerate(CHANNELS)), "testing": entries}
    path.write_text(json.dumps(content))
    words = ("--section", "testing", "--no-overview")
    assert main(["predict", str(path), "--list", "--section", "testing"]) == 0
    assert "channel 1 is missing" in capsys.readouterr().out
    found = predict(path, bundle("strict", "error"), *words, code=1)
    assert found["x"]["error"] == "no image of channel T2w"
    assert "every channel is null" in found["nothing"]["error"]
    found = predict(path, bundle("filling"), *words, code=1)
    assert (found["x"]["status"], found["nothing"]["status"]) == ("ok", "failed")
    labels = np.asanyarray(nib.load(path.parent / "out" / "x_seg.nii.gz").dataobj)
    np.testing.assert_array_equal(labels, plant()[1])


@pytest.mark.parametrize("container", [list, tuple])
def test_a_predictor_takes_none_for_a_missing_channel(
    bundle: Callable[..., Path], images: Path, plant: Plant, container: type
) -> None:
    paths = container([images / "x_0000.nii.gz", None, str(images / "x_0002.nii.gz")])
    strict = bundle("strict", "error", counts=[0, 0, 0])
    with pytest.raises(ImageError, match="no image of channel T2w; give it"):
        Predictor(strict)(paths)
    with pytest.raises(OutOfDomainError, match="never trained without it"):
        Predictor(strict, missing_channels="zero")(paths)
    segmentation, flags = Predictor(strict, missing_channels="zero", force=True)(paths)
    np.testing.assert_array_equal(np.asanyarray(segmentation.dataobj), plant()[1])
    assert flags[0].name == "missing_channel"
    with pytest.raises(InputError, match="missing_channels is 'mean'"):
        Predictor(strict, missing_channels="mean")  # type: ignore[arg-type]
    with pytest.raises(BundleError, match=r"inference.yaml: missing_channels is 'maybe'"):
        Predictor(bundle("wrong", "maybe"))


def test_the_first_channel_may_be_the_missing_one(bundle: Callable[..., Path], images: Path) -> None:
    (images / "x_0000.nii.gz").unlink()
    found = predict(images, bundle(counts=[1, 1, 1]))  # with its overview: pictures of T2w or FLAIR
    assert found["x"]["flags"][0]["name"] == "missing_channel"
    assert found["x"]["images"][0] is None
    assert "T1w" in found["x"]["flags"][0]["message"]
    segmentation, _ = Predictor(bundle("two"), force=True)((None, None, images / "x_0002.nii.gz"))
    assert segmentation.shape == nib.load(images / "x_0002.nii.gz").shape


def test_a_broken_link_is_an_error_and_no_missing_channel(bundle: Callable[..., Path], images: Path) -> None:
    (images / "x_0001.nii.gz").symlink_to("nowhere.nii.gz")
    found = predict(images, bundle(counts=[1, 1, 1]), code=1)
    assert "a link to nowhere.nii.gz" in found["x"]["error"]


def test_numbered_files_are_looked_for_beside_the_ones_given(images: Path) -> None:
    given = [images / "whole_0000.nii.gz", images / "x_0002.nii.gz"]
    cases = find_inputs(given, images.parent / "out", num_channels=3, missing_channels="zero").cases
    assert [[image is None for image in case.images] for case in cases] == [[False] * 3, [False, True, False]]


def test_channels_stored_in_another_order_of_axes_are_said_to_be(images: Path) -> None:
    path = images / "whole_0002.nii.gz"
    image = nib.load(path)
    nib.save(image.as_reoriented(np.array([[2, 1], [0, -1], [1, 1]])), path)
    with pytest.raises(ImageError, match=r"the same voxels, but its axes point to PSR, not RAS.*droseg data regrid"):
        read_image([images / "whole_0000.nii.gz", path], 2)
    with pytest.raises(ImageError, match="the same voxels"):
        read_image([images / "whole_0000.nii.gz", None, path], 3)


@pytest.mark.parametrize("kind", ALL_KINDS)
def test_a_calibration_degrades_no_missing_channel(images: Path, kind: str) -> None:
    image = read_image([images / "x_0000.nii.gz", None, images / "x_0002.nii.gz"], 3)
    changed = degrade(image, kind, np.random.default_rng(0)).image
    assert present_channels(changed) == [True, False, True]
    assert float(changed[1].abs().max()) == 0.0
    assert float(changed[0].std()) > 0
