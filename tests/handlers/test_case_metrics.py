"""Case metrics in a real evaluator: real spacing, groups, failures that count, and the table on disk."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from ignite.engine import Engine, Events
from monai.data import DataLoader, Dataset, MetaTensor
from monai.engines import SupervisedEvaluator
from monai.transforms import Activationsd, AsDiscreted, Compose

from droseg.data import Case
from droseg.data.items import own_share
from droseg.data.transforms import RegionsToLabelsd
from droseg.handlers import CaseMetricsHandler
from droseg.metrics import case_metrics
from droseg.report import read_cases, write_report

SPACING_MM = (0.8, 1.0, 3.0)
SHAPE = (12, 10, 6)
DIAGONAL_MM = float(np.linalg.norm(np.array(SPACING_MM) * SHAPE))
CASES = (
    Case("a1", "pa", (), None, {"anatomy": "typical", "protocol": "x"}),
    Case("a2", "pb", (), None, {"anatomy": "typical", "protocol": "y"}),
    Case("b1", "pc", (), None, {"anatomy": "rare", "protocol": "x"}),
    Case("b2", "pc", (), None, {"anatomy": "rare"}),  # not known on one axis
)
STRUCTURES = {"cortex": 1, "stem": 2}


def oblique_affine() -> torch.Tensor:
    """An affine with anisotropic spacing whose axes are turned by 30 degrees."""
    turn = np.array([[np.cos(0.5236), -np.sin(0.5236), 0], [np.sin(0.5236), np.cos(0.5236), 0], [0, 0, 1]])
    affine = np.eye(4)
    affine[:3, :3] = turn @ np.diag(SPACING_MM)
    affine[:3, 3] = [5, -7, 11]
    return torch.from_numpy(affine)


def label_and_pred(case_id: str) -> tuple[np.ndarray, np.ndarray]:
    label, pred = np.zeros(SHAPE, dtype=int), np.zeros(SHAPE, dtype=int)
    label[2:7, 2:7, 1:4] = 1
    label[8:11, 2:7, 1:4] = 2
    if case_id == "a1":
        pred = label.copy()
    elif case_id == "a2":
        pred[2:7, 2:7, 2:5] = 1  # one 3 mm slice off
        pred[8:11, 2:7, 1:4] = 2
    elif case_id == "b1":
        pred[2:7, 2:7, 1:4] = 1  # the stem is missed
    else:
        label[label == 2] = 0  # no stem in the reference, none predicted
        pred[2:7, 3:8, 1:4] = 1  # 1 mm off
    return label, pred


def evaluate(tmp_path: Path, batch_size: int = 1, epochs: int = 1, **options) -> tuple[dict, CaseMetricsHandler]:
    """Run MONAI's evaluator on a network that returns the wanted prediction: its logits are the image."""
    items = []
    for case in CASES:
        label, pred = label_and_pred(case.case_id)
        logits = np.stack([pred == value for value in range(3)]).astype(np.float32)
        items.append(
            {
                "image": MetaTensor(torch.from_numpy(logits), affine=oblique_affine()),
                "label": MetaTensor(torch.from_numpy(label[None].astype(np.float32)), affine=oblique_affine()),
                "case_id": case.case_id,
            }
        )
    options = {"cases": CASES, "structures": STRUCTURES, **options}
    handler = CaseMetricsHandler(output=tmp_path / "out" / "case_metrics.csv", **options)
    evaluator = SupervisedEvaluator(
        device=torch.device("cpu"),
        val_data_loader=DataLoader(Dataset(items), batch_size=batch_size),
        network=torch.nn.Identity(),
        postprocessing=AsDiscreted("pred", argmax=True),
        val_handlers=[handler],
    )
    for epoch in range(1, epochs + 1):
        evaluator.run(epoch)
    return evaluator.state.metrics, handler


