"""`droseg evaluate` and `droseg report` from files to files, with their exit codes."""

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import torch
import yaml

from droseg.cli import main


def evaluate(tmp_path, *more):
    arguments = ["evaluate", "--datalist", str(tmp_path / "datalist.json"), "--out", str(tmp_path / "eval"), *more]
    return main(arguments)


def test_evaluate_then_report_leaves_all_files(cohort, tmp_path, capsys):
    pred = str(tmp_path / "pred")
    assert evaluate(tmp_path, "--pred", pred) == 0
    assert "4 of 4 cases" in capsys.readouterr().out
    table = str(tmp_path / "eval" / "case_metrics.csv")
    before = tmp_path / "before.csv"
    pd.read_csv(table).assign(dice=0.9).to_csv(before, index=False)
    report = ["report", table, "--baseline", str(before), "--group-by", "anatomy", "--out", str(tmp_path / "report")]
    report += ["--baseline-name", "the baseline"]
    assert main([*report, "--datalist", str(cohort.path), "--pred", pred]) == 0
    out = capsys.readouterr().out
    assert "anatomy = rare" in out
    assert "inconclusive" in out
    assert str(tmp_path / "report" / "report.html") in out
    tables = {"subgroups.csv", "subgroups_penalized.csv", "gaps.csv", "comparison.csv", "subgroups_the_baseline.csv"}
    assert {p.name for p in (tmp_path / "report").iterdir()} == tables | {
        *("report.html", "report.json", "table.md", "table.tex")
    }


def test_a_missing_prediction_is_listed_and_an_error(cohort, tmp_path, capsys):
    (tmp_path / "pred" / "c2_seg.nii.gz").unlink()
    assert evaluate(tmp_path, "--pred", str(tmp_path / "pred")) == 1
    assert "  c2" in capsys.readouterr().err
    assert len(pd.read_csv(tmp_path / "eval" / "case_metrics.csv")) == 6
    assert evaluate(tmp_path, "--pred", str(tmp_path / "pred"), "--missing-as-failure") == 0
    assert "c2" in capsys.readouterr().err
    table = pd.read_csv(tmp_path / "eval" / "case_metrics.csv")
    assert table[table["case_id"] == "c2"]["dice"].tolist() == [0.0, 0.0]


def test_another_grid_is_an_error_that_says_both_and_scores_the_rest(cohort, tmp_path, capsys):
    labels = np.asarray(nib.load(tmp_path / "labels/c1.nii.gz").dataobj)
    nib.save(nib.Nifti1Image(labels[:10].copy(), np.diag([1, 1, 3, 1])), tmp_path / "pred/c1_seg.nii.gz")
    assert evaluate(tmp_path, "--pred", str(tmp_path / "pred")) == 1
    error = capsys.readouterr().err
    assert "c1:" in error
    assert "(10, 18, 12)" in error
    assert "(20, 18, 12)" in error
    assert len(pd.read_csv(tmp_path / "eval" / "case_metrics.csv")) == 6


def test_a_folder_or_section_that_is_not_there_is_named(cohort, tmp_path, capsys):
    assert evaluate(tmp_path, "--pred", str(tmp_path / "nowhere")) == 1
    assert "nowhere" in capsys.readouterr().err
    assert evaluate(tmp_path, "--pred", str(tmp_path / "pred"), "--section", "validation") == 1
    assert "testing (4)" in capsys.readouterr().err


@pytest.fixture
def threshold_bundle(tmp_path, copy_bundle):
    """A run folder whose network finds the anterior structure alone: an intensity of 100 among 0 and 500."""
    bundle = tmp_path / "run"
    copy_bundle("hippocampus_mri", bundle)
    path = bundle / "configs" / "inference.yaml"
    document = yaml.safe_load(path.read_text())
    image = np.asarray(nib.load(tmp_path / "images/c0.nii.gz").dataobj)
    levels = (np.array([0.0, 100.0]) - image.mean()) / image.std()
    document["structures"] = {"anterior": 1}
    document["network_def"] = {"_target_": "torch.nn.Conv3d", "in_channels": 1, "out_channels": 2, "kernel_size": 1}
    path.write_text(yaml.safe_dump(document, sort_keys=False))
    weight = torch.tensor(2 * levels).float().reshape(2, 1, 1, 1, 1)
    torch.save({"weight": weight, "bias": torch.tensor(-(levels**2)).float()}, bundle / "models" / "model.pt")
    return bundle


def test_a_bundle_is_scored_on_the_structures_it_knows(cohort, tmp_path, threshold_bundle):
    assert evaluate(tmp_path, "--bundle", str(threshold_bundle), "--device", "cpu") == 0
    table = pd.read_csv(tmp_path / "eval" / "case_metrics.csv")
    assert set(table["structure"]) == {"anterior"}
    assert len(list((tmp_path / "eval" / "predictions").glob("c*_seg.nii.gz"))) == 4
    assert (table["dice"] > 0.5).all()


def other_weights(bundle):
    """Turn a run folder into another model: all background."""
    model = torch.load(bundle / "models" / "model.pt", weights_only=True)
    torch.save({**model, "bias": torch.tensor([1e6, 0.0])}, bundle / "models" / "model.pt")


