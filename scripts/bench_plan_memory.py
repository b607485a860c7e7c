"""The memory that `droseg bundle new` estimates for a training, beside what a CUDA device really takes.

    python scripts/bench_plan_memory.py [--bundle BUNDLE ...]

Runs three steps (forward, the bundle's loss, backward, AdamW) of each network with random numbers and prints a line for
each:

- estimated: `droseg.plan.memory.StepMemory`, which has a factor `WORKSPACE` for scratch memory in it;
- allocated: the peak of all tensors (`torch.cuda.max_memory_allocated`); without that factor the estimate is of this;
- reserved: the peak of what PyTorch took from the device, scratch memory and gaps included.

The estimate must not be below `reserved` (then a planned training may run out of memory), and not far above it (then a
plan wastes memory). The process itself takes some more, `CONTEXT_BYTES`, which is the difference between what the
driver says is used and `reserved`. With --bundle, networks, patches and batches of planned bundles are measured instead
of the built-in ones. Takes a minute and up to 12 GB. Without a CUDA device it prints the estimates alone, says so, and
ends with the exit code 2.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
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
from droseg.losses.base import PerCaseLoss
from droseg.plan.memory import CONTEXT_BYTES, WORKSPACE, StepMemory
from droseg.plan.topology import Topology, find_topology, network_config

GB = 2**30
CASES = (  # name, spacing in mm, patch, channels, classes, batch size
    ("hippocampus", (1, 1, 1), (40, 56, 40), 1, 3, 4),
    ("hippocampus, large batch", (1, 1, 1), (40, 56, 40), 1, 3, 32),
    ("fetal brain", (0.8, 0.8, 0.8), (112, 128, 112), 1, 9, 2),
    ("tumor", (1, 1, 1), (128, 128, 128), 4, 4, 2),
    ("thick slices", (0.8, 0.8, 5), (192, 224, 20), 2, 3, 2),
)


@dataclass(frozen=True)
class Row:
    """A network with what a training step of it takes."""

    name: str
    make: Callable[[], nn.Module]
    patch: tuple[int, ...]
    channels: int
    batch_size: int
    loss: PerCaseLoss


def built_in() -> list[Row]:
    """Return the networks of typical data."""
    rows: list[Row] = []
    for name, spacing, patch, channels, classes, batch_size in CASES:
        topology = find_topology(spacing, patch)
        like = {"_target_": "UNet", "spatial_dims": 3, "in_channels": channels, "out_channels": classes}
        like |= {"num_res_units": 2, "norm": ["INSTANCE", {"affine": True}], "act": "LEAKYRELU"}
        config = network_config(topology, like)
        name = f"{name} ({config['_target_']})"
        rows.append(Row(name, maker(config), topology.patch, channels, batch_size, PerCaseDiceCELoss()))
    return rows


def of_bundle(name: str) -> Row:
    """Return the network of a bundle, with the loss of its training."""
    configs = Path(find_bundle(name)) / "configs"
    config = with_shared(yaml.safe_load((configs / "train.yaml").read_text()), configs)
    make = maker(config["network_def"], channels=config["channels"], structures=config["structures"])
    loss: PerCaseLoss = ConfigParser(config).get_parsed_content("train#loss")
    return Row(name, make, tuple(config["roi_size"]), len(config["channels"]), config["batch_size"], loss)


def maker(network_def: dict[str, Any], **values: Any) -> Callable[[], nn.Module]:
    """Return a function that makes the network."""

    def make() -> nn.Module:
        network: nn.Module = ConfigParser({"network_def": network_def, **values}).get_parsed_content("network_def")
        return network

    return make


def estimate(row: Row, bf16: bool) -> int:
    """Return what `droseg bundle new` takes a training of the network for, in bytes."""

    def on_meta(_: Topology) -> nn.Module:
        with torch.device("meta"):
            return row.make()

    memory = StepMemory(on_meta, row.channels, bf16, row.loss)
    return memory(Topology((), (), row.patch), row.batch_size)


def real_peak(row: Row, bf16: bool) -> tuple[int, int]:
    """Return (allocated, reserved) bytes of three training steps on the GPU."""
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    train_steps(row, bf16, "cuda")
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated(), torch.cuda.max_memory_reserved()


def train_steps(row: Row, bf16: bool, device: str) -> None:
    """Train the network with random numbers for three steps."""
    network = channels_last(row.make(), device)
    optimizer = torch.optim.AdamW(network.parameters())
    for _ in range(3):
        image = torch.randn(row.batch_size, row.channels, *row.patch, device=device)
        with torch.autocast(device, dtype=torch.bfloat16, enabled=bf16):
            logits = network(image.contiguous(memory_format=torch.channels_last_3d))
        outputs = logits.shape[1]
        channels, values = (outputs, 2) if row.loss.sigmoid else (1, outputs)  # masks of regions, or a label map
        label = torch.randint(values, (row.batch_size, channels, *row.patch), device=device)
        row.loss(logits.float(), label).mean().backward()
        optimizer.step()
        optimizer.zero_grad()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", nargs="+", default=[], help="bundles to measure instead")
    args = parser.parse_args()
    gpu = torch.cuda.is_available()
    device = torch.cuda.get_device_name() if gpu else "no CUDA device"
    print(f"{device}, torch {torch.__version__}; GB of 2^30 bytes; WORKSPACE {WORKSPACE}")
    print(f"{'network':40} {'patch':>16} {'batch':>5} {'':5} {'estimated':>9} {'allocated':>9}", end="")
    print(f" {'reserved':>9} {'ratio':>6}")
    for row in [of_bundle(b) for b in args.bundle] or built_in():
        for bf16 in (False, True):
            estimated = estimate(row, bf16)
            measured = real_peak(row, bf16) if gpu else ()
            shown = " x ".join(map(str, row.patch))
            sizes = " ".join(f"{size / GB:9.2f}" for size in (estimated, *measured))
            ratio = f" {estimated / measured[1]:6.2f}" if measured else ""
            kind = "bf16" if bf16 else "fp32"
            print(f"{row.name:40} {shown:>16} {row.batch_size:5} {kind:5} {sizes}{ratio}", flush=True)
    if not gpu:
        parser.exit(
            2,
            "Nothing was measured, for that needs a CUDA device. tests/plan compares the estimate with PyTorch's own "
            "tracker on the CPU.\n",
        )
    free, total = torch.cuda.mem_get_info()
    own = total - free - torch.cuda.memory_reserved()
    print(
        f"in use besides (this process' context and other programs): {own / GB:.2f}; assumed {CONTEXT_BYTES / GB:.2f}"
    )


if __name__ == "__main__":
    main()
