"""A bundle's own evaluation of phantoms: regions that overlap, a tolerance for each, the record beside the table."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import torch
from monai.bundle import ConfigWorkflow

from droseg.bundles import shipped_bundles
from droseg.cli import main
from droseg.data.phantoms import generate_phantoms

NETWORK: dict[str, Any] = {"network_def#channels": [4, 8], "network_def#strides": [2], "roi_size": [16, 16, 16]}
STRUCTURES = {"a": 1, "b": 2, "c": 3}
REGIONS = {"whole": [1, 2, 3], "core": [1, 3], "a": 1}
TOLERANCE_MM = {"whole": 4.0, "core": 1.0, "a": 2.0}
OF_THE_PLACE = ("finished", "datalist", "predictions", "bundle")
"""What two evaluations of the same label maps may say differently."""


def evaluate(bundle: str, datalist: Path, out: Path, **overrides: Any) -> tuple[pd.DataFrame, dict[str, Any]]:
    """Run evaluate.yaml of a shipped bundle with a network of random weights."""
    root = shipped_bundles()[bundle]
    out.mkdir()
    options = {"spacing_mm": [3.0, 3.0, 3.0], "device": "$torch.device('cpu')", "structures": STRUCTURES, **NETWORK}
    options["channels"] = ["T2w"]
    evaluation = ConfigWorkflow(
        [str(root / "configs" / f"{name}.yaml") for name in ("inference", "evaluate")],
        workflow_type="inference",
        run_id="evaluating",
        bundle_root=str(root),
        datalist=str(datalist),
        output_dir=str(out),
        checkpoint=str(out.with_suffix(".pt")),
        **{**options, **overrides},
    )
    torch.manual_seed(0)
    torch.save(evaluation.parser.get_parsed_content("network").state_dict(), out.with_suffix(".pt"))
    evaluation.initialize()
    evaluation.run()
    evaluation.finalize()
    return pd.read_csv(out / "case_metrics.csv"), json.loads((out / "evaluation.json").read_text())


@pytest.fixture(scope="module")
def datalist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the phantoms' datalist with regions that overlap in place of the structures."""
    path = generate_phantoms(tmp_path_factory.mktemp("phantoms"), cases=8, seed=0, size=32)
    content = json.loads(path.read_text())
    others = {f"other_{value}": value for value in range(4, 8)}
    path.write_text(json.dumps({**content, "structures": {**REGIONS, **others}}))
    return path


@pytest.mark.parametrize("bundle", ["fetal_brain_mri", "hippocampus_mri"])  # of one channel
def test_a_bundle_scores_overlapping_regions_and_records_it_as_droseg_evaluate_does(
    bundle: str, datalist: Path, tmp_path: Path
) -> None:
    table, record = evaluate(
        bundle, datalist, tmp_path / "own", scored_structures=REGIONS, nsd_tolerance_mm=TOLERANCE_MM
    )
    tolerances = [f"{name}={value}" for name, value in TOLERANCE_MM.items()]
    line = ["evaluate", "--datalist", str(datalist), "--pred", str(tmp_path / "own"), "--out", str(tmp_path / "again")]
    assert main([*line, "--structures", *REGIONS, "--nsd-tolerance-mm", *tolerances]) == 0
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path / "again/case_metrics.csv"), table, rtol=1e-6)
    expected = json.loads((tmp_path / "again/evaluation.json").read_text())
    assert list(record) == list(expected)
    assert {k: v for k, v in record.items() if k not in OF_THE_PLACE} == {
        k: v for k, v in expected.items() if k not in OF_THE_PLACE
    }
    assert record["structures"] == {"whole": [1, 2, 3], "core": [1, 3], "a": [1]}
    assert record["nsd_tolerance_mm"] == TOLERANCE_MM
    assert (record["bundle"], record["datalist"]) == (str(shipped_bundles()[bundle]), str(datalist))
    assert record["predictions"] == str(tmp_path / "own")
    # By hand, from the files.
    case = json.loads(datalist.read_text())["testing"][0]
    pred, label = (
        np.asarray(nib.load(path).dataobj)
        for path in (tmp_path / "own" / f"{case['case_id']}_seg.nii.gz", datalist.parent / case["label"])
    )
    for region, values in REGIONS.items():
        masks = [np.isin(array, values) for array in (pred, label)]
        dice = 2 * (masks[0] & masks[1]).sum() / (masks[0].sum() + masks[1].sum())
        row = table[(table["case_id"] == case["case_id"]) & (table["structure"] == region)]
        assert row["dice"].item() == pytest.approx(dice, rel=1e-9)


def test_unless_told_otherwise_a_bundle_scores_its_structures_at_1_mm(datalist: Path, tmp_path: Path) -> None:
    table, record = evaluate("fetal_brain_mri", datalist, tmp_path / "own")
    assert list(dict.fromkeys(table["structure"])) == list(STRUCTURES)
    assert record["structures"] == {"a": [1], "b": [2], "c": [3]}
    assert record["nsd_tolerance_mm"] == {"a": 1.0, "b": 1.0, "c": 1.0}
    assert record["scored"] == table["case_id"].nunique()
    assert record["not_scored"] == {}
