"""Gliomas in phantom brains: necrosis inside an enhancing rim inside edema, as four MR contrasts show them.

Lengths are in mm of an adult head: the brains of `anatomy`, which are those of a fetus or an infant, times `ADULT`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Final, Literal, get_args

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from droseg.data.phantoms.anatomy import Field, Individual, Waves, random_individual, random_waves, tissue_fields
from droseg.data.phantoms.scan import inside_share, tissue_image

TumorType = Literal["enhancing", "no_enhancement"]
Channel = Literal["t1n", "t1c", "t2w", "t2f"]
Site = Literal["A", "B", "C"]

TUMOR_TYPES: Final[tuple[TumorType, ...]] = get_args(TumorType)
CHANNELS: Final[tuple[Channel, ...]] = get_args(Channel)
SITES: Final[tuple[Site, ...]] = get_args(Site)
NCR, ED, ET = 1, 2, 3
"""Values of BraTS 2023: necrotic (and non-enhancing) core, edema, enhancing tumor."""
ADULT: Final = 1.6
FIELD_OF_VIEW_MM: Final = (240, 240, 155)
"""Of BraTS' files, which lie on the grid of the SRI24 atlas in LPS order, 240 x 240 x 155 voxels of 1 mm."""
_HEAD_MM: Final = np.array([-119.5, 119.5, 78.0])  # the middle of the brain in world coordinates of such a file

_TISSUES: Final[dict[Channel, dict[str, float]]] = {
    "t1n": {"outer_csf": 210, "cortical_gm": 500, "white_matter": 690, "deep_gm": 570,
            "ventricles": 200, "brainstem": 640, "cerebellum": 520},
    "t1c": {"outer_csf": 230, "cortical_gm": 520, "white_matter": 690, "deep_gm": 580,
            "ventricles": 210, "brainstem": 640, "cerebellum": 540},
    "t2w": {"outer_csf": 980, "cortical_gm": 560, "white_matter": 400, "deep_gm": 480,
            "ventricles": 1000, "brainstem": 430, "cerebellum": 530},
    "t2f": {"outer_csf": 150, "cortical_gm": 560, "white_matter": 440, "deep_gm": 510,
            "ventricles": 130, "brainstem": 460, "cerebellum": 540},
}  # fmt: skip
_TUMOR: Final[dict[Channel, dict[str, float]]] = {
    "t1n": {"ED": 500, "ET": 470, "NCR": 300, "core": 420},
    "t1c": {"ED": 520, "ET": 1080, "NCR": 330, "core": 450},
    "t2w": {"ED": 780, "ET": 680, "NCR": 880, "core": 860},
    "t2f": {"ED": 900, "ET": 760, "NCR": 420, "core": 720},
}
"""Means of the parts of a tumor; `core` is the core of one that does not enhance."""


@dataclass(frozen=True)
class Tumor:
    """The random measures of one tumor; a radius is half an axis of an ellipsoid.

    Attributes:
        center_mm: in head coordinates, (3,).
        axes: rotation to the axes of the ellipsoids, (3, 3).
        core_mm: radii of the core (NCR and ET); 0: there is none.
        edema_mm: radii of the edema.
        rim_mm: thickness of the enhancing rim; None: nothing enhances.
        shape: relief of core, edema and inner border of the rim, root mean square 1.
    """

    center_mm: NDArray[np.float64]
    axes: NDArray[np.float64]
    core_mm: NDArray[np.float64]
    edema_mm: NDArray[np.float64]
    rim_mm: float | None
    shape: Waves


@dataclass(frozen=True)
class TumorScan:
    """Four co-registered volumes with their reference.

    Attributes:
        images: int16, (H, W, D) each; exactly 0 outside the brain, above 0 inside.
        label: uint8, (H, W, D): NCR, ED, ET.
        affine: voxel index to world coordinates in mm (RAS+), (4, 4); the voxels are in LPS order.
    """

    images: dict[Channel, NDArray[np.int16]]
    label: NDArray[np.uint8]
    affine: NDArray[np.float64]


def brats_grid(size: int) -> tuple[NDArray[np.float64], tuple[int, int, int]]:
    """Return affine and shape of a BraTS file with `size` voxels along 240 mm; size 240 is BraTS' own grid."""
    spacing_mm = FIELD_OF_VIEW_MM[0] / size
    affine = np.diag([-spacing_mm, -spacing_mm, spacing_mm, 1.0])
    # Centers of the outer voxels, so that all sizes cover the same 240 x 240 x 155 mm.
    affine[:3, 3] = (0.5 - spacing_mm / 2, 239.5 - spacing_mm / 2, spacing_mm / 2 - 0.5)
    return affine, (size, size, round(FIELD_OF_VIEW_MM[2] / spacing_mm))


def random_patient(rng: np.random.Generator, tumor_type: TumorType) -> tuple[Individual, Tumor]:
    """Return a random adult brain and its tumor."""
    # An adult's outer CSF; rigid registration to an atlas keeps the size, heads of adults differ by a few percent.
    individual = replace(
        random_individual(rng, "typical"),
        size=rng.uniform(0.94, 1.02) * rng.uniform(0.97, 1.03, size=3),
        outer_csf_mm=rng.uniform(1.6, 3.6),
    )
    return individual, _random_tumor(rng, individual, tumor_type)


