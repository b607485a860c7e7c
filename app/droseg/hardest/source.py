"""What a run was trained with, and what it left: cases, network, loss, stale losses, audit trail."""

from __future__ import annotations

import copy
import hashlib
import json
import math
import pickle
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn

from droseg.data import Case, Datalist
from droseg.engine import channels_last
from droseg.engine.precision import choose_device
from droseg.engine.run_folder import RunFolder
from droseg.errors import BundleError, DrosegError, InputError
from droseg.handlers.audit import read_audit
from droseg.inference.bundle_config import BundleConfig
from droseg.inference.weights import load_weights
from droseg.keys import TRAINING

CONFIG = "train.yaml"
EARLY, LATE = "early", "late"
"""What ranks the cases: the losses that an early network had, or those of a trained one."""


@dataclass(frozen=True)
class EarlyLosses:
    """What the training measured of its cases after an early epoch.

    Attributes:
        epoch: after which.
        losses: case_id -> loss of the whole volume without augmentation; NaN if it was not finite.
    """

    epoch: int
    losses: Mapping[str, float]


@dataclass(frozen=True)
class TrainedRun:
    """What it takes to measure the training cases as the training saw them, but whole and not augmented.

    Attributes:
        structures: names in the order of the network's classes, without the background.
        preprocessing: an item (see `droseg.data.items.case_item`) -> image and label as tensors on the network's grid.
        inferer: (image (1, C, H, W, D), network) -> logits.
        loss_function: (logits, label) -> (1,).
        network: of the Dice, the pictures and the flags.
        judge: what it is, in words.
        notes: what the reader of the results must know.
        early: what the cases are ranked by; None: by the losses of `network`.
        early_network: the one that the early losses are of; `network` itself where there is no trained one yet; None
            without early losses.
    """

    run: RunFolder
    datalist: Datalist
    structures: tuple[str, ...]
    network: nn.Module
    preprocessing: Callable[[dict[str, Any]], dict[str, Any]]
    inferer: Callable[[Tensor, nn.Module], Tensor]
    loss_function: Callable[[Tensor, Tensor], Tensor]
    judge: str
    device: torch.device
    notes: tuple[str, ...] = ()
    early: EarlyLosses | None = None
    early_network: nn.Module | None = None

    @property
    def cases(self) -> tuple[Case, ...]:
        """The training cases."""
        return self.datalist.section(TRAINING)


def read_run(
    path: str | Path,
    *,
    by: str | None = None,
    last: bool = False,
    device: str = "auto",
    datalist: str | Path | None = None,
    data_root: str | Path | None = None,
) -> TrainedRun:
    """Return what a run was trained with, its networks loaded.

    Args:
        path: run folder.
        by: what ranks: "early" for the losses that the training has kept of an early epoch, "late" for those of the
            selected network; None: early if they are kept.
        last: rank and judge by the last network, `model_last.pt`, instead of the selected one; late.
        device: cpu, cuda, cuda:1 or auto.
        datalist: instead of the run's own.
        data_root: folder that the datalist's relative paths start from, instead of the run's own.
    Raises:
        BundleError: if it is no run folder, or its config lacks what is needed.
        InputError: if nothing early is kept and `by` asks for it.
        WeightsError: if there are no weights yet.
        DatalistError: if the datalist cannot be read, or has no training cases with labels.
    """
    run = RunFolder(Path(path))
    config = _train_config(run, choose_device(device))
    if datalist is not None:
        config.set("datalist", str(Path(datalist).resolve()))
    if data_root is not None:
        config.set("data_root", str(Path(data_root).resolve()))
    found: Datalist = config["data"]
    _check_labels(found)
    network = channels_last(config["network_def"], config.device)
    early, notes = _early(run, found, LATE if last else by)
    weights, no_model = _judging_weights(run, early, last)
    early_network = None
    if early is not None:
        early_network = network if weights == run.early_model else _loaded(copy.deepcopy(network), run.early_model)
    _loaded(network, weights)
    return TrainedRun(
        run,
        found,
        tuple(config["structures"]),
        network,
        config["validate#preprocessing"],
        config["validate#inferer"],
        config["train#loss"],
        _in_words(run, weights, early),
        config.device,
        (*_notes(run, found), *notes, *no_model),
        early,
        early_network,
    )


