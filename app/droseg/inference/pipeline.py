"""Cases through one predictor: the next is read and prepared, and the last one written, beside the network."""

from __future__ import annotations

import threading
import time
import traceback
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from monai.data import MetaTensor

from droseg.data.channels import present_channels
from droseg.data.writing import OutputError
from droseg.errors import BundleError
from droseg.inference.case_pictures import case_pictures, save_pictures
from droseg.inference.inputs import InputCase
from droseg.inference.memory import free_bytes, is_out_of_memory
from droseg.inference.outputs import CaseFiles, Model, Wanted
from droseg.inference.predictor import Predictor, Prepared, Segmentation
from droseg.inference.quality import OutOfDomainError
from droseg.inference.reading import ImageError
from droseg.inference.record import CaseResult, Status, source_names

THREAD_PREFIX = "droseg-"
GRACE_S = 5.0
"""How long an interrupted run waits for what it is just reading or writing; `docker stop` kills after 10 s."""
READING, SEGMENTING, WRITING = "reading", "segmenting", "writing"
ROOM = 24
"""Times the size of an image (float32) that must be free for a second case beside it: about what segmenting takes."""

T = TypeVar("T")


@dataclass
class _Job:
    """One case on its way; `error` ends it."""

    case: InputCase
    seconds: float = 0.0
    files: CaseFiles | None = None
    prepared: Prepared | None = None
    image: MetaTensor | None = None
    segmentation: Segmentation | None = None
    result: CaseResult | None = None
    error: Exception | None = None

    @property
    def short_of_memory(self) -> bool:
        """Whether it failed because there was too little memory."""
        return self.error is not None and is_out_of_memory(self.error)


