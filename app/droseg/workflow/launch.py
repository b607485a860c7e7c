"""`droseg train` as the line of `python -m monai.bundle run` that does the same."""

from __future__ import annotations

import difflib
import logging
import os
import shlex
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from monai.bundle import run as monai_bundle_run

from droseg.errors import BundleError, InputError
from droseg.inference.shared_choices import KEY, with_shared
from droseg.workflow.config import check_keys, config_files, known_configs, load_config, walk
from droseg.workflow.run_config import INFERENCE, TRAIN


def overlay_file(bundle: Path, overlay: str) -> Path:
    """Return the config file of an overlay: a file, or the name of one in the bundle's `configs/`.

    Raises:
        BundleError: if there is none; the message lists those of the bundle.
    """
    for path in (
        Path(overlay),
        *(bundle / "configs" / f"{overlay}{suffix}" for suffix in ("", ".yaml", ".yml", ".json")),
    ):
        if path.is_file():
            return path
    names = ", ".join(file.stem for file in config_files(bundle / "configs"))
    raise BundleError(f"overlay {overlay}: no such file, and {bundle / 'configs'} has only {names}.")


def monai_line(configs: Sequence[Path], overrides: Mapping[str, Any]) -> str:
    """Return the shell line that runs these configs with these overrides."""
    files = [_short(path) for path in configs]
    words = ["python", "-m", "monai.bundle", "run", "training", "--config_file"]
    words.append(files[0] if len(files) == 1 else f"[{','.join(repr(file) for file in files)}]")
    for key, value in overrides.items():
        words += [f"--{key}", _short(Path(value)) if key == "bundle_root" else str(value)]
    return " ".join(_quoted(word) for word in words)


def _quoted(word: str) -> str:
    plain = not any(character in word for character in '"$`\\!')
    return f'"{word}"' if "'" in word and plain else shlex.quote(word)


def _short(path: Path) -> str:
    """Return the path as it is, or from the current folder if that is shorter."""
    relative = os.path.relpath(path)
    return relative if len(relative) < len(str(path)) else str(path)


def train(bundle: Path, overlays: Sequence[str] = (), overrides: Mapping[str, Any] | None = None) -> None:
    """Train a bundle: print the equivalent `monai.bundle` line, then run it in this process.

    Raises:
        BundleError, InputError: if the bundle cannot be trained or an override does not exist.
        SystemExit: as `start_training` says.
    """
    base = bundle / "configs" / TRAIN
    missing = [name for name in (TRAIN, INFERENCE, "metadata.json") if not (base.parent / name).is_file()]
    if missing:
        raise BundleError(f"bundle {bundle}: it has no configs/{', configs/'.join(missing)}, so it cannot be trained.")
    configs = [base, *(overlay_file(bundle, overlay) for overlay in overlays)]
    # monai.bundle drops overrides that are None; an expression that is None stays.
    given = {key: "$None" if value is None else value for key, value in (overrides or {}).items()}
    all_overrides = {"bundle_root": str(bundle), **given}
    known = known_configs([*config_files(bundle / "configs"), *configs])
    check_keys(_with_overrides(configs, all_overrides), known)
    if os.environ.get("RANK", "0") == "0":  # torchrun's; the processes have not joined yet
        print(f"the same by MONAI: {monai_line(configs, all_overrides)}", flush=True)
    for name in ("monai.bundle.scripts", "monai.bundle.workflows"):
        logging.getLogger(name).setLevel(logging.WARNING)  # its summary of the arguments is the line just printed
    with warnings.catch_warnings():
        # "parsing config_file ... may run arbitrary code": whoever names a bundle here has chosen to run it.
        warnings.filterwarnings("ignore", message="parsing config_file")
        monai_bundle_run(run_id="training", config_file=[str(path) for path in configs], **all_overrides)


def _with_overrides(configs: Sequence[Path], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Return the merged config with the overrides; an id whose parent does not exist cannot be set."""
    folder = configs[0].parent
    try:
        return with_shared(load_config(configs, overrides), folder)
    except (KeyError, ValueError, IndexError, TypeError):
        raw = load_config(configs)
        for key, value in overrides.items():
            try:
                load_config(configs, {key: value})
            except (KeyError, ValueError, IndexError, TypeError) as error:
                name = key.replace("::", "#").partition("#")[0]
                if name in raw.get(KEY, ()):
                    raise InputError(
                        f"{key}: train.yaml takes {name} from {folder / INFERENCE}; change it there, or give all of "
                        f"{name}='...'."
                    ) from error
                ids = [name for name, _ in walk(raw)]
                near = difflib.get_close_matches(key, ids, n=1, cutoff=0.4)
                hint = f"did you mean {near[0]}?" if near else f"the keys are in {configs[0].parent}."
                raise InputError(f"there is no key {key}: {hint}") from error
        raise
