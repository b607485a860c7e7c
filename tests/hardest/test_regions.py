"""Regions that overlap, each against its own outside: volumes in dispute by hand."""

from __future__ import annotations

import numpy as np
import pytest

from droseg.data.regions import region_codes
from droseg.hardest.flag import check_label, usual
from droseg.hardest.measure import measure_volume
from droseg.hardest.pictures import draw_case
from droseg.hardest.volumes import RegionVolume

NAMES = ("WT", "TC")
SURE = 0.97
AFFINE = np.eye(4)
WHOLE_ML, CORE_ML = 16 * 12 * 12 / 1000, 6**3 / 1000


def masks(core: bool = True) -> dict[str, np.ndarray]:
    """Return a whole of 16 x 12 x 12 mm and a core of 6 mm edge in it."""
    found = {name: np.zeros((24, 20, 16), dtype=bool) for name in NAMES}
    found["WT"][4:20, 4:16, 2:14] = True
    if core:
        found["TC"][8:14, 6:12, 5:11] = True
    return found


def volume(label: dict[str, np.ndarray], pred: dict[str, np.ndarray], sure: float = SURE) -> RegionVolume:
    probability = np.stack([np.where(pred[name], sure, 1 - sure) for name in NAMES]).astype(np.float32)
    inside = np.stack(list(label.values()))
    means = [probability[region][inside[region]].mean() if inside[region].any() else np.nan for region in range(2)]
    confidence = np.array([(1 - probability)[~inside].mean(), *means])
    codes = [region_codes(list(each.values())) for each in (label, pred)]
    image = np.where(pred["WT"], 100.0, 0.0).astype(np.float32)
    return RegionVolume(image, codes[0], codes[1], probability, AFFINE, 0.1, confidence)


def test_what_both_say_is_in_no_dispute() -> None:
    measured = measure_volume("a", volume(masks(), masks()), NAMES)
    assert measured.dice == {"WT": 1.0, "TC": 1.0}
    assert measured.disagreement is not None
    assert measured.disagreement.far_ml.sum() == 0
    np.testing.assert_allclose(measured.disagreement.label_ml[1:], [WHOLE_ML, CORE_ML])
    np.testing.assert_allclose(measured.disagreement.self_confidence, SURE, rtol=1e-6)


def test_a_core_that_the_label_lacks_is_in_dispute_by_itself() -> None:
    """The whole is undisputed, although the core lies in it; and a label map of classes could not say so."""
    case = volume(masks(core=False), masks())
    measured = measure_volume("a", case, NAMES)
    assert measured.dice == {"WT": 1.0, "TC": 0.0}
    assert measured.disagreement is not None
    far_ml = measured.disagreement.far_ml.sum(axis=-1)
    assert far_ml[0, 2] == pytest.approx(CORE_ML)
    assert far_ml.sum() == pytest.approx(far_ml[0, 2])
    np.testing.assert_array_equal(case.disputed(np.full(3, 0.95)), masks()["TC"])
    assert not case.disputed(np.full(3, 0.99)).any()  # not as sure as that


def test_a_core_that_the_network_denies_is_in_dispute_beyond_its_border() -> None:
    label, pred = masks(), masks(core=False)
    far_ml = measure_volume("a", volume(label, pred), NAMES).disagreement.far_ml.sum(axis=-1)  # type: ignore[union-attr]
    assert far_ml[2, 0] == pytest.approx(2**3 / 1000)  # farther than 2 mm from its outside; nearer is nobody's fault
    assert far_ml.sum() == pytest.approx(far_ml[2, 0])


def test_the_label_without_its_core_is_the_one_that_is_flagged() -> None:
    cases = [volume(masks(), masks()) for _ in range(5)] + [volume(masks(core=False), masks(), sure=0.995)]
    found = [case.disagreement() for case in cases]
    checks = [check_label(each, usual(found), NAMES) for each in found]
    assert [check.flagged for check in checks] == [False] * 5 + [True]
    assert checks[5].structure == "TC"
    assert "TC is not labelled at all, but the network is sure of 0.216 ml, labelled something else" in checks[5].reason
    assert "the regions added up" in checks[5].reason


def test_both_regions_are_drawn() -> None:
    case = volume(masks(), masks())
    assert {name: len(values) for name, values in case.values(NAMES).items()} == {"WT": 2, "TC": 2}  # 1, 3; 2, 3
    planes = draw_case(case, np.full(3, 0.95), NAMES, flagged=False)
    assert [plane.plane for plane in planes] == ["sagittal", "coronal", "axial"]
    assert all(panel.startswith("data:image/jpeg;base64,") for plane in planes for panel in plane.panels)
