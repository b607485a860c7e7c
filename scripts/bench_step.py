"""Milliseconds that robust training adds to a step of a bundle, measured directly, over the median step.

python scripts/bench_step.py [--bundle hippocampus_mri] [--steps 30] [--num-cases 200] [--device cpu] [key=value ...]

The bundle's network, patch, batch, optimizer and loss train on tensors of noise, without augmentation, so that the step
is as short as it gets. Each part that MONAI's own trainer would not run is timed where it runs; on a GPU the
device is waited for before, so that nobody else's work counts. Keys are those of the objective, e.g. mix=0.1 max_age=5.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import yaml
from ignite.engine import Engine, Events
from monai.bundle import ConfigParser
from monai.data import Dataset
from monai.inferers import SimpleInferer
from monai.losses import DiceCELoss

from droseg.bundles import find_bundle
from droseg.data import LagBoundedDataLoader, SeededDataset
from droseg.engine import AutocastInferer, DROTrainer, channels_last
from droseg.handlers import HardnessHandler
from droseg.inference.shared_choices import with_shared
from droseg.losses import PerCaseDiceCELoss
from droseg.objectives import build_objective
from droseg.sampling import HardnessWeightedBatchSampler

PER_STEP = ("draw", "match batch and draw", "weigh the losses", "update the history")
PER_EPOCH = ("start of the epoch", "end of the epoch")


class Clock:
    """Adds up the time of named parts; a part inside another is not counted twice."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.ms = device, defaultdict(list[float])
        self._inside: list[float] = []

    def wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        self.wait()
        start = time.perf_counter()
        self._inside.append(0.0)
        try:
            yield
        finally:
            self.wait()
            whole = 1e3 * (time.perf_counter() - start)
            self.ms[name].append(whole - self._inside.pop())
            if self._inside:
                self._inside[-1] += whole

    def time(self, owner: Any, method: str, name: str) -> None:
        """Time every call of a method, of one object or of a class."""
        original = getattr(owner, method)

        def timed(*args: Any, **kwargs: Any) -> Any:
            with self.part(name):
                return original(*args, **kwargs)

        setattr(owner, method, staticmethod(timed) if method == "_begin_batch" else timed)


class TimedTrainer(DROTrainer):
    """A `DROTrainer` of its own class, whose methods can be timed."""


def train(config: dict[str, Any], args: argparse.Namespace, clock: Clock, options: dict[str, Any]) -> list[float]:
    """Train some steps; return the milliseconds of each from the end of the one before."""
    parser = ConfigParser(config)
    network = channels_last(parser.get_parsed_content("network_def"), clock.device)
    roi_size, batch_size = parser.get_parsed_content("roi_size"), parser.get_parsed_content("batch_size")
    num_structures = len(parser.get_parsed_content("structures"))
    generator = torch.Generator().manual_seed(0)
    items = [
        {
            "image": torch.randn(len(parser.get_parsed_content("channels")), *roi_size, generator=generator),
            "label": torch.randint(num_structures + 1, (1, *roi_size), generator=generator).float(),
        }
        for _ in range(4)
    ]
    data = Dataset([{**items[index % 4], "index": index} for index in range(args.num_cases)])
    ids = [str(index) for index in range(args.num_cases)]
    objective = build_objective(
        "hardness", ids, batch_size=batch_size, num_batches=args.steps, target_ess=0.5, importance_weighting=True,
        **options,
    )  # fmt: skip
    objective.update(range(args.num_cases), torch.rand(args.num_cases, generator=generator).tolist())
    loss, handler = PerCaseDiceCELoss(), HardnessHandler(objective)
    clock.time(HardnessWeightedBatchSampler, "start_epoch", PER_EPOCH[0])
    clock.time(objective.sampler, "draw", PER_STEP[0])
    clock.time(TimedTrainer, "_begin_batch", PER_STEP[1])
    clock.time(TimedTrainer, "_weighted_case_loss", PER_STEP[2])
    clock.time(handler, "loss_completed", PER_STEP[3])
    clock.time(handler, "epoch_completed", PER_EPOCH[1])

    def case_loss(pred: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        with clock.part("loss per case"):
            result = loss(pred, label)
        with clock.part("MONAI's own loss"):  # on the same tensors, right after
            monai_loss(pred, label)
        return result

    monai_loss, steps = DiceCELoss(to_onehot_y=True, softmax=True), []
    trainer = TimedTrainer(
        device=clock.device,
        max_epochs=1,
        train_data_loader=LagBoundedDataLoader(SeededDataset(data), objective.sampler),
        network=network,
        inferer=AutocastInferer(SimpleInferer(), clock.device, config["precision"]),
        optimizer=torch.optim.AdamW(network.parameters(), lr=1e-3),
        loss_function=case_loss,
        objective=objective,
        train_handlers=[handler],
    )
    ends = [time.perf_counter()]

    @trainer.on(Events.ITERATION_COMPLETED)
    def note(engine: Engine) -> None:
        clock.wait()
        ends.append(time.perf_counter())
        steps.append(1e3 * (ends[-1] - ends[-2]) - clock.ms["MONAI's own loss"][-1])

    trainer.run()
    return steps


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", default="hippocampus_mri", help="name of a shipped bundle, or a run folder")
    parser.add_argument("options", nargs="*", metavar="key=value")
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--num-cases", type=int, default=200)
    parser.add_argument("--device", type=torch.device, default=torch.device("cpu"))
    args = parser.parse_args()
    configs = Path(find_bundle(args.bundle)) / "configs"
    config = with_shared(yaml.safe_load((configs / "train.yaml").read_text()), configs)
    options = {key: yaml.safe_load(value) for key, value in (option.split("=", 1) for option in args.options)}
    clock = Clock(args.device)
    steps = train(config, args, clock, options)[2:]  # the first ones warm up
    step_ms = statistics.median(steps)
    print(f"{args.bundle}, {args.num_cases} cases, {args.device}, {torch.get_num_threads()} threads")
    print(f"median step {step_ms:.1f} ms ({min(steps):.1f} to {max(steps):.1f}), {len(steps)} steps\n")
    added = {name: statistics.median(clock.ms[name][2:]) for name in PER_STEP}
    per_epoch = config["batches_per_epoch"]
    added |= {f"{name}, over {per_epoch} steps": clock.ms[name][0] / per_epoch for name in PER_EPOCH}
    for name, value in added.items():
        print(f"{name:>36} {value:9.3f} ms {100 * value / step_ms:8.4f} %")
    total = sum(added.values())
    print(f"{'all of it':>36} {total:9.3f} ms {100 * total / step_ms:8.4f} %\n")
    pairs = zip(clock.ms["loss per case"][2:], clock.ms["MONAI's own loss"][2:], strict=True)
    own = statistics.median(clock.ms["MONAI's own loss"][2:])
    more = statistics.median(ours - theirs for ours, theirs in pairs)
    print(f"forward pass of MONAI's DiceCELoss {own:.2f} ms; one value per case instead: {more:+.2f} ms (paired)")


if __name__ == "__main__":
    main()
