"""What was given to segment: files and folders -> cases with names that do not collide."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from droseg.data.datalist import Case, read_datalist
from droseg.data.form import strip_suffix
from droseg.errors import InputError
from droseg.inference.reading import is_dicom_folder
from droseg.keys import IMAGE

SUFFIXES = (".nii.gz", ".nii")
RESULT_SUFFIX = "_seg.nii.gz"

T = TypeVar("T")


@dataclass(frozen=True)
class InputCase:
    """One image to segment.

    Attributes:
        case_id: unique, and the stem of the result's file name.
        images: one source that holds all channels, or one per channel in the bundle's order.
    """

    case_id: str
    images: tuple[Path, ...]


@dataclass(frozen=True)
class SkippedInput:
    """Something among the inputs that is no candidate, such as a localizer; it changes no exit code."""

    name: str
    path: Path
    reason: str


@dataclass(frozen=True)
class FoundInputs:
    """What was found among the inputs."""

    cases: tuple[InputCase, ...]
    skipped: tuple[SkippedInput, ...] = ()


def image_files(folder: str | Path) -> list[Path]:
    """Return the NIfTI files directly in a folder, sorted by name; hidden files are left out."""
    files = (path for path in Path(folder).iterdir() if not path.name.startswith("."))
    return sorted(path for path in files if path.name.lower().endswith(SUFFIXES) and path.is_file())


def image_items(folder: str | Path) -> list[dict[str, str]]:
    """Return one `{"image": path}` per NIfTI file of a folder, as a MONAI dataset takes them.

    Raises:
        InputError: if there is no such folder or no NIfTI file in it.
    """
    files = image_files(folder) if Path(folder).is_dir() else []
    if not files:
        found = "no .nii or .nii.gz file in it" if Path(folder).is_dir() else "no such folder"
        raise InputError(f"dataset_dir {folder}: {found}; give a folder of NIfTI images.")
    return [{IMAGE: str(path)} for path in files]


def find_inputs(
    inputs: Sequence[str | Path],
    out: str | Path,
    *,
    num_channels: int = 1,
    section: str | None = None,
    data_root: str | Path | None = None,
) -> FoundInputs:
    """Return one case per image among files, folders and datalists; paths that do not exist are cases that will fail.

    A folder gives the NIfTI files directly in it, itself if DICOM files lie directly in it, and each of its direct
    subfolders with DICOM files. A JSON file is a datalist: the cases of `section`.

    Args:
        inputs: files and folders.
        out: the output folder; results in it are never taken for input.
        num_channels: what the network takes.
        section: of the datalists among the inputs.
        data_root: folder that the relative paths of datalists start from.

    Raises:
        InputError: if there is no image at all, or if a datalist comes without a section.
        DatalistError: if a datalist cannot be read.
    """
    images: list[Path] = []
    listed: list[Case] = []
    empty: list[Path] = []
    for path in (Path(item).expanduser().absolute() for item in inputs):
        if path.is_dir():
            found = _folder_images(path, Path(out).expanduser().absolute())
            images.extend(found)
            empty.extend([] if found else [path])
        elif path.name.lower().endswith(".json") and path.is_file():
            listed.extend(_section_cases(path, section, data_root))
        else:
            images.append(path)
    if not listed and not any(path.exists() for path in images):
        what = ", ".join(f"{path} (no such file)" for path in images) or ", ".join(
            f"{path} (no NIfTI and no DICOM file in it)" for path in empty
        )
        raise InputError(f"no image to segment: {what}; give NIfTI files, folders of them, or DICOM series folders.")
    images = list(dict.fromkeys([*images, *empty]))  # the same file twice is one case
    cases = [InputCase(case.case_id, case.images) for case in listed]
    cases += [InputCase(name, (path,)) for path, name in zip(images, _names(images), strict=True)]
    _refuse_equal_names(cases)
    return FoundInputs(tuple(cases))


def _folder_images(folder: Path, out: Path) -> list[Path]:
    files = [path for path in image_files(folder) if folder != out or not path.name.endswith(RESULT_SUFFIX)]
    subfolders = sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    return files + [path for path in [folder, *subfolders] if path != out and is_dicom_folder(path)]


def _section_cases(path: Path, section: str | None, data_root: str | Path | None) -> tuple[Case, ...]:
    datalist = read_datalist(path, data_root)
    if section is None:
        sections = ", ".join(f"{name} ({len(cases)} cases)" for name, cases in datalist.sections.items())
        raise InputError(f"{path}: a datalist needs --section; it has {sections}.")
    return datalist.section(section)


def _names(paths: Sequence[Path]) -> list[str]:
    """Return a name per path: the file's own without suffix; where several are alike, with folders in front of it."""
    stems = [path.name if path.is_dir() else strip_suffix(path.name) for path in paths]
    beside = _repeated((path.parent, stem) for path, stem in zip(paths, stems, strict=True))  # x.nii beside x.nii.gz
    names = [path.name if (path.parent, stem) in beside else stem for path, stem in zip(paths, stems, strict=True)]
    for depth in range(1, max((len(path.parts) - 1 for path in paths), default=0)):
        alike = _repeated(names)
        for index, path in enumerate(paths):
            if names[index] in alike and depth < len(path.parts) - 1:
                names[index] = f"{path.parts[-1 - depth]}_{names[index]}"
    return names


def _repeated(values: Iterable[T]) -> set[T]:
    return {value for value, count in Counter(values).items() if count > 1}


def _refuse_equal_names(cases: Sequence[InputCase]) -> None:
    repeated = _repeated(case.case_id for case in cases)
    if repeated:
        alike = [f"{case.case_id} ({case.images[0]})" for case in cases if case.case_id in repeated]
        raise InputError(
            f"several cases would be written to one file: {', '.join(alike[:6])}; rename them, or predict them apart."
        )
