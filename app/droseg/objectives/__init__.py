"""Objectives by name: what makes a training case count more."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from droseg.errors import InputError
from droseg.objectives.base import Objective, Setting
from droseg.objectives.erm import ERM
from droseg.objectives.febs import FairErrorBoundScaling
from droseg.objectives.group_balanced import GroupBalanced
from droseg.objectives.group_dro import GroupDRO
from droseg.objectives.groups import all_axes
from droseg.objectives.hardness import HardnessWeighted
from droseg.objectives.jtt import JustTrainTwice
from droseg.objectives.rgd import RGD
from droseg.objectives.two_level import TwoLevel
from droseg.sampling import LossHistory

_CLASSES: tuple[type[Objective], ...] = (
    ERM,
    HardnessWeighted,
    TwoLevel,
    GroupDRO,
    GroupBalanced,
    JustTrainTwice,
    RGD,
    FairErrorBoundScaling,
)
_BY_NAME: dict[str, Callable[..., Objective]] = {each.name: each for each in _CLASSES}
OBJECTIVES: tuple[str, ...] = tuple(_BY_NAME)


def build_objective(
    name: str,
    case_ids: Sequence[str],
    *,
    batch_size: int,
    num_batches: int,
    seed: int = 0,
    initial_loss: float = 4.0,
    momentum: float = 0.0,
    groups: Sequence[Mapping[str, str]] = (),
    axes: str | Sequence[str] | None = None,
    rivals: Mapping[str, Mapping[str, Any]] | None = None,
    rank: int = 0,
    world_size: int = 1,
    **hardness: Any,
) -> Objective:
    """Return the objective of this name with its history and batch sampler; see the classes for the arguments.

    Args:
        name: one of `OBJECTIVES`.
        case_ids: of the training cases.
        batch_size: see `RecordingBatchSampler`.
        num_batches: see there.
        seed: see there.
        initial_loss: see `LossHistory`.
        momentum: see there.
        groups: axis -> value of each training case, in the order of `case_ids`.
        axes: group axis or axes that the objective is to tell apart; None: all that occur.
        rivals: name of another objective -> its own settings.
        rank: of this process.
        world_size: number of processes.
        hardness: settings of `HardnessWeighted`.
    Raises:
        InputError: if no objective has this name, or an argument is unknown or outside its range.
    """
    if name not in _BY_NAME:
        raise InputError(f"objective is {name!r}; choose one of {', '.join(OBJECTIVES)}.")
    _check_names("hardness", hardness)
    for rival, options in (rivals or {}).items():
        if rival not in _BY_NAME:
            raise InputError(
                f"rivals has settings of {rival!r}, which is no objective; there are {', '.join(OBJECTIVES)}."
            )
        _check_names(rival, options)
    own = hardness if name == HardnessWeighted.name else (rivals or {}).get(name, {})
    try:
        history = LossHistory(case_ids, initial_loss, momentum)
        given = [axes] if isinstance(axes, str) else axes
        found = tuple(given) if given is not None else all_axes(groups)
        setting = Setting(history, batch_size, num_batches, seed, rank, world_size, groups, found)
        return _BY_NAME[name](setting, **own)
    except ValueError as error:
        raise InputError(f"objective {name}: {error}") from error


def _check_names(name: str, options: Mapping[str, Any]) -> None:
    known = [each for each in inspect.signature(_BY_NAME[name]).parameters if each != "setting"]
    unknown = [option for option in options if option not in known]
    if unknown:
        raise InputError(f"objective {name} has no setting {', '.join(unknown)}; it has {', '.join(known) or 'none'}.")


__all__ = [
    "ERM",
    "OBJECTIVES",
    "RGD",
    "FairErrorBoundScaling",
    "GroupBalanced",
    "GroupDRO",
    "HardnessWeighted",
    "JustTrainTwice",
    "Objective",
    "Setting",
    "TwoLevel",
    "build_objective",
]
