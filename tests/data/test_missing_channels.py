"""Cases that lack a channel: in datalists and their checks, loaded with zeros, and channels dropped at random."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import CacheDataset, DataLoader, Dataset, MetaTensor
from monai.transforms import (
    Compose,
    EnsureChannelFirstd,
    LoadImaged,
    NormalizeIntensityd,
    Orientationd,
    RandFlipd,
    RandGaussianNoised,
    Spacingd,
)

from droseg.data import Datalist, SeededDataset, check_datalist, read_datalist, write_datalist
from droseg.data.channels import LoadChannelsd, RandDropChannelsd, fill_missing, present_channels
from droseg.data.datalist import parse_datalist
from droseg.data.items import case_item, reference_items, section_items
from droseg.data.statistics import training_statistics
from droseg.discovery.features import image_features
from droseg.errors import DatalistError, InputError

SHAPE = (6, 7, 8)
SPACING = np.diag([2.0, 2.0, 3.0, 1.0])
LPS = np.diag([-1.0, -1.0, 1.0, 1.0])


def save(path: Path, array: np.ndarray, affine: np.ndarray = SPACING) -> str:
    nib.save(nib.Nifti1Image(array.astype(np.float32), affine), path)
    return str(path)


def volume(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(100, 20, SHAPE).astype(np.float32)


@pytest.fixture
def datalist(tmp_path: Path) -> Path:
    """Return a datalist of three channels; `b` lacks c1, `c` lacks c0 and c1."""
    lacking = {"a": (), "b": (1,), "c": (0, 1), "d": ()}
    entries = []
    for number, (case_id, indices) in enumerate(lacking.items()):
        images = [None if i in indices else f"{case_id}_{i}.nii.gz" for i in range(3)]
        for i, name in enumerate(images):
            if name is not None:
                save(tmp_path / name, volume(10 * number + i))
        label = np.zeros(SHAPE)
        label[2:4, 2:4, 2:4] = 1
        save(tmp_path / f"{case_id}_label.nii.gz", label)
        entries.append({"case_id": case_id, "image": images, "label": f"{case_id}_label.nii.gz"})
    path = tmp_path / "d.json"
    channels = {str(i): f"c{i}" for i in range(3)}
    path.write_text(json.dumps({"channels": channels, "structures": {"x": 1}, "training": entries}))
    return path


def test_null_entries_are_read_and_written_as_they_are(datalist: Path) -> None:
    found = read_datalist(datalist)
    first, second, third, _ = found.section("training")
    assert None not in first.images
    assert [image is None for image in second.images] == [False, True, False]
    assert [path.name for path in third.present_images] == ["c_2.nii.gz"]
    assert third.missing_channels(found.channels) == ["c0", "c1"]
    copy = datalist.with_name("copy.json")
    write_datalist(found, copy)
    assert json.loads(copy.read_text())["training"][1]["image"] == ["b_0.nii.gz", None, "b_2.nii.gz"]
    assert read_datalist(copy).section("training") == found.section("training")


@pytest.mark.parametrize("image", [None, [None], [None, None, None]])
def test_a_case_without_any_image_is_an_error_of_its_own(datalist: Path, image: Any) -> None:
    document = json.loads(datalist.read_text())
    document["training"][0]["image"] = image
    datalist.write_text(json.dumps(document))
    found, (problem,) = parse_datalist(datalist)
    assert problem.case_id == "a"
    assert "null" in problem.message or "missing" in problem.message
    assert len(found.section("training")) == 3


def test_the_check_counts_per_channel_which_cases_lack_it(datalist: Path) -> None:
    problems = check_datalist(read_datalist(datalist))
    assert [problem.severity for problem in problems] == ["warning", "warning"]
    assert "1 of 4 cases lack channel c0 (c)" in problems[0].message
    assert "2 of 4 cases lack channel c1 (b, c)" in problems[1].message


def test_the_grids_of_the_channels_that_are_there_are_compared(datalist: Path) -> None:
    save(datalist.with_name("b_2.nii.gz"), volume(0)[:, :, :-1])
    save(datalist.with_name("c_label.nii.gz"), np.ones((6, 7, 9)))
    save(datalist.with_name("c_2.nii.gz"), np.stack([volume(0)] * 2, -1))
    errors = [p for p in check_datalist(read_datalist(datalist)) if p.severity == "error"]
    texts = {name: "\n".join(p.message for p in errors if p.case_id == name) for name in "abcd"}
    assert "b_2.nii.gz: shape (6, 7, 7), but b_0.nii.gz has (6, 7, 8)" in texts["b"]
    assert "4 channel(s) found" not in texts["c"]
    assert "2 channel(s) found, 2 missing, 3 declared" in texts["c"]
    assert "c_label.nii.gz: shape (6, 7, 9), but c_2.nii.gz has (6, 7, 8)" in texts["c"]
    assert (texts["a"], texts["d"]) == ("", "")


def test_channels_that_differ_by_the_order_of_their_axes_only_are_said_to(datalist: Path) -> None:
    image = nib.load(datalist.with_name("a_1.nii.gz"))
    turned = nib.as_closest_canonical(image).as_reoriented(
        nib.orientations.ornt_transform(
            nib.orientations.axcodes2ornt("RAS"), nib.orientations.axcodes2ornt(("P", "S", "L"))
        )
    )
    nib.save(turned, datalist.with_name("a_1.nii.gz"))
    save(datalist.with_name("d_1.nii.gz"), volume(3), np.diag([2.0, 2.0, 4.0, 1.0]))  # coarser, not turned
    save(datalist.with_name("d_2.nii.gz"), volume(3)[:3], np.diag([4.0, 2.0, 3.0, 1.0]))
    errors = [p for p in check_datalist(read_datalist(datalist)) if p.severity == "error"]
    assert [p.case_id for p in errors] == ["a", "d", "d"]
    assert "its axes point to PSL, those of a_0.nii.gz to RAS: the same voxels in another order" in errors[0].message
    assert "affine differs" in errors[1].message
    assert "the same voxels" not in errors[1].message
    assert "(voxels of 4 x 2 x 3 mm, there 2 x 2 x 3 mm)" in errors[2].message
    assert all("droseg data regrid" in p.message for p in errors)


def test_a_flipped_volume_that_lies_elsewhere_is_not_called_the_same(datalist: Path) -> None:
    save(datalist.with_name("a_1.nii.gz"), volume(1), LPS @ SPACING)  # flipped about the origin, not about its center
    (error,) = [p for p in check_datalist(read_datalist(datalist)) if p.severity == "error"]
    assert "affine differs from that of a_0.nii.gz" in error.message


def test_a_missing_channel_has_zeros_on_the_grid_of_the_others(datalist: Path) -> None:
    load = Compose([LoadChannelsd("image", "zero"), EnsureChannelFirstd("image")])
    image = load(case_item(read_datalist(datalist).section("training")[2], 0))["image"]
    assert image.shape == (3, *SHAPE)
    assert image.dtype == torch.float32
    np.testing.assert_array_equal(image[:2].numpy(), 0)
    np.testing.assert_allclose(image[2].numpy(), volume(22))
    np.testing.assert_allclose(image.affine, SPACING)
    assert present_channels(image) == [False, False, True]
    again = Compose([LoadChannelsd("image", "zero", ensure_channel_first=True)])
    torch.testing.assert_close(
        again(case_item(read_datalist(datalist).section("training")[1], 0))["image"][1].sum(), torch.tensor(0.0)
    )


def test_complete_cases_are_loaded_as_monai_loads_them(datalist: Path) -> None:
    items = section_items(read_datalist(datalist), "training")[::3]
    for item in [*items, {"image": items[0]["image"][0]}]:
        for options in ({}, {"ensure_channel_first": True}):
            ours, monais = (
                LoadChannelsd("image", **options)(item)["image"],
                LoadImaged("image", **options)(item)["image"],
            )
            assert torch.equal(ours.as_tensor(), monais.as_tensor())
            assert set(ours.meta) == set(monais.meta)


def test_a_missing_channel_is_an_error_unless_zeros_are_asked_for(datalist: Path) -> None:
    found = read_datalist(datalist)
    item = case_item(found.section("training")[2], 0)
    with pytest.raises(DatalistError, match=r"c: no image of channel 0, 1 .*missing_channels: zero"):
        LoadChannelsd("image")(item)
    with pytest.raises(DatalistError, match="no image of any channel"):
        LoadChannelsd("image", "zero")({"image": [None, None]})
    with pytest.raises(InputError, match="missing_channels is 'mean'; it must be one of error, zero"):
        LoadChannelsd("image", "mean")  # type: ignore[arg-type]
    with pytest.raises(DatalistError, match="training: b, c lack channels"):
        reference_items(found, "training")
    assert [item["image"].count(None) for item in reference_items(found, "training", "zero")] == [0, 1, 2, 0]


@pytest.mark.parametrize("nonzero", [False, True])
def test_normalization_leaves_a_missing_channel_at_zero_the_mean_of_a_present_one(
    datalist: Path, nonzero: bool
) -> None:
    # The whole of the shipped bundles' deterministic transforms; the oblique axes and the coarser grid interpolate.
    transforms = Compose(
        [
            LoadChannelsd("image", "zero"),
            EnsureChannelFirstd("image"),
            Orientationd("image", axcodes="LSP", labels=None),
            Spacingd("image", pixdim=(1.5, 2.5, 2.0), mode="bilinear"),
            NormalizeIntensityd("image", nonzero=nonzero, channel_wise=True),
        ]
    )
    image = transforms(case_item(read_datalist(datalist).section("training")[1], 0))["image"]
    assert present_channels(image) == [True, False, True]
    assert float(image[1].abs().max()) == 0.0
    for channel in (image[0], image[2]):
        assert float(channel.mean()) == pytest.approx(0.0, abs=1e-5)
        assert float(channel.std(unbiased=False)) == pytest.approx(1.0, abs=1e-4)


def test_complete_and_incomplete_cases_share_a_cache_and_a_batch(datalist: Path) -> None:
    transform = Compose([LoadChannelsd("image", "zero"), EnsureChannelFirstd("image")])
    cache = CacheDataset(section_items(read_datalist(datalist), "training"), transform, progress=False)
    dropped = Dataset(cache, Compose([RandDropChannelsd("image", prob=0.5)]).set_random_state(0))
    before = [item["image"].clone() for item in cache]
    for _ in range(20):
        (batch,) = DataLoader(dropped, batch_size=4)
        channels = batch["image"].as_tensor().flatten(2).abs().sum(-1) > 0
        assert bool(channels.any(1).all()), "a case keeps at least one channel"
        assert channels[2].tolist() == [False, False, True]
        assert not channels[1, 1]
    for item, image in zip(cache, before, strict=True):
        assert torch.equal(item["image"].as_tensor(), image.as_tensor()), "the cache stays as it was"


def frequencies(present: list[bool], prob: float, draws: int) -> Counter[tuple[bool, ...]]:
    transform = RandDropChannelsd("image", prob)
    transform.set_random_state(seed=3)
    found: Counter[tuple[bool, ...]] = Counter()
    for _ in range(draws):
        transform.randomize(present)
        found[tuple(transform.kept)] += 1
    return found


@pytest.mark.parametrize("prob", [0.1, 0.5, 0.8])
@pytest.mark.parametrize("present", [[True] * 3, [True, False, True, True], [False, True, True]])
def test_each_set_of_channels_is_dropped_as_often_as_the_closed_form_says(present: list[bool], prob: float) -> None:
    n, draws = sum(present), 20_000
    found = frequencies(present, prob, draws)
    assert sum(found.values()) == draws
    for kept in itertools.product([False, True], repeat=len(present)):
        possible = any(kept) and all(given or not keeps for given, keeps in zip(present, kept, strict=True))
        lost = n - sum(kept)
        expected = possible * prob**lost * (1 - prob) ** (n - lost) / (1 - prob**n)
        assert found[kept] / draws == pytest.approx(expected, abs=4 * 0.5 / draws**0.5), kept  # 4 standard errors
    for index in (index for index, given in enumerate(present) if given):
        share = sum(count for kept, count in found.items() if not kept[index]) / draws
        assert share == pytest.approx((prob - prob**n) / (1 - prob**n), abs=4 * 0.5 / draws**0.5)


@pytest.mark.parametrize("present", [[True], [False, True, False]])
def test_the_only_channel_stays(present: list[bool]) -> None:
    image = fill_missing(MetaTensor(torch.ones(sum(present), 1, 1, 1)), present)
    transform = RandDropChannelsd("image", 0.9)
    for _ in range(20):
        assert transform({"image": image})["image"].flatten().bool().tolist() == present


def test_what_is_missing_stays_zero_under_noise_that_comes_before() -> None:
    image = fill_missing(MetaTensor(torch.ones(2, 3, 3, 3)), [True, False, True])
    transforms = Compose([RandGaussianNoised("image", prob=1.0), RandDropChannelsd("image", prob=0.0)])
    result = transforms({"image": image})["image"]
    assert float(result[1].abs().max()) == 0.0
    assert float(result[0].std()) > 0
    assert float(image[0].std()) == 0, "the input is left as it was"


def test_without_dropout_a_complete_image_is_returned_itself_and_nothing_is_drawn() -> None:
    transform = RandDropChannelsd("image", prob=0.0)
    transform.set_random_state(seed=1)
    state = transform.R.get_state()[1].copy()
    image = MetaTensor(torch.ones(3, 2, 2, 2))
    assert transform({"image": image})["image"] is image
    np.testing.assert_array_equal(transform.R.get_state()[1], state)


@pytest.mark.parametrize("prob", [0.0, 0.3])
def test_the_other_augmentation_draws_the_same_with_and_without_it(prob: float) -> None:
    image = MetaTensor(torch.arange(2 * 64.0).reshape(2, 4, 4, 4))
    others = [RandFlipd("image", prob=0.5, spatial_axis=0), RandGaussianNoised("image", prob=0.5)]
    plain, with_dropout = Compose(others), Compose([*others, RandDropChannelsd("image", prob)])
    dropped = 0
    for seed in range(30):
        plain.set_random_state(seed=seed)
        expected = plain({"image": image})["image"]
        with_dropout.set_random_state(seed=seed)
        result = with_dropout({"image": image})["image"]
        for channel in range(2):
            if bool((result[channel] == 0).all()):
                dropped += 1
            else:
                assert torch.equal(result[channel], expected[channel])
    assert (dropped > 0) == (prob > 0)


def test_the_draw_follows_the_seed_of_the_index() -> None:
    class Index(int):
        seed = 0

    items = [{"image": MetaTensor(torch.ones(4, 1, 1, 1))} for _ in range(2)]
    dataset = SeededDataset(Dataset(items, Compose([RandDropChannelsd("image", 0.5)])))

    def drawn(seeds: range) -> list[list[float]]:
        result = []
        for seed in seeds:
            index = Index(seed % 2)
            index.seed = seed
            result.append(dataset[index]["image"].flatten().tolist())
        return result

    once = drawn(range(20))
    assert once == drawn(range(20))
    assert len({tuple(row) for row in once}) > 5


@pytest.mark.parametrize("prob", [-0.1, 1.0, 2.0])
def test_a_probability_that_would_drop_everything_is_refused(prob: float) -> None:
    with pytest.raises(InputError, match=f"channel_dropout is {prob}"):
        RandDropChannelsd("image", prob)


def test_statistics_count_missing_channels_and_leave_them_out_of_the_intensities(datalist: Path) -> None:
    cases = read_datalist(datalist).section("training")
    found = training_statistics(cases, {"x": 1})
    assert found["missing_channels"] == [1, 2, 0]
    medians = [np.median(volume(seed)) for seed in (1, 31)]  # c1 of a and d
    assert found["intensity_median"]["min"][1] == pytest.approx(min(medians), rel=1e-4)
    complete = training_statistics([cases[0], cases[3]], {"x": 1})
    assert complete["image"]["balance"]["min"][1] == found["image"]["balance"]["min"][1]
    assert complete["missing_channels"] == [0, 0, 0]


def test_features_of_a_missing_channel_are_left_out(datalist: Path) -> None:
    found = read_datalist(datalist)
    features = image_features(found.section("training")[2], found.channels)
    assert {name for name in features if name.endswith("intensity_median")} == {"c2_intensity_median"}
    assert features["c2_intensity_median"] == pytest.approx(np.median(volume(22)), rel=1e-4)
    assert features["slice_thickness_mm"] == 3.0


def test_a_list_without_nulls_is_written_as_before(tmp_path: Path) -> None:
    path = tmp_path / "d.json"
    path.write_text('{"channels": {"0": "T1w"}, "testing": [{"case_id": "a", "image": "a.nii.gz"}]}')
    found = read_datalist(path)
    assert isinstance(found, Datalist)
    write_datalist(found, path)
    assert '{"case_id": "a", "image": "a.nii.gz"}' in path.read_text()
