"""The text of the two configs of a planned bundle: the followed bundle's, with the choices of the plan in it."""

from __future__ import annotations

import re
import textwrap

from droseg.inference.shared_choices import KEY
from droseg.plan.choose import WITHIN, Choice, Plan, size_text
from droseg.plan.template import Template
from droseg.plan.text import WIDTH, ConfigText, change_items, flow, set_leaf, setting, wrapped

SHARED = (
    *("channels", "structures", "spacing_mm", "roi_size", "sw_overlap", "sw_batch_size", "mirror_axes"),
    *("network_def", "deterministic_transforms"),
)
"""What train.yaml takes from inference.yaml; keys that the followed bundle shares besides join them."""
ALSO_SHARED = ("missing_channels", "region_values")
_CROPS = ("RandSpatialCropd", "RandCropByLabelClassesd", "RandCropByPosNegLabeld")
FEW_STRUCTURES = 3
"""More have a line each."""

FLIPS = "".join(
    f"""\
  - _target_: RandFlipd
    keys: [image, label]
    spatial_axis: {axis}
    prob: 0.5
    _disabled_: ${axis} not in @mirror_axes
"""
    for axis in range(3)
)
"""One each, since a single flip along several axes turns all of them at once."""
UNIFORM_CROP = """\
  - _target_: RandSpatialCropd
    keys: [image, label]
    roi_size: "@roi_size"
    random_size: false
"""
CLASS_CROP = """\
  - _target_: RandCropByLabelClassesd
    keys: [image, label]
    label_key: label
    spatial_size: "@roi_size"
    num_classes: $len(@structures) + 1
    num_samples: 1
    warn: false
"""

INFERENCE_HEAD = """\
# Planned by `droseg bundle new`; the comments say why. What training, evaluation and inference share stands here and
# only here: train.yaml takes it by `from_inference`, evaluate.yaml is an overlay on this file.
# Segment a folder of NIfTI images, each on its own grid:
#   python -m monai.bundle run inference --config_file configs/inference.yaml --dataset_dir IN --output_dir OUT
# `droseg predict IN --bundle . --out OUT` does the same, goes on after a bad file and skips what is done.
"""
TRAIN_HEAD = """\
# Planned by `droseg bundle new`; the comments say why. Every key can be overridden on the command line,
# nested ones by a#b:
#   python -m monai.bundle run training --config_file configs/train.yaml --output_dir RUN --epochs 20
# `droseg train BUNDLE --out RUN epochs=20` prints and runs that line.
# Hardness-weighted training: add configs/hardness.yaml to --config_file, or --objective hardness.
"""


def shared_keys(template: Template) -> list[str]:
    """Return what train.yaml takes from inference.yaml."""
    return [*SHARED, *(key for key in ALSO_SHARED if key in template.inference_config)]


def inference_text(plan: Plan, template: Template) -> str:
    """Return inference.yaml."""
    text = ConfigText(template.inference)
    text.head(INFERENCE_HEAD)
    text.remove_comments(r"# -{2,} what (the network sees|`droseg predict` may do)")
    text.remove_comments("`label` is missing here")
    previous = "device"
    for choice in plan.of("inference"):
        if choice.key in WITHIN:
            continue
        text.set(choice.key, _block(choice, plan), after=previous)
        previous = choice.key
    text.change("deterministic_transforms", lambda block: _normalized(block, plan))
    text.change("inferer", lambda block: set_leaf(block, ("inferer", "sw_batch_size"), '"@sw_batch_size"'))
    return str(text)


