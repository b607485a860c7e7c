"""Several runs, seeds and products of axes: from tables to one report."""

import json
import re

import numpy as np
import pandas as pd
import pytest

from droseg.cli import main
from droseg.errors import InputError
from droseg.metrics.axes import with_axes
from droseg.report import write_report
from droseg.report.evidence import Settings, collect_evidence
from droseg.report.seeds import average_seeds, partly_there, spread_table

FEW = Settings(num_bootstrap=50)
FAST = ("--bootstrap", "0", "--metric", "dice:dice")


def seeded(*tables):
    return pd.concat([table.assign(seed=i) for i, table in enumerate(tables)], ignore_index=True)


def rows(table, **keys):
    for column, value in keys.items():
        table = table[table[column] == value]
    return table


def test_a_product_of_axes_groups_by_both_at_once(make_cases):
    cases = with_axes(make_cases(), ["anatomy*protocol"])
    both = cases["anatomy"] + " * " + cases["protocol"]
    assert cases["anatomy*protocol"].tolist() == both.tolist()
    run = collect_evidence({"run": make_cases()}, None, ["anatomy", "anatomy*protocol"], ["dice"], FEW)[0]
    cell = rows(run.subgroups, axis="anatomy*protocol", group="typical * site_0", structure="a", metric="dice")
    source = make_cases()
    expected = source[(source["anatomy"] == "typical") & (source["protocol"] == "site_0")].query("structure == 'a'")
    assert cell["mean"].tolist() == pytest.approx([expected["dice"].mean()])


def test_a_case_without_one_of_the_groups_is_in_no_cell_of_the_product(make_cases):
    cases = make_cases()
    cases["anatomy"] = cases["anatomy"].where(cases["case_id"] != "c00", None)
    joined = with_axes(cases, ["anatomy*protocol"])
    assert joined.loc[joined["case_id"] == "c00", "anatomy*protocol"].isna().all()


def test_small_cells_of_a_product_are_shown_and_marked_but_not_ranked(make_cases, tmp_path):
    cases = make_cases()
    cases["sex"] = np.where(cases["case_id"].isin(["c23", "c22"]), "f", "m")
    report = write_report(cases, tmp_path, axes=["anatomy*sex"], num_bootstrap=50)
    shown = rows(report.evidence.penalized, structure="mean", metric="dice", axis="anatomy*sex")
    assert dict(zip(shown["group"], shown["size"], strict=True))["rare * f"] == "too few"
    page = report.html.read_text()
    assert "1‡" in page
    assert "Not ranked, with fewer than 5 patients, but worse" in page
    assert 'class="unranked"' in page


def test_a_product_with_a_column_that_is_not_there_is_an_error(make_cases, tmp_path):
    with pytest.raises(InputError, match=r"no column 'anatomy\*scanner'"):
        write_report(make_cases(), tmp_path, axes=["anatomy*scanner"])
    with pytest.raises(InputError, match="cannot group by structure"):
        write_report(make_cases(), tmp_path, axes=["anatomy*structure"])


def test_spread_is_the_standard_deviation_of_the_means_of_the_trainings(make_cases):
    tables = [make_cases(seed) for seed in range(3)]
    spread = spread_table(seeded(*tables), ["anatomy"], ["dice"])
    means = [t[(t["anatomy"] == "rare") & (t["structure"] == "a")]["dice"].mean() for t in tables]
    found = rows(spread, group="rare", structure="a").iloc[0]
    assert found["std_between"] == pytest.approx(np.std(means, ddof=1))
    assert (found["trainings"], found["lowest"], found["highest"]) == (3, min(means), max(means))


def test_a_failure_of_one_training_counts_in_the_spread(make_cases):
    first, second = make_cases(0), make_cases(0)
    lost = (second["case_id"] == "c00") & (second["structure"] == "a")
    second.loc[lost, ["dice", "nsd", "volume_pred_ml"]] = 0.0
    second.loc[lost, ["hd_mm", "hd95_mm", "assd_mm"]] = np.nan
    found = rows(spread_table(seeded(first, second), [], ["hd95_mm"]), structure="a", metric="hd95_mm").iloc[0]
    own = first.loc[lost, "hd95_mm"].item()
    assert found["highest"] - found["lowest"] == pytest.approx((150.0 - own) / 24)


