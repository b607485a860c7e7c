"""The documentation as a site: it builds without a dead link, and the command line's page says what --help says."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

from droseg.cli import build_parser

needs_mkdocs = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("mkdocs", "material")),
    reason="mkdocs and mkdocs-material are not installed: pip install 'droseg[docs]'",
)
FROM_ELSEWHERE = re.compile(r"""<(?:link|script|img|iframe)\b[^>]*\b(?:href|src)=["']?(?:https?:)?//[^>]*>""")


@pytest.fixture(scope="module")
def site(project_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the site once."""
    out = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(out)]
    done = subprocess.run(command, cwd=project_root, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return out


@needs_mkdocs
def test_the_site_has_every_page_and_every_model_card(site: Path, project_root: Path):
    docs = project_root / "docs"
    pages = {path.relative_to(docs).with_suffix("") for path in docs.rglob("*.md")}
    pages |= {Path("bundles") / path.name for path in project_root.glob("bundles/*") if path.is_dir()}
    missing = [page for page in pages if page.name != "index" and not (site / page / "index.html").is_file()]
    assert missing == []


@needs_mkdocs
def test_the_site_loads_nothing_from_elsewhere(site: Path):
    found = [
        f"{page.relative_to(site)}: {tag}"
        for page in site.rglob("*.html")
        for tag in FROM_ELSEWHERE.findall(page.read_text())
        if 'rel="canonical"' not in tag
    ]
    assert found == []


@needs_mkdocs
def test_a_link_between_folders_of_the_repository_leads_from_page_to_page(site: Path):
    card = (site / "bundles" / "hippocampus_mri" / "index.html").read_text()
    assert 'href="../../metrics/"' in card  # written as ../../../docs/metrics.md, for readers of the repository
    assert "../../../docs" not in card


@needs_mkdocs
def test_the_page_of_the_command_line_has_every_job_and_option(site: Path):
    page = (site / "command_line" / "index.html").read_text()
    jobs = re.findall(r"^    (\w+)  ", build_parser().format_help(), flags=re.MULTILINE)
    assert {"data", "train", "predict"} <= set(jobs)
    for job in jobs:
        shown = subprocess.run(
            [sys.executable, "-m", "droseg.cli", job, "--help"], capture_output=True, text=True, check=True
        )
        for option in set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", shown.stdout)) - {"--help"}:
            assert option in page, f"droseg {job} {option}"
