"""Tables of patients as people and their spreadsheets write them, joined to the cases."""

from __future__ import annotations

import pytest

SUBJECTS = ("001", "002", "003")
EXPECTED = {"001": "MS", "002": "Läsion", "003": "MS"}


@pytest.fixture
def three(study):
    for subject in SUBJECTS:
        study.case(subject)
    return study


def rows(separator: str, ids=SUBJECTS) -> list[str]:
    values = [EXPECTED[subject] for subject in SUBJECTS]
    return [separator.join(row) for row in [("subject", "dx"), *zip(ids, values, strict=True)]]


@pytest.mark.parametrize("separator", [",", ";", "\t"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "cp1252"])
def test_every_separator_and_encoding_gives_the_same_groups(three, separator, encoding):
    assert three.new("--table", three.table(*rows(separator), encoding=encoding), "--group-by", "dx") == 0
    assert three.groups("dx") == EXPECTED
    assert ("Windows-1252" in three.out) == (encoding == "cp1252")


def test_what_excel_adds_does_not_matter(three):
    lines = ["sep=;", "subject;dx;;", '="001";MS;;', '"=""002""";Läsion;;', "'003;MS;;", ";;;", ";;;"]
    assert three.new("--table", three.table(*lines), "--group-by", "dx") == 0
    assert three.groups("dx") == EXPECTED


def test_bids_prefixes_on_either_side_do_not_matter(three):
    path = three.table(*rows(",", ["sub-001", "002", "sub-003"]))
    assert three.new("--table", path, "--group-by", "dx") == 0
    assert three.groups("dx") == EXPECTED


@pytest.mark.parametrize("ids", [("1", "2", "3"), ("1.0", "2,0", "03")])
def test_lost_zeros_are_suggested_and_matched_only_when_asked(three, ids):
    options = ["--table", three.table(*rows(";", ids)), "--group-by", "dx"]
    assert three.new(*options) == 1
    assert "no row fits any case" in three.err
    assert f"line 2: {ids[0]} = 001" in three.err
    assert "add --match-numbers" in three.err
    assert three.new(*options, "--match-numbers") == 0
    assert three.groups("dx") == EXPECTED


def test_different_subjects_of_one_number_are_not_matched_by_numbers(three):
    three.case("01")
    assert three.new("--table", three.table(*rows(",")), "--group-by", "dx", "--match-numbers") == 1
    assert "makes different subjects or sessions of the files the same" in three.err
    assert "  001 and 01" in three.err or "  01 and 001" in three.err


def test_a_row_that_is_there_with_and_without_zeros_is_a_duplicate(three):
    path = three.table(*rows(","), "1,control")
    assert three.new("--table", path, "--group-by", "dx", "--match-numbers") == 1
    assert "dx is line 2 'MS', line 5 'control'" in three.err


def test_duplicate_subjects_name_all_rows_unless_they_agree_in_what_is_used(three):
    path = three.table("subject,dx,score", "001,MS,1", "002,a,1", "003,MS,5", "003,MS,6", "002,b,1", "002,b,2")
    assert three.new("--table", path, "--group-by", "dx") == 1
    assert "002: dx is line 3 'a', line 6 'b', line 7 'b'" in three.err
    assert "003: " not in three.err
    assert (
        three.new("--table", path, "--group-by", "dx", "--where", "score=1", "--where", "dx=MS", "--where", "dx=a") == 0
    )
    assert three.groups("dx") == {"001": "MS", "002": "a", "003": "unknown"}


def test_sessions_tell_the_rows_of_a_subject_apart(study):
    for name in ("sub-01_ses-a", "sub-01_ses-b"):
        study.case(name)
    study.case("sub-02_ses-a")
    path = study.table("participant_id,session_id,age", "sub-01,ses-a,3", "01,b,5", "02,ses-a,8")
    globs = [
        "--image",
        "T2w=sub-{subject}_ses-{session}_T2w.nii.gz",
        "--label",
        "sub-{subject}_ses-{session}_seg.nii.gz",
    ]
    assert study.new(*globs, "--table", path, "--group-by", "age", files=False) == 0
    assert study.groups("age") == {"sub-01_ses-a": "3", "sub-01_ses-b": "5", "sub-02_ses-a": "8"}
    assert [entry["patient_id"] for entry in study.document["training"]] == ["sub-01", "sub-01", "sub-02"]
    assert "3 cases of 2 patients, 1 of them with several scans" in study.out
    assert "session column 'session_id'" in study.out
    per_subject = study.table("subject,visit,sex", "01,2,f", "02,1,m", name="subjects.csv")
    options = [*globs, "--table", per_subject, "--group-by", "sex", "--overwrite"]
    assert study.new(*options, files=False) == 1
    assert "or --session-column (or none)" in study.err
    assert study.new(*options, "--session-column", "none", files=False) == 0
    assert list(study.groups("sex").values()) == ["f", "f", "m"]


def test_unmatched_rows_and_cases_are_listed_with_what_they_may_have_been(three):
    lines = [*rows(",", ["001", "OO2", "003"]), "01. Mrz,MS", "1.2E+11,MS", "777,MS"]
    assert three.new("--table", three.table(*lines), "--group-by", "dx") == 0
    assert "table.csv, line 3: OO2 (perhaps meant to be 002, which has no row?)" in three.err
    assert "line 5: 01. Mrz (looks like a date that a spreadsheet made" in three.err
    assert "line 6: 1.2E+11 (looks like a long number" in three.err
    assert "line 7: 777\n" in three.err
    assert "  002 (perhaps table.csv, line 3, 'OO2'?)" in three.err
    assert three.groups("dx")["002"] == "unknown"


