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
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from monai.bundle import ConfigParser, ConfigWorkflow
from monai.utils import set_determinism

from droseg import __version__, keys
from droseg.data import Datalist
from droseg.data.channels import checked_choice
from droseg.data.datalist import parse_datalist
from droseg.data.regions import label_values, plain_values
from droseg.data.statistics import training_statistics
from droseg.engine.rank_watch import leave
from droseg.engine.roles import LostRankError, agree, is_writer, leave_ranks, rank, world_size
from droseg.engine.run_folder import FINISHED, INTERRUPTED, RUNNING, RunFolder, replace_text, unlock_all
from droseg.engine.stop import CONTINUE
from droseg.errors import DrosegError, InputError
from droseg.handlers import tensorboard_line
from droseg.inference.shared_choices import KEY, with_shared
from droseg.objectives import check_used
from droseg.report.card import empty_card
from droseg.workflow.config import check_keys, config_files, known_configs, load_config, without_metadata
from droseg.workflow.lost import remove_notes
from droseg.workflow.preflight import (
    check_axes,
    check_cases,
    check_channels,
    check_output_folder,
    check_roi_size,
    check_shares,
    check_structures,
)
from droseg.workflow.region_check import check_regions, trains_regions
from droseg.workflow.run_config import INFERENCE, TRAIN, changed_settings, write_run_configs

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
    # SystemExit is no Exception, which MONAI would wrap in "Failed to evaluate ConfigExpression".
    try:
        plan = _agreed_plan(workflow)
        try:
            # All components now: a setting out of its range is said before anything is replaced.
            for component in ("train#trainer", "run_checkpoint"):
                _made(workflow.parser, component)
        except DrosegError as error:
            raise SystemExit(_say(error)) from error
        if is_writer():
            print(f"objective: {workflow.parser.get_parsed_content('train#objective').describe()}", flush=True)
            _write(plan)
        agree(None)  # no rank looks for a checkpoint before rank 0 has cleared the folder
    except LostRankError as error:
        _say(error)
        leave(error.exit_code)
    except BaseException:
        unlock_all()
        leave_ranks()
        raise


def _agreed_plan(workflow: ConfigWorkflow) -> _Plan:
    """Return the plan; or end the process as rank 0 does, or because this rank alone cannot start."""
    plan: _Plan | int
    problem: DrosegError | None = None
    try:
        plan = _plan(workflow)
    except DrosegError as error:
        plan, problem = error.exit_code, error
        if is_writer():
            _say(error)
    exit_code = agree(plan if isinstance(plan, int) else None)
    if exit_code is not None:
        raise SystemExit(exit_code)
    if isinstance(plan, int):  # only this rank cannot start: its own message and code, never 0
        raise SystemExit(plan if problem is None else _say(problem))
    return plan


@dataclass(frozen=True)
class _Plan:
    """What a training is about to do; nothing is written yet."""

    run: RunFolder
    bundle: Path
    config: dict[str, Any]
    resolved: dict[str, Any]
    datalist: Datalist
    structures: dict[str, tuple[int, ...]]
    continues: bool
    objective: str
    seed: int
    with_statistics: bool


def _say(error: DrosegError) -> int:
    if not is_writer():
        # What stops all ranks is said by rank 0, whose end lets torchrun end the others before they repeat it.
        time.sleep(2.0)
    who = "" if is_writer() else f"rank {rank()}: "
    print(f"droseg: error: {who}{error}", file=sys.stderr, flush=True)
    return error.exit_code


