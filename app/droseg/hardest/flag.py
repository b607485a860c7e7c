"""Tells a label that looks wrong from an anatomy that is rare: by what the network is sure of, not by the loss.

A rare anatomy has a large loss because the network is unsure of it; a wrong label has one although the network is sure.
What counts as sure follows confident learning (Northcutt et al. 2021, JAIR 70, arXiv:1911.00068): equation 2, each
class has its own threshold, the mean probability that its labelled voxels get. As there, the network should not have
learned the labels by heart; but in the middle of a training it doubts many right ones (docs/robust_training.md).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from droseg.hardest.disagreement import Disagreement

LEAST_SURE = 0.9
"""Lowest threshold: of a class that is not learned yet the network is sure nowhere."""
STRUCTURE_SHARE = 0.2
"""Share of a structure from which on the label is flagged; chosen by scripts/bench_hardest.py, seed 0."""
TOTAL_SHARE = 0.02
"""Share of the whole labelled volume from which on it is."""
SWAPPED_SHARE = 0.2
"""Share of each of two structures that is the other one to the network, from which on they are called swapped."""


@dataclass(frozen=True)
class Standards:
    """What is usual in these training cases; C classes, 0 the background.

    Attributes:
        sure: probability from which on the network is sure of each class, (C,).
        typical_ml: median volume of each class over the labels that have it, (C,).
        labelled_ml: median volume of all structures together.
    """

    sure: NDArray[np.float64]
    typical_ml: NDArray[np.float64]
    labelled_ml: float


@dataclass(frozen=True)
class LabelCheck:
    """How wrong a label looks.

    Attributes:
        score: 1 and above is flagged: the larger of the two shares over its threshold.
        structure: of the larger share of a structure; empty if the network disputes nothing.
        structure_share: volume of this structure in dispute over its volume.
        total_share: volume of all that is in dispute over the usual volume of all structures.
        reason: in words; empty unless flagged.
    """

    score: float
    structure: str
    structure_share: float
    total_share: float
    reason: str

    @property
    def flagged(self) -> bool:
        """Whether the label looks wrong."""
        return self.score >= 1


def usual(cases: Sequence[Disagreement]) -> Standards:
    """Return the standards of all measured cases.

    Raises:
        ValueError: if there are none.
    """
    if not cases:
        raise ValueError("no case was measured; there is nothing to compare labels with.")
    volumes = np.array([case.label_ml for case in cases])
    confidence = np.array([case.self_confidence for case in cases])
    sums = volumes.sum(axis=0)
    mean = np.nansum(volumes * confidence, axis=0) / np.where(sums > 0, sums, np.nan)  # of all voxels of a class
    present = np.where(volumes > 0, volumes, np.nan)
    typical = np.array([np.nanmedian(column) if (column > 0).any() else np.nan for column in present.T])
    return Standards(
        np.fmax(np.nan_to_num(mean, nan=1.0), LEAST_SURE), typical, float(np.median(volumes[:, 1:].sum(axis=1)))
    )


def check_label(case: Disagreement, standards: Standards, structures: Sequence[str]) -> LabelCheck:
    """Return how wrong the label of a case looks.

    Args:
        case: what its network and label disagree on.
        standards: of the training cases.
        structures: names of the classes from 1 on.
    """
    disputed = case.sure_ml(standards.sure)
    volume = np.fmax(standards.typical_ml, case.label_ml)  # 0: a structure that no label has
    missing, extra = (_share(disputed.sum(axis=axis)[1:], volume[1:]) for axis in (0, 1))
    by_structure = np.maximum(missing, extra)
    worst, total_ml = int(by_structure.argmax()), float(disputed.sum())
    total = total_ml / standards.labelled_ml if standards.labelled_ml > 0 else 0.0
    shares = (float(by_structure[worst]) / STRUCTURE_SHARE, total / TOTAL_SHARE)
    reasons = []
    if shares[0] >= 1:
        outside = "something else" if case.overlapping else "background"
        names, is_missing = (outside, *structures), bool(missing[worst] >= extra[worst])
        reasons.append((shares[0], _of_structure(worst + 1, disputed, volume, case.label_ml, is_missing, names)))
    if shares[1] >= 1:
        usual_label = "a usual label" + ", the regions added up" * case.overlapping
        found = f"{total_ml:.3g} ml ({_percent(total)} of {usual_label}) are something else to the network"
        reasons.append((shares[1], found))
    return LabelCheck(
        max(shares),
        structures[worst] if by_structure[worst] > 0 else "",
        float(by_structure[worst]),
        total,
        "; ".join(reason for _, reason in sorted(reasons, reverse=True)),
    )


def _of_structure(
    worst: int,
    disputed: NDArray[np.float64],
    volume: NDArray[np.float64],
    label_ml: NDArray[np.float64],
    is_missing: bool,
    names: Sequence[str],
) -> str:
    """Return what is in dispute about a structure, in words."""
    partner = int((disputed[worst, 1:] + disputed[1:, worst]).argmax()) + 1
    both = min(disputed[worst, partner], disputed[partner, worst])
    if both >= SWAPPED_SHARE * min(volume[worst], volume[partner]) and 2 * both >= disputed[worst].sum():
        return f"{names[worst]} and {names[partner]} look swapped ({both:.3g} ml or more of each)"
    amounts = disputed[:, worst] if is_missing else disputed[worst]
    found_ml, other = float(amounts.sum()), names[int(amounts.argmax())]
    percent = _percent(found_ml / volume[worst])
    if not is_missing:
        return f"{found_ml:.3g} ml labelled {names[worst]} ({percent} of it) are {other} to the network"
    if label_ml[worst] == 0:
        return f"{names[worst]} is not labelled at all, but the network is sure of {found_ml:.3g} ml, labelled {other}"
    return f"{found_ml:.3g} ml of {names[worst]} ({percent} of it) are labelled {other}"


def _percent(share: float) -> str:
    if share >= 1:
        return "all"
    return f"{100 * share:.0f} %" if share >= 0.1 else f"{100 * share:.2g} %"


def _share(disputed_ml: NDArray[np.float64], volume_ml: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.divide(disputed_ml, volume_ml, out=np.zeros_like(disputed_ml), where=volume_ml > 0)
