from __future__ import annotations

from pathlib import Path

import pytest

from droseg.errors import InputError
from droseg.workflow.config import check_keys, config_files, differences, known_configs, load_config
from droseg.workflow.launch import monai_line

BUNDLE = "bundles/hippocampus_mri"


def refused(project_root: Path, **overrides: object) -> str:
    folder = project_root / BUNDLE / "configs"
    config = load_config([folder / "train.yaml"], overrides)
    with pytest.raises(InputError) as error:
        check_keys(config, known_configs(config_files(folder)))
    return str(error.value)


@pytest.mark.parametrize(
    ("key", "nearest"),
    [
        ("epoch", "epochs"),
        ("target_es", "target_ess"),
        ("train#loss#lamda_ce", "train#loss#lambda_ce"),
        ("train#dataloader#num_worker", "train#dataloader#num_workers"),
        ("network_def#chanels", "network_def#channels"),
    ],
)
def test_an_override_that_does_not_exist_names_the_nearest_key(project_root: Path, key: str, nearest: str) -> None:
    message = refused(project_root, **{key: 1})
    assert f"there is no key {key}: did you mean {nearest}?" in message


def test_every_wrong_key_is_named_at_once(project_root: Path) -> None:
    message = refused(project_root, epoch=1, batchsize=2)
    assert "epoch:" in message
    assert "batchsize:" in message


@pytest.mark.parametrize(
    "overrides",
    [
        {"epochs": 3},
        {"structures": {"whole": 1}},
        {"structures": {"whole": [1, 2], "one": 1}},
        {"channels": ["T1w", "T2w"]},
        {"optimizer#amsgrad": True},  # an argument that the component has but the file does not name
        {"train#loss#lambda_ce": 2.0},
        {"width": 8, "network_def#channels": ["@width", 16]},  # a helper that something refers to
    ],
)
def test_overrides_that_mean_something_are_accepted(project_root: Path, overrides: dict[str, object]) -> None:
    folder = project_root / BUNDLE / "configs"
    check_keys(load_config([folder / "train.yaml"], overrides), known_configs(config_files(folder)))


def test_regions_and_their_values_can_be_given_where_the_bundle_has_lists_and_null(project_root: Path) -> None:
    folder = project_root / "bundles/brats_mri/configs"
    overrides = {"structures": {"left": [1, 2], "right": [2, 3]}, "region_values": {"left": 1, "right": 3}}
    check_keys(load_config([folder / "train.yaml"], overrides), known_configs(config_files(folder)))


def test_differences_name_the_leaf_and_both_values() -> None:
    old = {"a": {"b": 1, "c": [1, 2]}, "epochs": 3}
    new = {"a": {"b": 2, "c": [1, 5]}, "epochs": 9, "d": "x"}
    assert differences(old, new, ignore=["epochs"]) == ["a#b: 1 -> 2", "a#c#1: 2 -> 5", "d: None -> 'x'"]


def test_the_printed_line_is_one_that_a_shell_reads_back() -> None:
    import shlex

    line = monai_line([Path("a.yaml"), Path("b c.yaml")], {"structures": {"whole": 1}, "epochs": 3})
    words = shlex.split(line)
    assert words[:5] == ["python", "-m", "monai.bundle", "run", "training"]
    assert words[words.index("--config_file") + 1] == "['a.yaml','b c.yaml']"
    assert words[words.index("--structures") + 1] == "{'whole': 1}"
