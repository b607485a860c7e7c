"""Two-level robustness: hard groups, and hard cases inside each group."""

from __future__ import annotations

import numpy as np

from droseg.objectives.base import Objective, Setting
from droseg.objectives.groups import groups_of
from droseg.sampling import TwoLevelBatchSampler


class TwoLevel(Objective):
    """min over theta of (1/gamma) log sum_g pi_g exp(gamma R_g) with R_g = (1/beta) log mean over g of exp(beta L).

    The KL-robust risk of Fidon et al. 2022, arXiv:2001.02658, taken twice: inside each group and over the groups. Its
    gradient draws from q_i = sum_g w_g q(i | g), see `TwoLevelBatchSampler`; all weights are 1. The groups of several
    axes overlap, and the draws are a mixture over all of them.

    For the groups of one axis, pi = "size" and gamma = beta it is plain KL. gamma = 0 with pi = "uniform" draws every
    group equally often and its hard cases more; beta = 0 draws hard groups more and their cases alike.

    Args:
        setting: cases, groups and batches.
        beta: robustness inside each group, >= 0; None: 10.
        gamma: robustness over the groups, >= 0.
        pi: what the groups weigh to begin with: "uniform", or "size", the number of their cases.
        product: False: the groups of each axis by itself. True: the combinations of values on all axes.
        replacement: whether a case may be in a batch twice.
    Raises:
        ValueError: for an argument outside its range, or if there are no groups.
    """

    name = "two_level"
    draws_by_loss = True
    uses = frozenset({"beta", "replacement"})

    def __init__(
        self,
        setting: Setting,
        beta: float | None = None,
        gamma: float = 10.0,
        pi: str = "uniform",
        product: bool = False,
        replacement: bool = False,
    ) -> None:
        if pi not in ("uniform", "size"):
            raise ValueError(f"pi is {pi!r}; choose uniform (all groups alike) or size (by number of cases).")
        self.groups = groups_of(setting, overlapping=not product)
        self.two_level_sampler = TwoLevelBatchSampler(
            setting.history,
            self.groups.members,
            self.groups.sizes if pi == "size" else np.ones(len(self.groups)),
            10.0 if beta is None else beta,
            gamma,
            setting.batch_size,
            setting.num_batches,
            replacement,
            setting.seed,
            setting.rank,
            setting.world_size,
        )
        super().__init__(setting.history, self.two_level_sampler)

    @property
    def less_robust(self) -> str:  # type: ignore[override]
        """What to set so that the draws lean less on hard cases and groups."""
        return f"lower {self._robustness()}"

    @property
    def more_robust(self) -> str:  # type: ignore[override]
        """What to set so that the draws lean more on them."""
        return f"raise {self._robustness()}"

    def _robustness(self) -> str:
        return f"beta ({self.beta:g}) or rivals#two_level#gamma ({self.two_level_sampler.gamma:g})"

    def risk(self) -> float:
        """Return the two-level robust risk of the stale losses."""
        return self.two_level_sampler.risk()

    def epoch_completed(self, epoch: int) -> dict[str, float]:
        """Return beta, and the share of the draws that each group has."""
        shares = zip(self.groups.names, self.two_level_sampler.shares(), strict=True)
        return {"beta": self.beta, **{f"share/{name}": float(share) for name, share in shares}}
