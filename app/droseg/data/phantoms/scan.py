"""Scans of a phantom brain: the grid, the contrast, and what the scanner adds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from droseg.data.phantoms.anatomy import (
    STRUCTURES,
    Anatomy,
    Field,
    Individual,
    random_individual,
    random_waves,
    tissue_fields,
)

Protocol = Literal["isotropic", "thick_slice"]
Weighting = Literal["T2w", "T1w"]

PROTOCOLS: Final[tuple[Protocol, ...]] = get_args(Protocol)
FIELD_OF_VIEW_MM: Final = 128.0

# Mean intensity of each tissue, of 1000 for CSF. `isotropic` is like a fetal T2w reconstruction (white matter brighter
# than cortex), `thick_slice` like a T2w stack of slices with the contrast of a more mature brain (darker). T1w has the
# opposite order of tissues.
# Ventricles and outer CSF, and the four kinds of grey matter, overlap within the spread between patients: where a
# tissue lies has to decide.
_CONTRASTS: Final[dict[Weighting, dict[Protocol, dict[str, float]]]] = {
    "T2w": {
        "isotropic": {
            "scalp": 420, "skull": 120, "outer_csf": 960, "cortical_gm": 470, "white_matter": 640,
            "ventricles": 1000, "deep_gm": 520, "cerebellum": 530, "brainstem": 580,
        },
        "thick_slice": {
            "scalp": 500, "skull": 160, "outer_csf": 820, "cortical_gm": 540, "white_matter": 430,
            "ventricles": 850, "deep_gm": 490, "cerebellum": 500, "brainstem": 455,
        },
    },
    "T1w": {
        "isotropic": {
            "scalp": 760, "skull": 90, "outer_csf": 230, "cortical_gm": 610, "white_matter": 480,
            "ventricles": 210, "deep_gm": 580, "cerebellum": 560, "brainstem": 530,
        },
        "thick_slice": {
            "scalp": 800, "skull": 130, "outer_csf": 260, "cortical_gm": 500, "white_matter": 650,
            "ventricles": 240, "deep_gm": 560, "cerebellum": 530, "brainstem": 620,
        },
    },
}  # fmt: skip
_SPREAD: Final = 0.045  # of a tissue's mean between patients, as a fraction
_NOISE: Final[dict[Protocol, float]] = {"isotropic": 22.0, "thick_slice": 48.0}
_SUBSLICES: Final = 2


@dataclass(frozen=True)
class Scan:
    """A volume with its reference.

    Attributes:
        image: int16, (H, W, D).
        label: uint8, (H, W, D), values of `STRUCTURES`.
        affine: voxel index to world coordinates in mm (RAS+), (4, 4).
    """

    image: NDArray[np.int16]
    label: NDArray[np.uint8]
    affine: NDArray[np.float64]


def random_scan(rng: np.random.Generator, anatomy: Anatomy, protocol: Protocol, size: int) -> Scan:
    """Return a T2w scan of a random individual, see `random_scans`."""
    return random_scans(rng, random_individual(rng, anatomy), protocol, size, ["T2w"])["T2w"]


def random_scans(
    rng: np.random.Generator, individual: Individual, protocol: Protocol, size: int, weightings: Sequence[Weighting]
) -> dict[Weighting, Scan]:
    """Return scans of an individual on one grid; about a third are oblique and about half are not stored as RAS.

    `size` is the number of voxels along the field of view of 128 mm in the isotropic protocol. `thick_slice` has 1.25
    times as many in the plane of a slice, and slices 1.5 times as thick as an isotropic voxel (3 mm at size 64).
    """
    affine, shape, slice_axis = _random_grid(rng, protocol, size)
    to_head = np.linalg.inv(_random_pose(rng))
    if slice_axis is None:
        fine_affine, fine_shape, spacing_mm = affine, shape, FIELD_OF_VIEW_MM / size
    else:
        fine_affine, fine_shape = _subdivided(affine, shape, slice_axis)
        spacing_mm = float(np.linalg.norm(affine[:3, (slice_axis + 1) % 3]))
    fields = tissue_fields(individual, to_head @ fine_affine, fine_shape)
    sliced = fields
    if slice_axis is not None:
        sliced = {name: _averaged(field, slice_axis) for name, field in fields.items()}
    label = _label(sliced)
    scans = {}
    for weighting in weightings:
        image = tissue_image(rng, fields, _CONTRASTS[weighting][protocol], softness_mm=0.3 * spacing_mm)
        if slice_axis is not None:
            image = _averaged(image, slice_axis)
        scans[weighting] = Scan(_scanned(rng, image, affine, protocol), label, affine)
    return scans


def _random_grid(
    rng: np.random.Generator, protocol: Protocol, size: int
) -> tuple[NDArray[np.float64], tuple[int, int, int], int | None]:
    """Return affine and shape of a grid around the origin, and the axis across the slices (None: isotropic)."""
    spacing_mm = np.full(3, FIELD_OF_VIEW_MM / size)
    slice_world = None
    if protocol == "thick_slice":
        slice_world = int(rng.choice(3, p=(0.2, 0.3, 0.5)))  # sagittal, coronal, axial
        spacing_mm = np.full(3, FIELD_OF_VIEW_MM / (1.25 * size))
        spacing_mm[slice_world] = 1.5 * FIELD_OF_VIEW_MM / size
    counts = np.round(FIELD_OF_VIEW_MM / spacing_mm).astype(int)
    order, flips = np.arange(3), np.ones(3)
    if rng.random() < 0.5:  # as a scanner may store it: axes in another order, running the other way
        order, flips = rng.permutation(3), rng.choice([-1.0, 1.0], size=3)
    linear = np.zeros((3, 3))
    linear[order, np.arange(3)] = spacing_mm[order] * flips
    if rng.random() < 1 / 3:
        linear = _rotation(rng, rng.uniform(8, 20)) @ linear
    shape = (int(counts[order[0]]), int(counts[order[1]]), int(counts[order[2]]))
    affine = np.eye(4)
    affine[:3, :3] = linear
    affine[:3, 3] = -linear @ ((np.array(shape) - 1) / 2)
    return affine, shape, None if slice_world is None else int(np.flatnonzero(order == slice_world)[0])


def _random_pose(rng: np.random.Generator) -> NDArray[np.float64]:
    """Return head to world coordinates: a head is never quite straight nor quite in the middle."""
    pose = np.eye(4)
    pose[:3, :3] = _rotation(rng, abs(rng.normal(scale=5.0)))
    pose[:3, 3] = rng.uniform(-3, 3, size=3) + (0, 0, 3)
    return pose


def _rotation(rng: np.random.Generator, degrees: float) -> NDArray[np.float64]:
    """Return a rotation by the angle about a random axis (Rodrigues)."""
    axis = rng.normal(size=3)
    x, y, z = axis / np.linalg.norm(axis)
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    angle = np.deg2rad(degrees)
    return np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * (cross @ cross)


def _subdivided(
    affine: NDArray[np.float64], shape: tuple[int, int, int], axis: int
) -> tuple[NDArray[np.float64], tuple[int, int, int]]:
    """Return the grid whose voxels are halves of a slice, so that a slice averages over its thickness."""
    counts = list(shape)
    counts[axis] *= _SUBSLICES
    fine = affine.copy()
    fine[:3, axis] /= _SUBSLICES
    fine[:3, 3] += fine[:3, axis] * (1 - _SUBSLICES) / 2
    return fine, (counts[0], counts[1], counts[2])


def _averaged(field: Field, axis: int) -> Field:
    """Return the mean over the parts of each slice."""
    shape = list(field.shape)
    shape[axis : axis + 1] = [shape[axis] // _SUBSLICES, _SUBSLICES]
    return field.reshape(shape).mean(axis=axis + 1, dtype=np.float32)


def tissue_image(
    rng: np.random.Generator, fields: Mapping[str, Field], contrast: Mapping[str, float], softness_mm: float
) -> Field:
    """Return the mean intensities of the tissues, mixed at the borders as partial volume mixes them."""
    spread = {name: 1 + _SPREAD * rng.normal() for name in contrast}
    image = np.zeros(next(iter(fields.values())).shape, dtype=np.float32)
    for name, field in fields.items():
        tissue = "ventricles" if name == "fourth_ventricle" else name
        mean = np.float32(contrast[tissue] * spread[tissue])
        image += inside_share(field, softness_mm) * (mean - image)
    return image


def inside_share(field: Field, softness_mm: float) -> Field:
    """Return how much of each voxel lies inside a shape, 0 to 1; the border is a few times `softness_mm` wide."""
    share: Field = 1 / (1 + np.exp(np.clip(field / np.float32(softness_mm), -20, 20)))
    return share


def _scanned(
    rng: np.random.Generator, image: Field, affine: NDArray[np.float64], protocol: Protocol
) -> NDArray[np.int16]:
    """Return what the scanner makes of a volume: texture, bias field, gain, Rician noise."""
    shape = (image.shape[0], image.shape[1], image.shape[2])
    texture = random_waves(rng, components=1, waves=24, wavelength_mm=(5, 16), rms=0.03).on_grid(affine, shape)[0]
    bias_rms = 0.04 if protocol == "isotropic" else 0.16
    bias = random_waves(rng, components=1, waves=4, wavelength_mm=(150, 300), rms=bias_rms).on_grid(affine, shape)[0]
    gain = 1.0 if protocol == "isotropic" else rng.uniform(0.4, 2.5)
    clean = image * (1 + texture) * np.exp(bias)
    real, imaginary = rng.standard_normal((2, *shape), dtype=np.float32) * np.float32(_NOISE[protocol])
    return np.round(gain * np.hypot(clean + real, imaginary)).astype(np.int16)


def _label(fields: dict[str, Field]) -> NDArray[np.uint8]:
    """Return the label of the last shape that holds the middle of each voxel."""
    values = STRUCTURES | {"fourth_ventricle": STRUCTURES["ventricles"]}
    label = np.zeros(next(iter(fields.values())).shape, dtype=np.uint8)
    for name, field in fields.items():
        if name in values:
            label[field < 0] = values[name]
    return label
