"""Bundles on several processes: the tables of a single one, clear refusals, any number of ranks to continue with."""

from __future__ import annotations

import json
import os
import runpy
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from monai.bundle import ConfigWorkflow

import droseg
from droseg.bundles import shipped_bundles
from droseg.data import Datalist, write_datalist
from droseg.engine.roles import leave_ranks
from droseg.handlers.audit import read_audit

HERE = Path(__file__).parent
write_case = runpy.run_path(str(HERE / "conftest.py"))["write_case"]
CONFIGS = shipped_bundles()["hippocampus_mri"] / "configs"
TINY: dict[str, Any] = {
    "network_def#channels": [4, 8],
    "network_def#strides": [2],
    "roi_size": [16, 16, 16],
    "epochs": 2,
    "batches_per_epoch": 2,
    "batch_size": 6,
    "val_interval": 1,
    "warmup_steps": 1,
    "precision": "fp32",
    "check_data": False,
}
STILL = {"learning_rate": 0.0, "optimizer#weight_decay": 0.0}
"""The network stays as it began, the same on any number of ranks to the last bit."""


def environment() -> dict[str, str]:
    path = os.pathsep.join([str(Path(droseg.__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    more = {"PYTHONPATH": path, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    if Path("/sys/class/net/lo").exists():
        more["GLOO_SOCKET_IFNAME"] = "lo"  # the host's own name need not resolve in a container
    return {**os.environ, **more}


def write_cohort(folder: Path, training: int = 12, validation: int = 5, testing: int = 4) -> Path:
    """Return a datalist of so many cases; one of three validation cases has no group."""
    folder.mkdir()
    sizes = {"training": training, "validation": validation, "testing": testing}
    sections = {
        section: tuple(
            write_case(folder, f"{section[:2]}_{i}", 100 * s + i, "rare" if i % 3 == 0 else "typical")
            for i in range(size)
        )
        for s, (section, size) in enumerate(sizes.items())
    }
    path = folder / "datalist.json"
    write_datalist(Datalist(path, ("T1w",), {"anterior": (1,), "posterior": (2,)}, sections), path)
    content = json.loads(path.read_text())
    del content["validation"][1]["groups"]
    path.write_text(json.dumps(content))
    return path


def files(*names: str, configs: Path = CONFIGS) -> list[str]:
    return [str(configs / f"{name}.yaml") for name in names]


def training(name: str, ranks: int, cohort: Path, out: Path, **overrides: Any) -> dict[str, Any]:
    """Return a job for forked_ranks.py; with one rank without the overlay."""
    names = ["train", "hardness", *(["multi_gpu_train"] if ranks > 1 else [])]
    options = {"bundle_root": str(CONFIGS.parent), "datalist": str(cohort), "output_dir": str(out)}
    table = {"validate#handlers#0#output": str(out / "validation.csv")}
    return {
        "name": name,
        "ranks": ranks,
        "run_id": "training",
        "config_file": files(*names),
        "overrides": {**options, **TINY, **table, **overrides},
    }


def evaluating(name: str, ranks: int, cohort: Path, run: Path, out: Path) -> dict[str, Any]:
    names = ["inference", "evaluate", *(["multi_gpu_evaluate"] if ranks > 1 else [])]
    options = {"bundle_root": str(run), "datalist": str(cohort), "output_dir": str(out)}
    config = files(*names, configs=run / "configs")
    return {"name": name, "ranks": ranks, "run_id": "evaluating", "config_file": config, "overrides": options}


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Path, list[int], list[str]]]:
    """Run all jobs; return a function of a job's name that returns the folder, the exit codes and the logs."""
    folder = tmp_path_factory.mktemp("ranks")
    cohort = write_cohort(folder / "cohort")
    few = write_cohort(folder / "few", training=4, validation=2, testing=2)
    schedule = {"_target_": "torch.optim.lr_scheduler.ConstantLR", "optimizer": "@optimizer", "factor": 1}
    # A schedule that does not know the number of epochs; and SGD, since Adam makes a step of rounding errors where the
    # gradient is 0, as for the biases before an instance norm.
    learned = {"lr_scheduler": schedule, "optimizer#_target_": "torch.optim.SGD", "optimizer#lr": 0.05}
    apart = f"$'{folder}/changing' if rank() == 0 else '{folder}/elsewhere'"  # as without a common disk
    jobs = [
        *(training(f"still{n}", n, cohort, folder / f"still{n}", **STILL) for n in (1, 2, 3)),
        *(training(f"few{n}", n, few, folder / f"few{n}", **STILL, epochs=1, batch_size=3) for n in (1, 3)),
        *(evaluating(f"eval{n}", n, cohort, folder / "still1", folder / f"eval{n}_out") for n in (1, 3)),
        *(evaluating(f"evalfew{n}", n, few, folder / "still1", folder / f"evalfew{n}_out") for n in (1, 3)),
        training("whole", 1, cohort, folder / "whole", epochs=4, **learned),
        training("first2", 2, cohort, folder / "changing", epochs=2, **learned),
        training("then1", 1, cohort, folder / "changing", epochs=3, **learned),
        training("then3", 3, cohort, folder / "changing", epochs=4, **learned, rank_timeout_s=100),
        training("indivisible", 2, cohort, folder / "indivisible", batch_size=5),
        training("too_many", 3, folder / "two.json", folder / "too_many", batch_size=3, data_root=str(few.parent)),
        training("other", 2, cohort, folder / "changing", epochs=5, **learned, momentum=0.5),
        training("apart", 2, cohort, folder / "changing", epochs=5, **learned, output_dir=apart),
    ]
    content = json.loads(few.read_text())
    content["training"] = content["training"][:2]
    (folder / "two.json").write_text(json.dumps(content))
    path = folder / "jobs.json"
    path.write_text(json.dumps(jobs))
    line = [sys.executable, str(HERE / "forked_ranks.py"), str(path)]
    process = subprocess.run(line, env=environment(), capture_output=True, text=True, timeout=400, check=False)
    assert process.returncode == 0, process.stderr[-3000:]
    codes = json.loads((folder / "codes.json").read_text())

    def result(name: str) -> tuple[Path, list[int], list[str]]:
        logs = [(folder / f"{name}.{rank}.log").read_text() for rank in range(len(codes[name]))]
        return folder, codes[name], logs

    return result


def succeeded(result: tuple[Path, list[int], list[str]]) -> Path:
    folder, codes, logs = result
    assert not any(codes), "\n".join(log[-3000:] for log in logs)
    return folder


Done = Callable[[str], tuple[Path, list[int], list[str]]]


@pytest.mark.parametrize("ranks", [2, 3])
def test_a_validation_shared_by_ranks_is_that_of_one_process_to_the_byte(done: Done, ranks: int) -> None:
    folder = succeeded(done("still1"))
    succeeded(done(f"still{ranks}"))
    alone, shared = ((folder / f"still{n}/validation.csv").read_bytes() for n in (1, ranks))
    assert alone == shared
    assert alone.count(b"\n") == 1 + 5 * 2
    metrics = [json.loads((folder / f"still{n}/run.json").read_text()) for n in (1, ranks)]
    assert metrics[0]["best"] == metrics[1]["best"] is not None
    assert metrics[0]["best_epoch"] == metrics[1]["best_epoch"]


def test_fewer_validation_cases_than_ranks_are_counted_once(done: Done) -> None:
    folder = succeeded(done("few1"))
    succeeded(done("few3"))
    assert (folder / "few1/validation.csv").read_bytes() == (folder / "few3/validation.csv").read_bytes()
    assert (folder / "few3/validation.csv").read_text().count("\n") == 1 + 2 * 2


@pytest.mark.parametrize("name", ["eval", "evalfew"])
def test_an_evaluation_shared_by_ranks_writes_the_files_of_one_process(done: Done, name: str) -> None:
    folder = succeeded(done(f"{name}1"))
    succeeded(done(f"{name}3"))
    alone, shared = ({path.name: path.read_bytes() for path in (folder / f"{name}{n}_out").iterdir()} for n in (1, 3))
    assert len(alone) == 2 + (4 if name == "eval" else 2)
    records = [json.loads(files.pop("evaluation.json")) for files in (alone, shared)]
    for record in records:  # when and where
        del record["finished"], record["predictions"]
    assert records[0] == records[1]
    assert records[0]["not_scored"] == {}
    assert alone == shared


def test_one_rank_writes_and_speaks(done: Done) -> None:
    folder, _, (first, second) = done("still2")
    assert "checkpoint rule:" in first
    assert "training:" in first
    for word in ("checkpoint rule", "training:", "run folder", "WARNING", "finished"):
        assert word not in second
    assert len(list((folder / "still2/tensorboard").glob("events*"))) == 1
    alone, shared = (sorted(path.name for path in (folder / f"still{n}").rglob("*")) for n in (1, 2))
    assert [name for name in shared if "tfevents" not in name] == [name for name in alone if "tfevents" not in name]


def test_a_run_of_several_ranks_is_the_bundle_of_a_single_process(done: Done) -> None:
    folder = succeeded(done("still2"))
    texts = [(folder / f"still{n}/configs/train.yaml").read_text() for n in (1, 2)]
    assert texts[0].replace("still1", "still2") == texts[1]


def test_a_checkpoint_continues_on_any_number_of_ranks_as_if_nothing_had_changed(done: Done) -> None:
    folder = succeeded(done("whole"))
    for name, line in (("first2", ""), ("then1", "continues after epoch 2 of 3"), ("then3", "continues after epoch 3")):
        succeeded(done(name))
        assert line in done(name)[2][0]
    whole, changing = (
        torch.load(folder / name / "models/checkpoint.pt", weights_only=True) for name in ("whole", "changing")
    )
    histories = [state["objective"]["history"] for state in (whole, changing)]
    assert torch.equal(histories[0]["visits"], histories[1]["visits"])
    assert torch.equal(histories[0]["last_update"], histories[1]["last_update"])
    torch.testing.assert_close(histories[0]["loss"], histories[1]["loss"], rtol=1e-3, atol=1e-5)
    assert torch.equal(whole["objective"]["sampler"]["generator"], changing["objective"]["sampler"]["generator"])
    for key, weights in whole["network"].items():
        torch.testing.assert_close(changing["network"][key], weights, rtol=1e-3, atol=1e-5, msg=key)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "indivisible",
            "which 2 of them cannot share evenly: set batch_size to 4 or 6, or start 1, 5 (--nproc_per_node",
        ),
        ("too_many", "3 processes, but only 2 training cases: start 2 at most"),
        ("other", "momentum: 0.0 -> 0.5"),
    ],
)
def test_what_ranks_cannot_do_is_said_once_and_ends_all_of_them(done: Done, name: str, message: str) -> None:
    _, codes, (first, *others) = done(name)
    assert all(codes)
    assert message in first
    for log in (first, *others):
        assert "Traceback" not in log
    assert not any("droseg: error" in log for log in others)


