"""Hooks of MkDocs: pages from files outside of `docs/`, links to them, and the command line from its own --help."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[1]
COMMANDS = "<!-- every job and option -->"
"""Where a page gets the reference of the command line."""
LINK = re.compile(r"(?<!!)\[([^\]]*)\]\((?!https?:|mailto:|#)([^)#\s]+)(#[^)\s]*)?\)")


def outside_pages() -> dict[str, Path]:
    """Return the pages that lie outside of `docs/`: address in the site -> file."""
    cards = {f"bundles/{card.parents[1].name}.md": card for card in sorted(ROOT.glob("bundles/*/docs/README.md"))}
    others = {"changes.md": "CHANGELOG.md", "contributing.md": "CONTRIBUTING.md", "data.md": "data/README.md"}
    return cards | {page: ROOT / file for page, file in others.items()}


def on_config(config: Any) -> Any:
    """Put the model card of every bundle into the navigation."""
    cards = [{page[8:-3]: page} for page in outside_pages() if page.startswith("bundles/")]
    for section in config.nav:
        for entry in section.get("Reference", ()):
            if "Model cards" in entry:
                entry["Model cards"] = cards
    return config


def on_files(files: Files, config: Any) -> Files:
    """Add the pages from outside of `docs/`."""
    for page, path in outside_pages().items():
        files.append(File.generated(config, page, content=path.read_text(encoding="utf-8")))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Lead links between files of the repository to their pages, and write the command line's reference."""
    outside = outside_pages()
    own = outside.get(page.file.src_uri, ROOT / "docs" / page.file.src_uri)
    pages = {path.resolve(): uri for uri, path in outside.items()}
    pages |= {(ROOT / "docs" / file.src_uri).resolve(): file.src_uri for file in files if file.src_uri not in outside}
    markdown = LINK.sub(lambda match: _link(match, own, page.file.src_uri, pages), markdown)
    return markdown.replace(COMMANDS, command_line()) if COMMANDS in markdown else markdown


def _link(match: re.Match[str], own: Path, own_uri: str, pages: dict[Path, str]) -> str:
    """Return a link from page to page; only its text if it leads to a file that the site does not show."""
    text, target, anchor = match[1], match[2], match[3] or ""
    path = (own.parent / target).resolve()
    if path in pages:
        up = "../" * len(PurePosixPath(own_uri).parent.parts)
        return f"[{text}]({up}{pages[path]}{anchor})"
    inside = path.is_relative_to(ROOT) and not path.is_relative_to(ROOT / "docs")
    return text if inside and path.exists() else match[0]  # MkDocs says what leads nowhere


def command_line() -> str:
    """Return a section for every job of `droseg`, from the parser itself."""
    sys.path.insert(0, str(ROOT / "app"))  # it needs nothing but the standard library
    try:
        from droseg.cli import build_parser
    finally:
        sys.path.pop(0)
    return "\n\n".join(_section(parser) for parser in _jobs(build_parser()))


def _jobs(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    """Yield the parsers of all jobs, those of jobs of jobs in their place."""
    nested = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    if not nested:
        yield parser
    for action in nested:
        for job in action.choices.values():
            yield from _jobs(job)


def _section(parser: argparse.ArgumentParser) -> str:
    formatter = argparse.HelpFormatter(parser.prog)
    shown = [action for action in parser._actions if action.help != argparse.SUPPRESS and action.dest != "help"]
    rows = [
        f"| {_names(action)} | {_cell(formatter._expand_help(action) if action.help else '')} |" for action in shown
    ]
    # Lines set in by two blanks are a table of files, which Markdown would run together.
    described = re.sub(r"^  (?=\S)", "    ", _text(parser.description, parser.prog), flags=re.M)
    parts = [f"## {parser.prog}", described]
    if rows:
        parts.append("\n".join(["| argument | meaning |", "|---|---|", *rows]))
    if parser.epilog:
        parts.append(f"```text\n{_text(parser.epilog, parser.prog)}\n```")
    return "\n\n".join(part for part in parts if part)


def _names(action: argparse.Action) -> str:
    """Return how an argument is written."""
    metavar = action.metavar or ("{" + ",".join(map(str, action.choices)) + "}" if action.choices else None)
    values = metavar if isinstance(metavar, tuple) else (metavar or action.dest.upper(),)
    more = " ..." if action.nargs in ("+", "*") else ""
    if not action.option_strings:
        return f"`{values[0]}{more}`"
    value = "" if action.nargs == 0 else f" {' '.join(values)}{more}"
    required = ", required" if action.required else ""
    return ", ".join(f"`{name}{value}`" for name in action.option_strings) + required


def _text(text: str | None, prog: str) -> str:
    """Return a description as argparse prints it, which knows %(prog)s and %% only together."""
    text = text or ""
    return (text % {"prog": prog} if "%(prog)" in text else text).strip()


def _cell(text: str) -> str:
    """Return a text for a cell of a table."""
    return re.sub(r"([|<>*_])", r"\\\1", " ".join(text.split()))
