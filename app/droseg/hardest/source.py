"""What a run was trained with, and what it left: cases, network, loss, stale losses, audit trail."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import math
import pickle
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from monai.bundle import ConfigParser
from torch import Tensor, nn

from droseg.data import Case, Datalist
from droseg.engine import channels_last
from droseg.engine.run_folder import RunFolder
from droseg.errors import BundleError, DrosegError, InputError
from droseg.handlers.audit import read_audit
from droseg.inference.weights import load_weights
from droseg.keys import TRAINING

CONFIG = "train.yaml"
EARLY, LATE = "early", "late"
"""What the cases are ranked by: the losses that an early network had, or those of a trained one."""


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
        weights: file that the network was loaded from.
        notes: what the reader of the results must know.
        early: what the cases are ranked by; None: by what the network says now.
    """

    run: RunFolder
    datalist: Datalist
    structures: tuple[str, ...]
    network: nn.Module
    preprocessing: Callable[[dict[str, Any]], dict[str, Any]]
    inferer: Callable[[Tensor, nn.Module], Tensor]
    loss_function: Callable[[Tensor, Tensor], Tensor]
    weights: Path
    device: torch.device
    notes: tuple[str, ...] = ()
    early: EarlyLosses | None = None

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
    """Return what a run was trained with, its network loaded.

    Args:
        path: run folder.
        by: "early" for the losses and the network that the training has kept of an early epoch, "late" for the selected
            network; None: early if they are kept.
        last: take the last network, `model_last.pt`, instead of the selected one; late.
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
    config = _TrainConfig(run, _device(device))
    if datalist is not None:
        config.set("datalist", str(Path(datalist).resolve()))
    if data_root is not None:
        config.set("data_root", str(Path(data_root).resolve()))
    found: Datalist = config["data"]
    _check_labels(found)
    network = channels_last(config["network_def"], config.device)
    early, notes = _early(run, found, LATE if last else by)
    weights = run.last_model if last else run.early_model if early is not None else run.best_model
    if not weights.is_file() and not last and run.last_model.is_file():
        raise BundleError(f"{weights}: the training has selected no network yet; --last takes {run.last_model.name}.")
    load_weights(network, weights)
    network.eval()
    return TrainedRun(
        run,
        found,
        tuple(config["structures"]),
        network,
        config["validate#preprocessing"],
        config["validate#inferer"],
        config["train#loss"],
        weights,
        config.device,
        (*_notes(run, found), *notes),
        early,
    )


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


class _TrainConfig:
    """The values of a run's train.yaml, by id, with errors that name the file and the id."""

    def __init__(self, run: RunFolder, device: torch.device) -> None:
        self.path, self.device = run.configs / CONFIG, device
        if not self.path.is_file():
            found = "there is no such folder" if not run.path.is_dir() else f"it has no configs/{CONFIG}"
            raise BundleError(f"{run.path}: {found}; give the folder of a training, the --out of `droseg train`.")
        self._parser = ConfigParser()
        try:
            self._parser.read_config(self.path)
        except Exception as error:  # YAML errors of many kinds
            raise BundleError(f"{self.path}: cannot be read ({error}); correct the file.") from error
        self.set("bundle_root", str(run.path.resolve()))
        self.set("device", device)

    def set(self, config_id: str, value: Any) -> None:
        self._parser[config_id] = value

    def __getitem__(self, config_id: str) -> Any:
        try:
            with _quiet_readers():
                return self._parser.get_parsed_content(config_id)
        except Exception as error:  # whatever the config's own code raises
            cause: BaseException = error
            while cause.__cause__ is not None and not isinstance(cause, DrosegError):
                cause = cause.__cause__
            if isinstance(cause, DrosegError):
                raise cause from error
            raise BundleError(
                f"{self.path}: the id '{config_id}' cannot be made ({type(cause).__name__}: {cause}); it is needed to "
                "measure the training cases as they were trained with."
            ) from error


@contextlib.contextmanager
def _quiet_readers() -> Iterator[None]:
    """Hide the notice of MONAI 1.6 that one of its many DICOM readers is not installed."""
    logger = logging.getLogger("monai.data.nvimgcodec_pydicom_plugin")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="NvImgCodecPydicomReader")
            yield
    finally:
        logger.setLevel(level)


def _device(name: str) -> torch.device:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"--device {name}: it cannot be used here; give cpu, cuda, cuda:1 or auto.") from error
    return device


def _check_labels(datalist: Datalist) -> None:
    without = [case.case_id for case in datalist.section(TRAINING) if case.label is None]
    if without:
        raise InputError(f"{datalist.path}: no label for {', '.join(without[:10])}; every training case needs one.")


def _notes(run: RunFolder, datalist: Datalist) -> tuple[str, ...]:
    digest = run.status().get("datalist_sha256")
    if digest is None or digest == _digest(datalist):
        return ()
    return (f"{datalist.path} is not what the run was trained with: its content is another one.",)
