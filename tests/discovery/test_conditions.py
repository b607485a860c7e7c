from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from droseg.discovery.conditions import Condition, candidate_conditions, rule_holds, rule_text


def test_a_rule_reads_as_a_person_would_say_it():
    rule = (Condition("slice_thickness_mm", ">", 2.5), Condition("ventricles_ml", "<=", 12.0))
    assert rule_text(rule) == "slice thickness > 2.5 mm and ventricles <= 12 ml"
    assert rule_text([Condition("MagneticFieldStrength", ">", 2.0)]) == "MagneticFieldStrength > 2"
    assert rule_text([Condition("slice_plane", "=", "axial")]) == "slice plane = axial"


def test_an_unknown_feature_is_neither_inside_nor_outside():
    features = pd.DataFrame({"a": [1.0, 2.0, np.nan, np.inf], "b": ["x", None, "x", "y"]})
    assert Condition("a", ">", 1.5).holds(features).tolist() == pytest.approx([0, 1, np.nan, np.nan], nan_ok=True)
    assert Condition("a", "<=", 1.5).holds(features).tolist() == pytest.approx([1, 0, np.nan, np.nan], nan_ok=True)
    assert Condition("b", "=", "x").holds(features).tolist() == pytest.approx([1, np.nan, 1, 0], nan_ok=True)
    both = rule_holds([Condition("a", "<=", 1.5), Condition("b", "=", "x")], features)
    assert both.tolist() == pytest.approx([1, np.nan, np.nan, np.nan], nan_ok=True)


def test_thresholds_lie_between_values_and_are_short():
    features = pd.DataFrame({"spacing_mm": [0.8] * 5 + [1.0] * 5 + [3.0] * 5, "volume_ml": np.arange(15) + 0.123456})
    spacing = {c.value for c in candidate_conditions(features[["spacing_mm"]], 5)}
    assert spacing == {0.9, 2.0}
    for condition in candidate_conditions(features[["volume_ml"]], 5):
        assert len(f"{condition.value:g}") <= 4
        assert 5 <= condition.holds(features).sum() <= 14


def test_a_threshold_separates_neighbors_that_differ_in_the_last_bit_only():
    low = 1.0
    features = pd.DataFrame({"x": [low] * 5 + [np.nextafter(low, 2)] * 5})
    (above,) = (c for c in candidate_conditions(features, 5) if c.relation == ">")
    assert above.holds(features).tolist() == [0.0] * 5 + [1.0] * 5


def test_features_that_say_nothing_give_no_condition():
    features = pd.DataFrame({"same": [1.0] * 8, "empty": [np.nan] * 8, "id": list("abcdefgh"), "all": ["x"] * 8})
    assert candidate_conditions(features, 2) == []


def test_true_and_false_are_values_not_numbers():
    features = pd.DataFrame({"contrast_agent": [True] * 4 + [False] * 4})
    assert {str(c) for c in candidate_conditions(features, 2)} == {"contrast agent = True", "contrast agent = False"}
