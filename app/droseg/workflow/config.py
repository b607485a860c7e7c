"""Raw bundle configs as nested dicts: ids, unknown keys, and what differs between two of them."""

from __future__ import annotations

import difflib
import inspect
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from pydoc import locate
from typing import Any

import yaml
from monai.bundle import ConfigParser
from monai.bundle.config_item import ComponentLocator

from droseg.errors import InputError

SUFFIXES = (".yaml", ".yml", ".json")


def config_files(folder: Path) -> list[Path]:
    """Return the config files of a bundle's `configs/` folder, without its metadata."""
    return sorted(p for p in folder.iterdir() if p.suffix in SUFFIXES and p.stem != "metadata")


def load_config(files: Sequence[Path], overrides: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Return the raw config of several files merged in order, as MONAI merges them, with overrides on top."""
    parser = ConfigParser()
    parser.read_config([str(file) for file in files])
    for key, value in (overrides or {}).items():
        parser[key] = value
    return without_metadata(parser.get())


def known_configs(files: Sequence[Path]) -> list[dict[str, Any]]:
    """Return each file's own content, unmerged: an overlay's `a#b` needs no `a` in the same file."""
    return [ConfigParser.load_config_file(str(file)) for file in files]


def without_metadata(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the config without what `ConfigParser` adds from `metadata.json`."""
    return {key: value for key, value in config.items() if key != ConfigParser.meta_key}


def dump_config(config: Mapping[str, Any], path: Path, header: str) -> None:
    """Write a config as YAML with a comment above it."""
    text = yaml.safe_dump(dict(config), sort_keys=False, width=110, allow_unicode=True, default_flow_style=None)
    path.write_text("".join(f"# {line}\n" for line in header.splitlines()) + text)


def walk(config: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield (id, value) of everything in a config, parents first; ids are joined by `#`."""
    pairs: Iterator[tuple[Any, Any]] | enumerate[Any]
    if isinstance(config, Mapping):
        pairs = iter(config.items())
    elif isinstance(config, list):
        pairs = enumerate(config)
    else:
        return
    for key, value in pairs:
        own = str(key).lstrip("+").replace("::", "#")  # an overlay writes +a#b to append, MONAI also a::b
        name = f"{prefix}#{own}" if prefix else own
        yield name, value
        yield from walk(value, name)


def check_keys(config: Mapping[str, Any], known: Sequence[Mapping[str, Any]]) -> None:
    """Refuse keys that no config file of the bundle has and nothing refers to: MONAI accepts them silently.

    Args:
        config: the config with all overrides.
        known: the bundle's own config files.
    Raises:
        InputError: naming every such key and the nearest existing one.
    """
    ids = {name for one in known for name, _ in walk(one)}
    values = {name: value for one in known for name, value in walk(one)}
    referred = set()
    for _, value in walk(config):
        if isinstance(value, str):
            referred |= {name.replace("::", "#") for name in re.findall(r"@([\w#:]+)", value)}
    wrong: list[str] = []
    for name, _ in walk(config):
        parent, _, last = name.rpartition("#")
        if name in ids or name in referred or last.startswith("_") or any(name.startswith(f"{w}#") for w in wrong):
            continue
        if parent and (parent not in ids or _accepts(_lookup(config, parent), values.get(parent), last)):
            continue
        wrong.append(name)
    if wrong:
        raise InputError("\n".join(_no_such_key(name, ids, config) for name in wrong))


def _accepts(parent: Any, known_parent: Any, key: str) -> bool:
    """Whether a new key under an existing parent means something there."""
    if isinstance(parent, list):
        return True
    if "_target_" in parent:
        return key in _parameters(parent["_target_"]) or "**" in _parameters(parent["_target_"])
    # A mapping of plain values, such as structures, holds the user's own names; one that the bundle has as null, too.
    return known_parent is None or (isinstance(known_parent, Mapping) and all(map(_is_plain, known_parent.values())))


def _is_plain(value: Any) -> bool:
    items = value if isinstance(value, list) else [value]
    return not any(isinstance(item, Mapping | list) for item in items)


def _lookup(config: Any, name: str) -> Any:
    for part in name.split("#"):
        config = config[int(part)] if isinstance(config, list) else config[part]
    return config


def _parameters(target: str) -> set[str]:
    """Return the parameter names of a component's target; "**" if it takes any, or cannot be looked at.

    A class that hands `**kwargs` on to its base takes the parameters of the base.
    """
    module = ComponentLocator().get_component_module_name(target)
    found = locate(f"{module}.{target}" if isinstance(module, str) else target)
    names: set[str] = set()
    for part in found.__mro__ if isinstance(found, type) else (found,):
        if isinstance(found, type) and "__init__" not in vars(part):
            continue
        try:
            parameters = inspect.signature(part.__init__ if isinstance(part, type) else part).parameters  # type: ignore[misc, arg-type]
        except (TypeError, ValueError):
            return {"**"}
        names |= {name for name, p in parameters.items() if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)}
        if not any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
            return names
    return {*names, "**"}


def _no_such_key(name: str, ids: set[str], config: Mapping[str, Any]) -> str:
    parent, _, _last = name.rpartition("#")
    holder = _lookup(config, parent) if parent else config
    arguments = (
        _parameters(holder["_target_"]) - {"**"} if isinstance(holder, Mapping) and "_target_" in holder else set()
    )
    siblings = {i for i in ids if i.rpartition("#")[0] == parent} | {f"{parent}#{argument}" for argument in arguments}
    near = difflib.get_close_matches(name, sorted(siblings), n=1, cutoff=0.6)
    near = near or difflib.get_close_matches(name, sorted(ids), n=1, cutoff=0.4)
    hint = f"did you mean {near[0]}?" if near else "the keys are in the bundle's configs/*.yaml."
    return f"there is no key {name}: {hint}"


def differences(old: Mapping[str, Any], new: Mapping[str, Any], ignore: Sequence[str]) -> list[str]:
    """Return one line per key whose value differs, `key: old -> new`; the shortest ids that tell it."""
    lines = []
    for key in sorted(set(old) | set(new)):
        if key not in ignore:
            lines += _differences(old.get(key), new.get(key), key)
    return lines


def _differences(old: Any, new: Any, name: str) -> list[str]:
    if old == new:
        return []
    if isinstance(old, Mapping) and isinstance(new, Mapping) and set(old) == set(new):
        return [line for key in old for line in _differences(old[key], new[key], f"{name}#{key}")]
    if isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        return [
            line for i, pair in enumerate(zip(old, new, strict=True)) for line in _differences(*pair, f"{name}#{i}")
        ]
    return [f"{name}: {_short(old)} -> {_short(new)}"]


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 90 else f"{text[:87]}..."
