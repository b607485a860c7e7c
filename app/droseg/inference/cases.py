"""Many cases, one after the other: a bad one does not stop the rest, and what is done is not done again."""

from __future__ import annotations

import json
import time
import traceback
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import nibabel as nib
import torch

from droseg import __version__
from droseg.errors import BundleError
from droseg.inference.inputs import RESULT_SUFFIX, InputCase
from droseg.inference.predictor import Predictor
from droseg.inference.quality import Flag
from droseg.inference.reading import ImageError, image_checksum
from droseg.inference.writing import OutputError, writable_folder, write_image, write_text

RECORD = "predict.json"


@dataclass(frozen=True)
class CaseResult:
    """What became of one case.

    Attributes:
        output: path of the label map; None if the case failed.
        reused: the label map was there before, made from the same image by the same bundle.
        error: what went wrong; None if nothing did.
        remedy: what to do about it.
    """

    case_id: str
    images: tuple[str, ...]
    status: Literal["ok", "failed"]
    seconds: float
    output: str | None = None
    reused: bool = False
    flags: tuple[Flag, ...] = ()
    error: str | None = None
    remedy: str | None = None


def predict_cases(
    cases: Iterable[InputCase],
    bundle: str | Path | Predictor,
    out: str | Path,
    *,
    device: str = "cpu",
    overwrite: bool = False,
    on_result: Callable[[CaseResult], None] | None = None,
    debug: bool = False,
) -> list[CaseResult]:
    """Write `CASE_ID_seg.nii.gz` for each case, and `predict.json` after each, and return what became of them.

    A label map that is there already counts as done if its header says that it was made from the same voxels by the
    same weights and config; if it says anything else the case fails, unless `overwrite`.

    Args:
        cases: with unique case_ids that can be file names.
        bundle: see `Predictor`; a `Predictor` is used as it is, whatever `device` says.
        out: folder, made if need be.
        device: see `Predictor`.
        overwrite: segment again, and replace what is there.
        on_result: called after each case.
        debug: print the traceback of a case that fails.

    Raises:
        OutputError: if `out` cannot be written, also if the disk fills up on the way; what was written is whole.
        WeightsError: if the weights are missing or damaged.
    """
    out = writable_folder(out)
    predictor = bundle if isinstance(bundle, Predictor) else Predictor(bundle, device)
    record = _Record(out / RECORD, predictor)
    results = []
    for case in cases:
        result = _predict_case(case, predictor, out, overwrite, debug)
        record.add(result)
        results.append(result)
        if on_result is not None:
            on_result(result)
    return results


def _predict_case(case: InputCase, predictor: Predictor, out: Path, overwrite: bool, debug: bool) -> CaseResult:
    started = time.monotonic()
    images = tuple(str(path) for path in case.images)
    result = CaseResult(case.case_id, images, "failed", 0.0)
    try:
        path = _result_path(out, case.case_id)
        reused, flags = _write_labels(case, predictor, path, overwrite)
        result = replace(result, status="ok", output=str(path), reused=reused, flags=tuple(flags))
    except (BundleError, OutputError):  # every other case would fail in the same way
        raise
    except Exception as error:  # one bad case must not stop the rest, whatever is bad about it
        if debug:
            traceback.print_exc()
        found, remedy = _explain(error)
        result = replace(result, error=found, remedy=remedy)
    return replace(result, seconds=round(time.monotonic() - started, 3))


def _write_labels(case: InputCase, predictor: Predictor, path: Path, overwrite: bool) -> tuple[bool, list[Flag]]:
    """Return whether the label map was there already, and the flags of a new one."""
    made_from = f"droseg image={image_checksum(case.images)[:16]} model={predictor.fingerprint[:16]}"
    if path.exists() and not overwrite:
        if _made_from(path) == made_from:
            return True, []
        raise ImageError(
            f"{path}: exists already, and was made from another image or by another model",
            "give --overwrite to replace it, or another --out",
        )
    segmentation, flags = predictor(list(case.images))
    segmentation.header["descrip"] = made_from.encode()  # at most 79 bytes
    write_image(segmentation, path)
    return False, flags


def _result_path(out: Path, case_id: str) -> Path:
    path = out / f"{case_id}{RESULT_SUFFIX}"
    if path.parent != out or case_id.startswith("."):
        raise ImageError(f"case_id {case_id!r} cannot be a file name", "rename the case")
    return path


def _made_from(path: Path) -> str | None:
    """Return what a label map's header says it was made from; None if it cannot be read."""
    try:
        header: Any = nib.load(path).header
        return bytes(header["descrip"].item()).decode("ascii", "replace")
    except Exception:  # not ours, or damaged: in both cases nothing to reuse
        return None


def _explain(error: Exception) -> tuple[str, str]:
    """Return what went wrong, and what to do about it."""
    if isinstance(error, ImageError):
        return error.found, error.remedy
    if isinstance(error, OSError) and error.filename:
        return f"{error.filename}: {(error.strerror or '').lower()}", "correct the path, or the permissions"
    if isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(error):
        return "out of memory", "close other programs, or use --device cpu on a machine with more memory"
    text = " ".join(str(error).split())[:300]
    return f"{type(error).__name__}: {text}", "run again with --debug to see where, and report it"


class _Record:
    """`predict.json`: what became of each case, rewritten after each; cases of earlier runs stay."""

    def __init__(self, path: Path, predictor: Predictor) -> None:
        self._path = path
        self._bundle = {
            "bundle": str(predictor.folder),
            "fingerprint": predictor.fingerprint,
            "structures": predictor.structures,
        }
        self._cases = self._earlier()

    def add(self, result: CaseResult) -> None:
        entry: dict[str, Any] = asdict(result) | {"output": result.output and Path(result.output).name}
        earlier = self._cases.get(result.case_id)
        if result.reused and earlier is not None and earlier.get("status") == "ok":
            entry |= {"flags": earlier.get("flags", []), "seconds": earlier.get("seconds", result.seconds)}
        self._cases[result.case_id] = entry
        document = {"droseg": __version__, **self._bundle, "cases": list(self._cases.values())}
        write_text(json.dumps(document, indent=2) + "\n", self._path)

    def _earlier(self) -> dict[str, dict[str, Any]]:
        try:
            document = json.loads(self._path.read_text(encoding="utf-8"))
            return {str(entry["case_id"]): entry for entry in document["cases"]}
        except (OSError, ValueError, KeyError, TypeError):
            return {}
