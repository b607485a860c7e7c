"""What `droseg discover` found, as the report shows it."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from droseg.errors import InputError

WORDS = {
    "rule": "rule",
    "confirmed": "confirmed",
    "n": "cases",
    "n_patients": "patients",
    "mean_inside": "mean inside",
    "mean_outside": "mean outside",
    "difference": "difference",
    "ci_low": "95 % from",
    "ci_high": "to",
    "p_adjusted": "p (corrected)",
    "note": "known group",
}
"""Columns of hidden_subgroups.csv that the page shows, and their headings."""


def read_hidden(path: Path) -> list[dict[str, object]]:
    """Return the rows of a hidden_subgroups.csv under the headings of the page; none found gives an empty list.

    Raises:
        InputError: if the file cannot be read, or is not one that `droseg discover` writes.
    """
    try:
        table = pd.read_csv(path)
    except OSError as error:
        raise InputError(
            f"--hidden {path}: cannot be read ({error.strerror}); give the hidden_subgroups.csv of droseg discover."
        ) from error
    except ValueError as error:
        raise InputError(f"--hidden {path}: cannot be read ({str(error).splitlines()[0]}).") from error
    missing = [column for column in WORDS if column not in table]
    if missing:
        raise InputError(
            f"--hidden {path}: it has no column {', '.join(missing)}; give the hidden_subgroups.csv of droseg discover."
        )
    shown = table[list(WORDS)].rename(columns=WORDS).astype({"known group": "object"}).fillna({"known group": ""})
    return [{str(key): value for key, value in row.items()} for row in shown.to_dict("records")]
