"""report.json, table.md and table.tex hold the numbers of the report, and nothing that was to stay at home."""

import json
import re

import numpy as np
import pandas as pd
import pytest

from droseg.cli import main
from droseg.errors import InputError
from droseg.report import write_report


def cells_of(line):
    return [cell.strip() for cell in line.strip().strip("|").split("|")]


def markdown_rows(path):
    lines = [line for line in path.read_text().splitlines() if line.startswith("|")]
    return cells_of(lines[0]), {cells_of(line)[0]: cells_of(line) for line in lines[2:]}


def test_report_json_holds_every_row_and_no_nan(make_cases, tmp_path):
    options = {"metrics": ["dice", "hd95_mm"], "axes": ["anatomy"], "num_bootstrap": 50}
    report = write_report(make_cases(1), tmp_path, baseline=make_cases(2), **options)
    text = (tmp_path / "report.json").read_text()
    document = json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert (document["schema"], document["schema_version"]) == ("droseg.report", 1)
    run, evidence = document["runs"][0], report.evidence
    tables = {"subgroups": evidence.subgroups, "penalized": evidence.penalized, "gaps": evidence.gaps}
    for name, table in tables.items():
        pd.testing.assert_frame_equal(pd.DataFrame(run[name]), table, check_dtype=False)
    pd.testing.assert_frame_equal(pd.DataFrame(run["comparison"]["rows"]), evidence.comparison.table, check_dtype=False)
    assert run["failures"] == [{"case_id": "c23", "structure": "b", "what": "missed"}]
    assert run["worst_cases"][0]["case_id"] == "c23"
    assert document["hidden_subgroups"] is None
    assert "mean Dice of" in document["verdict"][0]
    assert "<" not in document["verdict"][0]


def test_the_usual_table_is_mean_and_std_of_dice_and_median_and_quartiles_of_hd95(make_cases, tmp_path):
    cases = make_cases()
    write_report(cases, tmp_path, axes=["anatomy"], num_bootstrap=50)
    header, rows = markdown_rows(tmp_path / "table.md")
    assert header == ["group", "n", "missed", "Dice, mean ± std", "HD95 (mm), median [iqr]"]
    typical = cases[cases["anatomy"] == "typical"].groupby("case_id")
    dice, hd95 = typical["dice"].mean(), typical["hd95_mm"].mean()
    expected = f"{dice.mean():.3f} ± {dice.std():.3f}"
    low, middle, high = np.percentile(hd95, [25, 50, 75])
    assert rows["anatomy = typical"][1:] == ["18†", "0", expected, f"{middle:.2f} [{low:.2f}, {high:.2f}]"]
    assert rows["anatomy = rare"][2] == "1"


def test_a_form_is_a_text_whose_words_are_replaced(make_cases, tmp_path):
    cases = make_cases()
    columns = ["dice@a:mean (ci)", "hd95_mm@*:p90 / worst", "dice:cvar10; n_missed/n"]
    write_report(cases, tmp_path, axes=["anatomy"], tables=columns, num_bootstrap=50)
    header, rows = markdown_rows(tmp_path / "table.md")
    assert header[3:] == [
        "Dice, a, mean (ci)",
        *(f"HD95 (mm), {s}, p90 / worst" for s in "abc"),
        "Dice, cvar10; n_missed/n",
    ]
    assert re.fullmatch(r"0\.\d{3} \(0\.\d{3}, 0\.\d{3}\)", rows["all"][3])
    assert rows["anatomy = rare"][5].endswith(" / 150.0")  # the missed structure costs the diagonal
    assert rows["all"][7].endswith("; 1/24")


def test_an_interval_is_that_of_the_number_before_it(make_cases, tmp_path):
    columns = ["dice:mean±std [ci]", "dice:p10[ci]", "dice:cvar10 [ci]", "hd95_mm@a:p90[ci], n"]
    report = write_report(make_cases(), tmp_path, axes=["anatomy"], tables=columns, num_bootstrap=200)
    _, rows = markdown_rows(tmp_path / "table.md")
    keys = ["axis", "group", "structure", "metric"]
    table = report.evidence.penalized.set_index(keys)
    own = table.loc[("all", "all", "mean", "dice")]
    for cell, name in zip(rows["all"][3:6], ("ci", "tail_ci", "cvar10_ci"), strict=True):
        assert cell.endswith(f"[{own[name + '_low']:.3f}, {own[name + '_high']:.3f}]")
    own = table.loc[("all", "all", "a", "hd95_mm")]
    assert rows["all"][6] == f"{own['p90']:.2f} [{own['tail_ci_low']:.2f}, {own['tail_ci_high']:.2f}], 24"
    assert "of the number before it" in (tmp_path / "table.md").read_text()


