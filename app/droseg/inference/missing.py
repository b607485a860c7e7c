"""Cases that lack a channel: whether the network has learned to do without it, and what is said about the result."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

import torch
from torch import Tensor

from droseg.data.channels import MissingChannels, present_channels
from droseg.errors import BundleError
from droseg.inference.bundle_config import BundleConfig
from droseg.inference.domain import OutOfDomainError
from droseg.inference.quality import Flag
from droseg.inference.ranges import TrainingRanges
from droseg.inference.reading import ImageError

TRAIN_CONFIG: Final = Path("configs") / "train.yaml"


class MissingRules:
    """What a bundle does with a case that lacks a channel.

    Args:
        folder: of the bundle; its train.yaml says with which probability the training dropped channels.
        channels: their names, in order.
        ranges: of the bundle; they say how many training cases lacked each channel.
        own: the bundle's `missing_channels`.
        asked: what to do instead; None: as the bundle says.

    Attributes:
        choice: what is done.
    """

    def __init__(
        self,
        folder: Path,
        channels: Sequence[str],
        ranges: TrainingRanges,
        own: MissingChannels,
        asked: MissingChannels | None = None,
    ) -> None:
        self.choice: MissingChannels = asked or own
        self.channels = tuple(channels)
        self.dropout = _channel_dropout(folder)
        self._ranges = ranges
        self._trusted = own == "zero" and ranges.cases == 0  # nothing is known of the training but this key

    def refuse_missing(self, present: Sequence[bool]) -> None:
        """Refuse a case that lacks a channel, where that is an error.

        Raises:
            ImageError: naming the channels.
        """
        lacking = [name for name, given in zip(self.channels, present, strict=False) if not given]
        if lacking and self.choice == "error":
            raise ImageError(
                f"no image of channel {', '.join(lacking)}",
                "give it; if the network was trained to do without: --missing-channels zero (in Python: "
                "missing_channels='zero')",
            )

    def check_known(self, image: Tensor) -> None:
        """Refuse an image that lacks a channel which no training case lacked.

        Raises:
            OutOfDomainError: naming the channels.
        """
        unknown = [self.channels[index] for index in _lacking(image) if not self._known(index)]
        if unknown:
            raise OutOfDomainError(
                f"channel {', '.join(unknown)} is missing, and the network was never trained without it",
                "give it, train with channel_dropout, or --force (in Python: force=True)",
            )

    def flags(self, image: Tensor) -> list[Flag]:
        """Return a flag for each channel that an image lacks."""
        return [
            Flag(
                "missing_channel",
                "",
                f"channel {self.channels[index]} is missing and was filled with zeros, its mean; {self._seen(index)}",
            )
            for index in _lacking(image)
        ]

    def _known(self, index: int) -> bool:
        return self._trusted or self.dropout > 0 or self._ranges.missing(index) > 0

    def _seen(self, index: int) -> str:
        """Return how the training went without a channel, in words."""
        count, cases = self._ranges.missing(index), self._ranges.cases
        dropped = f"channels were dropped from patches (channel_dropout {self.dropout:g})" * (self.dropout > 0)
        if not cases:
            return f"in training {dropped or 'it may never have been missing'}"
        lacked = f"{count} of {cases} training cases lacked it"
        return f"{lacked}, {dropped}" if dropped else lacked


def _lacking(image: Tensor) -> list[int]:
    return [index for index, given in enumerate(present_channels(image)) if not given]


def _channel_dropout(folder: Path) -> float:
    """Return `channel_dropout` of a bundle's training; 0 if its config does not say.

    Raises:
        BundleError: if the config cannot be read, or it is no number.
    """
    path = folder / TRAIN_CONFIG
    if not path.is_file():
        return 0.0
    config = BundleConfig(path, folder, torch.device("cpu"))
    value = 0.0 if config.raw("channel_dropout") is None else config["channel_dropout"]
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise BundleError(f"{path}: channel_dropout is {value!r}; a number is expected.")
    return float(value)