def test_label_maps_of_another_model_are_never_scored_as_the_bundles(cohort, tmp_path, threshold_bundle, capsys):
    arguments = ["--bundle", str(threshold_bundle), "--device", "cpu"]
    assert evaluate(tmp_path, *arguments) == 0
    table = tmp_path / "eval" / "case_metrics.csv"
    of_first = table.read_text()
    other_weights(threshold_bundle)
    assert evaluate(tmp_path, *arguments) == 1
    error = capsys.readouterr().err
    assert error.count("by another model") == 4
    assert "earlier evaluation" in error
    assert table.read_text() == of_first  # nothing new was scored, so nothing was written
    (tmp_path / "eval" / "predictions" / "c2_seg.nii.gz").unlink()
    assert evaluate(tmp_path, *arguments) == 1
    scored = pd.read_csv(table)
    assert (scored["case_id"].tolist(), scored["dice"].tolist()) == (["c2"], [0.0])
    assert evaluate(tmp_path, *arguments, "--overwrite") == 0
    assert pd.read_csv(table)["dice"].tolist() == [0.0] * 4


def test_a_label_map_beside_those_of_the_bundle_is_not_scored(cohort, tmp_path, threshold_bundle):
    stray = tmp_path / "eval" / "predictions" / "c0.nii.gz"  # its name is looked for first
    stray.parent.mkdir(parents=True)
    nib.save(nib.Nifti1Image(np.zeros((20, 18, 12), np.uint8), np.diag([1, 1, 3, 1])), stray)
    assert evaluate(tmp_path, "--bundle", str(threshold_bundle), "--device", "cpu") == 0
    assert (pd.read_csv(tmp_path / "eval" / "case_metrics.csv")["dice"] > 0.5).all()


def test_a_damaged_image_takes_its_former_label_map_out_of_the_table(cohort, tmp_path, threshold_bundle, capsys):
    arguments = ["--bundle", str(threshold_bundle), "--device", "cpu"]
    assert evaluate(tmp_path, *arguments) == 0
    (tmp_path / "images" / "c1.nii.gz").write_bytes(b"damaged")
    assert evaluate(tmp_path, *arguments) == 1
    assert "c1:" in capsys.readouterr().err
    assert pd.read_csv(tmp_path / "eval" / "case_metrics.csv")["case_id"].tolist() == ["c0", "c2", "c3"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--bundle", "hippocampus_mri", "--missing-as-failure"], "--missing-as-failure is for --pred"),
        (["--pred", "pred", "--nsd-tolerance-mm", "inf"], "--nsd-tolerance-mm is inf"),
        (["--pred", "pred", "--workers", "-1"], "--workers is -1"),
    ],
)
def test_evaluate_refuses_arguments_that_mean_nothing(cohort, tmp_path, capsys, arguments, message):
    assert evaluate(tmp_path, *arguments) == 2
    assert message in capsys.readouterr().err


def test_a_structure_that_the_datalist_lacks_is_named(cohort, tmp_path, threshold_bundle, capsys):
    path = threshold_bundle / "configs" / "inference.yaml"
    path.write_text(path.read_text().replace("anterior: 1", "cortex: 1"))
    assert evaluate(tmp_path, "--bundle", str(threshold_bundle), "--device", "cpu", "--structures", "cortex") == 2
    assert "no cortex" in capsys.readouterr().err


def test_report_reads_tables_of_other_software(tmp_path, capsys):
    path = tmp_path / "other.csv"
    rows = [f"s{i};WM;{0.9 - 0.01 * i:.2f};{'3T' if i % 2 else '1.5T'};test" for i in range(12)]
    path.write_text("Subject;Region;DSC;Scanner;split\n" + "\n".join([*rows, "s99;WM;0.1;3T;train"]) + "\n")
    code = main(
        ["report", str(path), "--case-column", "Subject", "--structure-column", "Region", "--metric", "dice:DSC"]
        + ["--group-by", "Scanner", "--where", "split=test", "--out", str(tmp_path / "out")]
    )
    assert code == 0
    table = pd.read_csv(tmp_path / "out" / "subgroups.csv")
    assert table[(table["group"] == "all") & (table["structure"] == "WM")]["n"].tolist() == [12]
    assert set(table["axis"]) == {"all", "Scanner"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--group-by", "scanner"], "no column 'scanner'"),
        (["--metric", "dice"], "--metric dice"),
        (["--where", "anatomy"], "--where anatomy"),
        (["--min-effect", "dice=small"], "not a number"),
        (["--min-effect", "dicee=3"], "no metric dicee"),
        (["--seed", "-1"], "--seed is -1"),
        (["--bootstrap", "-5"], "--bootstrap is -5"),
        (["--pictures", "-3"], "--pictures is -3"),
        (["--pred", "nopred"], "nopred: no such folder"),
        *((["--group-by", own], f"cannot group by {own}") for own in ("case_id", "dice", "structure", "diagonal_mm")),
    ],
)
def test_arguments_that_cannot_be_used_are_errors(make_cases, write_csv, tmp_path, capsys, arguments, message):
    assert main(["report", str(write_csv(make_cases())), "--out", str(tmp_path / "out"), *arguments]) == 2
    assert message in capsys.readouterr().err


