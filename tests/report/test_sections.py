"""What the sections of a page show, and what a narrow screen or a printer leaves of them."""

import json
import re

import pandas as pd
import pytest

from droseg.cli import main
from droseg.data.datalist import Case, Datalist, write_datalist
from droseg.report import write_report


def section(page, name):
    return page.split(f'<section id="{name}">')[1].split("</section>")[0]


def table_rows(html):
    """Return the cells of the first table as text."""
    rows = re.findall(r"<tr.*?>(.*?)</tr>", html.split("</table>")[0])
    return [[re.sub(r"<.*?>", "", cell) for cell in re.findall(r"<t[hd].*?>(.*?)</t[hd]>", row)] for row in rows]


@pytest.fixture
def page_of(make_cases, tmp_path):
    def write(cases=None, **options):
        options = {"metrics": ["dice", "hd95_mm"], "axes": ["anatomy"], "num_bootstrap": 0} | options
        return write_report(make_cases() if cases is None else cases, tmp_path, **options).html.read_text()

    return write


@pytest.mark.parametrize("options", [{"num_pictures": 0}, {}])
def test_the_worst_cases_are_listed_without_pictures_too(page_of, options):
    rows = table_rows(section(page_of(**options), "cases"))
    assert rows[0] == ["case", "anatomy", "Dice", "worst structure", "its Dice", "failures"]
    assert [rows[1][i] for i in (0, 1, 3, 4, 5)] == ["c23", "rare", "b", "0.000", "missed b"]
    values = [float(row[2]) for row in rows[1:]]
    assert len(values) == 10
    assert values == sorted(values)


def test_cases_have_names_without_a_mouse(page_of, make_cases):
    cases = make_cases(num_cases=250)
    html = section(page_of(cases), "plots").split("by name (the worst 200 of 250), the worst first")[1]
    rows = table_rows(html)
    assert rows[0] == ["case", "anatomy", "Dice", "HD95 (mm)"]
    assert len(rows) == 201
    assert rows[1][0] == "c249"  # it misses a structure


def test_the_change_stands_beside_the_cases_where_no_screen_cuts_it(page_of, make_cases):
    seeds = pd.concat([make_cases(i).assign(seed=i) for i in range(2)], ignore_index=True)
    page = page_of(seeds, baseline=make_cases(3), baseline_name="ERM")
    rows = table_rows(section(page, "where"))
    assert rows[0][:4] == ["anatomy", "cases", "Dice against ERM, ± of 2 trainings", "missed"]
    assert re.fullmatch(r"(inconclusive|▲?helped|hurt)[+−]0\.\d{3} ± 0\.\d{3}", rows[1][2])


def test_each_structure_has_its_word(page_of, make_cases):
    run, baseline = make_cases(1), make_cases(1)
    better = run["structure"] == "a"
    run.loc[better, "dice"] = (run.loc[better, "dice"] + 0.04).clip(upper=0.999)
    page = section(page_of(run, baseline=baseline, num_bootstrap=200), "baseline")
    rows = {row[0]: row[1:] for row in table_rows(page.split("Dice of each structure, by the same rule.")[1])}
    assert rows["structure"] == ["all cases", "anatomy = rare", "anatomy = typical"]
    assert rows["a"][0] == "helped+0.040"
    assert rows["b"][0] == "inconclusive+0.000"


def test_long_names_break_at_underscores(page_of, make_cases):
    name = "site_b_with_a_long_name_for_the_scanner"
    page = page_of(make_cases().replace({"protocol": {"site_1": name}}), axes=["protocol"])
    assert f"<td>{name.replace('_', '_<wbr>')}</td>" in page


def test_what_stays_folded_on_paper_names_its_file(page_of, make_cases, tmp_path):
    page = page_of(baseline=make_cases(3), baseline_name="ERM run")
    files = re.findall(r'data-file=": \d+ rows, in ([\w.]+)"', page)
    assert set(files) == {"subgroups.csv", "subgroups_ERM_run.csv", "subgroups_penalized.csv", "gaps.csv"} | {
        "comparison.csv"
    }
    assert all((tmp_path / name).is_file() for name in files)


def test_without_volumes_a_failure_is_not_called_a_miss(page_of, make_cases, tmp_path, capsys):
    """A Dice of 0 without a distance may be a false positive as well."""
    cases = make_cases().drop(columns=["volume_ref_ml", "volume_pred_ml"])
    page = page_of(cases)
    assert "1 structure failed in 1 case (b)" in page
    words = re.sub(
        r"<style>.*?</style>|missed[,]? or false.positive|missed, false positive or failed", "", page, flags=re.S
    )
    found = re.findall(r".{30}missed.{30}", words.split('<section id="how">')[0])
    assert not [text for text in found if "n_missed" not in text]
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["runs"][0]["failures"] == [{"case_id": "c23", "structure": "b", "what": "failed"}]
    assert "| group | n | failed |" in (tmp_path / "table.md").read_text()


@pytest.fixture
def datalist(make_cases, tmp_path):
    """A datalist with an axis that no CSV has; one case is not on it."""
    label = tmp_path / "label.nii.gz"
    cases = [
        Case(f"c{i:02d}", f"p{i:02d}", (label,), label, {} if i == 0 else {"hidden_1": "yes" if i > 17 else "no"})
        for i in range(24)
    ]
    path = tmp_path / "new.json"
    datalist = Datalist(path, ("T1w",), {"a": (1,)}, {"testing": tuple(cases)})
    write_datalist(datalist, path)
    return path


def test_an_axis_that_the_csv_lacks_comes_from_the_datalist(make_cases, write_csv, datalist, tmp_path, capsys):
    table = write_csv(make_cases())
    command = ["report", str(table), "--group-by", "hidden_1", "--group-by", "hidden_1*anatomy", "--bootstrap", "0"]
    command += ["--out", str(tmp_path / "out")]
    assert main(command) == 2
    assert "no column 'hidden_1'" in capsys.readouterr().err
    assert main([*command, "--datalist", str(datalist)]) == 0
    groups = pd.read_csv(tmp_path / "out" / "subgroups.csv").query("structure == 'a' and metric == 'dice'")
    counts = groups[groups["axis"] == "hidden_1"].set_index("group")["n"].to_dict()
    assert counts == {"no": 17, "yes": 6}
    assert "hidden_1*anatomy" in set(groups["axis"])
    assert "1 cases have no value of hidden_1" in (tmp_path / "out" / "report.html").read_text()


def test_a_datalist_of_other_cases_gives_no_groups(make_cases, write_csv, datalist, tmp_path, capsys):
    cases = make_cases().assign(case_id=lambda t: "x" + t["case_id"])
    command = ["report", str(write_csv(cases)), "--group-by", "hidden_1", "--datalist", str(datalist)]
    assert main([*command, "--out", str(tmp_path / "out")]) == 2
    assert "the datalist knows the group 'hidden_1' of none of its cases" in capsys.readouterr().err