def _random_tumor(rng: np.random.Generator, individual: Individual, tumor_type: TumorType) -> Tumor:
    """Return a tumor in the white matter of a hemisphere; volumes spread like those of gliomas, over a factor of 50."""
    proportions = rng.uniform(0.8, 1.25, size=3)
    radius_mm = float(np.exp(rng.uniform(np.log(9.0), np.log(26.0))))
    core_mm = radius_mm * proportions
    edema_mm = core_mm + rng.uniform(6.0, 18.0) * rng.uniform(0.8, 1.3, size=3)
    rim_mm: float | None = float(rng.uniform(3.5, 8.0))
    if tumor_type == "no_enhancement":
        rim_mm = None
        edema_mm = edema_mm + 4.0
        core_mm = core_mm * (0.0 if rng.random() < 0.5 else 0.4)
    axes = np.linalg.qr(rng.normal(size=(3, 3)))[0]
    # Relief from lobes as large as the tumor down to a third of it.
    shape = random_waves(rng, components=3, waves=12, wavelength_mm=(0.8 * radius_mm, 2.6 * radius_mm), rms=1.0)
    return Tumor(_random_center(rng, individual), axes, core_mm, edema_mm, rim_mm, shape)


def _random_center(rng: np.random.Generator, individual: Individual) -> NDArray[np.float64]:
    """Return a random place in the cerebral white matter; the coarse grid makes it the same at any resolution."""
    affine, shape = brats_grid(40)
    fields = tissue_fields(individual, _to_head(affine), shape)
    z_mm = affine[2, 2] * np.arange(shape[2]) + affine[2, 3] - _HEAD_MM[2]
    inside = (fields["white_matter"] < -1.0) & (fields["ventricles"] > 2.0) & (z_mm > -5.0)
    chosen = rng.choice(np.argwhere(inside))
    return affine[:3, :3] @ (chosen + rng.uniform(-0.5, 0.5, size=3)) + affine[:3, 3] - _HEAD_MM


