"""metadata.json of a planned bundle, by MONAI's schema."""

from __future__ import annotations

import copy
import importlib.metadata
from typing import Any

import monai
import numpy as np
import torch

from droseg import __version__
from droseg.plan.choose import Plan
from droseg.plan.template import Template

REFERENCES = (
    "Isensee F. et al. nnU-Net: a self-configuring method for deep learning-based biomedical image segmentation. "
    "Nature Methods, 2021. https://doi.org/10.1038/s41592-020-01008-z",
    "Fidon L. et al. Distributionally Robust Deep Learning using Hardness Weighted Sampling. Machine Learning for "
    "Biomedical Imaging (MELBA), 2022. arXiv:2001.02658",
)


def planned_metadata(plan: Plan, template: Template, name: str) -> dict[str, Any]:
    """Return the metadata: what the plan knows; what only its owner knows says so."""
    channels, structures = plan["channels"], plan["structures"]
    sizes = [f"{edge}*n" for edge in plan.fit.topology.divisor]
    over = "the voxels that are not 0" if plan.masked else "the volume"
    regions = template.regions
    outputs = [*structures] if regions else ["background", *structures]
    numbers = {name: ", ".join(map(str, v if isinstance(v, list) else [v])) for name, v in structures.items()}
    if regions:
        label = f"label map of overlapping regions: {', '.join(f'{name} ({v})' for name, v in numbers.items())}"
    else:
        label = f"label map: 0 background, {', '.join(f'{v} {name}' for name, v in numbers.items())}"
    tensor = {"type": "image", "spatial_shape": sizes, "dtype": "float32", "value_range": [], "is_patch_data": True}
    image = {
        **tensor,
        "format": "magnitude",
        "modality": "MR",
        "num_channels": len(channels),
        "channel_def": {
            str(i): f"{channel}, zero mean and unit variance over {over}" for i, channel in enumerate(channels)
        },
    }
    pred = {
        **tensor,
        "format": "segmentation",
        "num_channels": len(outputs),
        "channel_def": {str(i): output for i, output in enumerate(outputs)},
    }
    packages = {"droseg": __version__}
    for package in ("nibabel", "pytorch-ignite", "tensorboard"):
        packages[package] = importlib.metadata.version(package)
    return {
        "schema": template.metadata.get("schema", ""),
        "version": "0.1.0",
        "changelog": {"0.1.0": f"planned by droseg {__version__} from {len(plan.fingerprint.cases)} training cases"},
        "monai_version": monai.__version__,
        "pytorch_version": torch.__version__.partition("+")[0],
        "numpy_version": np.__version__,
        "required_packages_version": packages,
        "supported_apps": copy.deepcopy(template.metadata.get("supported_apps", {})),
        "name": name,
        "task": f"Segmentation of {', '.join(structures)} in {', '.join(channels)} MRI",
        "description": f"A 3D U-Net, planned from the data, for {', '.join(structures)} in {', '.join(channels)} MRI.",
        "authors": "(not given: say who trained it on which data)",
        "copyright": "(not given)",
        "data_source": "(not given)",
        "data_type": "nibabel",
        "image_classes": f"{len(channels)} channel{'s' * (len(channels) > 1)}: {', '.join(channels)}",
        "label_classes": label,
        "pred_classes": label,
        "eval_metrics": {},
        "intended_use": "Research on robust segmentation. Not a medical device; not for clinical use.",
        "references": list(REFERENCES),
        "network_data_format": {"inputs": {"image": image}, "outputs": {"pred": pred}},
    }
