"""Mixed precision: which type the network computes in, and what comes out."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from monai.data import MetaTensor
from monai.inferers import SimpleInferer, SlidingWindowInferer

from droseg.engine import AutocastInferer, channels_last, has_fast_bf16

CPU = torch.device("cpu")


class Spy(torch.nn.Module):
    """A convolution that remembers the type it computed in."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = torch.nn.Conv3d(1, 2, 3, padding=1)
        self.computed_in: torch.dtype | None = None

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        assert not isinstance(image, MetaTensor)
        result = self.convolution(image)
        self.computed_in = result.dtype
        return result


@pytest.mark.parametrize(("precision", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16)])
def test_the_network_computes_in_the_asked_precision_and_the_result_is_single(precision, dtype):
    network, image = channels_last(Spy(), CPU), torch.rand(1, 1, 8, 8, 8)
    result = AutocastInferer(SimpleInferer(), CPU, precision)(image, network)
    assert network.computed_in == dtype
    assert result.dtype == torch.float32
    torch.testing.assert_close(result, network.convolution(image), rtol=0.05, atol=0.05)


def test_a_sliding_window_keeps_grid_and_affine():
    image = MetaTensor(torch.rand(1, 1, 12, 9, 8), affine=torch.diag(torch.tensor([1.0, 2.0, 3.0, 1.0])))
    network = Spy()
    result = AutocastInferer(SlidingWindowInferer(roi_size=(8, 8, 8), overlap=0.5), CPU, "fp32")(image, network)
    assert result.shape == (1, 2, 12, 9, 8)
    assert result.requires_grad


def test_an_unknown_precision_is_refused():
    with pytest.raises(ValueError, match="precision is 'fp16'; choose auto, bf16 or fp32"):
        AutocastInferer(SimpleInferer(), CPU, "fp16")


def test_a_cpu_is_fast_in_bf16_if_its_flags_say_so():
    info = Path("/proc/cpuinfo")
    flags = info.read_text().partition("flags")[2].partition("\n")[0].split() if info.exists() else []
    if not flags:
        pytest.skip("only Linux on x86 lists the flags of its CPU")
    assert has_fast_bf16(CPU) == bool({"amx_bf16", "avx512_bf16"} & set(flags))