def _to_head(affine: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return voxel index to the head coordinates of `anatomy`."""
    to_head = np.diag([1 / ADULT, 1 / ADULT, 1 / ADULT, 1.0])
    to_head[:3, 3] = -_HEAD_MM / ADULT
    return np.asarray(to_head @ affine)


def grown(tumor: Tumor, factor: float) -> Tumor:
    """Return a tumor at a later time point, its radii larger by a factor."""
    return replace(tumor, core_mm=tumor.core_mm * factor, edema_mm=tumor.edema_mm * factor)


def scan_patient(rng: np.random.Generator, individual: Individual, tumor: Tumor, site: Site, size: int) -> TumorScan:
    """Return a skull-stripped scan of a patient by the scanner of a site."""
    affine, shape = brats_grid(size)
    spacing_mm = FIELD_OF_VIEW_MM[0] / size
    fields = tissue_fields(individual, _to_head(affine), shape)
    parts = _tumor_fields(tumor, fields, affine, shape)
    label = np.zeros(shape, dtype=np.uint8)
    for name, value in (("ED", ED), ("core", ET if tumor.rim_mm is not None else NCR), ("NCR", NCR)):
        if name in parts:
            label[parts[name] < 0] = value
    brain = _brain(individual, fields) | (label > 0)
    texture = random_waves(rng, components=2, waves=20, wavelength_mm=(6, 20), rms=1.0).on_grid(affine, shape)
    images = {}
    for channel in CHANNELS:
        tissues = {name: field for name, field in fields.items() if name not in ("scalp", "skull")}
        image = tissue_image(rng, tissues, _site_contrast(channel, site), softness_mm=0.3 * spacing_mm / ADULT)
        image = _with_tumor(image, parts, _site_tumor(channel, site), texture[1], spacing_mm)
        image *= 1 + 0.025 * texture[0]
        images[channel] = _acquired(rng, image, brain, affine, site)
    return TumorScan(images, label, affine)


def _tumor_fields(
    tumor: Tumor, fields: Mapping[str, Field], affine: NDArray[np.float64], shape: tuple[int, int, int]
) -> dict[str, Field]:
    """Return the shapes of a tumor from the outside to the inside: `ED`, `core`, `NCR`, of which the tumor has."""
    to_center = np.eye(4)
    to_center[:3, 3] = -_HEAD_MM - tumor.center_mm
    local = to_center @ affine
    turned = tumor.axes @ local[:3]
    relief = tumor.shape.on_grid(local, shape)
    # Tumor and edema stay inside the brain and push no ventricle; edema spares the cortex, so it gets fingers.
    pial, white = ADULT * fields["cortical_gm"], ADULT * fields["white_matter"]
    ventricles = ADULT * fields["ventricles"]
    outside = np.maximum(np.maximum(pial, -ventricles), ADULT * np.minimum(-fields["brainstem"], 4.0))
    radius_mm = float(tumor.edema_mm.mean())
    edema = _ellipsoid(turned, shape, tumor.edema_mm) + 0.12 * radius_mm * relief[0]
    edema = np.maximum(np.maximum(edema, white + 0.5), outside)
    if not tumor.core_mm.any():
        return {"ED": edema}
    radius_mm = float(tumor.core_mm.mean())
    core = _ellipsoid(turned, shape, tumor.core_mm) + 0.10 * radius_mm * relief[1]
    core = np.maximum(core, outside).astype(np.float32)
    parts = {"ED": np.minimum(edema, np.maximum(core - 2.0, outside)), "core": core}
    if tumor.rim_mm is not None:
        parts["NCR"] = core + tumor.rim_mm * np.maximum(1 + 0.45 * relief[2], 0.35)
    return parts


def _ellipsoid(affine: NDArray[np.float64], shape: tuple[int, int, int], radii_mm: NDArray[np.float64]) -> Field:
    """Return the first-order distance to an ellipsoid around the origin (see `anatomy`), at each voxel in mm."""
    index = np.indices(shape, dtype=np.float32).reshape(3, -1)
    points = (affine[:3, :3].astype(np.float32) @ index + affine[:3, 3:].astype(np.float32)) / radii_mm[:, None]
    k0 = np.linalg.norm(points, axis=0)
    k1 = np.linalg.norm(points / radii_mm[:, None], axis=0)
    return (k0 * (k0 - 1) / np.maximum(k1, 1e-6)).reshape(shape).astype(np.float32)


def _brain(individual: Individual, fields: Mapping[str, Field]) -> NDArray[np.bool_]:
    """Return what skull stripping leaves: the hull of the brain with its sulci, without the CSF around it."""
    hull = fields["outer_csf"] + np.float32(individual.outer_csf_mm) - 0.6
    parts = [hull, fields["cortical_gm"], fields["brainstem"]]
    parts += [fields["cerebellum"]] if "cerebellum" in fields else []
    return np.min(parts, axis=0) < 0


def _site_contrast(channel: Channel, site: Site) -> dict[str, float]:
    """Return the means of the tissues: site C has less contrast between the matters and CSF that is not nulled."""
    means = dict(_TISSUES[channel])
    if site == "C":
        middle = (means["cortical_gm"] + means["white_matter"]) / 2
        for name in ("cortical_gm", "white_matter", "deep_gm", "brainstem", "cerebellum"):
            means[name] = middle + 0.45 * (means[name] - middle)
        if channel == "t2f":
            means |= {"outer_csf": 330.0, "ventricles": 310.0}
    return means


def _site_tumor(channel: Channel, site: Site) -> dict[str, float]:
    """Return the means of the parts of a tumor: at site C half the contrast agent, and a duller edema."""
    means = dict(_TUMOR[channel])
    if site == "C":
        means["ET"] = {"t1c": 820.0}.get(channel, means["ET"])
        means["ED"] = {"t2f": 720.0, "t2w": 680.0}.get(channel, means["ED"])
    return means


def _with_tumor(
    image: Field, parts: Mapping[str, Field], means: Mapping[str, float], texture: Field, spacing_mm: float
) -> Field:
    """Return the image with the parts of the tumor blended in; edema fades out, the rim is patchy."""
    enhancing = "NCR" in parts
    for name, softness_mm, patchiness in (("ED", 1.2, 0.04), ("core", 0.3, 0.10), ("NCR", 0.5, 0.05)):
        if name not in parts:
            continue
        mean = means["ET"] if name == "core" and enhancing else means[name]
        share = inside_share(parts[name], softness_mm + 0.3 * spacing_mm)
        image = image + share * (np.float32(mean) * (1 + np.float32(patchiness) * texture) - image)
    return image


def _acquired(
    rng: np.random.Generator, image: Field, brain: NDArray[np.bool_], affine: NDArray[np.float64], site: Site
) -> NDArray[np.int16]:
    """Return what scanner and preprocessing make of a volume: slices, bias field, gain, noise, skull stripping."""
    shape = (image.shape[0], image.shape[1], image.shape[2])
    if site == "C":  # 5 mm slices, interpolated to the grid of the atlas; a slice of width w has the deviation w / 3.5
        image = ndimage.gaussian_filter1d(image, 5.0 / 3.5 / affine[2, 2], axis=2)
    bias_rms, noise, gain = {"A": (0.03, 14.0, 1.0), "B": (0.06, 20.0, 0.45), "C": (0.12, 48.0, 2.2)}[site]
    bias = random_waves(rng, components=1, waves=4, wavelength_mm=(220, 420), rms=bias_rms).on_grid(affine, shape)[0]
    real, imaginary = rng.standard_normal((2, *shape), dtype=np.float32) * np.float32(noise)
    measured = gain * rng.uniform(0.8, 1.25) * np.hypot(image * np.exp(bias) + real, imaginary)
    return np.where(brain, np.maximum(np.round(measured), 1), 0).astype(np.int16)