def _judging_weights(run: RunFolder, early: EarlyLosses | None, last: bool) -> tuple[Path, tuple[str, ...]]:
    """Return the file of the network that judges the labels; and what to say of it."""
    if last:
        return run.last_model, ()
    if run.best_model.is_file():
        return run.best_model, ()
    if early is not None:
        said = (
            f"{run.best_model}: there is none yet; Dice, pictures and flags are those of {run.early_model.name}, "
            "which may doubt many right labels."
        )
        return run.early_model, (said,)
    if run.last_model.is_file():
        raise BundleError(
            f"{run.best_model}: the training has selected no network yet; --last takes {run.last_model.name}."
        )
    return run.best_model, ()


def _in_words(run: RunFolder, weights: Path, early: EarlyLosses | None) -> str:
    if early is not None and weights == run.early_model:
        epoch: object = early.epoch
    else:
        epoch = run.status().get("best_epoch" if weights == run.best_model else "epoch")
    return f"{weights.name} after epoch {epoch}" if epoch else weights.name


def _loaded(network: nn.Module, weights: Path) -> nn.Module:
    load_weights(network, weights)
    return network.eval()


def _early(run: RunFolder, datalist: Datalist, by: str | None) -> tuple[EarlyLosses | None, tuple[str, ...]]:
    """Return the early losses if the cases are to be ranked by them; and what to say of it."""
    if by == LATE:
        return None, ()
    try:
        content = json.loads(run.early_losses_file.read_text())
        losses = {case_id: math.nan if loss is None else float(loss) for case_id, loss in content["losses"].items()}
        early = EarlyLosses(int(content["epoch"]), losses)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        missing = isinstance(error, FileNotFoundError)
        why = f"{run.early_losses_file}: there are no early losses" if missing else f"{run.early_losses_file}: {error}"
        return _no_early(f"{why} (early_epoch of the training)", by)
    if not run.early_model.is_file():
        return _no_early(f"{run.early_model}: there is no early network", by)
    new = [case.case_id for case in datalist.section(TRAINING) if case.case_id not in losses]
    if new or content.get("datalist_sha256") not in (None, _digest(datalist)):
        said = "the datalist is not the one that the early losses are of: the early network measures its cases anew."
        return EarlyLosses(early.epoch, {}), (said,)
    return early, ()


def _no_early(why: str, by: str | None) -> tuple[None, tuple[str, ...]]:
    if by == EARLY:
        raise InputError(f"{why}; --by late ranks by the trained network.")
    return None, (f"{why}; ranked by a trained network, which may have learned wrong labels by heart.",)


def _digest(datalist: Datalist) -> str:
    return hashlib.sha256(datalist.path.read_bytes()).hexdigest()


def stale_losses(run: RunFolder) -> pd.DataFrame:
    """Return stale_loss and visits of each case of the last checkpoint, by case_id; empty if there is none."""
    columns = ["stale_loss", "visits"]
    try:
        history = torch.load(run.checkpoint, map_location="cpu", weights_only=True)["objective"]["history"]
    except (OSError, KeyError, TypeError, RuntimeError, EOFError, pickle.UnpicklingError):
        return pd.DataFrame(columns=columns)
    table = {"stale_loss": history["loss"].numpy(), "visits": history["visits"].numpy()}
    return pd.DataFrame(table, index=pd.Index(history["case_ids"], name="case_id"), columns=columns)


def audit_trail(run: RunFolder) -> tuple[pd.DataFrame | None, str]:
    """Return the audit trail of a run, or None and why there is none."""
    try:
        return read_audit(run), ""
    except DrosegError as error:
        return None, str(error)


def _train_config(run: RunFolder, device: torch.device) -> BundleConfig:
    """Return the values of a run's train.yaml."""
    path = run.configs / CONFIG
    if not path.is_file():
        found = "there is no such folder" if not run.path.is_dir() else f"it has no configs/{CONFIG}"
        raise BundleError(f"{run.path}: {found}; give the folder of a training, the --out of `droseg train`.")
    return BundleConfig(path, run.path.resolve(), device)


def _check_labels(datalist: Datalist) -> None:
    without = [case.case_id for case in datalist.section(TRAINING) if case.label is None]
    if without:
        raise InputError(f"{datalist.path}: no label for {', '.join(without[:10])}; every training case needs one.")


def _notes(run: RunFolder, datalist: Datalist) -> tuple[str, ...]:
    digest = run.status().get("datalist_sha256")
    if digest is None or digest == _digest(datalist):
        return ()
    return (f"{datalist.path} is not what the run was trained with: its content is another one.",)
