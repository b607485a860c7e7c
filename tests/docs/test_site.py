"""The documentation as a site: it builds without a dead link, and the command line's page says what --help says."""

from __future__ import annotations

import html
import importlib
import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

needs_mkdocs = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("mkdocs", "material")),
    reason="mkdocs and mkdocs-material are not installed: pip install 'droseg[docs]'",
)
FROM_ELSEWHERE = re.compile(r"""<(?:link|script|img|iframe)\b[^>]*\b(?:href|src)=["']?(?:https?:)?//[^>]*>""")


HOLDERS = sorted({"bundle", "data"} & set(importlib.import_module("droseg.cli").JOBS))
"""Jobs that hold other jobs."""


def help_of(words: list[str]) -> str:
    """Return what a job prints with --help."""
    command = [sys.executable, "-m", "droseg.cli", *words, "--help"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def jobs_of(words: list[str]) -> list[str]:
    return re.findall(r"^    (\w+)(?:  |$)", help_of(words), flags=re.MULTILINE)


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
    text = html.unescape(re.sub(r"<[^>]+>", "", page))
    jobs = [[job] for job in jobs_of([]) if job not in HOLDERS] + [
        [job, part] for job in HOLDERS for part in jobs_of([job])
    ]
    assert ["data", "split"] in jobs
    assert ["train"] in jobs
    for words in jobs:
        section = text.partition(f"droseg {' '.join(words)}¶")[2].partition("¶")[0]
        for option in set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", help_of(words))) - {"--help"}:
            assert option in section, f"droseg {' '.join(words)} {option}"
