"""A network's weights on disk: found, checked, and loaded without running any code in them."""

from __future__ import annotations

import hashlib
import pickle
import zipfile
from pathlib import Path

import torch
from torch import Tensor, nn

from droseg.engine.run_folder import FINISHED, RunFolder
from droseg.errors import WeightsError

CHECKSUMS = "SHA256SUMS"
"""Beside weights that were released: lines of `sha256sum`."""


def weights_file(path: str | Path) -> str:
    """Return the path of a bundle's `models/model.pt` as text, for a config's `CheckpointLoader`.

    Raises:
        WeightsError: if there is no such file; the message says how to train one, or how to go on with its training.
    """
    path = Path(path)
    if path.is_file() and path.stat().st_size > 0:
        return str(path)
    found = "is an empty file" if path.is_file() else "does not exist"
    folder = path.resolve().parents[1] if path.parent.name == "models" else None
    if folder is not None and RunFolder(folder).status_file.is_file():
        raise WeightsError(f"weights {path}: the file {found}. {_how_to_go_on(RunFolder(folder))}")
    bundle = folder.name if folder is not None else "BUNDLE"
    raise WeightsError(
        f"weights {path}: the file {found}. "
        f"Train them: droseg train {bundle} --datalist DATALIST.json --out RUN; then give --bundle RUN."
    )


def _how_to_go_on(run: RunFolder) -> str:
    """Return why a run folder may have no weights, and what to do about it."""
    if run.status().get("status") == FINISHED:
        return f"The training in {run.path} is finished: copy the file again, or train again with --restart."
    return (
        f"The training in {run.path} has chosen no network yet; it does so after a validation and at its end. "
        "Wait for it, or give the same `droseg train` command again: it continues."
    )


def load_weights(network: nn.Module, path: str | Path) -> None:
    """Load a bare state dict (`weights_only=True`) into a network, whatever floating type it was stored in.

    Raises:
        WeightsError: if the file is missing, corrupt, not the one that was released, or made for another network.
    """
    path = weights_file(path)
    _check_sum(Path(path))
    try:
        if zipfile.is_zipfile(path):  # torch.load compares no checksums
            with zipfile.ZipFile(path) as archive:
                damaged = archive.testzip()
            if damaged is not None:
                raise zipfile.BadZipFile(f"bad checksum of {damaged}")
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, pickle.UnpicklingError, EOFError, OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise WeightsError(
            f"{path}: these weights cannot be read ({_first_line(error)}). "
            "The file is damaged or is no PyTorch state dict: copy it again, or train again."
        ) from error
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise WeightsError(
            f"{path}: expected a state dict of one network (name -> tensor), found {type(state).__name__}."
        )
    try:
        network.load_state_dict(state)
    except RuntimeError as error:
        raise WeightsError(
            f"{path}: these weights were made for another network than the bundle's network_def "
            f"({_first_line(error, 1)}). Use the bundle (run folder) that they were trained in."
        ) from error


def _check_sum(path: Path) -> None:
    """Compare weights with the checksum that was released with them, if one lies beside them."""
    sums = path.with_name(CHECKSUMS)
    if not sums.is_file():
        return
    expected = {name.lstrip("*"): digest for digest, name in map(str.split, sums.read_text().splitlines())}
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != expected.get(path.name, found):
        raise WeightsError(
            f"{path}: SHA-256 is {found[:16]}..., {sums.name} beside it says {expected[path.name][:16]}...; it is "
            f"damaged or another one: copy it again, or remove {sums.name} if you put your own weights there."
        )


def _first_line(error: Exception, start: int = 0) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[start:] or lines or [type(error).__name__])[0][:200]
