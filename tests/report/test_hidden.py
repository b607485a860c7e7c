"""What droseg discover found is a section of the page."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from droseg.cli import main


@pytest.fixture
def hidden_csv(tmp_path):
    """Run the real search on a table with a planted slice: the 30 of 120 cases with thick slices are bad."""
    rng = np.random.default_rng(0)
    thick = np.arange(120) % 4 == 0
    ids = [f"case{index:03d}" for index in range(120)]
    dice = np.where(thick, 0.6, 0.85) + 0.03 * rng.standard_normal(120)
    cases = pd.DataFrame({"case_id": ids, "structure": "brain", "dice": dice, "anatomy": "typical"})
    cases.to_csv(tmp_path / "cases.csv", index=False)
    features = pd.DataFrame({"case_id": ids, "slice_mm": np.where(thick, 4.0, 1.0), "age": rng.random(120)})
    features.to_csv(tmp_path / "features.csv", index=False)
    arguments = ["--features", str(tmp_path / "features.csv"), "--out", str(tmp_path / "found")]
    assert main(["discover", str(tmp_path / "cases.csv"), *arguments]) == 0
    return tmp_path / "found" / "hidden_subgroups.csv"


def test_a_found_rule_stands_on_the_page_with_its_numbers(hidden_csv, tmp_path):
    out = tmp_path / "report"
    arguments = ["--group-by", "anatomy", "--bootstrap", "50", "--hidden", str(hidden_csv), "--out", str(out)]
    assert main(["report", str(tmp_path / "cases.csv"), *arguments]) == 0
    page = (out / "report.html").read_text()
    section = page[page.index('<section id="hidden">') :]
    assert "<td>slice &gt; 2 mm</td><td>yes</td><td>30</td>" in section
    assert "Only a confirmed rule is a finding" in section


def test_another_file_is_refused(tmp_path, hidden_csv, capsys):
    cases = str(tmp_path / "cases.csv")
    assert main(["report", cases, "--hidden", cases, "--out", str(tmp_path / "report")]) == 2
    assert "give the hidden_subgroups.csv of droseg discover" in capsys.readouterr().err
    assert main(["report", cases, "--hidden", str(tmp_path / "no.csv"), "--out", str(tmp_path / "report")]) == 2
    error = capsys.readouterr().err
    assert "no.csv: cannot be read (No such file or directory); give" in error
    assert "Errno" not in error
