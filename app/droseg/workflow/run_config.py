"""The configs of a run folder: what a training resolved, in the files of the bundle it came from."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from monai.bundle import ConfigParser

from droseg import __version__
from droseg.engine.run_folder import RunFolder, replace_text
from droseg.inference.shared_choices import with_shared
from droseg.report.card import empty_card
from droseg.workflow.config import config_files, differences, dump_config, load_config, without_metadata
from droseg.workflow.region_check import trains_regions

TRAIN, INFERENCE, PARALLEL = "train.yaml", "inference.yaml", "multi_gpu_train.yaml"

CHANGEABLE = (
    *("bundle_root", "output_dir", "epochs", "num_workers", "device", "restart", "check_data", "init_from"),
    *("backend", "rank_timeout_s", "imports", "initialize", "finalize"),
    *("max_lag", "carry_over_history", "checkpoint_interval", "checkpoint_minutes", "audit", "early_epoch"),
)
"""Keys that may differ when a run is continued; everything else would make it another run."""

PER_FILE = ("imports", "bundle_root", "output_dir", "dataset_dir", "device", "initialize", "run", "finalize")
"""Keys that each file of a bundle has for itself; every other key that two files share says the same in both."""


def write_run_configs(run: RunFolder, source: Path, config: Mapping[str, Any], resolved: Mapping[str, Any]) -> None:
    """Make the run folder a complete bundle.

    What was trained does not depend on the number of processes, so that any number of them can continue it: the
    multi-GPU overlay is taken out again.

    Args:
        run: the folder of the run.
        source: the bundle that is trained; it may be the run folder itself.
        config: raw training config with all overrides.
        resolved: values to write in place of the raw ones (absolute paths of the data).
    """
    run.configs.mkdir(parents=True, exist_ok=True)
    run.models.mkdir(parents=True, exist_ok=True)
    train = {
        **for_one_process(config, source / "configs"),
        **resolved,
        "bundle_root": ".",
        "output_dir": "@bundle_root",
        "restart": False,
        "init_from": None,
        "carry_over_history": False,
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
    for name in ("LICENSE", "configs/logging.conf"):
        if (source / name).is_file():
            shutil.copyfile(source / name, run.path / name)
    card = source / "docs/README.md"
    if card.is_file() and not run.card.is_file():  # a run that goes on may have results in its card
        # The card tells of the bundle's task and network; its results are those of other weights.
        replace_text(run.card, empty_card(card.read_text(encoding="utf-8")))
    _write_metadata(source / "configs/metadata.json", run.configs / "metadata.json", config)


def _write_metadata(source: Path, target: Path, config: Mapping[str, Any]) -> None:
    """Copy the bundle's metadata with the channels and structures of this run."""
    metadata = json.loads(source.read_text())
    channels, structures = list(config["channels"]), list(config["structures"])
    structures = structures if trains_regions(config) else ["background", *structures]
    formats = metadata.get("network_data_format", {})
    for entries, names in ((formats.get("inputs", {}), channels), (formats.get("outputs", {}), structures)):
        for entry in entries.values():
            entry["num_channels"] = len(names)
            entry["channel_def"] = {str(index): name for index, name in enumerate(names)}
    if isinstance(config.get("roi_size"), list):
        for entry in formats.get("inputs", {}).values():
            entry["spatial_shape"] = list(config["roi_size"])
    replace_text(target, json.dumps(metadata, indent=2) + "\n")


def changed_settings(
    run: RunFolder, configs: Path, config: Mapping[str, Any], resolved: Mapping[str, Any]
) -> list[str]:
    """Return one line per setting in which `config`, of the bundle with `configs`, differs from the run's first."""
    previous = load_config([run.configs / TRAIN])
    return differences(previous, {**for_one_process(config, configs), **resolved}, ignore=CHANGEABLE)


def for_one_process(config: Mapping[str, Any], configs: Path) -> dict[str, Any]:
    """Return the config without what the multi-GPU overlay in the folder `configs` put into it."""
    if not (configs / PARALLEL).is_file():
        return dict(config)
    base, overlaid = (
        _as_run(with_shared(load_config(files), configs))
        for files in ([configs / TRAIN], [configs / TRAIN, configs / PARALLEL])
    )
    result: dict[str, Any] = _taken_out(config, base, overlaid)
    return result


def _as_run(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the config with its references written as MONAI writes them when it runs: `@a::b` for `@a#b`."""
    parser = ConfigParser(dict(config))
    parser.resolve_macro_and_relative_ids()
    return without_metadata(parser.get())


def _taken_out(config: Any, base: Any, overlaid: Any) -> Any:
    """Return `config` with the value of `base` wherever it has that of `overlaid`."""
    if all(isinstance(each, Mapping) for each in (config, base, overlaid)):
        kept = {key: value for key, value in config.items() if key in base or key not in overlaid}
        return {key: _taken_out(value, base.get(key), overlaid.get(key)) for key, value in kept.items()}
    return base if config == overlaid else config
