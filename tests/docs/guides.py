"""Reads the fenced blocks of a guide: what it runs, what it says that this prints, what it quotes."""

from __future__ import annotations

import ast
import re
from dataclasses import dataclass
from pathlib import Path

PRINTS, SAYS, NOT_RUN = "prints", "it says", "not run"
"""Titles of blocks, which readers see: output of the block before; messages of the program; a reason not to run it."""
SLOW = "<!-- slow from here on: the default tests stop here -->"
FENCE = re.compile(r'^```(\w+)(?: title="([^"]*)")?\n(.*?)^```$', flags=re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Block:
    """One fenced block of a page."""

    language: str
    title: str
    text: str
    line: int


def blocks(page: Path, end: str | None = None) -> list[Block]:
    """Return the fenced blocks of a page in order, up to a mark in it if there is one."""
    text = page.read_text(encoding="utf-8")
    text = text.partition(end)[0] if end else text
    return [
        Block(match[1], match[2] or "", match[3], text[: match.start()].count("\n") + 1)
        for match in FENCE.finditer(text)
    ]


def source_texts(package: Path) -> str:
    """Return all text of a package's string literals, one line each; what an f-string fills in becomes `...`."""
    lines = []
    for file in package.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                lines.append("".join(part.value if isinstance(part, ast.Constant) else "..." for part in node.values))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                lines.append(node.value)
    return "\n".join(lines)
