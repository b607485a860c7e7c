"""Fetal atlas folder (neurotypical/ and spina_bifida/) -> datalist.

    python scripts/convert_fetal_atlas.py SOURCE --out datalist.json

SOURCE holds `neurotypical/gaWW/` and `spina_bifida/gaWW_{notoperated,operated}/`, each with `image.nii.gz` and
`label.nii.gz`. By default 14 neurotypical and 3 spina bifida cases train, spread over the gestational ages, and the
rest is for testing: the imbalance that distributionally robust training is for.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from fetal_atlases import Atlas, build_parser, convert

ATLASES = (
    Atlas(
        name="neurotypical",
        folder="neurotypical",
        pattern=r"ga(?P<ga>\d+)",
        image="image.nii.gz",
        label="label.nii.gz",
        anatomy="neurotypical",
        protocol="gholipour2017",
        case_prefix="neurotypical",
    ),
    Atlas(
        name="spina_bifida",
        folder="spina_bifida",
        pattern=r"ga(?P<ga>\d+)_(?P<operation>notoperated|operated)",
        image="image.nii.gz",
        label="label.nii.gz",
        anatomy="spina_bifida",
        protocol="fidon2021",
        case_prefix="spina_bifida",
    ),
)
LICENSE_NOTE = (
    "License: spina bifida atlas CC0 1.0; neurotypical atlas for non-commercial research, with attribution to CRL."
)


def main(argv: Sequence[str] | None = None) -> int:
    """Convert the folder and return the exit code."""
    parser = build_parser(__doc__ or "", default_training="neurotypical=14,spina_bifida=3")
    return convert(parser.parse_args(argv), ATLASES, LICENSE_NOTE)


if __name__ == "__main__":
    sys.exit(main())
