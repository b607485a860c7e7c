"""docs/README.md of a planned bundle: the plan as a table, the commands, and what was not planned."""

from __future__ import annotations

from typing import Any

import numpy as np

from droseg.inference.memory import GIB
from droseg.plan.choose import OF_PATHS, WITHIN, Choice, Plan
from droseg.plan.memory import CONTEXT_BYTES
from droseg.plan.template import Template
from droseg.plan.text import flow
from droseg.report.card import END, START


def shown(choice: Choice) -> str:
    """Return a choice's value for a table."""
    value: Any = choice.value
    if choice.key == "network_def":
        features = value.get("channels", value.get("filters"))
        return f"{value['_target_']}, features {flow(features)}, strides {flow(value['strides'])}"
    return flow(value)


def plan_rows(plan: Plan) -> list[tuple[str, str, str]]:
    """Return (choice, value, reason) of every choice but those of paths; a reason says in which key a part stands."""
    hidden = (*OF_PATHS, "first_epochs", "keep_largest")
    rows = []
    for choice in plan.choices:
        if choice.key not in hidden:
            place = f" (in {WITHIN[choice.key]})" if choice.key in WITHIN else ""
            rows.append((choice.key, shown(choice), choice.reason + place))
    return rows


def memory_line(plan: Plan) -> str:
    """Return what memory was assumed, and what the training is estimated to take."""
    budget = plan.budget
    precision = "bf16" if budget.bf16 else "fp32"
    total, taken = ((size + CONTEXT_BYTES) / GIB for size in (budget.memory, plan.fit.needed))
    return (
        f"memory: {total:.1f} GB ({budget.source}), computing in {precision} ({budget.precision_source}); the training "
        f"is estimated to take {taken:.1f} GB"
    )


def card_text(plan: Plan, template: Template, name: str) -> str:
    """Return the card."""
    structures = ", ".join(plan["structures"])
    rows = "\n".join(f"| `{key}` | {_cell(value)} | {_cell(reason)} |" for key, value, reason in plan_rows(plan))
    notes = "\n".join(f"- {note}" for note in plan.notes) or "- nothing"
    spacing, shapes = plan.fingerprint.per_case("spacing_mm"), plan.fingerprint.per_case("shape")
    size = " x ".join(f"{edge:.0f}" for edge in np.median(shapes, axis=0))
    edges = " x ".join(f"{edge:.3g}" for edge in np.median(spacing, axis=0))
    return f"""# {name}

Segments {structures} in {", ".join(plan["channels"])} MRI. Planned by `droseg bundle new` from
`{plan.datalist.path.name}` ({len(plan.fingerprint.cases)} training cases; median image {size} voxels of {edges} mm),
by the published heuristics of nnU-Net (Isensee et al. 2021, Nature Methods; version 2.8.1). What they do not plan
follows the bundle `{template.folder.name}`.

**Research software. Not a medical device; not for clinical use.**

## The plan

{memory_line(plan)[0].upper()}{memory_line(plan)[1:]}.

| choice | value | reason |
|---|---|---|
{rows}

Each choice stands once: what training and inference share in `configs/inference.yaml`, the rest in
`configs/train.yaml`. Change it there; or on the command line (`key=value`), but for what stands in a list of
transforms ("in augmentation", "in deterministic_transforms"). `plan.json` says the same to programs.

To look at:

{notes}

## Commands

From the folder that holds this bundle (`--datalist` is needed in other folders than that of the plan only):

```
droseg train {name} --datalist DATALIST --out RUN                            # plain (ERM)
droseg train {name} --datalist DATALIST --out RUN --objective hardness       # hardness-weighted
droseg predict IMAGE_OR_FOLDER --bundle RUN --out OUT
droseg evaluate --datalist DATALIST --bundle RUN --out SCORES
```

The same by MONAI alone:

```
python -m monai.bundle run training --config_file {name}/configs/train.yaml --datalist DATALIST --output_dir RUN
python -m monai.bundle run training --datalist DATALIST --output_dir RUN \\
  --config_file "['{name}/configs/train.yaml','{name}/configs/hardness.yaml']"
python -m monai.bundle run inference --config_file RUN/configs/inference.yaml --bundle_root RUN \\
  --dataset_dir IN --output_dir OUT
python -m monai.bundle run evaluating --config_file "['RUN/configs/inference.yaml','RUN/configs/evaluate.yaml']" \\
  --bundle_root RUN --datalist DATALIST --output_dir SCORES
```

## Not planned

Loss, optimizer, learning rate, the objective's settings, and the augmentation but for crops, flips and the turns of
thin patches: as in `{template.folder.name}`. Also not: cropping to the head, resampling thick slices differently along
the thick axis (nnU-Net's order 0), a second network at low resolution (nnU-Net's cascade), 2D networks, deep
supervision, mirroring at prediction by default, removal of small pieces (`keep_largest`), and a trial of several plans.
Authors, license and source of the data are yours to fill in, in `configs/metadata.json`.

## Results

{START}

None yet: `droseg report CASES.csv --model-card` puts them here.

{END}
"""


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
