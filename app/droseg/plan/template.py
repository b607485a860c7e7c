"""The bundle that a plan follows: its text, and what it says of the network and the loss."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from monai.bundle import ConfigParser
from torch import nn

from droseg.bundles import find_bundle
from droseg.data.regions import shared_values
from droseg.errors import BundleError
from droseg.inference.shared_choices import with_shared
from droseg.losses.base import PerCaseLoss, takes_sigmoid

EXCLUSIVE, REGIONS = "hippocampus_mri", "brats_mri"
"""What a plan follows unless told: for structures that exclude each other, and for those that overlap."""
OVERLAYS = ("evaluate.yaml", "hardness.yaml", "multi_gpu_train.yaml", "multi_gpu_evaluate.yaml", "logging.conf")
"""Files of `configs/` that hold for any data."""


@dataclass(frozen=True)
class Template:
    """A bundle to follow.

    Attributes:
        folder: of the bundle.
        train, inference: text of the two configs.
        train_config, inference_config: what they say, complete.
        metadata: of the bundle.
    """

    folder: Path
    train: str
    inference: str
    train_config: dict[str, Any]
    inference_config: dict[str, Any]
    metadata: dict[str, Any]

    def loss(self) -> PerCaseLoss:
        """Return the loss of its training.

        Raises:
            BundleError: if it is not one of ours.
        """
        loss = self._made(self.train_config, "train#loss")
        if not isinstance(loss, PerCaseLoss):
            raise BundleError(f"{self.folder}: train#loss is a {type(loss).__name__}; a loss per case is needed.")
        return loss

    @property
    def regions(self) -> bool:
        """Whether it trains regions that may overlap."""
        return bool(takes_sigmoid(self.loss()))

    @property
    def crops_foreground(self) -> bool:
        """Whether a training patch is cut from the box around what is not 0."""
        return any(item.get("_target_") == "CropForegroundd" for item in self.train_config["augmentation"])

    def network(self, network_def: dict[str, Any], channels: list[str], structures: dict[str, Any]) -> nn.Module:
        """Return a network on the meta device, which needs no memory."""
        config = {"network_def": network_def, "channels": channels, "structures": structures}
        with torch.device("meta"):
            network = self._made(config, "network_def")
        if not isinstance(network, nn.Module):
            raise BundleError(f"{self.folder}: network_def makes a {type(network).__name__}, not a network.")
        return network

    def _made(self, config: dict[str, Any], key: str) -> Any:
        try:
            return ConfigParser(json.loads(json.dumps(config))).get_parsed_content(key)
        except Exception as error:  # whatever the config's own code raises
            reason = next(iter(str(error).splitlines()), type(error).__name__)
            raise BundleError(f"{self.folder}: {key} cannot be made ({reason}); choose another --like.") from error


def overlapping(structures: dict[str, tuple[int, ...]]) -> list[str]:
    """Return the names of structures that share a label value with another one."""
    shared = {name for names in shared_values(structures).values() for name in names}
    return [name for name in structures if name in shared]


def read_template(like: str | None, structures: dict[str, tuple[int, ...]]) -> Template:
    """Return the bundle to follow: as named, else by whether the structures overlap.

    Raises:
        BundleError: if there is no such bundle, it lacks a file, or it cannot take these structures.
    """
    regions = overlapping(structures)
    name = like or (REGIONS if regions else EXCLUSIVE)
    folder = find_bundle(name)
    configs = folder / "configs"
    missing = [file for file in ("train.yaml", "inference.yaml", "metadata.json") if not (configs / file).is_file()]
    if missing:
        raise BundleError(f"bundle {folder}: it has no configs/{', configs/'.join(missing)}; choose another --like.")
    texts = [(configs / file).read_text(encoding="utf-8") for file in ("train.yaml", "inference.yaml")]
    train, inference = (ConfigParser.load_config_file(str(configs / f)) for f in ("train.yaml", "inference.yaml"))
    metadata = json.loads((configs / "metadata.json").read_text(encoding="utf-8"))
    template = Template(folder, texts[0], texts[1], with_shared(train, configs), inference, metadata)
    sigmoid = template.regions
    if bool(regions) != sigmoid:
        found = f"{', '.join(regions)} overlap" if regions else "exclude each other"
        trains = "regions that may overlap" if sigmoid else "structures that exclude each other"
        raise BundleError(
            f"--like {name}: it trains {trains}, but the datalist's structures {found}; choose another bundle."
        )
    return template
