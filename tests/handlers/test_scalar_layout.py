"""Which values share a chart, as answered by TensorBoard's own plugin on an event file."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.data_provider import MultiplexerDataProvider
from tensorboard.backend.event_processing.plugin_event_multiplexer import EventMultiplexer
from tensorboard.context import RequestContext
from tensorboard.plugins.base_plugin import TBContext
from tensorboard.plugins.custom_scalar.custom_scalars_plugin import CustomScalarsPlugin
from tensorboard.plugins.scalar.scalars_plugin import ScalarsPlugin
from torch.utils.tensorboard import SummaryWriter

from droseg.handlers.scalar_layout import scalar_layout

GROUPS = ("all", "worst_group", "site=a", "site=b", "site*age=a * 70+", "structure=stem")
PLAIN = [f"val_{metric}/{group}" for metric in ("dice", "dice_p10") for group in GROUPS]
AXIS = "Groups of site (validation, failures counted)"


def shown(logdir: Path) -> dict[str, dict[str, list[str]]]:
    """Return what the page "Custom Scalars" shows: category -> chart -> names of the lines, over all runs."""
    multiplexer = EventMultiplexer().AddRunsFromDirectory(str(logdir))
    multiplexer.Reload()
    plugins: dict[str, object] = {}
    context = TBContext(
        logdir=str(logdir),
        data_provider=MultiplexerDataProvider(multiplexer, str(logdir)),
        plugin_name_to_instance=plugins,
    )
    plugins["scalars"] = ScalarsPlugin(context)
    page, request = CustomScalarsPlugin(context), RequestContext()

    def lines(patterns: Sequence[str]) -> list[str]:
        query = "|".join(f"({pattern})" for pattern in patterns)  # as the page asks for a chart
        answers = [page.scalars_impl(request, run, query, "") for run in multiplexer.Runs()]
        assert all(answer["regex_valid"] for answer in answers)
        return sorted({name for answer in answers for name in answer["tag_to_events"]})

    return {
        category["title"]: {chart["title"]: lines(chart["multiline"]["tag"]) for chart in category["chart"]}
        for category in json.loads(page.layout_impl(request, ""))["category"]
    }


def written(folder: Path, names: Sequence[str], layouts: Sequence[Mapping] | None = None) -> Path:
    with SummaryWriter(str(folder)) as writer:
        for name in names:
            writer.add_scalar(name, 0.5, 1)
        for layout in [scalar_layout(names)] if layouts is None else layouts:
            writer.add_custom_scalars(layout)
    return folder


def test_each_axis_has_a_chart_of_means_and_one_of_bad_tails_with_its_groups_all_and_the_worst(tmp_path):
    page = shown(written(tmp_path, PLAIN))
    assert page[AXIS] == {
        "Dice, mean": ["val_dice/all", "val_dice/site=a", "val_dice/site=b", "val_dice/worst_group"],
        "Dice, 10th percentile": [
            *("val_dice_p10/all", "val_dice_p10/site=a", "val_dice_p10/site=b", "val_dice_p10/worst_group")
        ],
    }
    product = page["Groups of site*age (validation, failures counted)"]["Dice, mean"]
    assert product == ["val_dice/all", "val_dice/site*age=a * 70+", "val_dice/worst_group"]
    assert page["Structures (validation, failures counted)"]["Dice, mean"] == ["val_dice/structure=stem"]
    assert list(page)[-1].startswith("Structures")


@pytest.mark.parametrize(
    ("axis", "groups"),
    [
        ("scanner/site", ["Siemens 3T / a", "b"]),
        ("thickness (mm)", ["> 2.5", "<= 2.5", "[0, 1)"]),
        ("a.b+c?", ["x=y", "^$|.*", "\\d"]),
        ("age*site", ["70+ * a|b", "70+ * ä ☃"]),
        ("site", ["all", "worst_group", "two\nlines", ""]),
    ],
)
def test_odd_names_of_axes_and_groups_stay_in_their_chart(tmp_path, axis, groups):
    own = ["val_dice/all", "val_dice/worst_group", *(f"val_dice/{axis}={group}" for group in groups)]
    others = ["val_dice/other=a", "val_dice/structure=stem", "val_dice/axbbc=1", "val_dice/allsorts=1", "val_nsd/all"]
    page = shown(written(tmp_path, [*own, *others]))
    assert page[f"Groups of {axis} (validation, failures counted)"]["Dice, mean"] == sorted(own)


def test_without_axes_all_cases_are_shown(tmp_path):
    page = shown(written(tmp_path, ["val_dice/all", "val_dice/worst_group", "val_dice/structure=stem"]))
    assert page["All cases (validation, failures counted)"] == {"Dice, mean": ["val_dice/all"]}


def test_the_sampler_shows_what_its_objective_logs_and_nothing_else(tmp_path):
    names = ["sampler/ess_fraction", "sampler/lag", "sampler/max_lag", "history/robust_risk", "history/cvar_10"]
    groups = ["sampler/adversary/site=a b", "sampler/adversary/site=c/d", "sampler/share/site=a (1)"]
    sampler = shown(written(tmp_path, [*names, *groups, "history/mean_loss", "train/loss"]))["Sampler"]
    assert sampler == {
        "Effective sample size / N": ["sampler/ess_fraction"],
        "Loss history: mean, robust risk, CVaR": ["history/cvar_10", "history/mean_loss", "history/robust_risk"],
        "Lag of the losses in steps: mean, largest": ["sampler/lag", "sampler/max_lag"],
        "Weight of each group (adversary)": groups[:2],
        "Share of the draws of each group": groups[2:],
    }


def test_two_runs_with_other_groups_share_their_charts(tmp_path):
    written(tmp_path / "first", ["val_dice/all", "val_dice/site=a"])
    written(tmp_path / "second", ["val_dice/all", "val_dice/site=b", "val_dice/age=70+"])
    page = shown(tmp_path)
    assert page[AXIS] == {"Dice, mean": ["val_dice/all", "val_dice/site=a", "val_dice/site=b"]}
    assert len(page) == 2


def test_the_last_layout_of_a_run_counts(tmp_path):
    layouts = [scalar_layout(["sampler/beta"]), scalar_layout(PLAIN)]
    assert AXIS in shown(written(tmp_path / "run", PLAIN, layouts))
    assert AXIS not in shown(written(tmp_path / "other", PLAIN, layouts[::-1]))


def test_distances_are_named_with_their_unit():
    layout = scalar_layout(["val_hd95_mm/all", "val_hd95_p90_mm/all"])
    (charts,) = layout.values()
    assert list(charts) == ["HD95 (mm), mean", "HD95 (mm), 90th percentile"]
