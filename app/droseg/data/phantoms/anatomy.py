"""Brains as nested implicit shapes: a random individual of an anatomy, and its tissues at any points.

Lengths are in mm, in head coordinates: x to the right, y to the front, z up, the origin in the middle of the brain.
A shape is a field that is negative inside and close to the signed distance in mm near its surface.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final, Literal, get_args

import numpy as np
from numpy.typing import NDArray

Field = NDArray[np.floating[Any]]
Anatomy = Literal["typical", "enlarged_ventricles", "absent_cerebellum"]

ANATOMIES: Final[tuple[Anatomy, ...]] = get_args(Anatomy)
STRUCTURES: Final = {
    "outer_csf": 1,
    "cortical_gm": 2,
    "white_matter": 3,
    "ventricles": 4,
    "deep_gm": 5,
    "cerebellum": 6,
    "brainstem": 7,
}
SKULL_MM: Final = 2.5
SCALP_MM: Final = 6.5


@dataclass(frozen=True)
class Individual:
    """The random measures of one brain."""

    size: NDArray[np.float64]  # factor along x, y, z
    outer_csf_mm: float
    ventricle_radius_mm: float
    third_ventricle_mm: float
    deep_gm_scale: float
    cerebellum_scale: float  # 0: there is none
    cerebellum_shift_mm: NDArray[np.float64]
    fossa_scale: float
    occipital_descent: float  # 0 to 1: how far the occipital lobe fills the place of the cerebellum
    sulcal_depth_mm: float
    cortex_mm: float
    warp: Waves
    folding: Waves


@dataclass(frozen=True)
class Waves:
    """A smooth random field: cosines of random direction and phase.

    Attributes:
        amplitude: (components, waves).
        frequency: wave vectors in radians per mm, (components, waves, 3).
        phase: radians, (components, waves).
    """

    amplitude: NDArray[np.float64]
    frequency: NDArray[np.float64]
    phase: NDArray[np.float64]

    def on_grid(self, affine: NDArray[np.float64], shape: tuple[int, int, int]) -> Field:
        """Return the field at the points `affine @ (i, j, k, 1)`, shape (components, *shape).

        On a grid a plane wave is an outer product of three one-dimensional ones, which spares the cosine per voxel.
        """
        result = np.zeros((len(self.amplitude), *shape), dtype=np.float32)
        steps = self.frequency @ affine[:3, :3]
        starts = self.frequency @ affine[:3, 3] + self.phase
        for component, (amplitudes, waves, offsets) in enumerate(zip(self.amplitude, steps, starts, strict=True)):
            factors = [np.exp(1j * np.outer(waves[:, axis], np.arange(shape[axis]))) for axis in range(3)]
            factors[0] = factors[0] * (amplitudes * np.exp(1j * offsets))[:, None]
            plane = np.einsum("wi,wj->wij", factors[0], factors[1]).reshape(len(waves), -1).T
            # Re(plane @ last) as one real matrix product
            left = np.concatenate([plane.real, -plane.imag], axis=1).astype(np.float32)
            right = np.concatenate([factors[2].real, factors[2].imag], axis=0).astype(np.float32)
            result[component] = (left @ right).reshape(shape)
        return result


def random_waves(
    rng: np.random.Generator, components: int, waves: int, wavelength_mm: tuple[float, float], rms: float
) -> Waves:
    """Return a random field whose components have the given root mean square and range of wavelengths."""
    direction = rng.normal(size=(components, waves, 3))
    direction /= np.linalg.norm(direction, axis=-1, keepdims=True)
    length = rng.uniform(*wavelength_mm, size=(components, waves, 1))
    amplitude = np.full((components, waves), rms * np.sqrt(2.0 / waves))
    return Waves(amplitude, 2 * np.pi * direction / length, rng.uniform(0, 2 * np.pi, size=(components, waves)))


def random_individual(rng: np.random.Generator, anatomy: Anatomy) -> Individual:
    """Return the measures of a random brain of the anatomy.

    `enlarged_ventricles` follows spina bifida aperta with Chiari II malformation: wide ventricles, effaced outer CSF,
    a small cerebellum drawn down behind the brainstem. `absent_cerebellum` has occipital lobe and CSF in its place.
    """
    measures: dict[str, Any] = {
        "size": rng.uniform(0.88, 1.04) * rng.uniform(0.95, 1.05, size=3),
        "outer_csf_mm": rng.uniform(3.5, 6.0),
        "ventricle_radius_mm": rng.uniform(4.5, 7.0),
        "third_ventricle_mm": rng.uniform(1.5, 2.5),
        "deep_gm_scale": rng.uniform(0.9, 1.1),
        "cerebellum_scale": rng.uniform(0.92, 1.08),
        "cerebellum_shift_mm": rng.normal(scale=(0.5, 1.5, 1.5)),
        "fossa_scale": rng.uniform(0.95, 1.05),
        "occipital_descent": 0.0,
        "sulcal_depth_mm": rng.uniform(7.0, 10.0),
        "cortex_mm": rng.uniform(3.6, 4.6),
    }
    if anatomy == "enlarged_ventricles":
        severity = rng.uniform(0.3, 1.0)
        measures |= {
            "outer_csf_mm": 1.6 - 1.2 * severity,
            "ventricle_radius_mm": 9.0 + 5.5 * severity,
            "third_ventricle_mm": 3.0 + 2.0 * severity,
            "deep_gm_scale": 0.95 - 0.12 * severity,
            "cerebellum_scale": 0.78 - 0.2 * severity,
            "cerebellum_shift_mm": np.array([0.0, 5.0 + 3.0 * severity, -10.0 - 8.0 * severity]),
            "fossa_scale": 0.72 - 0.1 * severity,
            "occipital_descent": 0.5 * severity,
            "sulcal_depth_mm": 4.5 - 2.0 * severity,
        }
    elif anatomy == "absent_cerebellum":
        measures |= {
            "cerebellum_scale": 0.0,
            "occipital_descent": rng.uniform(0.0, 0.7),
            "ventricle_radius_mm": rng.uniform(5.5, 8.5),
        }
    warp = random_waves(rng, components=3, waves=6, wavelength_mm=(70, 140), rms=2.2)
    folding = random_waves(rng, components=1, waves=14, wavelength_mm=(26, 40), rms=1.0)
    return Individual(**measures, warp=warp, folding=folding)


def tissue_fields(individual: Individual, affine: NDArray[np.float64], shape: tuple[int, int, int]) -> dict[str, Field]:
    """Return the shapes of a brain on a grid, in the order in which a later one covers an earlier one.

    The grid has the shape and the affine (voxel index to head coordinates in mm). First come `scalp` and `skull`, then
    `STRUCTURES`, where `fourth_ventricle` belongs to `ventricles`.
    """
    x, y, z = _points(individual, affine, shape)
    side = np.abs(x)
    sulci = individual.folding.on_grid(affine, shape)[0]
    hemisphere = _cerebrum(individual, side, y, z)
    cerebellum = _cerebellum(individual, side, y, z)
    brainstem = _brainstem(x, y, z)
    pial, white = _cortex(individual, hemisphere, sulci, side, z)
    csf = _outer_csf(individual, hemisphere, cerebellum, brainstem, x, y, z)
    neck = _smooth_max(_cylinder(0.9 * x, y + 14, 30.0), z + 26, 12.0)
    fields = {"scalp": _smooth_min(csf - SCALP_MM, neck, 12.0), "skull": csf - SKULL_MM, "outer_csf": csf}
    fields |= {"cortical_gm": pial, "white_matter": white, "deep_gm": _deep_gm(individual, side, y, z)}
    fields |= {"ventricles": _ventricles(individual, side, y, z), "brainstem": brainstem}
    if cerebellum is not None:
        fields["cerebellum"] = cerebellum
    fields["fourth_ventricle"] = _ellipsoid(x, y + 20, z + 25, (3.0, 3.0, 6.0))
    return fields


def _points(
    individual: Individual, affine: NDArray[np.float64], shape: tuple[int, int, int]
) -> tuple[Field, Field, Field]:
    """Return x, y, z of the mean brain at each voxel: the grid's points, warped and scaled back."""
    warp = individual.warp.on_grid(affine, shape)
    index = [np.arange(n, dtype=np.float32) for n in shape]
    axes = []
    for axis in range(3):
        step = affine[axis, :3].astype(np.float32)
        i, j, k = (step[n] * index[n] for n in range(3))
        plain = i[:, None, None] + j[None, :, None] + k[None, None, :] + np.float32(affine[axis, 3])
        axes.append(((plain + warp[axis]) / np.float32(individual.size[axis])).astype(np.float32))
    return axes[0], axes[1], axes[2]


