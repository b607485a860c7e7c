"""Tables of droseg and of other software, and the messages when they cannot be used."""

import pandas as pd
import pytest

from droseg.errors import InputError
from droseg.metrics import is_false_positive, is_missed, penalized
from droseg.report import read_cases
from droseg.report.read import read_seeds
from droseg.report.seeds import group_axes, table_metrics


def test_a_table_survives_the_way_through_a_csv(make_cases, write_csv):
    cases = make_cases()
    read = read_cases([write_csv(cases)])
    assert group_axes(read) == ["anatomy", "protocol"]
    assert table_metrics(read) == ["dice", "hd_mm", "hd95_mm", "assd_mm", "nsd"]
    pd.testing.assert_frame_equal(read, cases, check_dtype=False)


def test_columns_of_other_software_are_named_on_the_way_in(write_csv):
    other = pd.DataFrame(
        {"Subject": ["001", "002"], "ROI": ["WM", "WM"], "DSC": [0.9, 0.8], "HD95": ["inf", "2.5"], "Site": [1, 2]}
    )
    options = {"case_column": "Subject", "structure_column": "ROI", "axes": ["Site"]}
    read = read_cases([write_csv(other)], metrics={"dice": "DSC", "hd95_mm": "HD95"}, **options)
    assert read["case_id"].tolist() == read["patient_id"].tolist() == ["001", "002"]
    assert read["hd95_mm"].isna().tolist() == [True, False]  # an infinite distance is an undefined one
    assert group_axes(read) == ["Site"]


@pytest.mark.parametrize("separator", [";", "\t"])
def test_other_separators_and_a_byte_order_mark_are_read(tmp_path, separator):
    path = tmp_path / "excel.csv"
    text = "case_id,structure,dice\nc1,a,0.9\n".replace(",", separator)
    path.write_text(text, encoding="utf-8-sig")
    assert read_cases([path])["dice"].tolist() == [0.9]


def test_where_keeps_rows_and_may_give_several_values(make_cases, write_csv):
    path = write_csv(make_cases())
    read = read_cases([path], where=[("structure", "a"), ("structure", "b"), ("anatomy", "rare")])
    assert set(read["structure"]) == {"a", "b"}
    assert set(read["anatomy"]) == {"rare"}


def test_several_files_are_seeds_and_averaged_per_case(make_cases, write_csv):
    first, second = make_cases(0), make_cases(1)
    read = read_cases([write_csv(first, "s0.csv"), write_csv(second, "s1.csv")])
    assert len(read) == len(first)
    assert read["dice"].tolist() == pytest.approx(((first["dice"] + second["dice"]) / 2).tolist(), nan_ok=True)
    assert is_missed(read).sum() == 1  # missed by both seeds