def test_one_training_has_no_spread_and_is_called_one(make_cases, tmp_path):
    assert spread_table(make_cases(), ["anatomy"], ["dice"]).empty
    options = {"metrics": ["dice"], "axes": [], "num_bootstrap": 0}
    text = write_report(make_cases(1), tmp_path, baseline=make_cases(2), **options).html.read_text()
    assert "This run is one training: how far another seed would lie is unknown." in text


def test_seeds_are_averaged_before_anything_is_tested(make_cases):
    run, base = [make_cases(s) for s in (1, 2)], [make_cases(s) for s in (3, 4, 5)]
    found = collect_evidence({"run": seeded(*run)}, ("base", seeded(*base)), [], ["dice"], FEW)[0]
    averaged = [average_seeds(seeded(*side)) for side in (run, base)]
    expected = collect_evidence({"run": averaged[0]}, ("base", averaged[1]), [], ["dice"], FEW)[0]
    pd.testing.assert_frame_equal(found.comparison.table, expected.comparison.table)
    assert (found.trainings, found.reference.trainings) == (2, 3)


def test_cases_that_some_trainings_lack_are_listed(make_cases, tmp_path):
    first, second = make_cases(0), make_cases(1)
    both = seeded(first, second[second["case_id"] != "c04"])
    assert partly_there(both) == ["c04"]
    text = write_report(both, tmp_path, metrics=["dice"], num_bootstrap=0).html.read_text()
    assert "1 cases are not in all of its trainings" in text
    assert "(c04)" in text


def test_the_first_run_is_what_the_others_are_compared_with(make_cases, write_csv, tmp_path):
    paths = {name: write_csv(make_cases(i), f"{name}.csv") for i, name in enumerate(("ERM", "DRO", "GroupDRO"))}
    named = [part for name, path in paths.items() for part in ("--run", f"{name}={path}")]
    assert main(["report", *named, "--group-by", "anatomy", "--out", str(tmp_path / "out"), *FAST]) == 0
    document = json.loads((tmp_path / "out" / "report.json").read_text())
    roles = [(run["name"], run["role"]) for run in document["runs"]]
    assert roles == [("DRO", "run"), ("GroupDRO", "run"), ("ERM", "reference")]
    comparison = pd.read_csv(tmp_path / "out" / "comparison.csv")
    assert set(comparison["run"]) == {"DRO", "GroupDRO"}
    assert document["settings"]["family"] == len(comparison)
    difference = rows(comparison, run="GroupDRO", axis="all", structure="a", metric="dice")["difference"].item()
    means = {i: make_cases(i).query("structure == 'a'")["dice"].mean() for i in (0, 2)}
    assert difference == pytest.approx(means[2] - means[0])
    assert (tmp_path / "out" / "subgroups_ERM.csv").exists()


def test_a_run_named_twice_is_two_seeds(make_cases, write_csv, tmp_path):
    arguments = [f"ERM={write_csv(make_cases(0), 'e.csv')}"] + [
        f"DRO={write_csv(make_cases(i), f'd{i}.csv')}" for i in (1, 2)
    ]
    named = [part for text in arguments for part in ("--run", text)]
    assert main(["report", *named, "--out", str(tmp_path / "out"), *FAST]) == 0
    document = json.loads((tmp_path / "out" / "report.json").read_text())
    assert [run["trainings"] for run in document["runs"]] == [2, 1]


