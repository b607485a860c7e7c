"""docs/reading_the_report.md names every flag, column and field that there is."""

import json
from pathlib import Path

import pytest

from droseg.cli import main
from droseg.report import compare, gaps, subgroups, write_report

PAGE = Path(__file__).parents[2] / "docs" / "reading_the_report.md"


def test_every_flag_is_explained(capsys):
    with pytest.raises(SystemExit):
        main(["report", "--help"])
    flags = {word.strip("[],") for word in capsys.readouterr().out.split() if word.strip("[],").startswith("--")}
    text = PAGE.read_text()
    assert len(flags) > 20
    assert [flag for flag in sorted(flags - {"--help"}) if flag not in text] == []


@pytest.mark.parametrize("module", [subgroups, gaps, compare])
def test_every_column_is_explained(module):
    text = PAGE.read_text()
    columns = {*module.COLUMNS, *getattr(module, "TAIL_COLUMNS", ())} - {*gaps.COLUMNS[6:10], "overall"}
    assert [c for c in sorted(columns) if f"`{c}`" not in text and f"`{c}," not in text and f" {c}`" not in text] == []


def test_every_field_of_the_json_is_explained(make_cases, tmp_path):
    write_report(make_cases(1), tmp_path, axes=["anatomy"], baseline=make_cases(2), num_bootstrap=0)
    document = json.loads((tmp_path / "report.json").read_text())
    text = PAGE.read_text()
    run = document["runs"][0]
    fields = {*document, *document["settings"], *run, *run["comparison"], *run["failures"][0], *run["worst_cases"][0]}
    assert [field for field in sorted(fields) if f"`{field}`" not in text] == []
