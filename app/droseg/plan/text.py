"""The text of a YAML config in blocks, one per top-level key with the comments above it, so that comments survive."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import yaml

from droseg.errors import BundleError

WIDTH = 120
_KEY = re.compile(r"""["']?(\+?[\w#:]+)["']?\s*:(?:\s|$)""")
_HEADING = re.compile(r"# -{2,}")


@dataclass
class Block:
    """A top-level key with its comments and value; without a key: comments that stand for themselves, blank lines."""

    key: str | None
    text: str


class ConfigText:
    """A config as text, read by blocks and changed by blocks.

    Args:
        text: YAML whose top level is in block style.
    """

    def __init__(self, text: str) -> None:
        self.blocks: list[Block] = []
        comments: list[str] = []
        for line in text.splitlines(keepends=True):
            key = _KEY.match(line)
            if key:
                self.blocks.append(Block(key[1], "".join(comments) + line))
                comments = []
            elif line.startswith("#") and not _HEADING.match(line) and not self._at_start:
                comments.append(line)
            elif line.strip() and not line.startswith("#"):
                # Comments inside of a value, such as those between the items of a list, have been held back.
                self.blocks[-1].text += "".join(comments) + line
                comments = []
            else:
                self.blocks += [Block(None, each) for each in (*comments, line)]
                comments = []
        self.blocks += [Block(None, each) for each in comments]

    @property
    def _at_start(self) -> bool:
        return not any(block.key for block in self.blocks)

    def __str__(self) -> str:
        """Return the text."""
        return re.sub(r"\n{3,}", "\n\n", "".join(block.text for block in self.blocks))

    def __contains__(self, key: str) -> bool:
        """Whether there is a block of this key."""
        return any(block.key == key for block in self.blocks)

    def __getitem__(self, key: str) -> str:
        """Return the text of a key's block."""
        return self._block(key).text

    def set(self, key: str, text: str, after: str | None = None, before: str | None = None) -> None:
        """Replace a key's block, or insert it after another one's.

        Args:
            key: of the block.
            text: without a line end.
            after: the key that it follows if it is new; None: it goes to the end.
            before: the key that follows it if it is new.
        """
        new = Block(key, text + "\n")
        if key in self:
            self.blocks[self.blocks.index(self._block(key))] = new
        elif before is not None:
            self.blocks.insert(self.blocks.index(self._block(before)), new)
        elif after is not None:
            self.blocks.insert(self.blocks.index(self._block(after)) + 1, new)
        else:
            self.blocks.append(new)

    def remove(self, *keys: str) -> None:
        """Take blocks out."""
        self.blocks = [block for block in self.blocks if block.key not in keys]

    def remove_comments(self, pattern: str) -> None:
        """Take comments that stand for themselves out, where a regular expression is found in them."""
        self.blocks = [block for block in self.blocks if block.key or not re.search(pattern, block.text)]

    def head(self, text: str) -> None:
        """Replace the comments above the first key."""
        first = next(index for index, block in enumerate(self.blocks) if block.key)
        self.blocks[:first] = [Block(None, text)]

    def change(self, key: str, change: Callable[[str], str]) -> None:
        """Replace a key's block by what `change` makes of its text."""
        block = self._block(key)
        block.text = change(block.text)

    def _block(self, key: str) -> Block:
        found = [block for block in self.blocks if block.key == key]
        if not found:
            raise BundleError(f"the bundle that is followed has no key {key} in its config; choose another --like.")
        return found[0]


def setting(key: str, value: Any, reason: str, indent: int = 0) -> str:
    """Return `key: value # reason`; a reason that is too long for the line stands above it."""
    start = " " * indent
    line = f"{start}{key}: {flow(value)}"
    if len(line) + len(reason) + 3 <= WIDTH:
        return f"{line} # {reason}"
    return wrapped(reason, indent) + line


def wrapped(reason: str, indent: int = 0) -> str:
    """Return a reason as comment lines."""
    start = f"{' ' * indent}# "
    return textwrap.fill(reason, WIDTH, initial_indent=start, subsequent_indent=start) + "\n"


def flow(value: Any) -> str:
    """Return a value as YAML on one line."""
    text = yaml.safe_dump(value, default_flow_style=True, sort_keys=False, width=float("inf"), allow_unicode=True)
    return text.removesuffix("...\n").strip()


def change_items(text: str, change: Callable[[str, str], str]) -> str:
    """Return a block whose value is a list of components with each item replaced.

    Args:
        text: `key:` and the items, each from its dash on with the comments above it.
        change: (`_target_`, text of the item with its dash indented by 2) -> new text of that form; "" takes it out.
    """
    lines = text.splitlines(keepends=True)
    dash = next((re.match(r"( *)- ", line) for line in lines if re.match(r" *- ", line)), None)
    if dash is None:
        return text
    parts: list[str] = [""]
    comments = ""
    for line in lines:
        if line.startswith(f"{dash[1]}- "):
            parts.append(comments + line)
            comments = ""
        elif line.startswith(f"{dash[1]}#") and len(parts) > 1:
            comments += line
        else:
            parts[-1] += comments + line
            comments = ""
    items = [change(_target(part), _indented(part, "  ")) for part in parts[1:]]
    return parts[0] + "".join(_indented(item, dash[1]) for item in items) + comments


def _indented(item: str, by: str) -> str:
    return textwrap.indent(textwrap.dedent(item), by)


def _target(item: str) -> str:
    content = yaml.safe_load(item)
    first = content[0] if isinstance(content, list) and content else None
    target = first.get("_target_", "") if isinstance(first, dict) else ""
    return str(target).rpartition(".")[2]


def set_leaf(text: str, path: tuple[str, ...], value: str) -> str:
    """Return a block of nested mappings with one leaf, and the comment behind it, replaced or inserted.

    Args:
        text: `key:` and what belongs to it.
        path: keys down to the leaf, the block's own first.
        value: YAML, with a comment if there is something to say.
    Raises:
        BundleError: if there is no such mapping to put it into.
    """
    content = yaml.safe_load(text)
    holder = content
    for name in path[:-1]:
        holder = holder.get(name) if isinstance(holder, dict) else None
    if not isinstance(holder, dict):
        raise BundleError(
            f"the bundle that is followed has no {'#'.join(path[:-1])} in its config; choose another --like."
        )
    lines = _set_line(text.splitlines(keepends=True), path, value)
    if lines is not None:
        return "".join(lines)
    # In flow style, {...}, as a run folder has it, which has no comments either.
    holder[path[-1]] = yaml.safe_load(value)
    return yaml.safe_dump(content, sort_keys=False, width=110, allow_unicode=True, default_flow_style=None)


def _set_line(lines: list[str], path: tuple[str, ...], value: str) -> list[str] | None:
    """Return the lines with the leaf's own line replaced or inserted; None where mappings are not in block style."""
    start, depth = 0, -1
    for level, name in enumerate(path):
        found = None
        for index in range(start, len(lines)):
            match = re.match(r"( *)([^ #].*)", lines[index])
            if match is None:
                continue
            if len(match[1]) <= depth:
                break
            if re.match(rf"{re.escape(name)}:", match[2]):
                found = index, len(match[1])
                break
        last = level == len(path) - 1
        if found is None:
            if not last:
                return None
            inner = re.match(r" *", lines[start]) if start < len(lines) else None
            if inner is None or len(inner[0]) <= depth:
                return None
            return [*lines[: start + 1], f"{inner[0]}{name}: {value}\n", *lines[start + 1 :]]
        start, depth = found[0] + 1, found[1]
        if last:
            return [*lines[: start - 1], f"{' ' * depth}{name}: {value}\n", *lines[start:]]
        if re.search(r":\s*\{", lines[found[0]]):
            return None
    return None
