"""What happens when memory runs out, with failures of PyTorch's own where that can be had."""

from __future__ import annotations

import logging
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from monai.networks.nets import UNet
from torch import nn

from droseg.inference import ImageError, Predictor
from droseg.inference.memory import Plan, _container_left, free_bytes, is_out_of_memory, plans, window_needs

MakeBundle = Callable[..., Path]
Plant = Callable[..., tuple[np.ndarray, np.ndarray]]

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)


def too_little_for(batch: int, kind: type[Exception] = torch.OutOfMemoryError) -> Callable[..., None]:
    """Return a hook for a network that has no memory for more windows than `batch` at a time."""

    def refuse(_module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        if len(inputs[0]) > batch:
            raise kind("CUDA out of memory. Tried to allocate 2.00 GiB")

    return refuse


def small_windows(make_bundle: MakeBundle, batch: int) -> Path:
    inferer = {"_target_": "SlidingWindowInferer", "roi_size": [8, 8, 8], "overlap": 0.5, "mode": "gaussian"}
    return make_bundle(inferer=inferer | {"sw_batch_size": batch})


def test_a_gpu_gives_up_windows_then_blending_then_all_and_a_cpu_windows() -> None:
    assert [str(plan) for plan in plans(Plan(4, GPU, GPU))] == [
        "4 windows at a time on cuda:0",
        "2 windows at a time on cuda:0",
        "1 window at a time on cuda:0",
        "1 window at a time on cuda:0, blended on cpu",
        "1 window at a time on cpu",
    ]
    assert [plan.less_overlap for plan in plans(Plan(1, GPU, CPU))] == [False, True]
    assert [plan.batch for plan in plans(Plan(6, CPU, CPU))] == [6, 3, 1]


@pytest.mark.parametrize("kind", [torch.OutOfMemoryError, MemoryError, RuntimeError])
def test_fewer_windows_are_tried_until_they_fit_and_remembered(
    make_bundle: MakeBundle, plant: Plant, caplog: pytest.LogCaptureFixture, kind: type[Exception]
) -> None:
    image, label = plant()
    predictor = Predictor(small_windows(make_bundle, batch=16))
    batches: list[int] = []
    predictor.network.register_forward_pre_hook(lambda _module, inputs: batches.append(len(inputs[0])))
    predictor.network.register_forward_pre_hook(too_little_for(3, kind))
    with caplog.at_level(logging.WARNING, logger="droseg.inference"):
        segmentation, _ = predictor(image[None], np.eye(4))
    np.testing.assert_array_equal(np.asanyarray(segmentation.dataobj), label)
    tried = [record.getMessage() for record in caplog.records]
    assert tried[-1] == "out of memory; trying again with 2 windows at a time on cpu"
    assert len(tried) == 3  # 8, 4, 2
    batches.clear()
    predictor(image[None], np.eye(4))
    assert max(batches) == 2  # the second case does not fail again first


def test_an_image_that_never_fits_is_one_clear_error(make_bundle: MakeBundle, plant: Plant) -> None:
    predictor = Predictor(small_windows(make_bundle, batch=4))
    predictor.network.register_forward_pre_hook(too_little_for(0))
    with pytest.raises(ImageError, match=r"out of memory for 24 x 20 x 16 voxels .*; crop the image"):
        predictor(plant()[0][None], np.eye(4))


def test_another_error_of_the_network_is_not_taken_for_want_of_memory(make_bundle: MakeBundle, plant: Plant) -> None:
    predictor = Predictor(small_windows(make_bundle, batch=4))

    def fail(_module: nn.Module, _inputs: object) -> None:
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    predictor.network.register_forward_pre_hook(fail)
    with pytest.raises(RuntimeError, match="mat1"):
        predictor(plant()[0][None], np.eye(4))


def test_little_memory_means_few_windows_at_a_time_from_the_start(
    make_bundle: MakeBundle, plant: Plant, caplog: pytest.LogCaptureFixture
) -> None:
    image, label = plant()
    bundle = small_windows(make_bundle, batch=32)
    largest = {}
    for memory_gb in (None, 0.0003):
        predictor = Predictor(bundle, memory_gb=memory_gb)
        batches: list[int] = []
        predictor.network.register_forward_pre_hook(lambda _module, inputs, to=batches: to.append(len(inputs[0])))
        segmentation, _ = predictor(image[None], np.eye(4))
        np.testing.assert_array_equal(np.asanyarray(segmentation.dataobj), label)
        largest[memory_gb] = max(batches)
    assert 1 <= largest[0.0003] < largest[None]
    assert not caplog.records


def test_an_image_beyond_the_allowance_is_refused_before_the_network_runs(
    make_bundle: MakeBundle, plant: Plant
) -> None:
    predictor = Predictor(make_bundle(), memory_gb=0.00001)
    predictor.network.register_forward_pre_hook(lambda *_: pytest.fail("the network ran"))
    with pytest.raises(ImageError, match=r"at least 0\.0 GB are needed"):
        predictor(plant()[0][None], np.eye(4))


LIMITED = """
import logging, resource, sys
import numpy as np, torch
logging.basicConfig(format="%(message)s")
torch.set_num_threads(1)
from droseg.inference import Predictor
image = np.load(sys.argv[2])
predictor = Predictor(sys.argv[1])
predictor.prepare(predictor.read(image[None], np.eye(4)))  # threads and lazy imports first
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
limit = used + int(sys.argv[4]) * 2**20
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
segmentation, _ = predictor(image[None], np.eye(4))
np.save(sys.argv[3], np.asanyarray(segmentation.dataobj))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="skipped: RLIMIT_AS has an effect on Linux only")
def test_a_process_that_really_runs_out_of_memory_goes_on_with_fewer_windows(
    make_bundle: MakeBundle, plant: Plant, tmp_path: Path
) -> None:
    image, label = plant((96, 96, 96))
    inferer = {"_target_": "SlidingWindowInferer", "roi_size": [56, 56, 56], "overlap": 0.8, "mode": "gaussian"}
    bundle = make_bundle(image=image, inferer=inferer | {"sw_batch_size": 256})
    np.save(tmp_path / "image.npy", image)
    arguments = [str(bundle), str(tmp_path / "image.npy"), str(tmp_path / "labels.npy"), "112"]
    done = subprocess.run([sys.executable, "-c", LIMITED, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "out of memory; trying again with" in done.stderr
    np.testing.assert_array_equal(np.load(tmp_path / "labels.npy"), label)


@pytest.mark.gpu
def test_a_gpu_without_room_hands_over_to_the_cpu_and_says_so(make_bundle: MakeBundle, plant: Plant) -> None:
    image, label = plant()
    predictor = Predictor(small_windows(make_bundle, batch=4), "cuda")

    def refuse(_module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        if inputs[0].is_cuda:
            torch.empty(1 << 50, device="cuda")

    predictor.network.register_forward_pre_hook(refuse)
    segmentation, flags = predictor(image[None], np.eye(4))
    np.testing.assert_array_equal(np.asanyarray(segmentation.dataobj), label)
    assert [flag.name for flag in flags] == ["less_overlap"]
    assert next(predictor.network.parameters()).is_cuda


def test_pytorchs_own_refusal_is_recognized() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 60, dtype=torch.uint8)
    assert is_out_of_memory(caught.value)
    assert not is_out_of_memory(RuntimeError("shape mismatch"))


def test_the_limit_of_a_container_counts(tmp_path: Path) -> None:
    assert _container_left(tmp_path) is None  # no container
    (tmp_path / "memory.max").write_text("6000\n")
    (tmp_path / "memory.current").write_text("2500\n")
    (tmp_path / "memory.stat").write_text("anon 1500\ninactive_file 400\n")
    assert _container_left(tmp_path) == 6000 - 2500 + 400
    (tmp_path / "memory.max").write_text("max\n")
    assert _container_left(tmp_path) is None
    assert 0 < free_bytes(CPU) < 1 << 50


def test_what_a_window_takes_is_told_without_running_the_network() -> None:
    network = UNet(3, 1, 5, channels=(8, 16), strides=(2,))
    needs = window_needs(network, 1, (16, 16, 16))
    assert needs is not None
    assert needs[1] == 5
    assert needs[0] >= 2 * 4 * 16**3 * 5  # the scores, and as much again

    class LooksAtValues(nn.Module):
        def forward(self, windows: torch.Tensor) -> torch.Tensor:
            return windows if windows.max() > 0 else -windows

    assert window_needs(LooksAtValues(), 1, (16, 16, 16)) is None
