"""What the configs of a bundle say, by id, with errors that name the file and the id."""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from monai.bundle import ConfigParser

from droseg.data.channels import MissingChannels, checked_choice
from droseg.data.regions import label_values
from droseg.errors import BundleError, DrosegError, InputError

CONFIG = Path("configs") / "inference.yaml"


class BundleConfig:
    """The values of one config file of a bundle or a run folder.

    Args:
        path: of the file, which exists.
        folder: of the bundle.
        device: for the config's components.

    Raises:
        BundleError: if the file cannot be read, or an id in it cannot be made.
    """

    def __init__(self, path: Path, folder: Path, device: torch.device) -> None:
        self.path, self.device = path, device
        self._parser = ConfigParser()
        try:
            self._parser.read_config(path)
        except Exception as error:  # YAML errors of many kinds
            raise BundleError(f"{path}: cannot be read ({error}); correct the file.") from error
        self.set("bundle_root", str(folder))
        self.set("device", device)

    def set(self, config_id: str, value: Any) -> None:
        """Put a value under an id, in place of what the file says."""
        self._parser[config_id] = value

    def __getitem__(self, config_id: str) -> Any:
        """Return what an id makes; an error of ours that it raises comes as it is."""
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
                f"{self.path}: the id '{config_id}' cannot be made ({type(cause).__name__}: {cause}); "
                "correct the config."
            ) from error

    def raw(self, config_id: str) -> Any:
        """Return what is written under an id; None if nothing is."""
        return self._parser.get(config_id)


class InferenceConfig(BundleConfig):
    """The values of a bundle's inference.yaml.

    Raises:
        BundleError: if there is no such file; and as `BundleConfig`.
    """

    def __init__(self, folder: Path, device: torch.device) -> None:
        if not (folder / CONFIG).is_file():
            raise BundleError(f"bundle {folder}: it has no {CONFIG}, so it cannot segment; give a complete bundle.")
        super().__init__(folder / CONFIG, folder, device)

    def label_values(self) -> dict[str, tuple[int, ...]]:
        """Return `structures`: name -> its label values."""
        try:
            return label_values(self["structures"])
        except BundleError as error:
            raise BundleError(f"{self.path}: {error}") from error

    def missing_channels(self) -> MissingChannels:
        """Return `missing_channels`; "error" where the bundle does not know the key."""
        try:
            return checked_choice("error" if self.raw("missing_channels") is None else self["missing_channels"])
        except InputError as error:
            raise BundleError(f"{self.path}: {error}") from error

    def mirror_axes(self) -> tuple[int, ...]:
        """Return the axes of the network's grid along which a mirrored image is still one that the network knows."""
        axes = self.raw("mirror_axes")
        if not isinstance(axes, Sequence) or not set(axes) <= {0, 1, 2} or not axes:
            raise BundleError(
                f"{self.path}: mirror_axes is {axes}; mirroring needs the axes that the training flips "
                "(mirror_axes: [0] for left and right, where no structure has a side)."
            )
        return tuple(sorted(set(axes)))


@contextlib.contextmanager
def _quiet_readers() -> Iterator[None]:
    """Hide the notice of MONAI 1.6 that one of its many DICOM readers is not installed; images are read here."""
    logger = logging.getLogger("monai.data.nvimgcodec_pydicom_plugin")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="NvImgCodecPydicomReader")
            yield
    finally:
        logger.setLevel(level)
