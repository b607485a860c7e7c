"""The order and the columns of the table, and the curves, on small tables made by hand."""

from __future__ import annotations

import xml.etree.ElementTree as ET

import numpy as np
import pandas as pd
import pytest

from droseg.data import Case
from droseg.hardest import Measurement, hardest_table
from droseg.hardest.curves import loss_curve, usual_losses
from droseg.hardest.flag import LabelCheck
from droseg.hardest.source import EarlyLosses

NAN = float("nan")
CASES = [Case(name, f"patient of {name}", (), None, {"anatomy": "rare"} if name == "b" else {}) for name in "abcd"]
MEASUREMENTS = [
    Measurement("a", 0.2, {"one": 0.9, "two": NAN}),
    Measurement("b", 1.5, {"one": 0.5, "two": 0.1}),
    Measurement("c", problem="no such file"),
    Measurement("d", 0.7, {"one": NAN, "two": NAN}),
]
CHECKS = {
    "b": LabelCheck(3.0, "two", 0.6, 0.01, "two is not labelled at all"),
    "a": LabelCheck(0.1, "", 0.0, 0.002, ""),
}


def history(**visits: int) -> pd.DataFrame:
    rows = {"stale_loss": 1.0, "visits": list(visits.values())}
    return pd.DataFrame(rows, index=pd.Index(list(visits), name="case_id"))


def table(**visits: int) -> pd.DataFrame:
    return hardest_table(CASES, MEASUREMENTS, CHECKS, history(**visits), "model.pt").set_index("case_id")


def test_the_largest_loss_comes_first_and_what_was_not_measured_last_without_a_rank():
    found = table(a=1, b=1, c=1, d=1)
    assert list(found.index) == ["b", "d", "a", "c"]
    assert found["rank"].tolist()[:3] == [1, 2, 3]
    assert pd.isna(found.loc["c", "rank"])
    assert found.loc["c", "problem"] == "no such file"
    assert (found.drop("c")["problem"] == "").all()


def test_draw_shares_are_those_of_all_visits():
    found = table(a=1, b=6, c=2, d=1)
    assert found["draw_share"].to_dict() == pytest.approx({"a": 0.1, "b": 0.6, "c": 0.2, "d": 0.1})


def test_cases_without_history_have_empty_fields():
    found = table(a=4, b=4)
    assert pd.isna(found.loc["d", ["stale_loss", "visits", "draw_share"]]).all()
    assert found.loc["a", "visits"] == 4


def test_the_mean_dice_is_over_the_structures_there_are():
    found = table(a=1)
    assert found.loc["a", "dice_mean"] == pytest.approx(0.9)
    assert found.loc["b", "dice_mean"] == pytest.approx(0.3)
    assert np.isnan(found.loc["d", "dice_mean"])


def test_groups_and_flags_have_columns_of_their_own():
    found = table(a=1)
    assert found.loc["b", "anatomy"] == "rare"
    assert pd.isna(found.loc["a", "anatomy"])
    assert found["flag"].to_dict() == {"b": "label looks wrong", "d": "", "a": "", "c": ""}
    assert found.loc["b", "flag_reason"] == "two is not labelled at all"


def test_early_losses_rank_unless_there_are_none_or_the_case_has_changed():
    stored = {"same": 0.5, "changed": 0.5, "not finite": NAN, "failed": 2.0}
    cases = [Case(name, name, (), None, {}) for name in (*stored, "new")]
    measured = [
        Measurement("same", 9.0, early_loss=0.505),
        Measurement("changed", 9.0, early_loss=0.3),
        Measurement("not finite", 9.0, early_loss=0.7),
        Measurement("failed", problem="no such file"),
        Measurement("new", 9.0, early_loss=0.1),
    ]
    checks = {"same": CHECKS["a"]}
    found = hardest_table(cases, measured, checks, history(), "model.pt after epoch 9", EarlyLosses(8, stored))
    losses = found.set_index("case_id")["loss"]
    assert losses.drop("failed").to_dict() == {"not finite": 0.7, "same": 0.5, "changed": 0.3, "new": 0.1}
    assert np.isnan(losses["failed"])
    assert set(found["ranked_by"]) == {"early loss, epoch 8"}
    assert set(found["flagged_by"]) == {"model.pt after epoch 9"}


def audit(*records: tuple[str, int, float]) -> pd.DataFrame:
    found = pd.DataFrame(records, columns=["case_id", "step", "loss"])
    return found.assign(epoch=(found["step"] - 1) // 10 + 1)


def test_usual_losses_are_percentiles_of_each_epoch():
    losses = np.random.default_rng(0).random(40)
    found = usual_losses(audit(*((f"case{i % 7}", i + 1, loss) for i, loss in enumerate(losses))))
    assert found is not None
    by_epoch = losses.reshape(4, 10)
    np.testing.assert_allclose(found.median, np.median(by_epoch, axis=1))
    np.testing.assert_allclose(found.low, np.percentile(by_epoch, 10, axis=1))
    np.testing.assert_allclose(found.high, np.percentile(by_epoch, 90, axis=1))
    np.testing.assert_allclose(found.step, [5.5, 15.5, 25.5, 35.5])
    assert found.last_step == 40


def test_a_curve_has_a_point_for_each_finite_loss_higher_where_it_is_larger():
    trail = audit(("a", 1, 2.0), ("b", 2, 1.0), ("a", 11, NAN), ("a", 15, 1.0), ("a", 20, 0.0))
    usual = usual_losses(trail)
    svg = ET.fromstring(loss_curve(trail[trail["case_id"] == "a"], usual, "a <b>"))
    points = [(float(c.get("cx")), float(c.get("cy"))) for c in svg.iter("circle")]
    assert len(points) == 3
    (x1, y1), (x15, y15), (x20, y20) = points
    assert (x20 - x1) / (x15 - x1) == pytest.approx(19 / 14, rel=0.01)
    assert y20 - y15 == pytest.approx(y15 - y1, abs=0.2)
    assert y1 < y15 < y20
    assert next(svg.iter("circle")).findtext("title") == "step 1: 2"
    assert "a <b>" in svg.get("aria-label")


def test_a_case_that_was_never_drawn_has_an_empty_curve():
    trail = audit(("a", 1, 2.0))
    assert "<circle" not in loss_curve(trail[:0], usual_losses(trail), "b")


def test_no_finite_loss_at_all_means_no_curves():
    assert usual_losses(audit(("a", 1, NAN))) is None