def _for_user(error: BaseException) -> DrosegError:
    """Return the error written for the user among an error and its causes; MONAI wraps what a component raises."""
    component, cause = "", error
    while not isinstance(cause, DrosegError) and cause.__cause__ is not None:
        component = component or next(iter(re.findall(r"Failed to (?:instantiate|evaluate).*", str(cause))), "")
        cause = cause.__cause__
    if isinstance(cause, DrosegError):
        return cause
    reason = next(iter(str(cause).strip().splitlines()), "")
    return InputError(
        f"the config cannot be built: {type(cause).__name__}: {reason}"
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


def _made(parser: ConfigParser, key: str) -> Any:
    """Return a component, built.

    Raises:
        DrosegError: with what the component says itself: 4 levels and 2 strides, for example.
    """
    try:
        return parser.get_parsed_content(key)
    except Exception as error:  # whatever it raises
        if logger.isEnabledFor(logging.DEBUG):
            raise
        raise _for_user(error) from error


def _plan(workflow: ConfigWorkflow) -> _Plan | int:
    """Check everything; return what to do, or 0 if the run is finished."""
    parser, configs = workflow.parser, Path(workflow.config_root_path).resolve()
    if KEY in parser:
        parser[""] = with_shared(parser.get(), configs)
    value = parser.get_parsed_content
    set_determinism(seed=int(value("seed")))
    if not (Path(str(parser.get("bundle_root"))) / "configs").is_dir():
        parser["bundle_root"] = str(configs.parent)  # started from another folder than the bundle's
    config = without_metadata(parser.get())
    check_keys(config, known_configs(config_files(configs)))
    check_used(str(value("objective")), _changed(config, configs / TRAIN))
    network = _made(parser, "network_def")
    check_roi_size(value("roi_size"), config["network_def"].get("strides"))
    run = RunFolder(Path(value("output_dir")).resolve())
    parameters = sum(p.numel() for p in network.parameters())
    structures = label_values(value("structures"))
    check_regions(config, structures, configs / INFERENCE, _made(parser, "train#loss"), _out_channels(parser))
    check_output_folder(run.path, needed_bytes=6 * 4 * parameters + 50_000_000)
    if is_writer():
        _take(run)

    datalist, entry_problems = parse_datalist(value("datalist"), value("data_root"))
    resolved = {
        "datalist": str(datalist.path),
        "data_root": None if value("data_root") is None else str(Path(value("data_root")).resolve()),
        "dataset_dir": str(Path(value("dataset_dir")).resolve()),
    }
    continues = is_writer() and not value("restart") and _continues(run, configs, config, resolved, datalist)
    if continues and run.status().get("status") == FINISHED and run.status()["epoch"] >= int(value("epochs")):
        epochs = run.status()["epoch"]
        print(f"{run.path}: this run is finished ({epochs} epochs); nothing to do. --restart starts over.")
        return 0
    if is_writer():
        check_structures(datalist, structures, value("channels"), trains_regions(config))
        check_shares(int(value("batch_size")), len(datalist.section(keys.TRAINING)), world_size())
        missing = checked_choice(value("missing_channels") if "missing_channels" in parser else "error")
        dropout = float(value("channel_dropout")) if "channel_dropout" in parser else 0.0
        notes = check_channels(datalist, value("channels"), missing, dropout)
        notes += check_cases(datalist, entry_problems, value("check_data"), missing)
        check_axes(datalist, value("group_axes"))
        _announce(run, datalist, parameters, notes, continues)
    plan = run, configs.parent, config, resolved, datalist, structures, continues
    return _Plan(*plan, value("objective"), int(value("seed")), with_statistics=value("check_data"))


def _out_channels(parser: ConfigParser) -> int | None:
    """Return how many scores a voxel gets from the network; None if its config does not say."""
    if "out_channels" not in parser.get("network_def"):
        return None
    return int(parser.get_parsed_content("network_def#out_channels"))


def _changed(config: Mapping[str, Any], file: Path) -> dict[str, Any]:
    """Return what overlays and overrides changed in the training config; of `rivals`, those that were changed."""
    own = with_shared(load_config([file]), file.parent) if file.is_file() else dict(config)
    # null on the command line arrives as "$None"
    given: dict[str, Any] = {key: None if value == "$None" else value for key, value in config.items()}
    changed = {key: value for key, value in given.items() if value != own.get(key)}
    rivals, before = changed.get("rivals"), own.get("rivals") or {}
    if isinstance(rivals, Mapping):
        changed["rivals"] = {name: rival for name, rival in rivals.items() if rival != before.get(name)}
    return changed


def _take(run: RunFolder) -> None:
    """Lock the folder; a run in it that says it is running was killed, for else it would hold the lock."""
    if run.lock() and run.status().get("status") == RUNNING:
        run.write_status(status=INTERRUPTED, error="the process ended without a word (killed?)", remedy=CONTINUE)


def _write(plan: _Plan) -> None:
    """Make the run folder."""
    run = plan.run
    remove_notes(run)
    if not plan.continues:
        _clear(run)
    write_run_configs(run, plan.bundle, plan.config, plan.resolved)
    if not plan.continues and plan.with_statistics:
        statistics = training_statistics(plan.datalist.section(keys.TRAINING), plan.structures)
        replace_text(run.statistics_file, json.dumps(statistics, indent=2) + "\n")
    run.write_status(  # "running" comes with the training itself, which keeps it true
        droseg=__version__,
        bundle=plan.bundle.name,
        objective=plan.objective,
        seed=plan.seed,
        datalist=str(plan.datalist.path),
        datalist_sha256=_digest(plan.datalist.path),
        structures=plain_values(plan.structures),
        started=run.status().get("started", time.strftime("%Y-%m-%dT%H:%M:%S%z")),
    )


def _continues(
    run: RunFolder, configs: Path, config: Mapping[str, Any], resolved: Mapping[str, Any], datalist: Datalist
) -> bool:
    """Whether the folder holds the same run with a checkpoint; without one there is nothing to lose.

    Raises:
        DrosegError: if it holds a run with other settings; the message shows the difference.
    """
    if not run.checkpoint.is_file() or not (run.configs / TRAIN).is_file():
        return False
    status = run.status()
    changed = changed_settings(run, configs, config, resolved)
    if status.get("datalist_sha256") not in (None, _digest(datalist.path)):
        changed.append(f"datalist: the content of {datalist.path} has changed since")
    of_cases = [line for line in changed if line.partition(":")[0] in ("datalist", "data_root", "dataset_dir")]
    if config.get("carry_over_history"):
        changed = [line for line in changed if line not in of_cases]
    if changed:
        listed = "\n".join(f"  {line}" for line in changed)
        hint = " carry_over_history=true continues it with the loss history of the cases that remain." * bool(of_cases)
        raise DrosegError(
            f"{run.path} holds a run with other settings:\n{listed}\n"
            f"Give the same settings to continue it, another --out, or --restart to start over.{hint}"
        )
    return True


def _clear(run: RunFolder) -> None:
    """Remove what a former run wrote, and nothing else that may lie in the folder."""
    audit = run.audit_file, run.audit_cases_file
    for file in (run.best_model, run.last_model, run.checkpoint, run.status_file, *audit):
        file.unlink(missing_ok=True)
    shutil.rmtree(run.tensorboard, ignore_errors=True)
    if run.card.is_file():
        replace_text(run.card, empty_card(run.card.read_text(encoding="utf-8")))


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
