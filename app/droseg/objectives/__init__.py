"""Objectives by name: what makes a training case count more."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from droseg.errors import InputError
from droseg.objectives.base import HARDNESS_KEYS, ROBUSTNESS_KEYS, Objective, Setting
from droseg.objectives.erm import ERM
from droseg.objectives.febs import FairErrorBoundScaling
from droseg.objectives.group_balanced import GroupBalanced
from droseg.objectives.group_dro import GroupDRO
from droseg.objectives.groups import all_axes
from droseg.objectives.hardness import HardnessWeighted, choose_robustness
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
    blend_initial_loss: bool = False,
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
        blend_initial_loss: see `LossHistory`. Cases without a loss always count as hardest here.
        hardness: settings of `HardnessWeighted`, see `choose_robustness`.
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
    try:
        own = choose_robustness(hardness) if name == HardnessWeighted.name else (rivals or {}).get(name, {})
        history = LossHistory(case_ids, initial_loss, momentum, blend_initial=blend_initial_loss, unvisited_first=True)
        given = [axes] if isinstance(axes, str) else axes
        found = tuple(given) if given is not None else all_axes(groups)
        setting = Setting(history, batch_size, num_batches, seed, rank, world_size, groups, found)
        objective = _BY_NAME[name](setting, **own)
        objective.settings = dict(own)
        if "beta" in own and own["beta"] is None:
            objective.settings["beta"] = objective.beta
        return objective
    except ValueError as error:
        raise InputError(f"objective {name}: {error}") from error


def check_used(name: str, changed: Mapping[str, Any]) -> None:
    """Refuse settings that were changed for a training but that its objective does not have.

    Args:
        name: of the objective.
        changed: key of a training config -> value that differs from the bundle's own; other keys, and those that
            are None, are no matter.
    Raises:
        InputError: naming every such key, and who has it; or if two of them say how robust the training is.
    """
    if name == HardnessWeighted.name:
        _check_one_robustness(changed)
    uses = {each.name: each.uses for each in _CLASSES}.get(name, HARDNESS_KEYS)
    unused = [f"{key}={value}" for key, value in changed.items() if key in HARDNESS_KEYS - uses and value is not None]
    rivals = changed.get("rivals")
    unused += [f"rivals#{rival}" for rival in rivals or () if rival != name and rival in _BY_NAME]
    if unused:
        raise InputError(
            f"objective {name} does not use {', '.join(unused)}; leave that out, or choose the objective that does "
            "(those of `rivals` by name, the others: hardness)."
        )


def _check_one_robustness(changed: Mapping[str, Any]) -> None:
    given = [f"{key}={changed[key]}" for key in ROBUSTNESS_KEYS if changed.get(key) is not None]
    if len(given) > 1:
        raise InputError(f"{' and '.join(given)}: each of them says how robust the training is; give one of them.")
    if "max_beta" in changed and given and not given[0].startswith("target_"):
        raise InputError(f"max_beta={changed['max_beta']} limits a beta that is solved for, and {given[0]} is fixed.")


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
    "check_used",
    "choose_robustness",
]