class Pipeline:
    """Read, prepare, segment and write case after case.

    At most one prepared case waits for the network and one segmentation for the disk; none if memory is short.

    Args:
        predictor: used by one case at a time.
        out: folder that exists.
        model: what the predictor is.
        wanted: which files are written.
        overwrite: replace what is there.
        beside: read and write beside the network; else one after the other.
        debug: print the traceback of a case that fails.
        on_result: called with the result of each case in order, from the thread that wrote it.
        on_stage: called with a case_id and what begins with it (`reading`, `segmenting`, `writing`), or None when
            that ends; from several threads.
    """

    def __init__(
        self,
        predictor: Predictor,
        out: Path,
        model: Model,
        wanted: Wanted,
        *,
        overwrite: bool,
        beside: bool,
        debug: bool,
        on_result: Callable[[CaseResult], None],
        on_stage: Callable[[str, str | None], None],
    ) -> None:
        self._predictor = predictor
        self._out = out
        self._model = model
        self._wanted = wanted
        self._overwrite = overwrite
        self._beside = beside
        self._debug = debug
        self._on_result = on_result
        self._on_stage = on_stage
        self._written: dict[str, Path] = {}
        self._running: list[Future[Any]] = []

    def run(self, cases: Sequence[InputCase]) -> None:
        """Process the cases in order.

        Raises:
            BundleError: if the bundle's own code cannot work; it would fail with every case.
            OutputError: if the folder takes no file.
        """
        try:
            self._run(cases)
        except BaseException:  # also an interruption: what is being written becomes whole, if it takes no time
            self._wait(GRACE_S)
            raise

    def _run(self, cases: Sequence[InputCase]) -> None:
        ahead: Future[_Job] | None = None
        writing: Future[None] | None = None
        for index, case in enumerate(cases):
            job = self._read(_Job(case)) if ahead is None else ahead.result()
            if ahead is not None and job.short_of_memory:  # it had to share; now it has not
                writing = _ended(writing)
                job = self._read(_Job(case))
            roomy = self._beside and _has_room(job)
            following = cases[index + 1 : index + 2]
            ahead = self._start(self._read, _Job(following[0])) if roomy and following else None
            self._segment(job)
            if job.short_of_memory and (ahead or writing):
                _ = ahead and ahead.result()
                writing = _ended(writing)
                job.error = None
                self._segment(job)
            writing = _ended(writing)
            writing = self._start(self._write, job)
            if not roomy:
                writing = _ended(writing)
        _ended(writing)

    def _wait(self, seconds: float) -> None:
        """Wait for what runs beside the network, but not longer than some seconds."""
        deadline = time.monotonic() + seconds
        while any(not future.done() for future in self._running) and time.monotonic() < deadline:
            time.sleep(0.02)

    def _start(self, work: Callable[[_Job], T], job: _Job) -> Future[T]:
        """Run in a thread of its own, a daemon: unlike an executor's, a hanging one lets the process end."""
        future: Future[T] = Future()

        def run() -> None:
            try:
                future.set_result(work(job))
            except BaseException as error:  # raised where the result is asked for
                future.set_exception(error)

        self._running = [other for other in self._running if not other.done()] + [future]
        threading.Thread(target=run, name=f"{THREAD_PREFIX}{job.case.case_id}", daemon=True).start()
        return future

    def _read(self, job: _Job) -> _Job:
        return self._attempt(job, READING, self._read_and_prepare)

    def _segment(self, job: _Job) -> None:
        if job.prepared is not None:
            self._attempt(job, SEGMENTING, self._run_network)

    def _write(self, job: _Job) -> None:
        if job.segmentation is not None:
            self._attempt(job, WRITING, self._write_files)
        result = job.result if job.error is None else _failure(job, job.error)
        if result is not None:
            self._on_result(replace(result, seconds=round(job.seconds, 3)))

    def _attempt(self, job: _Job, stage: str, work: Callable[[_Job], None]) -> _Job:
        self._on_stage(job.case.case_id, stage)
        started = time.monotonic()
        try:
            work(job)
        except (BundleError, OutputError):  # every other case would fail in the same way
            raise
        except Exception as error:  # one bad case must not stop the rest, whatever is bad about it
            if self._debug:
                traceback.print_exc()
            job.error = error.with_traceback(None)  # its frames hold the arrays
        finally:
            job.seconds += time.monotonic() - started
            self._on_stage(job.case.case_id, None)
        return job

    def _read_and_prepare(self, job: _Job) -> None:
        job.files = CaseFiles(self._out, job.case, self._model, self._wanted)
        job.result = None if self._overwrite else job.files.earlier_result()
        if job.result is None:
            job.prepared = self._predictor.prepare(self._predictor.read(list(job.case.images)))

    def _run_network(self, job: _Job) -> None:
        if job.prepared is None:
            return
        job.segmentation = self._predictor.segment(job.prepared)
        job.image = job.prepared.image if self._wanted.overview else None
        job.prepared = None  # the memory is needed for the next

    def _write_files(self, job: _Job) -> None:
        if job.files is None or job.segmentation is None:
            return
        self._refuse_same_file(job.files.labels)
        if job.image is not None:  # first: a label map that is there says that all of the case is
            found, first = job.segmentation, present_channels(job.image).index(True)
            pictures = case_pictures(job.image.numpy()[first], found.labels, found.affine, self._model.structures)
            save_pictures(self._out, job.case.case_id, pictures)
        job.result = job.files.write(job.segmentation)

    def _refuse_same_file(self, path: Path) -> None:
        """Refuse a name that a disk which ignores case takes for that of another case of this run."""
        other = self._written.setdefault(path.name.casefold(), path)
        if other != path and path.exists() and path.samefile(other):
            raise ImageError(f"{path}: this disk takes it for {other.name}", "rename one of the two cases")


def _ended(future: Future[None] | None) -> Future[None] | None:
    """Wait for what runs, raise what it raised, and return that nothing runs."""
    if future is not None:
        future.result()
    return None


def _has_room(job: _Job) -> bool:
    if job.prepared is None:
        return True
    image = job.prepared.image
    return free_bytes(torch.device("cpu")) > ROOM * image.numel() * image.element_size()


def _failure(job: _Job, error: Exception) -> CaseResult:
    found, remedy = explain(error)
    status: Status = "out_of_domain" if isinstance(error, OutOfDomainError) else "failed"
    checksum = job.files.image_sha256 if job.files is not None else None
    images = source_names(job.case.images)
    return CaseResult(job.case.case_id, images, status, 0.0, image_sha256=checksum, error=found, remedy=remedy)


def explain(error: Exception) -> tuple[str, str]:
    """Return what went wrong with a case, and what to do about it."""
    if isinstance(error, ImageError):
        return error.found, error.remedy
    if is_out_of_memory(error):
        return "out of memory", "close other programs, or use --device cpu on a machine with more memory"
    if isinstance(error, OSError) and error.filename:
        return f"{error.filename}: {(error.strerror or '').lower()}", "correct the path, or the permissions"
    text = " ".join(str(error).split())[:300]
    return f"{type(error).__name__}: {text}", "run again with --debug to see where, and report it"
