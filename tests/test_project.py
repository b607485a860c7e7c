"""The project as people get it: its pins agree, its wheel is complete, its scripts and README say what is true."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
SCRIPTS = sorted([*ROOT.glob("scripts/*.sh"), ROOT / ".ci" / "run"])
CONDA_NAMES = {"matplotlib-base": "matplotlib", "pytorch": "torch", "itk": "itk-core"}


def requirements(extra: str | None = None) -> dict[str, Requirement]:
    """Return name -> requirement of pyproject's dependencies, or of one extra with those that it includes."""
    project = PYPROJECT["project"]
    found: dict[str, Requirement] = {}
    for text in project["dependencies"] if extra is None else project["optional-dependencies"][extra]:
        requirement = Requirement(text)
        if requirement.name == project["name"]:
            for included in requirement.extras:
                found |= requirements(included)
        else:
            found[canonicalize_name(requirement.name)] = requirement
    return found


def pinned_versions() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = [line.split("==") for line in lines if line and not line.startswith("#")]
    return {canonicalize_name(name): version for name, version in pins}


def environment() -> dict[str, Requirement]:
    found: dict[str, Requirement] = {}
    for entry in yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]:
        for text in entry["pip"] if isinstance(entry, dict) else [entry]:
            if text.startswith(("-e", "python ", "pip")):
                continue
            requirement = Requirement(text)
            found[CONDA_NAMES.get(requirement.name, requirement.name)] = requirement
    return found


def tracked_files() -> list[Path]:
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("not a git checkout")
    return [path for line in listed.stdout.splitlines() if (path := ROOT / line).is_file()]


