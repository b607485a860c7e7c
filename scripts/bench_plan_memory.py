"""The memory that `droseg bundle new` estimates for a training, beside what a CUDA device really takes.

    python scripts/bench_plan_memory.py [--bundle BUNDLE ...]

Runs three steps (forward, loss, backward, AdamW) of each network with random numbers and prints a line for each:

- estimated: `droseg.plan.memory.training_bytes`, which has a factor `WORKSPACE` for scratch memory in it;
- allocated: the peak of all tensors (`torch.cuda.max_memory_allocated`); without that factor the estimate is of this;
- reserved: the peak of what PyTorch took from the device, scratch memory and gaps included.

The estimate must not be below `reserved` (then a planned training may run out of memory), and not far above it (then a
plan wastes memory). The process itself takes some more, `CONTEXT_BYTES`, which is the difference between what the
driver says is used and `reserved`. With --bundle, networks, patches and batches of planned bundles are measured instead
of the built-in ones. Takes a minute and up to 12 GB.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import yaml
from monai.bundle import ConfigParser
from torch import nn

from droseg.bundles import find_bundle
from droseg.engine import channels_last
from droseg.inference.shared_choices import with_shared
from droseg.losses import PerCaseDiceCELoss
from droseg.plan.memory import CONTEXT_BYTES, WORKSPACE, training_bytes
from droseg.plan.topology import find_topology, network_config

GB = 2**30
CASES = (  # name, spacing in mm, patch, channels, classes, batch size
    ("hippocampus", (1, 1, 1), (40, 56, 40), 1, 3, 4),
    ("hippocampus, large batch", (1, 1, 1), (40, 56, 40), 1, 3, 32),
    ("fetal brain", (0.8, 0.8, 0.8), (112, 128, 112), 1, 9, 2),
    ("tumor", (1, 1, 1), (128, 128, 128), 4, 4, 2),
    ("thick slices", (0.8, 0.8, 5), (192, 224, 20), 2, 3, 2),
)
Row = tuple[str, Callable[[], nn.Module], tuple[int, ...], int, int]


def built_in() -> list[Row]:
    """Return (name, network, patch, channels, batch size) of typical data."""
    rows: list[Row] = []
    for name, spacing, patch, channels, classes, batch_size in CASES:
        topology = find_topology(spacing, patch)
        like = {"_target_": "UNet", "spatial_dims": 3, "in_channels": channels, "out_channels": classes}
        like |= {"num_res_units": 2, "norm": ["INSTANCE", {"affine": True}], "act": "LEAKYRELU"}
        config = network_config(topology, like)
        rows.append((f"{name} ({config['_target_']})", maker(config), topology.patch, channels, batch_size))
    return rows


def of_bundle(name: str) -> Row:
    """Return the same of a bundle."""
    configs = Path(find_bundle(name)) / "configs"
    config = with_shared(yaml.safe_load((configs / "train.yaml").read_text()), configs)
    make = maker(config["network_def"], channels=config["channels"], structures=config["structures"])
    return name, make, tuple(config["roi_size"]), len(config["channels"]), config["batch_size"]


def maker(network_def: dict[str, Any], **values: Any) -> Callable[[], nn.Module]:
    """Return a function that makes the network."""

    def make() -> nn.Module:
        network: nn.Module = ConfigParser({"network_def": network_def, **values}).get_parsed_content("network_def")
        return network

    return make


def real_peak(
    network: nn.Module, patch: tuple[int, ...], channels: int, batch_size: int, bf16: bool
) -> tuple[int, int]:
    """Return (allocated, reserved) bytes of three training steps on the GPU."""
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    network = channels_last(network, "cuda")
    optimizer, loss = torch.optim.AdamW(network.parameters()), PerCaseDiceCELoss()
    for _ in range(3):
        image = torch.randn(batch_size, channels, *patch, device="cuda")
        with torch.autocast("cuda", dtype=torch.bfloat16, enabled=bf16):
            logits = network(image.contiguous(memory_format=torch.channels_last_3d))
        label = torch.randint(logits.shape[1], (batch_size, 1, *patch), device="cuda")
        loss(logits.float(), label).mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated(), torch.cuda.max_memory_reserved()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", nargs="+", default=[], help="bundles to measure instead")
    args = parser.parse_args()
    if not torch.cuda.is_available():
        parser.exit(
            2, "no CUDA device here; the estimate alone is compared with PyTorch's own tracker by tests/plan.\n"
        )
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}; GB of 2^30 bytes; WORKSPACE {WORKSPACE}")
    print(f"{'network':40} {'patch':>16} {'batch':>5} {'':5} {'estimated':>9} {'allocated':>9}", end="")
    print(f" {'reserved':>9} {'ratio':>6}")
    for name, make, patch, channels, batch_size in [of_bundle(b) for b in args.bundle] or built_in():
        for bf16 in (False, True):
            with torch.device("meta"):
                estimated = training_bytes(make(), channels, patch, batch_size, bf16)
            allocated, reserved = real_peak(make(), patch, channels, batch_size, bf16)
            shown = " x ".join(map(str, patch))
            sizes = " ".join(f"{size / GB:9.2f}" for size in (estimated, allocated, reserved))
            kind = "bf16" if bf16 else "fp32"
            print(f"{name:40} {shown:>16} {batch_size:5} {kind:5} {sizes} {estimated / reserved:6.2f}", flush=True)
    free, total = torch.cuda.mem_get_info()
    own = total - free - torch.cuda.memory_reserved()
    print(
        f"in use besides (this process' context and other programs): {own / GB:.2f}; assumed {CONTEXT_BYTES / GB:.2f}"
    )


if __name__ == "__main__":
    main()
