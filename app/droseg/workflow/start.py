"""What a training does before it starts, called by the config itself, so that `monai.bundle run` does it too."""

from __future__ import annotations

import hashlib
import inspect
import json
import logging
import re
import shutil
import sys
import time
import warnings
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from monai.bundle import ConfigParser, ConfigWorkflow
from monai.utils import set_determinism

from droseg import __version__, keys
from droseg.data import Datalist, read_datalist
from droseg.data.statistics import training_statistics
from droseg.engine.run_folder import FAILED, FINISHED, RUNNING, RunFolder, replace_text
from droseg.errors import DrosegError, InputError
from droseg.handlers import agree, is_writer, tensorboard_line
from droseg.workflow.config import check_keys, config_files, known_configs, without_metadata
from droseg.workflow.preflight import check_axes, check_cases, check_output_folder, check_structures
from droseg.workflow.run_config import TRAIN, changed_settings, write_run_configs

logger = logging.getLogger(__name__)


def start_training() -> None:
    """Check everything and write the run folder; a config's `initialize` calls it first.

    Ends the process with a message and the exit code 0 if the run is already finished, and with another code if it
    cannot start; under torch.distributed all processes together, as rank 0 finds.
    """
    workflow = _calling_workflow()
    # MONAI says for every reader that is not installed that it is not; NIfTI needs none of them.
    warnings.filterwarnings("ignore", message="NvImgCodecPydicomReader")
    logging.getLogger("monai.data.nvimgcodec_pydicom_plugin").setLevel(logging.ERROR)
    exit_code: int | None = None
    try:
        exit_code = _start(workflow)
    except DrosegError as error:
        exit_code = _say(error)
    # SystemExit is no Exception, which MONAI would wrap in "Failed to evaluate ConfigExpression".
    if (exit_code := agree(exit_code)) is not None:
        raise SystemExit(exit_code)
    try:
        # All components now, so that a setting out of its range is said before the training and without a traceback.
        workflow.parser.get_parsed_content("train#trainer")
    except Exception as error:
        if logger.isEnabledFor(logging.DEBUG):
            raise
        for_user = _for_user(error)
        if is_writer():
            RunFolder(workflow.parser.get_parsed_content("output_dir")).write_status(status=FAILED, error=str(for_user))
        raise SystemExit(_say(for_user)) from error


def _say(error: DrosegError) -> int:
    if is_writer():
        print(f"droseg: error: {error}", file=sys.stderr)
    return error.exit_code


def _for_user(error: BaseException) -> DrosegError:
    """Return the error written for the user among an error and its causes; MONAI wraps what a component raises."""
    component, cause = "", error
    while not isinstance(cause, DrosegError) and cause.__cause__ is not None:
        component = component or next(iter(re.findall(r"Failed to (?:instantiate|evaluate).*", str(cause))), "")
        cause = cause.__cause__
    if isinstance(cause, DrosegError):
        return cause
    return InputError(
        f"the config cannot be built: {type(cause).__name__}: {str(cause).strip().splitlines()[0] if str(cause) else ''}"
        f"\n  in: {component[:200]}\nLook at the values you have set; `droseg --debug train ...` shows the traceback."
    )


def _calling_workflow() -> ConfigWorkflow:
    """Return the MONAI workflow whose config is being evaluated: an expression gets no handle on its parser."""
    frame = inspect.currentframe()
    while frame is not None:
        candidate = frame.f_locals.get("self")
        if isinstance(candidate, ConfigWorkflow):
            return candidate
        frame = frame.f_back
    raise RuntimeError("start_training() runs as the `initialize` of a bundle config, inside monai.bundle run.")


def _start(workflow: ConfigWorkflow) -> int | None:
    """Return the exit code of a run that has nothing left to do, or None to go on."""
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
    check_axes(datalist, parser.get_parsed_content("group_axes"))
    resolved = {
        "datalist": str(datalist.path),
        "data_root": None if data_root is None else str(Path(data_root).resolve()),
        "dataset_dir": str(Path(parser.get_parsed_content("dataset_dir")).resolve()),
    }
    if not is_writer():
        return None
    restart, check_data = (parser.get_parsed_content(key) for key in ("restart", "check_data"))
    continues = not restart and _continues(run, config, resolved, datalist)
    if continues and run.status().get("status") == FINISHED and run.status()["epoch"] >= _epochs(parser):
        print(
            f"{run.path}: this run is finished ({run.status()['epoch']} epochs); nothing to do. --restart starts over."
        )
        return 0
    notes = check_cases(datalist) if check_data else []
    if not continues:
        _clear(run)
    write_run_configs(run, configs.parent, config, resolved)
    if not continues and check_data:
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
    return None


def _epochs(parser: ConfigParser) -> int:
    return int(parser.get_parsed_content("epochs"))


def _continues(run: RunFolder, config: Mapping[str, Any], resolved: Mapping[str, Any], datalist: Datalist) -> bool:
    """Whether the folder holds the same run with a checkpoint; without one there is nothing to lose.

    Raises:
        DrosegError: if it holds a run with other settings; the message shows the difference.
    """
    status = run.status()
    if not status or not run.checkpoint.is_file() or not (run.configs / TRAIN).is_file():
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
    return True


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
