"""Cases that lack a channel, and networks that learn to do without one: loading with zeros, and channel dropout."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any, Literal, get_args

import torch
from monai.config import KeysCollection
from monai.data import ImageReader, MetaTensor
from monai.transforms import EnsureChannelFirst, LoadImaged, MapTransform, RandomizableTransform
from monai.utils import MetaKeys
from torch import Tensor

from droseg.errors import DatalistError, InputError
from droseg.keys import CASE_ID, PRESENT

MissingChannels = Literal["error", "zero"]
"""What happens to a case that lacks a channel: refused, or filled with zeros."""


def checked_choice(value: Any) -> MissingChannels:
    """Return the value of the config key `missing_channels`.

    Raises:
        InputError: if it is none of `MissingChannels`.
    """
    for choice in get_args(MissingChannels):
        if value == choice:
            return choice  # type: ignore[no-any-return]
    raise InputError(f"missing_channels is {value!r}; it must be one of {', '.join(get_args(MissingChannels))}.")


def present_channels(image: Tensor) -> list[bool]:
    """Return which channels of an image (C, H, W, D) were given; all of them where nothing says otherwise."""
    mark = image.meta.get(PRESENT) if isinstance(image, MetaTensor) else None
    return [True] * len(image) if mark is None else [bool(value) for value in mark]


def fill_missing(image: MetaTensor, present: Sequence[bool]) -> MetaTensor:
    """Return the image with a channel of zeros wherever one is missing, marked for `present_channels`.

    Args:
        image: the present channels in their order, (sum(present), H, W, D).
        present: per channel of the result, (C,).
    """
    full = torch.zeros((len(present), *image.shape[1:]), dtype=image.dtype, device=image.device)
    full[torch.tensor(list(present))] = image.as_tensor()
    return _marked(MetaTensor(full, affine=image.affine, meta=dict(image.meta)), present)


def zero_missing(image: MetaTensor, present: Sequence[bool]) -> MetaTensor:
    """Return the image (C, H, W, D) with zeros in the missing channels, marked; the image itself if none is missing."""
    if all(present):
        return image
    return _marked(_with_zeros(image, present), present)


def _with_zeros(image: Tensor, kept: Sequence[bool]) -> Any:
    """Return a copy with zeros in the channels that are not kept; a cache may hold the image itself."""
    copy = image.clone()
    copy[torch.tensor([not value for value in kept], device=image.device)] = 0
    return copy


def _marked(image: MetaTensor, present: Sequence[bool]) -> MetaTensor:
    image.meta[PRESENT] = torch.tensor(list(present))  # a tensor, which MONAI's collation and caches take
    return image


class LoadChannelsd(LoadImaged):
    """MONAI's `LoadImaged` for lists of paths in which a channel that a case lacks is None.

    With "zero" the missing channel is filled with zeros on the grid of the others. `NormalizeIntensityd` with
    `channel_wise` leaves a channel of zeros as it is, with and without `nonzero`, so that a missing channel is the
    mean of a present one. Any other value is loaded as MONAI does.

    Args:
        keys: of paths, or lists with one path or None per channel.
        missing_channels: "error" or "zero".
        options: of `LoadImaged`, by name, but for `image_only`.

    Raises:
        InputError: if `missing_channels` is something else.
    """

    def __init__(self, keys: KeysCollection, missing_channels: MissingChannels = "error", **options: Any) -> None:
        super().__init__(keys, image_only=True, **options)
        self.missing_channels = checked_choice(missing_channels)

    def __call__(self, data: Mapping[Hashable, Any], reader: ImageReader | None = None) -> dict[Hashable, Any]:
        """Return the items with the images loaded.

        Raises:
            DatalistError: if a channel is missing and `missing_channels` is "error", or if all are.
        """
        items = dict(data)
        incomplete: dict[Hashable, list[bool]] = {}
        for key in self.key_iterator(items):
            if isinstance(items[key], (list, tuple)) and None in items[key]:
                incomplete[key] = [path is not None for path in items[key]]
                self._refuse(items, incomplete[key])
                items[key] = [path for path in items[key] if path is not None]
        loaded: dict[Hashable, Any] = super().__call__(items, reader)
        for key, present in incomplete.items():
            image = loaded[key]
            if MetaKeys.ORIGINAL_CHANNEL_DIM in image.meta:
                image = EnsureChannelFirst()(image)
            image.meta[MetaKeys.ORIGINAL_CHANNEL_DIM] = 0
            loaded[key] = fill_missing(image, present)
        return loaded

    def _refuse(self, items: Mapping[Hashable, Any], present: Sequence[bool]) -> None:
        name = items.get(CASE_ID, "image")
        if not any(present):
            raise DatalistError(f"{name}: no image of any channel; give at least one.")
        if self.missing_channels == "error":
            lacking = ", ".join(str(index) for index, given in enumerate(present) if not given)
            raise DatalistError(
                f"{name}: no image of channel {lacking} (counted from 0); give it, or set missing_channels: zero."
            )


class RandDropChannelsd(RandomizableTransform, MapTransform):
    """Takes channels away at random, as if the case lacked them; put it last, so that no later noise fills them.

    Of the n channels that a case has, each is dropped with the probability p = `prob`, independently of the others; a
    draw that drops all n is drawn again. So a set S of dropped channels, smaller than n, has the probability
    p^|S| (1-p)^(n-|S|) / (1-p^n), and each channel is dropped with (p - p^n) / (1 - p^n), never a channel that is the
    only one. Dropped channels, and those that the case lacks anyway (`present_channels`), become 0, the mean after
    z-scoring. With `prob` 0 nothing is drawn, and a complete image is returned as it is.

    Args:
        keys: of images after normalization, (C, H, W, D).
        prob: 0 <= prob < 1.

    Raises:
        InputError: if it is outside.
    """

    def __init__(self, keys: KeysCollection, prob: float = 0.1, allow_missing_keys: bool = False) -> None:
        if not 0 <= prob < 1:
            raise InputError(f"channel_dropout is {prob}; it must be >= 0 and below 1.")
        MapTransform.__init__(self, keys, allow_missing_keys)
        RandomizableTransform.__init__(self, prob)
        self.kept: list[bool] = []

    def randomize(self, data: Sequence[bool]) -> None:
        """Draw which of the present channels are kept, at least one of them."""
        self.kept = list(data)
        count = sum(self.kept)
        if self.prob == 0 or count < 2:
            return
        kept = self.R.random_sample(count) >= self.prob
        while not kept.any():
            kept = self.R.random_sample(count) >= self.prob
        drawn = iter(kept.tolist())
        self.kept = [present and next(drawn) for present in self.kept]

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return the items with zeros in the channels that are dropped or missing."""
        items = dict(data)
        for key in self.key_iterator(items):
            self.randomize(present_channels(items[key]))
            if not all(self.kept):
                items[key] = _with_zeros(items[key], self.kept)
        return items
