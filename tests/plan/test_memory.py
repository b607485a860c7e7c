from __future__ import annotations

import os
from collections.abc import Callable

import pytest
import torch
from monai.networks.nets import DynUNet, UNet
from torch import nn

from droseg.errors import InputError
from droseg.losses import PerCaseDiceCELoss
from droseg.plan.budget import CPU_CAP, RAM_SHARE, find_budget
from droseg.plan.memory import CONTEXT_BYTES, OF_WEIGHTS, WORKSPACE, LiveBytes, StepMemory, step_bytes
from droseg.plan.topology import Topology


def unet() -> nn.Module:
    norm = ("INSTANCE", {"affine": True})
    return UNet(3, 1, 3, channels=[8, 16, 32], strides=[(2, 2, 1), 2], num_res_units=2, norm=norm)


def dynunet() -> nn.Module:
    kernels, strides = [[3, 3, 1], [3, 3, 3], [3, 3, 3]], [[1, 1, 1], [2, 2, 1], [2, 2, 2]]
    norm = ("INSTANCE", {"affine": True})
    return DynUNet(3, 1, 3, kernels, strides, strides[1:], filters=[8, 16, 32], norm_name=norm)


def on_meta(make: Callable[[], nn.Module]) -> nn.Module:
    with torch.device("meta"):
        return make()


def test_live_bytes_are_counted_until_they_are_freed() -> None:
    with LiveBytes() as live:
        first = torch.zeros(1000)  # 4000 bytes
        second = first.double()  # 8000 more
        del first
        third = second[:10]  # a view holds nothing of its own
    assert live.peak == 12000
    assert third.numel() == 10


@pytest.mark.parametrize("make", [unet, dynunet])
def test_the_estimate_is_what_pytorchs_tracker_sees_on_the_cpu(make: Callable[[], nn.Module]) -> None:
    tracker = pytest.importorskip("torch.distributed._tools.mem_tracker").MemTracker()
    patch = (32, 32, 16)
    network = make().to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
    image, label = torch.randn(2, 1, *patch), torch.zeros(2, 1, *patch)
    with tracker:
        logits = network(image.contiguous(memory_format=torch.channels_last_3d)).float()
        PerCaseDiceCELoss().case_values(logits, label).mean().backward()
    real = tracker.get_tracker_snapshot("peak")[torch.device("cpu")]["Total"]
    weights = sum(parameter.nbytes for parameter in network.parameters())
    own = step_bytes(on_meta(make), 1, patch, 2, False, PerCaseDiceCELoss())
    assert own == pytest.approx(real - weights, rel=1e-3)


def test_activations_grow_with_batch_and_patch_and_halve_in_bf16() -> None:
    loss = PerCaseDiceCELoss()

    def taken(edge: int, batch_size: int, bf16: bool = False) -> int:
        return step_bytes(on_meta(dynunet), 1, (edge,) * 3, batch_size, bf16, loss)

    assert taken(32, 4) == pytest.approx(2 * taken(32, 2), rel=0.01)
    assert taken(64, 2) == pytest.approx(8 * taken(32, 2), rel=0.01)
    assert taken(64, 2, bf16=True) == pytest.approx(taken(64, 2) / 2, rel=0.1)


def test_weights_count_with_gradient_and_moments() -> None:
    parameters = sum(parameter.numel() for parameter in unet().parameters())
    step = step_bytes(on_meta(unet), 1, (16, 16, 16), 2, False, PerCaseDiceCELoss())
    expected = WORKSPACE * (OF_WEIGHTS * parameters + step)
    memory = StepMemory(lambda _: on_meta(unet), 1, False, PerCaseDiceCELoss())
    assert memory(Topology((), (), (16, 16, 16)), 2) == pytest.approx(expected, abs=1)


def test_the_memory_is_what_is_given_else_a_share_of_the_ram(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    given = find_budget(3.0, "bf16")
    assert given.memory == 3 * 2**30 - CONTEXT_BYTES
    assert (given.bf16, given.source) == (True, "--memory-gb 3")
    assert (given.memory_given, given.precision_given) == (True, True)
    found = find_budget()
    assert (found.memory_given, found.precision_given) == (False, False)
    assert found.memory + CONTEXT_BYTES == pytest.approx(min(found.ram * RAM_SHARE, CPU_CAP), rel=1e-3)
    assert "no GPU here" in found.source
    with pytest.raises(InputError, match="--memory-gb is -1; it must be > 0"):
        find_budget(-1.0)
    for wrong in ("inf", "nan"):
        with pytest.raises(InputError, match=f"--memory-gb is {wrong}; it must be > 0, and finite"):
            find_budget(float(wrong))


def test_cores_are_counted_where_there_is_no_affinity(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)  # as on macOS and Windows
    monkeypatch.setattr(os, "cpu_count", lambda: 3)
    assert find_budget(1.0).cores == 3
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert find_budget(1.0).cores == 1
