"""A planned bundle as the shipped ones are tested: papers, MONAI's verifiers, training, prediction, evaluation."""

from __future__ import annotations

import json
import os
import runpy
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from monai.bundle import ConfigParser, ConfigWorkflow, ckpt_export, verify_metadata, verify_net_in_out
from monai.data import load_net_with_metadata

from droseg.bundles import shipped_bundles
from droseg.cli import main
from droseg.workflow.config import config_files, load_config, walk

MakeDatalist = Callable[..., Path]
KINDS: dict[str, dict[str, Any]] = {
    "straight": {"masked": True, "shape": (48, 48, 40), "spacing_mm": (1, 1, 1)},
    "thick": {"shape": (64, 72, 10), "spacing_mm": (0.8, 0.8, 5.0), "channels": ("T2w", "FLAIR")},
}
SMALL: dict[str, Any] = {"epochs": 1, "batches_per_epoch": 2, "val_interval": 1, "warmup_steps": 1}
TIES = 2
"""Voxels of a case in which two windowed predictions of one network may differ."""
SMALL_NETWORK = {
    "straight": {"network_def#channels": [4, 8, 8]},
    "thick": {"network_def#filters": [4, 8, 8, 8]},
}


def new(out: Path, datalist: Path, *options: str) -> int:
    return main(["bundle", "new", str(out), "--datalist", str(datalist), "--memory-gb", "1.5", *options])


