"""report.html: self-contained, escaped, complete, and true to the numbers."""

import re
from html.parser import HTMLParser

import nibabel as nib
import numpy as np
import pandas as pd
import pytest

from droseg.errors import InputError
from droseg.report import read_cases, score_cases, write_report
from droseg.report.pictures import worst_cases

VOID = {"meta", "img", "br", "path", "circle", "rect"}


class Page(HTMLParser):
    """Collects text, attributes and whether every tag is closed in order."""

    def __init__(self, html):
        super().__init__()
        self.open, self.tags, self.attributes, self.text = [], [], [], []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, *pair) for pair in attrs]
        if tag not in VOID or (tag in ("path", "circle") and not self.get_starttag_text().endswith("/>")):
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, *pair) for pair in attrs]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def write(cases, out, **options):
    report = write_report(cases, out, num_bootstrap=100, **options)
    return report, Page(report.html.read_text(encoding="utf-8"))


def words(page):
    return " ".join(" ".join(page.text).split())


def test_the_page_needs_nothing_from_elsewhere(make_cases, tmp_path):
    report, page = write(make_cases(1), tmp_path, baseline=make_cases(2))
    assert page.open == []  # every tag is closed
    references = [value for _, name, value in page.attributes if name in ("src", "href", "xlink:href", "srcset")]
    assert all(value.startswith(("#", "data:")) for value in references)
    assert "script" not in page.tags
    assert "link" not in page.tags
    assert not re.search(r"https?://|@import|url\(", report.html.read_text())


def test_the_verdict_names_the_worst_group_and_what_changed(make_cases, tmp_path):
    baseline, run = make_cases(), make_cases()
    run.loc[run["anatomy"] == "rare", "dice"] += 0.1 * (run["dice"] > 0)
    _, page = write(run, tmp_path, baseline=baseline, name="DRO", baseline_name="ERM")
    text = words(page)
    assert re.search(r"It is worst on anatomy = rare \(n = 6\)", text)
    assert re.search(r"helped on anatomy = rare \( ?\+0\.09", text)
    assert "inconclusive on anatomy = typical" in text
    assert "1 structure was missed in 1 case ( b )" in text or "1 structure was missed in 1 case (b)" in text


def test_every_case_is_a_named_point_in_every_plot(make_cases, tmp_path):
    cases = make_cases()
    report, page = write(cases, tmp_path)
    html = report.html.read_text()
    assert page.tags.count("svg") >= 5
    for case_id in cases["case_id"].unique():
        assert html.count(f"<title>{case_id} ") == 5 * 3  # metrics x (all, anatomy, protocol)
    assert "missed b" in html


def test_text_of_the_user_is_escaped(make_cases, tmp_path):
    cases = make_cases()
    cases["case_id"] = cases["case_id"].str.replace("c00", "<script>alert(1)</script>")
    cases["anatomy"] = cases["anatomy"].str.replace("rare", "a<b>&'\"")
    _, page = write(cases, tmp_path, baseline=cases, name="<b>x")
    assert "script" not in page.tags
    assert page.open == []
    assert "<script>alert(1)</script>" in " ".join(page.text)


def test_files_hold_the_tables_of_the_page(make_cases, tmp_path):
    report, _ = write(make_cases(1), tmp_path, baseline=make_cases(2))
    subgroups = pd.read_csv(report.subgroups_csv)
    pd.testing.assert_frame_equal(subgroups, report.evidence.subgroups, check_dtype=False)
    assert list(pd.read_csv(report.comparison_csv)["verdict"]) == list(report.evidence.comparison.table["verdict"])


def test_without_datalist_and_predictions_the_section_says_so(make_cases, tmp_path):
    _, page = write(make_cases(), tmp_path)
    assert "No pictures: they need the datalist" in words(page)
    assert "--pred DIR" in words(page)


def test_without_axes_a_baseline_or_volumes_there_is_still_a_report(tmp_path):
    path = tmp_path / "cases.csv"
    path.write_text("case_id,structure,dice\nc1,a,0.9\nc2,a,0.8\n")
    _, page = write(read_cases([path]), tmp_path / "out")
    assert "No group axis was given" in words(page)
    assert "mean Dice of 0.850 over 2 cases" in words(page)


def test_metrics_of_other_software_are_reported_under_their_names(tmp_path):
    path = tmp_path / "cases.csv"
    path.write_text("case_id,structure,f1,site\n" + "".join(f"c{i},a,0.{i},s{i % 2}\n" for i in range(1, 9)))
    cases = read_cases([path], metrics={"lesion_f1": "f1"}, axes=["site"])
    _, page = write(cases, tmp_path / "out")
    assert "mean lesion f1 of 0.450" in words(page)


def test_everything_undefined_is_said_and_not_a_crash(make_cases, tmp_path):
    cases = make_cases()
    cases[["dice", "hd_mm", "hd95_mm", "assd_mm", "nsd"]] = np.nan
    cases[["volume_ref_ml", "volume_pred_ml"]] = 0.0
    _, page = write(cases, tmp_path, baseline=cases)
    assert "No case has a defined Dice" in words(page)


def test_a_missing_column_is_named(make_cases, tmp_path):
    with pytest.raises(InputError, match="scanner"):
        write_report(make_cases(), tmp_path, axes=["scanner"])


def test_an_unwritable_folder_is_said(make_cases, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be written"):
        write_report(make_cases(), tmp_path / "file" / "out", num_bootstrap=10)


def test_the_worst_case_and_its_worst_structure_come_first(make_cases):
    worst = worst_cases(make_cases(), "hd95_mm", 3)
    assert worst[0][:2] == ("c23", "b")
    assert worst[0][3] == 150.0  # a missed structure is the worst that can happen


def test_worst_cases_are_shown_as_three_panels(cohort, tmp_path):
    labels = np.asarray(nib.load(tmp_path / "labels/c3.nii.gz").dataobj)
    half = np.where(labels == 5, 0, labels).astype(np.uint8)
    nib.save(nib.Nifti1Image(half, np.diag([1.0, 1.0, 3.0, 1.0])), tmp_path / "pred/c3_seg.nii.gz")
    cases = score_cases(cohort, "testing", tmp_path / "pred")
    (tmp_path / "pred/c0_seg.nii.gz").unlink()
    report, page = write(cases, tmp_path / "out", datalist=cohort, pred_dir=tmp_path / "pred")
    assert page.tags.count("img") == 3 * 3
    text = words(page)
    assert "worst: posterior , 0.000" in text
    assert "axial slice" in text  # the slices are 3 mm thick along S
    assert f"No picture: no prediction in {tmp_path / 'pred'}" in text
    assert report.html.stat().st_size < 5e6
