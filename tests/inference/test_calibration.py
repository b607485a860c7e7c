"""Thresholds and counts against those by hand; the whole command on a bundle whose answer is known."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from droseg.cli import main
from droseg.inference import QualityRules
from droseg.inference.calibration import (
    ScoredCase,
    calibrate,
    choose_threshold,
    flag_counts,
    held_out_flags,
    quality_table,
)
from droseg.inference.degradations import ALL_KINDS, degrade

MakeBundle = Callable[..., Path]
Plant = Callable[..., tuple[np.ndarray, np.ndarray]]
Save = Callable[..., Path]


def case(patient: int, entropy: float, dice: float, kind: str = "natural") -> ScoredCase:
    return ScoredCase(f"p{patient}", kind, dice, {"high_entropy": entropy})


def test_the_threshold_with_the_best_f1_is_found_by_hand() -> None:
    scores = np.array([1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12.0])
    failed = np.array([0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 1], dtype=bool)
    # Above 9.5 are both failures and one of 10 good cases: F1 = 2 * 2 / (3 + 2); above 11.5 one failure: 2 / (1 + 2).
    chosen = choose_threshold(scores, failed, None)
    assert chosen.value == 9.5
    assert "0.80" in chosen.rule


def test_no_more_than_a_tenth_of_the_good_cases_is_flagged_whatever_f1_says() -> None:
    scores = np.array([1, 2, 3, 4, 5, 6, 7, 8, 9.0])
    failed = np.array([0, 0, 0, 0, 1, 1, 0, 1, 1], dtype=bool)
    # Above 4.5: 4 failures, 1 of 5 good (20 %), F1 0.89; above 7.5: 2 failures, no good case, F1 0.67.
    assert choose_threshold(scores, failed, None).value == 7.5


def test_without_failures_it_is_the_95th_percentile_and_says_so() -> None:
    chosen = choose_threshold(np.arange(101.0), np.zeros(101, dtype=bool), None)
    assert chosen.value == 95.0
    assert chosen.rule.startswith("no case failed: 95%")


def test_a_score_that_tells_nothing_is_never_a_flag() -> None:
    scores, failed = np.array([1.0, 2, 3, 4]), np.array([True, False, False, False])
    assert choose_threshold(scores, failed, None).value is None
    assert choose_threshold(np.array([np.nan]), np.array([True]), None).value is None


def test_a_volume_inside_the_training_range_is_never_a_flag() -> None:
    scores, failed = np.array([0.5, 0.6, 0.9, 0.95]), np.array([False, False, True, True])
    assert choose_threshold(scores, failed, 1.0, least=1.0).value == 1.0


def test_precision_and_recall_are_those_by_hand_with_wilsons_interval() -> None:
    flagged = np.array([1] * 10 + [0] * 10, dtype=bool)
    failed = np.array([1] * 8 + [0] * 2 + [1] * 8 + [0] * 2, dtype=bool)
    counts = flag_counts(flagged, failed)
    assert (counts["flagged"], counts["failures"], counts["hits"], counts["n"]) == (10, 16, 8, 20)
    assert counts["precision"] == pytest.approx([0.8, 0.4902, 0.9433], abs=1e-4)  # Wilson 1927, for 8 of 10
    assert counts["recall"] == pytest.approx([0.5, 0.2800, 0.7200], abs=1e-4)  # for 8 of 16
    assert flag_counts(~flagged & flagged, failed)["precision"] is None
    assert flag_counts(flagged, failed & ~failed)["recall"] is None


def test_no_patient_chooses_the_threshold_it_is_judged_by() -> None:
    # The failure of patient 0 alone would put the threshold at 5.5; without it no other case fails, and the threshold
    # is a percentile of the others, which all have 1.
    cases = [case(0, 10.0, 0.2), *[case(i, 1.0, 0.9) for i in range(1, 10)]]
    assert "high_entropy" in held_out_flags(cases, 0.7)[0]
    # Patient 0 has two failed images of low entropy, the others fail by high entropy: the threshold for patient 0 is
    # that of the others, so both of its failures are missed though a threshold of 0 would catch them.
    cases = [case(0, 0.1, 0.2), case(0, 0.2, 0.2), *[case(i, 1.0, 0.9) for i in range(1, 9)], case(9, 5.0, 0.1)]
    raised = held_out_flags(cases, 0.7)
    assert raised[:2] == [set(), set()]
    assert raised[-1] == set()  # without patient 9, no threshold tells failed from good: never


def test_the_document_counts_natural_and_degraded_apart() -> None:
    good = [case(i, 0.1, 0.9) for i in range(20)]
    bad = [case(i, 0.8, 0.3, "noise") for i in range(8)] + [case(i, 0.1, 0.9, "cut") for i in range(8, 12)]
    document = json.loads(json.dumps(calibrate([*good, *bad], 0.7)))
    assert document["cases"] == {
        "natural": {"n": 20, "failures": 0},
        "degraded": {"n": 12, "failures": 8},
        "all": {"n": 32, "failures": 8},
    }
    assert document["degradations"] == {"cut": {"n": 4, "failures": 0}, "noise": {"n": 8, "failures": 8}}
    assert document["thresholds"]["high_entropy"] == pytest.approx(0.45)
    degraded = document["flags"]["high_entropy"]["degraded"]
    assert (degraded["flagged"], degraded["hits"]) == (8, 8)
    assert document["flags"]["high_entropy"]["natural"]["flagged"] == 0
    assert document["flags"]["any"]["all"]["hits"] == 8
    assert "views_disagree" not in document["flags"]  # never measured


def test_a_refused_image_counts_as_flagged() -> None:
    refused = ScoredCase("p", "cut", 0.1, {}, refused=True)
    document = calibrate([refused, case(1, 0.1, 0.9)], 0.7)
    assert document["flags"]["out_of_domain"]["degraded"]["hits"] == 1
    assert document["flags"]["any"]["degraded"]["hits"] == 1


def test_nothing_scored_is_an_error() -> None:
    with pytest.raises(ValueError, match="nothing can be calibrated"):
        calibrate([], 0.7)


@pytest.fixture
def image() -> MetaTensor:
    array = torch.from_numpy(np.random.default_rng(0).uniform(50, 150, (2, 12, 16, 20)).astype(np.float32))
    return MetaTensor(array, affine=torch.diag(torch.tensor([2.0, 1, 3, 1], dtype=torch.float64)))


@pytest.mark.parametrize("kind", ALL_KINDS)
def test_a_degradation_changes_a_copy_the_same_way_for_the_same_seed(image: MetaTensor, kind: str) -> None:
    before = image.as_tensor().clone()
    first, second, other = (degrade(image, kind, np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert torch.equal(image.as_tensor(), before)
    assert torch.equal(first.image.as_tensor(), second.image.as_tensor())
    assert bool(torch.isfinite(first.image.as_tensor()).all())
    kept = before[:, first.box[0], first.box[1], first.box[2]]
    assert first.image.shape == kept.shape
    if kind == "cut":
        assert 0.5 <= kept.numel() / before.numel() <= 0.75
        assert torch.equal(first.image.as_tensor(), kept)
    else:
        assert not torch.equal(first.image.as_tensor(), kept)
        assert not torch.equal(first.image.as_tensor(), other.image.as_tensor())


def test_what_is_left_of_a_cut_image_stays_where_it_was(image: MetaTensor) -> None:
    seen = set()
    for seed in range(12):
        cut = degrade(image, "cut", np.random.default_rng(seed))
        start = np.array([part.start for part in cut.box])
        expected = image.affine.numpy() @ np.append(start, 1)
        np.testing.assert_allclose(cut.image.affine.numpy()[:3, 3], expected[:3])
        seen.add(tuple(start > 0))
    assert len(seen) > 2  # at different ends


def labelled_bundle(
    make_bundle: MakeBundle, folder: Path, plant: Plant, save: Save, count: int = 4
) -> tuple[Path, list[str]]:
    """Return a bundle that is right on planted images, and the options that name a datalist of them."""
    picture, label = plant()
    entries: dict[str, list[dict[str, str]]] = {"training": [], "validation": [], "testing": []}
    for section in entries:
        for index in range(count):
            name = f"{section}_{index}"
            moved = (np.roll(picture, index % 2, axis=0), np.roll(label, index % 2, axis=0))
            save(folder / f"{name}.nii.gz", moved[0])
            save(folder / f"{name}_label.nii.gz", moved[1])
            entries[section].append({"case_id": name, "image": f"{name}.nii.gz", "label": f"{name}_label.nii.gz"})
    path = folder / "datalist.json"
    structures = {"anterior": 3, "posterior": [7, 8]}
    path.write_text(json.dumps({"channels": {"0": "T1w"}, "structures": structures, **entries}))
    return make_bundle(), ["--datalist", str(path), "--device", "cpu"]


def test_the_command_calibrates_a_bundle_and_the_flags_then_say_so(
    make_bundle: MakeBundle, tmp_path: Path, plant: Plant, save: Save, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle, options = labelled_bundle(make_bundle, tmp_path, plant, save)
    assert "not calibrated" in quality_table(bundle)
    assert main(["calibrate", str(bundle), *options, "--degraded", "7", "--remake-statistics"]) == 0
    shown = capsys.readouterr().out
    document = json.loads((bundle / "quality.json").read_text())
    # Perfect on what it knows; noise and inverted contrast break it, and half of an image is half of a structure.
    assert document["cases"]["natural"] == {"n": 4, "failures": 0}
    assert document["cases"]["degraded"]["n"] == 4 * 7
    assert document["degradations"].keys() == set(ALL_KINDS)
    assert document["cases"]["degraded"]["failures"] > 3
    assert document["flags"]["any"]["natural"]["flagged"] == 0
    assert (document["section"], document["patients"], len(document["fingerprint"])) == ("validation", 4, 64)
    assert quality_table(bundle) in shown
    assert "| high_entropy |" in shown
    assert str(tmp_path) not in (bundle / "quality.json").read_text()
    statistics = json.loads((bundle / "training_statistics.json").read_text())
    assert statistics["image"]["extent_mm"]["max"] == [24, 20, 16]
    rules = QualityRules(bundle, {"anterior": 3, "posterior": 7})
    assert rules.thresholds["high_entropy"] == document["thresholds"]["high_entropy"]


def test_calibrating_twice_gives_the_same(make_bundle: MakeBundle, tmp_path: Path, plant: Plant, save: Save) -> None:
    bundle, options = labelled_bundle(make_bundle, tmp_path, plant, save, 2)
    texts = []
    for _ in range(2):
        assert main(["calibrate", str(bundle), *options, "--degraded", "2"]) == 0
        texts.append((bundle / "quality.json").read_text())
    assert texts[0] == texts[1]


def test_an_old_run_is_told_what_is_not_checked(
    make_bundle: MakeBundle, tmp_path: Path, plant: Plant, save: Save, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle, options = labelled_bundle(make_bundle, tmp_path, plant, save, 1)
    assert main(["calibrate", str(bundle), *options, "--degraded", "0"]) == 0
    assert "--remake-statistics" in capsys.readouterr().err


def test_a_case_that_cannot_be_scored_is_named_and_the_others_count(
    make_bundle: MakeBundle, tmp_path: Path, plant: Plant, save: Save, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle, options = labelled_bundle(make_bundle, tmp_path, plant, save, 2)
    (tmp_path / "validation_1.nii.gz").write_bytes(b"no image")
    assert main(["calibrate", str(bundle), *options, "--degraded", "0"]) == 1
    assert "droseg: error: validation_1: " in capsys.readouterr().err
    assert json.loads((bundle / "quality.json").read_text())["cases"]["all"]["n"] == 1


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (["--section", "testing"], "choose thresholds on validation"),
        (["--dice-below", "0"], "--dice-below is 0.0"),
        (["--degraded", "-1"], "--degraded is -1"),
    ],
)
def test_what_would_mislead_is_refused(
    tmp_path: Path, given: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["calibrate", "hippocampus_mri", "--datalist", str(tmp_path / "d.json"), *given]) == 2
    assert words in capsys.readouterr().err


@pytest.mark.real_data
def test_half_of_a_real_hippocampus_is_cut_and_small(real_data: Path, tmp_path: Path) -> None:
    from droseg.data.datalist import Case
    from droseg.data.statistics import measure_structures, training_statistics
    from droseg.inference import Evidence, read_image
    from droseg.metrics.label_maps import read_labels

    structures = {"anterior": 1, "posterior": 2}
    labels = sorted((real_data / "hippocampus" / "labels").glob("hippocampus_*.nii.gz"))[:8]
    images = [real_data / "hippocampus" / "images" / path.name for path in labels]
    cases = [Case(path.name, path.name, (image,), path, {}) for path, image in zip(labels, images, strict=True)]
    statistics: dict[str, Any] = training_statistics(cases, structures)
    (tmp_path / "training_statistics.json").write_text(json.dumps(statistics))
    rules = QualityRules(tmp_path, structures)
    label, affine = read_labels(labels[0])
    image = read_image([images[0]], 1)

    def flagged(part: tuple[slice, ...]) -> set[tuple[str, str]]:
        shown = label[part]
        one_hot = torch.from_numpy(np.stack([shown == value for value in range(3)]).astype(np.float32))
        cropped = MetaTensor(image.as_tensor()[:, part[0], part[1], part[2]], affine=image.affine)
        found = rules.flags(Evidence(cropped, shown, one_hot, (1.0, 1.0, 1.0)))
        return {(flag.name, flag.structure) for flag in found}

    whole = np.s_[:, :, :]
    assert flagged(whole) == set()
    middle = int(np.median(np.nonzero(label == 1)[1]))
    half = np.s_[:, :middle, :]
    assert measure_structures(label[half], affine, structures)["anterior"].border_share > 0.02
    assert {("cut_by_field_of_view", "anterior"), ("volume_low", "anterior")} <= flagged(half)
