#!/usr/bin/env bash
# Sets up what the tests need and runs them: bash scripts/test.sh [pytest arguments]
#   bash scripts/test.sh tests/metrics        one folder
#   bash scripts/test.sh -m slow              the slow ones, which the default leaves out
# Real MRI is read from DROSEG_REAL_DATA; without it those tests are skipped and say so.
set -euo pipefail

root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
bash "$root/scripts/setup_env.sh" all
if [[ "${DROSEG_VENV:-}" != active ]]; then
    PATH="${DROSEG_VENV:-$root/.venv}/bin:$PATH"
fi
cd "$root"
exec python -m pytest -n logical --maxprocesses 8 "$@"
