from __future__ import annotations

import pytest

from droseg.errors import InputError
from droseg.plan.patch import fit_patch
from droseg.plan.topology import Topology, find_topology, network_config

TWO, FLAT = (2, 2, 2), (2, 2, 1)
# What get_pool_and_conv_props of nnunetv2 2.8.1 returned (min_feature_map_size 4): spacing, patch, strides, kernels,
# patch. It was asked for 3000 random spacings and patches, too, and gave the same as `find_topology`.
NNUNET = [
    ((1, 1, 1), (36, 50, 35), (TWO,) * 3, ((3, 3, 3),) * 4, (40, 56, 40)),
    ((0.8, 0.8, 0.8), (128, 128, 128), (TWO,) * 5, ((3, 3, 3),) * 6, (128, 128, 128)),
    (
        (0.8, 0.8, 5),
        (256, 256, 20),
        (FLAT, FLAT, TWO, TWO, FLAT, FLAT),
        ((3, 3, 1), (3, 3, 1), *((3, 3, 3),) * 5),
        (256, 256, 20),
    ),
    (
        (5, 0.47, 0.47),
        (24, 320, 320),
        ((1, 2, 2), (1, 2, 2), (1, 2, 2), TWO, TWO, (1, 2, 2)),
        ((1, 3, 3), (1, 3, 3), (1, 3, 3), *((3, 3, 3),) * 4),
        (24, 320, 320),
    ),
    ((1, 1, 2.5), (160, 192, 64), (FLAT, *(TWO,) * 4), ((3, 3, 1), *((3, 3, 3),) * 5), (160, 192, 64)),
    ((1, 1, 1), (11, 64, 64), (TWO, (1, 2, 2), (1, 2, 2), (1, 2, 2)), ((3, 3, 3),) * 5, (12, 64, 64)),
    ((1, 1, 1), (9, 7, 7), (), ((3, 3, 3),), (9, 7, 7)),
    ((1, 1, 1), (13, 7, 7), ((2, 1, 1),), ((3, 3, 3),) * 2, (14, 7, 7)),
    ((0.8, 0.8, 5), (256, 256, 3), (FLAT,) * 6, ((3, 3, 1), (3, 3, 1), *((3, 3, 3),) * 5), (256, 256, 3)),
]


@pytest.mark.parametrize(("spacing", "patch", "strides", "kernels", "rounded"), NNUNET)
def test_the_levels_are_those_of_nnunet(spacing, patch, strides, kernels, rounded) -> None:
    assert find_topology(spacing, patch) == Topology(strides, kernels, rounded)


def test_features_double_up_to_320() -> None:
    assert find_topology((1, 1, 1), (128, 128, 128)).features == (32, 64, 128, 256, 320, 320)


def test_flat_kernels_take_dynunet_and_whole_ones_the_followed_unet() -> None:
    like = {"_target_": "UNet", "spatial_dims": 3, "in_channels": 1, "out_channels": 2, "channels": [4, 8]}
    like |= {"strides": [2], "num_res_units": 1, "dropout": 0.1}
    whole = network_config(find_topology((1, 1, 1), (11, 64, 64)), like)
    assert whole["_target_"] == "UNet"
    assert whole["strides"] == [2, [1, 2, 2], [1, 2, 2], [1, 2, 2]]
    assert (whole["num_res_units"], whole["dropout"]) == (1, 0.1)
    flat = network_config(find_topology((0.8, 0.8, 5), (256, 256, 20)), like)
    assert flat["_target_"] == "DynUNet"
    assert flat["strides"][:4] == [1, [2, 2, 1], [2, 2, 1], 2]
    assert flat["kernel_size"][:3] == [[3, 3, 1], [3, 3, 1], 3]
    assert flat["upsample_kernel_size"] == flat["strides"][1:]


def voxels(topology: Topology, batch_size: int) -> int:
    """Stand for the memory: a byte a voxel."""
    x, y, z = topology.patch
    return batch_size * x * y * z


def test_memory_to_spare_gives_the_median_image_and_five_percent_of_the_data() -> None:
    fit = fit_patch((1, 1, 1), (36, 50, 35), 120, 120 * 36 * 50 * 35, 10**9, voxels)
    assert fit.patch == (40, 56, 40)
    # 0.05 * 120 * 63000 / 89600 = 4.2
    assert (fit.batch_size, fit.limit, fit.shrunk) == (4, "data", False)


def test_a_batch_holds_each_case_once_and_is_as_large_as_memory_allows() -> None:
    many = 1e12
    assert fit_patch((1, 1, 1), (32, 32, 32), 3, many, 10**9, voxels).batch_size == 3
    fit = fit_patch((1, 1, 1), (32, 32, 32), 500, many, 7 * 32**3 + 5, voxels)
    assert (fit.batch_size, fit.limit) == (7, "memory")
    assert fit.needed <= 7 * 32**3 + 5


def test_a_patch_shrinks_where_it_covers_most_until_two_fit() -> None:
    memory = 2 * 64 * 64 * 64
    fit = fit_patch((1, 1, 1), (128, 64, 64), 100, 1e12, memory, voxels)
    assert fit.needed <= memory
    assert fit.shrunk
    assert fit.patch[0] > max(fit.patch[1:])  # the aspect of the image stays
    assert all(edge % divisor == 0 for edge, divisor in zip(fit.patch, fit.topology.divisor, strict=True))


def test_too_little_memory_says_what_the_smallest_patch_needs() -> None:
    with pytest.raises(InputError, match=r"the smallest patch, 2 x 8 x 8 x 8 voxels, takes \d+\.\d+ GB.*--memory-gb"):
        fit_patch((1, 1, 1), (64, 64, 64), 10, 1e9, 100, voxels)


def test_an_image_too_small_to_be_halved_is_refused() -> None:
    with pytest.raises(InputError, match="has 7 x 6 x 5 voxels at the target spacing; a U-Net halves"):
        fit_patch((1, 1, 1), (7, 6, 5), 10, 1e9, 10**9, voxels)


def test_strides_per_axis_are_checked_per_axis() -> None:
    from droseg.workflow.preflight import check_roi_size

    check_roi_size([96, 112, 3], [1, [2, 2, 1], [2, 2, 1]])
    with pytest.raises(InputError, match=r"multiples of 4 x 4 x 1, for example \[96, 112, 3\]"):
        check_roi_size([97, 112, 3], [1, [2, 2, 1], [2, 2, 1]])
    check_roi_size([97, 113, 3], "$@strides")  # an expression says nothing here
