"""Which of two values is the better one, told by the name of a metric."""

import pytest

from droseg.metrics.names import (
    higher_is_better,
    lacks_direction,
    metric_label,
    tail_name,
    tail_percentile,
    with_direction,
)


@pytest.mark.parametrize(
    "name",
    ["HD95", "hd", "Hausdorff", "hausdorff95", "avgHD", "ASD", "assd", "MASD", "SurfaceDistance", "dist"]
    + ["RMSE", "RVE_Error", "hd95mm", "HD95 (mm)", "HD95_MM", "error"],
)
def test_a_distance_whose_name_says_no_direction_is_recognized(name):
    assert lacks_direction(name)


@pytest.mark.parametrize(
    "name",
    ["dice", "nsd", "hd95_mm", "masd_mm", "betti0_error", "IoU", "lesion_f1", "distal_dice", "third", "HD95_lower"],
)
def test_other_names_are_taken_as_they_are(name):
    assert not lacks_direction(name)


def test_a_direction_travels_in_the_name():
    assert with_direction("HD95", "lower") == "HD95_lower"
    assert with_direction("hd95_mm", "lower") == "hd95_mm"  # says so already
    assert with_direction("PSNR", "higher") == "PSNR"
    assert with_direction("reach_mm", "higher") == "reach_mm_higher"
    assert not higher_is_better("HD95_lower")
    assert higher_is_better("reach_mm_higher")
    assert tail_percentile("HD95_lower") == 90
    assert metric_label("HD95_lower") == "HD95"
    assert tail_name("HD95_lower") == "HD95_p90_lower"


@pytest.mark.parametrize(("name", "direction"), [("dice", "lower"), ("hd95_mm", "higher"), ("HD95", "up")])
def test_a_direction_that_cannot_be_is_refused(name, direction):
    with pytest.raises(ValueError, match=name):
        with_direction(name, direction)
