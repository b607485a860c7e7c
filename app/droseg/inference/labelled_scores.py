"""Labelled cases, segmented as they are and degraded, with the scores of their quality flags and their true Dice."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from monai.data import MetaTensor
from numpy.typing import NDArray

from droseg.data.datalist import Case
from droseg.data.regions import Structures, code_values, mask_of, region_codes
from droseg.data.volumes import GRID_TOLERANCE
from droseg.errors import DrosegError
from droseg.inference.calibration import NATURAL, ScoredCase
from droseg.inference.degradations import ALL_KINDS, degrade
from droseg.inference.predictor import Predictor
from droseg.inference.quality import Evidence, Finding, Flag, OutOfDomainError, QualityRules
from droseg.metrics import case_metrics, penalized
from droseg.metrics.label_maps import lay_on_grid, read_labels


@dataclass(frozen=True)
class Scored:
    """The scored images, and case_id -> why a case could not be scored."""

    cases: list[ScoredCase]
    problems: dict[str, str]


class _KeepingRules(QualityRules):
    """Keeps what was measured on the last case, and raises no flag."""

    def __init__(self, folder: Path, structures: Structures) -> None:
        super().__init__(folder, structures)
        self.last: list[Finding] = []

    def flags(self, evidence: Evidence) -> list[Flag]:
        self.last = self.findings(evidence)
        return []


class ScoringPredictor(Predictor):
    """A predictor that segments all it is given and tells the scores of the flags; arguments as `Predictor`."""

    def __init__(self, bundle: str | Path, device: str = "cpu", **options: Any) -> None:
        super().__init__(bundle, device, force=True, **options)
        self.rules = _KeepingRules(self.folder, self.structures)
        self._quality = self.rules

    def score(self, image: MetaTensor) -> tuple[NDArray[Any], dict[str, float], bool]:
        """Return the label map, flag name -> largest score, and whether the image would be refused."""
        labels = self.segment(self.prepare(image)).labels
        scores: dict[str, float] = {}
        for finding in self.rules.last:
            name = finding.flag.name
            scores[name] = max(finding.score, scores.get(name, -np.inf))
        try:
            self._missing.check_known(image)
            self.rules.check_domain(image)
        except OutOfDomainError:
            return labels, scores, True
        return labels, scores, False


def score_labelled(
    predictor: ScoringPredictor,
    cases: Sequence[Case],
    label_values: Mapping[str, Sequence[int]],
    degraded: int = 4,
    on_case: Callable[[], object] | None = None,
) -> Scored:
    """Return each case as it is and `degraded` times with something wrong, each with its Dice and scores.

    The kinds of degradation take turns, so that all of them occur equally often; what is drawn for a case depends on
    its case_id alone.

    Args:
        predictor: of the bundle.
        cases: with labels.
        label_values: structure -> its values in the labels; structures that the bundle does not segment are left out.
        degraded: images per case.
        on_case: called after each case.
    """
    values = {name: label_values[name] for name in predictor.structures if name in label_values}
    scored: list[ScoredCase] = []
    problems: dict[str, str] = {}
    for index, case in enumerate(cases):
        kinds = [ALL_KINDS[(index * degraded + turn) % len(ALL_KINDS)] for turn in range(degraded)]
        try:
            scored += _score_case(predictor, case, values, kinds)
        except DrosegError as error:
            problems[case.case_id] = str(error)
        if on_case is not None:
            on_case()
    return Scored(scored, problems)


def _score_case(
    predictor: ScoringPredictor, case: Case, values: Mapping[str, Sequence[int]], kinds: Sequence[str]
) -> list[ScoredCase]:
    if case.label is None:
        raise DrosegError("it has no label; give a section of labelled cases.")
    image = predictor.read(list(case.images))
    own = {name: predictor.structures[name] for name in values}
    reference = _codes(_reference(case.label, image), values)
    rng = np.random.default_rng(zlib.crc32(case.case_id.encode()))
    scored = []
    for kind in (NATURAL, *kinds):
        whole: NDArray[Any] = np.zeros(reference.shape, dtype=np.int32)
        if kind == NATURAL:
            whole, scores, refused = predictor.score(image)
        else:
            changed = degrade(image, kind, rng)
            # What was cut off is missed: the person wanted the whole structure.
            whole[changed.box], scores, refused = predictor.score(changed.image)
        pred = _codes(whole, own)
        table = case_metrics(pred, reference, code_values(list(values), pred, reference), metrics=["dice"])
        dice = float(penalized(table, "dice").mean())
        if np.isnan(dice):
            continue  # neither the label nor the network has any structure
        scored.append(ScoredCase(case.patient_id, kind, dice, scores, refused))
    return scored


def _codes(labels: NDArray[Any], values: Mapping[str, Sequence[int]]) -> NDArray[np.int64]:
    """Return a map that says of each voxel in which structures it is: bundle and labels may have other values."""
    return region_codes([mask_of(labels, those) for those in values.values()])


def _reference(path: Path, image: MetaTensor) -> NDArray[Any]:
    """Return the label on the grid of the image."""
    stored, affine = read_labels(path)
    on_grid = lay_on_grid(stored, affine, image.shape[1:], image.affine.numpy(), GRID_TOLERANCE)
    if on_grid is None:
        raise DrosegError(f"{path}: its grid is not that of the image; resample the label.")
    return on_grid
