"""The networks of a prediction: one, or the same one with several weights."""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from droseg.errors import WeightsError
from droseg.inference.bundle_config import CONFIG, InferenceConfig
from droseg.inference.weights import load_weights

SAME_IN_ALL = ("channels", "structures", "spacing_mm", "network_def", "deterministic_transforms")
"""What run folders must have in common for their probabilities to mean the same."""


def checkpoint_files(config: InferenceConfig, checkpoints: Sequence[str | Path] | None) -> list[Path]:
    """Return the files with weights: the bundle's own, or those that are given as files and run folders.

    Raises:
        WeightsError: if a run folder was trained for something else than the bundle.
    """
    if checkpoints is None:
        return [Path(config["checkpoint"])]
    files = []
    for given in map(Path, checkpoints):
        if given.is_dir():
            _check_run(given, config)
            given = given / "models" / "model.pt"
        files.append(given)
    return files


def load_networks(config: InferenceConfig, files: Sequence[Path]) -> list[nn.Module]:
    """Return the bundle's network once per file, in evaluation mode.

    Raises:
        WeightsError: if a file is missing, damaged or of another network.
    """
    network: nn.Module = config["network_def"]
    networks = [network, *(copy.deepcopy(network) for _ in files[1:])]
    for each, file in zip(networks, files, strict=True):
        load_weights(each, file)
    return [each.eval() for each in networks]


def fingerprint(files: Sequence[Path], config: Path, options: Mapping[str, Any]) -> str:
    """Return the SHA-256 of all weights, of a config and of options, if there are any, in hex."""
    digest = hashlib.sha256()
    for file in (*files, config):
        digest.update(file.read_bytes())
    digest.update(json.dumps(dict(options), sort_keys=True).encode() if options else b"")
    return digest.hexdigest()


def _check_run(folder: Path, config: InferenceConfig) -> None:
    if not (folder / CONFIG).is_file():
        raise WeightsError(f"checkpoint {folder}: a folder without {CONFIG}; give a run folder or its models/model.pt.")
    other = InferenceConfig(folder, torch.device("cpu"))
    different = [name for name in SAME_IN_ALL if other.raw(name) != config.raw(name)]
    if different:
        raise WeightsError(
            f"checkpoint {folder}: its {', '.join(different)} differ{'s' * (len(different) == 1)} from "
            f"{config.path}; average only runs of the same bundle."
        )