def test_a_rank_that_sees_another_run_folder_ends_the_training(done: Done) -> None:
    _, codes, logs = done("apart")
    assert all(codes)
    assert "rank 0 continues at step 8, but rank 1 at 0" in logs[0]
    assert "on a disk that all machines share" in logs[0]


@pytest.mark.parametrize("ranks", [2, 3])
def test_the_audit_trail_of_several_ranks_has_the_whole_global_batch(done: Done, ranks: int) -> None:
    folder = succeeded(done(f"still{ranks}"))
    alone, shared = (read_audit(folder / f"still{n}") for n in (1, ranks))
    assert len(shared) == 2 * 2 * 6
    pd.testing.assert_frame_equal(alone, shared, rtol=1e-5)


@pytest.fixture
def _alone_in_a_group(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What torchrun sets for a single process."""
    port = runpy.run_path(str(HERE / "forked_ranks.py"))["free_port"]()
    names = {"RANK": 0, "LOCAL_RANK": 0, "WORLD_SIZE": 1, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    for name, value in names.items():
        monkeypatch.setenv(name, str(value))
    if Path("/sys/class/net/lo").exists():
        monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    yield
    leave_ranks()


@pytest.mark.usefixtures("_alone_in_a_group")
@pytest.mark.parametrize("bundle", ["fetal_brain_mri", "hippocampus_mri"])  # of one channel, as the cohort
def test_the_overlays_run_in_one_process_and_keep_every_property_of_a_training(
    cohort: Path, tmp_path: Path, bundle: str
) -> None:
    root = shipped_bundles()[bundle]
    options = {"bundle_root": str(root), "datalist": str(cohort), "structures": {"anterior": 1, "posterior": 2}}
    train = ConfigWorkflow(
        files("train", "multi_gpu_train", configs=root / "configs"),
        workflow_type="train",
        output_dir=str(tmp_path / "run"),
        **{**options, **TINY, "epochs": 1, "batch_size": 2},
    )
    train.initialize()
    assert train.check_properties() == []
    train.run()
    train.finalize()
    assert (tmp_path / "run/models/model.pt").is_file()
    run = tmp_path / "run/configs"
    evaluate = ConfigWorkflow(
        files("inference", "evaluate", "multi_gpu_evaluate", configs=run),
        workflow_type="inference",
        run_id="evaluating",
        output_dir=str(tmp_path / "out"),
        bundle_root=str(run.parent),
        datalist=str(cohort),
    )
    evaluate.initialize()
    evaluate.run()
    evaluate.finalize()
    assert len(list((tmp_path / "out").glob("*_seg.nii.gz"))) == 3


def test_the_overlay_without_torchrun_says_how_to_start_it(
    cohort: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RANK", raising=False)
    workflow = ConfigWorkflow(
        files("train", "multi_gpu_train"), workflow_type="train", datalist=str(cohort), output_dir=str(tmp_path / "run")
    )
    with pytest.raises(RuntimeError) as caught:
        workflow.initialize()
    cause: BaseException = caught.value
    while cause.__cause__ is not None:
        cause = cause.__cause__
    assert "RANK" in str(cause)
    assert "torchrun --standalone --nproc_per_node=2" in str(cause)
