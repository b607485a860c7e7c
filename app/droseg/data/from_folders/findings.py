"""What there is to tell while a datalist is built: each finding one sentence, with what it concerns listed below."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Final, Literal

Severity = Literal["error", "warning", "note"]

SHOWN: Final = 20
"""Items listed below a finding, unless all are asked for."""


@dataclass(frozen=True)
class Finding:
    """One thing to tell; an error means that nothing is written."""

    severity: Severity
    text: str
    items: tuple[str, ...] = ()


@dataclass
class Findings:
    """Collects findings, and tells each at once.

    Args:
        tell: called with each finding as it comes.
    """

    tell: Callable[[Finding], None] = lambda _: None
    all: list[Finding] = field(default_factory=list)

    def add(self, severity: Severity, text: str, items: Iterable[str] = ()) -> None:
        """Add one finding; one that was told before is not told again."""
        finding = Finding(severity, text, tuple(items))
        if finding not in self.all:
            self.all.append(finding)
            self.tell(finding)

    def error(self, text: str, items: Iterable[str] = ()) -> None:
        """Add what keeps the datalist from being written."""
        self.add("error", text, items)

    def warning(self, text: str, items: Iterable[str] = ()) -> None:
        """Add what a person should look at."""
        self.add("warning", text, items)

    def note(self, text: str, items: Iterable[str] = ()) -> None:
        """Add how something was read, so that no choice is made silently."""
        self.add("note", text, items)

    def count(self, severity: Severity) -> int:
        """Return the number of findings of a severity."""
        return sum(finding.severity == severity for finding in self.all)


def shown(finding: Finding, everything: bool = False) -> str:
    """Return a finding as lines of text, its items indented; at most `SHOWN` of them unless everything is wanted."""
    items = finding.items if everything or len(finding.items) <= SHOWN + 1 else finding.items[:SHOWN]
    lines = [finding.text, *(f"  {item}" for item in items)]
    if len(items) < len(finding.items):
        lines.append(f"  ... and {len(finding.items) - len(items)} more (--list-all shows them)")
    return "\n".join(lines)


def counted(number: int, thing: str, things: str | None = None) -> str:
    """Return "1 case" or "3 cases"."""
    return f"{number} {thing if number == 1 else things or thing + 's'}"


def some(names: Iterable[str], most: int = 6) -> str:
    """Return the first names with commas, and how many more there are."""
    names = list(names)
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
