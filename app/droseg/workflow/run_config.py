"""The configs of a run folder: what a training resolved, in the files of the bundle it came from."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from droseg import __version__
from droseg.engine.run_folder import RunFolder, replace_text
from droseg.workflow.config import config_files, differences, dump_config, load_config

TRAIN, INFERENCE = "train.yaml", "inference.yaml"

CHANGEABLE = ("bundle_root", "output_dir", "epochs", "num_workers", "device", "restart", "check_data", "init_from")
"""Keys that may differ when a run is continued; everything else would make it another run."""

PER_FILE = ("imports", "bundle_root", "output_dir", "dataset_dir", "device", "initialize", "run", "finalize")
"""Keys that each file of a bundle has for itself; every other key that two files share says the same in both."""


def write_run_configs(run: RunFolder, source: Path, config: Mapping[str, Any], resolved: Mapping[str, Any]) -> None:
    """Make the run folder a complete bundle.

    Args:
        run: the folder of the run.
        source: the bundle that is trained; it may be the run folder itself.
        config: raw training config with all overrides.
        resolved: values to write in place of the raw ones (absolute paths of the data).
    """
    run.configs.mkdir(parents=True, exist_ok=True)
    run.models.mkdir(parents=True, exist_ok=True)
    train = {
        **config,
        **resolved,
        "bundle_root": ".",
        "output_dir": "@bundle_root",
        "restart": False,
        "init_from": None,
    }
    note = f"Written by droseg {__version__}: the training config of this run with all overlays and overrides in it."
    dump_config(train, run.configs / TRAIN, f"{note}\nContinue or look closer: droseg train RUN, or monai.bundle run.")
    inference = load_config([source / "configs" / INFERENCE])
    shared = {key: train[key] for key in inference if key in train and key not in PER_FILE and key != "network"}
    note = f"Written by droseg {__version__}: inference with what this run was trained with."
    dump_config({**inference, **shared}, run.configs / INFERENCE, note)
    if source.resolve() == run.path.resolve():
        return
    for file in config_files(source / "configs"):
        if file.name not in (TRAIN, INFERENCE):
            shutil.copyfile(file, run.configs / file.name)
    for name in ("LICENSE", "configs/logging.conf", "docs/README.md"):
        if (source / name).is_file():
            (run.path / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source / name, run.path / name)
    _write_metadata(source / "configs/metadata.json", run.configs / "metadata.json", config)


def _write_metadata(source: Path, target: Path, config: Mapping[str, Any]) -> None:
    """Copy the bundle's metadata with the channels and structures of this run."""
    metadata = json.loads(source.read_text())
    channels, structures = list(config["channels"]), ["background", *config["structures"]]
    formats = metadata.get("network_data_format", {})
    for entries, names in ((formats.get("inputs", {}), channels), (formats.get("outputs", {}), structures)):
        for entry in entries.values():
            entry["num_channels"] = len(names)
            entry["channel_def"] = {str(index): name for index, name in enumerate(names)}
    if isinstance(config.get("roi_size"), list):
        for entry in formats.get("inputs", {}).values():
            entry["spatial_shape"] = list(config["roi_size"])
    replace_text(target, json.dumps(metadata, indent=2) + "\n")


def changed_settings(run: RunFolder, config: Mapping[str, Any], resolved: Mapping[str, Any]) -> list[str]:
    """Return one line per setting in which `config` differs from what the run was started with."""
    previous = load_config([run.configs / TRAIN])
    return differences(previous, {**config, **resolved}, ignore=CHANGEABLE)