def _cerebrum(individual: Individual, side: Field, y: Field, z: Field) -> Field:
    """Return the smooth hull of both hemispheres, with temporal lobes and a flat base."""
    upper = _ellipsoid(side, y - 1, z - 8, (42.0, 52.0, 37.0))
    base = -(z + 12) + 0.12 * np.maximum(y, 0)
    hull = _smooth_max(upper, base, 5.0)
    hull = _smooth_min(hull, _ellipsoid(side - 25, y - 9, z + 11, (15.0, 24.0, 14.0)), 4.0)
    if individual.occipital_descent > 0:
        descent = individual.occipital_descent
        lobe = _ellipsoid(side - 13, y + 33, z + 12 + 8 * descent, (13.0, 13.0, 7.0 + 7.0 * descent))
        hull = _smooth_min(hull, lobe, 3.0)
    return hull


def _cortex(individual: Individual, hull: Field, sulci: Field, side: Field, z: Field) -> tuple[Field, Field]:
    """Return the pial and the white matter surface: the hull, folded in along sulci and the midline fissure."""
    depth = np.float32(individual.sulcal_depth_mm)
    square = sulci * sulci  # sulci lie where the folding field is zero
    narrow, wide = np.exp(-square / np.float32(0.05)), np.exp(-square / np.float32(0.40))
    fissure = 22 / (1 + np.exp(-(z - 10) / 4))  # it ends at the corpus callosum
    half_width = 0.8 + 0.22 * individual.outer_csf_mm
    pial = hull + np.maximum(depth * narrow, fissure * np.exp(-((side / half_width) ** 2)))
    thickness = np.float32(individual.cortex_mm)
    white = hull + thickness + np.maximum(depth * wide, fissure * np.exp(-((side / 5.0) ** 2)))
    return pial.astype(np.float32), white.astype(np.float32)


