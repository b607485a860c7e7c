"""`droseg evaluate` beyond its exit codes: which metrics, which tolerances, what it leaves behind."""

import json

import nibabel as nib
import numpy as np
import pandas as pd
import pytest

from droseg import __version__
from droseg.cli import main
from droseg.metrics import EXTRA_METRICS, METRICS


@pytest.fixture
def evaluate(cohort, tmp_path):
    """Run `droseg evaluate` on the cohort, every prediction moved by one voxel of 1 mm."""
    for i in range(4):
        image = nib.load(tmp_path / f"labels/c{i}.nii.gz")
        moved = nib.Nifti1Image(np.roll(np.asarray(image.dataobj), 1, axis=0), image.affine)
        nib.save(moved, tmp_path / f"pred/c{i}_seg.nii.gz")

    def run(*more):
        folders = ["--pred", str(tmp_path / "pred"), "--out", str(tmp_path / "eval")]
        return main(["evaluate", "--datalist", str(cohort.path), *folders, *more])

    return run


def scored(tmp_path):
    return pd.read_csv(tmp_path / "eval" / "case_metrics.csv")


def test_the_table_has_the_contracts_columns_then_axes_then_the_rest(evaluate, tmp_path):
    assert evaluate() == 0
    header = (tmp_path / "eval" / "case_metrics.csv").read_text().splitlines()[0]
    assert header == (
        "case_id,patient_id,structure,dice,hd_mm,hd95_mm,assd_mm,nsd,volume_ref_ml,volume_pred_ml,"
        "anatomy,volume_error_ml,num_components_ref,num_components_pred,diagonal_mm"
    )
    assert (scored(tmp_path)["num_components_pred"] == 1).all()
    assert (scored(tmp_path)["volume_error_ml"] == 0).all()


def test_percentiles_and_betti_errors_come_on_request(evaluate, tmp_path):
    assert evaluate("--extra-metrics", "hd99.5_mm", "betti0_error") == 0
    table = scored(tmp_path)
    assert (table["hd99.5_mm"] == 1.0).all()
    assert (table["betti0_error"] == 0).all()


def test_tolerances_are_for_all_or_for_one_structure(evaluate, tmp_path):
    def nsd():
        return scored(tmp_path).groupby("structure")["nsd"].min()

    assert evaluate("--nsd-tolerance-mm", "0.5", "posterior=1") == 0
    assert nsd()["posterior"] == 1.0
    assert nsd()["anterior"] < 1.0
    assert evaluate("--nsd-tolerance-mm", "anterior=0.5") == 0  # 1 mm for those not named
    assert nsd()["posterior"] == 1.0
    assert nsd()["anterior"] < 1.0


def test_the_record_says_how_the_table_was_made(evaluate, tmp_path):
    (tmp_path / "pred" / "c2_seg.nii.gz").unlink()
    (tmp_path / "pred" / "c1_seg.nii.gz").write_bytes(b"damaged")
    assert evaluate("--nsd-tolerance-mm", "2", "--structures", "posterior") == 1
    record = json.loads((tmp_path / "eval" / "evaluation.json").read_text())
    assert record["droseg"] == __version__
    assert record["structures"] == {"posterior": [5]}
    assert record["nsd_tolerance_mm"] == {"posterior": 2.0}
    assert record["metrics"] == [*METRICS, *EXTRA_METRICS]
    assert (record["scored"], record["missing"], list(record["not_scored"])) == (2, ["c2"], ["c1"])
    assert record["missing_as_failure"] is False


def test_files_that_bear_other_names_are_pointed_out(evaluate, tmp_path, capsys):
    for i in range(4):
        (tmp_path / f"pred/c{i}_seg.nii.gz").rename(tmp_path / f"pred/c{i}-pred.nii.gz")
    assert evaluate() == 1
    error = capsys.readouterr().err
    assert "4 label maps of no case (c0-pred.nii.gz, c1-pred.nii.gz, c2-pred.nii.gz, ...)" in error
    assert "CASE_ID_seg" in error
    assert not (tmp_path / "eval" / "case_metrics.csv").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--nsd-tolerance-mm", "posterior"], "--nsd-tolerance-mm is posterior"),
        (["--nsd-tolerance-mm", "anterior=-1"], "--nsd-tolerance-mm is anterior=-1"),
        (["--nsd-tolerance-mm", "lesion=1"], "no structure lesion; those declared: anterior, posterior"),
        (["--extra-metrics", "hd90", "hd0_mm"], "no metric hd90, hd0_mm"),
    ],
)
def test_arguments_that_mean_nothing_are_refused(evaluate, capsys, arguments, message):
    assert evaluate(*arguments) == 2
    assert message in capsys.readouterr().err
