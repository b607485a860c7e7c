"""The files of one case: label map, what it means, and on request probabilities and a DICOM object."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from droseg import __version__
from droseg.data.regions import plain_values
from droseg.data.writing import StagedFiles, file_checksum
from droseg.inference.dicom_seg import dicom_sources, save_dicom_seg
from droseg.inference.inputs import RESULT_SUFFIX, InputCase
from droseg.inference.predictor import Segmentation
from droseg.inference.quality import Flag
from droseg.inference.reading import ImageError, image_checksum
from droseg.inference.record import CaseResult, source_names

SIDECAR_SUFFIX = "_seg.json"
PROBABILITIES_SUFFIX = "_prob.nii.gz"
DICOM_SUFFIX = "_seg.dcm"
LONGEST_NAME = 255
"""Bytes in a file name, on every common file system."""


@dataclass(frozen=True)
class Wanted:
    """What is written beside the label map and its JSON.

    Attributes:
        probabilities: of each class or region, `NAME_prob.nii.gz`.
        dicom_seg: a DICOM SEG object, `NAME_seg.dcm`, for DICOM input.
        overview: pictures of each case.
    """

    probabilities: bool = False
    dicom_seg: bool = False
    overview: bool = False


@dataclass(frozen=True)
class Model:
    """What makes the label maps.

    Attributes:
        bundle: its folder.
        fingerprint: SHA-256 of the weights and of the inference config, in hex.
        structures: name -> its values in the label map.
        overlapping: whether each structure has a probability of its own, and there is none of the background.
    """

    bundle: Path
    fingerprint: str
    structures: Mapping[str, tuple[int, ...]]
    overlapping: bool = False


class CaseFiles:
    """Paths of one case's files in an output folder.

    Args:
        out: the folder.
        case: what is segmented.
        model: what segments it.
        wanted: which files, beside the label map and its JSON.

    Raises:
        ImageError: if the case_id cannot be a file name, or if the image cannot be read at all.
    """

    def __init__(self, out: Path, case: InputCase, model: Model, wanted: Wanted) -> None:
        _check_name(case.case_id)
        self.case = case
        self.model = model
        self.labels = out / f"{case.case_id}{RESULT_SUFFIX}"
        self.sidecar = out / f"{case.case_id}{SIDECAR_SUFFIX}"
        self.probabilities = out / f"{case.case_id}{PROBABILITIES_SUFFIX}" if wanted.probabilities else None
        self.sources = dicom_sources(case.images) if wanted.dicom_seg else []
        self.dicom = out / f"{case.case_id}{DICOM_SUFFIX}" if self.sources else None
        self.image_sha256 = image_checksum(case.images)
        self.made_from = f"droseg image={self.image_sha256[:16]} model={model.fingerprint[:16]}"  # at most 79 bytes

    def earlier_result(self) -> CaseResult | None:
        """Return the result of an earlier run; None if there is none, or not all that is wanted now.

        Raises:
            ImageError: if there is a label map that may be replaced on request only.
        """
        if not self.labels.exists():
            return None
        earlier = _made_from(self.labels)
        if earlier != self.made_from:
            same_image = earlier is not None and earlier.split(" model=")[0] == self.made_from.split(" model=")[0]
            other = "by another model or with other options (such as --mirror)" if same_image else "from another image"
            raise ImageError(
                f"{self.labels}: exists already, and was made {other}",
                "give --overwrite to replace it, or another --out",
            )
        document = _read_json(self.sidecar)
        checksums = document.get("files", {})
        if checksums.get(self.labels.name) != file_checksum(self.labels):
            raise ImageError(
                f"{self.labels}: exists already, and is not as droseg wrote it (edited or damaged since, "
                f"or {self.sidecar.name} is gone)",
                "move it away to keep it, or give --overwrite to replace it",
            )
        beside = [path for path in (self.probabilities, self.dicom) if path is not None]
        if any(not path.is_file() or checksums.get(path.name) != file_checksum(path) for path in beside):
            return None
        flags = tuple(Flag(**flag) for flag in document.get("flags", ()))
        return replace(self._result(tuple(checksums), flags, document.get("volumes_ml", {})), reused=True)

    def write(self, segmentation: Segmentation) -> CaseResult:
        """Write all files of the case, and return the result; the label map is the last to get its name.

        Raises:
            ImageError: if the source series is not fit for a DICOM object.
            OutputError: if the folder takes no file.
        """
        labels = segmentation.to_nifti()
        labels.header["descrip"] = self.made_from.encode()
        checksums: dict[str, str] = {}
        with StagedFiles() as files, StagedFiles() as last:
            checksums[self.labels.name] = last.add(self.labels, lambda path: nib.save(labels, path))
            if self.probabilities is not None:
                image = _probability_image(segmentation, self.made_from)
                checksums[self.probabilities.name] = files.add(self.probabilities, lambda path: nib.save(image, path))
            if self.dicom is not None:
                structures = self.model.structures
                checksums[self.dicom.name] = files.add(
                    self.dicom, lambda path: save_dicom_seg(path, segmentation, structures, self.sources)
                )
            text = json.dumps(self._document(segmentation, checksums), indent=2) + "\n"
            files.add(self.sidecar, lambda path: path.write_text(text, encoding="utf-8"))
            files.commit()
            last.commit()
        return self._result(tuple(checksums), segmentation.flags, segmentation.volumes_ml)

    def _document(self, segmentation: Segmentation, checksums: Mapping[str, str]) -> dict[str, Any]:
        """Return what stands in the JSON: nothing but the case_id names the patient, and no time of day."""
        document: dict[str, Any] = {
            "case_id": self.case.case_id,
            "structures": plain_values(self.model.structures),
            "volumes_ml": dict(segmentation.volumes_ml),
            "flags": [asdict(flag) for flag in segmentation.flags],
            "bundle": self.model.bundle.name,
            "fingerprint": self.model.fingerprint,
            "image_sha256": self.image_sha256,
            "droseg": __version__,
            "files": dict(checksums),
        }
        if self.probabilities is not None:
            names = list(self.model.structures)
            document["probabilities"] = names if self.model.overlapping else ["background", *names]
        return document

    def _result(self, files: Sequence[str], flags: tuple[Flag, ...], volumes_ml: Mapping[str, float]) -> CaseResult:
        return CaseResult(
            self.case.case_id,
            source_names(self.case.images),
            "ok",
            0.0,
            output=str(self.labels),
            files=(*files, self.sidecar.name),
            flags=flags,
            volumes_ml=dict(volumes_ml),
            image_sha256=self.image_sha256,
        )


def _check_name(case_id: str) -> None:
    longest = len(f"{case_id}{PROBABILITIES_SUFFIX}".encode("utf-8", "surrogateescape"))
    if case_id.startswith(".") or not case_id or "/" in case_id or not case_id.isprintable():
        raise ImageError(f"case_id {case_id!r} cannot be a file name", "rename the case")
    if longest > LONGEST_NAME:
        raise ImageError(
            f"case_id {case_id[:40]}...: its results' names have {longest} bytes, {LONGEST_NAME} are possible",
            "rename the case",
        )


def _made_from(path: Path) -> str | None:
    """Return what a label map's header says it was made from; None if it cannot be read."""
    try:
        header: Any = nib.load(path).header
        return bytes(header["descrip"].item()).decode("ascii", "replace")
    except Exception:  # not ours, or damaged: in both cases nothing to reuse
        return None


def _read_json(path: Path) -> dict[str, Any]:
    """Return what a case's JSON holds; empty if there is none, or none that droseg wrote."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        whole = isinstance(document["files"], dict) and isinstance(document["volumes_ml"], dict)
        return document if whole and all(Flag(**flag) for flag in document["flags"]) else {}
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return {}


def _probability_image(segmentation: Segmentation, made_from: str) -> nib.Nifti1Image:
    """Return (H, W, D, K) in steps of 1/255: a quarter of float32's size, and NIfTI has no smaller float."""
    probabilities = segmentation.probabilities
    if probabilities is None:
        raise ValueError("the Predictor was not made with probabilities=True")
    steps = np.empty((*segmentation.labels.shape, len(probabilities)), np.uint8)
    for index, values in enumerate(probabilities):  # class by class: float copies of all would be large
        steps[..., index] = np.rint(np.clip(values, 0, 1).astype(np.float32) * 255)
    image = nib.Nifti1Image(steps, segmentation.affine)
    image.header.set_slope_inter(1 / 255, 0)
    image.header["descrip"] = made_from.encode()
    image.set_sform(segmentation.affine, code=2)
    image.set_qform(segmentation.affine, code=2)
    image.header.set_xyzt_units("mm")
    return image