def test_a_failure_of_one_seed_enters_the_mean_with_its_penalty(make_cases, write_csv):
    first, second = make_cases(0), make_cases(0)
    second.loc[0, ["dice", "nsd", "volume_pred_ml"]] = 0.0
    second.loc[0, ["hd_mm", "hd95_mm", "assd_mm"]] = None
    read = read_cases([write_csv(first, "s0.csv"), write_csv(second, "s1.csv")])
    assert read["hd95_mm"][0] == pytest.approx((first["hd95_mm"][0] + 150.0) / 2)
    assert penalized(read, "dice")[0] == pytest.approx(first["dice"][0] / 2)


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        ("case,structure,dice\nc1,a,0.9\n", {}, r"no column 'case_id'.*case, structure, dice.*--case-column"),
        ("case_id,structure,dice\nc1,a,0.9\n", {"axes": ["anatomy"]}, r"no column 'anatomy'.*--group-by"),
        ("case_id,structure,DSC\nc1,a,0.9\n", {}, r"no column 'dice'.*--metric"),
        ("case_id,structure,dice\nc1,a,0.9\n", {"axes": ["dice"]}, r"cannot group by dice"),
        ("ID,structure,dice\nc1,a,0.9\n", {"case_column": "ID", "axes": ["ID"]}, r"cannot group by ID"),
        ("case_id,structure,DSC\nc1,a,0.9\n", {"metrics": {"dice": "DSC"}, "axes": ["DSC"]}, r"cannot group by DSC"),
        ("case_id,structure,dice\nc1,a,0.9\n", {"metrics": {"dice": "DSC"}}, r"no column 'DSC'"),
        ("case_id,structure,dice\nc1,a,0.9\nc2,a,good\n", {}, r"line 3: column 'dice' holds 'good'"),
        (
            "case_id,structure,dice\nc1,a,good\n\nc2,a,0.9\nc3,a,bad\nc4,a,ok\n",
            {},
            r"line 2: column 'dice' holds 'good', not a number \(and 2 more: lines 5, 6\)",
        ),
        ("case_id;structure;dice\nc1;a;0,93\nc2;a;0.95\n", {}, r"line 2.*'0,93'.*decimal point"),
        (
            "case_id,structure,dice\nc1,a,93.1\nc2,a,88.0\n",
            {},
            r"93.1; this looks like percent.*2 of 2 values.*--percent",
        ),
        (
            "case_id,structure,dice\nc1,a,0.93\n",
            {"percent": True},
            r"dice is 0.93 at most; these are fractions already",
        ),
        (
            "case_id,structure,dice\nc1,a,0.9\nc2,a,1.7\n",
            {},
            r"line 3: dice is 1.7; this is no fraction.*--percent",
        ),
        ("case_id,structure,dice\nc1,a,0.4\nc2,a,60\nc3,a,0.2\n", {}, r"line 3: dice is 60;.*1 of 3.*--percent"),
        ("case_id,structure,dice\nc1,a,0.9\nc2,a,1.2\n", {}, r"line 3: dice is 1.2; it must lie between 0 and 1"),
        ("case_id,structure,dice\nc1,a,0.9\nc2,a,-0.2\n", {}, r"line 3: dice is -0.2; it must lie between 0 and 1"),
        (
            "case_id,structure,IoU\nc1,a,60\nc2,a,80\n",
            {"metrics": {"IoU": "IoU"}},
            r"line 2: IoU is 60; this looks like percent.*--percent; if its scale.*--metric IoU:COLUMN:higher",
        ),
        ("case_id,structure,hd95_mm\nc1,a,2\nc2,a,-1\n", {}, r"line 3: hd95_mm is -1; it cannot be negative"),
        (
            "case_id,structure,HD\nc1,a,2\nc2,a,-1\n",
            {"metrics": {"HD_lower": "HD"}},
            r"line 3: HD_lower is -1; it cannot be negative",
        ),
        (
            "case_id,patient_id,structure,dice\nc1,p1,a,0.9\nc1,p2,b,0.9\n",
            {},
            r"line 3: case 'c1' has the patient 'p2' here and 'p1' above",
        ),
        ("case_id,structure,dice\nc1,a,0.9\nc2,a,\0\n", {}, r"not a text file"),
        ("case_id,structure,dice\nc1,a,0.9\nc1,a,0.8\n", {}, r"line 3: case 'c1', structure 'a' is there twice"),
        ("case_id,structure,dice\n,a,0.9\n", {}, r"line 2: no case_id"),
        ("case_id,structure,dice\n", {}, r"no rows"),
        ("", {}, r"not a CSV"),
        ("case_id,structure,dice\nc1,a,0.9\n", {"where": [("structure", "b")]}, r"no row left.*values there: a"),
        (
            "case_id,structure,dice,site\nc1,a,0.9,x\nc1,b,0.9,y\n",
            {"axes": ["site"]},
            r"case 'c1' has several values of 'site' \(x, y\).*--group-by",
        ),
    ],
)
def test_a_table_that_cannot_be_used_says_where_and_what_to_do(tmp_path, text, options, message):
    path = tmp_path / "cases.csv"
    path.write_text(text)
    with pytest.raises(InputError, match=message) as error:
        read_cases([path], **options)
    assert "cases.csv" in str(error.value)


def test_percent_is_divided_where_the_user_says_so(tmp_path):
    path = tmp_path / "cases.csv"
    path.write_text("case_id,structure,dice,hd95_mm\nc1,a,93.0,2.0\n")
    read = read_cases([path], percent=True)
    assert (read["dice"][0], read["hd95_mm"][0]) == (0.93, 2.0)


