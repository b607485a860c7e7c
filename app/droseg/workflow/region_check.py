"""Whether all parts of a bundle mean the same: overlapping regions (sigmoid) or structures that exclude each other."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from droseg.data.regions import Structures, label_values, written_values
from droseg.data.transforms import refuse_overlap
from droseg.errors import InputError
from droseg.losses.base import takes_sigmoid
from droseg.workflow.config import load_config, walk

Kind = Literal["sigmoid", "softmax"]

_TRANSFORMS: Mapping[str, Kind] = {"LabelsToRegionsd": "sigmoid", "LabelsToClassesd": "softmax"}
_REMEDY = (
    "Overlapping regions take PerCaseDiceBCELoss, LabelsToRegionsd, a threshold in validation and Activationsd with "
    "sigmoid in inference, as the bundle brats_mri; structures that exclude each other take what hippocampus_mri has."
)


def check_regions(
    config: Mapping[str, Any], structures: Structures, inference: Path, loss: Any, out_channels: int | None
) -> None:
    """Refuse a bundle whose parts do not fit each other or its structures, before anything is read.

    Args:
        config: raw training config with all overrides.
        structures: of the bundle.
        inference: inference config of the bundle; what is shared with training is not looked at.
        loss: of the training.
        out_channels: of the network; None if its config does not say.

    Raises:
        InputError: naming the parts of either kind, or the numbers that differ.
        BundleError: if structures overlap that must not, or it is not clear how regions become a label map.
    """
    names = list(label_values(structures))
    parts = list(_parts(config, inference, loss))
    by_kind = {kind: [part for part, of in parts if of == kind] for kind in ("sigmoid", "softmax")}
    if by_kind["sigmoid"] and by_kind["softmax"]:
        found = "; ".join(f"{', '.join(those)}: {kind}" for kind, those in by_kind.items())
        raise InputError(f"the parts of the bundle do not fit each other ({found}). {_REMEDY}")
    if by_kind["softmax"]:
        refuse_overlap(structures)
    if by_kind["sigmoid"]:
        written_values(structures, config.get("region_values"))
    expected = len(names) + bool(by_kind["softmax"])
    if parts and out_channels is not None and out_channels != expected:
        what = f"{len(names)} regions" if by_kind["sigmoid"] else f"background and {len(names)} structures"
        written = "$len(@structures)" + " + 1" * bool(by_kind["softmax"])
        raise InputError(
            f"network_def#out_channels is {out_channels}, but there are {what} ({', '.join(names)}): set it to "
            f"{expected}, or write {written}."
        )


def trains_regions(config: Mapping[str, Any]) -> bool:
    """Return whether a raw training config makes channels of overlapping regions of its labels."""
    return any(name == "LabelsToRegionsd" for name, _ in _components(config.get("label_transforms")))


def _parts(config: Mapping[str, Any], inference: Path, loss: Any) -> Iterator[tuple[str, Kind]]:
    """Yield the parts that are made for one of the two, and for which."""
    sigmoid = takes_sigmoid(loss)
    if sigmoid is not None:
        yield f"train#loss ({type(loss).__name__})", "sigmoid" if sigmoid else "softmax"
    for name, _ in _components(config.get("label_transforms")):
        if name in _TRANSFORMS:
            yield f"label_transforms ({name})", _TRANSFORMS[name]
    for name, arguments in _components((config.get("validate") or {}).get("postprocessing")):
        if name == "AsDiscreted" and (arguments.get("argmax") or arguments.get("threshold") is not None):
            argmax = bool(arguments.get("argmax"))
            yield f"validate#postprocessing ({'argmax' if argmax else 'threshold'})", "softmax" if argmax else "sigmoid"
    if inference.is_file():
        for name, arguments in _components(load_config([inference]).get("postprocessing")):
            if name == "Activationsd" and (arguments.get("softmax") or arguments.get("sigmoid")):
                kind: Kind = "softmax" if arguments.get("softmax") else "sigmoid"
                yield f"{inference.name} postprocessing (Activationsd)", kind


def _components(section: Any) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield class name and arguments of every component in a raw section."""
    for _, value in walk({"section": section}):
        if isinstance(value, Mapping) and isinstance(value.get("_target_"), str):
            yield value["_target_"].rpartition(".")[2], value
