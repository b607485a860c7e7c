"""The options that name the files of each channel: `T2w=sub-{subject}/anat/*_T2w.nii.gz`, or `T2w` of a BIDS tree."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from droseg.data.form import strip_suffix
from droseg.errors import InputError

_NAMED: Final = re.compile(r"([^/{}*?\[\]=]+)=(.+)")
_ANY_WILDCARD: Final = re.compile(r"\{[^{}]*(?:\{[^{}]*\}[^{}]*)*\}|\*+|\?|\[[^\]]*\]")


@dataclass(frozen=True)
class ChannelOption:
    """The files of one channel, or of several that one 4D file holds.

    Attributes:
        names: of the channels.
        globs: where their files are; several are alternatives.
        derived: whether the name was taken from the glob.
    """

    names: tuple[str, ...]
    globs: tuple[str, ...]
    derived: bool = False


def parse_channels(options: Sequence[str], bids: bool = False) -> list[ChannelOption]:
    """Return the channels of `--image` options, in their order.

    A name that is given twice has several globs; a name that is not given is the last word of the glob.

    Raises:
        InputError: if a name is empty or cannot be told from a glob, or two channels get the same one.
    """
    found: dict[str, ChannelOption] = {}
    for option in options:
        match = _NAMED.fullmatch(option)
        name = match[1].strip() if match else _last_word(option)
        text = match[2] if match else option
        if not name:
            raise InputError(f"--image '{option}': what is this channel called? Write --image 'NAME={option}'.")
        names = tuple(word.strip() for word in name.split(","))
        if "" in names or len(set(names)) < len(names):
            found_names = ", ".join(f"'{word}'" for word in names)
            raise InputError(f"--image '{option}': the channels are {found_names}; give each a name of its own.")
        if "label" in names:
            raise InputError("--image label=...: a channel cannot be called 'label'; the labels are given by --label.")
        known = found.get(name)
        if known and (bids or known.derived or not match):
            raise InputError(f"--image: two channels are called '{name}'; give each a name: --image 'NAME={text}'.")
        globs = (*known.globs, text) if known else (text,)
        found[name] = ChannelOption(names, globs, derived=not match)
    if any(len(channel.names) > 1 for channel in found.values()) and len(found) > 1:
        raise InputError("--image 'A,B=GLOB' is for one file per case that holds all channels; give no other --image.")
    return list(found.values())


def _last_word(glob: str) -> str:
    """Return the last word of a glob that is no wildcard: "T2w" of "sub-{subject}_*_T2w.nii.gz"; empty without one."""
    stem = strip_suffix(glob.rstrip("/").rpartition("/")[2])
    words = re.split(r"[_.\s]+", _ANY_WILDCARD.sub("_", stem))
    words = [word.strip("-") for word in words if not word.endswith("-")]
    return next((word for word in reversed(words) if re.search(r"[A-Za-z]", word)), "")
