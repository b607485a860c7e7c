"""What `configs/inference.yaml` of a bundle says, by id, with errors that name the file and the id."""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from monai.bundle import ConfigParser

from droseg.errors import BundleError

CONFIG = Path("configs") / "inference.yaml"


class InferenceConfig:
    """The values of a bundle's inference.yaml.

    Attributes:
        path: of the file.

    Raises:
        BundleError: if there is no such file, it cannot be read, or an id in it cannot be made.
    """

    def __init__(self, folder: Path, device: torch.device) -> None:
        self.path = folder / CONFIG
        if not self.path.is_file():
            raise BundleError(f"bundle {folder}: it has no {CONFIG}, so it cannot segment; give a complete bundle.")
        self._parser = ConfigParser()
        try:
            self._parser.read_config(self.path)
        except Exception as error:  # YAML errors of many kinds
            raise BundleError(f"{self.path}: cannot be read ({error}); correct the file.") from error
        self._parser["bundle_root"] = str(folder)
        self._parser["device"] = device

    def __getitem__(self, config_id: str) -> Any:
        """Return what an id makes."""
        try:
            with _quiet_readers():
                return self._parser.get_parsed_content(config_id)
        except Exception as error:  # whatever the config's own code raises
            cause: BaseException = error
            while cause.__cause__ is not None:
                cause = cause.__cause__
            raise BundleError(
                f"{self.path}: the id '{config_id}' cannot be made ({type(cause).__name__}: {cause}); "
                "correct the config."
            ) from error

    def raw(self, config_id: str) -> Any:
        """Return what is written under an id; None if nothing is."""
        return self._parser.get(config_id)

    def label_values(self) -> dict[str, int]:
        """Return `structures`: name -> value in the label map."""
        structures = self["structures"]
        if not isinstance(structures, dict) or not all(isinstance(value, int) for value in structures.values()):
            raise BundleError(
                f"{self.path}: structures is {structures}; one label value per name is needed, {{name: value}}."
            )
        return dict(structures)

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