@pytest.mark.parametrize("batch_size", [1, 3])
def test_rows_are_the_metrics_of_the_arrays_in_the_spacing_of_the_affine(tmp_path, batch_size):
    _, handler = evaluate(tmp_path, batch_size)
    for case in CASES:
        rows = handler.table[handler.table["case_id"] == case.case_id].reset_index(drop=True)
        label, pred = label_and_pred(case.case_id)
        expected = case_metrics(pred, label, {1: "cortex", 2: "stem"}, spacing_mm=SPACING_MM)
        pd.testing.assert_frame_equal(rows[expected.columns], expected, rtol=1e-6)
        assert set(rows["patient_id"]) == {case.patient_id}
        assert rows["diagonal_mm"].tolist() == pytest.approx([DIAGONAL_MM] * 2, rel=1e-6)


def test_values_of_groups_count_a_missed_structure_as_failure(tmp_path):
    metrics, _ = evaluate(tmp_path)
    # Dice by hand: a2 cortex shares 2 of 3 slices, b2 cortex 4 of 5 columns; a mean over structures, then over cases.
    a1, a2, b1, b2 = 1.0, (2 / 3 + 1.0) / 2, (1.0 + 0.0) / 2, 0.8
    expected = {
        "val_dice/all": (a1 + a2 + b1 + b2) / 4,
        "val_dice/anatomy=typical": (a1 + a2) / 2,
        "val_dice/anatomy=rare": (b1 + b2) / 2,
        "val_dice/protocol=x": (a1 + b1) / 2,
        "val_dice/protocol=y": a2,
        "val_dice/worst_group": (b1 + b2) / 2,
        "val_dice/structure=cortex": (1 + 2 / 3 + 1 + 0.8) / 4,
        "val_dice/structure=stem": (1 + 1 + 0) / 3,
        # The missed stem is as far off as the image is large; one slice is 3 mm, one column 1 mm.
        "val_hd_mm/all": (0.0 + 3.0 / 2 + DIAGONAL_MM / 2 + 1.0) / 4,
        "val_hd_mm/anatomy=rare": (DIAGONAL_MM / 2 + 1.0) / 2,
        "val_hd_mm/worst_group": (DIAGONAL_MM / 2 + 1.0) / 2,
        "val_hd_mm/structure=stem": (0.0 + 0.0 + DIAGONAL_MM) / 3,
        "val_hd95_mm/protocol=y": 3.0 / 2,
    }
    assert {name: metrics[name] for name in expected} == pytest.approx(expected, rel=1e-6)


def test_the_table_on_disk_has_the_contracts_columns_in_order(tmp_path):
    evaluate(tmp_path)
    lines = (tmp_path / "out" / "case_metrics.csv").read_text().splitlines()
    assert lines[0] == (
        "case_id,patient_id,structure,dice,hd_mm,hd95_mm,assd_mm,nsd,volume_ref_ml,volume_pred_ml,"
        "anatomy,protocol,diagonal_mm"
    )
    assert len(lines) == 1 + 2 * 4
    table = pd.read_csv(tmp_path / "out" / "case_metrics.csv").set_index(["case_id", "structure"])
    assert table.loc[("b1", "stem"), "dice"] == 0.0
    assert np.isnan(table.loc[("b1", "stem"), "hd_mm"]), "undefined is an empty field"
    assert np.isnan(table.loc[("b2", "stem"), "dice"])
    assert table.loc[("b1", "stem"), "volume_pred_ml"] == 0.0
    assert table.loc[("b1", "stem"), "volume_ref_ml"] == pytest.approx(3 * 5 * 3 * 0.8 * 1.0 * 3.0 / 1000, rel=1e-6)
    assert pd.isna(table.loc[("b2", "cortex"), "protocol"])


def test_each_validation_starts_with_an_empty_table(tmp_path):
    metrics, handler = evaluate(tmp_path, epochs=3)
    assert len(handler.table) == 8
    assert metrics["val_dice/protocol=y"] == pytest.approx((2 / 3 + 1.0) / 2)


def test_axes_and_metrics_can_be_chosen(tmp_path):
    metrics, handler = evaluate(tmp_path, axes=["protocol"], metrics=["dice"], prefix="test_")
    assert metrics["test_dice/worst_group"] == pytest.approx((1.0 + 0.5) / 2)
    assert not any("anatomy" in name or "hd" in name for name in metrics)
    assert "hd95_mm" not in handler.table


