"""Score a folder of predicted label maps against a datalist: one row per case and structure."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pandas as pd
from nibabel.affines import voxel_sizes
from nibabel.orientations import apply_orientation, inv_ornt_aff, io_orientation, ornt_transform
from numpy.typing import NDArray

from droseg.data.datalist import Case, Datalist
from droseg.data.volumes import GRID_TOLERANCE
from droseg.errors import DrosegError
from droseg.metrics import COLUMNS, case_metrics

ITK_SUFFIXES = (".nrrd", ".mha", ".mhd")
SUFFIXES = (".nii.gz", ".nii", ".mgz", ".mgh", ".hdr", ".img", *ITK_SUFFIXES)

OnCase = Callable[[str], None]


@dataclass(frozen=True)
class Scores:
    """The scored cases, and what kept the others out.

    Attributes:
        cases: a cases table: case_metrics.csv's columns, group axes, `diagonal_mm`.
        missing: cases without a prediction, in the table only if they were to count as failures.
        problems: case_id -> why it could not be scored.
        warnings: what deserves a look though it was scored.
    """

    cases: pd.DataFrame
    missing: list[str]
    problems: dict[str, str]
    warnings: list[str]


def score_cases(datalist: Datalist, section: str, pred_dir: str | os.PathLike[str], **options: Any) -> pd.DataFrame:
    """Return the cases table of a section; `options` are those of `score_section`.

    Raises:
        DrosegError: if any case could not be scored or has no prediction; the message lists all of them.
    """
    scores = score_section(datalist, section, pred_dir, **options)
    problems = [f"{case_id}: {problem}" for case_id, problem in scores.problems.items()]
    if not options.get("missing_as_failure", False):
        problems += [f"{case_id}: no prediction in {pred_dir}" for case_id in scores.missing]
    if problems:
        raise DrosegError(f"{len(problems)} cases could not be scored:\n  " + "\n  ".join(problems))
    return scores.cases


def score_section(
    datalist: Datalist,
    section: str,
    pred_dir: str | os.PathLike[str],
    *,
    predictions: Mapping[str, Path] | None = None,
    structures: Iterable[str] | None = None,
    nsd_tolerance_mm: float = 1.0,
    missing_as_failure: bool = False,
    workers: int = 1,
    on_case: OnCase | None = None,
) -> Scores:
    """Return the scores of a section; a case that cannot be scored does not stop the others.

    Args:
        datalist: its label maps are the reference; their own grid and spacing are used.
        section: e.g. "testing".
        pred_dir: folder with CASE_ID.nii.gz or CASE_ID_seg.nii.gz (or another format: `SUFFIXES`).
        predictions: case_id -> label map, instead of what lies in the folder; only these cases are scored.
        structures: names to score; default all of the datalist.
        nsd_tolerance_mm: see `case_metrics`.
        missing_as_failure: score a case without a prediction as all background.
        workers: processes.
        on_case: called with each case_id when it is done.

    Raises:
        DrosegError: if the folder or a structure does not exist.
    """
    folder = Path(pred_dir)
    if not folder.is_dir():
        raise DrosegError(f"{folder}: no such folder; give the folder of the predicted label maps by --pred.")
    regions = _regions(datalist, structures)
    cases = datalist.section(section)
    found: dict[str, Path | None]
    if predictions is None:
        files = {path.name: path for path in sorted(folder.iterdir()) if path.is_file()}
        found = {case.case_id: find_prediction(files, case.case_id) for case in cases}
    else:
        cases = tuple(case for case in cases if case.case_id in predictions)
        found = {case.case_id: predictions[case.case_id] for case in cases}
    score = partial(
        _score_case,
        structures=regions,
        known_values={value for values in datalist.structures.values() for value in values},
        nsd_tolerance_mm=nsd_tolerance_mm,
        missing_as_failure=missing_as_failure,
    )
    tables, problems, warnings = [], {}, []
    for case, (table, problem, warning) in _run(score, cases, found, workers):
        if table is not None:
            tables.append(table.assign(**{axis: case.groups.get(axis) for axis in datalist.axes}))
        if problem:
            problems[case.case_id] = problem
        if warning:
            warnings.append(f"{case.case_id}: {warning}")
        if on_case is not None:
            on_case(case.case_id)
    columns = [*COLUMNS, *datalist.axes, "diagonal_mm"]
    result = pd.concat(tables, ignore_index=True)[columns] if tables else pd.DataFrame(columns=columns)
    return Scores(result, [c for c, path in found.items() if path is None], problems, warnings)


def find_prediction(files: Mapping[str, Path], case_id: str) -> Path | None:
    """Return the label map of a case among the files of a folder (name -> path), or None."""
    for stem in (case_id, f"{case_id}_seg"):
        for suffix in SUFFIXES:
            if stem + suffix in files:
                return files[stem + suffix]
    return None


def read_labels(path: Path) -> tuple[NDArray[np.integer], NDArray[np.float64]]:
    """Return a label map, shape (H, W, D), and its affine.

    Raises:
        DrosegError: if it cannot be read, is not 3D or holds values that are no labels.
    """
    try:
        array, affine = _read_itk(path) if path.name.endswith(ITK_SUFFIXES) else _read_nibabel(path)
    except FileNotFoundError as error:
        raise DrosegError(f"{path}: no such file; correct the datalist.") from error
    except ImportError as error:
        raise DrosegError(f"{path}: this format needs ITK; pip install 'droseg[itk]', or give NIfTI.") from error
    except Exception as error:  # damaged headers and data raise many types
        raise DrosegError(f"{path}: cannot be read ({error}); write it again as NIfTI.") from error
    if affine.shape != (4, 4) or not np.isfinite(affine).all() or abs(np.linalg.det(affine)) < 1e-9:
        raise DrosegError(f"{path}: its affine is singular or not finite; repair its header.")
    array = np.squeeze(array, axis=tuple(a for a in range(3, array.ndim) if array.shape[a] == 1))
    if array.ndim != 3:
        raise DrosegError(f"{path}: has shape {array.shape}; a 3D label map is expected.")
    if array.dtype.kind not in "iub":
        rounded = np.rint(array)
        if not np.array_equal(rounded, array):
            raise DrosegError(f"{path}: holds values that are not whole numbers; save labels, not probabilities.")
        array = rounded.astype(np.int64)
    return array, affine


def _read_nibabel(path: Path) -> tuple[NDArray[Any], NDArray[np.float64]]:
    image: Any = nib.load(path)
    return np.asanyarray(image.dataobj), np.asarray(image.affine, dtype=np.float64)


def _read_itk(path: Path) -> tuple[NDArray[Any], NDArray[np.float64]]:
    import itk
    from monai.data import ITKReader

    array, meta = ITKReader().get_data(itk.imread(str(path)))
    return np.asarray(array), np.asarray(meta["affine"], dtype=np.float64)


def on_reference_grid(
    volume: NDArray[Any], affine: NDArray[np.float64], ref_shape: Sequence[int], ref_affine: NDArray[np.float64]
) -> NDArray[Any] | None:
    """Return the label map or image in the reference's axis order and directions, or None if its voxels lie elsewhere.

    Axes are only permuted and flipped, never interpolated.
    """
    if _same_grid(volume.shape, affine, ref_shape, ref_affine):
        return volume
    transform = ornt_transform(io_orientation(affine), io_orientation(ref_affine))
    moved: NDArray[Any] = apply_orientation(volume, transform)
    moved_affine = affine @ inv_ornt_aff(transform, volume.shape)
    return moved if _same_grid(moved.shape, moved_affine, ref_shape, ref_affine) else None


def _same_grid(
    shape: Sequence[int], affine: NDArray[np.float64], ref_shape: Sequence[int], ref_affine: NDArray[np.float64]
) -> bool:
    if tuple(shape) != tuple(ref_shape):
        return False
    corners = np.array(np.meshgrid(*[(0, size - 1) for size in shape], [1])).reshape(4, -1)
    apart_mm = np.linalg.norm((affine @ corners - ref_affine @ corners)[:3], axis=0).max()
    return bool(apart_mm <= GRID_TOLERANCE * voxel_sizes(ref_affine).min())


def _regions(datalist: Datalist, structures: Iterable[str] | None) -> dict[tuple[int, ...], str]:
    names = list(datalist.structures) if structures is None else list(structures)
    unknown = [name for name in names if name not in datalist.structures]
    if unknown:
        known = ", ".join(datalist.structures)
        raise DrosegError(f"{datalist.path}: no structure {', '.join(unknown)}; those declared: {known}.")
    regions: dict[tuple[int, ...], str] = {}
    for name in names:
        values = tuple(datalist.structures[name])
        if values in regions:
            raise DrosegError(f"{datalist.path}: '{regions[values]}' and '{name}' have the same label values {values}.")
        regions[values] = name
    return regions


def _run(
    score: Callable[[Case, Path | None], Any],
    cases: Sequence[Case],
    predictions: Mapping[str, Path | None],
    workers: int,
) -> Iterable[tuple[Case, Any]]:
    """Yield each case with its result, in the order of the datalist."""
    paths = [predictions[case.case_id] for case in cases]
    if workers <= 1 or len(cases) <= 1:
        yield from ((case, score(case, path)) for case, path in zip(cases, paths, strict=True))
        return
    # Not fork: torch's and nibabel's threads may hold locks in this process.
    with ProcessPoolExecutor(min(workers, len(cases)), mp_context=get_context("spawn")) as pool:
        yield from zip(cases, pool.map(score, cases, paths), strict=True)


def _score_case(
    case: Case,
    path: Path | None,
    *,
    structures: Mapping[tuple[int, ...], str],
    known_values: set[int],
    nsd_tolerance_mm: float,
    missing_as_failure: bool,
) -> tuple[pd.DataFrame | None, str, str]:
    """Return the rows of one case, its problem and its warning."""
    if case.label is None:
        return None, "the datalist gives no label; add one, or leave the case out of this section.", ""
    if path is None and not missing_as_failure:
        return None, "", ""
    try:
        label, affine = read_labels(case.label)
        pred, warning = np.zeros_like(label), ""
        if path is not None:
            raw, pred_affine = read_labels(path)
            placed = on_reference_grid(raw, pred_affine, label.shape, affine)
            if placed is None:
                found, expected = describe_grid(raw.shape, pred_affine), describe_grid(label.shape, affine)
                problem = f"{path} has the grid {found}, the reference {case.label} {expected}"
                return None, f"{problem}; resample the prediction to the reference's grid, with nearest neighbor.", ""
            pred = placed
            strange = sorted(set(np.unique(pred).tolist()) - known_values - {0})
            if strange:
                shown = ", ".join(map(str, strange[:8])) + (", ..." if len(strange) > 8 else "")
                warning = f"{path.name} holds label values that the datalist does not declare ({shown})."
    except DrosegError as error:
        return None, str(error), ""
    spacing_mm = voxel_sizes(affine)
    table = case_metrics(pred, label, structures, tuple(spacing_mm), nsd_tolerance_mm)  # type: ignore[arg-type]
    table = table.assign(
        case_id=case.case_id,
        patient_id=case.patient_id,
        diagonal_mm=float(np.linalg.norm(np.asarray(label.shape) * spacing_mm)),
    )
    return table, "", warning


def describe_grid(shape: Sequence[int], affine: NDArray[np.float64]) -> str:
    """Return shape, spacing, orientation and origin in words."""
    spacing = " x ".join(f"{s:.4g}" for s in voxel_sizes(affine))
    origin = ", ".join(f"{o:.4g}" for o in affine[:3, 3])
    return f"{tuple(shape)} of {spacing} mm, {''.join(nib.aff2axcodes(affine))}, origin ({origin})"
