"""Objectives by name: what makes a training case count more."""

from __future__ import annotations

from collections.abc import Sequence

from droseg.errors import InputError
from droseg.objectives.base import Objective
from droseg.objectives.erm import ERM
from droseg.objectives.hardness import HardnessWeighted
from droseg.sampling import LossHistory

OBJECTIVES: tuple[str, ...] = (ERM.name, HardnessWeighted.name)


def build_objective(
    name: str,
    case_ids: Sequence[str],
    *,
    batch_size: int,
    num_batches: int,
    seed: int = 0,
    beta: float = 10.0,
    target_ess: float | None = None,
    importance_weighting: bool = False,
    replacement: bool = False,
    floor: float = 0.0,
    initial_loss: float = 4.0,
    momentum: float = 0.0,
    rank: int = 0,
    world_size: int = 1,
) -> Objective:
    """Return the objective of this name with its history and batch sampler; see the classes for the arguments.

    Raises:
        InputError: if no objective has this name, or an argument is outside its range.
    """
    try:
        history = LossHistory(case_ids, initial_loss, momentum)
        if name == ERM.name:
            return ERM(history, batch_size, num_batches, seed, rank, world_size)
        if name == HardnessWeighted.name:
            return HardnessWeighted(
                history,
                batch_size,
                num_batches,
                seed,
                beta,
                target_ess,
                importance_weighting,
                replacement,
                floor,
                rank,
                world_size,
            )
    except ValueError as error:
        raise InputError(f"objective {name}: {error}") from error
    raise InputError(f"objective is {name!r}; choose one of {', '.join(OBJECTIVES)}.")


__all__ = ["ERM", "OBJECTIVES", "HardnessWeighted", "Objective", "build_objective"]
