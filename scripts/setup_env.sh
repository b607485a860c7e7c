#!/usr/bin/env bash
# Makes droseg's Python environment: bash scripts/setup_env.sh [EXTRAS]      (EXTRAS of pyproject.toml, e.g. all; default none)
#
# A second run takes a second, unless pyproject.toml or constraints.txt changed. Variables:
#   DROSEG_VENV         where the environment lies (default: .venv in this checkout);
#                       "active" takes the activated one, such as conda's, as it is
#   DROSEG_PYTHON       the Python to make it with (default: the first 3.11 or 3.12 found)
#   DROSEG_TORCH_INDEX  package index of the torch build (default: PyTorch's CPU builds on Linux without an NVIDIA GPU);
#                       empty: nothing but what pip is configured with
set -euo pipefail

root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
extras="${1:-}"
venv="${DROSEG_VENV:-$root/.venv}"
cpu_builds="https://download.pytorch.org/whl/cpu"

say() { printf 'setup: %s\n' "$*"; }
fail() { printf 'setup: error: %s\n' "$*" >&2; exit 1; }

python_version() { "$1" -c 'import sys; print("%d.%d.%d" % sys.version_info[:3])' 2>/dev/null; }

find_python() { # prints the first Python that fits; on stderr what was found instead
    local candidate version found=""
    for candidate in ${DROSEG_PYTHON:-python3.11 python3.12 python3 python}; do
        version="$(python_version "$candidate")" || continue
        case "$version" in
            3.11.* | 3.12.*) command -v "$candidate"; return ;;
            *) found="$found $candidate is $version;" ;;
        esac
    done
    fail "droseg needs Python 3.11 or 3.12;${found:- no Python found;} install one (apt install python3.11-venv, brew install" \
        "python@3.12, or conda with environment.yml), or name it: DROSEG_PYTHON=/path/to/python3.12"
}

answers() { # does a package index answer within 5 seconds?
    "$venv/bin/python" - "$1" <<'PYTHON' 2>/dev/null
import sys, urllib.request
urllib.request.urlopen(sys.argv[1].rstrip("/") + "/torch/", timeout=5).close()
PYTHON
}

choose_torch_index() { # sets torch_index: empty for what pip is configured with
    torch_index="${DROSEG_TORCH_INDEX-}"
    if [[ -z "${DROSEG_TORCH_INDEX+set}" && "$(uname -s)" == Linux ]]; then
        if nvidia-smi >/dev/null 2>&1; then
            say "nvidia-smi finds a GPU: the CUDA build of torch, several GB."
        else
            say "no NVIDIA GPU: the CPU build of torch."
            torch_index="$cpu_builds"
        fi
    fi
    if [[ -n "$torch_index" ]] && ! answers "$torch_index"; then
        say "$torch_index does not answer: torch comes from where pip is configured to look."
        torch_index=""
    fi
}

pip_install() { # pip with one line of progress; everything it says is in the log
    local log="$venv/install.log" line
    "$venv/bin/python" -m pip install --disable-pip-version-check --no-input --progress-bar off "$@" 2>&1 | tee -a "$log" |
        while IFS= read -r line; do
            case "$line" in
                *Downloading*[MG]"B)" | *"Installing collected"*)
                    if [[ -t 1 ]]; then printf '\r\033[K  %.90s' "${line#"${line%%[! ]*}"}"; else printf '  %.110s\n' "$line"; fi ;;
            esac
        done || { tail -n 20 "$log" >&2; fail "pip install failed; all of its output: $log. Mend it and run the same command again."; }
    if [[ -t 1 ]]; then printf '\r\033[K'; fi
}

if [[ "$venv" == active ]]; then
    python -c 'import droseg' 2>/dev/null || fail "DROSEG_VENV=active, but the active Python has no droseg: pip install -e '.[all]'"
    case ",$extras," in
        *,all,* | *,dev,*) # what the tests import; environment.yml has what droseg itself needs
            python -c 'import jsonschema, pytest, xdist' 2>/dev/null ||
                fail "DROSEG_VENV=active, but the active Python has no pytest, pytest-xdist or jsonschema, which the tests" \
                    "need: pip install -e '.[all]'" ;;
    esac
    say "using the active environment, $(python -c 'import sys; print(sys.prefix)')."
    exit 0
fi

# What an installation depends on: its stamp is the sum of it.
wanted="$(cat "$root/pyproject.toml" "$root/constraints.txt" | cksum) $root"
for stamp in "$venv/.droseg-all" "$venv/.droseg-${extras:-none}"; do
    if [[ -f "$stamp" && "$(cat "$stamp")" == "$wanted" ]] && "$venv/bin/python" -c '' 2>/dev/null; then
        say "environment $venv is up to date."
        exit 0
    fi
done

say "environment $venv: some minutes the first time, most of them for downloads."
if ! "$venv/bin/python" -c '' 2>/dev/null; then
    if [[ -n "$(ls -A "$venv" 2>/dev/null)" && ! -f "$venv/pyvenv.cfg" ]]; then
        fail "$venv is a folder with something else in it; name another one: DROSEG_VENV=/path/to/new/folder"
    fi
    python="$(find_python)"
    "$python" -m venv --clear "$venv" ||
        fail "$python cannot make an environment in $venv; on Debian and Ubuntu: apt install python$(python_version "$python" | cut -d. -f1,2)-venv"
fi
: >"$venv/install.log"

torch="$(grep -E '^torch==' "$root/constraints.txt")"
choose_torch_index
say "installing $torch ..."
pip_install ${torch_index:+--extra-index-url "$torch_index"} -c "$root/constraints.txt" "$torch"
say "installing droseg${extras:+[$extras]} and what it needs ..."
pip_install -c "$root/constraints.txt" -e "$root${extras:+[$extras]}"
printf '%s' "$wanted" >"$venv/.droseg-${extras:-none}"
"$venv/bin/python" -c 'import torch; gpu = torch.cuda.is_available()
print("setup: torch", torch.__version__, "computes on", torch.cuda.get_device_name() if gpu else "the CPU.")'
say "ready: source $venv/bin/activate"
