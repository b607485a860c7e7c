"""The people of the phantom layouts that come without a datalist: who they are and how they were scanned."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np

from droseg.data.phantoms.anatomy import Anatomy, random_individual
from droseg.data.phantoms.scan import Protocol, Scan, Weighting, random_scans

_SHARE: Final[dict[Anatomy, float]] = {"enlarged_ventricles": 0.2, "absent_cerebellum": 0.1}
_THICK_SLICE_SHARE: Final = 1 / 3
_SCANNED_TWICE_EVERY: Final = 4
_WITHOUT_T1W_EVERY: Final = 7
SCANNERS: Final[dict[Protocol, dict[str, Any]]] = {
    "isotropic": {
        "site": "site_a",
        "Manufacturer": "Alpha Imaging",
        "ManufacturersModelName": "Cube 3",
        "MagneticFieldStrength": 3.0,
        "EchoTime": {"T2w": 0.120, "T1w": 0.0025},  # s, as BIDS has it; DICOM has ms
        "RepetitionTime": {"T2w": 3.2, "T1w": 1.9},
    },
    "thick_slice": {
        "site": "site_b",
        "Manufacturer": "Beta Scanners",
        "ManufacturersModelName": "Slab 15",
        "MagneticFieldStrength": 1.5,
        "EchoTime": {"T2w": 0.095, "T1w": 0.012},
        "RepetitionTime": {"T2w": 4.6, "T1w": 0.55},
    },
}
"""What the sidecars and DICOM tags of a protocol say; invented, and no word of them is one of a patient's name."""


@dataclass(frozen=True)
class Person:
    """Someone who was scanned once or twice; number and session with the seed fix everything random in a scan.

    Attributes:
        number: from 1.
        age: years; None: not known.
        sex: "F" or "M"; None: not known.
        weightings: of each session, in order; the T1w of some is missing.
    """

    number: int
    anatomy: Anatomy
    protocol: Protocol
    age: int | None
    sex: str | None
    weightings: tuple[tuple[Weighting, ...], ...]


def plan_people(scans: int, seed: int) -> list[Person]:
    """Return the people of a number of sessions: 20 % and 10 % have a rare anatomy, a third are `thick_slice`.

    One in four was scanned twice, one session in seven has no T1w; age or sex of a few are not known. Each group has
    one person at least.
    """
    rng = np.random.default_rng([seed, scans])
    sessions: list[int] = []
    while sum(sessions) < scans:
        twice = len(sessions) % _SCANNED_TWICE_EVERY == 1 and sum(sessions) + 2 <= scans
        sessions.append(1 + twice)
    count = len(sessions)
    anatomies: list[Anatomy] = [
        anatomy for anatomy, share in _SHARE.items() for _ in range(max(1, round(share * count)))
    ]
    anatomies += ["typical"] * (count - len(anatomies))
    thick = max(1, round(_THICK_SLICE_SHARE * count))
    protocols: list[Protocol] = ["thick_slice" if index < thick else "isotropic" for index in range(count)]
    anatomies = [anatomies[index] for index in rng.permutation(count)]
    protocols = [protocols[index] for index in rng.permutation(count)]
    people, session = [], 0
    for index in range(count):
        weightings: list[tuple[Weighting, ...]] = []
        for _ in range(sessions[index]):
            session += 1
            weightings.append(("T2w",) if session % _WITHOUT_T1W_EVERY == 4 else ("T2w", "T1w"))
        age, sex = int(rng.integers(20, 81)), str(rng.choice(["F", "M"]))
        people.append(
            Person(
                number=index + 1,
                anatomy=anatomies[index],
                protocol=protocols[index],
                age=None if index % 9 == 4 else age,
                sex=None if index % 11 == 6 else sex,
                weightings=tuple(weightings),
            )
        )
    return people


def session_scans(person: Person, session: int, seed: int, size: int) -> dict[Weighting, Scan]:
    """Return the scans of a session (from 1), all on one grid: the same brain, a little larger in a later one."""
    individual = random_individual(np.random.default_rng([seed, person.number]), person.anatomy)
    individual = replace(individual, size=individual.size * (1 + 0.02 * (session - 1)))
    rng = np.random.default_rng([seed, person.number, session])
    return random_scans(rng, individual, person.protocol, size, person.weightings[session - 1])
