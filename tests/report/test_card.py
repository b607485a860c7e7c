"""The results of a model card: true to the table, reproducible, and nothing else in the card is touched."""

from __future__ import annotations

import hashlib
import re
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest
from markdown import markdown

from droseg.cli import main
from droseg.errors import InputError
from droseg.report.card import END, START, ModelCard, write_card
from droseg.report.evidence import Settings, collect_evidence

PROSE = "# A bundle\n\nTrained by hand: 3 days.\n\n## Results\n\nAt 1.2 mm.\n\n"
LIMITS = "\n\n## Limits\n\nAtlases are smooth.\n"


class Tables(HTMLParser):
    """Collects the tables of a page as lists of rows of cell texts."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tables: list[list[list[str]]] = []
        self.in_cell = False
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")
            self.in_cell = True

    def handle_endtag(self, tag):
        if tag in ("td", "th"):
            self.in_cell = False

    def handle_data(self, data):
        if self.in_cell:
            self.tables[-1][-1][-1] += data


def tables_of(text: str) -> list[dict[str, list[str]]]:
    """Return the tables as a Markdown renderer sees them: first cell -> the others."""
    found = Tables(markdown(text, extensions=["tables"])).tables
    return [{row[0]: row[1:] for row in table} for table in found]


@pytest.fixture
def card(tmp_path):
    path = tmp_path / "bundle" / "docs" / "README.md"
    path.parent.mkdir(parents=True)
    path.write_text(f"{PROSE}{START}\nan old table\n{END}{LIMITS}", encoding="utf-8")
    return path


@pytest.fixture
def put(card):
    """Put the results of runs (name -> table, the first the reference if there are two) into the card; return it."""

    def write(axes=(), *, section="", **tables: pd.DataFrame) -> str:
        *others, last = tables.items()
        reference = others[0] if others else None
        runs = collect_evidence(dict([last]), reference, axes, None, Settings(num_bootstrap=50))
        write_card(ModelCard(card, section=section), runs)
        return card.read_text(encoding="utf-8")

    return write


@pytest.fixture
def report(tmp_path, card):
    """Do the same by `droseg report`."""

    def run(*arguments: object) -> str:
        quick = ["--bootstrap", "50", "--out", tmp_path / "report", "--model-card", card]
        assert main([str(each) for each in ["report", *arguments, *quick]]) == 0
        return card.read_text(encoding="utf-8")

    return run


def test_the_figures_are_those_of_the_table(make_cases, put):
    cases = make_cases(3)  # the last case, a rare one, misses b and never had c
    (rows,) = tables_of(put(["anatomy"], run=cases))
    assert rows["group"] == ["n", "missed", "false positive", "Dice, mean [95 %]", "p10", "worst"] + [
        *("HD95 (mm), mean [95 %]", "p90", "worst")
    ]
    failed = cases.assign(hd95_mm=cases["hd95_mm"].mask(cases["dice"] == 0, 150.0))
    of_case = failed.groupby("case_id").agg({"dice": "mean", "hd95_mm": "mean", "anatomy": "first"})
    for name, group in [("all", of_case), *((f"anatomy = {n}", g) for n, g in of_case.groupby("anatomy"))]:
        n, missed, invented, dice, p10, worst_dice, hd95, p90, worst_hd95 = rows[name]
        assert (int(n.rstrip("†")), invented) == (len(group), "0")
        assert missed == ("0" if name == "anatomy = typical" else "1")
        expected = [group["dice"].mean(), np.percentile(group["dice"], 10), group["dice"].min()]
        assert [float(cell.split(" ")[0]) for cell in (dice, p10, worst_dice)] == pytest.approx(expected, abs=5.1e-4)
        expected = [group["hd95_mm"].mean(), np.percentile(group["hd95_mm"], 90), group["hd95_mm"].max()]
        assert [float(cell.split(" ")[0]) for cell in (hd95, p90, worst_hd95)] == pytest.approx(expected, abs=0.051)
    assert rows["structure = b"][:3] == ["24", "1", "0"]
    assert rows["structure = c"][:3] == ["24 (1 undefined)", "0", "0"]
    assert list(rows)[1:] == ["all", "anatomy = rare", "anatomy = typical", *(f"structure = {s}" for s in "abc")]


def test_a_false_positive_is_counted_in_its_groups(make_cases, put):
    cases = make_cases(3)
    invented = (cases["case_id"] == "c23") & (cases["structure"] == "c")
    cases.loc[invented, ["dice", "volume_pred_ml"]] = [0.0, 2.0]
    (rows,) = tables_of(put(["anatomy"], run=cases))
    counts = {name: row[2] for name, row in rows.items()}
    assert counts["all"] == counts["anatomy = rare"] == counts["structure = c"] == "1"
    assert counts["anatomy = typical"] == counts["structure = b"] == "0"


def test_the_same_input_gives_the_same_bytes_and_the_prose_stays(make_cases, put, card):
    runs = {"ERM": make_cases(4), "DRO": make_cases(3)}
    first = put(**runs)
    assert first.startswith(PROSE + START)
    assert first.endswith(END + LIMITS)
    assert "an old table" not in first
    assert put(**runs) == first
    card.write_bytes(first.replace("\n", "\r\n").encode())
    put(**runs)
    assert card.read_bytes() == first.replace("\n", "\r\n").encode(), "the line ends of the card"
    assert list(card.parent.iterdir()) == [card]


def test_a_card_without_marks_gets_the_section_at_its_end_once(make_cases, put, card):
    card.write_text("# Mine\n\nProse.", encoding="utf-8")
    first = put(run=make_cases(3))
    assert first.startswith("# Mine\n\nProse.\n\n## Results\n\n" + START)
    assert put(run=make_cases(3)) == first


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "no such file"),
        (f"{START} no end", "1 x .* and 0 x"),
        (f"{END} {START}", "in this order"),
        (f"{START}{END}{START}{END}", "2 x"),
    ],
)
def test_a_card_that_cannot_take_results_stops_before_anything_is_written(
    make_cases, write_csv, card, tmp_path, capsys, content, said
):
    card.unlink()
    if content is not None:
        card.write_text(content)
    out = tmp_path / "report"
    run = ["report", str(write_csv(make_cases(3))), "--out", str(out), "--model-card", str(card)]
    assert main(run) != 0
    error = capsys.readouterr().err
    assert str(card) in error
    assert re.search(said, error)
    assert not out.exists()
    assert content is None or card.read_text() == content


def test_a_folder_is_no_card(tmp_path):
    with pytest.raises(InputError, match=r"is a folder.*docs/README\.md"):
        ModelCard(tmp_path)


def test_differences_to_a_baseline_come_with_their_words(make_cases, write_csv, report):
    better, worse = make_cases(1, rare_dice=0.85), make_cases(2, rare_dice=0.85)
    for metric, change in (("dice", -0.2), ("nsd", -0.2), ("hd95_mm", 4.0)):
        worse[metric] = worse[metric].mask(worse["volume_pred_ml"] > 0, worse[metric] + change)
    own, base = write_csv(better), write_csv(worse, "base/case_metrics.csv")
    names = ["--name", "DRO", "--baseline-name", "ERM"]
    text = report(own, "--baseline", base, *names, "--group-by", "anatomy")
    *sides, changes = tables_of(text)
    assert len(sides) == 2
    assert text.index("**ERM**") < text.index("**DRO**") < text.index("**DRO against ERM**")
    pairs, difference, word, _, distance_word = changes["all"]
    assert pairs == "24"
    expected = better.groupby("case_id")["dice"].mean() - worse.groupby("case_id")["dice"].mean()
    assert float(difference.split(" ")[0]) == pytest.approx(expected.mean(), abs=5.1e-4)
    assert (word, distance_word) == ("helped", "helped")
    assert changes["anatomy = rare"][2].startswith("inconclusive ("), "six patients cannot pass"
    for path in (own, base):
        assert hashlib.sha256(path.read_bytes()).hexdigest()[:12] in text


def test_names_with_markup_stay_whole_and_in_their_cells(make_cases, put):
    odd = {"rare": "a|b * _c_ <b>[x](y)</b> &lt;", "typical": "`d` \\ spina_bifida # -->"}
    cases = make_cases(3)
    cases["anatomy"] = cases["anatomy"].map(odd)
    text = put(["anatomy", "anatomy*protocol"], run=cases)
    (rows,) = tables_of(text)
    assert {f"anatomy = {name}" for name in odd.values()} <= set(rows)
    assert f"anatomy*protocol = {odd['rare']} * site_1" in rows
    assert len({len(row) for row in rows.values()}) == 1
    assert text.count(START) == text.count(END) == 1


def test_no_case_or_patient_is_named_and_no_date(make_cases, put):
    cases = make_cases(3)
    cases["case_id"], cases["patient_id"] = "case-" + cases["case_id"], "patient-" + cases["patient_id"]
    generated = put(["anatomy"], ERM=cases, DRO=cases).partition(START)[2].partition(END)[0]
    assert not re.search(r"case-|patient-", generated)
    assert not re.search(r"\b20\d\d-\d\d", generated)


def test_the_section_comes_from_the_datalist_or_the_evaluation(cohort, tmp_path, report):
    arguments = ["evaluate", "--datalist", cohort.path, "--pred", tmp_path / "pred", "--out", tmp_path / "eval"]
    assert main([str(each) for each in arguments]) == 0
    table = tmp_path / "eval" / "case_metrics.csv"
    assert "4 cases of 4 patients, section `testing`." in report(table)
    (tmp_path / "eval" / "evaluation.json").unlink()
    assert "4 cases of 4 patients. " in report(table)
    assert "section `testing`" in report(table, "--datalist", cohort.path)


def test_trainings_and_filters_are_said(make_cases, write_csv, report):
    seeds = [write_csv(make_cases(seed), f"seed{seed}/case_metrics.csv") for seed in (1, 2)]
    text = report(*seeds, "--where", "protocol=site_1", "--name", "Both")
    assert "**Both** (mean of 2 trainings per case; SHA-256 of its case metrics " in text
    assert "Only rows with protocol=site_1." in text
    assert "12 cases of 12 patients" in text


def test_small_groups_are_marked_and_not_ranked(make_cases, put):
    cases = make_cases(3)
    cases["operation"] = np.where(cases["case_id"].isin(["c03", "c07", "c11"]), "none", "some")
    text = put(["operation"], run=cases)
    assert tables_of(text)[0]["operation = none"][0] == "3‡"
    assert "Worst group by mean Dice: operation = some" in text
    assert "Worse, but not ranked with fewer than 5 patients: operation = none (n = 3)" in text


def test_the_link_to_the_definitions_leads_there_where_they_are(make_cases, put, card, tmp_path):
    assert "`docs/metrics.md` of droseg" in put(run=make_cases(3))
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "metrics.md").touch()
    target = re.search(r"\[docs/metrics\.md\]\((.*?)\)", put(run=make_cases(3)))
    assert target is not None
    assert (card.parent / target[1]).resolve() == tmp_path / "docs" / "metrics.md"


@pytest.mark.parametrize("name", ["fetal_brain_mri", "hippocampus_mri"])
def test_the_results_of_a_shipped_bundle_are_generated(project_root, name):
    path = project_root / "bundles" / name / "docs" / "README.md"
    ModelCard(path)
    before, _, rest = path.read_text(encoding="utf-8").partition(START)
    generated, _, after = rest.partition(END)
    assert len(tables_of(generated)) == 3, "two trainings and their comparison"
    assert not any("Dice" in table.get("group", [""])[-1] for table in tables_of(before + after)), "typed figures"
    link = re.search(r"\[docs/metrics\.md\]\((.*?)\)", generated)
    assert link is not None
    assert (path.parent / link[1]).is_file()
