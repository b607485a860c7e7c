"""Mixed precision where the hardware has it, on CPUs too."""

from __future__ import annotations

import os
from typing import Any, Literal

import torch
from monai.data import MetaTensor
from monai.inferers import Inferer
from torch import Tensor, nn

from droseg.errors import InputError

Precision = Literal["auto", "bf16", "fp32"]


def has_fast_bf16(device: torch.device) -> bool:
    """Return whether bfloat16 products run in hardware there: CUDA from Ampere on; x86 CPUs with AMX or AVX-512 BF16.

    A training of the phantoms takes 1.4 times as many steps per second with AVX-512 BF16 alone (AMD Zen 4, two cores).
    """
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    checks = (getattr(torch.cpu, name, None) for name in ("_is_amx_tile_supported", "_is_avx512_bf16_supported"))
    return device.type == "cpu" and any(check() for check in checks if check is not None)


def own_device() -> torch.device:
    """Return the GPU of this process on its machine (`LOCAL_RANK`, which torchrun sets), or the CPU.

    It becomes CUDA's current device: NCCL sends Python objects by that one, and it is cuda:0 on every rank otherwise.
    """
    if not torch.cuda.is_available():
        return torch.device("cpu")
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    torch.cuda.set_device(device)
    return device


def choose_device(name: str) -> torch.device:
    """Return the device that somebody named: "cpu", "cuda", "cuda:1", ..., or "auto" for a GPU where there is one.

    Raises:
        InputError: if it is not there.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise InputError(f"device {name}: there is no such device; use cpu, cuda or auto.") from error
    if device.type not in ("cpu", "cuda"):
        raise InputError(f"device {name}: droseg computes on cpu and cuda only; use cpu, cuda or auto.")
    if device.type == "cuda" and (not torch.cuda.is_available() or (device.index or 0) >= torch.cuda.device_count()):
        raise InputError(
            f"device {name}: PyTorch finds {torch.cuda.device_count()} CUDA device(s) here; use --device cpu."
        )
    return device


def channels_last(network: nn.Module, device: torch.device | str) -> nn.Module:
    """Return the network on the device, in the memory layout that 3D convolutions are fastest with."""
    return network.to(device=device, memory_format=torch.channels_last_3d)  # type: ignore[call-overload, no-any-return]


class AutocastInferer(Inferer):
    """Runs another inferer's network in bfloat16 and returns float32.

    MONAI's `amp=True` only serves CUDA: on a CPU it silently computes in float32.

    Args:
        inferer: e.g. `SimpleInferer` or `SlidingWindowInferer`.
        device: where the network runs.
        precision: "auto" uses bf16 where it is fast, "bf16" and "fp32" force it.
    Raises:
        ValueError: for another precision.
    """

    def __init__(self, inferer: Inferer, device: torch.device | str, precision: Precision = "auto") -> None:
        super().__init__()
        if precision not in ("auto", "bf16", "fp32"):
            raise ValueError(f"precision is {precision!r}; choose auto, bf16 or fp32.")
        device = torch.device(device)
        self.inferer, self.device_type = inferer, device.type
        self.enabled = precision == "bf16" or (precision == "auto" and has_fast_bf16(device))

    def __call__(self, inputs: Tensor, network: Any, *args: Any, **kwargs: Any) -> Tensor:
        """Return the network's output for `inputs`, shape (B, C, H, W, D), float32; deep supervision gives several."""

        def predict(patch: Tensor, *more: Any, **named: Any) -> Any:
            plain = patch.as_tensor() if isinstance(patch, MetaTensor) else patch
            with torch.autocast(self.device_type, dtype=torch.bfloat16, enabled=self.enabled):
                out = network(plain.contiguous(memory_format=torch.channels_last_3d), *more, **named)
            return [each.float() for each in out] if isinstance(out, (list, tuple)) else out.float()

        result: Tensor = self.inferer(inputs, predict, *args, **kwargs)
        return result
