"""A short run of `scripts/fuzz_inputs.py`, and planted readers that it must notice."""

from __future__ import annotations

import importlib
from collections import defaultdict
from pathlib import Path
from types import ModuleType

import pytest

# Each kind of input meets another fault; a file's name says which.
READER = """
import os, signal, time

def read(folder):
    (name,) = os.listdir(folder)
    if name == "nrrd":
        raise ValueError("no such thing")
    if name == "nhdr":
        os.kill(os.getpid(), signal.SIGSEGV)
    if name == "mha":
        return str(len(bytearray(1 << 30)))
    if name == "mhd":
        time.sleep(600)
    if name == "nifti_gz":
        raise SystemExit(0)
    return "refused: not an image" if name == "dicom" else "read"
"""
EXPECTED = {"nrrd": "exception", "nhdr": "crash", "mha": "memory", "mhd": "hang", "nifti_gz": "exception"}


@pytest.fixture
def fuzz_inputs(seeds: ModuleType, project_root: Path) -> ModuleType:
    """Return the script as a module; `seeds` has put its folder on the path."""
    return importlib.import_module("fuzz_inputs")


def test_150_mutants_are_read_or_refused_in_one_line(
    fuzz_inputs: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("itk", reason="skipped: ITK is not installed")
    keep = tmp_path / "keep"
    code = fuzz_inputs.main(["--mutants", "150", "--seed", "3", "--workers", "1", "--keep", str(keep)])
    header, *rows = (line.split() for line in capsys.readouterr().out.splitlines())
    assert code == 0, rows
    assert header[:4] == ["kind", "mutants", "read", "refused"]
    *kinds, total = rows
    assert {row[0] for row in kinds} == set(fuzz_inputs.SEEDS)
    assert total[:2] == ["all", "150"]
    assert int(total[2]) + int(total[3]) == 150
    assert min(int(total[2]), int(total[3])) > 30  # some of the damage does no harm, some must be noticed
    assert not keep.exists()


def test_readers_that_raise_crash_hang_or_eat_memory_are_noticed_and_their_mutants_kept(
    fuzz_inputs: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "modules").mkdir()
    (tmp_path / "modules" / "planted_reader.py").write_text(READER)
    monkeypatch.syspath_prepend(str(tmp_path / "modules"))
    planted = importlib.import_module("planted_reader")
    seeds = tmp_path / "seeds"
    for kind in fuzz_inputs.SEEDS:
        (seeds / kind).mkdir(parents=True)
        (seeds / kind / kind).write_bytes(b"an image of no format " * 20)
    findings = fuzz_inputs.fuzz(seeds, 23, seed=5, memory_bytes=1 << 27, timeout_s=1.0, read=planted.read, imports=())
    outcomes: dict[str, set[str]] = defaultdict(set)
    for finding in findings:
        outcomes[finding.kind].add(finding.outcome)
    assert set(EXPECTED) | {"dicom", "nifti"} <= set(outcomes)
    for kind, found in outcomes.items():
        assert found == {EXPECTED.get(kind, "refused" if kind == "dicom" else "read")}
    assert sorted(finding.index for finding in findings) == list(range(23))
    details = {finding.kind: finding.detail for finding in findings}
    assert details["nrrd"] == "ValueError: no such thing"
    assert details["nhdr"] == "exit code -11"
    assert fuzz_inputs.report(findings, seeds, 5, tmp_path / "keep") == 1
    shown = capsys.readouterr().out
    kept = {path.name for path in (tmp_path / "keep").iterdir()}
    bad = [finding for finding in findings if finding.kind in EXPECTED]
    assert kept == {f"{finding.kind}_5_{finding.index}" for finding in bad}
    for finding in bad:
        folder = tmp_path / "keep" / f"{finding.kind}_5_{finding.index}"
        assert f"{finding.outcome}: {folder}: " in shown
        assert (folder / finding.kind).read_bytes() != (seeds / finding.kind / finding.kind).read_bytes()
    fine = [finding for finding in findings if finding.outcome in ("read", "refused")]
    assert fuzz_inputs.report(fine, seeds, 5, tmp_path / "none") == 0


def test_an_error_of_several_lines_is_no_refusal(fuzz_inputs: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "one" / "x.nii").parent.mkdir()
    (tmp_path / "one" / "x.nii").write_bytes(b"x")
    assert fuzz_inputs.read_mutant(tmp_path / "one").startswith("refused: ")
    (tmp_path / "two" / "x\ny.nii").parent.mkdir()
    (tmp_path / "two" / "x\ny.nii").write_bytes(b"x")  # `droseg predict` would refuse the name before
    with pytest.raises(ValueError, match="an error of several lines"):
        fuzz_inputs.read_mutant(tmp_path / "two")
