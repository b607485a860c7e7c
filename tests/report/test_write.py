"""report.html: self-contained, escaped, complete, and true to the numbers."""

import base64
import io
import re
from dataclasses import replace
from html.parser import HTMLParser

import matplotlib.pyplot as plt
import nibabel as nib
import numpy as np
import pandas as pd
import pytest

from droseg.errors import InputError
from droseg.report import read_cases, score_cases, write_report
from droseg.report.pictures import worst_cases

VOID = {"wbr", "meta", "img", "br", "path", "circle", "rect"}


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
    baseline, run = make_cases(num_cases=80), make_cases(num_cases=80)
    run.loc[run["anatomy"] == "rare", "dice"] += 0.1 * (run["dice"] > 0)
    _, page = write(run, tmp_path, baseline=baseline, axes=["anatomy"], name="DRO", baseline_name="ERM")
    text = words(page)
    assert re.search(r"It is worst on anatomy = rare \(n = 20\)", text)
    assert re.search(r"helped on anatomy = rare \( ?\+0\.(09|10)", text)
    assert re.search(r"inconclusive on anatomy = typical \(.* \(the interval holds 0\)", text)
    assert "one training each, so the luck of training is part of it" in text
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


def test_a_repeated_row_is_named(make_cases, tmp_path):
    cases = make_cases()
    with pytest.raises(InputError, match="This run: case 'c00', structure 'a' is there twice"):
        write_report(pd.concat([cases, cases.head(1)], ignore_index=True), tmp_path)


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


@pytest.mark.parametrize(
    ("values", "groups"),
    [
        ([63, 71], ["63", "71"]),
        ([0.0, 1.0], ["0", "1"]),
        ([1.5, 3.0], ["1.5", "3"]),
        ([True, False], ["False", "True"]),
        ([1.0, np.nan], ["1"]),
    ],
)
def test_groups_that_are_no_text_are_groups_all_the_same(make_cases, tmp_path, values, groups):
    cases = make_cases()
    cases["age"] = [values[0] if anatomy == "rare" else values[1] for anatomy in cases["anatomy"]]
    report, page = write(cases, tmp_path, axes=["age"], baseline=cases)
    subgroups = report.evidence.subgroups
    assert subgroups.loc[subgroups["axis"] == "age", "group"].unique().tolist() == groups
    assert "worst on age = " in words(page)
    assert "age" not in report.evidence.metrics


@pytest.mark.parametrize("axis", ["case_id", "structure", "dice", "volume_ref_ml"])
def test_own_columns_are_no_groups(make_cases, tmp_path, axis):
    with pytest.raises(InputError, match=f"cannot group by {axis}"):
        write_report(make_cases(), tmp_path, axes=[axis])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"seed": -1}, "seed"),
        ({"num_bootstrap": -5}, "bootstrap"),
        ({"num_pictures": -3}, "pictures"),
        ({"min_effect": {"dicee": 3.0}}, "no metric dicee"),
        ({"pred_dir": "nopred"}, "nopred: no such folder"),
    ],
)
def test_arguments_that_mean_nothing_are_refused(make_cases, tmp_path, options, message):
    with pytest.raises(InputError, match=message):
        write_report(make_cases(), tmp_path, **options)


def panel_of(page, number):
    source = [value for tag, name, value in page.attributes if tag == "img" and name == "src"][number]
    return plt.imread(io.BytesIO(base64.b64decode(source.split(",")[1])), format="png")


@pytest.mark.parametrize("suffix", [".nrrd", ".mha"])
def test_images_that_nibabel_cannot_read_are_not_black(cohort, tmp_path, suffix):
    itk = pytest.importorskip("itk")
    cases = score_cases(cohort, "testing", tmp_path / "pred")
    of_nifti = panel_of(write(cases, tmp_path / "a", datalist=cohort, pred_dir=tmp_path / "pred")[1], 0)
    sections = {}
    for name, members in cohort.sections.items():
        for case in members:
            itk.imwrite(itk.imread(str(case.images[0])), str(case.images[0].parent / (case.case_id + suffix)))
        sections[name] = tuple(
            replace(case, images=(case.images[0].parent / (case.case_id + suffix),)) for case in members
        )
    other = replace(cohort, sections=sections)
    _, page = write(cases, tmp_path / "b", datalist=other, pred_dir=tmp_path / "pred")
    assert of_nifti[..., :3].max() > 0.1
    np.testing.assert_array_equal(panel_of(page, 0), of_nifti)


def test_an_image_that_cannot_be_shown_says_why(cohort, tmp_path):
    cases = score_cases(cohort, "testing", tmp_path / "pred")
    (tmp_path / "images/c0.nii.gz").write_bytes(b"damaged")
    nib.save(nib.Nifti1Image(np.ones((4, 4, 4), np.float32), np.eye(4)), tmp_path / "images/c1.nii.gz")
    _, page = write(cases, tmp_path / "out", datalist=cohort, pred_dir=tmp_path / "pred")
    assert "image (cannot be read)" in words(page)
    assert "image (on another grid than the reference)" in words(page)
