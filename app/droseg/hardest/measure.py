"""One training case, whole and not augmented: its losses, its Dice, and where the network disagrees with its label."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from droseg.data import Case
from droseg.data.channels import present_channels
from droseg.data.items import case_item
from droseg.data.regions import region_codes
from droseg.hardest.disagreement import Disagreement
from droseg.hardest.source import TrainedRun
from droseg.hardest.volumes import RegionVolume, WholeVolume
from droseg.keys import IMAGE, LABEL
from droseg.losses.base import takes_sigmoid
from droseg.metrics import case_metrics


@dataclass(frozen=True)
class Measurement:
    """What is known of a case; `problem` says why there is nothing.

    Attributes:
        loss: of the whole volume; NaN if there is none.
        early_loss: the same of the early network; NaN if there is none.
        dice: structure -> Dice on the network's grid; NaN where neither label nor network has it.
    """

    case_id: str
    loss: float = float("nan")
    dice: dict[str, float] = field(default_factory=dict)
    disagreement: Disagreement | None = None
    problem: str = ""
    early_loss: float = float("nan")


def whole_volume(trained: TrainedRun, case: Case, index: int = 0) -> WholeVolume:
    """Return a case as the network sees it, and what it says.

    Raises:
        Exception: whatever reading or preprocessing raises.
    """
    return _segment(trained, trained.preprocessing(case_item(case, index)))


@torch.no_grad()
def _segment(trained: TrainedRun, item: dict[str, Any]) -> WholeVolume:
    """Return what the network says of a preprocessed item."""
    image, label = _on_device(trained, item)
    logits = trained.inferer(image, trained.network)
    loss = float(trained.loss_function(logits, label)[0])
    raw, labelled = (each.as_subclass(torch.Tensor)[0] for each in (logits, label))
    first = np.asarray(item[IMAGE][present_channels(item[IMAGE]).index(True)], dtype=np.float32)
    affine = np.asarray(item[LABEL].affine, dtype=np.float64)
    if takes_sigmoid(trained.loss_function):
        return _regions(first, raw.float().sigmoid(), labelled, affine, loss)
    scores = torch.softmax(raw.float(), dim=0)
    classes = labelled[0].long()
    own = torch.gather(scores, 0, classes[None])[0].double()
    counts = torch.bincount(classes.flatten(), minlength=len(scores)).double()
    confidence = torch.bincount(classes.flatten(), weights=own.flatten(), minlength=len(scores)) / counts  # 0/0: NaN
    probability, pred = scores.max(dim=0)
    return WholeVolume(
        first,
        classes.cpu().numpy().astype(np.uint8),
        pred.cpu().numpy().astype(np.uint8),
        probability.cpu().numpy(),
        affine,
        loss,
        confidence.cpu().numpy(),
    )


def _regions(
    image: NDArray[np.float32], probability: Tensor, label: Tensor, affine: NDArray[np.float64], loss: float
) -> RegionVolume:
    """Return a case of regions; probability and label are (R, H, W, D)."""
    inside = label > 0.5
    outside_mean = (1 - probability)[~inside].double().mean()  # of nothing: NaN, as below
    inside_means = [chances[mask].double().mean() for chances, mask in zip(probability, inside, strict=True)]
    confidence = torch.stack([outside_mean, *inside_means])
    return RegionVolume(
        image,
        region_codes(inside.cpu().numpy()),
        region_codes((probability >= 0.5).cpu().numpy()),
        probability.cpu().numpy(),
        affine,
        loss,
        confidence.cpu().numpy(),
    )


@torch.no_grad()
def _early_loss(trained: TrainedRun, item: dict[str, Any], loss: float) -> float:
    """Return the loss of the early network; `loss` is that of the judging one, which may be the same."""
    if trained.early_network is None:
        return math.nan
    if trained.early_network is trained.network:
        return loss
    image, label = _on_device(trained, item)
    return float(trained.loss_function(trained.inferer(image, trained.early_network), label)[0])


def _on_device(trained: TrainedRun, item: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """Return image and label, (1, C, H, W, D)."""
    return item[IMAGE][None].to(trained.device), item[LABEL][None].to(trained.device)


def measure_case(trained: TrainedRun, case: Case, index: int = 0) -> Measurement:
    """Return the measurement of a case; one that cannot be read does not stop the others."""
    try:
        item = trained.preprocessing(case_item(case, index))
        volume = _segment(trained, item)
        early_loss = _early_loss(trained, item, volume.loss)
    except Exception as error:  # whatever is wrong with the files of one case
        return Measurement(case.case_id, problem=_reason(error))
    losses = [volume.loss] if trained.early_network is None else [volume.loss, early_loss]
    for loss in losses:
        if not math.isfinite(loss):
            found = f"its loss is {loss}; look for values in image and label that are not finite"
            return Measurement(case.case_id, problem=found)
    return replace(measure_volume(case.case_id, volume, trained.structures), early_loss=early_loss)


def measure_volume(case_id: str, volume: WholeVolume, structures: tuple[str, ...]) -> Measurement:
    """Return the measurement of a volume."""
    names: dict[int | tuple[int, ...], str] = {values: name for name, values in volume.values(structures).items()}
    table = case_metrics(volume.pred, volume.label, names, volume.spacing_mm.tolist(), metrics=["dice"])
    dice = dict(zip(table["structure"], table["dice"].astype(float), strict=True))
    return Measurement(case_id, volume.loss, dice, volume.disagreement())


def measure_run(trained: TrainedRun, on_case: Callable[[Measurement], None] | None = None) -> list[Measurement]:
    """Return the measurements of all training cases, in the order of the datalist."""
    measurements = []
    for index, case in enumerate(trained.cases):
        measurements.append(measure_case(trained, case, index))
        if on_case is not None:
            on_case(measurements[-1])
    return measurements


def _reason(error: BaseException) -> str:
    """Return what was wrong in one line; MONAI wraps the cause in errors of its transforms."""
    while error.__cause__ is not None:
        error = error.__cause__
    if isinstance(error, torch.OutOfMemoryError):
        return "the device has too little memory for it; give --device cpu"
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:300]}" if text else type(error).__name__