@pytest.fixture(scope="module", params=sorted(KINDS))
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def datalist(kind: str, write_data: MakeDatalist, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data(tmp_path_factory.mktemp(kind), **KINDS[kind])


@pytest.fixture(scope="module")
def bundle(datalist: Path) -> Path:
    """Return a planned bundle that no test changes."""
    out = datalist.parent / "mine"
    assert new(out, datalist) == 0
    return out


def overrides(kind: str, bundle: Path) -> dict[str, Any]:
    levels = len(yaml.safe_load((bundle / "configs/inference.yaml").read_text())["network_def"]["strides"])
    name, widths = next(iter(SMALL_NETWORK[kind].items()))
    wanted = levels + (kind == "straight")
    return {**SMALL, name: (widths + widths[-1:] * wanted)[:wanted]}


def test_each_choice_stands_once_with_its_reason(bundle: Path) -> None:
    configs = bundle / "configs"
    train, inference = (yaml.safe_load((configs / f"{name}.yaml").read_text()) for name in ("train", "inference"))
    shared = train["from_inference"]
    assert {"channels", "structures", "spacing_mm", "roi_size", "network_def", "deterministic_transforms"} <= set(
        shared
    )
    assert not set(shared) & (set(train) - {"network_def"})
    assert train["network_def"] == {}
    assert set(shared) <= set(inference)
    record = json.loads((bundle / "plan.json").read_text())["choices"]
    texts = {name: (configs / name).read_text() for name in ("train.yaml", "inference.yaml")}
    for key in (
        "channels",
        "structures",
        "spacing_mm",
        "roi_size",
        "mirror_axes",
        "network_def",
        "epochs",
        "batch_size",
    ):
        said = " ".join(texts[record[key]["file"]].replace("#", " ").split())
        assert " ".join(record[key]["reason"].split()) in said, key
    assert "6 training cases" in record["spacing_mm"]["reason"]


def test_every_choice_is_found_where_the_plan_says_that_it_stands(bundle: Path) -> None:
    card = (bundle / "docs/README.md").read_text()
    for name, choice in json.loads((bundle / "plan.json").read_text())["choices"].items():
        config = yaml.safe_load((bundle / "configs" / choice["file"]).read_text())
        if choice["within"] is None:
            assert config[name] == choice["value"]
            continue
        assert name not in config
        holder = config
        for key in choice["within"].split("#"):
            holder = holder[key]
        text = yaml.safe_dump(holder)
        written = {"normalization": "NormalizeIntensityd", "crop": "Crop"}.get(name, name)
        assert written in text or not any(choice["value"])  # translate_range of zeros is left out
        if name != "first_epochs":
            assert f"(in {choice['within']})" in next(line for line in card.splitlines() if f"| `{name}` |" in line)


def test_what_is_not_planned_is_the_followed_bundles(bundle: Path) -> None:
    followed = shipped_bundles()["hippocampus_mri"] / "configs"
    for name in ("evaluate.yaml", "hardness.yaml", "multi_gpu_train.yaml", "multi_gpu_evaluate.yaml", "logging.conf"):
        assert (bundle / "configs" / name).read_bytes() == (followed / name).read_bytes()
    ours, theirs = (load_config([folder / "train.yaml"]) for folder in (bundle / "configs", followed))
    assert ours["train"]["objective"] == theirs["train"]["objective"]
    for key in ("optimizer", "lr_scheduler", "objective", "target_ess", "learning_rate", "label_transforms", "imports"):
        assert ours[key] == theirs[key], key
    comment = "beta: null # robustness by hand, also of the chi-square penalty; wins over the targets\n"
    assert comment in (bundle / "configs/train.yaml").read_text()


def test_lines_are_short_and_expressions_are_calls(bundle: Path) -> None:
    for file in config_files(bundle / "configs"):
        assert max(map(len, file.read_text().splitlines())) <= 130, file.name  # one reason at most runs over
        for key, value in walk(ConfigParser.load_config_file(str(file))):
            assert not (isinstance(value, str) and value.startswith("$")) or len(value) <= 80, f"{file.name} {key}"


def test_the_card_tells_the_plan_and_the_commands(bundle: Path) -> None:
    card = (bundle / "docs/README.md").read_text()
    for part in (
        "| `spacing_mm` |",
        "droseg train mine --datalist DATALIST --out RUN",
        "## Not planned",
        "None yet: `droseg report",
    ):
        assert part in card
    assert "Apache License" in (bundle / "LICENSE").read_text()


def test_metadata_satisfy_the_schema_and_the_config(bundle: Path, tmp_path: Path, project_root: Path) -> None:
    pytest.importorskip("jsonschema", reason="skipped: jsonschema is not installed")
    schema = runpy.run_path(str(project_root / "tests/bundles/test_bundle_papers.py"))["SCHEMA"]
    path = bundle / "configs/metadata.json"
    (tmp_path / "schema.json").write_text(json.dumps(schema))
    verify_metadata(meta_file=str(path), filepath=str(tmp_path / "schema.json"))
    metadata, config = json.loads(path.read_text()), yaml.safe_load((bundle / "configs/inference.yaml").read_text())
    assert metadata["version"] in metadata["changelog"]
    tensors = metadata["network_data_format"]
    assert tensors["inputs"]["image"]["num_channels"] == len(config["channels"])
    classes = ["background", *config["structures"]]
    assert tensors["outputs"]["pred"]["channel_def"] == {str(index): name for index, name in enumerate(classes)}


def test_the_network_takes_and_gives_what_the_metadata_say(bundle: Path) -> None:
    configs = bundle / "configs"
    verify_net_in_out(
        net_id="network_def",
        meta_file=str(configs / "metadata.json"),
        config_file=str(configs / "inference.yaml"),
        device="cpu",
        n=2,
    )


def test_it_trains_predicts_and_is_scored(kind: str, bundle: Path, datalist: Path, tmp_path: Path) -> None:
    run, out = tmp_path / "run", tmp_path / "scores"
    training = ConfigWorkflow(
        [str(bundle / "configs" / name) for name in ("train.yaml", "hardness.yaml")],
        workflow_type="train",
        output_dir=str(run),
        **overrides(kind, bundle),
    )
    training.initialize()
    assert training.check_properties() == []
    training.run()
    training.finalize()
    status = json.loads((run / "run.json").read_text())
    assert (status["status"], status["objective"]) == ("finished", "hardness")
    written = yaml.safe_load((run / "configs/train.yaml").read_text())
    assert "from_inference" not in written
    predict = yaml.safe_load((run / "configs/inference.yaml").read_text())
    planned = yaml.safe_load((bundle / "configs/inference.yaml").read_text())
    for key in ("channels", "structures", "spacing_mm", "roi_size", "mirror_axes", "deterministic_transforms"):
        assert written[key] == predict[key] == planned[key]
    assert written["network_def"] == predict["network_def"] == {**planned["network_def"], **_changed(written)}

    assert main(["evaluate", "--datalist", str(datalist), "--bundle", str(run), "--out", str(out)]) == 0
    table = pd.read_csv(out / "case_metrics.csv")
    assert (len(table), set(table["structure"])) == (4, {"anterior", "posterior"})
    evaluation = ConfigWorkflow(
        [str(run / "configs" / name) for name in ("inference.yaml", "evaluate.yaml")],
        workflow_type="inference",
        run_id="evaluating",
        bundle_root=str(run),
        datalist=str(datalist),
        output_dir=str(tmp_path / "own"),
    )
    evaluation.initialize()
    evaluation.run()
    # The same label maps have the same scores; and the maps are the same but for ties, which a network of two steps
    # has, and which each of the two decides by the order in which it adds its windows up.
    maps = {out / "predictions": table, tmp_path / "own": pd.read_csv(tmp_path / "own/case_metrics.csv")}
    for folder, scores in maps.items():
        again = tmp_path / f"again_{folder.name}"
        assert main(["evaluate", "--datalist", str(datalist), "--pred", str(folder), "--out", str(again)]) == 0
        pd.testing.assert_frame_equal(scores, pd.read_csv(again / "case_metrics.csv"), rtol=1e-6)
    for name in ("te_0_seg.nii.gz", "te_1_seg.nii.gz"):
        first, second = (np.asarray(nib.load(folder / name).dataobj) for folder in maps)
        assert np.count_nonzero(first != second) <= TIES
    map_, image = nib.load(out / "predictions/te_0_seg.nii.gz"), nib.load(datalist.parent / "te_0_0.nii.gz")
    assert map_.shape == image.shape
    assert set(np.unique(np.asarray(map_.dataobj))) <= {0, 1, 2}
    inference = ConfigWorkflow(
        str(run / "configs/inference.yaml"),
        workflow_type="inference",
        bundle_root=str(run),
        dataset_dir=str(tmp_path / "own"),
        output_dir=str(tmp_path / "predicted"),
    )
    inference.initialize()
    assert inference.check_properties() == []
    ckpt_export(
        net_id="network_def",
        filepath=str(tmp_path / "model.ts"),
        ckpt_file=str(run / "models/model.pt"),
        meta_file=str(run / "configs/metadata.json"),
        config_file=str(run / "configs/inference.yaml"),
    )
    exported = load_net_with_metadata(str(tmp_path / "model.ts"))[0].eval()
    parser = ConfigParser()
    parser.read_config(str(run / "configs/inference.yaml"))
    network = parser.get_parsed_content("network_def").eval()
    network.load_state_dict(torch.load(run / "models/model.pt", weights_only=True))
    x = torch.randn(1, len(planned["channels"]), *planned["roi_size"])
    with torch.no_grad():
        torch.testing.assert_close(exported(x), network(x))


def _changed(written: dict[str, Any]) -> dict[str, Any]:
    return {key: written["network_def"][key] for key in ("channels", "filters") if key in written["network_def"]}


def test_the_structures_values_are_the_users(make_datalist: MakeDatalist, tmp_path: Path) -> None:
    path = make_datalist(sizes={"training": 4, "testing": 1})
    path.write_text(path.read_text().replace('"anterior": 1, "posterior": 2', '"posterior": 2, "anterior": 1'))
    assert new(tmp_path / "mine", path) == 0
    line = [str(tmp_path / "mine"), "--out", str(tmp_path / "run"), "network_def#channels=[4,8,8]"]
    assert main(["train", *line, *(f"{key}={value}" for key, value in SMALL.items())]) == 0
    image = path.parent / "te_0_0.nii.gz"
    assert main(["predict", str(image), "--bundle", str(tmp_path / "run"), "--out", str(tmp_path / "out")]) == 0
    said = json.loads((tmp_path / "out/te_0_0_seg.json").read_text())
    assert said["structures"] == {"posterior": 2, "anterior": 1}


def test_a_plan_follows_a_run_and_a_planned_bundle(make_datalist: MakeDatalist, tmp_path: Path) -> None:
    path = make_datalist()
    assert new(tmp_path / "first", path) == 0
    line = ["train", str(tmp_path / "first"), "--out", str(tmp_path / "run"), "network_def#channels=[4,8,8]", "seed=7"]
    assert main([*line, *(f"{key}={value}" for key, value in SMALL.items())]) == 0
    for like in ("first", "run"):
        assert new(tmp_path / f"like_{like}", path, "--like", str(tmp_path / like)) == 0
        config = yaml.safe_load((tmp_path / f"like_{like}/configs/train.yaml").read_text())
        assert config["seed"] == (7 if like == "run" else 0)
        training = ConfigWorkflow(
            str(tmp_path / f"like_{like}/configs/train.yaml"),
            workflow_type="train",
            output_dir=str(tmp_path / f"run_{like}"),
            **{**SMALL, "network_def#channels": [4, 8, 8]},
        )
        training.initialize()
        assert training.check_properties() == []


def test_a_folder_that_holds_something_is_refused(
    make_datalist: MakeDatalist, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, out = make_datalist(), tmp_path / "mine"
    assert new(out, path) == 0
    assert new(out, path) == 2
    assert "exists and is not empty; give another folder, or --overwrite" in capsys.readouterr().err
    assert new(out, path, "--overwrite") == 0
    (out / "models/model.pt").write_bytes(b"")
    assert new(out, path, "--overwrite") == 2
    assert "holds weights" in capsys.readouterr().err
    other = tmp_path / "other"
    other.mkdir()
    (other / "thesis.tex").write_text("")
    assert new(other, path, "--overwrite") == 2
    assert "not a planned bundle" in capsys.readouterr().err
    assert [file.name for file in other.iterdir()] == ["thesis.tex"]


def test_a_place_that_cannot_be_written_is_said_before_anything_is_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "thesis.tex").write_text("")
    nothing = tmp_path / "no_datalist.json"
    assert new(tmp_path / "thesis.tex" / "deep" / "mine", nothing) == 2
    assert f"cannot be written, {tmp_path / 'thesis.tex'} is a file" in capsys.readouterr().err
    if os.geteuid() != 0:  # nothing is write-protected for root
        (tmp_path / "locked").mkdir(mode=0o500)
        assert new(tmp_path / "locked" / "mine", nothing) == 2
        assert f"{tmp_path / 'locked'} is write-protected" in capsys.readouterr().err


def test_nothing_is_left_of_a_plan_that_fails(make_datalist: MakeDatalist, tmp_path: Path) -> None:
    path, out = make_datalist(), tmp_path / "mine"
    assert main(["bundle", "new", str(out), "--datalist", str(path), "--memory-gb", "0.56"]) == 2
    assert main(["bundle", "new", str(out), "--datalist", str(path), "--like", "nothing"]) == 1
    assert not out.exists()


def test_the_command_prints_the_plan_and_the_next_command(
    make_datalist: MakeDatalist, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert new(tmp_path / "mine", make_datalist(), "--precision", "bf16") == 0
    printed = capsys.readouterr().out
    assert "median of 6 training cases (all the same)" in printed
    assert "memory: 1.5 GB (--memory-gb 1.5), computing in bf16 (--precision bf16)" in printed
    assert printed.rstrip().endswith(f"droseg train {tmp_path / 'mine'} --out runs/mine")
    assert yaml.safe_load((tmp_path / "mine/configs/train.yaml").read_text())["precision"] == "bf16"


def test_warnings_name_cases_in_the_terminal_and_nowhere_in_the_bundle(
    make_datalist: MakeDatalist, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, out = make_datalist(channels=("T1w", "T2w")), tmp_path / "mine"
    label = nib.load(path.parent / "tr_3_label.nii.gz")
    empty = np.zeros(label.shape, np.uint8)
    nib.save(nib.Nifti1Image(empty, label.affine), path.parent / "tr_3_label.nii.gz")
    content = json.loads(path.read_text())
    content["training"][4]["image"][1] = None
    path.write_text(json.dumps(content))
    assert new(out, path) == 0
    warned = [line for line in capsys.readouterr().err.splitlines() if line.startswith("droseg: warning: ")]
    for case_id in ("tr_3", "tr_4"):
        assert any(case_id in line for line in warned), warned
        assert not [file for file in out.rglob("*") if file.is_file() and case_id in file.read_text()]


def test_paths_are_relative_and_the_training_finds_the_data(
    make_datalist: MakeDatalist, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    datalist = make_datalist("our data", sizes={"training": 4})
    odd = datalist.with_name("it's #1@home.json")  # all that an expression of MONAI might take for its own
    shutil.copyfile(datalist, odd)
    monkeypatch.chdir(tmp_path)
    assert new(Path("mine"), odd, "--data-root", str(datalist.parent)) == 0
    config = yaml.safe_load(Path("mine/configs/train.yaml").read_text())
    assert (config["dataset_dir"], config["data_root"]) == ("our data", "our data")
    assert not [file for file in Path("mine").rglob("*") if file.is_file() and str(tmp_path) in file.read_text()]
    record = json.loads(Path("mine/plan.json").read_text())
    assert record["datalist"] == "it's #1@home.json"
    assert not {"dataset_dir", "datalist", "data_root"} & set(record["choices"])

    options = ["network_def#channels=[4,8,8]", *(f"{key}={value}" for key, value in SMALL.items())]
    assert main(["train", "mine", "--out", "run", *options]) == 0
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    data = ["--datalist", str(datalist), "--data-root", str(datalist.parent)]
    assert main(["train", "../mine", "--out", "run", *data, *options]) == 0


def test_any_folder_name_is_text_in_the_config_and_one_word_in_the_next_command(
    make_datalist: MakeDatalist, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "mine: the #1"
    assert new(out, make_datalist()) == 0
    assert yaml.safe_load((out / "configs/train.yaml").read_text())["output_dir"] == "runs/mine: the #1"
    words = shlex.split(capsys.readouterr().out.splitlines()[-1])
    assert words == ["droseg", "train", str(out), "--out", "runs/mine: the #1"]


@pytest.mark.slow
def test_the_multi_gpu_overlay_trains_on_two_processes(make_datalist: MakeDatalist, tmp_path: Path) -> None:
    assert new(tmp_path / "mine", make_datalist()) == 0
    files = [str(tmp_path / "mine/configs" / f"{name}.yaml") for name in ("train", "hardness", "multi_gpu_train")]
    options = {**SMALL, "network_def#channels": [4, 8, 8], "output_dir": str(tmp_path / "run")}
    words = [word for key, value in options.items() for word in (f"--{key}", str(value))]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "-m"]
    line = [*torchrun, "monai.bundle", "run", "training", "--config_file", str(files), *words]
    done = subprocess.run(line, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    written = yaml.safe_load((tmp_path / "run/configs/train.yaml").read_text())
    assert written["network_def"]["channels"] == [4, 8, 8]
    assert "bare_network" not in written
    again = subprocess.run(line, capture_output=True, text=True, timeout=120, check=False)
    assert "this run is finished" in again.stdout
