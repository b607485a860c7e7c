"""A bundle's network, ready to segment one image after the other."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import nibabel as nib
import numpy as np
import torch
from monai.bundle import ConfigParser
from monai.data import MetaTensor
from monai.transforms import EnsureChannelFirstd, LoadImaged, SaveImaged
from numpy.typing import ArrayLike, NDArray

from droseg.bundles import find_bundle
from droseg.data.dicom import DicomSeries
from droseg.engine.precision import has_fast_bf16
from droseg.errors import BundleError, InputError
from droseg.inference.quality import Evidence, Flag, QualityRules
from droseg.inference.reading import image_from_array, image_from_nibabel, read_image
from droseg.inference.weights import load_weights
from droseg.inference.writing import label_dtype
from droseg.keys import IMAGE, PRED

Precision = Literal["fp32", "auto"]
CONFIG = Path("configs") / "inference.yaml"


@dataclass(frozen=True)
class Prepared:
    """An image that is ready for the network.

    Attributes:
        image: on its own grid, (C, H, W, D), with its affine in mm and RAS+.
        item: what the bundle's preprocessing made of it.
    """

    image: MetaTensor
    item: dict[str, Any]


@dataclass(frozen=True)
class Segmentation:
    """What the network says about one image, on the image's own grid.

    Attributes:
        labels: label values, (H, W, D), the smallest unsigned type.
        affine: voxel index -> mm in RAS+, (4, 4).
        flags: what a person should look at.
        volumes_ml: structure -> volume.
        probabilities: of the classes, background first, (K, H, W, D) float16; None unless asked for.
    """

    labels: NDArray[Any]
    affine: NDArray[np.float64]
    flags: tuple[Flag, ...]
    volumes_ml: dict[str, float]
    probabilities: NDArray[Any] | None = None

    def to_nifti(self) -> nib.Nifti1Image:
        """Return the label map as a NIfTI image."""
        return _label_image(self.labels, self.affine)


class Predictor:
    """Segment images with a bundle; the network is loaded once.

    Args:
        bundle: name of a shipped bundle, or the folder of one or of a training run; nothing is written into it.
        device: "cpu", "cuda", "cuda:1", ..., or "auto" for a GPU where there is one.
        precision: "auto" runs the network in bfloat16 where the hardware multiplies it (about twice as fast on a CPU
            with AMX; a few voxels at borders may differ); "fp32" never does.
        force: segment images, too, that the network cannot know.

    Attributes:
        channels: names of the images that a case needs, in order.
        structures: name -> value in the label map.
        fingerprint: SHA-256 of the weights and of the inference config, in hex.

    Raises:
        BundleError: if there is no such bundle, or its configs/inference.yaml cannot be used.
        WeightsError: if its weights are missing or damaged.
        InputError: if there is no such device.
    """

    def __init__(
        self, bundle: str | Path, device: str = "cpu", precision: Precision = "fp32", *, force: bool = False
    ) -> None:
        self.folder = find_bundle(bundle)
        self.device = _device(device)
        config = _InferenceConfig(self.folder, self.device)
        self.channels: tuple[str, ...] = tuple(config["channels"])
        self.structures = _label_values(config["structures"], config.path)
        self.force = force
        self._quality = QualityRules(self.folder, self.structures)
        weights = Path(config["checkpoint"])
        network = config["network_def"]
        load_weights(network, weights)
        self._half = precision == "auto" and has_fast_bf16(self.device)
        layout = torch.channels_last_3d if self._half and self.device.type == "cpu" else torch.contiguous_format
        self._network = network.to(self.device, memory_format=layout).eval()
        self._inferer = config["inferer"]
        self._preprocessing = _without(config["preprocessing"], LoadImaged, EnsureChannelFirstd)
        self._postprocessing = _without(config["postprocessing"], SaveImaged)
        self.fingerprint = hashlib.sha256(weights.read_bytes() + config.path.read_bytes()).hexdigest()

    def __call__(self, image: Any, affine: ArrayLike | None = None) -> tuple[nib.Nifti1Image, list[Flag]]:
        """Return the segmentation on the image's own grid, with the bundle's label values, and what to look at.

        Args:
            image: a path (file or DICOM series folder), a list with one path per channel, a nibabel image, a
                `MetaTensor` (C, H, W, D), or an array (C, H, W, D) together with `affine`.
            affine: (4, 4), voxel index -> mm in RAS+; only for an array, which may also come as a pair (array, affine).

        Raises:
            ImageError: if the image cannot be segmented; the message says why and what to do.
            InputError: if an array comes without an affine.
        """
        segmentation = self.segment(self.prepare(self.read(image, affine)))
        return segmentation.to_nifti(), list(segmentation.flags)

    @property
    def network(self) -> torch.nn.Module:
        """The network with its weights, for forward hooks."""
        network: torch.nn.Module = self._network
        return network

    def read(self, image: Any, affine: ArrayLike | None = None) -> MetaTensor:
        """Return the checked image on its own grid, (C, H, W, D); the arguments are those of a call."""
        if isinstance(image, tuple) and len(image) == 2 and not isinstance(image[0], str | Path | DicomSeries):
            image, affine = image
        count = len(self.channels)
        if isinstance(image, str | Path | DicomSeries):
            return read_image([image], count)
        if isinstance(image, nib.spatialimages.SpatialImage):
            return image_from_nibabel(image, count, image.get_filename() or "image")
        if isinstance(image, Sequence) and all(isinstance(source, str | Path | DicomSeries) for source in image):
            return read_image(image, count)
        if affine is None and isinstance(image, MetaTensor):
            affine = image.affine.cpu().numpy()
        if affine is None:
            raise InputError(
                "an array comes without an affine; give Predictor(...)(array, affine), voxel -> mm in RAS+."
            )
        array = image.detach().cpu().numpy() if isinstance(image, torch.Tensor) else np.asarray(image)
        return image_from_array(array, affine, count)

    def prepare(self, image: MetaTensor) -> Prepared:
        """Return the image as the network takes it; needs no device, so it can run beside another case's `segment`.

        Raises:
            OutOfDomainError: if the network cannot know such an image, unless `force`.
        """
        if not self.force:
            self._quality.check_domain(image)
        item: dict[str, Any] = {IMAGE: image.clone()}
        for transform in self._preprocessing:
            item = transform(item)
        return Prepared(image, item)

    @torch.no_grad()
    def segment(self, prepared: Prepared) -> Segmentation:
        """Return the label values on the grid of the image, and what to look at."""
        volume, item = prepared.image, dict(prepared.item)
        grid = np.asarray(volume.affine.numpy(), dtype=np.float64)
        inputs = item[IMAGE].unsqueeze(0).to(self.device)
        autocast = torch.autocast(self.device.type, torch.bfloat16) if self._half else contextlib.nullcontext()
        with autocast:
            scores = self._inferer(inputs, self._network)
        item[PRED] = scores[0].float()
        probabilities = item[PRED].softmax(0)
        for transform in self._postprocessing:
            item = transform(item)
        pred = np.asarray(item[PRED].cpu())
        if pred.shape != (1, *volume.shape[1:]):
            raise BundleError(
                f"{self.folder / CONFIG}: postprocessing gives shape {pred.shape} for an image "
                f"{tuple(volume.shape)}; it must invert the preprocessing and take the argmax."
            )
        labels = np.rint(pred[0]).astype(label_dtype(self.structures))
        spacing = nib.affines.voxel_sizes(np.asarray(item[IMAGE].affine))
        evidence = Evidence(volume, labels, probabilities, tuple(spacing.tolist()))
        return Segmentation(labels, grid, tuple(self._quality.flags(evidence)), self._volumes_ml(labels, grid))

    def _volumes_ml(self, labels: NDArray[Any], affine: NDArray[np.float64]) -> dict[str, float]:
        voxel_ml = float(nib.affines.voxel_sizes(affine).prod()) / 1000.0
        values, counts = np.unique(labels, return_counts=True)
        number = dict(zip(values.tolist(), counts.tolist(), strict=True))
        return {name: number.get(value, 0) * voxel_ml for name, value in self.structures.items()}


class _InferenceConfig:
    """The values of a bundle's inference.yaml, by id, with errors that name the file and the id."""

    def __init__(self, folder: Path, device: torch.device) -> None:
        self.path = folder / CONFIG
        if not self.path.is_file():
            raise BundleError(f"bundle {folder}: it has no {CONFIG}, so it cannot segment; give a complete bundle.")
        self._parser = ConfigParser()
        try:
            self._parser.read_config(self.path)
        except Exception as error:  # YAML errors of many kinds
            raise BundleError(f"{self.path}: cannot be read ({error}); correct the file.") from error
        self._parser["bundle_root"] = str(folder)
        self._parser["device"] = device

    def __getitem__(self, config_id: str) -> Any:
        try:
            with _quiet_readers():
                return self._parser.get_parsed_content(config_id)
        except Exception as error:  # whatever the config's own code raises
            cause: BaseException = error
            while cause.__cause__ is not None:
                cause = cause.__cause__
            raise BundleError(
                f"{self.path}: the id '{config_id}' cannot be made ({type(cause).__name__}: {cause}); "
                "correct the config."
            ) from error