def test_a_baseline_goes_before_the_first_run(make_cases, write_csv, tmp_path):
    run, base = write_csv(make_cases(1), "a/run.csv"), write_csv(make_cases(0), "base/x.csv")
    out = str(tmp_path / "out")
    assert main(["report", "--run", f"DRO={run}", "--baseline", str(base), "--out", out, *FAST]) == 0
    document = json.loads((tmp_path / "out" / "report.json").read_text())
    assert [(r["name"], r["role"]) for r in document["runs"]] == [("DRO", "run"), ("base", "reference")]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give either CASES.csv or --run"),
        (["CSV", "--run", "A=CSV"], "give either CASES.csv or --run"),
        (["--run", "CSV"], "expected two parts with '='"),
        (["--run", "A=CSV", "--name", "B"], "--name is for CASES.csv"),
        (["--run", "A=CSV", "--baseline-name", "B"], "--baseline-name is for --baseline"),
        (["--run", "A=CSV", "--baseline", "CSV", "--baseline-name", "A"], "two runs are called 'A'"),
        ([part for i in range(8) for part in ("--run", f"{i}=CSV")], "8 runs; 6 at most"),
    ],
)
def test_runs_that_cannot_be_told_apart_are_errors(make_cases, write_csv, tmp_path, capsys, arguments, message):
    paths = [str(write_csv(make_cases(i), f"{i}/case_metrics.csv")) for i in range(len(arguments))]
    arguments = [argument.replace("CSV", path) for argument, path in zip(arguments, paths, strict=True)]
    assert main(["report", *arguments, "--out", str(tmp_path / "out")]) == 2
    assert message in capsys.readouterr().err


def test_a_case_in_two_groups_is_an_error_that_names_it(make_cases, tmp_path):
    other = make_cases().assign(anatomy=lambda t: t["anatomy"].where(t["case_id"] != "c01", "rare"))
    with pytest.raises(InputError, match=r"case 'c01': anatomy is 'typical' in This run and 'rare' in other"):
        write_report(make_cases(), tmp_path, others={"other": other}, num_bootstrap=10)


def test_every_run_has_its_own_mark_and_verdict(make_cases, tmp_path):
    others = {f"run {i}": make_cases(i) for i in (2, 3, 4)}
    options = {"metrics": ["dice"], "axes": ["anatomy"], "num_bootstrap": 0}
    report = write_report(make_cases(1), tmp_path, baseline=make_cases(0), others=others, **options)
    page = report.html.read_text()
    for run in range(5):
        assert f'<g class="run{run}">' in page
    assert len(re.findall(r"<p>[^<]* has a mean Dice of", page)) == 4


def test_groups_of_a_further_run_may_be_those_of_the_first(make_cases, tmp_path):
    other = make_cases(1).drop(columns=["anatomy", "protocol"])
    options = {"metrics": ["dice"], "axes": ["anatomy"], "num_bootstrap": 0}
    report = write_report(make_cases(), tmp_path, others={"other": other}, **options)
    assert rows(report.runs[1].subgroups, axis="anatomy", group="rare", structure="a", metric="dice")["n"].item() == 6


def test_the_page_says_which_structures_and_rows_were_not_compared(make_cases, tmp_path):
    run, baseline = make_cases(1), make_cases(2)
    run = run[(run["structure"] != "a") | (run["case_id"] != "c03")]
    options = {"metrics": ["dice"], "axes": [], "num_bootstrap": 0, "name": "DRO", "baseline_name": "ERM"}
    report = write_report(run, tmp_path, baseline=baseline[baseline["structure"] != "b"], **options)
    page = report.html.read_text()
    verdict = "Not compared: structure b only in DRO; 1 row of shared cases only in ERM. The comparison is over a, c."
    assert verdict in page
    assert "ERM: a, c; DRO: a, c and b." in page
    assert "Only in ERM, not compared: 1 rows (a), c03: a;" in page
    comparison = json.loads((tmp_path / "report.json").read_text())["runs"][0]["comparison"]
    assert comparison["structures_only_run"] == ["b"]
    assert comparison["rows_only_reference"] == [{"case_id": "c03", "structure": "a"}]


def test_the_console_lists_few_names_of_cases_that_were_not_compared(make_cases, write_csv, tmp_path, capsys):
    cases = make_cases(num_cases=40)
    run, base = write_csv(cases), write_csv(cases[cases["case_id"] < "c02"], "base/case_metrics.csv")
    assert main(["report", str(run), "--baseline", str(base), "--out", str(tmp_path / "out"), *FAST]) == 0
    out = capsys.readouterr().out
    assert "and 28 more cases (all of them in report.json)" in out
    assert "c39" not in out.split("only in run")[1].splitlines()[0]
    comparison = json.loads((tmp_path / "out" / "report.json").read_text())["runs"][0]["comparison"]
    assert len(comparison["only_run"]) == 38