def test_percent_holds_for_every_score_but_those_of_another_scale(tmp_path):
    path = tmp_path / "cases.csv"
    path.write_text("case_id,structure,DSC,IoU,PSNR,HD95\nc1,a,93.0,80,31,2.0\n")
    metrics = {"dice": "DSC", "IoU": "IoU", "PSNR": "PSNR", "hd95_mm": "HD95"}
    read = read_cases([path], metrics=metrics, percent=True, other_scale=["PSNR"])
    assert read[list(metrics)].iloc[0].tolist() == pytest.approx([0.93, 0.8, 31, 2.0])


def test_errors_may_be_negative(tmp_path):
    path = tmp_path / "cases.csv"
    path.write_text("case_id,structure,dice,volume_error_ml\nc1,a,0.9,-2.5\n")
    assert read_cases([path], metrics={"volume_error": "volume_error_ml"})["volume_error"].tolist() == [-2.5]


def test_an_empty_patient_is_no_patient_of_many_cases(tmp_path):
    path, notes = tmp_path / "cases.csv", []
    path.write_text("case_id,patient_id,structure,dice\nc1,,a,0.9\nc2,,a,0.9\nc3,p,a,0.8\nc4,p,a,0.8\nc4,,b,0.8\n")
    read = read_seeds([path], notes=notes)
    assert read["patient_id"].tolist() == ["c1", "c2", "p", "p", "p"]
    assert notes == [(path, "2 cases have no patient; each of them counts as a patient of its own")]


def test_a_case_has_the_same_patient_in_every_training(tmp_path):
    paths = [tmp_path / "1.csv", tmp_path / "2.csv"]
    for path, patient in zip(paths, "pq", strict=True):
        path.write_text(f"case_id,patient_id,structure,dice\nc1,{patient},a,0.9\n")
    with pytest.raises(InputError, match=r"case 'c1' has several values of 'patient_id' \(p, q\)"):
        read_cases(paths)


@pytest.mark.parametrize("separator", [";", "\t"])
def test_decimal_commas_are_read_where_they_separate_nothing(tmp_path, separator):
    path = tmp_path / "cases.csv"
    path.write_text("case_id;structure;dice;hd95_mm\nc1;a;0,93;1e1\nc2;a;;12,5\n".replace(";", separator))
    read = read_cases([path])
    assert read["dice"].tolist()[0] == 0.93
    assert read["hd95_mm"].tolist() == [10.0, 12.5]


def test_a_table_in_latin_1_is_read_with_a_note(tmp_path):
    path, notes = tmp_path / "cases.csv", []
    path.write_bytes("case_id,structure,dice,Läsion\nc1,a,0.9,groß\n".encode("latin-1"))
    assert read_seeds([path], axes=["Läsion"], notes=notes)["Läsion"].tolist() == ["groß"]
    assert "Latin-1" in notes[0][1]


def test_volumes_of_other_names_tell_missed_from_false_positive(tmp_path):
    path = tmp_path / "cases.csv"
    path.write_text("case_id,structure,dice,ref,pred\nc1,a,0,3.1,0\nc2,a,0,0,2.2\nc3,a,0.9,3,3\n")
    metrics = {"dice": "dice", "volume_ref_ml": "ref", "volume_pred_ml": "pred"}
    read = read_cases([path], metrics=metrics)
    assert is_missed(read).tolist() == [True, False, False]
    assert is_false_positive(read).tolist() == [False, True, False]


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(InputError, match=r"none\.csv: no such file"):
        read_cases([tmp_path / "none.csv"])


def test_a_distance_without_a_direction_in_its_name_is_refused(tmp_path):
    path = tmp_path / "cases.csv"
    path.write_text("case_id,structure,HD95\nc1,a,2.0\n")
    with pytest.raises(InputError, match=r"HD95 looks like a distance.*hd95_mm.*HD95:COLUMN:lower"):
        read_cases([path], metrics={"HD95": "HD95"})
    assert read_cases([path], metrics={"HD95_lower": "HD95"})["HD95_lower"].tolist() == [2.0]


def test_a_miss_is_known_from_a_distance_of_any_name(tmp_path):
    path = tmp_path / "cases.csv"
    path.write_text("case_id,structure,DSC,HD95\nc1,a,0.9,2.0\nc2,a,0.8,7.0\nc3,a,0.0,\n")
    read = read_cases([path], metrics={"dice": "DSC", "HD95_lower": "HD95"})
    assert is_missed(read).tolist() == [False, False, True]
    assert penalized(read, "HD95_lower").tolist() == [2.0, 7.0, 7.0]  # a failure never improves a mean