def _label_values(structures: Any, path: Path) -> dict[str, int]:
    if not isinstance(structures, dict) or not all(isinstance(value, int) for value in structures.values()):
        raise BundleError(f"{path}: structures is {structures}; one label value per name is needed, {{name: value}}.")
    return dict(structures)


@contextlib.contextmanager
def _quiet_readers() -> Iterator[None]:
    """Hide the notice of MONAI 1.6 that one of its many DICOM readers is not installed; images are read here."""
    logger = logging.getLogger("monai.data.nvimgcodec_pydicom_plugin")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="NvImgCodecPydicomReader")
            yield
    finally:
        logger.setLevel(level)


def _device(name: str) -> torch.device:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise InputError(f"device {name}: there is no such device; use cpu, cuda or auto.") from error
    if device.type not in ("cpu", "cuda"):
        raise InputError(f"device {name}: droseg computes on cpu and cuda only; use cpu, cuda or auto.")
    if device.type == "cuda" and (not torch.cuda.is_available() or (device.index or 0) >= torch.cuda.device_count()):
        raise InputError(
            f"device {name}: PyTorch finds {torch.cuda.device_count()} CUDA device(s) here; use --device cpu."
        )
    return device


def _without(compose: Any, *types: type) -> list[Callable[[Any], Any]]:
    """Return the transforms of a `Compose` but those that read or write files; that is done here, with its errors."""
    return [transform for transform in compose.transforms if not isinstance(transform, types)]


def _label_image(labels: NDArray[Any], affine: NDArray[np.float64]) -> nib.Nifti1Image:
    """Return a NIfTI image in mm with the affine in both of its forms, as "aligned to another file"."""
    image = nib.Nifti1Image(labels, affine)
    image.set_sform(affine, code=2)
    image.set_qform(affine, code=2)
    image.header.set_xyzt_units("mm")
    return image
