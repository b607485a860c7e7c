"""The folder of a run: locked against a second training, its files whole whatever happens."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from droseg.engine.run_folder import RunFolder, replace_state, replace_text
from droseg.errors import DrosegError

HOLDER = """
import fcntl, os, sys, time
file = open(sys.argv[1], "a+")
fcntl.lockf(file, fcntl.LOCK_EX)
file.write(f"process {os.getpid()} on somewhere")
file.flush()
print("locked", flush=True)
time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[subprocess.Popen]:
    """Another process that holds the lock."""
    line = [sys.executable, "-c", HOLDER, str(tmp_path / ".lock")]
    with subprocess.Popen(line, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "locked\n"
        yield process
        process.kill()


def test_a_locked_folder_is_refused_with_the_name_of_the_holder(tmp_path: Path, holder: subprocess.Popen) -> None:
    run = RunFolder(tmp_path)
    with pytest.raises(DrosegError, match=rf"process {holder.pid} on somewhere is training there; wait .* --out"):
        run.lock()
    holder.kill()
    holder.wait()
    assert run.lock(), "the lock ends with its process, however it ends"
    assert RunFolder(tmp_path).lock(), "one process may take it twice"
    run.unlock()


def test_a_lock_is_given_up_and_not_inherited(tmp_path: Path) -> None:
    probe = "import fcntl, sys; fcntl.lockf(open(sys.argv[1], 'a+'), fcntl.LOCK_EX | fcntl.LOCK_NB)"

    def is_free() -> bool:
        line = [sys.executable, "-c", probe, str(tmp_path / ".lock")]
        return subprocess.run(line, stderr=subprocess.DEVNULL, check=False).returncode == 0

    run = RunFolder(tmp_path)
    assert run.lock()
    assert not is_free()
    run.unlock()
    assert is_free()


def test_where_nothing_can_be_locked_a_warning_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / ".lock").mkdir()  # stands for whatever keeps the file from being opened
    assert not RunFolder(tmp_path).lock()
    assert "cannot be locked" in caplog.text


class FailsToBeSaved:
    def __reduce__(self) -> tuple:
        raise OSError(28, "No space left on device")


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    file = tmp_path / "models/checkpoint.pt"
    replace_state(file, {"step": torch.tensor(1)})
    with pytest.raises(OSError, match="No space left"):
        replace_state(file, {"step": torch.zeros(1000), "more": FailsToBeSaved()})
    assert torch.load(file, weights_only=True) == {"step": torch.tensor(1)}
    assert [path.name for path in file.parent.iterdir()] == ["checkpoint.pt"]


def test_what_killed_processes_left_is_removed_and_nothing_else(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    replace_text(run.status_file, "{}")
    replace_state(run.checkpoint, {})
    left = [tmp_path / ".run.json.77.partial", run.models / ".checkpoint.pt.77.partial"]
    for path in left:
        path.write_bytes(b"half")
    (tmp_path / "notes.partial").touch()
    assert sorted(run.remove_partials()) == sorted(left)
    assert sorted(path.name for path in tmp_path.rglob("*") if path.is_file()) == [
        *("checkpoint.pt", "notes.partial", "run.json")
    ]
