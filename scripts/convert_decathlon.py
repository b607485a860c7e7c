"""Any task of the Medical Segmentation Decathlon -> datalist.

    python scripts/convert_decathlon.py Task04_Hippocampus --out datalist.json
    python scripts/convert_decathlon.py --download Task04_Hippocampus --root DIR --out datalist.json

A task's folder holds `dataset.json`, `imagesTr/`, `labelsTr/` and `imagesTs/`. Channels and structures are those of
dataset.json. Cases with a label are training cases, `droseg data split` deals them out; imagesTs (no labels) becomes
the section `testing` with --with-test.

--download fetches the tar of MONAI's table (monai.apps.DecathlonDataset) below --root, goes on where an earlier try was
cut off, compares its MD5 with MONAI's and unpacks it; what is complete is not fetched again. The license, CC-BY-SA 4.0,
allows it.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
from tqdm import tqdm

from convert_shared import Findings, add_arguments, finish, label_values, strange_values
from decathlon_download import TASKS, download_task
from droseg.data import Case, Datalist
from droseg.data.form import read_background, read_channels, read_structures, strip_suffix
from droseg.data.from_folders.findings import some
from droseg.errors import DrosegError, InputError
from droseg.keys import TESTING, TRAINING

LICENSE_LINES = ("License: CC-BY-SA 4.0 (Medical Segmentation Decathlon, Antonelli et al. 2022, arXiv:2106.05735)",)


def read_description(folder: Path) -> dict[str, Any]:
    """Return what dataset.json says.

    Raises:
        InputError: if it cannot be read.
    """
    path = folder / "dataset.json"
    try:
        document = json.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such file; give the folder of a task, such as Task04_Hippocampus.") from error
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read as JSON ({error}).") from error
    if not isinstance(document, dict):
        raise InputError(f"{path}: a JSON object is expected.")
    return document


def check_modality(channels: Sequence[str], allow_ct: bool, path: Path) -> None:
    """Refuse CT, unless it is wanted.

    Raises:
        InputError: if a channel is CT.
    """
    if not allow_ct and any(name.strip().upper() == "CT" for name in channels):
        raise InputError(
            f"{path}: the modality is CT; droseg is for MRI (it normalizes each volume by its own mean and standard "
            "deviation, which throws the Hounsfield scale away). Give --allow-ct if you want it all the same."
        )


def listed_entries(document: dict[str, Any], folder: Path, findings: Findings) -> list[tuple[Path, Path]]:
    """Return image and label of each training entry; entries that are not of the form, or repeated, are problems."""
    pairs: list[tuple[Path, Path]] = []
    for index, entry in enumerate(document.get("training") or []):
        paths = [entry.get(key) if isinstance(entry, dict) else None for key in ("image", "label")]
        if not all(isinstance(path, str) and path for path in paths):
            findings.problem(
                f"{folder / 'dataset.json'}: training[{index}] is {entry!r}; image and label are expected."
            )
            continue
        pairs.append((_path(folder, paths[0]), _path(folder, paths[1])))
    images = [image for image, _ in pairs]
    for image in sorted({image for image in images if images.count(image) > 1}):
        text = f"{folder / 'dataset.json'}: {image.name} in {images.count(image)} entries of training; keep one."
        findings.problem(text, strip_suffix(image.name))
    return pairs


def _path(folder: Path, text: Any) -> Path:
    return Path(folder / str(text)).absolute()


def unlisted(folder: Path, listed: Sequence[Path], name: str) -> list[Path]:
    """Return the images of a folder that dataset.json does not list; macOS' "._" files are none."""
    present = (path for path in sorted((folder / name).glob("*.nii*")) if not path.name.startswith("."))
    return [path for path in present if path not in set(listed)]


def check_image(image: Path, channels: Sequence[str], case_id: str, findings: Findings) -> None:
    """Add a problem where an image is missing, cannot be read or has another number of channels."""
    try:
        shape = nib.load(image).shape
    except FileNotFoundError:
        findings.problem(f"{image}: no such file, though dataset.json lists it.", case_id)
        return
    except Exception as error:  # nibabel raises many kinds for a damaged file
        findings.problem(f"{image}: cannot be read ({' '.join(str(error).split())[:100]}); unpack it again.", case_id)
        return
    found = shape[3] if len(shape) == 4 else 1
    if found != len(channels):
        findings.problem(f"{image}: {found} channels, but dataset.json declares {some(channels)}.", case_id)


