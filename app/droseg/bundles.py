"""Where bundles lie: those shipped with droseg, and run folders, which are bundles too."""

from __future__ import annotations

from pathlib import Path

from droseg.errors import BundleError


def bundle_folders() -> tuple[Path, ...]:
    """Return the folders that may hold shipped bundles: inside an installed wheel, then in a checkout."""
    here = Path(__file__).resolve()
    return here.parent / "_bundles", here.parents[2] / "bundles"


def shipped_bundles() -> dict[str, Path]:
    """Return name -> folder of every bundle that came with this installation."""
    found: dict[str, Path] = {}
    for folder in bundle_folders():
        for metadata in sorted(folder.glob("*/configs/metadata.json")):
            found.setdefault(metadata.parents[1].name, metadata.parents[1])
    return found


def find_bundle(bundle: str | Path) -> Path:
    """Return the folder of a bundle given by a path (a bundle or a run folder) or by the name of a shipped one.

    Raises:
        BundleError: if there is no such bundle; the message lists the shipped ones.
    """
    path = Path(bundle)
    if (path / "configs").is_dir():
        return path.resolve()
    shipped = shipped_bundles()
    if str(bundle) in shipped:
        return shipped[str(bundle)]
    found = "exists but has no configs/ folder" if path.exists() else "is no folder and no shipped bundle"
    names = ", ".join(sorted(shipped)) or "none"
    raise BundleError(f"bundle {bundle}: {found}. Shipped bundles: {names}; or give the folder of a training run.")
