"""Fetal brain atlases of github.com/LucasFidon/trustworthy-ai-fetal-brain-segmentation -> datalist.

    git clone https://github.com/LucasFidon/trustworthy-ai-fetal-brain-segmentation
    python scripts/convert_trustworthy_atlases.py trustworthy-ai-fetal-brain-segmentation --out datalist.json

SOURCE is the clone or its folder `data/fetal_brain_atlases`, which holds three atlases with one folder per time point,
each with `srr.nii.gz` (T2w reconstruction), `parcellation.nii.gz` (labels) and `mask.nii.gz` (not used):

    Neurotypical_Gholipour2017/HarvardSTAWW_Study1      --training gholipour2017=N
    Neurotypical_Wu2021/ChineseWW_Study1                --training wu2021=N
    SpinaBifida_Fidon2021/fetal_SB_atlas_GAWW_{notoperated,operated}    --training fidon2021=N

By default 14 neurotypical cases of Gholipour 2017 and 3 spina bifida cases train, spread over the gestational ages.
The rest is for testing, the atlas of Wu 2021 as a protocol that training never sees.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from fetal_atlases import Atlas, build_parser, convert

ATLAS_FOLDER = Path("data") / "fetal_brain_atlases"
ATLASES = (
    Atlas(
        name="gholipour2017",
        folder="Neurotypical_Gholipour2017",
        pattern=r"HarvardSTA(?P<ga>\d+)_Study1",
        image="srr.nii.gz",
        label="parcellation.nii.gz",
        anatomy="neurotypical",
        protocol="gholipour2017",
        case_prefix="neurotypical",
    ),
    Atlas(
        name="wu2021",
        folder="Neurotypical_Wu2021",
        pattern=r"Chinese(?P<ga>\d+)_Study1",
        image="srr.nii.gz",
        label="parcellation.nii.gz",
        anatomy="neurotypical",
        protocol="wu2021",
        case_prefix="neurotypical_wu",
    ),
    Atlas(
        name="fidon2021",
        folder="SpinaBifida_Fidon2021",
        pattern=r"fetal_SB_atlas_GA(?P<ga>\d+)_(?P<operation>notoperated|operated)",
        image="srr.nii.gz",
        label="parcellation.nii.gz",
        anatomy="spina_bifida",
        protocol="fidon2021",
        case_prefix="spina_bifida",
    ),
)
LICENSE_NOTE = (
    "License: see LICENSE in the folder of each atlas (Fidon 2021: CC0 1.0; Gholipour 2017: non-commercial research, "
    "attribution to CRL) and cite the paper of each atlas that you use; data/README.md lists them."
)


def main(argv: Sequence[str] | None = None) -> int:
    """Convert the folder and return the exit code."""
    parser = build_parser(__doc__ or "", default_training="gholipour2017=14,fidon2021=3")
    args = parser.parse_args(argv)
    if (args.source / ATLAS_FOLDER).is_dir():
        args.source = args.source / ATLAS_FOLDER
    return convert(args, ATLASES, LICENSE_NOTE)


if __name__ == "__main__":
    sys.exit(main())
