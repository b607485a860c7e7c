"""What a bundle's train.yaml takes from the inference.yaml beside it, so that each choice stands once."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from monai.bundle import ConfigParser

from droseg.errors import BundleError

KEY = "from_inference"
"""In train.yaml: the names of the keys that inference.yaml says."""
INFERENCE = "inference.yaml"


def with_shared(config: Mapping[str, Any], configs: Path) -> dict[str, Any]:
    """Return a raw training config with what its `from_inference` names, and without that key.

    What the config says already, by an overlay or an override, wins: a value as a whole, but a mapping without
    `_target_`, as `network_def#channels` makes it in the placeholder `network_def: {}`, key by key into a component.

    Args:
        config: of train.yaml, merged with overlays and overrides or not; one without `from_inference` stays as it is.
        configs: the folder that train.yaml lies in, and inference.yaml beside it.
    Raises:
        BundleError: if there is no inference.yaml, or a name is not in it; the message lists all such names.
    """
    if KEY not in config:
        return dict(config)
    names = config[KEY]
    path = configs / INFERENCE
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise BundleError(f"{configs / 'train.yaml'}: {KEY} is {names!r}; a list of keys of {INFERENCE} is expected.")
    if not path.is_file():
        raise BundleError(
            f"{path}: no such file, but train.yaml takes {', '.join(names)} from it ({KEY}); put the bundle's "
            "inference.yaml beside its train.yaml."
        )
    shared = ConfigParser.load_config_file(str(path))
    missing = [name for name in names if name not in shared]
    if missing:
        raise BundleError(
            f"{path}: it has no {', '.join(missing)}, which train.yaml takes from it ({KEY}); add what is missing, or "
            f"write it in train.yaml and take it out of {KEY}."
        )
    result = {key: value for key, value in config.items() if key != KEY}
    for name in names:
        result[name] = _merged(shared[name], result[name]) if name in result else shared[name]
    return result


def _merged(base: Any, given: Any) -> Any:
    """Return `given`, put into the component `base` key by key where it is only a part of one."""
    partial = isinstance(given, Mapping) and "_target_" not in given
    if not (partial and isinstance(base, Mapping) and "_target_" in base):
        return given
    return {**base, **{key: _merged(base.get(key), value) for key, value in given.items()}}