def test_every_group_value_is_the_one_of_the_reports_table(tmp_path):
    axes = ["anatomy", "protocol", "anatomy*protocol"]
    names = {"dice": ("dice", "dice_p10", "p10"), "hd95_mm": ("hd95_mm", "hd95_p90_mm", "p90")}
    metrics, _ = evaluate(tmp_path, axes=axes, metrics=list(names))
    cases = read_cases([tmp_path / "out" / "case_metrics.csv"], axes=["anatomy", "protocol"])
    write_report(cases, tmp_path / "report", axes=axes, num_bootstrap=0)
    expected = {}
    for row in pd.read_csv(tmp_path / "report" / "subgroups_penalized.csv").to_dict("records"):
        if row["structure"] == "mean":
            group = "all" if row["axis"] == "all" else f"{row['axis']}={row['group']}"
        elif row["axis"] == "all":
            group = f"structure={row['structure']}"
        else:
            continue
        mean, tail, column = names[row["metric"]]
        expected |= {f"val_{mean}/{group}": row["mean"], f"val_{tail}/{group}": row[column]}
    assert "val_dice_p10/anatomy*protocol=typical * y" in expected
    found = {name: value for name, value in metrics.items() if not name.endswith("/worst_group")}
    assert found == pytest.approx(expected, rel=1e-9)
    groups = {name: value for name, value in found.items() if "=" in name and "structure=" not in name}
    assert metrics["val_dice_p10/worst_group"] == min(value for name, value in groups.items() if "_p10/" in name)
    assert metrics["val_hd95_p90_mm/worst_group"] == max(value for name, value in groups.items() if "_p90_" in name)


def test_a_product_of_axes_is_no_column_of_the_table_on_disk(tmp_path):
    evaluate(tmp_path, axes=["anatomy*protocol"], metrics=["dice"])
    table = pd.read_csv(tmp_path / "out" / "case_metrics.csv")
    assert [c for c in table.columns if "anatomy" in c or "protocol" in c] == ["anatomy", "protocol"]


@pytest.mark.parametrize("num_cases", [1, 2, 5, 9])
@pytest.mark.parametrize("ranks", [1, 2, 3, 4])
def test_ranks_share_the_cases_evenly_and_none_stays_without(num_cases, ranks):
    shares = [own_share(range(num_cases), rank, ranks) for rank in range(ranks)]
    sizes = [len(share) for share in shares]
    assert max(sizes) - min(sizes) <= 1
    assert min(sizes) >= 1  # MONAI's evaluator would skip an empty share, and the other ranks wait for it
    assert {case for share in shares for case in share} == set(range(num_cases))
    assert sum(sizes) == max(num_cases, ranks)
    assert own_share([], 0, ranks) == []


def test_without_groups_the_worst_group_is_all(tmp_path):
    metrics, _ = evaluate(tmp_path, axes=[])
    assert metrics["val_dice/worst_group"] == metrics["val_dice/all"]


def test_in_a_training_the_validated_epoch_is_the_trainers(run_factory, tmp_path):
    run = run_factory(tmp_path, epochs=3)
    epochs = []
    run.trainer.add_event_handler(
        Events.EPOCH_COMPLETED, lambda: epochs.append((run.trainer.state.epoch, run.validator.state.epoch))
    )
    run.trainer.run()
    assert epochs == [(1, 1), (2, 2), (3, 3)]
    assert set(run.metrics.table["case_id"]) == {f"val{index}" for index in range(4)}


def test_regions_may_overlap_and_each_has_its_own_tolerance(tmp_path):
    regions, tolerance_mm = {"whole": [1, 2], "stem": 2}, {"whole": 0.5, "stem": 5.0}
    _, handler = evaluate(tmp_path, structures=regions, nsd_tolerance_mm=tolerance_mm)
    for case in CASES:
        rows = handler.table[handler.table["case_id"] == case.case_id].reset_index(drop=True)
        label, pred = label_and_pred(case.case_id)
        union = case_metrics(pred > 0, label > 0, {1: "whole"}, SPACING_MM, 0.5)
        stem = case_metrics(pred == 2, label == 2, {1: "stem"}, SPACING_MM, 5.0)
        expected = pd.concat([union, stem], ignore_index=True)
        pd.testing.assert_frame_equal(rows[expected.columns], expected, rtol=1e-6)


