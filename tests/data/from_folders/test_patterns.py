"""Globs with named wildcards, compared with the globs of the standard library."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from droseg.data.from_folders.patterns import Pattern, Tree
from droseg.errors import InputError

NAMES = (
    "sub-01/ses-1/anat/sub-01_ses-1_T2w.nii.gz",
    "sub-01/ses-2/anat/sub-01_ses-2_T2w.nii.gz",
    "sub-02/anat/sub-02_T2w.nii.gz",
    "flat/p_a_b_T2w.nii.gz",
    "flat/p1_T1w.nii",
    ".hidden/sub-09_T2w.nii.gz",
    "flat/._p2_T2w.nii.gz",
)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for name in NAMES:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    return tmp_path


def keys(glob: str, root: Path) -> list[tuple[str, str]]:
    return [(scan.subject, scan.session) for scan in Pattern(glob, root).scans(Tree())[0]]


@pytest.mark.parametrize(
    "glob", ["*/*/*/*_T2w.nii.gz", "**/*_T2w.nii.gz", "sub-0?/**/*.nii.gz", "flat/*", "*-0[2-9]/*/*", "**/anat/*"]
)
def test_the_wildcards_of_a_shell_match_what_the_standard_library_matches(root: Path, glob: str) -> None:
    expected = {path for path in root.glob(glob) if path.is_file() and not any(p[0] == "." for p in path.parts[1:])}
    head, _, tail = glob.rpartition("*")
    found = Pattern(f"{head}{{subject:.*?}}{tail}", root).scans(Tree())  # one * is named; it stays in a name
    assert {scan.path for scan in found[0]} | {Path(line.split(": {")[0]) for line in found[1]} == expected


def test_subject_and_session_are_taken_from_the_path_with_their_prefix(root: Path) -> None:
    glob = "sub-{subject}/ses-{session}/anat/sub-{subject}_ses-{session}_T2w.nii.gz"
    assert keys(glob, root) == [("sub-01", "ses-1"), ("sub-01", "ses-2")]
    assert keys("{subject}/ses-{session}/anat/*", root) == [("sub-01", "ses-1"), ("sub-01", "ses-2")]
    (first, _) = Pattern("{subject}/{session}/anat/*", root).scans(Tree())[0]
    assert first.key == ("01", "1")  # so that it meets the files of a channel whose glob has the prefixes


def test_a_repeated_wildcard_is_the_same_text(root: Path) -> None:
    (root / "sub-01/ses-1/anat/sub-02_ses-1_T2w.nii.gz").write_bytes(b"x")
    found = Pattern("sub-{subject}/**/sub-{subject}_*T2w.nii.gz", root).scans(Tree())[0]
    assert "sub-02_ses-1" not in "".join(scan.path.name for scan in found)


def test_a_name_that_can_be_read_in_two_ways_is_said_with_a_way_out(root: Path) -> None:
    found, unclear, _ = Pattern("flat/{subject}_{session}_T2w.nii.gz", root).scans(Tree())
    assert found == []
    assert "may be 'p' or 'p_a'" in unclear[0]
    assert "{subject:[^_]+}" in unclear[0]
    assert keys("flat/{subject:[^_]+}_{session}_T2w.nii.gz", root) == [("p", "a_b")]


@pytest.mark.parametrize(
    ("glob", "crossing", "advised"),
    [
        ("sub-{subject:.+}_ses-1_T2w*", "01/ses-1/anat/sub-01", "{subject:[^/]+}"),
        (r"{subject:[.\w]+-02.anat.sub-\d+}_T2w*", "sub-02/anat/sub-02", r"{subject:[.\w]+-02[^/]anat[^/]sub-\d+}"),
        (r"{subject:\S+-02\S+-\d+}_T2w*", "sub-02/anat/sub-02", "{subject:[^/]+}"),
        ("flat/{subject:.+?}_a_b_T2w.nii.gz", None, None),
    ],
)
def test_a_regular_expression_that_goes_across_folders_is_said_with_the_one_to_write(
    root: Path, glob: str, crossing: str | None, advised: str | None
) -> None:
    found, unclear, _ = Pattern(glob, root).scans(Tree())
    if crossing is None:
        assert unclear == []
    else:
        assert found == []
        assert any(
            f"{{subject}} is '{crossing}', which goes across folders; write {advised}" in text for text in unclear
        )


@pytest.mark.parametrize(
    ("glob", "reason"),
    [
        ("sub-{subject}/ses-{session}/func/*.nii.gz", "nothing fits 'func'; in .*/sub-01/ses-1.* there are: anat/"),
        ("sub-{subject}/ses-{session}/anat/*_t2w.nii.gz", "2 would match if upper and lower case"),
        ("imagesTr/{subject}.nii.gz", "no folder .*imagesTr; in .* there are: flat, sub-01, sub-02"),
        ("flat/{subject}_FLAIR.nii.gz", "there are: p1_T1w.nii, p_a_b_T2w.nii.gz"),
    ],
)
def test_a_glob_that_matches_nothing_says_what_is_there(root: Path, glob: str, reason: str) -> None:
    pattern = Pattern(glob, root)
    assert pattern.scans(Tree())[0] == []

    assert re.search(reason, pattern.why_nothing(Tree()))


@pytest.mark.parametrize(
    ("glob", "reason"),
    [("sub-*/T2w.nii.gz", "no {subject}"), ("sub-{subject/x", "no {subject}"), ("{subject}/{/x", "belongs to no")],
)
def test_a_glob_that_cannot_be_understood_is_refused(root: Path, glob: str, reason: str) -> None:
    with pytest.raises(InputError, match=reason):
        Pattern(glob, root)


def test_a_link_to_a_folder_above_is_not_followed_for_ever(root: Path) -> None:
    (root / "sub-01" / "again").symlink_to(root)
    assert keys("sub-{subject}/ses-{session}/anat/*_T2w.nii.gz", root) == [("sub-01", "ses-1"), ("sub-01", "ses-2")]


def test_absolute_globs_and_those_above_the_root_work(root: Path) -> None:
    expected = [("sub-02", "")]
    assert keys(f"{root}/sub-{{subject}}/anat/*.nii.gz", root / "flat") == expected
    assert keys("../sub-{subject}/anat/*.nii.gz", root / "flat") == expected
