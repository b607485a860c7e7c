from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from monai.networks.nets import UNet

from droseg.cli import main
from droseg.data import read_datalist
from droseg.data.phantoms import generate_phantoms
from droseg.data.volumes import read_volume, spacing_mm


@pytest.fixture(scope="module")
def phantoms(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return generate_phantoms(tmp_path_factory.mktemp("phantoms"), cases=130, seed=3, size=24)


def truth(datalist_path: Path, section: str = "training") -> pd.DataFrame:
    """Return slice thickness and ventricle volume of each case, from the files, by other code than that under test."""
    datalist = read_datalist(datalist_path)
    rows = {}
    for case in datalist.section(section):
        label = read_volume(case.label)
        edges = spacing_mm(label.affine)
        ml = (label.array == datalist.structures["ventricles"][0]).sum() * edges.prod() / 1000
        rows[case.case_id] = {"thickness": edges.max(), "ventricles": ml, **case.groups}
    return pd.DataFrame.from_dict(rows, orient="index")


def write_cases(path: Path, table: pd.DataFrame, bad: pd.Series, loss: float, seed: int = 0) -> pd.DataFrame:
    """Write case_metrics.csv of two structures; of the bad cases some miss the second one."""
    rng = np.random.default_rng(seed)
    rows = []
    for case_id, row in table.iterrows():
        for structure in ("ventricles", "white_matter"):
            dice = float(np.clip(0.9 - abs(rng.normal(0, 0.05)) - loss * bad[case_id], 0.01, 1))
            missed = structure == "white_matter" and bad[case_id] and rng.random() < 0.3
            rows.append(
                {"case_id": case_id, "patient_id": case_id, "structure": structure, "dice": 0.0 if missed else dice}
                | {"hd_mm": np.nan, "hd95_mm": np.nan if missed else 20 * (1 - dice), "assd_mm": np.nan, "nsd": np.nan}
                | {"volume_ref_ml": row["ventricles"] if structure == "ventricles" else 100.0}
                | {"volume_pred_ml": 0.0 if missed else 10.0, "diagonal_mm": 220.0}
                | {"anatomy": row["anatomy"], "protocol": row["protocol"]}
            )
    cases = pd.DataFrame(rows)
    cases.to_csv(path, index=False)
    return cases


@pytest.mark.parametrize("metric", ["dice", "hd95_mm"])
def test_a_slice_planted_in_phantoms_is_found_from_their_files_and_exported(
    phantoms: Path, tmp_path: Path, capsys: pytest.CaptureFixture, metric: str
):
    table = truth(phantoms)
    thin = table["thickness"] < 6  # both features are needed: no group names it
    bad = thin & (table["ventricles"] < table["ventricles"].median())
    write_cases(tmp_path / "cases.csv", table, bad, 0.3)
    export = tmp_path / "hidden.json"
    arguments = ["--datalist", str(phantoms), "--export-datalist", str(export), "--metric", metric]
    assert main(["discover", str(tmp_path / "cases.csv"), *arguments, "--out", str(tmp_path / "out")]) == 0
    printed = capsys.readouterr().out
    assert f"mean {metric}" in printed.split("Confirmed:")[1]
    found = pd.read_csv(tmp_path / "out" / "hidden_subgroups.csv")
    first = found[found["confirmed"]].iloc[0]
    assert "ventricles <=" in first["rule"]
    assert first["axis"] == "hidden_1"
    groups = {c.case_id: c.groups for c in read_datalist(export).section("training")}
    inside = pd.Series({case_id: axes["hidden_1"] == "inside" for case_id, axes in groups.items()})
    assert (inside & bad).sum() / (inside | bad).sum() >= 0.6
    # The other sections get the axis by the same rule, from their own files.
    elsewhere = truth(phantoms, "testing")
    threshold = float(first["rule"].split("ventricles <= ")[1].split(" ml")[0])
    for case in read_datalist(export).section("testing"):
        if elsewhere["ventricles"][case.case_id] > threshold:
            assert case.groups["hidden_1"] == "outside"
    assert {case.groups["hidden_1"] for case in read_datalist(export).section("testing")} == {"inside", "outside"}


def test_without_a_planted_slice_nothing_is_exported_and_the_exit_code_says_so(
    phantoms: Path, tmp_path: Path, capsys: pytest.CaptureFixture
):
    table = truth(phantoms)
    write_cases(tmp_path / "cases.csv", table, pd.Series(False, index=table.index), 0.0)
    # At the usual 0.05, one null cohort in twenty would fail this test.
    options = ["--datalist", str(phantoms), "--alpha", "0.01", "--out", str(tmp_path / "out")]
    command = ["discover", str(tmp_path / "cases.csv"), *options]
    assert main(command) == 0
    printed = capsys.readouterr().out
    assert "something would be confirmed with a chance of at most 0.01." in printed
    message = printed.split("No hidden subgroup is confirmed.")[1]
    assert "would be found 4 times in 5 only if its mean dice were lower by about 0." in message
    assert main([*command, "--export-datalist", str(tmp_path / "new.json")]) == 1
    assert "nothing is confirmed" in capsys.readouterr().err
    assert not (tmp_path / "new.json").exists()


def test_a_csv_of_features_and_the_volumes_of_the_table_are_enough(tmp_path: Path, phantoms: Path):
    table = truth(phantoms)
    rng = np.random.default_rng(0)
    age = pd.Series(rng.uniform(20, 40, size=len(table)), index=table.index)
    write_cases(tmp_path / "cases.csv", table, age < 26, 0.3)
    age.rename("age_weeks").rename_axis("case_id").to_csv(tmp_path / "features.csv")
    options = ["--features", str(tmp_path / "features.csv"), "--structure", "ventricles", "--seed", "1"]
    assert main(["discover", str(tmp_path / "cases.csv"), *options, "--out", str(tmp_path / "out")]) == 0
    found = pd.read_csv(tmp_path / "out" / "hidden_subgroups.csv")
    assert found["confirmed"][0]
    assert found["rule"][0].startswith("age weeks <= 2")
    assert list(pd.read_csv(tmp_path / "out" / "features.csv").columns) == [
        *("case_id", "age_weeks", "ventricles_ml", "white_matter_ml")
    ]


def test_a_bundle_adds_features_of_its_network(phantoms: Path, tmp_path: Path, copy_bundle):
    network = {"spatial_dims": 3, "in_channels": 1, "out_channels": 3, "channels": [4, 8], "strides": [2]}
    copy_bundle("hippocampus_mri", tmp_path / "run")
    path = tmp_path / "run" / "configs" / "inference.yaml"
    config = yaml.safe_load(path.read_text()) | {"network_def": {"_target_": "UNet", **network}}
    config |= {"spacing_mm": [8.0, 8.0, 8.0], "roi_size": [16, 16, 16]}
    path.write_text(yaml.safe_dump(config, sort_keys=False))
    torch.save(UNet(**network).state_dict(), tmp_path / "run" / "models" / "model.pt")
    table = truth(phantoms).iloc[:24]
    write_cases(tmp_path / "cases.csv", table, pd.Series(False, index=table.index), 0.0)
    options = ["--datalist", str(phantoms), "--bundle", str(tmp_path / "run"), "--device", "cpu"]
    assert main(["discover", str(tmp_path / "cases.csv"), *options, "--out", str(tmp_path / "out")]) == 0
    features = pd.read_csv(tmp_path / "out" / "features.csv", index_col="case_id").loc[table.index]
    components = features[[f"network_{number}" for number in range(1, 5)]]
    assert components.notna().all(axis=None)
    assert (components.var() > 0).all()


def test_images_that_cannot_be_read_are_said_in_one_line_after_the_search(
    phantoms: Path, tmp_path: Path, capsys: pytest.CaptureFixture
):
    table = truth(phantoms)
    write_cases(tmp_path / "cases.csv", table, table["thickness"] < 0, 0.0)
    document = yaml.safe_load(phantoms.read_text())  # JSON is YAML
    for entry in document["training"][:7]:
        entry["image"] = "gone/" + entry["image"]
    (moved := phantoms.with_name("moved.json")).write_text(json.dumps(document))
    command = ["discover", str(tmp_path / "cases.csv"), "--datalist", str(moved), "--out", str(tmp_path / "out")]
    assert main(command) == 1
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("droseg: error: ")]
    assert "no such file" in line
    assert "(and 6 more cases: " in line
    assert line.endswith(", ...). The search went without the features of these images.")
    assert (tmp_path / "out" / "hidden_subgroups.csv").is_file()


def test_what_cannot_work_is_refused_with_the_reason(tmp_path: Path, phantoms: Path, capsys: pytest.CaptureFixture):
    table = truth(phantoms)
    write_cases(tmp_path / "cases.csv", table, pd.Series(False, index=table.index), 0.0)
    (tmp_path / "other.csv").write_text("case_id,age\nsomeone,3\n")
    command = ["discover", str(tmp_path / "cases.csv"), "--out", str(tmp_path / "out")]
    for options, message in (
        (["--metric", "speed"], "no column 'speed'"),
        (["--structure", "spleen"], "no structure 'spleen'; those there: ventricles, white_matter"),
        (["--features", str(tmp_path / "other.csv")], "none of its cases is in"),
        (["--export-datalist", "x.json"], "give it by --datalist"),
        (["--alpha", "5"], "--alpha is 5.0"),
        (["--min-patients", "30"], "78 patients with a value are too few"),
    ):
        assert main([*command, *options]) != 0
        assert message in capsys.readouterr().err
