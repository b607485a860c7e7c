"""Resampling slab by slab, compared with MONAI's in one piece and with positions worked out by hand."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import Compose, Orientationd, Spacingd

from droseg.inference.grid import reach, resample, resample_box, slabs, whole
from droseg.inference.preparing import Preprocessing

AFFINES = {
    "thick slices": np.diag([1.0, 0.8, 3.0, 1.0]),
    "turned axes": np.array([[0, -0.7, 0, 5], [0, 0, 2.0, -3], [-1.3, 0, 0, 8], [0, 0, 0, 1.0]]),
}


def oblique() -> np.ndarray:
    angle = np.deg2rad(25)
    affine = np.diag([1.1, 0.9, 2.0, 1.0])
    turn = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    affine[:3, :3] = turn @ affine[:3, :3]
    affine[:3, 3] = 4, -7, 11
    return affine


def transforms() -> Compose:
    return Compose(
        [
            Orientationd(keys=["image", "label"], axcodes="RAS", labels=None, allow_missing_keys=True),
            Spacingd(
                keys=["image", "label"], pixdim=(1.2, 1.0, 0.9), mode=("bilinear", "nearest"), allow_missing_keys=True
            ),
        ]
    )


@pytest.mark.parametrize("affine", [*AFFINES.values(), oblique()], ids=[*AFFINES, "oblique"])
def test_there_and_back_is_what_monai_makes_in_one_piece(affine: np.ndarray) -> None:
    image = MetaTensor(torch.randn(2, 23, 19, 11), affine=torch.as_tensor(affine))
    compose = transforms()
    truth = compose({"image": image.clone()})["image"]
    item = Preprocessing(compose, invertible=False)(image)
    torch.testing.assert_close(item["image"].as_tensor(), truth.as_tensor(), rtol=0, atol=1e-6)
    np.testing.assert_allclose(item["image"].affine, truth.affine, rtol=0, atol=1e-9)

    scores = torch.randn(4, *truth.shape[1:]).softmax(0)
    back = MetaTensor(scores.clone(), affine=truth.affine, applied_operations=truth.applied_operations)
    back = compose.inverse({"image": back})["image"]
    to_source = np.linalg.solve(np.asarray(item["image"].affine), affine)
    slab_wise = torch.cat([resample_box(scores, to_source, slab) for slab in slabs(whole((23, 19, 11)), 500)], dim=1)
    torch.testing.assert_close(slab_wise, back.as_tensor(), rtol=0, atol=1e-6)
    torch.testing.assert_close(slab_wise.argmax(0), back.as_tensor().argmax(0), rtol=0, atol=0)


def test_an_image_with_the_right_spacing_is_left_as_it_is() -> None:
    image = MetaTensor(torch.randn(1, 9, 8, 7), affine=torch.diag(torch.tensor([1.2, 1.0, 0.9, 1.0])))
    item = Preprocessing(transforms(), invertible=False)(image)
    assert torch.equal(item["image"].as_tensor(), image.as_tensor())


def test_a_linear_ramp_is_interpolated_exactly_also_between_oblique_grids() -> None:
    ramp = torch.arange(12.0)[None, :, None, None].expand(1, 12, 10, 9)
    turn = oblique() @ np.diag([0.3, 0.3, 0.2, 1.0])
    turn[:3, 3] = 3, 2, 1
    found = resample(ramp, turn, (6, 5, 4))
    for index in itertools.product(range(6), range(5), range(4)):
        place = turn @ [*index, 1]
        assert float(found[(0, *index)]) == pytest.approx(float(np.clip(place[0], 0, 11)), abs=1e-5)


@pytest.mark.parametrize("seed", range(8))
def test_nothing_outside_its_reach_is_touched_by_a_box(seed: int) -> None:
    rng = np.random.default_rng(seed)
    size, shape = (14, 12, 10), (17, 13, 15)
    source = torch.zeros(1, *size)
    low = rng.integers(0, 7, 3) * rng.integers(0, 2, 3)  # at the border in some axes
    high = np.minimum(low + rng.integers(4, 9, 3), size)
    box = tuple(slice(int(a), int(b)) for a, b in zip(low, high, strict=True))
    source[(0, *box)] = 1.0
    affine = (oblique() if seed % 2 else np.diag([0.8, 1.1, 0.6, 1.0])) @ np.diag([*rng.choice([-1, 1], 3), 1.0])
    affine[:3, 3] = np.array(size) / 2 - affine[:3, :3] @ (np.array(shape) / 2)
    touched = resample(source, affine, shape)[0] > 0
    found = reach(box, size, affine, shape)
    inside = torch.zeros(shape, dtype=torch.bool)
    inside[found] = True
    assert bool(touched.any())
    assert not bool((touched & ~inside).any())
    if not seed % 2:  # parallel to the axes: no more than a voxel too much on each side
        where = touched.nonzero()
        assert all(where[:, k].min() - found[k].start <= 2 for k in range(3))
        assert all(found[k].stop - 1 - where[:, k].max() <= 2 for k in range(3))
