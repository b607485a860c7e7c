"""Writes a planned bundle: configs, metadata, card, license, and the plan itself for other programs."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import yaml

from droseg import __version__
from droseg.engine.run_folder import replace_text
from droseg.errors import BundleError, InputError
from droseg.inference.shared_choices import KEY, with_shared
from droseg.plan.card import card_text
from droseg.plan.choose import OF_PATHS, WITHIN, Plan
from droseg.plan.configs import inference_text, shared_keys, train_text
from droseg.plan.metadata import planned_metadata
from droseg.plan.template import OVERLAYS, Template


def check_target(out: Path, overwrite: bool) -> None:
    """Refuse a folder that cannot be written, or holds something, unless it is a planned bundle to be replaced.

    Raises:
        InputError: with what to do.
    """
    # The bundle is made beside OUT and then moved, so the folder that OUT lies in is written, too.
    present = next(folder for folder in out.absolute().parents if os.path.exists(folder))
    for folder in (present, *([out] if os.path.isdir(out) else [])):
        if not folder.is_dir():
            raise InputError(f"{out}: cannot be written, {folder} is a file; give another folder.")
        if not os.access(folder, os.W_OK | os.X_OK):
            raise InputError(f"{out}: cannot be written, {folder} is write-protected; give another folder.")
    if out.exists() and not out.is_dir():
        raise InputError(f"{out}: is a file; give a folder.")
    if not out.is_dir() or not any(out.iterdir()):
        return
    if not overwrite:
        raise InputError(f"{out}: exists and is not empty; give another folder, or --overwrite to plan it anew.")
    if not (out / "plan.json").is_file():
        raise InputError(
            f"{out}: not a planned bundle (no plan.json), so --overwrite leaves it alone; give another folder."
        )
    if any((out / "models").glob("*.pt")):
        raise InputError(f"{out}: holds weights in models/, which another plan would not fit; give another folder.")


def write_bundle(plan: Plan, template: Template, out: Path) -> None:
    """Write the bundle; the folder appears complete or not at all, except for `--overwrite`'s own files.

    Raises:
        BundleError: if the followed bundle's text does not take the choices.
    """
    name = out.resolve().name
    texts = {
        "configs/inference.yaml": inference_text(plan, template),
        "configs/train.yaml": train_text(plan, template, name),
        "configs/metadata.json": json.dumps(planned_metadata(plan, template, name), indent=2, ensure_ascii=False)
        + "\n",
        "docs/README.md": card_text(plan, template, name),
        "plan.json": json.dumps(plan_record(plan, template), indent=2, ensure_ascii=False) + "\n",
        "models/.gitkeep": "",
    }
    copies = {f"configs/{file}": template.folder / "configs" / file for file in OVERLAYS}
    copies["LICENSE"] = template.folder / "LICENSE"
    _check(texts, plan, template)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{name}.") as made:
            for file, text in texts.items():
                replace_text(Path(made) / file, text)
            for file, source in copies.items():
                if source.is_file():
                    shutil.copyfile(source, Path(made) / file)
            shutil.copytree(made, out, dirs_exist_ok=True)
    except OSError as error:
        raise InputError(f"{out}: cannot be written ({error.strerror}); give another folder.") from error


def plan_record(plan: Plan, template: Template) -> dict[str, Any]:
    """Return the plan for other programs; it names no case, and no folder of this machine."""
    fingerprint = plan.fingerprint
    return {
        "droseg": __version__,
        "like": template.folder.name,
        "datalist": plan.datalist.path.name,
        "training_cases": len(fingerprint.cases),
        "memory_bytes": plan.budget.memory,
        "needed_bytes": plan.fit.needed,
        "bf16": plan.budget.bf16,
        "choices": {
            choice.key: {
                "value": choice.value,
                "reason": choice.reason,
                "file": f"{choice.place}.yaml",
                "within": WITHIN.get(choice.key),
            }
            for choice in plan.choices
            if choice.key not in OF_PATHS
        },
        "notes": list(plan.notes),
    }


def _check(texts: dict[str, str], plan: Plan, template: Template) -> None:
    """Refuse texts that do not say what the plan says, or change what it does not plan."""
    inference = yaml.safe_load(texts["configs/inference.yaml"])
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "inference.yaml").write_text(texts["configs/inference.yaml"], encoding="utf-8")
        raw = yaml.safe_load(texts["configs/train.yaml"])
        train = with_shared(raw, Path(folder))
    wrong = []
    for choice in plan.choices:
        said = inference if choice.place == "inference" else train
        if choice.key in said and said[choice.key] != choice.value:
            wrong.append(f"{choice.key} is {said[choice.key]!r}, not {choice.value!r}")
    doubled = [key for key in shared_keys(template) if key in raw and key != "network_def"]
    wrong += [f"{key} stands in both configs" for key in doubled]
    if KEY not in raw:
        wrong.append(f"train.yaml lacks {KEY}")
    planned = {choice.key for choice in plan.choices}
    for said, before in ((inference, template.inference_config), (train, template.train_config)):
        wrong += [f"{key} is lost" for key in before if key not in said]
        partly = (
            "augmentation",
            "rivals",
            "train",
            "validate",
            "inferer",
            "deterministic_transforms",
            "output_dir",
            "sw_batch_size",
        )
        wrong += [
            f"{key} has changed"
            for key in said
            if key in before and key not in planned and key not in partly and said[key] != before[key]
        ]
    if wrong:
        raise BundleError(
            f"{template.folder}: its configs cannot be followed: {'; '.join(wrong)}. Choose another --like."
        )
