"""Hippocampus folder (Medical Segmentation Decathlon, Task04) -> datalist with groups.

    python scripts/convert_hippocampus.py SOURCE --out datalist.json

SOURCE holds `images/` and `labels/` (or Decathlon's `imagesTr/` and `labelsTr/`) with files of the same names. The
cases are dealt into training, validation and testing in the proportion 120 : 20 : 40, stratified by both group axes:

- protocol: the intensity scale of the export: `uint8`, `float_low` (maximum <= 2e4) or `float_high` (more);
- anatomy: `small`, `medium` or `large`, the tertile of the labelled volume. The thresholds come from the training
  section alone. (Stratification, before there is one, uses the tertiles of all cases.)
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from droseg.data import Case, Datalist, empty_cells, group_table, split_datalist, write_datalist
from droseg.data.form import strip_suffix
from droseg.data.volumes import read_volume
from droseg.errors import DrosegError, InputError
from droseg.keys import TESTING, TRAINING, VALIDATION

STRUCTURES = {"anterior": (1,), "posterior": (2,)}
FOLDERS = (("images", "labels"), ("imagesTr", "labelsTr"))
FLOAT_LOW_MAXIMUM = 2e4
SIZES = ("small", "medium", "large")


def find_cases(source: Path) -> list[tuple[str, Path, Path]]:
    """Return case_id, image and label of each pair of files; says on stderr which images have no label.

    Raises:
        InputError: if there is no such pair.
    """
    found = next((names for names in FOLDERS if (source / names[0]).is_dir()), None)
    if found is None:
        raise InputError(f"{source}: no folder images/ or imagesTr/; give the folder that holds it.")
    images, labels = (source / name for name in found)
    # Decathlon's archives carry macOS' "._" files beside each image.
    names = sorted(path.name for path in images.glob("*.nii*") if not path.name.startswith("."))
    for name in names:
        if not (labels / name).is_file():
            print(f"{images / name}: left out, there is no {labels / name}.", file=sys.stderr)
    pairs = [(strip_suffix(name), images / name, labels / name) for name in names if (labels / name).is_file()]
    if not pairs:
        raise InputError(f"{source}: no image in {images} with a label of the same name in {labels}.")
    print(f"{images}: {len(names)} images, {len(pairs)} with a label")
    return pairs


def intensity_scale(image: Path) -> str:
    """Return the protocol group: the scale of the intensities that the file was exported with.

    Raises:
        VolumeError: if the image cannot be read.
    """
    volume = read_volume(image)
    if nib.load(image).get_data_dtype() == np.uint8:
        return "uint8"
    return "float_low" if float(volume.array.max()) <= FLOAT_LOW_MAXIMUM else "float_high"


def labelled_volume_ml(label: Path) -> float:
    """Return the volume of all structures together.

    Raises:
        VolumeError: if the label cannot be read.
    """
    volume = read_volume(label)
    return float(np.count_nonzero(volume.array) * abs(np.linalg.det(volume.affine[:3, :3])) / 1000)


def size_group(volume_ml: float, thresholds_ml: NDArray[np.float64]) -> str:
    """Return the anatomy group of a volume; a volume on a threshold belongs to the larger."""
    return SIZES[int(np.searchsorted(thresholds_ml, volume_ml, side="right"))]


def tertiles(volumes_ml: Sequence[float]) -> NDArray[np.float64]:
    """Return the two thresholds that divide volumes into thirds."""
    return np.quantile(volumes_ml, [1 / 3, 2 / 3])


def build_datalist(source: Path, out: Path, parts: Sequence[int], seed: int) -> Datalist:
    """Return the datalist of the folder, split in the proportion of the parts (training, validation, testing).

    Raises:
        DrosegError: if nothing is found or a file cannot be read.
    """
    pairs = find_cases(source.expanduser().absolute())
    volumes_ml = {case_id: labelled_volume_ml(label) for case_id, _, label in pairs}
    overall = tertiles(list(volumes_ml.values()))
    cases = []
    for case_id, image, label in pairs:
        groups = {"protocol": intensity_scale(image), "anatomy": size_group(volumes_ml[case_id], overall)}
        cases.append(Case(case_id, case_id, (image,), label, groups))
    fractions = {name: part / sum(parts) for name, part in zip((TRAINING, VALIDATION, TESTING), parts, strict=True)}
    whole = Datalist(out, ("T1w",), STRUCTURES, {TRAINING: tuple(cases)})
    result = split_datalist(whole, fractions=fractions, stratify=["protocol", "anatomy"], seed=seed)
    thresholds = tertiles([volumes_ml[case.case_id] for case in result.section(TRAINING)])
    print(f"anatomy: small < {thresholds[0]:.3f} ml <= medium < {thresholds[1]:.3f} ml <= large (tertiles of training)")
    sections = {
        section: tuple(
            replace(case, groups={**case.groups, "anatomy": size_group(volumes_ml[case.case_id], thresholds)})
            for case in members
        )
        for section, members in result.sections.items()
    }
    return replace(result, sections=sections)


def parts_argument(text: str) -> tuple[int, ...]:
    """Return the three numbers of "120,20,40"."""
    parts = text.split(",")
    if len(parts) != 3 or not all(part.strip().isdigit() for part in parts) or int(parts[0]) == 0:
        raise argparse.ArgumentTypeError(f"'{text}' is not TRAINING,VALIDATION,TESTING, e.g. 120,20,40")
    return tuple(int(part) for part in parts)


def main(argv: Sequence[str] | None = None) -> int:
    """Convert the folder and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, metavar="SOURCE", help="folder with images/ and labels/")
    parser.add_argument("--out", type=Path, default=Path("datalist.json"), metavar="FILE", help="datalist to write")
    parser.add_argument(
        "--parts",
        type=parts_argument,
        default=(120, 20, 40),
        metavar="T,V,T",
        help="proportion of training, validation and testing (default 120,20,40)",
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the split (default 0)")
    parser.add_argument(
        "--portable", action="store_true", help="write paths relative to SOURCE, to be used with --data-root SOURCE"
    )
    args = parser.parse_args(argv)
    try:
        datalist = build_datalist(args.source, args.out, args.parts, args.seed)
        write_datalist(datalist, args.out, args.source if args.portable else None)
    except DrosegError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    print(group_table(datalist))
    for cell in empty_cells(datalist):
        print(f"no case with {cell}")
    print("License: CC-BY-SA 4.0 (Medical Segmentation Decathlon, Simpson et al. 2019)")
    print(f"Wrote {args.out}" + (f"; use it with --data-root {args.source}" if args.portable else ""))
    return 0


if __name__ == "__main__":
    sys.exit(main())
