"""Per-case losses: (B, C, H, W, D) and (B, 1, H, W, D) -> (B,)."""

from droseg.losses.per_case import PerCaseDiceCELoss

__all__ = ["PerCaseDiceCELoss"]
