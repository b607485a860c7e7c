"""`droseg train`: a thin wrapper around `python -m monai.bundle run training`."""

from __future__ import annotations

import argparse
from typing import Any

from droseg.errors import InputError

EXAMPLES = """examples:
  droseg train hippocampus_mri --datalist data/hippocampus/datalist.json --out runs/dro --objective hardness
  droseg train hippocampus_mri --datalist D --out runs/jtt --objective jtt rivals#jtt#first_epochs=15
  droseg train hippocampus_mri --datalist D --out runs/erm epochs=20 train#optimizer#weight_decay=0.001
  droseg train runs/dro epochs=200          go on with a run for longer

objectives (settings of the last six: rivals#NAME#KEY=value; their groups: objective_axes, else --group-by):
  erm             every case alike
  hardness        hard cases drawn more often: KL, chi-square or CVaR (Fidon et al. 2022, arXiv:2001.02658)
  two_level       hard groups, and hard cases inside each group (the same, taken twice)
  group_dro       an adversary weights the groups by their losses (Sagawa et al. 2020, arXiv:1911.08731)
  group_balanced  every group drawn equally often (Idrissi et al. 2022, arXiv:2110.14503)
  jtt             trains twice; what the first network gets wrong is repeated (Liu et al. 2021, arXiv:2107.09044)
  rgd             losses of a batch weighted by their exponential (Kumar et al. 2024, arXiv:2306.09222)
  febs            Dice of scores scaled by the error of their group (Tian et al. 2024, arXiv:2311.02189)
Any key=value overrides the bundle's configs/train.yaml; a key that does not exist there is an error."""


def register(subparsers: Any) -> None:
    """Add the job to the command line."""
    parser = subparsers.add_parser(
        "train",
        help="train a bundle on a datalist, by ERM, hardness-weighted sampling or one of its rivals",
        description=__doc__,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("bundle", metavar="BUNDLE", help="name of a shipped bundle, or a bundle or run folder")
    parser.add_argument("overrides", metavar="key=value", nargs="*", help="overrides of the training config")
    parser.add_argument("--datalist", help="the cases (JSON)")
    parser.add_argument("--data-root", help="folder that the datalist's relative paths start from")
    parser.add_argument("--out", help="run folder; the same folder and settings continue a run")
    parser.add_argument("--objective", metavar="NAME", help="what makes a case count more; see below")
    robustness = parser.add_mutually_exclusive_group()
    robustness.add_argument("--beta", type=float, help="robustness of hardness and two_level, >= 0")
    robustness.add_argument("--target-ess", type=float, help="solve beta for this effective sample size / N, in (0, 1]")
    parser.add_argument(
        "--group-by",
        metavar="AXIS",
        action="append",
        help="axes of the worst group that selects model.pt, and of objectives with groups",
    )
    parser.add_argument(
        "--overlay", metavar="NAME", action="append", default=[], help="further config of the bundle, or a file"
    )
    parser.add_argument("--init-from", metavar="MODEL", help="start from the weights of a run folder or model.pt")
    parser.add_argument("--restart", action="store_true", help="start over in a folder that holds a run")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Train."""
    from droseg.bundles import find_bundle
    from droseg.workflow import train

    bundle = find_bundle(args.bundle)
    overrides: dict[str, Any] = {}
    options = {
        "datalist": args.datalist,
        "data_root": args.data_root,
        "output_dir": args.out,
        "objective": args.objective,
        "beta": args.beta,
        "target_ess": args.target_ess,
        "group_axes": args.group_by,
        "init_from": args.init_from,
    }
    overrides |= {key: value for key, value in options.items() if value is not None}
    if args.restart:
        overrides["restart"] = True
    train(bundle, args.overlay, overrides | _parse_overrides(args.overrides))
    return 0


def _parse_overrides(words: list[str]) -> dict[str, Any]:
    import yaml

    overrides = {}
    for word in words:
        key, separator, text = word.partition("=")
        if not separator or not key:
            raise InputError(f"{word!r} is no override; write key=value, for example epochs=20.")
        try:
            overrides[key] = _number(yaml.safe_load(text))
        except yaml.YAMLError as error:
            raise InputError(f"{word!r}: the value is not valid YAML ({str(error).splitlines()[0]}).") from error
    return overrides


def _number(value: Any) -> Any:
    """YAML 1.1 reads 1e-3 as text, since it has no point; everybody else reads a number."""
    if isinstance(value, str):
        try:
            return float(value) if any(digit in value for digit in "0123456789") else value
        except ValueError:
            return value
    return value