@pytest.mark.parametrize("form", ["median[ci]", "p90 [ci]", "mean, worst[ci]", "iqr [ci]"])
def test_an_interval_of_a_number_that_has_none_is_refused(make_cases, tmp_path, form):
    with pytest.raises(InputError, match=r"there is no interval of \w+; those of dice: mean\[ci\], p10\[ci\]"):
        write_report(make_cases(), tmp_path, axes=[], tables=[f"dice:{form}"], num_bootstrap=0)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("dice", "expected METRIC:FORM"),
        ("dicee:mean", "no metric 'dicee'"),
        ("dice@d:mean", "no structure 'd'; those here: a, b, c"),
        ("dice:average", "'average' is no number of a group; there are mean, std"),
        ("dice:±", "it names no number"),
    ],
)
def test_a_form_that_cannot_be_used_is_an_error(make_cases, tmp_path, text, message):
    with pytest.raises(InputError, match=re.escape(message)):
        write_report(make_cases(), tmp_path, tables=[text], num_bootstrap=10)


def test_words_stand_in_the_paper_table_as_signs(make_cases, tmp_path):
    baseline = make_cases(num_cases=80)
    run = baseline.assign(dice=baseline["dice"] + 0.05 * (baseline["anatomy"] == "rare") * (baseline["dice"] > 0))
    write_report(run, tmp_path, axes=["anatomy"], metrics=["dice"], baseline=baseline, name="DRO", baseline_name="ERM")
    header, rows = markdown_rows(tmp_path / "table.md")
    assert header[3:] == ["Dice, mean ± std, ERM", "Dice, mean ± std, DRO"]
    assert [cell.endswith("⁺") for cell in rows["anatomy = rare"][3:]] == [False, True]
    assert [cell.endswith("⁺") for cell in rows["anatomy = typical"][3:]] == [False, False]
    assert "corrected by Holm for all 12 tests" in (tmp_path / "table.md").read_text()


def test_the_latex_table_is_whole_and_escaped(make_cases, tmp_path):
    cases = make_cases().replace({"anatomy": {"rare": "a_b & 50% {#1}"}})
    write_report(cases, tmp_path, axes=["anatomy"], baseline=make_cases(1).drop(columns="anatomy"), num_bootstrap=50)
    text = (tmp_path / "table.tex").read_text()
    assert r"a\_b \& 50\% \{\#1\}" in text
    assert [text.count(rule) for rule in (r"\toprule", r"\midrule", r"\bottomrule")] == [1, 2, 1]
    body = [line for line in text.splitlines() if line.endswith(r" \\")]
    assert {len(re.findall(r"(?<!\\)&", line)) for line in body} == {6}
    assert r"\begin{tabular}{lrrrrrr}" in text
    without = re.sub(r"\\[{}]", "", text)
    assert without.count("{") == without.count("}")
    assert text.count("$") % 2 == 0
    assert text.isascii()


def test_pseudonyms_leave_no_id_in_any_file(cohort, tmp_path):
    from droseg.report import score_cases

    (tmp_path / "pred/c0_seg.nii.gz").unlink()
    (tmp_path / "pred/c3_seg.nii.gz").unlink()
    cases = score_cases(cohort, "testing", tmp_path / "pred", missing_as_failure=True)
    cases["case_id"], cases["patient_id"] = cases["case_id"] + "_secret", cases["patient_id"] + "_hush"
    other = cases[cases["case_id"] != "c2_secret"]
    report = write_report(
        *(cases, tmp_path / "out"),
        **{"baseline": other, "datalist": cohort, "pred_dir": tmp_path / "pred", "num_bootstrap": 10},
        pseudonyms=True,
    )
    for path in report.files:
        text = path.read_text(encoding="utf-8")
        assert "secret" not in text, path.name
        assert "hush" not in text, path.name
        assert str(tmp_path) not in text, path.name  # not in the reasons for missing pictures either
    page = report.html.read_text()
    assert len(set(re.findall(r"case_\d{3}", page))) == 4
    assert "Only in This run, not compared: case_" in page


