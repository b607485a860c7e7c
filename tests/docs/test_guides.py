"""The guides are true: their commands run as written, print what is quoted, and quote what the program says."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from guides import NOT_RUN, PRINTS, SAYS, SLOW, Block, blocks, source_texts

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted((ROOT / "docs").rglob("*.md"))
GUIDES = sorted((ROOT / "docs" / "guides").glob("*.md"))
WALKED = [page for page in GUIDES if any(b.language == "bash" and not b.title for b in blocks(page))]


def run(block: Block, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run a block as a reader with this Python would; both streams as the terminal shows them."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    env = {**os.environ, "PATH": path, "COLUMNS": "120", "PYTHONUNBUFFERED": "1"}  # as in a terminal
    command = ["bash", "-euo", "pipefail", "-c", block.text]
    return subprocess.run(command, cwd=folder, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def shows(output: str, quoted: str) -> bool:
    """Whether the quoted text is part of the output in this order, with `...` for anything and all blanks alike.

    Where it does not begin or end with `...`, whole words are meant: "0 voxels" is not part of "10 voxels".
    """
    wanted, found = (" ".join(text.split()) for text in (quoted, output))
    pattern = ".*".join(re.escape(part.strip()) for part in wanted.split("..."))
    begin, end = r"(?<!\w)" * (not wanted.startswith("...")), r"(?!\w|\.\d)" * (not wanted.endswith("..."))
    return bool(re.search(f"{begin}{pattern}{end}", found))


@pytest.mark.parametrize("guide", WALKED, ids=lambda page: page.stem)
def test_the_commands_of_a_guide_run_as_written(guide: Path, tmp_path: Path):
    walk(guide, tmp_path, end=SLOW)


@pytest.mark.slow
@pytest.mark.parametrize("guide", [page for page in WALKED if SLOW in page.read_text()], ids=lambda page: page.stem)
def test_the_commands_of_a_whole_guide_run_as_written(guide: Path, tmp_path: Path):
    walk(guide, tmp_path)


def walk(guide: Path, folder: Path, end: str | None = None) -> None:
    """Run the commands of a guide, up to a mark in it, and compare what they print with what it quotes."""
    (folder / "scripts").symlink_to(ROOT / "scripts")  # a reader stands in the checkout
    output = ""
    for block in blocks(guide, end):
        where = f"{guide.name}:{block.line}"
        if block.language == "bash" and not block.title.startswith(NOT_RUN):
            done = run(block, folder)
            output = done.stdout
            assert done.returncode == 0, f"{where} ended with {done.returncode}\n{block.text}\n{output}"
        elif block.title == PRINTS:
            assert shows(output, block.text), f"{where} quotes\n{block.text}\nbut this is printed:\n{output}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_messages_that_a_page_quotes_are_those_of_the_program(page: Path):
    known = source_texts(ROOT / "app" / "droseg")
    for block in blocks(page):
        for line in block.text.splitlines() if block.title == SAYS else ():
            pattern = r".*?".join(re.escape(part.strip()) for part in line.split("..."))
            assert re.search(pattern, known), f"{page.name}:{block.line}: nothing in app/droseg says {line!r}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_block_that_is_not_run_says_why(page: Path):
    titles = {block.title for block in blocks(page) if block.language == "bash" and block.title}
    unclear = [title for title in titles if not re.match(rf"{NOT_RUN}\b.*: \w+", title)]
    assert unclear == []


@pytest.mark.parametrize(
    ("quoted", "is_shown"),
    [
        ("epoch 2/2  loss ...\nfinished", True),
        ("epoch 2/2  loss 3...", False),
        ("epoch 2/2 loss 2.6\n   val", True),
        ("finished\n...\nepoch", False),
        ("loss 2,6", False),
        ("poch 2/2", False),
        ("loss 2", False),
        ("...\nloss 2...", True),
        ("...\n2.6 va", False),
    ],
)
def test_quoted_output_is_found_with_ellipses_and_any_blanks(quoted: str, is_shown: bool):
    assert shows("a line\nepoch 2/2  loss 2.6  val\nfinished: x\n", quoted) is is_shown