def test_blanks_and_n_a_become_unknown_and_are_counted(three):
    path = three.table("subject,dx", "001,n/a", "002,", "003,none")
    assert three.new("--table", path, "--group-by", "dx") == 0
    assert three.groups("dx") == {"001": "unknown", "002": "unknown", "003": "none"}  # "none" may be a diagnosis
    assert "2 cases with a blank or n/a" in three.err
    assert "001: table.csv, line 2" in three.err


def test_a_column_in_another_spelling_is_named_and_not_taken(three):
    path = three.table("subject,Diagnosis ,Dia_gnosis", "001,MS,1", "002,MS,1", "003,MS,2")
    assert three.new("--table", path, "--group-by", "diagnosis") == 1
    assert "no column 'diagnosis', but 'Diagnosis'" in three.err
    assert three.new("--table", path, "--group-by", "site") == 1
    assert "the columns are subject, Diagnosis, Dia_gnosis" in three.err
    assert not three.out_path.exists()


@pytest.mark.parametrize(
    ("lines", "options", "reason"),
    [
        (["id,dx", "001,MS"], [], "Name the subjects' one by --subject-column"),
        (["subject,patient,dx", "001,1,MS"], [], "subject or patient? Say so by --subject-column"),
        (["subject,dx", "001,MS"], ["--subject-column", "Subject"], "it has 'subject'"),
        (["subject,dx,dx", "001,MS,1"], [], "several columns 'dx'"),
        (["subject,dx", "001,MS,1.5"], [], "more fields than its header has (2) in line 2"),
        (["subject,dx"], [], "a header but no rows"),
        (["subject,dx", "001,MS"], ["--where", "dx=a"], "no row with dx = a; values there: MS"),
    ],
)
def test_a_table_that_cannot_be_used_says_why(three, lines, options, reason):
    assert three.new("--table", three.table(*lines), "--group-by", "dx", *options) == 1
    assert reason in three.err


def test_a_spreadsheet_file_says_how_to_make_a_csv_of_it(three):
    path = three.table(name="patients.xlsx")
    path.write_bytes(b"PK\x03\x04 and more")
    assert three.new("--table", path, "--group-by", "dx") == 1
    assert "save the sheet as CSV" in three.err


def test_two_tables_share_the_columns_and_never_one(three):
    first = three.table(*rows(","))
    second = three.table("patient;site", "001;a", "002;b", "003;a", name="sites.csv")
    assert three.new("--table", first, "--table", second, "--group-by", "dx", "--group-by", "site") == 0
    assert three.groups("site") == {"001": "a", "002": "b", "003": "a"}
    third = three.table("patient;dx", "001;a", name="more.csv")
    assert three.new("--table", first, "--table", third, "--group-by", "dx", "--overwrite") == 1
    assert "'dx' is in table.csv and in more.csv; rename one" in three.err


def test_options_of_columns_concern_those_tables_that_have_them(three):
    per_series = three.table("patient;series;site;id", "1;T1w;b;001", "1;T2w;a;001", "2;T2w;b;002", "3;T2w;a;003")
    per_patient = three.table(*rows(","), name="diagnoses.csv")
    tables = ["--table", per_series, "--table", per_patient, "--group-by", "dx", "--group-by", "site"]
    options = ["--where", "series=T2w", "--subject-column", "id"]
    assert three.new(*tables, *options) == 0
    assert (three.groups("dx"), three.groups("site")) == (EXPECTED, {"001": "a", "002": "b", "003": "a"})
    assert "diagnoses.csv: no column 'series', so --where series=... does not choose among its rows" in three.out
    assert "diagnoses.csv: 3 rows, joined by subject column 'subject'" in three.out


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--where", "series=T2w"], "no column 'series'; it has"),
        (["--where", "DX=MS"], "no column 'DX'; it has 'dx'"),
        (["--subject-column", "who"], "no column 'who'; it has"),
        (["--session-column", "when"], "no column 'when'; it has"),
    ],
)
def test_a_column_that_no_table_has_is_an_error_of_each(three, options, reason):
    first, second = three.table(*rows(",")), three.table("patient,site", "001,a", name="sites.csv")
    assert three.new("--table", first, "--table", second, "--group-by", "dx", *options) == 1
    assert f"table.csv: {reason}" in three.err
    if "dx" not in reason:
        assert f"sites.csv: {reason}" in three.err


@pytest.mark.parametrize(
    "option", [("--where", "dx=MS"), ("--subject-column", "id"), ("--session-column", "none"), ("--match-numbers",)]
)
def test_options_of_tables_without_a_table_are_refused(three, option):
    assert three.new(*option) == 2
    assert f"{option[0]}: for a --table, and none is given" in three.err


def test_what_follows_from_a_table_without_subjects_and_globs_without_files_is_not_said_again(three):
    table = three.table("Fall;dx", "001;MS")
    words = ["--image", "T2w={subject}_T1w.nii.gz", "--label", "{subject}_label.nii.gz", "--table", table]
    assert three.new(*words, "--group-by", "dx", files=False, structures=False) == 1
    errors = [line for line in three.err.splitlines() if "error:" in line]
    causes = ["T1w.nii.gz' matches", "label.nii.gz' matches", "no column participant_id", ": no case.", "4 errors"]
    assert [cause for cause, line in zip(causes, errors, strict=True) if cause not in line] == []
    assert three.new("--table", table, "--group-by", "dx") == 1
    assert "1 error," in three.err
