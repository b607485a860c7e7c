"""The loss of a case whenever it was drawn, over what is usual, as SVG text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

import numpy as np
import pandas as pd

_WIDTH, _HEIGHT = 460, 110
_LEFT, _RIGHT, _TOP, _FOOT = 34, 8, 8, 20


@dataclass(frozen=True)
class UsualLosses:
    """Losses of all cases by epoch: what the curve of one is drawn over.

    Attributes:
        step: in the middle of each epoch, (E,).
        low, median, high: 10th, 50th and 90th percentile of all losses of the epoch, (E,).
        last_step: of the training.
        top: largest loss that is drawn.
    """

    step: np.ndarray
    low: np.ndarray
    median: np.ndarray
    high: np.ndarray
    last_step: int
    top: float


def usual_losses(audit: pd.DataFrame) -> UsualLosses | None:
    """Return the usual losses; None if no case was drawn with a finite loss."""
    finite = audit[np.isfinite(audit["loss"])]
    if finite.empty:
        return None
    by_epoch = finite.groupby("epoch")
    low, median, high = (by_epoch["loss"].quantile(q).to_numpy(dtype=float) for q in (0.1, 0.5, 0.9))
    return UsualLosses(
        by_epoch["step"].mean().to_numpy(dtype=float),
        low,
        median,
        high,
        int(audit["step"].max()),
        float(finite["loss"].quantile(0.995)),
    )


def loss_curve(own: pd.DataFrame, usual: UsualLosses, case_id: str) -> str:
    """Return the curve of one case as SVG.

    Args:
        own: its rows of the audit trail.
        usual: of all cases.
        case_id: said to those who cannot see it.
    """
    finite = own[np.isfinite(own["loss"])]
    top = max(usual.top, float(finite["loss"].max())) if len(finite) else usual.top
    top = top if top > 0 else 1.0

    def x(steps: np.ndarray) -> np.ndarray:
        return _LEFT + np.asarray(steps, dtype=float) / max(usual.last_step, 1) * (_WIDTH - _LEFT - _RIGHT)

    def y(losses: np.ndarray) -> np.ndarray:
        return _TOP + (1 - np.clip(np.asarray(losses, dtype=float), 0, top) / top) * (_HEIGHT - _TOP - _FOOT)

    across = x(usual.step)
    band = _points(np.append(across, across[::-1]), np.append(y(usual.high), y(usual.low)[::-1]))
    parts = [f'<polygon points="{band}" class="usual"/>', _line(across, y(usual.median), "usual-median")]
    where, losses = x(finite["step"].to_numpy()), finite["loss"].to_numpy(dtype=float)
    parts.append(_line(where, y(losses), "own"))
    for one, height, step, loss in zip(where, y(losses), finite["step"], losses, strict=True):
        hover = f"<title>step {step}: {loss:.3g}</title>"
        parts.append(f'<circle cx="{one:.1f}" cy="{height:.1f}" r="3" class="own">{hover}</circle>')
    return (
        f'<svg class="plot curve" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" '
        f'aria-label="loss of {escape(case_id)} whenever it was drawn">'
        f"{_axes(top, usual.last_step)}{''.join(parts)}</svg>"
    )


def _axes(top: float, last_step: int) -> str:
    bottom = _HEIGHT - _FOOT
    return (
        f'<path class="grid" d="M{_LEFT} {_TOP}V{bottom}H{_WIDTH - _RIGHT}"/><g class="ticks">'
        f'<text x="{_LEFT - 5}" y="{_TOP + 8}" text-anchor="end">{top:.2g}</text>'
        f'<text x="{_LEFT - 5}" y="{bottom}" text-anchor="end">0</text>'
        f'<text x="{_LEFT}" y="{_HEIGHT - 5}">step 0</text>'
        f'<text x="{_WIDTH - _RIGHT}" y="{_HEIGHT - 5}" text-anchor="end">{last_step}</text></g>'
    )


def _line(x: np.ndarray, y: np.ndarray, name: str) -> str:
    return f'<polyline points="{_points(x, y)}" class="{name}"/>'


def _points(x: Sequence[float] | np.ndarray, y: Sequence[float] | np.ndarray) -> str:
    return " ".join(f"{a:.1f},{b:.1f}" for a, b in zip(x, y, strict=True))
