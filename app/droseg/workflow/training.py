"""From a bundle's training config to a run: called by the config itself, so that `monai.bundle run` does it all."""

from __future__ import annotations

import contextlib
import hashlib
import inspect
import json
import logging
import shutil
import sys
import time
import warnings
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from monai.bundle import ConfigWorkflow
from monai.utils import set_determinism

from droseg import __version__, keys
from droseg.data import Datalist, read_datalist
from droseg.data.statistics import training_statistics
from droseg.engine.run_folder import RunFolder, replace_text
from droseg.engine.trainer import DROTrainer
from droseg.errors import DrosegError
from droseg.handlers import RunCheckpoint, is_writer, tensorboard_line
from droseg.inference.weights import load_weights
from droseg.workflow.config import check_keys, config_files, known_configs, without_metadata
from droseg.workflow.preflight import check_cases, check_output_folder, check_structures
from droseg.workflow.run_config import TRAIN, changed_settings, write_run_configs

logger = logging.getLogger(__name__)

RUNNING, FINISHED, FAILED, INTERRUPTED = "running", "finished", "failed", "interrupted"


def start_training() -> None:
    """Check everything and write the run folder; a config's `initialize` calls it first.

    Ends the process with a message and the exit code 0 if the run is already finished, and with another code if it
    cannot start.
    """
    workflow = _calling_workflow()
    # MONAI says for every reader that is not installed that it is not; NIfTI needs none of them.
    warnings.filterwarnings("ignore", message="NvImgCodecPydicomReader")
    logging.getLogger("monai.data.nvimgcodec_pydicom_plugin").setLevel(logging.ERROR)
    try:
        _start(workflow)
        # All components now, so that a setting out of its range is said before the training and without a traceback.
        workflow.parser.get_parsed_content("train#trainer")
    except Exception as error:
        for_user = _for_user(error)
        if for_user is None:
            raise
        # No Exception, or MONAI would wrap it in "Failed to evaluate ConfigExpression" and hide the message.
        print(f"droseg: error: {for_user}", file=sys.stderr)
        raise SystemExit(for_user.exit_code) from error


def _for_user(error: BaseException | None) -> DrosegError | None:
    """Return the error written for the user among an error and its causes; MONAI wraps what a component raises."""
    while error is not None and not isinstance(error, DrosegError):
        error = error.__cause__
    return error


def _calling_workflow() -> ConfigWorkflow:
    """Return the MONAI workflow whose config is being evaluated: an expression gets no handle on its parser."""
    frame = inspect.currentframe()
    while frame is not None:
        candidate = frame.f_locals.get("self")
        if isinstance(candidate, ConfigWorkflow):
            return candidate
        frame = frame.f_back
    raise RuntimeError("start_training() runs as the `initialize` of a bundle config, inside monai.bundle run.")


def _start(workflow: ConfigWorkflow) -> None:
    parser, configs = workflow.parser, Path(workflow.config_root_path).resolve()
    set_determinism(seed=int(parser.get_parsed_content("seed")))
    if not (Path(str(parser.get("bundle_root"))) / "configs").is_dir():
        parser["bundle_root"] = str(configs.parent)  # started from another folder than the bundle's
    config = without_metadata(parser.get())
    check_keys(config, known_configs(config_files(configs)))
    run = RunFolder(Path(parser.get_parsed_content("output_dir")).resolve())
    parameters = sum(p.numel() for p in parser.get_parsed_content("network_def").parameters())
    check_output_folder(run.path, needed_bytes=6 * 4 * parameters + 50_000_000)

    datalist_path, data_root = (parser.get_parsed_content(key) for key in ("datalist", "data_root"))
    datalist = read_datalist(datalist_path, data_root)
    datalist.section(keys.TRAINING)
    structures, channels = (parser.get_parsed_content(key) for key in ("structures", "channels"))
    check_structures(datalist, structures, channels)
    resolved = {
        "datalist": str(datalist.path),
        "data_root": None if data_root is None else str(Path(data_root).resolve()),
        "dataset_dir": str(Path(parser.get_parsed_content("dataset_dir")).resolve()),
    }
    if not is_writer():
        return
    if parser.get_parsed_content("restart"):
        _clear(run)
    continues = _continues(run, config, resolved, datalist, int(parser.get_parsed_content("epochs")))
    notes = check_cases(datalist) if parser.get_parsed_content("check_data") else []
    write_run_configs(run, configs.parent, config, resolved)
    if not continues and parser.get_parsed_content("check_data"):
        statistics = training_statistics(datalist.section(keys.TRAINING), structures)
        replace_text(run.statistics_file, json.dumps(statistics, indent=2) + "\n")
    run.write_status(
        status=RUNNING,
        droseg=__version__,
        bundle=configs.parent.name,
        objective=parser.get_parsed_content("objective"),
        seed=parser.get_parsed_content("seed"),
        datalist=str(datalist.path),
        datalist_sha256=_digest(datalist.path),
        structures={name: int(value) for name, value in structures.items()},
        started=run.status().get("started", time.strftime("%Y-%m-%dT%H:%M:%S%z")),
        error=None,
        remedy=None,
    )
    _announce(run, datalist, parameters, notes, continues)


