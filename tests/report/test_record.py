"""What a report says of the cases that no one scored, and of how the others were."""

import json

import pandas as pd
import pytest

from droseg.cli import main
from droseg.report.record import Record, different_tolerances, read_record


def write_record(path, **fields):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"droseg": "0.1.0", "numpy": "2.4", "scipy": "1.17", **fields}))
    return path


def test_cases_without_a_score_have_their_reason(tmp_path):
    path = write_record(tmp_path / "evaluation.json", not_scored={"s2": "another grid"}, missing=["s4"])
    record = read_record([path])
    assert dict(record.unscored) == {"s2": "another grid", "s4": "no prediction"}
    assert record.assumed == []
    assert list(record.sentences("DRO")) == ["Not scored, and in no number of DRO: 2 cases (s2, s4)."]


def test_cases_that_count_as_missed_on_request_are_told_apart(tmp_path):
    path = write_record(tmp_path / "evaluation.json", missing=["s4"], missing_as_failure=True)
    record = read_record([path])
    assert (dict(record.unscored), record.assumed) == ({}, ["s4"])
    assert "counted as all missed in DRO (--missing-as-failure): 1 case (s4)." in next(record.sentences("DRO"))


def test_a_folder_without_a_record_has_none(tmp_path):
    (tmp_path / "evaluation.json").write_text("[not json")
    assert read_record([tmp_path / "evaluation.json", tmp_path / "none.json"]) is None


def test_two_trainings_are_read_together(tmp_path):
    first = write_record(tmp_path / "1" / "evaluation.json", missing=["a"], nsd_tolerance_mm={"x": 1.0})
    second = write_record(tmp_path / "2" / "evaluation.json", missing=["b"], nsd_tolerance_mm={"x": 2.0})
    record = read_record([first, second])
    assert list(record.unscored) == ["a", "b"]
    assert record.tolerance_text() == "1 mm or 2 mm"
    assert "different NSD tolerances" in list(record.sentences("DRO"))[-1]
    assert list(record.without({"a"}).unscored) == ["b"]  # the second training has a row of a


def test_tolerances_differ_per_structure():
    one, two = Record(tolerances_mm=[{"x": 1.0, "y": 1.0}]), Record(tolerances_mm=[{"x": 1.0, "y": 2.0}])
    assert different_tolerances(one, two, ["x", "y", "z"]) == ["y"]
    assert different_tolerances(one, None, ["x", "y"]) == []


@pytest.fixture
def evaluated(cohort, tmp_path):
    """An evaluation in which c1 has no prediction and c2 one of another grid."""
    pred = cohort.path.parent / "pred"
    (pred / "c1_seg.nii.gz").unlink()
    (pred / "c2_seg.nii.gz").write_bytes(b"no image")
    assert main(["evaluate", "--datalist", str(cohort.path), "--pred", str(pred), "--out", str(tmp_path / "run")]) == 1
    return tmp_path / "run" / "case_metrics.csv"


def test_the_page_names_the_cases_that_were_not_scored(evaluated, tmp_path, capsys):
    assert main(["report", str(evaluated), "--out", str(tmp_path / "out"), "--bootstrap", "0"]) == 0
    sentence = "Not scored, and in no number of run: 2 cases (c2, c1)."
    assert sentence in capsys.readouterr().err
    page = (tmp_path / "out" / "report.html").read_text()
    assert sentence in page.split('<section id="where">')[0]  # in the verdict, not only at the end
    assert "NSD tolerance 1 mm. Scored with droseg " in page
    run = json.loads((tmp_path / "out" / "report.json").read_text())["runs"][0]
    assert {row["case_id"] for row in run["evaluation"]["not_scored"]} == {"c1", "c2"}
    assert run["evaluation"]["nsd_tolerances_mm"] == [{"anterior": 1.0, "posterior": 1.0}]


def test_pseudonyms_hide_the_cases_that_were_not_scored(evaluated, tmp_path):
    out, key = tmp_path / "out", tmp_path / "key.csv"
    command = ["report", str(evaluated), "--out", str(out), "--bootstrap", "0", "--pseudonym-key", str(key)]
    assert main(command) == 0
    names = pd.read_csv(key).query("kind == 'case'").set_index("id")["pseudonym"]
    for path in out.iterdir():
        assert "c1" not in path.read_text().replace("c1_", ""), path.name
        assert str(tmp_path) not in path.read_text(), path.name
    shown = json.loads((out / "report.json").read_text())["runs"][0]["evaluation"]["not_scored"]
    assert sorted(row["case_id"] for row in shown) == sorted([names["c1"], names["c2"]])
    assert {row["reason"] for row in shown} == {""}


def test_a_case_without_a_prediction_is_no_miss_like_others(cohort, tmp_path):
    pred = cohort.path.parent / "pred"
    (pred / "c1_seg.nii.gz").unlink()
    command = ["evaluate", "--datalist", str(cohort.path), "--pred", str(pred), "--out", str(tmp_path / "run")]
    assert main([*command, "--missing-as-failure"]) == 0
    table = str(tmp_path / "run" / "case_metrics.csv")
    assert main(["report", table, "--out", str(tmp_path / "out"), "--bootstrap", "0"]) == 0
    page = (tmp_path / "out" / "report.html").read_text()
    assert page.count("missed (no prediction)") == 2  # both structures
    assert "counted as all missed in run (--missing-as-failure): 1 case (c1)." in page


def test_other_tolerances_of_the_baseline_are_a_warning_in_the_verdict(make_cases, write_csv, tmp_path):
    tables = [write_csv(make_cases(i), f"{name}/case_metrics.csv") for i, name in enumerate(("erm", "dro"))]
    for path, mm in zip(tables, (1.0, 2.0), strict=True):
        write_record(path.parent / "evaluation.json", nsd_tolerance_mm={"a": mm, "b": 1.0, "c": 1.0})
    command = ["report", str(tables[1]), "--baseline", str(tables[0]), "--out", str(tmp_path / "out")]
    assert main([*command, "--bootstrap", "0"]) == 0
    verdict = json.loads((tmp_path / "out" / "report.json").read_text())["verdict"][0]
    assert "NSD cannot be compared for a: its tolerance is a 2 mm, b 1 mm, c 1 mm in dro, 1 mm in erm." in verdict
    assert main([*command, "--bootstrap", "0", "--metric", "dice:dice"]) == 0
    assert "NSD cannot" not in (tmp_path / "out" / "report.html").read_text()
