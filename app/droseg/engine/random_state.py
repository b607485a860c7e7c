"""The global random generators of all ranks, as tensors and primitives."""

from __future__ import annotations

import logging
import random
from typing import Any

import numpy as np
import torch

from droseg.engine.roles import gather_objects, rank, world_size

logger = logging.getLogger(__name__)


def random_states() -> list[dict[str, Any]]:
    """Return the states of torch's, CUDA's, numpy's and Python's generators on each rank, the same on every rank."""
    return gather_objects(_own_state())


def restore_random_states(states: list[dict[str, Any]]) -> None:
    """Set the global generators of this rank.

    With another number of ranks than the states were saved with, each rank gets one of its own that follows from the
    first: such a resume is no longer exact, but no two ranks drop out the same units.
    """
    if len(states) == world_size():
        _set_state(states[rank()])
        return
    logger.warning(
        "saved by %d ranks, continued by %d: dropout is not the same bit for bit.", len(states), world_size()
    )
    _set_state(states[0])
    if rank():
        seed = int(torch.randint(2**31, ())) + rank()
        torch.manual_seed(seed)  # CUDA's too
        np.random.seed(seed)
        random.seed(seed)


def _own_state() -> dict[str, Any]:
    kind, keys, position, has_gauss, cached = np.random.get_state()
    version, internal, gauss = random.getstate()
    state: dict[str, Any] = {
        "torch": torch.get_rng_state(),
        "numpy": [kind, torch.from_numpy(np.asarray(keys).astype(np.int64)), position, has_gauss, cached],
        "python": [version, list(internal), gauss],
    }
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def _set_state(state: dict[str, Any]) -> None:
    torch.set_rng_state(state["torch"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])
    kind, keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), position, has_gauss, cached))
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