def _continues(
    run: RunFolder, config: Mapping[str, Any], resolved: Mapping[str, Any], datalist: Datalist, epochs: int
) -> bool:
    """Whether the folder holds the same run, unfinished; ends the process if it is finished."""
    status = run.status()
    if not status or not (run.configs / TRAIN).is_file():
        return False
    changed = changed_settings(run, config, resolved)
    if status.get("datalist_sha256") not in (None, _digest(datalist.path)):
        changed.append(f"datalist: the content of {datalist.path} has changed since")
    if changed:
        listed = "\n".join(f"  {line}" for line in changed)
        raise DrosegError(
            f"{run.path} holds a run with other settings:\n{listed}\n"
            "Give the same settings to continue it, another --out, or --restart to start over."
        )
    if status.get("status") == FINISHED and status.get("epoch", 0) >= epochs:
        print(f"{run.path}: this run is finished ({status['epoch']} epochs); nothing to do. --restart starts over.")
        raise SystemExit(0)
    return run.checkpoint.is_file()


def _clear(run: RunFolder) -> None:
    """Remove what a former run wrote, and nothing else that may lie in the folder."""
    if not run.status():
        return
    for folder in (run.models, run.tensorboard):
        shutil.rmtree(folder, ignore_errors=True)
    run.status_file.unlink(missing_ok=True)


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _announce(run: RunFolder, datalist: Datalist, parameters: int, notes: list[str], continues: bool) -> None:
    for section in (keys.TRAINING, keys.VALIDATION):
        cases = datalist.sections.get(section, ())
        print(f"{section}: {len(cases)} cases" + ("" if cases else "; nothing is validated"))
        for axis in datalist.axes if cases else ():
            counts = Counter(case.groups.get(axis, "(none)") for case in cases)
            print(f"  {axis}: " + ", ".join(f"{group} {count}" for group, count in sorted(counts.items())))
    for note in notes:
        print(f"warning: {note}")
    print(f"network: {parameters / 1e6:.2f} million parameters")
    print(f"{'continues in' if continues else 'run folder:'} {run.path}")
    print(f"watch it: {tensorboard_line(run.path)}", flush=True)


def prepare_network(network: Any, init_from: str | Path | None) -> Any:
    """Return the network, with the weights of another run or file in it if `init_from` is given.

    Raises:
        WeightsError: if they cannot be read or are of another network.
    """
    if init_from is not None:
        path = Path(init_from)
        load_weights(network, path / "models/model.pt" if path.is_dir() else path)
    return network


def run_training(trainer: DROTrainer, checkpoint: RunCheckpoint) -> None:
    """Run or continue a training and keep `run.json` true whatever happens; a config's `run` calls it."""
    run = checkpoint.run
    checkpoint.attach(trainer)  # after the handlers of the config: it saves what they have measured
    try:
        epoch = checkpoint.restore(trainer)
        if is_writer():
            print(f"checkpoint rule: {checkpoint.rule()}")
            if epoch:
                print(f"continues after epoch {epoch} of {trainer.state.max_epochs} (step {trainer.state.iteration})")
        trainer.run()
    except BaseException as error:
        if is_writer():
            stopped = isinstance(error, (KeyboardInterrupt, SystemExit))
            remedy = "run the same command again to continue." if stopped else remedy_for(error)
            with contextlib.suppress(OSError):  # the disk may be what failed; the error itself matters more
                run.write_status(status=INTERRUPTED if stopped else FAILED, error=_describe(error), remedy=remedy)
        if isinstance(error, DrosegError) or (isinstance(error, Exception) and _is_memory(error)):
            print(f"droseg: error: {_describe(error)}\n{remedy_for(error)}", file=sys.stderr)
            raise SystemExit(getattr(error, "exit_code", 1)) from error
        raise
    if is_writer():
        best = None if checkpoint.select == "last" else round(checkpoint.best_value, 5)
        run.write_status(
            status=FINISHED, time_left_s=0, selected_by=checkpoint.select, best=best, best_epoch=checkpoint.best_epoch
        )
        print(f"finished: {run.best_model} (epoch {checkpoint.best_epoch}, {checkpoint.rule()})", flush=True)


def _describe(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}".strip().splitlines()[0][:500]


def _is_memory(error: BaseException) -> bool:
    return isinstance(error, MemoryError) or "out of memory" in str(error).lower()


def remedy_for(error: BaseException) -> str:
    """Return what a person can do about an error that ended a training."""
    if _is_memory(error):
        return "Not enough memory: lower batch_size or roi_size, then run the same command with --restart."
    if isinstance(error, OSError):
        return "A file could not be read or written (disk full?); when it can, the same command continues the run."
    return "The same command continues from the last checkpoint; if it fails again, the message above says where."