def test_several_csvs_are_seeds_and_the_page_says_so(make_cases, write_csv, tmp_path):
    paths = [str(write_csv(make_cases(seed), f"seed{seed}/case_metrics.csv")) for seed in range(3)]
    assert main(["report", *paths, "--group-by", "anatomy", "--out", str(tmp_path / "out"), "--bootstrap", "50"]) == 0
    page = (tmp_path / "out" / "report.html").read_text()
    assert "seed0 is 3 trainings" in page
    assert "± of 3 trainings" in page


def test_cases_of_one_run_only_are_listed(make_cases, write_csv, tmp_path, capsys):
    cases = make_cases()
    run, baseline = write_csv(cases), write_csv(cases[cases["case_id"] != "c05"], "base/case_metrics.csv")
    code = main(["report", str(run), "--baseline", str(baseline), "--out", str(tmp_path / "out"), "--bootstrap", "50"])
    assert code == 0
    assert "only in run, not compared: c05" in capsys.readouterr().out


def test_a_picture_that_cannot_be_drawn_is_said(cohort, tmp_path, capsys):
    pred = tmp_path / "pred"
    assert evaluate(tmp_path, "--pred", str(pred)) == 0
    (pred / "c0_seg.nii.gz").unlink()
    table = str(tmp_path / "eval" / "case_metrics.csv")
    assert main(["report", table, "--datalist", str(cohort.path), "--pred", str(pred), "--out", str(tmp_path)]) == 0
    assert "note: no picture of c0: no prediction in" in capsys.readouterr().err


def foreign_pair(tmp_path, worse_by):
    """Two tables of other software whose HD95 differs by so many mm, for all of 12 cases."""
    paths = []
    for name, shift in (("a", 0.0), ("b", worse_by)):
        rows = [f"s{i},WM,{2 + 0.01 * i * (i % 3) + shift:.2f},g{i % 2}" for i in range(12)]
        paths.append(tmp_path / f"{name}.csv")
        paths[-1].write_text("Subject,Region,HD95,Group\n" + "\n".join(rows) + "\n")
    return [str(path) for path in paths]


def test_a_foreign_distance_that_grows_hurts_and_is_no_score(tmp_path, capsys):
    before, after = foreign_pair(tmp_path, worse_by=2.0)
    arguments = ["report", after, "--baseline", before, "--case-column", "Subject", "--structure-column", "Region"]
    arguments += ["--group-by", "Group", "--bootstrap", "100", "--out", str(tmp_path / "out")]
    assert main([*arguments, "--metric", "HD95:HD95"]) == 2
    assert "HD95:COLUMN:lower" in capsys.readouterr().err
    assert main([*arguments, "--metric", "HD95:HD95:lower"]) == 0
    table = pd.read_csv(tmp_path / "out" / "comparison.csv").query("axis == 'all' and structure == 'WM'")
    assert table["verdict"].tolist() == ["hurt"]
    assert table["worst"].item() == pytest.approx(4.22)  # case 11: 2 + 0.01 * 11 * 2, and 2 more
    assert pd.read_csv(tmp_path / "out" / "gaps.csv")["equity_scaled"].isna().all()
    assert "Lower is better: HD95_lower." in (tmp_path / "out" / "report.html").read_text()
    assert main([*arguments, "--metric", "dice:HD95:lower"]) == 2
    assert "dice is a metric of droseg" in capsys.readouterr().err


def test_a_table_counts_once(make_cases, write_csv, tmp_path, capsys):
    """A copy among the trainings would be a training without any spread; as baseline, no difference at all."""
    first, other = write_csv(make_cases(1), "1.csv"), write_csv(make_cases(2), "2.csv")
    copy = tmp_path / "copy.csv"
    copy.write_bytes(first.read_bytes())
    out = ["--bootstrap", "0", "--out", str(tmp_path / "out")]
    for arguments in ([first, other, copy], [first, "--baseline", copy], [first, "--baseline", other, other]):
        assert main(["report", *map(str, arguments), *out]) == 2
        assert "has the same content as" in capsys.readouterr().err
    assert main(["report", str(first), "--baseline", str(other), *out]) == 0


def test_how_a_table_was_read_is_said_on_both_sides(tmp_path, capsys):
    path = tmp_path / "secret.csv"
    rows = "".join(f"c{i},,a,0.9\n" for i in range(3))
    path.write_text(f"case_id,patient_id,structure,dice\n{rows}")
    command = ["report", str(path), "--bootstrap", "0", "--out", str(tmp_path / "out")]
    assert main([*command, "--pseudonyms"]) == 0
    assert f"note: {path}: 3 cases have no patient" in capsys.readouterr().err
    page = (tmp_path / "out" / "report.html").read_text()
    assert "3 cases of 3 patients" in page
    assert "3 cases have no patient; each of them counts as a patient of its own." in page
    assert "secret" not in page