def test_pseudonyms_change_no_number(make_cases, tmp_path):
    options = {"baseline": make_cases(2), "metrics": ["dice"], "axes": ["anatomy"], "num_bootstrap": 50}
    real = write_report(make_cases(1), tmp_path / "a", **options)
    masked = write_report(make_cases(1), tmp_path / "b", **options, pseudonyms=True)
    pd.testing.assert_frame_equal(real.evidence.subgroups, masked.evidence.subgroups)
    pd.testing.assert_frame_equal(real.evidence.comparison.table, masked.evidence.comparison.table)
    values = [sorted(r.evidence.cases["dice"].dropna()) for r in (real, masked)]
    assert values[0] == values[1]


def test_a_key_says_who_is_who_and_keeps_pseudonyms_the_same(make_cases, tmp_path):
    key = tmp_path / "home" / "key.csv"
    options = {"num_bootstrap": 0, "metrics": ["dice"], "pseudonym_key": key}
    few = make_cases()[lambda t: t["case_id"] < "c10"]
    write_report(few, tmp_path / "a", **options)
    first = pd.read_csv(key).set_index(["kind", "id"])["pseudonym"]
    report = write_report(make_cases(), tmp_path / "b", **options)
    second = pd.read_csv(key).set_index(["kind", "id"])["pseudonym"]
    assert second[first.index].tolist() == first.tolist()
    assert second.is_unique
    worst = make_cases().groupby("case_id")["dice"].apply(lambda d: d.mean()).idxmin()
    document = json.loads((tmp_path / "b" / "report.json").read_text())
    assert document["runs"][0]["worst_cases"][0]["case_id"] == second["case", worst]
    assert report.evidence.cases["patient_id"].isin(second["patient"]).all()


def test_the_order_of_pseudonyms_says_nothing_of_the_order_of_ids(make_cases, tmp_path):
    orders = set()
    for i in range(3):
        key = tmp_path / f"key{i}.csv"
        write_report(make_cases(), tmp_path / "out", num_bootstrap=0, pseudonym_key=key, metrics=["dice"], axes=[])
        table = pd.read_csv(key).query("kind == 'case'").sort_values("id")
        orders.add(tuple(table["pseudonym"]))
    assert len(orders) == 3  # by chance the same in 1 of 24! draws


def test_a_key_in_the_folder_of_the_report_is_refused(make_cases, tmp_path):
    with pytest.raises(InputError, match="lies in the folder of the report"):
        write_report(make_cases(), tmp_path / "out", pseudonym_key=tmp_path / "out" / "key.csv")
    (tmp_path / "other.csv").write_text("a,b\n1,2\n")
    with pytest.raises(InputError, match="not a key of pseudonyms"):
        write_report(make_cases(), tmp_path / "out", num_bootstrap=0, pseudonym_key=tmp_path / "other.csv")


def test_an_axis_of_ids_is_refused_under_pseudonyms(make_cases, tmp_path):
    cases = make_cases().assign(subject=lambda t: t["patient_id"])
    with pytest.raises(InputError, match="the groups of 'subject' are ids"):
        write_report(cases, tmp_path, axes=["subject"], num_bootstrap=0, pseudonyms=True)


def test_the_command_hides_paths_and_filters_too(make_cases, write_csv, tmp_path, capsys):
    path = write_csv(make_cases(), "mrs_miller/case_metrics.csv")
    arguments = ["--pseudonyms", "--where", "case_id=c00", "--where", "case_id=c23", "--name", "DRO", "--no-pictures"]
    assert main(["report", str(path), *arguments, "--bootstrap", "10", "--out", str(tmp_path / "out")]) == 0
    texts = [file.read_text() for file in (tmp_path / "out").iterdir()] + [capsys.readouterr().out]
    for text in texts:
        assert "c23" not in text
    page = (tmp_path / "out" / "report.html").read_text()
    assert "mrs_miller" not in page
    assert "SHA-256" in page
    assert "No pictures: left out on request (--no-pictures)." in page


def test_hidden_subgroups_have_a_section_if_someone_searched(make_cases, tmp_path):
    options = {"metrics": ["dice"], "axes": [], "num_bootstrap": 0}
    page = write_report(make_cases(), tmp_path, **options).html.read_text()
    assert "Hidden subgroups" not in page
    page = write_report(make_cases(), tmp_path, **options, hidden=[]).html.read_text()
    assert "Searched for, and none found." in page
    found = [{"rule": "slice thickness > 2.5 mm & <b>", "n": 14, "mean Dice": 0.612345, "confirmed": True}]
    page = write_report(make_cases(), tmp_path, **options, hidden=found).html.read_text()
    assert "slice thickness &gt; 2.5 mm &amp; &lt;b&gt;</td><td>14</td><td>0.612</td><td>yes</td>" in page
    assert json.loads((tmp_path / "report.json").read_text())["hidden_subgroups"] == found
