"""The columns of the scanner's tags in the table of a conversion."""

from __future__ import annotations

import re
from typing import Final

from droseg.data.scanner import TAG_NAMES

MISSING: Final = "n/a"
"""What BIDS writes for a value that is not known."""


def _snake(name: str) -> str:
    return re.sub(r"(?<=[a-z])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", name).lower()


TAG_COLUMNS: Final = {name: _snake(name) for name in TAG_NAMES}
"""Name in BIDS -> column of the table: EchoTime is echo_time."""
