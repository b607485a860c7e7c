"""A bundle's network, ready to segment one image after the other."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import nibabel as nib
import numpy as np
import torch
from monai.data import MetaTensor
from monai.inferers import SlidingWindowInferer
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from droseg.bundles import find_bundle
from droseg.data.dicom import DicomSeries
from droseg.data.regions import mask_of
from droseg.engine.precision import choose_device, has_fast_bf16
from droseg.errors import BundleError, InputError
from droseg.inference.bundle_config import CONFIG, InferenceConfig
from droseg.inference.finishing import Finishing
from droseg.inference.memory import is_out_of_memory, no_memory
from droseg.inference.native import NativeGrid, WholeGrid, integers
from droseg.inference.networks import checkpoint_files, fingerprint, load_networks
from droseg.inference.preparing import Preprocessing
from droseg.inference.quality import Evidence, Flag, QualityRules
from droseg.inference.reading import image_from_array, image_from_nibabel, read_image
from droseg.inference.scoring import Scorer, WholeImage
from droseg.inference.views import Views
from droseg.inference.windows import SlidingWindow
from droseg.inference.writing import label_dtype
from droseg.keys import IMAGE, PRED

Precision = Literal["fp32", "bf16", "fp16", "auto"]


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
        probabilities: of the classes, background first, or of regions that may overlap without it, (K, H, W, D)
            float16; None unless asked for.
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

    Of the bundle's configs/inference.yaml it reads `channels`, `structures`, `checkpoint`, `network_def`, `inferer`,
    `preprocessing` and `postprocessing`, and `mirror_axes` and `foreground_crop`. The label maps are those of
    `python -m monai.bundle run inference`, except for what the arguments below ask for beyond it.

    Args:
        bundle: name of a shipped bundle, or the folder of one or of a training run; nothing is written into it.
        device: "cpu", "cuda", "cuda:1", ..., or "auto" for a GPU where there is one.
        precision: of the network. "bf16" and "fp16" (on CUDA only) take half the memory, and a few voxels at borders
            may differ; "auto" takes one of them where the hardware multiplies it (about twice as fast).
        force: segment images, too, that the network cannot know.
        mirror: average the probabilities over mirrored views, along the bundle's `mirror_axes`.
        checkpoints: `model.pt` files or run folders of the same network, in place of the bundle's own weights; their
            probabilities are averaged.
        probabilities: give them with each segmentation; this takes 2 bytes per class and voxel.
        memory_gb: what one case may take, in GiB; None: what is free. Fewer windows run at a time if it is little.
        overlap: of the windows, 0 to less than 1, in place of the bundle's own.

    Attributes:
        channels: names of the images that a case needs, in order.
        structures: name -> its values in the label map; those of overlapping regions lie in each other.
        overlapping: whether each region has a probability of its own (sigmoid), instead of classes that exclude each
            other (softmax).
        fingerprint: SHA-256 of all weights, the inference config and the arguments that change results, in hex.

    Raises:
        BundleError: if there is no such bundle, or its configs/inference.yaml cannot be used.
        WeightsError: if weights are missing, damaged or of another network.
        InputError: if there is no such device, or an argument has no meaning there.
    """

    def __init__(
        self,
        bundle: str | Path,
        device: str = "cpu",
        precision: Precision = "fp32",
        *,
        force: bool = False,
        mirror: bool = False,
        checkpoints: Sequence[str | Path] | None = None,
        probabilities: bool = False,
        memory_gb: float | None = None,
        overlap: float | None = None,
    ) -> None:
        self.folder = find_bundle(bundle)
        self.device = choose_device(device)
        _check_arguments(checkpoints, memory_gb, overlap)
        config = InferenceConfig(self.folder, self.device)
        self.channels: tuple[str, ...] = tuple(config["channels"])
        self.structures = config.label_values()
        self.force = force
        self.probabilities = probabilities
        self._quality = QualityRules(self.folder, self.structures)
        half = _half(precision, self.device)
        weights = checkpoint_files(config, checkpoints)
        layout = torch.channels_last_3d if half and self.device.type == "cpu" else torch.contiguous_format
        networks: list[Any] = load_networks(config, weights)
        for network in networks:
            network.to(self.device, memory_format=layout)
        self._finishing = Finishing(config["postprocessing"].transforms)
        activation = self._finishing.activation
        self.overlapping = activation == "sigmoid"
        axes = config.mirror_axes() if mirror else ()
        if len(networks) * 2 ** len(axes) > 1 and activation is None:
            raise BundleError(
                f"{config.path}: postprocessing has no Activationsd with softmax or sigmoid, so that probabilities "
                "cannot be averaged; add it, or predict without mirroring and with one checkpoint."
            )
        views = Views(networks, axes, activation or "softmax", half)
        self._scorer = _scorer(config, views, self._finishing, self.device, memory_gb, overlap)
        self._preprocessing = Preprocessing(config["preprocessing"], invertible=not self._finishing.splits)
        options = {"mirror": list(axes), "half": half and str(half), "overlap": overlap}
        self.fingerprint = fingerprint(weights, config.path, {name: value for name, value in options.items() if value})
        # One image at a time on the device; and MONAI's inverse changes the state of the transforms that it inverts.
        self._segmenting, self._transforming = threading.Lock(), threading.Lock()

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
        """The network with its weights, for forward hooks; of several, the first."""
        return self._scorer.views.networks[0]

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
        with self._transforming:
            return Prepared(image, self._preprocessing(image))

    def segment(self, prepared: Prepared) -> Segmentation:
        """Return the label values on the grid of the image, and what to look at; one image at a time.

        Raises:
            ImageError: if memory does not suffice even for one window at a time.
        """
        try:
            with self._segmenting, torch.no_grad():
                return self._segment(prepared)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            raise no_memory(tuple(prepared.image.shape[1:]), "for its label map") from error

    def _segment(self, prepared: Prepared) -> Segmentation:
        image = prepared.image
        evidence, probabilities, less_overlap = (
            self._by_planes(prepared) if self._finishing.splits else self._in_one_piece(prepared)
        )
        flags = [*self._quality.flags(evidence), *([_LESS_OVERLAP] if less_overlap else [])]
        grid = np.asarray(image.affine.numpy(), dtype=np.float64)
        volumes_ml = self._volumes_ml(evidence.labels, grid)
        return Segmentation(evidence.labels, grid, tuple(flags), volumes_ml, probabilities)

    def _by_planes(self, prepared: Prepared) -> tuple[Evidence, NDArray[Any] | None, bool]:
        """Return labels and all else that the network says, never with all scores in memory."""
        image, inputs = prepared.image, prepared.item[IMAGE]
        shape, dtype = tuple(image.shape[1:]), label_dtype(self.structures)
        affine = np.asarray(inputs.affine, dtype=np.float64)
        to_source = np.linalg.solve(affine, np.asarray(image.affine, dtype=np.float64)).astype(np.float64)
        source_shape = tuple(inputs.shape[1:])

        def start() -> NativeGrid:
            return NativeGrid(self._finishing, to_source, source_shape, shape, dtype, self.probabilities)

        each = dtype.itemsize + (2 * (len(self.structures) + (not self.overlapping)) if self.probabilities else 0)
        native, less_overlap = self._scorer(_plain(inputs), start, each * image[0].numel())
        labels = native.labels
        if self._finishing.last:
            item = {**prepared.item, PRED: MetaTensor(torch.from_numpy(labels[None]).float(), affine=image.affine)}
            for transform in self._finishing.last:
                item = transform(item)
            labels = integers(item[PRED], shape).astype(dtype)
        spacing = nib.affines.voxel_sizes(affine) * native.step
        evidence = self._evidence(image, labels, native.evidence, spacing, native.disagreement)
        return evidence, native.probabilities, less_overlap

    def _in_one_piece(self, prepared: Prepared) -> tuple[Evidence, NDArray[Any] | None, bool]:
        """Return the same with the bundle's postprocessing as it stands."""
        if self.probabilities:
            raise BundleError(
                f"{self.folder / CONFIG}: postprocessing is not Activationsd, Invertd, AsDiscreted and so on, so "
                "that there are no probabilities on the image's grid; ask for none."
            )
        image, inputs = prepared.image, prepared.item[IMAGE]
        native, less_overlap = self._scorer(
            _plain(inputs), lambda: WholeGrid(tuple(inputs.shape[1:]), self.overlapping)
        )
        item = {**prepared.item, PRED: native.scores.clone()}
        with self._transforming:
            for transform in self._finishing.whole:
                item = transform(item)
        labels = integers(item[PRED], tuple(image.shape[1:])).astype(label_dtype(self.structures))
        scores = native.scores
        values = scores.sigmoid() if self.overlapping else scores.softmax(0)
        spacing = nib.affines.voxel_sizes(np.asarray(inputs.affine))
        return self._evidence(image, labels, values, spacing, native.disagreement), None, less_overlap

    def _evidence(
        self,
        image: MetaTensor,
        labels: NDArray[Any],
        probabilities: Tensor,
        spacing_mm: NDArray[np.float64],
        disagreement: float | None,
    ) -> Evidence:
        first, second, third = (float(edge) for edge in spacing_mm)
        return Evidence(image, labels, probabilities, (first, second, third), disagreement, self.overlapping)

    def _volumes_ml(self, labels: NDArray[Any], affine: NDArray[np.float64]) -> dict[str, float]:
        voxel_ml = float(nib.affines.voxel_sizes(affine).prod()) / 1000.0
        return {
            name: int(np.count_nonzero(mask_of(labels, values))) * voxel_ml for name, values in self.structures.items()
        }