def readme_commands() -> list[list[str]]:
    """Return the words of every command in README's bash blocks, with continued lines joined and comments dropped."""
    blocks = re.findall(r"```bash\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.DOTALL)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    return [words for line in lines if (words := shlex.split(line, comments=True))]


# ---- pins


def test_environment_yml_has_the_dependencies_and_ranges_of_pyproject():
    optional = {name: requirements("dicom-seg")[name] for name in ("highdicom", "itk-core", "pydicom")}
    expected = {name: str(requirement.specifier) for name, requirement in (requirements() | optional).items()}
    assert {name: str(requirement.specifier) for name, requirement in environment().items()} == expected


def test_every_pinned_version_is_inside_the_range_of_pyproject():
    pins = pinned_versions()
    for name, requirement in (requirements() | requirements("all")).items():
        assert name in pins, f"constraints.txt has no {name}"
        assert requirement.specifier.contains(pins[name]), f"{name}=={pins[name]} is outside {requirement.specifier}"


def test_the_extra_all_includes_every_other_extra():
    every = set(PYPROJECT["project"]["optional-dependencies"]) - {"all"}
    assert requirements("all") == {name: value for extra in every for name, value in requirements(extra).items()}


def test_the_changelog_has_the_version_of_the_package():
    import droseg

    assert f"## [{droseg.__version__}]" in (ROOT / "CHANGELOG.md").read_text()


# ---- package


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("dist")
    subprocess.run([sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", out], cwd=ROOT, check=True)
    return next(out.glob("*.whl"))


def test_the_wheel_contains_the_bundles_and_the_console_script(wheel: Path):
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        entry_points = archive.read(next(name for name in names if name.endswith("entry_points.txt"))).decode()
    assert "droseg = droseg.cli:main" in entry_points
    for config in ROOT.glob("bundles/*/configs/*"):
        assert f"droseg/_bundles/{config.relative_to(ROOT / 'bundles').as_posix()}" in names
    assert not [name for name in names if name.startswith(("tests", "bundles", "app"))]
    assert [name for name in names if name.endswith(".pt")] == ["droseg/_bundles/hippocampus_mri/models/model.pt"]
    assert not [name for name in names if name.endswith((".nii.gz", ".pyc"))]


def test_an_installed_wheel_finds_its_bundles_without_the_checkout(wheel: Path, tmp_path: Path):
    zipfile.ZipFile(wheel).extractall(tmp_path)
    code = (
        "from droseg.bundles import *; print(*(p.relative_to(bundle_folders()[0]) for p in shipped_bundles().values()))"
    )
    env = {**os.environ, "PYTHONPATH": str(tmp_path)}
    found = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=env, capture_output=True, text=True, check=True
    )
    assert sorted(found.stdout.split()) == sorted(path.name for path in ROOT.glob("bundles/*") if path.is_dir())


def test_every_module_imports_where_no_optional_package_is_installed():
    optional = sorted({name.replace("-", "_").split("_")[0] for name in requirements("dicom")} | {"jsonschema"})
    code = (
        f"import sys; sys.modules.update(dict.fromkeys({optional}))\n"
        "import importlib, pkgutil, droseg\n"
        "for module in pkgutil.walk_packages(droseg.__path__, 'droseg.'):\n"
        "    if not module.name.endswith('__main__'): importlib.import_module(module.name)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_help_is_shown_without_loading_torch():
    code = (
        "import sys, droseg.cli\n"
        "try: droseg.cli.main(['--help'])\n"
        "except SystemExit: pass\n"
        "sys.exit(', '.join({'torch', 'monai', 'pandas', 'matplotlib', 'itk'} & set(sys.modules)))"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert shown.stderr.strip() == ""
    assert "droseg" in shown.stdout


def test_no_tracked_file_names_a_path_of_one_machine():
    # Whose home or checkout it is: this one's, and the usual places of others.
    pattern = re.compile(rf"{re.escape(str(ROOT))}/|{re.escape(sys.prefix)}/|(?<![\w.~])/(?:home|Users|root)/\w")
    found = []
    for path in tracked_files():
        if path.name == "Dockerfile" or path.suffix in {".png", ".gz", ".pt"}:
            continue  # a container has its own paths
        found += [
            f"{path.relative_to(ROOT)}: {line.strip()}"
            for line in path.read_text().splitlines()
            if pattern.search(line)
        ]
    assert found == []


# ---- README


def test_readme_names_only_scripts_and_config_files_that_exist():
    for words in readme_commands():
        for word in words:
            paths = re.findall(r"(?:\.ci|scripts|bundles)/[\w./-]+", word)
            missing = [
                path
                for path in paths
                if not (ROOT / path).exists() and path.split("/")[1] != "mine" and "/models/" not in path
            ]
            assert not missing, f"{shlex.join(words)}: {missing}"


def test_readme_names_only_command_lines_that_droseg_accepts():
    from droseg.cli import parse_arguments

    lines = [words[1:] for words in readme_commands() if words[0] == "droseg"]
    assert {"data", "train", "evaluate", "report", "predict"} <= {words[0] for words in lines}
    for words in lines:
        parse_arguments(words)  # argparse says what it refuses and raises SystemExit


def test_readme_links_to_files_that_exist():
    readme = re.sub(r"<!--.*?-->", "", (ROOT / "README.md").read_text(), flags=re.DOTALL)
    links = re.findall(r"\]\((?!https?:|#)([^)#]+)", readme)
    assert [link for link in links if not (ROOT / link).exists()] == []


# ---- scripts


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_a_script_is_valid_bash_and_executable(script: Path):
    subprocess.run(["bash", "-n", script], check=True)
    assert os.access(script, os.X_OK)
    assert re.search(r"^set -E?euo pipefail$", script.read_text(), flags=re.MULTILINE)


def test_quickstart_says_which_step_failed_and_passes_its_exit_code_on(tmp_path: Path):
    add_program(tmp_path, "droseg", 'echo "droseg $1"; [ "$1" != evaluate ] || exit 7')
    path = f"{tmp_path}:{Path(sys.executable).parent}:{os.environ['PATH']}"
    command = ["bash", ROOT / "scripts" / "quickstart.sh", tmp_path / "out"]
    done = subprocess.run(
        command, env={**os.environ, "PATH": path, "DROSEG_VENV": "active"}, capture_output=True, text=True
    )
    assert done.returncode == 7
    assert "step 5 of 7 failed with exit code 7" in done.stderr
    assert [line for line in done.stdout.splitlines() if line.startswith("droseg ")] == [
        *("droseg data", "droseg train", "droseg train", "droseg evaluate")
    ]


@pytest.fixture
def machine(tmp_path: Path) -> Path:
    """A folder to be the whole PATH: the tools that setup_env.sh needs, and no Python."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for tool in ("bash", "cat", "cksum", "cut", "dirname", "grep", "ls", "mkdir", "tail", "tee", "uname"):
        (folder / tool).symlink_to(shutil.which(tool) or pytest.skip(f"no {tool}"))
    return folder


def add_program(machine: Path, name: str, lines: str) -> None:
    (machine / name).write_text(f"#!{shutil.which('bash')}\n{lines}\n")
    (machine / name).chmod(0o755)


def add_python(machine: Path) -> None:
    """A Python 3.11 whose environments write down the arguments of pip instead of installing anything."""
    installed = f'if [ "$1 $2" = "-m pip" ]; then echo "$*" >> {machine}/pip.log'
    reachable = 'elif [ "$1" = "-" ]; then exit 1'  # no index answers
    python = f"#!{shutil.which('bash')}\n{installed}; {reachable}; fi"
    add_program(
        machine,
        "python3.11",
        f'if [ "$1" = -c ]; then echo 3.11.9; else mkdir -p "$4/bin"; cat > "$4/bin/python" <<"EOF"\n{python}\nEOF\n'
        f"{shutil.which('chmod')} +x $4/bin/python; fi",
    )


def setup_env(machine: Path, *args: str, **variables: str) -> subprocess.CompletedProcess[str]:
    env = {"PATH": str(machine), "DROSEG_VENV": str(machine.parent / "venv"), **variables}
    command = ["bash", ROOT / "scripts" / "setup_env.sh", *args]
    return subprocess.run(command, env=env, capture_output=True, text=True)


def pip_calls(machine: Path) -> list[str]:
    return (machine / "pip.log").read_text().splitlines()


def test_setup_says_which_pythons_it_found_when_none_fits(machine: Path):
    add_program(machine, "python3", "echo 3.9.18")
    done = setup_env(machine)
    assert done.returncode == 1
    assert "python3 is 3.9.18" in done.stderr
    assert "3.11 or 3.12" in done.stderr


def test_setup_takes_the_pinned_torch_from_pip_when_the_cpu_index_does_not_answer(machine: Path):
    add_python(machine)
    done = setup_env(machine, "all")
    assert done.returncode == 0, done.stderr
    assert "does not answer" in done.stdout
    torch, droseg = pip_calls(machine)
    assert torch.endswith(f"torch=={pinned_versions()['torch']}")
    assert "index" not in torch
    assert droseg.endswith(f"-e {ROOT}[all]")


def test_setup_takes_the_cuda_build_where_nvidia_smi_works(machine: Path):
    add_python(machine)
    add_program(machine, "nvidia-smi", "exit 0")
    done = setup_env(machine)
    assert "CUDA build" in done.stdout
    assert "does not answer" not in done.stdout
    assert "index" not in pip_calls(machine)[0]


def test_setup_asks_no_index_when_told_so(machine: Path):
    add_python(machine)
    done = setup_env(machine, DROSEG_TORCH_INDEX="")
    assert done.returncode == 0, done.stderr
    assert "does not answer" not in done.stdout


def test_a_second_setup_installs_nothing(machine: Path):
    add_python(machine)
    setup_env(machine, "all")
    before = pip_calls(machine)
    for extras in ("all", ""):  # all of it is more than nothing extra
        assert "up to date" in setup_env(machine, extras).stdout
    assert pip_calls(machine) == before


def test_setup_leaves_a_folder_alone_that_is_no_environment(machine: Path):
    add_python(machine)
    mine = machine.parent / "venv" / "thesis.txt"
    mine.parent.mkdir()
    mine.write_text("three years")
    assert setup_env(machine).returncode == 1
    assert mine.read_text() == "three years"