def test_cases_that_the_evaluation_did_not_reach_are_in_the_record(tmp_path):
    more = Case("c1", "pd", (), None, {"anatomy": "rare"})
    evaluate(tmp_path, cases=(*CASES, more), record={"section": "testing"})
    record = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert record["scored"] == 4
    assert record["not_scored"] == {"c1": "the evaluation did not come to it."}
    assert record["section"] == "testing"


def test_without_a_record_only_the_table_is_written(tmp_path):
    evaluate(tmp_path)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["case_metrics.csv"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"structures": {"a": 1, "b": [1, 1]}}, "'a' and 'b' have the same label values"),
        ({"nsd_tolerance_mm": {"cortex": 1.0}}, "nsd_tolerance_mm has no value for stem"),
        ({"nsd_tolerance_mm": -1.0}, "must be >= 0"),
    ],
)
def test_regions_and_tolerances_that_cannot_be_used_are_refused_at_once(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        evaluate(tmp_path, **options)


def region_masks(case_id: str) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Prediction and reference of a region inside another; in b2 the inner one is predicted where there is none."""
    label, pred = label_and_pred(case_id)
    if case_id == "b2":
        pred[8:11, 2:7, 1:4] = 2
    return ({"whole": each > 0, "stem": each == 2} for each in (pred, label))


@pytest.mark.parametrize("painted", [False, True])
def test_regions_are_scored_as_their_own_masks_as_channels_or_painted(tmp_path, painted):
    structures = {"whole": [1, 2], "stem": 2}
    items = []
    for case in CASES:
        pred, label = (np.stack(list(each.values())).astype(np.float32) for each in region_masks(case.case_id))
        scores, reference = (
            MetaTensor(torch.from_numpy(each), affine=oblique_affine()) for each in (20 * pred - 10, label)
        )
        items.append({"image": scores, "label": reference, "case_id": case.case_id})
    transforms = [Activationsd("pred", sigmoid=True), AsDiscreted("pred", threshold=0.5)]
    handler = CaseMetricsHandler(CASES, structures if painted else {"whole": 1, "stem": 2})
    evaluator = SupervisedEvaluator(
        device=torch.device("cpu"),
        val_data_loader=DataLoader(Dataset(items), batch_size=1),
        network=torch.nn.Identity(),
        postprocessing=Compose(transforms + [RegionsToLabelsd(["pred", "label"], structures)] * painted),
        val_handlers=[handler],
    )
    evaluator.run()
    table = handler.table.set_index(["case_id", "structure"])
    for case in CASES:
        pred, label = region_masks(case.case_id)
        for name in structures:
            expected = case_metrics(pred[name], label[name], {1: name}, SPACING_MM).iloc[0]
            for column in ("dice", "hd95_mm", "volume_ref_ml", "volume_pred_ml"):
                np.testing.assert_equal(table.loc[(case.case_id, name), column], expected[column])
    # An empty reference region that is predicted: Dice 0, no distance, and in the worst group a failure.
    assert table.loc[("b2", "stem"), "dice"] == 0
    assert np.isnan(table.loc[("b2", "stem"), "hd95_mm"])
    dice = table["dice"].unstack()
    assert evaluator.state.metrics["val_dice/worst_group"] == pytest.approx(dice.loc[["b1", "b2"]].mean(axis=1).mean())
    assert evaluator.state.metrics["val_dice/structure=stem"] == pytest.approx((1 + 1 + 0 + 0) / 4)


def test_channels_that_are_not_one_for_each_structure_are_refused(tmp_path):
    item = {"label": MetaTensor(torch.zeros(2, 4, 4, 4), affine=torch.eye(4)), "case_id": "a1"}
    handler, engine = CaseMetricsHandler(CASES, {"a": 1, "b": 2, "c": 3}), Engine(lambda *_: None)
    engine.state.batch, engine.state.output = [item], [{"pred": torch.zeros(2, 4, 4, 4)}]
    with pytest.raises(ValueError, match=r"2 channels, the label 2; expected .* each of the 3 structures"):
        handler.score(engine)
