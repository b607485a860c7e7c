"""What a plan does about channels that some cases lack."""

from __future__ import annotations

from collections import Counter
from typing import Literal

from droseg.data import Datalist
from droseg.errors import BundleError
from droseg.keys import TRAINING
from droseg.plan.template import Template

LEAST_DROPOUT = 0.1


def missing_channel_choices(
    datalist: Datalist, template: Template
) -> list[tuple[str, str | float, str, Literal["inference", "train"]]]:
    """Return (key, value, reason, place) of `missing_channels` and `channel_dropout`; nothing if no channel is missing.

    Raises:
        BundleError: if the followed bundle does not take cases without a channel.
    """
    cases = [case for section in datalist.sections.values() for case in section]
    lacking = Counter(name for case in cases for name in case.missing_channels(datalist.channels))
    counts = ", ".join(f"{name} in {lacking[name]}" for name in datalist.channels if lacking[name])
    if not counts:
        return []
    if "missing_channels" not in template.inference_config or "channel_dropout" not in template.train_config:
        raise BundleError(
            f"{datalist.path}: channels are missing ({counts} of {len(cases)} cases), and {template.folder.name} takes "
            "complete cases only; choose another --like, or take these cases out."
        )
    training = datalist.section(TRAINING)
    missing = sum(len(case.missing_channels(datalist.channels)) for case in training)
    share = missing / (len(training) * len(datalist.channels))
    dropout = round(max(share, LEAST_DROPOUT), 2)
    return [
        (
            "missing_channels",
            "zero",
            f"filled with zeros, the mean after normalization; missing: {counts} of {len(cases)} cases",
            "inference",
        ),
        (
            "channel_dropout",
            dropout,
            f"probability with which a training patch loses a channel, never all; {100 * share:.0f} % are missing in "
            f"training, {100 * LEAST_DROPOUT:.0f} % at least",
            "train",
        ),
    ]
