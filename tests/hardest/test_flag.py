"""Which labels are flagged: wrong ones and not rare anatomies, with the reason in words."""

from __future__ import annotations

import numpy as np
import pytest

from droseg.hardest.disagreement import BINS, Disagreement
from droseg.hardest.flag import Standards, check_label, usual

NAMES = ("ventricles", "cerebellum", "brainstem")
STANDARDS = Standards(np.full(4, 0.9), np.array([900.0, 40.0, 20.0, 10.0]), 70.0)


def disagreement(probability: float = 0.97, label_ml=(900, 40, 20, 10), **ml: float) -> Disagreement:
    """Return a case; `from_0_to_2=8` says that 8 ml labelled 0 are predicted 2."""
    far = np.zeros((4, 4, BINS))
    for name, volume in ml.items():
        labelled, predicted = int(name[5]), int(name[-1])
        far[labelled, predicted, int((probability - 0.5) * 2 * BINS)] = volume
    return Disagreement(np.array(label_ml, dtype=float), np.full(4, 0.9), far)


def test_an_erased_structure_is_flagged_by_name():
    check = check_label(disagreement(label_ml=(920, 40, 0, 10), from_0_to_2=16.0), STANDARDS, NAMES)
    assert check.flagged
    assert check.structure == "cerebellum"
    assert check.structure_share == pytest.approx(0.8)
    assert "cerebellum is not labelled at all, but the network is sure of 16 ml, labelled background" in check.reason


def test_a_part_that_is_missing_is_named_with_its_share():
    check = check_label(disagreement(label_ml=(910, 40, 10, 10), from_0_to_2=5.0), STANDARDS, NAMES)
    assert "5 ml of cerebellum (25 % of it) are labelled background" in check.reason


def test_what_is_labelled_too_much_is_named_too():
    check = check_label(disagreement(from_3_to_0=4.0), STANDARDS, NAMES)
    assert "4 ml labelled brainstem (40 % of it) are background to the network" in check.reason


def test_two_structures_of_confused_names_are_called_swapped():
    check = check_label(disagreement(label_ml=(900, 40, 10, 20), from_2_to_3=8.0, from_3_to_2=15.0), STANDARDS, NAMES)
    assert "cerebellum and brainstem look swapped" in check.reason


def test_many_small_disputes_are_flagged_together():
    parts = {"from_0_to_1": 1.0, "from_1_to_0": 1.0, "from_2_to_1": 0.5}
    check = check_label(disagreement(**parts), STANDARDS, NAMES)
    assert check.flagged
    assert check.structure_share < 0.2
    assert check.total_share == pytest.approx(2.5 / 70)
    assert check.reason == "2.5 ml (3.6 % of a usual label) are something else to the network"


def test_a_network_that_is_wrong_but_not_sure_flags_nothing():
    # What a rare anatomy looks like: most of a structure is predicted as another one, at moderate probability.
    check = check_label(disagreement(probability=0.8, from_1_to_0=30.0, from_0_to_2=10.0), STANDARDS, NAMES)
    assert not check.flagged
    assert check.score == 0
    assert check.reason == check.structure == ""


def test_a_large_structure_of_one_case_is_measured_by_its_own_volume():
    # 10 ml in dispute: half of a usual cerebellum, but a tenth of this one.
    usual_one = check_label(disagreement(from_2_to_0=10.0), STANDARDS, NAMES)
    large_one = check_label(disagreement(label_ml=(800, 40, 100, 10), from_2_to_0=10.0), STANDARDS, NAMES)
    assert usual_one.structure_share == pytest.approx(0.5)
    assert large_one.structure_share == pytest.approx(0.1)


def test_the_score_is_one_at_the_threshold():
    assert check_label(disagreement(from_2_to_3=1.0), Standards(*_wide()), NAMES).score == pytest.approx(0.5)
    assert check_label(disagreement(from_2_to_3=2.0), Standards(*_wide()), NAMES).score == pytest.approx(1.0)


def _wide() -> tuple[np.ndarray, np.ndarray, float]:
    """Return standards whose whole label is so large that only the structure decides."""
    return STANDARDS.sure, STANDARDS.typical_ml, 1e6


def test_sure_is_the_mean_probability_of_all_voxels_of_a_class():
    # Northcutt et al. 2021, equation 2, over voxels: 1 ml at 0.99 and 3 ml at 0.95.
    cases = [
        Disagreement(np.array([1.0, 1.0, 0.0]), np.array([0.5, 0.99, np.nan]), np.zeros((3, 3, BINS))),
        Disagreement(np.array([1.0, 3.0, 0.0]), np.array([0.7, 0.95, np.nan]), np.zeros((3, 3, BINS))),
    ]
    standards = usual(cases)
    assert standards.sure == pytest.approx([0.9, (0.99 + 3 * 0.95) / 4, 1.0])
    assert standards.typical_ml[:2] == pytest.approx([1.0, 2.0])
    assert standards.labelled_ml == pytest.approx(2.0)
    assert check_label(cases[0], standards, ("one", "never labelled")).score == 0


def test_the_usual_volume_is_that_of_the_labels_that_have_the_structure():
    cases = [disagreement(label_ml=(900, 40, volume, 10)) for volume in (0, 0, 0, 18, 22)]
    assert usual(cases).typical_ml[2] == pytest.approx(20)


def test_without_cases_there_is_no_standard():
    with pytest.raises(ValueError, match="no case was measured"):
        usual([])
