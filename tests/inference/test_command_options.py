"""The options of `droseg predict`, each with what it changes on disk, on the terminal and in the exit code."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from torch import nn

from droseg.cli import main

MakeBundle = Callable[..., Path]
Plant = Callable[..., tuple[np.ndarray, np.ndarray]]
Save = Callable[..., Path]
WriteSeries = Callable[..., list[Any]]

CONV = {"_target_": "torch.nn.Conv3d", "in_channels": 1, "out_channels": 3, "kernel_size": 3, "padding": 1}


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


@pytest.fixture
def predict(out: Path) -> Callable[..., int]:
    """Return a function that runs `droseg predict` into `out`, and gives the exit code."""

    def run(*words: str | Path) -> int:
        return main(["predict", *map(str, words), "--out", str(out), "--device", "cpu"])

    return run


def labels(out: Path, case_id: str = "scan") -> np.ndarray:
    return np.asanyarray(nib.load(out / f"{case_id}_seg.nii.gz").dataobj)


def record(out: Path) -> dict[str, dict[str, Any]]:
    return {entry["case_id"]: entry for entry in json.loads((out / "predict.json").read_text())["cases"]}


# --- which images ---


def test_list_shows_what_was_found_needs_no_bundle_and_writes_nothing(
    tmp_path: Path, plant: Plant, save: Save, write_series: WriteSeries, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "in"
    save(folder / "a.nii.gz", plant()[0], np.diag([1.0, 1.25, 3.0, 1.0]))
    (folder / "broken.nii").write_bytes(b"x")
    write_series(folder / "study" / "t2")
    write_series(folder / "study" / "scout", uid="1.2.9", ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])
    before = sorted(tmp_path.rglob("*"))
    assert main(["predict", "--list", str(folder)]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["a", "NIfTI", "a.nii.gz", "24", "x", "20", "x", "16", "1", "x", "1.25", "x", "3"] in rows
    assert next(row for row in rows if row[:1] == ["broken"])[-2:] == ["-", "-"]
    assert "10 x 9 x 6 1.2 x 1.5 x 2.5" in " ".join(next(row for row in rows if row[:1] == ["t2"]))
    assert "a localizer" in " ".join(next(row for row in rows if "scout" in "".join(row[-1:])))
    assert rows[-1] == ["3", "cases,", "1", "skipped"]
    assert sorted(tmp_path.rglob("*")) == before
    (tmp_path / "empty").mkdir()
    assert main(["predict", "--list", str(tmp_path / "empty")]) == 2


def test_the_list_puts_channels_together_as_the_bundle_takes_them(
    make_bundle: MakeBundle, tmp_path: Path, plant: Plant, save: Save, capsys: pytest.CaptureFixture[str]
) -> None:
    for index in range(2):
        save(tmp_path / "in" / f"a_{index:04d}.nii.gz", plant()[0])
    bundle = make_bundle(channels=["T1w", "T2w"])
    assert main(["predict", "--list", str(tmp_path / "in"), "--bundle", str(bundle)]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "1 case, 0 skipped"
    assert main(["predict", "--list", str(tmp_path / "in")]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "2 cases, 0 skipped"


@pytest.fixture
def study(tmp_path: Path, write_series: WriteSeries) -> Path:
    for number, name in ((1, "T1 mprage"), (2, "T2 tse"), (3, "T1 post")):
        tags = {"SeriesNumber": number, "SeriesDescription": name}
        write_series(tmp_path / "in" / f"S{number}", uid=f"1.1.{number}", seed=number, **tags)
    return tmp_path / "in"


def test_a_description_chooses_series_and_the_others_change_no_exit_code(
    predict: Callable[..., int], make_bundle: MakeBundle, study: Path, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (study / "report.pdf").write_bytes(b"%PDF-1.7")
    assert predict(study, "--bundle", make_bundle(), "--series-description", "^t1") == 0
    assert sorted(path.name for path in out.glob("*_seg.nii.gz")) == ["S1_seg.nii.gz", "S3_seg.nii.gz"]
    assert {name: entry["status"] for name, entry in record(out).items()} == {
        "S1": "ok",
        "S3": "ok",
        "series 2 'T2 tse'": "skipped",
        "report.pdf": "skipped",
    }
    shown = capsys.readouterr()
    assert "2 skipped (no candidates; listed in predict.json)" in shown.out
    assert "series 2 'T2 tse': skipped: not chosen by --series-description" in shown.err


def test_a_description_that_nothing_matches_fails_and_one_too_many_cannot_be_understood(
    predict: Callable[..., int], make_bundle: MakeBundle, study: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = make_bundle()
    assert predict(study, "--bundle", bundle, "--series-description", "flair") == 1
    assert "there are series 1 'T1 mprage', series 2 'T2 tse', series 3 'T1 post'" in capsys.readouterr().err
    assert predict(study, "--bundle", bundle, "--series-description", "t1", "--series-description", "t2") == 2
    assert predict(study, "--bundle", bundle, "--series-description", "(") == 2


def test_an_image_that_the_model_cannot_know_gets_no_mask_without_force(
    predict: Callable[..., int],
    make_bundle: MakeBundle,
    tmp_path: Path,
    out: Path,
    plant: Plant,
    save: Save,
    capsys: pytest.CaptureFixture[str],
) -> None:
    image, label = plant()
    bundle = make_bundle()
    extent = {"min": [20, 18, 14], "max": [26, 22, 18]}
    document = {"cases": 8, "image": {"extent_mm": extent, "spacing_mm": {"min": [1, 1, 1], "max": [1, 1, 2]}}}
    (bundle / "training_statistics.json").write_text(json.dumps(document))
    save(tmp_path / "in" / "crop.nii.gz", image)
    save(tmp_path / "in" / "head.nii.gz", np.pad(image, ((0, 60), (0, 60), (0, 40))))
    assert predict(tmp_path / "in", "--bundle", bundle) == 1
    shown = capsys.readouterr()
    assert "1 segmented" in shown.out
    assert "1 out of domain" in shown.out
    (line,) = [line for line in shown.err.splitlines() if line.startswith("head: ")]
    assert line.startswith("head: out of domain: field of view of 84 x 80 x 56 mm")
    assert "trained on images of 20-26 x 18-22 x 14-18 mm with anterior, posterior" in line
    assert "--force" in line
    assert sorted(path.name for path in out.glob("*_seg*")) == ["crop_seg.json", "crop_seg.nii.gz"]
    assert record(out)["head"]["status"] == "out_of_domain"
    assert predict(tmp_path / "in", "--bundle", bundle, "--force") == 0
    np.testing.assert_array_equal(labels(out, "crop"), label)
    assert labels(out, "head").shape == (84, 80, 56)
    assert record(out)["head"]["status"] == "ok"


# --- how it is computed ---


def network(seed: int) -> nn.Conv3d:
    """Return a convolution that looks to one side, so that a mirrored view says something else."""
    made = nn.Conv3d(1, 3, 3, padding=1)
    generator = torch.Generator().manual_seed(seed)
    for parameter in made.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator)
    return made


@torch.no_grad()
def probabilities(image: np.ndarray, views: list[tuple[nn.Module, bool]]) -> torch.Tensor:
    """Return the mean over views (network, whether mirrored along the first axis), worked out on the whole image."""
    given = torch.from_numpy((image - image.mean()) / image.std())[None, None].float()
    each = []
    for net, mirrored in views:
        scores = net(given.flip(2)).flip(2) if mirrored else net(given)
        each.append(scores[0].softmax(0))
    return torch.stack(each).mean(0)


def as_labels(mean: torch.Tensor) -> np.ndarray:
    return np.array([0, 3, 7], np.uint8)[mean.argmax(0).numpy()]


@pytest.fixture
def scan(tmp_path: Path, save: Save) -> tuple[Path, np.ndarray]:
    image = np.random.default_rng(3).normal(100, 20, (18, 16, 14)).astype(np.float32)
    return save(tmp_path / "scan.nii.gz", image), image


@pytest.fixture
def conv_bundle(make_bundle: MakeBundle) -> Path:
    bundle = make_bundle(network_def=CONV)
    torch.save(network(0).state_dict(), bundle / "models" / "model.pt")
    return bundle


def test_mirror_averages_the_probabilities_of_both_sides(
    predict: Callable[..., int], conv_bundle: Path, scan: tuple[Path, np.ndarray], out: Path
) -> None:
    path, image = scan
    assert predict(path, "--bundle", conv_bundle) == 0
    np.testing.assert_array_equal(labels(out), as_labels(probabilities(image, [(network(0), False)])))
    assert predict(path, "--bundle", conv_bundle, "--mirror") == 1  # never taken for the result without
    assert "--overwrite" in record(out)["scan"]["remedy"]
    assert predict(path, "--bundle", conv_bundle, "--mirror", "--overwrite") == 0
    both = as_labels(probabilities(image, [(network(0), False), (network(0), True)]))
    np.testing.assert_array_equal(labels(out), both)
    assert not np.array_equal(both, as_labels(probabilities(image, [(network(0), False)])))


def test_several_checkpoints_are_averaged(
    predict: Callable[..., int], conv_bundle: Path, scan: tuple[Path, np.ndarray], out: Path, tmp_path: Path
) -> None:
    path, image = scan
    files = [tmp_path / f"fold_{seed}.pt" for seed in (1, 2)]
    for seed, file in zip((1, 2), files, strict=True):
        torch.save(network(seed).state_dict(), file)
    assert predict(path, "--bundle", conv_bundle, "--checkpoint", files[0], "--checkpoint", files[1]) == 0
    mean = as_labels(probabilities(image, [(network(1), False), (network(2), False)]))
    np.testing.assert_array_equal(labels(out), mean)
    assert not np.array_equal(mean, as_labels(probabilities(image, [(network(1), False)])))


@pytest.mark.parametrize("damage", ["missing", "damaged", "of another network"])
def test_a_checkpoint_that_cannot_be_used_ends_with_code_3(
    predict: Callable[..., int],
    conv_bundle: Path,
    scan: tuple[Path, np.ndarray],
    tmp_path: Path,
    damage: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    second = tmp_path / "second.pt"
    if damage == "damaged":
        second.write_bytes(b"x")
    elif damage == "of another network":
        torch.save(nn.Conv3d(1, 4, 3).state_dict(), second)
    given = ["--checkpoint", conv_bundle / "models" / "model.pt", "--checkpoint", second]
    assert predict(scan[0], "--bundle", conv_bundle, *given) == 3
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("droseg: error")]
    assert str(second) in line


# --- what is written ---


def test_probabilities_sum_to_one_and_their_largest_is_the_label(
    predict: Callable[..., int], conv_bundle: Path, scan: tuple[Path, np.ndarray], out: Path
) -> None:
    path, image = scan
    assert predict(path, "--bundle", conv_bundle, "--probabilities") == 0
    written = nib.load(out / "scan_prob.nii.gz")
    values = written.get_fdata()
    assert values.shape == (*image.shape, 3)
    np.testing.assert_array_equal(written.affine, nib.load(path).affine)
    np.testing.assert_allclose(values.sum(-1), 1, rtol=0, atol=3 * 0.5 / 255 + 1e-3)  # steps of 1/255
    truth = probabilities(image, [(network(0), False)]).numpy()
    np.testing.assert_allclose(np.moveaxis(values, -1, 0), truth, rtol=0, atol=0.5 / 255 + 1e-3)
    chosen = np.array([0, 3, 7])[values.argmax(-1)]
    clear = np.diff(np.sort(values, -1)[..., -2:])[..., 0] > 0.01
    assert clear.mean() > 0.9
    np.testing.assert_array_equal(chosen[clear], labels(out)[clear])
    sidecar = json.loads((out / "scan_seg.json").read_text())
    assert sidecar["probabilities"] == ["background", "anterior", "posterior"]


def test_the_overview_is_written_unless_it_is_not_wanted(
    predict: Callable[..., int], make_bundle: MakeBundle, tmp_path: Path, out: Path, plant: Plant, save: Save
) -> None:
    path, bundle = save(tmp_path / "scan.nii", plant()[0]), make_bundle()
    assert predict(path, "--bundle", bundle, "--no-overview") == 0
    files = {"predict.json", "scan_seg.json", "scan_seg.nii.gz", "volumes.csv"}
    assert {item.name for item in out.iterdir()} == files
    assert predict(path, "--bundle", bundle, "--overwrite") == 0
    assert {item.name for item in out.iterdir()} == files | {"overview", "overview.html"}


def test_at_most_three_flags_of_a_case_are_shown_and_all_are_recorded(
    predict: Callable[..., int],
    make_bundle: MakeBundle,
    tmp_path: Path,
    out: Path,
    plant: Plant,
    save: Save,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path, bundle = save(tmp_path / "scan.nii", plant()[0]), make_bundle()
    anterior = {"volume_ml": {"min": 5, "max": 9}, "border_share": {"min": -1, "max": -1}}
    document = {
        "cases": 8,
        "image": {"spacing_mm": {"min": [0.4, 0.4, 0.4], "max": [0.5, 0.5, 0.5]}},
        "structures": {"anterior": anterior, "posterior": {"volume_ml": {"min": 0.01, "max": 0.02}}},
    }
    (bundle / "training_statistics.json").write_text(json.dumps(document))
    assert predict(path, "--bundle", bundle) == 0
    flags = record(out)["scan"]["flags"]
    assert [flag["name"] for flag in flags] == ["cut_by_field_of_view", "volume_low", "volume_high", "spacing"]
    lines = capsys.readouterr().err.splitlines()
    start = next(index for index, line in enumerate(lines) if line.startswith("scan: done in "))
    assert lines[start + 1 : start + 4] == [f"  look: {flag['message']}" for flag in flags[:3]]
    assert lines[start + 4] == "  and 1 more flag in predict.json"
    assert not any(flags[3]["message"] in line for line in lines)


def test_names_that_no_terminal_can_show_are_spelled_out_and_cost_only_themselves(
    predict: Callable[..., int],
    make_bundle: MakeBundle,
    tmp_path: Path,
    out: Path,
    plant: Plant,
    save: Save,
    write_series: WriteSeries,
    capfd: pytest.CaptureFixture[str],
) -> None:
    folder = tmp_path / "in"
    save(folder / "good.nii.gz", plant()[0])
    try:
        (folder / os.fsdecode(b"caf\xe9.nii.gz")).write_bytes((folder / "good.nii.gz").read_bytes())  # Latin-1
    except OSError:
        pytest.skip("skipped: this file system takes UTF-8 only")
    (folder / "two\nlines \x1b[31mred.txt").write_bytes(b"x")
    write_series(folder / "scout", ImageType=["ORIGINAL", "LOCALIZER"], SeriesDescription="a\x1b[2Jscout")
    assert main(["predict", "--list", str(folder)]) == 0
    table = capfd.readouterr().out
    assert "caf\\udce9" in table
    assert "two\\nlines \\x1b[31mred.txt" in table
    assert predict(folder, "--bundle", make_bundle()) == 1
    shown = capfd.readouterr()
    assert "1 segmented" in shown.out
    (line,) = [line for line in shown.err.splitlines() if line.startswith("caf\\udce9: failed: ")]
    assert "cannot be a file name; rename the case" in line
    assert "two\\nlines \\x1b[31mred.txt: skipped: not an image (.txt)" in shown.err.splitlines()
    assert not set(table + shown.out + shown.err) & {"\x1b", "\udce9"}
    page = (out / "overview.html").read_text(encoding="utf-8")
    assert "caf\\udce9" in page
    assert "\x1b" not in page
    assert {name: entry["status"] for name, entry in record(out).items()} == {
        "good": "ok",
        "caf\udce9": "failed",
        "two\nlines \x1b[31mred.txt": "skipped",
        "series 3 'a [2Jscout'": "skipped",
    }


def test_results_are_never_segmented_again_and_files_of_one_kind_take_few_lines(
    predict: Callable[..., int],
    make_bundle: MakeBundle,
    tmp_path: Path,
    plant: Plant,
    save: Save,
    capfd: pytest.CaptureFixture[str],
) -> None:
    folder, bundle = tmp_path / "in", make_bundle()
    save(folder / "scan.nii.gz", plant()[0])
    save(folder / "by_hand_seg.nii.gz", plant()[0])  # so called by somebody else
    assert main(["predict", str(folder), "--bundle", str(bundle), "--out", str(folder / "earlier")]) == 0
    for number in range(9):
        (folder / f"note{number}.txt").write_text("x")
    capfd.readouterr()
    assert predict(folder, "--bundle", bundle) == 0
    shown = capfd.readouterr()
    assert "2 segmented" in shown.out
    assert "scan_seg.nii.gz: skipped: a result of droseg" in shown.err
    assert shown.err.count("skipped: not an image (.txt)") == 3


# --- exit codes ---


def test_what_cannot_be_understood_is_code_2_in_one_line(
    predict: Callable[..., int],
    make_bundle: MakeBundle,
    tmp_path: Path,
    out: Path,
    plant: Plant,
    save: Save,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("DROSEG_BUNDLE", raising=False)
    path, bundle = save(tmp_path / "scan.nii", plant()[0]), make_bundle()
    given = (path, "--bundle", bundle)
    for words, message in (
        ((path,), "no bundle; give --bundle"),
        ((*given, "--overlap", "1"), "overlap is 1.0"),
        ((*given, "--memory-gb", "0"), "memory_gb is 0.0"),
        ((*given, "--device", "cuda:77"), "cuda:77"),
        ((*given, "--precision", "fp16"), "fp16"),
        ((tmp_path / "nothing.nii", "--bundle", bundle), "nothing.nii (no such file)"),
    ):
        assert main(["predict", "--device", "cpu", *map(str, words), "--out", str(out)]) == 2
        (line,) = capsys.readouterr().err.strip().splitlines()
        assert line.startswith("droseg: error: ")
        assert message in line
    assert main(["predict", str(path), "--bundle", str(bundle)]) == 2
    assert "give --out DIR" in capsys.readouterr().err
    for words in (["--case-timeout", "0"], ["--case-timeout", "soon"], ["--precision", "int8"], ["--no-such-option"]):
        with pytest.raises(SystemExit) as ended:
            predict(*given, *words)
        assert ended.value.code == 2
    assert not list(out.glob("*_seg*"))
