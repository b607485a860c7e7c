"""Which structures have a side, so that a mirrored image would not be one that they can be in."""

from __future__ import annotations

import re
from collections.abc import Sequence

_WORDS = {"l", "r", "lh", "rh", "lt", "rt", "sin", "dex", "sinistra", "dextra", "sinister", "dexter"}
_START = re.compile(r"(left|right)")


def has_side(name: str) -> bool:
    """Return whether a structure's name says left or right: "Left-Lung", "hippocampus_l", "ctx-lh", "leftLung"."""
    spaced = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name)
    words = re.split(r"[^a-z]+", spaced.lower())
    return any(word in _WORDS or _START.match(word) or word.endswith(("_left", "_right")) for word in words)


def mirror_axes(structures: Sequence[str]) -> tuple[list[int], str]:
    """Return the axes along which training and `droseg predict --mirror` flip, and why."""
    sided = [name for name in structures if has_side(name)]
    if sided:
        shown = ", ".join(sided[:4]) + (f" and {len(sided) - 4} more" if len(sided) > 4 else "")
        return [], f"no flips, in training and by --mirror: {shown} {'have' if len(sided) > 1 else 'has'} a side"
    return [0], "left-right flips, in training and by --mirror: no structure's name has a side"