def _ventricles(individual: Individual, side: Field, y: Field, z: Field) -> Field:
    """Return lateral and third ventricles: a curved horn on each side, widest at the atrium."""
    radius = individual.ventricle_radius_mm
    ring = 17.0 + 0.25 * radius
    from_center = np.hypot(y + 5, z - 1)
    # cosine of the angle from the direction of the atrium, which lies up and back
    toward_atrium = (-0.6 * (y + 5) + 0.8 * (z - 1)) / np.maximum(from_center, 1e-3)
    tube = radius * np.maximum(0.5 + 0.5 * toward_atrium, 0.0) ** 0.7
    offset = side - (max(8.0, radius + 1.2) - 0.18 * (y + 5))
    lateral = np.hypot(from_center - ring, offset).astype(np.float32) - tube + 0.4
    width = individual.third_ventricle_mm
    third = _ellipsoid(side, y - 1, z - 1, (width, 9.0 + width, 7.0 + width))
    return np.minimum(lateral, third)


def _deep_gm(individual: Individual, side: Field, y: Field, z: Field) -> Field:
    """Return thalamus and basal ganglia: an ovoid on each side, below the lateral ventricle."""
    scale = individual.deep_gm_scale
    center = 12.5 + 0.35 * individual.third_ventricle_mm
    return _ellipsoid(side - center, y - 1, z, (9.0 * scale, 15.0 * scale, 9.5 * scale))


def _brainstem(x: Field, y: Field, z: Field) -> Field:
    """Return a bent stem with the bulge of the pons."""
    radius = 6.5 + 3.0 * np.exp(-(((z + 22) / 7) ** 2))
    across = _cylinder(x, y + 9 - 0.22 * (z + 22), radius)
    return _smooth_max(_smooth_max(across, z + 6, 3.0), -(z + 56), 2.0)


def _cerebellum(individual: Individual, side: Field, y: Field, z: Field) -> Field | None:
    """Return two hemispheres and the vermis; None where there is no cerebellum."""
    scale = individual.cerebellum_scale
    if scale == 0:
        return None
    shift = individual.cerebellum_shift_mm
    back, down = y + 31 - np.float32(shift[1]), z + 28 - np.float32(shift[2])
    lobes = _ellipsoid(side - 11 * scale, back, down, (16.0 * scale, 15.5 * scale, 14.5 * scale))
    vermis = _ellipsoid(side, back, down - 1, (8.0 * scale, 13.0 * scale, 13.0 * scale))
    return _smooth_min(lobes, vermis, 3.0)


def _outer_csf(
    individual: Individual,
    hull: Field,
    cerebellum: Field | None,
    brainstem: Field,
    x: Field,
    y: Field,
    z: Field,
) -> Field:
    """Return the space inside the skull: a margin around the brain, and the posterior fossa."""
    margin, scale = individual.outer_csf_mm, individual.fossa_scale
    fossa = _ellipsoid(x, y + 27, z + 25, (32.0 * scale, 24.0 * scale, 19.5 * scale))
    space = _smooth_min(hull - margin, _smooth_min(fossa, brainstem - 0.7 * margin, 5.0), 5.0)
    return space if cerebellum is None else np.minimum(space, cerebellum - 0.35 * margin)


def _ellipsoid(x: Field, y: Field, z: Field, radii: tuple[float, float, float]) -> Field:
    """Return the first-order distance to an ellipsoid: k0 (k0 - 1) / k1 with k0 = |p / r|, k1 = |p / r^2|."""
    u, v, w = x / np.float32(radii[0]), y / np.float32(radii[1]), z / np.float32(radii[2])
    k0 = np.sqrt(u * u + v * v + w * w)
    u, v, w = u / np.float32(radii[0]), v / np.float32(radii[1]), w / np.float32(radii[2])
    k1 = np.sqrt(u * u + v * v + w * w)
    return (k0 * (k0 - 1) / np.maximum(k1, np.float32(1e-6))).astype(np.float32)


def _cylinder(u: Field, v: Field, radius_mm: Field | float) -> Field:
    """Return the distance to a cylinder whose axis is where u and v are 0."""
    return (np.hypot(u, v) - radius_mm).astype(np.float32)


def _smooth_min(a: Field, b: Field, width_mm: float) -> Field:
    """Return the union of two shapes with a rounded seam (polynomial smooth minimum, I. Quilez)."""
    overlap = np.maximum(np.float32(width_mm) - np.abs(a - b), 0) / np.float32(width_mm)
    return (np.minimum(a, b) - overlap * overlap * np.float32(width_mm / 4)).astype(np.float32)


def _smooth_max(a: Field, b: Field, width_mm: float) -> Field:
    """Return the intersection of two shapes with a rounded edge."""
    return -_smooth_min(-a, -b, width_mm)
