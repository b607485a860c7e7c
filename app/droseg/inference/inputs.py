"""What was given to segment: files and folders -> cases with names that do not collide."""

from __future__ import annotations

from pathlib import Path

from droseg.errors import InputError
from droseg.keys import IMAGE

SUFFIXES = (".nii.gz", ".nii")


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