_LESS_OVERLAP = Flag(
    "less_overlap", "", "the GPU's memory did not suffice: segmented on the CPU with windows that overlap less"
)


def _plain(image: Tensor) -> Tensor:
    return image.as_tensor() if isinstance(image, MetaTensor) else image


def _scorer(
    config: InferenceConfig,
    views: Views,
    finishing: Finishing,
    device: torch.device,
    memory_gb: float | None,
    overlap: float | None,
) -> Scorer:
    inferer = config["inferer"]
    plain = type(inferer) is SlidingWindowInferer and not inferer.with_coord
    if overlap is not None and not plain:
        raise InputError(f"overlap {overlap}: {config.path} has no SlidingWindowInferer that could take it.")
    crop = config.raw("foreground_crop")
    window = SlidingWindow.of(inferer, overlap, crop is not False) if plain else WholeImage(inferer)
    channels = len(config["channels"])
    batch = inferer.sw_batch_size if plain else 1
    return Scorer(views, window, finishing, batch=batch, device=device, channels=channels, memory_gb=memory_gb)


def _half(precision: str, device: torch.device) -> torch.dtype | None:
    """Return the 16-bit type that the network runs in; None for float32."""
    if precision not in ("fp32", "bf16", "fp16", "auto"):
        raise InputError(f"precision {precision}: use fp32, bf16, fp16 or auto.")
    if precision == "fp16" and device.type != "cuda":
        raise InputError("precision fp16: only a CUDA device computes in it; use bf16, auto or fp32.")
    if precision == "auto" and has_fast_bf16(device):
        return torch.bfloat16
    if precision == "auto":
        return torch.float16 if device.type == "cuda" else None
    return {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision)


def _check_arguments(checkpoints: Sequence[str | Path] | None, memory_gb: float | None, overlap: float | None) -> None:
    if checkpoints is not None and (isinstance(checkpoints, str | Path) or not checkpoints):
        raise InputError(f"checkpoints is {checkpoints!r}; give a list of model.pt files or run folders.")
    if memory_gb is not None and not memory_gb > 0:
        raise InputError(f"memory_gb is {memory_gb}; it must be above 0.")
    if overlap is not None and not 0 <= overlap < 1:
        raise InputError(f"overlap is {overlap}; it must be at least 0 and below 1.")


def _label_image(labels: NDArray[Any], affine: NDArray[np.float64]) -> nib.Nifti1Image:
    """Return a NIfTI image in mm with the affine in both of its forms, as "aligned to another file"."""
    image = nib.Nifti1Image(labels, affine)
    image.set_sform(affine, code=2)
    image.set_qform(affine, code=2)
    image.header.set_xyzt_units("mm")
    return image