def train_text(plan: Plan, template: Template, name: str) -> str:
    """Return train.yaml.

    Args:
        plan: the choices.
        template: the bundle that is followed.
        name: of the bundle, for the run folder.
    """
    text = ConfigText(template.train)
    text.head(TRAIN_HEAD)
    text.remove_comments(r"# -{2,} what the network sees")
    shared = shared_keys(template)
    text.remove(KEY, *(key for key in shared if key != "network_def"))
    placeholder = "{} # of inference.yaml; network_def#channels=[...] overrides a part of it"
    text.set("network_def", f"network_def: {placeholder}", after="carry_over_history")
    names = textwrap.fill(flow(shared), WIDTH - 2, initial_indent="  ", subsequent_indent="   ")
    text.set(
        KEY, f"{KEY}: # keys that inference.yaml says, for training as for inference\n{names}", before="network_def"
    )
    text.set("output_dir", setting("output_dir", f"runs/{name}", "the run folder, which is a bundle itself"))
    previous = "output_dir"
    for choice in plan.of("train"):
        if choice.key in WITHIN:
            continue
        text.set(choice.key, setting(choice.key, choice.value, choice.reason), after=previous)
        previous = choice.key
    first = f"{plan['first_epochs']} # {plan.reason('first_epochs')}"
    text.change("rivals", lambda block: set_leaf(block, ("rivals", "jtt", "first_epochs"), first))
    text.change("augmentation", lambda block: _augmentation(block, plan))
    text.change(
        "validate", lambda b: set_leaf(b, ("validate", "inferer", "inferer", "sw_batch_size"), '"@sw_batch_size"')
    )
    for key, name in (("train", "volumes"), ("validate", "dataset")):
        if template.train_config[key].get(name, {}).get("_target_") == "CacheDataset":
            path = key, name, "cache_rate"
            text.change(key, lambda block, path=path: set_leaf(block, path, '"@cache_rate"'))  # type: ignore[misc]
    return str(text)


def _block(choice: Choice, plan: Plan) -> str:
    """Return a choice as a block; of a network and of many structures one line each."""
    if choice.key == "network_def":
        first = f"{wrapped(choice.reason)}{choice.key}:"
        notes = {"out_channels": " # background first"} if "+ 1" in str(choice.value["out_channels"]) else {}
    elif choice.key == "structures" and len(choice.value) > FEW_STRUCTURES:
        first = f"{choice.key}: # name: value in label maps, of the datalist; median volumes"
        notes = {name: f" # {size_text(plan.fingerprint, name)}" for name in choice.value}
    else:
        return setting(choice.key, choice.value, choice.reason)
    lines = [f"  {flow(key)}: {flow(value)}{notes.get(key, '')}" for key, value in choice.value.items()]
    return "\n".join([first, *lines])


def _normalized(block: str, plan: Plan) -> str:
    """Return `deterministic_transforms` with the normalization of the plan."""

    def change(kind: str, item: str) -> str:
        if kind != "NormalizeIntensityd":
            return item
        lines = [f"  - _target_: {kind}", "    keys: image"]
        lines += ["    nonzero: true"] if plan.masked else []
        return f"{wrapped(plan.reason('normalization'), 2)}{chr(10).join([*lines, '    channel_wise: true'])}\n"

    return change_items(block, change)


def _augmentation(block: str, plan: Plan) -> str:
    """Return `augmentation` with the crop, the turns and the flips of the plan, in the place of the first flip."""
    flips = []

    def change(kind: str, item: str) -> str:
        if kind == "RandFlipd":
            flips.append(item)
            return FLIPS if len(flips) == 1 else ""
        if kind in _CROPS:
            return _crop(plan)
        return _affine(item, plan) if kind == "RandAffined" else item

    return change_items(block, change)


def _crop(plan: Plan) -> str:
    comment = wrapped(plan.reason("crop"), 2)
    return comment + (UNIFORM_CROP if plan["crop"] == "uniform" else CLASS_CROP)


def _affine(item: str, plan: Plan) -> str:
    for key in ("rotate_range", "scale_range", "translate_range"):
        line = setting(key, plan[key], plan.reason(key), indent=4) + "\n"
        if key == "translate_range" and not any(plan[key]):
            line = ""
        pattern = rf"^ +{key}:.*\n"
        if re.search(pattern, item, flags=re.MULTILINE):
            item = re.sub(pattern, lambda _found, line=line: line, item, flags=re.MULTILINE)  # type: ignore[misc]
        elif line:
            item = item.rstrip("\n") + f"\n{line}"
    return item
