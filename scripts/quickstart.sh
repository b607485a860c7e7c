#!/usr/bin/env bash
# The main job, end to end, on generated "brains": bash scripts/quickstart.sh [OUT]      (default: runs/quickstart)
#
# A cohort of phantoms with a rare anatomy and a rare protocol; a plain network (ERM) and one trained with
# hardness-weighted sampling (DRO), same seed, budget and checkpoint rule; both scored on held-out cases; one report.
# Run it again at any time: what is finished is reused, an interrupted training continues.
set -Eeuo pipefail

root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
out="${1:-runs/quickstart}"
bundle=fetal_brain_mri
datalist="$out/phantoms/datalist.json"
steps=7 step=0

begin() { step=$((step + 1)); printf '\n[%d/%d, %02d:%02d] %s\n' "$step" "$steps" $((SECONDS / 60)) $((SECONDS % 60)) "$1"; }
reused() { printf '      reused: %s\n' "$1"; }

failed() {
    local status=$?
    printf '\nquickstart: step %d of %d failed with exit code %d; its message is above. %s\n' "$step" "$steps" "$status" \
        "Run the same command again to go on from there; $out can be deleted to start over." >&2
    exit "$status"
}
trap failed ERR

phantoms_complete() { # the datalist is there, and every file that it names
    [[ -f "$datalist" ]] && python - "$datalist" <<'PYTHON'
import sys
from droseg.data.datalist import read_datalist
cases = [case for section in read_datalist(sys.argv[1]).sections.values() for case in section]
sys.exit(not all(path.is_file() for case in cases for path in (*case.images, case.label)))
PYTHON
}

evaluate() { # evaluate RUN OUT: scores a run's model on the held-out cases, unless the scores are newer than the model
    if [[ "$2/case_metrics.csv" -nt "$1/models/model.pt" ]]; then
        reused "$2/case_metrics.csv"
    else
        # Label maps of an older model would otherwise stand in the way.
        droseg evaluate --datalist "$datalist" --section testing --bundle "$1" --out "$2" --overwrite
    fi
}

begin "Python environment"
bash "$root/scripts/setup_env.sh"
if [[ "${DROSEG_VENV:-}" != active ]]; then
    PATH="${DROSEG_VENV:-$root/.venv}/bin:$PATH"
fi

begin "Cohort: 130 phantoms, most of them typical; the test section is balanced"
if phantoms_complete; then
    reused "$datalist"
else
    droseg data phantoms "$out/phantoms" --cases 130 --seed 0
fi

begin "Training of the plain network (ERM)"
droseg train "$bundle" --overlay phantoms --datalist "$datalist" --out "$out/erm" --objective erm

begin "Training with hardness-weighted sampling (DRO), otherwise the same"
droseg train "$bundle" --overlay phantoms --datalist "$datalist" --out "$out/dro" --objective hardness

begin "Plain network on the held-out cases"
evaluate "$out/erm" "$out/eval_erm"

begin "DRO network on the held-out cases"
evaluate "$out/dro" "$out/eval_dro"

begin "Report: DRO against the plain network, per subgroup"
droseg report "$out/eval_dro/case_metrics.csv" --baseline "$out/eval_erm/case_metrics.csv" \
    --name DRO --baseline-name ERM \
    --group-by anatomy --group-by protocol --datalist "$datalist" --pred "$out/eval_dro/predictions" --out "$out/report"

printf '\nFinished in %02d:%02d.\n' $((SECONDS / 60)) $((SECONDS % 60))
printf '  report       %s\n' "$out/report/report.html"
printf '  table        %s\n' "$out/report/subgroups.csv"
printf '  TensorBoard  %s --logdir %s\n' "$(command -v tensorboard)" "$out"
