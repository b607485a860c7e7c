"""Many cases: a bad one does not stop the rest, what is done is not done again, and nothing is left half-written."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from droseg.data.regions import plain_values
from droseg.data.writing import OutputError, output_lock, remove_leftovers, writable_folder
from droseg.errors import InputError
from droseg.inference.dicom_seg import require_highdicom
from droseg.inference.inputs import InputCase, SkippedInput
from droseg.inference.outputs import Model, Wanted
from droseg.inference.overview import PAGE, OverviewCase, write_overview
from droseg.inference.pipeline import Pipeline
from droseg.inference.predictor import Predictor
from droseg.inference.quality import Flag
from droseg.inference.record import CaseResult, RunRecord
from droseg.inference.supervisor import Setup, Supervisor, model_of


def predict_cases(
    cases: Iterable[InputCase],
    bundle: str | Path | Predictor,
    out: str | Path,
    *,
    skipped: Iterable[SkippedInput] = (),
    device: str = "cpu",
    options: Mapping[str, Any] | None = None,
    probabilities: bool = False,
    dicom_seg: bool = False,
    overview: bool = False,
    overwrite: bool = False,
    case_timeout_s: float | None = None,
    beside: bool = True,
    on_result: Callable[[CaseResult], None] | None = None,
    on_stage: Callable[[str, str | None], None] | None = None,
    debug: bool = False,
) -> list[CaseResult]:
    """Write the files of each case, `predict.json` and `volumes.csv` as they come, and return what became of the cases.

    The files are `CASE_ID_seg.nii.gz`, `CASE_ID_seg.json` and what else is asked for. A label map that is there already
    counts as done if it is as droseg wrote it, from the same voxels by the same weights and config; if it is anything
    else the case fails, unless `overwrite`.

    Args:
        cases: with unique case_ids that can be file names.
        bundle: see `Predictor`; a `Predictor` is used as it is, whatever `device` and `options` say.
        out: folder, made if need be; one run at a time.
        skipped: what was found and is no candidate, for the record.
        device: see `Predictor`.
        options: keyword arguments of `Predictor`.
        probabilities: write `CASE_ID_prob.nii.gz`, the last axis the classes, background first, or the
            regions of a bundle whose structures overlap.
        dicom_seg: write `CASE_ID_seg.dcm` for DICOM input.
        overview: write a page with pictures of each case of the folder.
        overwrite: segment again, and replace what is there.
        case_timeout_s: work in a child process, and end it if it works longer on one case; a case that crashes it costs
            only itself.
        beside: read, prepare and write beside the network.
        on_result: called after each case, from a thread.
        on_stage: called with a case_id and what begins with it ("reading", "segmenting", "writing"), or None when that
            ends; from several threads.
        debug: print the traceback of a case that fails.

    Raises:
        OutputError: if `out` cannot be written, also if the disk fills up on the way, or if another run writes there;
            what was written is whole.
        WeightsError: if the weights are missing or damaged.
        InputError: if the options cannot be used.
    """
    given, wanted = list(cases), Wanted(probabilities, dicom_seg, overview)
    if dicom_seg:
        require_highdicom()
    chosen = dict(options or {}) | ({"probabilities": True} if probabilities else {})
    folder = writable_folder(out)
    with _only_run(folder):
        run = _Run(folder, overview, on_result)
        stage = on_stage or _ignore
        try:
            if case_timeout_s is None:
                predictor = bundle if isinstance(bundle, Predictor) else Predictor(bundle, device, **chosen)
                run.begin(model_of(predictor), str(predictor.device), chosen, skipped)
                pipeline = Pipeline(
                    predictor,
                    folder,
                    model_of(predictor),
                    wanted,
                    overwrite=overwrite,
                    beside=beside,
                    debug=debug,
                    on_result=run.add,
                    on_stage=stage,
                )
                pipeline.run(given)
            else:
                if isinstance(bundle, Predictor):
                    raise InputError("a limit of time needs the bundle, not a Predictor: a child process loads it.")
                Supervisor(
                    Setup(str(bundle), device, chosen, folder, wanted, overwrite, beside, debug),
                    case_timeout_s,
                    on_ready=lambda ready: run.begin(ready.model, ready.device, chosen, skipped),
                    on_result=run.add,
                    on_stage=stage,
                ).run(given)
        except BaseException:  # its own error matters more than one of closing
            with contextlib.suppress(OutputError):
                run.close()
            raise
        run.close()
    return run.results


class _Run:
    """The results of one run, in memory, in the record and for who watches."""

    def __init__(self, out: Path, overview: bool, on_result: Callable[[CaseResult], None] | None) -> None:
        self.results: list[CaseResult] = []
        self._out = out
        self._overview = overview
        self._model: Model | None = None
        self._on_result = on_result or _ignore
        self._record: RunRecord | None = None

    def begin(self, model: Model, device: str, options: Mapping[str, Any], skipped: Iterable[SkippedInput]) -> None:
        """Open the record, now that it is known what makes the results."""
        about = {
            "bundle": str(model.bundle),
            "fingerprint": model.fingerprint,
            "structures": plain_values(model.structures),
            "device": device,
            "options": {name: _plain(value) for name, value in options.items()},
        }
        self._model = model
        self._record = RunRecord(self._out, about)
        for item in skipped:
            self.add(CaseResult.of_skipped(item))

    def add(self, result: CaseResult) -> None:
        """Take in what became of a case."""
        self.results.append(result)
        if self._record is not None:
            self._record.add(result)
        self._on_result(result)

    def close(self) -> None:
        """Write what the record lacks, and the overview; also of a run that was interrupted."""
        if self._record is None or self._model is None:
            return
        self._record.close()
        if self._overview:
            _write_overview(self._out, self._record.entries(), self._model)


def _write_overview(out: Path, entries: Sequence[Mapping[str, Any]], model: Model) -> None:
    """Write the page with the pictures of all cases of the record."""
    cases = []
    for entry in entries:
        reason = "; ".join(text for text in (entry.get("error"), entry.get("remedy")) if text)
        flags = [Flag(**flag) for flag in entry.get("flags", ())]
        cases.append(OverviewCase(entry["case_id"], entry["status"], entry.get("volumes_ml", {}), flags, reason))
    write_overview(out / PAGE, cases, model.bundle.name, model.structures)


@contextlib.contextmanager
def _only_run(folder: Path) -> Iterator[None]:
    """Keep other runs out of the folder, and remove what killed runs, or this one, left half-written."""
    with output_lock(folder) as locked:
        if locked:
            remove_leftovers(folder)
        try:
            yield
        finally:
            if locked:
                remove_leftovers(folder)


def _plain(value: Any) -> Any:
    return value if isinstance(value, str | int | float | bool | None) else [str(item) for item in value]


def _ignore(*_: object) -> None:
    pass
