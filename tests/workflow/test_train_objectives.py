"""Every objective by its name on the command line, with its settings, through a whole run folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from droseg.bundles import shipped_bundles
from droseg.cli import main
from droseg.objectives import OBJECTIVES, build_objective
from droseg.workflow.config import load_config

TINY: dict[str, Any] = {
    "network_def#channels": [4, 8],
    "network_def#strides": [2],
    "roi_size": [16, 16, 16],
    "epochs": 2,
    "batches_per_epoch": 3,
    "batch_size": 2,
    "val_interval": 1,
    "warmup_steps": 1,
    "device": "$torch.device('cpu')",
    "precision": "fp32",
    "check_data": False,
}
GROUPS = "groups: anatomy=rare, anatomy=typical"
ANNOUNCED = {
    "two_level": f"two_level, beta 7.0, gamma 10.0, pi uniform, product False, replacement False; {GROUPS}",
    "group_dro": f"group_dro, step_size 0.1, adjustment 0.0, sampling uniform, replacement True; {GROUPS}",
    "group_balanced": f"group_balanced, overlapping False, replacement True; {GROUPS}",
    "jtt": "jtt, first_epochs 1, fraction 0.2, upweight 5",
    "rgd": "rgd, tau 1.0, normalize False",
    "febs": f"febs, gamma 1.0, sampling shuffled; {GROUPS}",
}
OPTIONS = {
    "two_level": ["--beta", "7"],
    "group_dro": ["rivals#group_dro#step_size=0.1"],
    "jtt": ["rivals#jtt#first_epochs=1"],
}


def train(cohort: Path, out: Path, *words: str) -> int:
    line = ["train", "hippocampus_mri", "--datalist", str(cohort), "--out", str(out), *words]
    try:
        return main([*line, *(f"{key}={json.dumps(value)}" for key, value in TINY.items())])
    except SystemExit as end:
        return int(end.code or 0)


@pytest.mark.parametrize("name", ANNOUNCED)
def test_an_objective_trains_by_its_name(
    name: str, cohort: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    assert train(cohort, run, "--objective", name, *OPTIONS.get(name, [])) == 0, capsys.readouterr().err
    assert f"objective: {ANNOUNCED[name]}\n" in capsys.readouterr().out
    status = json.loads((run / "run.json").read_text())
    assert (status["status"], status["objective"], status["epoch"]) == ("finished", name, 2)
    saved = torch.load(run / "models/checkpoint.pt", weights_only=True)
    assert saved["objective"]["name"] == name
    if name == "group_dro":
        assert saved["objective"]["log_q"].exp().sum() == pytest.approx(1.0)
        assert saved["objective"]["groups"] == ["anatomy=rare", "anatomy=typical"]
    if name == "jtt":
        assert len(saved["objective"]["error_set"]) == 1
        assert status["best_epoch"] == 2, "a network of the first training is no candidate"
        assert saved["restart_handler"]["restarted_step"] == 3


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--objective", "jtt"], "its first training takes 12 epochs and the run has 2"),
        (
            ["--objective", "jtt", "rivals#jtt#first_epoch=1"],
            "objective jtt has no setting first_epoch; it has first_epochs",
        ),
        (["--objective", "jtt", "rivals#jjt#first_epochs=1"], "there is no key rivals#jjt#first_epochs: did you mean"),
        (["--objective", "group_dro", "objective_axes=[sex]"], "no training case has the group axis sex"),
        (["--objective", "rgd", "rivals#rgd#tau=-1"], "objective rgd: tau is -1"),
        (["--objective", "group_dro", "--beta", "30"], "objective group_dro does not use beta=30.0; leave that out"),
        (["--beta", "30", "mix=0.1"], "objective erm does not use beta=30.0, mix=0.1; leave that out"),
        (["--objective", "jtt", "rivals#rgd#tau=2"], "objective jtt does not use rivals#rgd"),
        (
            ["--objective", "hardness", "--target-ess", "0.3", "target_kl=0.2"],
            "target_kl=0.2 and target_ess=0.3: each of them says how robust the training is; give one",
        ),
        (
            ["--objective", "hardness", "--beta", "30", "divergence=cvar", "mix=0.1"],
            "beta: divergence cvar has no such parameter; it takes alpha, or target_ess",
        ),
        (["--objective", "gdro"], "choose one of erm, hardness, two_level, group_dro, group_balanced, jtt, rgd, febs"),
    ],
)
def test_a_setting_that_cannot_be_is_one_clear_line_and_leaves_nothing(
    words: list[str], message: str, cohort: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(cohort, tmp_path / "run", *words) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error
    assert not (tmp_path / "run/models").exists()


@pytest.mark.parametrize("bundle", ["hippocampus_mri", "fetal_brain_mri"])
def test_a_bundle_has_every_setting_of_every_objective(bundle: str) -> None:
    config = load_config([shipped_bundles()[bundle] / "configs/train.yaml"])
    assert set(config["rivals"]) == set(OBJECTIVES) - {"erm", "hardness"}
    assert "first_epochs" in config["rivals"]["jtt"]
    assert config["rivals"]["jtt"]["first_epochs"] < config["epochs"]
    for name, settings in config["rivals"].items():
        with pytest.raises(Exception, match=f"objective {name} has no setting x; it has {', '.join(settings)}"):
            build_objective("erm", ["a"], batch_size=1, num_batches=1, rivals={name: {"x": 1}})