def check_label(label: Path, allowed: set[int], case_id: str, findings: Findings) -> None:
    """Add a problem where a label map is missing, cannot be read or has a value that dataset.json does not declare."""
    try:
        strange = strange_values(label_values(label), allowed)
    except DrosegError as error:
        findings.problem(str(error), case_id)
        return
    if strange:
        findings.problem(f"{label}: has the values {strange}; dataset.json declares {sorted(allowed - {0})}.", case_id)


def build_datalist(
    folder: Path, out: Path, *, allow_ct: bool, with_test: bool, skip_bad: bool, findings: Findings
) -> Datalist:
    """Return the datalist of a task.

    Raises:
        InputError: with all problems, if there are any.
    """
    folder = folder.expanduser().absolute()
    document = read_description(folder)
    try:
        channels, structures = read_channels(document), read_structures(document, required=True)
        background = read_background(document)
    except ValueError as error:
        raise InputError(f"{folder / 'dataset.json'}: {error}") from error
    check_modality(channels, allow_ct, folder / "dataset.json")
    pairs = listed_entries(document, folder, findings)
    allowed = {value for values in structures.values() for value in values}
    cases = []
    for image, label in tqdm(pairs, desc="cases", unit="case", disable=None):
        case_id = strip_suffix(image.name)
        check_image(image, channels, case_id, findings)
        check_label(label, allowed.union(background), case_id, findings)
        cases.append(Case(case_id, case_id, (image,), label, {}))
    for image in unlisted(folder, [image for image, _ in pairs], "imagesTr"):
        findings.left_out.append(f"{image}: dataset.json does not list it")
    bad = findings.bad_cases(skip_bad)
    sections = {TRAINING: tuple(case for case in cases if case.case_id not in bad)}
    if not sections[TRAINING]:
        raise InputError(f"{folder / 'dataset.json'}: no case in `training` is left.")
    tests = unlisted(folder, [], "imagesTs")
    if tests and with_test:
        sections[TESTING] = tuple(Case(strip_suffix(p.name), strip_suffix(p.name), (p,), None, {}) for p in tests)
    elif tests:
        findings.left_out.append(f"{folder / 'imagesTs'}: {len(tests)} images without labels (--with-test lists them)")
    print(f"{folder}: {document.get('name', folder.name)}, {len(channels)} channel(s): {', '.join(channels)}")
    print("no groups: the Decathlon says nothing of patients and scanners; add `groups` from a table of your own")
    return Datalist(out, channels, structures, sections, background)


def main(argv: Sequence[str] | None = None) -> int:
    """Convert a task, after its download if asked for, and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, nargs="?", metavar="SOURCE", help="folder of a task, with dataset.json")
    parser.add_argument("--download", choices=TASKS, metavar="TASK", help=f"fetch a task first: {', '.join(TASKS)}")
    parser.add_argument("--root", type=Path, default=Path(), metavar="DIR", help="where --download puts it (default .)")
    parser.add_argument("--allow-ct", action="store_true", help="convert a CT task, though droseg is for MRI")
    parser.add_argument("--with-test", action="store_true", help="list imagesTs, which has no labels, as testing")
    add_arguments(parser)
    args = parser.parse_args(argv)
    if (args.source is None) == (args.download is None):
        parser.error("give either SOURCE or --download TASK")
    folder = args.source or args.root / args.download

    def build(findings: Findings) -> Datalist:
        if args.download:
            download_task(args.download, args.root)
        return build_datalist(
            folder,
            args.out,
            allow_ct=args.allow_ct,
            with_test=args.with_test,
            skip_bad=args.skip_bad,
            findings=findings,
        )

    return finish(args, build, folder, LICENSE_LINES)


if __name__ == "__main__":
    sys.exit(main())
